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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal, Protocol

from tollspan.pricing.meters import Axis
from tollspan.pricing.patterns import ANY, Pattern, compile_pattern, is_pattern, literal_length
from tollspan.pricing.rows import ALWAYS, WHOLE, Alias, Factor, Interval, PriceRow, Term
from tollspan.pricing.schedule import Schedule
from tollspan.pricing.selectors import SKU_SELECTORS, Selectors, owner_of

MatchKind = Literal["exact", "alias", "pattern"]


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


def is_known(matches: Iterable[Match]) -> bool:
    """Whether some match is more than what a book charges for anything."""
    return any(not match.sku.anything for match in matches)
