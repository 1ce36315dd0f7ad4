"""Price books: dated price rows in layers, and which of them can apply to what a span names.

In: rows and aliases, made by `yamlbook` from a file or by `catalogue` from genai-prices' data. Out: for one SKU name,
the `Match`es of every layer in the order in which they are tried. `resolve` picks the row among them. Nothing here
looks at quantities or at the clock.

Order of a match: the layers from front to back; in a layer the served model before the requested one; for one name an
exact SKU before an alias before a pattern, a longer pattern before a shorter, a row that names the provider before one
that does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Final, Literal, Protocol

from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.money import Rate, rate, steps_of
from tollspan.pricing.selectors import SKU_SELECTORS, Selectors, owner_of

MatchKind = Literal["exact", "alias", "pattern"]

DAY: Final = 86_400 * 10**9
WEEK: Final = 7 * DAY
ANY: Final = "*"
"""The SKU of rows that apply to whatever the span names."""
_THURSDAY: Final = 3 * DAY
"""1970-01-01 was a Thursday; weeks here begin on Monday."""


def week_time(at: int) -> int:
    """Nanoseconds since Monday 00:00 UTC of the week in which the instant ``at`` (ns since the epoch) lies."""
    return (at + _THURSDAY) % WEEK


@dataclass(frozen=True, slots=True)
class Interval:
    """Half-open interval of instants, ns since the epoch; None = open on that side."""

    start: int | None = None
    end: int | None = None

    def holds(self, at: int) -> bool:
        return (self.start is None or at >= self.start) and (self.end is None or at < self.end)

    def meets(self, other: Interval) -> bool:
        """Whether the two have an instant in common."""
        return (self.end is None or other.start is None or other.start < self.end) and (
            other.end is None or self.start is None or self.start < other.end
        )

    @property
    def cuts(self) -> set[int]:
        return {instant for instant in (self.start, self.end) if instant is not None}


ALWAYS: Final = Interval()


@dataclass(frozen=True, slots=True)
class Step:
    """A cliff tier: above ``above`` input tokens in the request, all of the meter's quantity costs ``amount``."""

    above: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Source:
    """Where a price was read."""

    url: str = ""
    retrieved_at: str = ""
    via: str = ""
    note: str = ""


