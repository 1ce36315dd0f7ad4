"""Differential tests: our prices beside genai-prices' over its whole catalogue, and litellm's for common models.

Without corrections we charge what genai-prices charges, to the last digit. Where we differ (with corrections, or where
a tier without a price is unpriced here and standard there) the difference stands in ``differences/`` with its reason
and who is right. A difference that is not listed fails, and so does one that is listed and gone.

``python -m tests.pricing.test_differential`` writes both files anew, keeps their reasons, and leaves ``?`` where a
person has to find one.
"""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.types import ModelInfo, Provider

from tollspan.pricing import Charges, PriceBook, PriceEngine, Selectors, shipped_book
from tollspan.pricing.catalogue import CONDITIONS, Catalogue, clean
from tollspan.pricing.engine import instant_of
from tollspan.pricing.resolve import Situation

from .books import INPUT, NOON, OUTPUT, at

DIFFERENCES = Path(__file__).with_name("differences")
INSTANTS = [at("2025-06-01T12:00:00Z"), at("2026-03-01T02:30:00Z"), at("2026-11-20T12:00:00Z")]
CATALOGUE = PriceEngine(PriceBook((Catalogue(),)))
SHIPPED = PriceEngine(shipped_book())

COUNTED = {
    "input_mtok": (INPUT, ("input_tokens",), 1_017),
    "cache_read_mtok": ("tokens.input.cache_read", ("cache_read_tokens", "input_tokens"), 203),
    "cache_write_mtok": ("tokens.input.cache_write", ("cache_write_tokens", "input_tokens"), 31),
    "cache_write_1h_mtok": (
        "tokens.input.cache_write.1h",
        ("cache_write_1h_tokens", "cache_write_tokens", "input_tokens"),
        43,
    ),
    "input_audio_mtok": ("tokens.input.audio", ("input_audio_tokens", "input_tokens"), 59),
    "cache_audio_read_mtok": (
        "tokens.input.audio.cache_read",
        ("cache_audio_read_tokens", "input_audio_tokens", "cache_read_tokens", "input_tokens"),
        61,
    ),
    "input_image_mtok": ("tokens.input.image", ("input_image_tokens", "input_tokens"), 67),
    "cache_image_read_mtok": (
        "tokens.input.image.cache_read",
        ("cache_image_read_tokens", "input_image_tokens", "cache_read_tokens", "input_tokens"),
        71,
    ),
    "input_video_mtok": ("tokens.input.video", ("input_video_tokens", "input_tokens"), 73),
    "output_mtok": (OUTPUT, ("output_tokens",), 507),
    "output_reasoning_mtok": ("tokens.output.reasoning", ("output_reasoning_tokens", "output_tokens"), 77),
    "output_audio_mtok": ("tokens.output.audio", ("output_audio_tokens", "output_tokens"), 79),
    "output_image_mtok": ("tokens.output.image", ("output_image_tokens", "output_tokens"), 83),
    "output_video_mtok": ("tokens.output.video", ("output_video_tokens", "output_tokens"), 89),
    "output_citation_mtok": ("tokens.output.citation", ("output_citation_tokens", "output_tokens"), 97),
    "requests_kcount": ("requests", (), 1),
    "web_searches_kcount": ("web_searches", ("web_searches",), 3),
    "storage_searches_kcount": ("file_searches", ("storage_searches",), 5),
    "audio_hours": ("audio.seconds", ("audio_seconds", "input_audio_seconds"), 101),
    "input_mchars": ("characters", ("input_characters",), 1_009),
    "input_document_kpages": ("pages", ("input_document_pages",), 7),
    "input_annotated_document_kpages": (
        "pages.annotated",
        ("input_annotated_document_pages", "input_document_pages"),
        11,
    ),
}
"""Price key → our meter, the usage keys of genai-prices that count it, and a quantity."""

USAGES = {
    "text": ({"input_mtok", "output_mtok"}, 1),
    "cached": ({"input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok", "output_reasoning_mtok"}, 1),
    "all": (set(COUNTED), 1),
    "long": (set(COUNTED), 500),
}
"""Name of a usage → the keys it counts, as far as the model has a price for them, and how many times."""


class Difference(NamedTuple):
    """Where we and the other charge something else; ``right`` is ``ours`` or ``theirs``, as in the file."""

    at: str
    provider: str
    model: str
    context: str
    usage: str
    ours: str
    theirs: str


