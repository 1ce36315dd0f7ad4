"""LLM prices from genai-prices: its bundled data and matcher, compiled to our rows one model at a time.

In: the data that the installed genai-prices package carries; nothing is fetched. Out: a book layer whose SKUs are
compiled when a span first names them. The package's arithmetic is not used, only its data, its matcher and its rule for
which prices hold at an instant (``ModelInfo.get_prices``), which is asked once for each stretch of time in which its
answer cannot change.

What is made of its data:

- prices hold under explicit conditions: standard and online, or the service tier or batch processing of a variant. A
  variant that names only some prices keeps the standard ones for the rest, as genai-prices does; a tier or batch
  that no variant covers at that time has no row, so it is unpriced;
- a model with no prices is unpriced, unless its name says that it is free (``...:free``);
- prices that carry float noise (0.18000000000000002) are taken to twelve digits;
- tier variants belong to their provider: a model priced by another provider's list (Azure by OpenAI's) has the
  standard prices alone;
- a price for which we have no meter is left out (`UNMETERED`); if it is one for some of the tokens of a direction, all
  tokens of that direction are left out with it, because their price would not be the whole price.

Names are found more strictly than genai-prices finds them: see `catalogue_names`. What its data say wrongly, or cannot
say (a price that has a start and hours of the day), is put right by a layer in front: see `corrections`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from tollspan.pricing import catalogue_names
from tollspan.pricing.book import MatchKind, Sku
from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.rows import ALWAYS, Alias, Factor, Interval, PriceRow, Source, Step, Term
from tollspan.pricing.schedule import DAY, Schedule
from tollspan.pricing.selectors import BATCH, ONLINE, PROVIDERS, STANDARD

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

PRICE_KEYS: Final[dict[str, tuple[str, int, str]]] = {
    "input_mtok": ("tokens.input.uncached", 1_000_000, "token"),
    "cache_read_mtok": ("tokens.input.cache_read", 1_000_000, "token"),
    "cache_write_mtok": ("tokens.input.cache_write", 1_000_000, "token"),
    "cache_write_5m_mtok": ("tokens.input.cache_write.5m", 1_000_000, "token"),
    "cache_write_1h_mtok": ("tokens.input.cache_write.1h", 1_000_000, "token"),
    "input_audio_mtok": ("tokens.input.audio", 1_000_000, "token"),
    "cache_audio_read_mtok": ("tokens.input.audio.cache_read", 1_000_000, "token"),
    "input_image_mtok": ("tokens.input.image", 1_000_000, "token"),
    "cache_image_read_mtok": ("tokens.input.image.cache_read", 1_000_000, "token"),
    "input_video_mtok": ("tokens.input.video", 1_000_000, "token"),
    "output_mtok": ("tokens.output", 1_000_000, "token"),
    "output_reasoning_mtok": ("tokens.output.reasoning", 1_000_000, "token"),
    "output_audio_mtok": ("tokens.output.audio", 1_000_000, "token"),
    "output_image_mtok": ("tokens.output.image", 1_000_000, "token"),
    "output_video_mtok": ("tokens.output.video", 1_000_000, "token"),
    "output_citation_mtok": ("tokens.output.citation", 1_000_000, "token"),
    "requests_kcount": ("requests", 1000, "request"),
    "web_searches_kcount": ("web_searches", 1000, "search"),
    "social_searches_kcount": ("x_searches", 1000, "search"),
    "storage_searches_kcount": ("file_searches", 1000, "search"),
    "rerank_searches_kcount": ("rerank.search_units", 1000, "search unit"),
    "audio_hours": ("audio.seconds", 1, "hour"),
    "input_audio_hours": ("audio.seconds", 1, "hour"),
    "output_audio_hours": ("audio.seconds", 1, "hour"),
    "input_mchars": ("characters", 1_000_000, "character"),
    "input_document_kpages": ("pages", 1000, "page"),
    "input_annotated_document_kpages": ("pages.annotated", 1000, "page"),
}
"""genai-prices' price key → our meter, and what its price is for. Hours of audio heard and made are one meter: a model
that asks different prices for them has no price for it."""

UNMETERED: Final = frozenset({"input_text_messages_kcount"})
"""Keys that its data use and that we cannot count: text messages in a voice session of xAI, $4 per thousand. A test
holds this list against the data."""

CONDITIONS: Final[dict[tuple[str, str], dict[str, str]]] = {
    ("service_tier", "flex"): {"service_tier": "flex", "processing": ONLINE},
    ("service_tier", "priority"): {"service_tier": "priority", "processing": ONLINE},
    ("service_tier", "fast"): {"service_tier": "fast", "processing": ONLINE},
    ("speed", "fast"): {"service_tier": "fast", "processing": ONLINE},
    ("processing", "batch"): {"service_tier": STANDARD, "processing": BATCH},
    ("search_type", "fast"): {"service_tier": "fast_search", "processing": ONLINE},
}
"""Variant of genai-prices → what a span must say. Perplexity's search type stands as a service tier, for it is what a
request is served at. OpenRouter's routes have no selector of ours and are left out; ``service_tier: default`` and
``search_type: web`` are the standard price."""

FREE_METERS: Final = ("tokens.input.uncached", "tokens.output")
"""What a model named free charges nothing for; tokens counted in these are free with them (`resolve.INCLUDED_IN`)."""

STANDARD_CONDITION: Final = {"service_tier": STANDARD, "processing": ONLINE}

_CLEAN: Final = Context(prec=12, rounding=ROUND_HALF_EVEN)
_NOISY_DIGITS: Final = 13
_EPOCH_DAY: Final = datetime(1970, 1, 1, tzinfo=UTC)
_KEPT_NAMES: Final = 100_000

_GROQ_WHISPER: Final = ("groq", ("whisper-large-v3", "whisper-large-v3-turbo"), Decimal(10))
"""genai-prices bills these for ten seconds at least, in its code and not in its data."""


class Catalogue:
    """The layer behind all others; loads genai-prices (about half a second) when a name is first looked up."""

    name = "genai-prices"
    factors: Sequence[Factor] = ()
    adjustments: Sequence[Factor] = ()
    terms: Sequence[Term] = ()

    def __init__(self) -> None:
        self.version = _version()
        self._found: dict[tuple[str, str], tuple[MatchKind, Sku, str] | None] = {}
        self._compiled: dict[tuple[str, str, bool], Sku] = {}

    def skus(self, axis: Axis, provider: str | None, name: str | None) -> Sequence[tuple[MatchKind, Sku]]:
        if axis != "model" or provider is None or name is None:
            return ()
        found = self._lookup(provider, name)
        return () if found is None else (found[:2],)

    def aliases(self, axis: Axis, provider: str | None, name: str | None) -> Sequence[Alias]:
        return ()

    def names(self, axis: Axis, provider: str | None) -> Iterable[str]:
        owner = _provider(provider) if provider is not None else None
        return [model.id for model in owner.models] if axis == "model" and owner is not None else []

    def identify(self, provider: str, name: str) -> tuple[MatchKind, str, str] | None:
        """How a name was found, the id of the entry it stands for, in lower case, and the spelling that matched."""
        found = self._lookup(provider, name)
        return None if found is None else (found[0], found[1].name.partition("/")[2].lower(), found[2])

    def model_id(self, provider: str, name: str) -> str | None:
        found = self._lookup(provider, name)
        return None if found is None else found[1].name

    def known_as(self, provider: str, name: str) -> Sequence[str]:
        """Its spellings without wrapping, on Bedrock also without the geography in front where that changes no price,
        and the id of its entry."""
        known = self.identify(provider, name)
        names = dict.fromkeys(catalogue_names.known_spellings(provider, name, known[2] if known is not None else None))
        if known is not None:
            homes = [home for each in names if (home := catalogue_names.without_geography(provider, each)) is not None]
            names.update(dict.fromkeys(home for home in homes if self._same(provider, home, known[1])))
            names[known[1]] = None
        return tuple(names)

    def _same(self, provider: str, name: str, model: str) -> bool:
        found = self.identify(provider, name)
        return found is not None and found[1] == model

    def owners(self, name: str) -> Iterable[str]:
        return _owners().get(name, ())

    def _lookup(self, provider: str, name: str) -> tuple[MatchKind, Sku, str] | None:
        key = (provider, name)
        if key not in self._found:
            if len(self._found) >= _KEPT_NAMES:
                self._found.clear()
            self._found[key] = self._find(provider, name)
        return self._found[key]

    def _find(self, provider: str, name: str) -> tuple[MatchKind, Sku, str] | None:
        from genai_prices.data import providers

        owner = _provider(provider)
        found = catalogue_names.find(owner, name, providers) if owner is not None else None
        if found is None:
            return None
        # A model that another provider lists is known by that provider's name and price, without its tiers.
        key = (found.owner.id, found.model.id, found.owner is owner)
        if key not in self._compiled:
            self._compiled[key] = compile_model(found.owner, found.model, with_variants=found.owner is owner)
        return found.kind, self._compiled[key], found.spelling


def compile_model(provider: Provider, model: ModelInfo, *, with_variants: bool = True) -> Sku:
    """Rows for everything that genai-prices charges for a model."""
    name = f"{provider.id}/{model.id}"
    if _is_free(model):
        return Sku(name, {meter: (_free_row(provider, model, meter),) for meter in FREE_METERS})
    variants = [variant for variant in model.price_variants or () if with_variants and _condition(variant) is not None]
    dates = sorted({date for date in map(_start_date, [*_conditional(model), *variants]) if date is not None})
    pieces = _day_pieces([*_conditional(model), *variants])
    conditions: dict[tuple[tuple[str, str], ...], tuple[dict[str, str], dict[str, str] | None]] = {
        (): (STANDARD_CONDITION, None)
    }
    for variant in variants:
        conditions.setdefault(tuple(sorted(variant.when.items())), (_condition(variant) or {}, dict(variant.when)))

    rows: dict[str, list[PriceRow]] = {}
    for when, context in conditions.values():
        of_variant = [variant for variant in variants if variant.when == context]
        for stretch in _stretches(dates):
            # Answers by piece of the day; a piece in which the variant is not active has none.
            answers: dict[int, tuple[ModelPrice, list[tuple[int, int]]]] = {}
            for start, end in pieces:
                instant = _instant(stretch, start)
                if context is not None and not any(_active(variant, instant) for variant in of_variant):
                    continue
                prices = model.get_prices(instant, context)
                same = next((key for key, (other, _) in answers.items() if other == prices), len(answers))
                answers.setdefault(same, (prices, []))[1].append((start, end))
            for prices, hours in answers.values():
                whole_day = len(hours) == len(pieces)
                for row in _rows(provider, model, prices, when, stretch, [] if whole_day else hours):
                    rows.setdefault(row.meter, []).append(row)
    return Sku(name, {meter: tuple(_merged(found)) for meter, found in rows.items()})


def clean(amount: Decimal) -> Decimal:
    """A price without float noise: to twelve digits if it has more than a published price ever has."""
    if len(amount.as_tuple().digits) < _NOISY_DIGITS:
        return amount
    return _CLEAN.plus(amount).normalize(_CLEAN)


def _provider(name: str) -> Provider | None:
    from genai_prices.data import providers
    from genai_prices.data_snapshot import find_provider_by_id

    return find_provider_by_id(providers, PROVIDERS.get(name, name))


@cache
def _owners() -> Mapping[str, tuple[str, ...]]:
    """Providers by the ids and full names of the models they list."""
    from genai_prices.data import providers

    found: dict[str, set[str]] = {}
    for provider in providers:
        for model in provider.models:
            for name in {model.id.lower(), *catalogue_names.listed(model.match)}:
                found.setdefault(name, set()).add(provider.id)
    return {name: tuple(sorted(owners)) for name, owners in found.items()}


def _conditional(model: ModelInfo) -> list[Any]:
    return model.prices if isinstance(model.prices, list) else []


def _is_free(model: ModelInfo) -> bool:
    """No price at all, and a name that says so."""
    groups = [conditional.prices for conditional in _conditional(model)] or [model.prices]
    has_price = any(value is not None for prices in groups for value in vars(prices).values())
    return not has_price and model.id.lower().endswith(":free")


def _free_row(provider: Provider, model: ModelInfo, meter: str) -> PriceRow:
    return PriceRow(
        id=f"{provider.id}/{model.id}/{meter}",
        meter=meter,
        sku=model.id.lower(),
        amount=Decimal(0),
        per=1_000_000,
        unit="token",
        source=_source((provider.pricing_urls or [""])[0], "free by its name"),
    )


def _condition(variant: Any) -> dict[str, str] | None:
    pairs = list(variant.when.items())
    return CONDITIONS.get(pairs[0]) if len(pairs) == 1 else None


def _start_date(item: Any) -> datetime | None:
    start = getattr(item.constraint, "start_date", None)
    return None if start is None else datetime.combine(start, time(), UTC)


def _active(variant: Any, instant: datetime) -> bool:
    return variant.constraint is None or variant.constraint.active(instant)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Days between two start dates; None = open."""

    start: datetime | None
    end: datetime | None

    @property
    def interval(self) -> Interval:
        if self.start is None and self.end is None:
            return ALWAYS
        return Interval(_ns(self.start), _ns(self.end))