@dataclass(frozen=True)
class PriceRow:
    """One price: what a quantity of one meter of one SKU costs, when and under which conditions.

    Attributes:
        id: unique in its book; kept on every charge.
        meter: a name from `METERS`.
        sku: SKU name in lower case, exact or with ``*`` and ``?``; what it names depends on the meter's axis.
        provider: model provider under its one name (`selectors.provider_of`) or, where the axis is not ``model``,
            cloud provider, in lower case; None = any, or none given.
        amount: USD for ``per`` ``unit``, exact.
        per: how many units the amount buys.
        unit: pricing unit, one of `money.units_of` the meter.
        effective: instants in which the price holds.
        windows: half-open stretches of the week, ns since Monday 00:00 UTC, sorted and disjoint; empty = always.
        when: selector → value that the span must have; ``service_tier`` and ``processing`` are compared with
            ``standard`` and ``online`` where the span names none.
        steps: cliff tiers by the request's input tokens, ascending.
        minimum: least quantity charged when any was used, in the meter's unit.
        kind: ``list`` | ``contract`` | ``amortised`` | ``estimate`` | ``included`` (a zero price: paid for elsewhere).
        source: where it was read.
    """

    id: str
    meter: str
    sku: str
    amount: Decimal
    provider: str | None = None
    per: int = 1
    unit: str = ""
    effective: Interval = ALWAYS
    windows: tuple[tuple[int, int], ...] = ()
    when: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    minimum: Decimal | None = None
    kind: str = "list"
    source: Source = Source()

    @property
    def axis(self) -> Axis:
        return METERS[self.meter].axis

    @property
    def per_unit(self) -> str:
        """Pricing unit as the ledger shows it: ``1000000 token``, ``1 hour``."""
        return f"{self.per} {self.unit}"

    @cached_property
    def rates(self) -> tuple[tuple[Decimal, Rate], ...]:
        """Amount and rate below the first step, then of each step."""
        amounts = (self.amount, *(step.amount for step in self.steps))
        return tuple((amount, rate(self.meter, amount, self.per, self.unit)) for amount in amounts)

    @cached_property
    def minimum_steps(self) -> int:
        """Least quantity charged, in base steps; 0 = none."""
        return 0 if self.minimum is None else steps_of(self.meter, self.minimum)

    def in_window(self, at: int) -> bool:
        return not self.windows or any(start <= week_time(at) < end for start, end in self.windows)


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name for a SKU, for a time: an Azure deployment, a ``-latest`` name, a device as some driver calls it.

    Its providers stand as the book spells them: only the axis on which it is asked for tells whether they are model
    providers or cloud providers.
    """

    ref: str
    target_provider: str | None
    target_sku: str
    provider: str | None = None
    effective: Interval = ALWAYS


@dataclass(frozen=True, eq=False)
class Sku:
    """Everything that one layer charges for one thing.

    Attributes:
        name: for people, ``openai/gpt-5-mini``.
        rows: rows by meter.
        anything: it is what the book charges for whatever the span names, so that to match it is not to be known.
    """

    name: str
    rows: Mapping[str, tuple[PriceRow, ...]]
    anything: bool = False

    @cached_property
    def cuts(self) -> frozenset[int]:
        """Instants at which any of its prices begins or ends."""
        return frozenset().union(*(row.effective.cuts for rows in self.rows.values() for row in rows))

    @cached_property
    def week_cuts(self) -> frozenset[int]:
        """Times of the week at which any of its prices begins or ends."""
        bounds = {bound for rows in self.rows.values() for row in rows for window in row.windows for bound in window}
        return frozenset(bounds - {0, WEEK})


@dataclass(frozen=True, slots=True)
class Match:
    """A SKU that a span's selectors stand for, and how it was found.

    Attributes:
        kind: how the name led to the SKU.
        selector: whose value did: ``model``, ``request_model``, ``device``, ``host_type`` or ``cloud_provider``.
        sku: what was found.
        layer: name of the layer that holds it.
        effective: as long as the alias on the way holds.
    """

    kind: MatchKind
    selector: str
    sku: Sku
    layer: str
    effective: Interval = ALWAYS

    @property
    def by(self) -> str:
        """``matched_by`` of a charge: ``exact model``, ``alias request_model``, ``pattern device``."""
        return f"{self.kind} {self.selector}"


class Layer(Protocol):
    """A source of prices: a YAML book, or the compiled catalogue."""

    name: str
    version: str

    def skus(self, axis: Axis, provider: str | None, name: str | None) -> Sequence[tuple[MatchKind, Sku]]:
        """SKUs of this layer that the name stands for, in the order in which they are tried."""

    def aliases(self, axis: Axis, provider: str | None, name: str | None) -> Sequence[Alias]:
        """Aliases of this layer for the name, whatever their time."""

    def names(self, axis: Axis, provider: str | None) -> Iterable[str]:
        """SKU names a person may have meant, for suggestions."""


class TableLayer:
    """A layer of listed rows and aliases, indexed by SKU.

    Args:
        name: of the book, for people and for the book version.
        version: of the book's content.
        rows: its rows, already checked (`yamlbook`).
        aliases: its aliases, likewise.
    """

    def __init__(self, name: str, version: str, rows: Sequence[PriceRow], aliases: Sequence[Alias] = ()) -> None:
        self.name = name
        self.version = version
        self.rows = tuple(rows)
        grouped: dict[tuple[Axis, str | None, str], dict[str, list[PriceRow]]] = {}
        for row in rows:
            grouped.setdefault((row.axis, row.provider, row.sku), {}).setdefault(row.meter, []).append(row)
        self._exact: dict[tuple[Axis, str | None, str], Sku] = {}
        patterns: list[tuple[tuple[int, bool], Axis, str | None, re.Pattern[str], Sku]] = []
        for (axis, provider, sku), meters in grouped.items():
            by_meter = {meter: tuple(found) for meter, found in meters.items()}
            item = Sku(f"{provider or ANY}/{sku}", by_meter, anything=sku == ANY and axis != "platform")
            if is_pattern(sku) and axis != "platform":
                rank = (-literal_length(sku), provider is None)
                patterns.append((rank, axis, provider, compile_pattern(sku), item))
            else:
                self._exact[axis, provider, sku] = item
        self._patterns = sorted(patterns, key=lambda entry: entry[0])
        self._aliases: dict[str, list[Alias]] = {}
        for alias in aliases:
            self._aliases.setdefault(alias.ref, []).append(alias)

    def skus(self, axis: Axis, provider: str | None, name: str | None) -> list[tuple[MatchKind, Sku]]:
        owners = dict.fromkeys((provider, None))
        exact = (self._exact.get((axis, owner, name)) for owner in owners) if name is not None else ()
        found: list[tuple[MatchKind, Sku]] = [("exact", sku) for sku in exact if sku is not None]
        found.extend(
            ("pattern", sku)
            for _, of_axis, owner, pattern, sku in self._patterns
            if of_axis == axis and owner in (provider, None) and pattern.fullmatch(name or "")
        )
        return found

    def aliases(self, axis: Axis, provider: str | None, name: str | None) -> list[Alias]:
        named = self._aliases.get(name, ()) if name is not None else ()
        return [
            alias
            for owner in dict.fromkeys((provider, None))
            for alias in named
            if owner_of(axis, alias.provider) == owner
        ]

    def names(self, axis: Axis, provider: str | None) -> list[str]:
        known = {sku for of_axis, owner, sku in self._exact if of_axis == axis and owner in (provider, None)}
        aliases = (alias for named in self._aliases.values() for alias in named) if axis == "model" else ()
        refs = {alias.ref for alias in aliases if owner_of(axis, alias.provider) in (provider, None)}
        return sorted(known | refs)


class PriceBook:
    """Layers of prices, the front one first.

    Args:
        layers: front to back; a row of an earlier layer shadows those of later ones for its meter.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers: tuple[Layer, ...] = tuple(layers)

    @property
    def version(self) -> str:
        """What every charge is stamped with: the layers' names and versions, front to back."""
        return "+".join(f"{layer.name}@{layer.version}" for layer in self.layers)

    def with_front(self, layer: Layer) -> PriceBook:
        """A book with one more layer in front."""
        return PriceBook((layer, *self.layers))

    def matches(self, axis: Axis, selectors: Selectors) -> list[Match]:
        """Every SKU that normalized selectors stand for on an axis, in the order in which they are tried."""
        owner, name_selectors = SKU_SELECTORS[axis]
        provider: str | None = getattr(selectors, owner)
        names: dict[str | None, str] = {getattr(selectors, name): name for name in reversed(name_selectors)}
        names.pop(None, None)
        if not names:  # rows for any SKU apply where the span names none; a platform is all that its rows name
            names = {ANY if axis == "platform" else None: (*name_selectors, owner)[0]}
        found: list[Match] = []
        for position, layer in enumerate(self.layers):
            for name, selector in reversed(names.items()):
                own = [Match(kind, selector, sku, layer.name) for kind, sku in layer.skus(axis, provider, name)]
                found.extend(match for match in own if match.kind == "exact")
                for alias in layer.aliases(axis, provider, name):
                    found.extend(self._alias_targets(alias, axis, selector, position))
                found.extend(match for match in own if match.kind != "exact")
        return found

    def _alias_targets(self, alias: Alias, axis: Axis, selector: str, position: int) -> Iterable[Match]:
        """SKUs an alias leads to, in its own layer and those behind it; an alias is never followed to another."""
        for layer in self.layers[position:]:
            for _, sku in layer.skus(axis, owner_of(axis, alias.target_provider), alias.target_sku):
                yield Match("alias", selector, sku, layer.name, alias.effective)

    def names(self, axis: Axis, selectors: Selectors) -> list[str]:
        """SKU names known for the span's provider, for suggestions."""
        provider: str | None = getattr(selectors, SKU_SELECTORS[axis][0])
        return sorted({name for layer in self.layers for name in layer.names(axis, provider)})


def is_pattern(sku: str) -> bool:
    return "*" in sku or "?" in sku


def literal_length(pattern: str) -> int:
    """How specific a pattern is: its characters that stand for themselves."""
    return len(pattern) - pattern.count("*") - pattern.count("?")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """``*`` any characters, ``?`` one, everything else itself."""
    special = {"*": ".*", "?": "."}
    return re.compile("".join(special.get(char, re.escape(char)) for char in pattern), re.DOTALL)