def models() -> Iterator[tuple[Provider, ModelInfo]]:
    for provider in providers:
        yield from ((provider, model) for model in provider.models if provider.find_model(model.id) is model)


def usage_of(model: ModelInfo, instant: datetime, name: str) -> tuple[dict[str, int | Decimal], Usage] | None:
    """Quantities by meter, and the same as genai-prices counts them; None where the model has no price for any."""
    wanted, factor = USAGES[name]
    keys = {key for key, value in vars(model.get_prices(instant)).items() if value is not None} & wanted
    if "output_mtok" in keys and "output_reasoning_mtok" in wanted:
        keys.add("output_reasoning_mtok")  # charged as output where it has no price of its own
    meters: dict[str, int | Decimal] = {}
    reported: dict[str, int] = {}
    for key in keys:
        meter, counted_in, quantity = COUNTED[key]
        quantity *= 1 if key == "requests_kcount" else factor
        meters[meter] = Decimal(quantity) if meter == "audio.seconds" else quantity
        for counted in counted_in:
            reported[counted] = reported.get(counted, 0) + quantity
    return (meters, Usage(**reported)) if meters else None


def contexts(model: ModelInfo) -> Iterator[tuple[str, dict[str, str] | None, dict[str, str]]]:
    """Standard, and every tier that the model has at any time: its name, theirs, ours."""
    yield "standard", None, {"service_tier": "default"}
    known = [dict(variant.when) for variant in model.price_variants or ()]
    for (key, value), when in CONDITIONS.items():
        if {key: value} in known:
            yield value, {key: value}, when


def active(model: ModelInfo, context: dict[str, str], instant: datetime) -> bool:
    return any(
        variant.when == context and (variant.constraint is None or variant.constraint.active(instant))
        for variant in model.price_variants or ()
    )


def close(ours: Charges, theirs: Decimal, model: ModelInfo, instant: datetime) -> bool:
    """Equal but for one rounding to 10⁻¹² a charge, and for prices whose float noise is taken away."""
    if ours.cost is None:
        return False
    noisy = any(isinstance(v, Decimal) and clean(v) != v for v in vars(model.get_prices(instant)).values())
    allowed = len(ours.charges) * Decimal("5E-13") + (theirs * Decimal("1E-11") if noisy else 0)
    return abs(ours.cost - theirs) <= allowed


class Cell(NamedTuple):
    """One comparison."""

    provider: Provider
    model: ModelInfo
    instant: datetime
    context: str
    priced_there: bool
    usage: str
    theirs: Decimal
    meters: dict[str, int | Decimal]
    selectors: Selectors


@cache
def cells() -> tuple[Cell, ...]:
    """Everything that is compared with genai-prices, with what it charges."""
    found: list[Cell] = []
    for instant in INSTANTS:
        for provider, model in models():
            for context, theirs, ours in contexts(model):
                seen: list[dict[str, int | Decimal]] = []
                for usage in USAGES:
                    quantities = usage_of(model, instant, usage)
                    if quantities is None or quantities[0] in seen:
                        continue
                    meters, reported = quantities
                    seen.append(meters)
                    total = model.calc_price(
                        reported, provider, genai_request_timestamp=instant, price_context=theirs
                    ).total_price
                    priced = theirs is None or active(model, theirs, instant)
                    selectors = Selectors(provider=provider.id, model=model.id, **ours)
                    found.append(Cell(provider, model, instant, context, priced, usage, total, meters, selectors))
    return tuple(found)


# genai-prices


def test_every_price_key_is_compared() -> None:
    used = {
        key
        for _, model in models()
        for instant in INSTANTS
        for key, value in vars(model.get_prices(instant)).items()
        if value is not None
    }
    assert used - COUNTED.keys() == {"input_audio_hours", "input_text_messages_kcount"}  # beside audio_hours; no meter


def test_the_whole_catalogue_costs_what_genai_prices_says_or_is_unpriced() -> None:
    """Where genai-prices falls back to the standard price of a tier that it does not know, ours has none."""
    compared = refused = 0
    for cell in cells():
        charges = CATALOGUE.price(cell.meters, at=cell.instant, selectors=cell.selectors)
        if not cell.priced_there:
            assert (charges.cost, charges.reasons) == (None, ("tier_unknown",)), cell
            refused += 1
        else:
            assert charges.status in ("priced", "free"), (cell, charges.reasons)
            assert close(charges, cell.theirs, cell.model, cell.instant), (cell, charges.cost)
            compared += 1
    assert compared > 19_000
    assert refused > 500