def _stretches(dates: Sequence[datetime]) -> list[_Stretch]:
    bounds = [None, *dates, None]
    return [_Stretch(start, end) for start, end in pairwise(bounds)]


def _instant(stretch: _Stretch, time_of_day: int) -> datetime:
    """An instant inside the stretch at a time of the day."""
    if stretch.start is not None:
        day = stretch.start
    else:
        day = stretch.end - timedelta(days=1) if stretch.end is not None else _EPOCH_DAY
    return day + timedelta(microseconds=time_of_day // 1000)


def _day_pieces(items: Sequence[Any]) -> list[tuple[int, int]]:
    """The day (UTC, ns) cut wherever some price begins or ends."""
    cuts = {0, DAY}
    for item in items:
        for bound in ("start_time", "end_time"):
            value = getattr(item.constraint, bound, None)
            if value is not None:
                cuts.add(_time_of_day(value))
    ordered = sorted(cuts)
    return list(pairwise(ordered))


def _time_of_day(value: time) -> int:
    """ns since midnight UTC; a naive time is UTC, as genai-prices reads it."""
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    moment = datetime.combine(_EPOCH_DAY.date(), aware).astimezone(UTC)
    return ((moment - _EPOCH_DAY) // timedelta(microseconds=1) * 1000) % DAY


def _ns(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH_DAY) // timedelta(microseconds=1) * 1000


def _rows(
    provider: Provider,
    model: ModelInfo,
    prices: ModelPrice,
    when: dict[str, str],
    stretch: _Stretch,
    hours: Sequence[tuple[int, int]],
) -> Iterator[PriceRow]:
    """One row for each price of one answer of genai-prices."""
    condition = when["processing"] if when["processing"] != ONLINE else when["service_tier"]
    suffix = "" if condition == STANDARD else f"@{condition}"
    if hours:
        suffix += "~" + ",".join(f"{_clock(start)}-{_clock(end)}" for start, end in hours)
    if stretch.start is not None:
        suffix += f"#{stretch.start.date().isoformat()}"
    schedule = _schedule(tuple(hours)) if hours else None
    owner, whispers, least = _GROQ_WHISPER
    for meter, (per, unit, price) in _metered(vars(prices)).items():
        yield PriceRow(
            id=f"{provider.id}/{model.id}/{meter}{suffix}",
            meter=meter,
            sku=model.id.lower(),
            amount=clean(getattr(price, "base", price)),
            per=per,
            unit=unit,
            effective=stretch.interval,
            schedule=schedule,
            when=when,
            steps=tuple(Step(tier.start, clean(tier.price)) for tier in getattr(price, "tiers", ())),
            minimum=least if meter == "audio.seconds" and provider.id == owner and model.id in whispers else None,
            source=_source((provider.pricing_urls or [""])[0], model.price_comments or ""),
        )


@cache
def _schedule(hours: tuple[tuple[int, int], ...]) -> Schedule:
    """The same hours on every day of the week, UTC."""
    stretches: list[tuple[int, int]] = []
    for start, end in ((day * DAY + start, day * DAY + end) for day in range(7) for start, end in hours):
        if stretches and stretches[-1][1] == start:
            start = stretches.pop()[0]
        stretches.append((start, end))
    return Schedule(tuple(stretches))


def _metered(prices: Mapping[str, Any]) -> dict[str, tuple[int, str, Any]]:
    """Prices by meter, with what each is for; those that would be only a part of the price left out."""
    found: dict[str, tuple[int, str, Any]] = {}
    partial: set[str] = set()
    for key, price in prices.items():
        if price is None:
            continue
        if key not in PRICE_KEYS:
            partial.update(_affected(key))
            continue
        meter, per, unit = PRICE_KEYS[key]
        if meter in found and found[meter] != (per, unit, price):
            partial.add(meter)
        found[meter] = (per, unit, price)
    return {meter: price for meter, price in found.items() if meter not in partial}


def _affected(key: str) -> Iterable[str]:
    """Meters whose prices are not the whole price where this key, which has no meter, has a price too."""
    if not key.endswith("_mtok"):
        return ()
    direction = "output" if key.startswith("output_") else "input"
    return (meter for meter in METERS if meter.startswith(f"tokens.{direction}"))


def _merged(rows: Sequence[PriceRow]) -> Iterator[PriceRow]:
    """Rows of one meter, those that only continue an earlier one joined to it."""
    open_rows: list[PriceRow] = []
    for row in rows:
        for position, earlier in enumerate(open_rows):
            if earlier.effective.end == row.effective.start and row.effective.start is not None and _same(earlier, row):
                joined = Interval(earlier.effective.start, row.effective.end)
                open_rows[position] = replace(earlier, effective=joined)
                break
        else:
            open_rows.append(row)
    yield from open_rows


def _same(one: PriceRow, other: PriceRow) -> bool:
    return (one.amount, one.steps, one.schedule, one.when, one.minimum) == (
        other.amount,
        other.steps,
        other.schedule,
        other.when,
        other.minimum,
    )


def _clock(time_of_day: int) -> str:
    minutes = time_of_day // (60 * 10**9)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("genai-prices")


@cache
def _source(url: str, note: str) -> Source:
    return Source(url=url, via=f"genai-prices=={_version()}", note=note)
