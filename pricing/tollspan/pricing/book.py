"""Price books: dated price rows in layers, and which of them can apply to what a span names.

In: rows and aliases, made by `yamlbook` from a file or by `catalogue` from genai-prices' data. Out: for one SKU name,
the `Match`es of every layer in the order in which they are tried. `resolve` picks the row among them. Nothing here
looks at quantities or at the clock.

Order of a match: the layers from front to back; in a layer the served model before the requested one; for one name an
exact SKU before an alias before a pattern, a longer pattern before a shorter, a row that names the provider before one
that does not. A model is looked for under the name that the span gives and under those that the catalogue knows it by
(`Layer.known_as`), so that a book need not list every dated name and profile. Where the served model is known, the
requested one is looked for only if it is the same model, or a name of the user's own (a deployment).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import cache, cached_property
from typing import Final, Literal, Protocol

from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.money import Rate, rate, steps_of
from tollspan.pricing.schedule import Schedule
from tollspan.pricing.selectors import SKU_SELECTORS, Selectors, owner_of

MatchKind = Literal["exact", "alias", "pattern"]
Status = Literal["active", "announced", "cancelled", "withdrawn"]
Kind = Literal["list", "estimate", "contract", "amortised", "included"]

LEVELS: Final[dict[Kind, int]] = {"list": 0, "estimate": 0, "contract": 1, "amortised": 2, "included": 2}
"""Kind of a price → its level: what anybody pays (0), what this customer agreed to pay (1), what is paid in effect,
commitments spread and prepaid things at nothing (2). The higher level is taken first."""
LIST_LEVEL: Final = 0
CONTRACT_LEVEL: Final = 1
EFFECTIVE_LEVEL: Final = 2

WHOLE: Final = Fraction(1)
ANY: Final = "*"
"""The SKU of rows that apply to whatever the span names."""


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
    """A tier of a price.

    A cliff: above ``above`` input tokens in the request, all of the meter's quantity costs ``amount``. A graduated one:
    what is above ``above`` of the meter's own quantity in the call costs ``amount``, what is below the steps before.
    """

    above: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Source:
    """Where a price was read.

    Attributes:
        url: the page that decides.
        retrieved_at: the day on which it was read.
        via: what was read in its place, where it was not read itself.
        note: what the price leaves out, or how it was made.
        sha256: of the document read.
    """

    url: str = ""
    retrieved_at: str = ""
    via: str = ""
    note: str = ""
    sha256: str = ""


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
        schedule: hours in which it holds; None = always.
        when: selector → value that the span must have; ``service_tier``, ``processing`` and ``purchase`` are compared
            with ``standard``, ``online`` and ``on_demand`` where the span names none.
        steps: tiers, ascending.
        graduated: the steps are graduated, by the meter's own quantity in the call; else they are cliffs by the
            request's input tokens.
        minimum: least quantity charged when any was used, in the meter's unit.
        kind: ``list`` | ``estimate`` | ``contract`` | ``amortised`` | ``included`` (costs nothing: paid for elsewhere).
        status: ``active``; ``announced`` (not yet in force when the book was written, and said on the charge);
            ``cancelled`` (kept for the record, never charged); ``withdrawn`` (no longer sold: neither this price nor
            one of a layer behind it is charged).
        source: where it was read.
        stated: the price as the book states it, where that is in another currency: ``1.20 EUR``.
    """

    id: str
    meter: str
    sku: str
    amount: Decimal
    provider: str | None = None
    per: int = 1
    unit: str = ""
    effective: Interval = ALWAYS
    schedule: Schedule | None = None
    when: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    graduated: bool = False
    minimum: Decimal | None = None
    kind: Kind = "list"
    status: Status = "active"
    source: Source = Source()
    stated: str = ""

    @property
    def level(self) -> int:
        return LEVELS[self.kind]

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

    def in_hours(self, at: int) -> bool:
        return self.schedule is None or self.schedule.holds(at)