def genai_differences() -> list[Difference]:
    """One for each model, tier and date: the first usage that differs."""
    found: dict[tuple[str, ...], Difference] = {}
    for cell in cells():
        charges = SHIPPED.price(cell.meters, at=cell.instant, selectors=cell.selectors)
        if charges.status in ("priced", "free") and close(charges, cell.theirs, cell.model, cell.instant):
            continue
        key = (cell.instant.isoformat(), cell.provider.id, cell.model.id, cell.context)
        found.setdefault(key, Difference(*key, cell.usage, _shown(charges), f"{cell.theirs.normalize():f}"))
    return list(found.values())


def test_differences_to_genai_prices_are_listed() -> None:
    _held_against("genai.csv", genai_differences())


# litellm

LITELLM = "1.109.1"
"""The version that the list of differences is about; never 1.82.7 or 1.82.8."""
LITELLM_FILE = "litellm/model_prices_and_context_window_backup.json"

COMMON = {
    ("openai", ""): (
        *(
            "gpt-6-astra",
            "gpt-6-sol",
            "gpt-6-luna",
            "gpt-5.6-sol",
            "gpt-5.6-terra",
            "gpt-5.6-luna",
            "gpt-5.5",
            "gpt-5.4",
        ),
        *("gpt-5.4-mini", "gpt-5.4-nano", "gpt-5.2", "gpt-5.1", "gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5-pro"),
        *("gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4o", "gpt-4o-mini", "o1", "o3", "o3-mini", "o4-mini"),
        *("text-embedding-3-small", "text-embedding-3-large", "ft:gpt-4.1-2025-04-14", "ft:gpt-4o-2024-08-06"),
    ),
    ("anthropic", ""): (
        *(
            "claude-fable-5-1",
            "claude-fable-5",
            "claude-opus-5-5",
            "claude-opus-5",
            "claude-opus-4-8",
            "claude-opus-4-7",
        ),
        *("claude-opus-4-6", "claude-opus-4-5", "claude-sonnet-5-5", "claude-sonnet-5", "claude-sonnet-4-6"),
        *("claude-sonnet-4-5", "claude-haiku-5-5", "claude-haiku-4-5"),
    ),
    ("google", "gemini/"): (
        *("gemini-4-argon", "gemini-3.8-flash", "gemini-3.7-flash", "gemini-3.6-flash", "gemini-3.5-flash"),
        *("gemini-3.5-flash-lite", "gemini-3.1-pro-preview", "gemini-2.5-pro", "gemini-2.5-flash"),
        *("gemini-2.5-flash-lite", "gemini-3.8-flash-cyber"),
    ),
    ("deepseek", "deepseek/"): ("deepseek-v4-pro", "deepseek-v4-flash"),
    ("mistral", "mistral/"): (
        *("mistral-large-latest", "mistral-medium-latest", "mistral-small-latest", "codestral-latest"),
        *("devstral-latest", "mistral-large-4-0", "ministral-8b-latest"),
    ),
    ("x-ai", "xai/"): ("grok-4.7", "grok-4.5", "grok-4.3"),
    ("groq", "groq/"): ("openai/gpt-oss-120b", "llama-3.3-70b-versatile"),
    ("perplexity", "perplexity/"): ("sonar", "sonar-pro"),
    ("aws", ""): (
        *("global.anthropic.claude-opus-4-6-v1", "us.anthropic.claude-opus-4-6-v1", "anthropic.claude-opus-4-6-v1"),
        *("amazon.nova-pro-v1:0", "amazon.nova-lite-v1:0"),
    ),
    ("azure", "azure/"): ("gpt-5-mini", "gpt-4.1", "gpt-4o"),
}
"""Provider, and what litellm puts before its models → models that many use."""

TOKEN_RATES = {
    "input_cost_per_token": INPUT,
    "cache_read_input_token_cost": "tokens.input.cache_read",
    "cache_creation_input_token_cost": "tokens.input.cache_write",
    "cache_creation_input_token_cost_above_1hr": "tokens.input.cache_write.1h",
    "output_cost_per_token": OUTPUT,
}
"""litellm's key → our meter; the key with ``_batches``, ``_flex`` or ``_priority`` behind it is that tier's."""