@dataclass(frozen=True, slots=True)
class Factor:
    """What a list price is multiplied by under some condition: a region's or data residency's uplift, or a contract's
    percentage.

    Attributes:
        id: unique in its book; named on the charge.
        factor: exact.
        provider: as in a row; None = any.
        sku: name of the SKU as its row spells it, with ``*`` and ``?``.
        meter: name of a meter, with ``*`` and ``?``.
        when: as in a row.
        effective: instants in which it holds.
        source: where it was read.
    """

    id: str
    factor: Fraction
    provider: str | None = None
    sku: str = ANY
    meter: str = ANY
    when: Mapping[str, str] = field(default_factory=dict)
    effective: Interval = ALWAYS
    source: Source = Source()

    def sold_by(self, axis: Axis, owner: str | None) -> bool:
        """Whether it is about what the span's provider (cloud provider, by the axis) sells."""
        return self.provider is None or owner_of(axis, self.provider) == owner

    def covers(self, row: PriceRow, meter: str, names: Iterable[str]) -> bool:
        """Whether it is about this price; seller and conditions aside.

        Args:
            row: the price.
            meter: what it is charged for, which may be another meter than the row's.
            names: what the span calls the thing, and what else that is called.
        """
        return (self.meter == ANY or matches(self.meter, row.meter) or matches(self.meter, meter)) and (
            self.sku == ANY or matches(self.sku, row.sku) or any(matches(self.sku, name) for name in names)
        )

    @property
    def specificity(self) -> tuple[int, int, bool, int]:
        """The more, the more specific: literal characters of SKU and of meter, a provider, conditions."""
        return literal_length(self.sku), literal_length(self.meter), self.provider is not None, len(self.when)


@dataclass(frozen=True, slots=True)
class Term:
    """What a contract grants over a period, settled at its end (`settle`) and never on a span.

    Attributes:
        id: unique in its book.
        kind: ``volume`` (the factor falls as the period's list cost grows), ``commitment`` (``amount`` USD are paid in
            any case), ``allotment`` (so many units of a meter are free).
        provider, sku, meter: what counts towards it, as in `Factor`.
        amount: USD committed, or units allotted.
        steps: volume: (above so many USD or units, factor), ascending; the first is above 0.
        graduated: volume: each step is for what is above it; else the step reached is for everything.
        basis: volume: ``cost`` (USD) or ``quantity`` (units of the meter).
        effective: instants in which it holds.
    """

    id: str
    kind: Literal["volume", "commitment", "allotment"]
    provider: str | None = None
    sku: str = ANY
    meter: str = ANY
    amount: Decimal = Decimal(0)
    steps: tuple[tuple[Decimal, Fraction], ...] = ()
    graduated: bool = True
    basis: Literal["cost", "quantity"] = "cost"
    effective: Interval = ALWAYS


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name for a SKU, for a time: an Azure deployment, a ``-latest`` name, a device as some driver calls it; or
    a part of one, a MIG slice of a device say, which costs that ``share`` of the whole.

    Its providers stand as the book spells them: only the axis on which it is asked for tells whether they are model
    providers or cloud providers.
    """

    ref: str
    target_provider: str | None
    target_sku: str
    provider: str | None = None
    effective: Interval = ALWAYS
    share: Fraction = WHOLE


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
    def schedules(self) -> frozenset[Schedule]:
        """Hours that any of its prices keeps."""
        return frozenset(row.schedule for rows in self.rows.values() for row in rows if row.schedule is not None)

    @cached_property
    def levelled(self) -> bool:
        """Whether it has prices above the list level."""
        return any(row.level for rows in self.rows.values() for row in rows)


@dataclass(frozen=True, slots=True)
class Match:
    """A SKU that a span's selectors stand for, and how it was found.

    Attributes:
        kind: how the name led to the SKU.
        selector: whose value did: ``model``, ``request_model``, ``device``, ``host_type`` or ``cloud_provider``.
        sku: what was found.
        layer: name of the layer that holds it.
        effective: as long as the alias on the way holds.
        share: what part of the SKU's price the name costs.
        names: what the span calls it, and what else that is known as.
        via: place of the layer that knew the name; its alias may have led to another one.
    """

    kind: MatchKind
    selector: str
    sku: Sku
    layer: str
    effective: Interval = ALWAYS
    share: Fraction = WHOLE
    names: tuple[str, ...] = ()
    via: int = 0

    @property
    def by(self) -> str:
        """``matched_by`` of a charge: ``exact model``, ``alias request_model``, ``pattern device``."""
        return f"{self.kind} {self.selector}"


class Layer(Protocol):
    """A source of prices: a YAML book, or the compiled catalogue.

    Attributes:
        name: of the book, for people and for the book version.
        version: of its content.
        factors: multiply list prices of every layer, all that apply.
        adjustments: percentages of a contract on list prices of every layer; the most specific one applies.
        terms: settled over a period.
    """

    name: str
    version: str

    @property
    def factors(self) -> Sequence[Factor]: ...

    @property
    def adjustments(self) -> Sequence[Factor]: ...

    @property
    def terms(self) -> Sequence[Term]: ...

    def skus(self, axis: Axis, provider: str | None, name: str | None) -> Sequence[tuple[MatchKind, Sku]]:
        """SKUs of this layer that the name stands for, in the order in which they are tried."""

    def aliases(self, axis: Axis, provider: str | None, name: str | None) -> Sequence[Alias]:
        """Aliases of this layer for the name, whatever their time."""

    def names(self, axis: Axis, provider: str | None) -> Iterable[str]:
        """SKU names a person may have meant, for suggestions."""

    def owners(self, name: str) -> Iterable[str]:
        """Model providers that list a model of exactly this name: for spans that name no provider."""

    def model_id(self, provider: str, name: str) -> str | None:
        """The one id of a model that has many names; None where the layer knows no such thing."""

    def known_as(self, provider: str, name: str) -> Sequence[str]:
        """Other names of the model under which a price may stand that holds for this one too."""


class TableLayer:
    """A layer of listed rows and aliases, indexed by SKU.

    Args:
        name: of the book, for people and for the book version.
        version: of the book's content.
        rows: its rows, already checked (`yamlbook`).
        aliases: its aliases, likewise.
        factors, adjustments, terms: see `Layer`.
        known_at: when its author knew this, ISO; empty = not said.
    """

    def __init__(
        self,
        name: str,
        version: str,
        rows: Sequence[PriceRow],
        aliases: Sequence[Alias] = (),
        *,
        factors: Sequence[Factor] = (),
        adjustments: Sequence[Factor] = (),
        terms: Sequence[Term] = (),
        known_at: str = "",
    ) -> None:
        self.name = name
        self.version = version
        self.factors, self.adjustments, self.terms = tuple(factors), tuple(adjustments), tuple(terms)
        self.known_at = known_at
        self.rows = tuple(rows)
        self.listed_aliases = tuple(aliases)
        grouped: dict[tuple[Axis, str | None, str], dict[str, list[PriceRow]]] = {}
        for row in rows:
            grouped.setdefault((row.axis, row.provider, row.sku), {}).setdefault(row.meter, []).append(row)
        self._exact: dict[tuple[Axis, str | None, str], Sku] = {}
        patterns: list[tuple[tuple[int, bool], Axis, str | None, Pattern, Sku]] = []
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

    def model_id(self, provider: str, name: str) -> str | None:
        return None

    def known_as(self, provider: str, name: str) -> Sequence[str]:
        return ()

    def owners(self, name: str) -> list[str]:
        return sorted(
            owner for axis, owner, sku in self._exact if axis == "model" and sku == name and owner is not None
        )

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

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """Of all layers."""
        return tuple(factor for layer in self.layers for factor in layer.factors)

    @cached_property
    def adjustments(self) -> tuple[Factor, ...]:
        """Of all layers, the most specific first; among equals those of the layer in front."""
        found = (factor for layer in self.layers for factor in layer.adjustments)
        return tuple(sorted(found, key=lambda factor: factor.specificity, reverse=True))

    @property
    def terms(self) -> tuple[Term, ...]:
        """Of all layers."""
        return tuple(term for layer in self.layers for term in layer.terms)

    def owners(self, name: str) -> list[str]:
        """Model providers that list a model of exactly this name."""
        return sorted({owner for layer in self.layers for owner in layer.owners(name)})

    def with_front(self, layer: Layer) -> PriceBook:
        """A book with one more layer in front."""
        return PriceBook((layer, *self.layers))

    def matches(self, axis: Axis, selectors: Selectors) -> list[Match]:
        """Every SKU that normalized selectors stand for on an axis, in the order in which they are tried."""
        owner, name_selectors = SKU_SELECTORS[axis]
        provider: str | None = getattr(selectors, owner)
        given = {getattr(selectors, name): name for name in reversed(name_selectors)}
        given.pop(None, None)
        if not given:  # rows for any SKU apply where the span names none; a platform is all that its rows name
            return self._found(axis, provider, ANY if axis == "platform" else None, (*name_selectors, owner)[0])
        names = list(reversed(given.items()))
        found = [self._found(axis, provider, name, selector) for name, selector in names]
        if len(found) == 2:
            (served, _), (requested, _) = names
            if is_known(found[0]) and self._is_another(provider, served, requested):
                found.pop()
        # Of one layer, what the first name leads to stands before what the second does: sorting keeps that order.
        return sorted((match for matches in found for match in matches), key=lambda match: match.via)

    def _is_another(self, provider: str | None, served: str, requested: str) -> bool:
        """Whether the requested name is that of a model which is known not to be the served one."""
        if provider is None:
            return False
        ids = [self.model_id(provider, name) for name in (served, requested)]
        return ids[1] is not None and ids[0] != ids[1]

    def model_id(self, provider: str, name: str) -> str | None:
        """The one id of a model that has many names, from the first layer that knows it."""
        return next((found for layer in self.layers if (found := layer.model_id(provider, name)) is not None), None)

    def _found(self, axis: Axis, provider: str | None, name: str | None, selector: str) -> list[Match]:
        """Matches of one name."""
        names: tuple[str, ...] = () if name is None else (name,)
        if axis == "model" and provider is not None and name is not None:
            others = (other for layer in self.layers for other in layer.known_as(provider, name))
            names = tuple(dict.fromkeys((name, *others)))
        aliases = [(layer, each) for layer in self.layers for each in self._aliases(layer, axis, provider, names)]
        # A part of a device is not the device: patterns that match its name are reached through the alias alone.
        is_part = any(alias.share != WHOLE for _, alias in aliases)
        found: list[Match] = []
        for position, layer in enumerate(self.layers):
            own = self._own(layer, axis, provider, names)
            found.extend(
                Match(kind, selector, sku, layer.name, names=names, via=position)
                for kind, sku in own
                if kind != "pattern"
            )
            for holder, alias in aliases:
                if holder is layer:
                    found.extend(self._alias_targets(alias, axis, provider, selector, names, position))
            found.extend(
                Match(kind, selector, sku, layer.name, names=names, via=position)
                for kind, sku in own
                if kind == "pattern" and not is_part
            )
        return found

    @staticmethod
    def _own(layer: Layer, axis: Axis, provider: str | None, names: tuple[str, ...]) -> list[tuple[MatchKind, Sku]]:
        """SKUs of a layer under any of the names; what stands under another than the first is found by an alias."""
        if len(names) < 2:
            return list(layer.skus(axis, provider, names[0] if names else None))
        found: dict[Sku, MatchKind] = {}
        for position, name in enumerate(names):
            for kind, sku in layer.skus(axis, provider, name):
                found.setdefault(sku, "alias" if kind == "exact" and position else kind)
        return [(kind, sku) for sku, kind in found.items()]

    @staticmethod
    def _aliases(layer: Layer, axis: Axis, provider: str | None, names: tuple[str, ...]) -> list[Alias]:
        return list(dict.fromkeys(alias for name in names for alias in layer.aliases(axis, provider, name)))

    def _alias_targets(
        self, alias: Alias, axis: Axis, provider: str | None, selector: str, names: tuple[str, ...], via: int
    ) -> Iterable[Match]:
        """SKUs an alias leads to, of the span's own provider where it names none, in every layer from the front: the
        user's price of a device is the price of its slices too. An alias is never followed to another."""
        owner = owner_of(axis, alias.target_provider) if alias.target_provider is not None else provider
        for layer in self.layers:
            for _, sku in layer.skus(axis, owner, alias.target_sku):
                yield Match("alias", selector, sku, layer.name, alias.effective, alias.share, names, via)

    def names(self, axis: Axis, selectors: Selectors) -> list[str]:
        """SKU names known for the span's provider, for suggestions."""
        provider: str | None = getattr(selectors, SKU_SELECTORS[axis][0])
        return sorted({name for layer in self.layers for name in layer.names(axis, provider)})