LITELLM_TIERS = {
    "standard": ("", {"service_tier": "standard"}),
    "batch": ("_batches", {"processing": "batch"}),
    "flex": ("_flex", {"service_tier": "flex"}),
    "priority": ("_priority", {"service_tier": "priority"}),
}


def litellm_prices() -> Mapping[str, Any] | None:
    """litellm's price list, from an installed litellm, or from the wheel that TOLLSPAN_LITELLM_WHEEL names or that
    `make` has put beside the environment.

    It is read and never imported: importing litellm fetches a newer list.
    """
    beside = next(Path(sys.prefix, "litellm").glob(f"litellm-{LITELLM}-*.whl"), None)
    wheel = os.environ.get("TOLLSPAN_LITELLM_WHEEL") or beside
    if wheel is not None:
        if f"-{LITELLM}-" not in Path(wheel).name:
            return None
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(LITELLM_FILE)
    else:
        spec = importlib.util.find_spec("litellm")
        if spec is None or spec.origin is None or importlib.metadata.version("litellm") != LITELLM:
            return None
        content = (Path(spec.origin).parent.parent / LITELLM_FILE).read_bytes()
    prices: Mapping[str, Any] = json.loads(content, parse_float=Decimal)
    return prices


def litellm_differences(prices: Mapping[str, Any]) -> list[Difference]:
    """USD for a million tokens of a short request, at `NOON`; a rate that only one has counts too."""
    found: list[Difference] = []
    for (provider, prefix), names in COMMON.items():
        for name in names:
            entry = prices.get(prefix + name, {})
            for tier, (suffix, selectors) in LITELLM_TIERS.items():
                situation = Situation(
                    SHIPPED.book, "model", Selectors(provider=provider, model=name, **selectors).normalized()
                )
                for key, meter in TOKEN_RATES.items():
                    quote = situation.quote(meter, instant_of(NOON))
                    own = quote.row is not None and quote.row.meter == meter
                    ours = quote.steps[0][1] if own else None
                    theirs = entry.get(key + suffix)
                    theirs = None if theirs is None else Decimal(theirs) * 1_000_000
                    if ours != theirs:
                        found.append(
                            Difference(NOON.isoformat(), provider, name, tier, meter, _usd(ours), _usd(theirs))
                        )
    return found


def test_differences_to_litellm_are_listed() -> None:
    prices = litellm_prices()
    if prices is None:
        pytest.skip(
            f"litellm {LITELLM} is not here: make could not download it (it is not installed, only its price list is "
            f"read). Run pip download --no-deps litellm=={LITELLM} and name the wheel in TOLLSPAN_LITELLM_WHEEL"
        )
    _held_against("litellm.csv", litellm_differences(prices))


# Files

COLUMNS = (*Difference._fields, "right", "reason")


def listed(file: str) -> dict[Difference, tuple[str, str]]:
    """The differences of a file with who is right and why."""
    path = DIFFERENCES / file
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {Difference(*(row[name] for name in Difference._fields)): (row["right"], row["reason"]) for row in rows}


def _held_against(file: str, found: list[Difference]) -> None:
    known = listed(file)
    assert known, file
    unlisted = sorted(set(found) - known.keys())
    gone = sorted(known.keys() - set(found))
    assert not unlisted, f"{len(unlisted)} not in {file}, such as {unlisted[0]}"
    assert not gone, f"{len(gone)} of {file} no longer occur, such as {gone[0]}"
    for difference, (right, reason) in known.items():
        assert right in ("ours", "theirs", "neither", "open"), difference
        assert len(reason) > 20, difference


def _shown(charges: Charges) -> str:
    return f"{_usd(charges.cost)} {charges.status}" if charges.status not in ("priced", "free") else _usd(charges.cost)


def _usd(amount: Decimal | None) -> str:
    return "none" if amount is None else f"{amount.normalize():f}"


def _write(file: str, found: list[Difference]) -> None:
    known = listed(file)
    with (DIFFERENCES / file).open("w", encoding="utf-8", newline="") as lines:
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows((*difference, *known.get(difference, ("?", "?"))) for difference in sorted(found))


if __name__ == "__main__":
    _write("genai.csv", genai_differences())
    from_litellm = litellm_prices()
    if from_litellm is not None:
        _write("litellm.csv", litellm_differences(from_litellm))