def is_pattern(sku: str) -> bool:
    return "*" in sku or "?" in sku


def literal_length(pattern: str) -> int:
    """How specific a pattern is: its characters that stand for themselves."""
    return len(pattern) - pattern.count("*") - pattern.count("?")


def is_known(matches: Iterable[Match]) -> bool:
    """Whether some match is more than what a book charges for anything."""
    return any(not match.sku.anything for match in matches)


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern (``*`` any characters, ``?`` one), or a name, is that of the name."""
    return compile_pattern(pattern).fullmatch(name) if is_pattern(pattern) else pattern == name


class Pattern:
    """A compiled pattern. Names come from spans, so a match takes time in proportion to the name, whatever it holds:
    the pieces between the stars are looked for one after the other, and what is found first is never given up again.

    Args:
        text: ``*`` any characters, ``?`` one, everything else itself.
    """

    __slots__ = ("_first", "_last", "_middle")

    def __init__(self, text: str) -> None:
        first, *rest = text.split(ANY)
        self._first = _piece(first)
        self._middle = [_piece(piece) for piece in rest[:-1] if piece]
        self._last = (_piece(rest[-1]), len(rest[-1])) if rest else None

    def fullmatch(self, name: str) -> bool:
        """Whether all of the name matches."""
        if self._last is None:
            return self._first.fullmatch(name) is not None
        begun = self._first.match(name)
        if begun is None:
            return False
        last, length = self._last
        end = len(name) - length
        if end < begun.end() or last.fullmatch(name, end) is None:
            return False
        at = begun.end()
        for piece in self._middle:
            found = piece.search(name, at, end)
            if found is None:
                return False
            at = found.end()
        return True


def _piece(text: str) -> re.Pattern[str]:
    return re.compile("".join("." if char == "?" else re.escape(char) for char in text), re.DOTALL)


compile_pattern = cache(Pattern)
