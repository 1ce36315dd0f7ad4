"""Corrections: what genai-prices' data say wrongly or cannot say, put right in front of the catalogue.

In: ``corrections.yaml``, a price book of ours in which each entry is dated, names the official page it was read on and
says what is wrong upstream. Out: a layer that knows models by the same names as the catalogue behind it. A row shadows
the catalogue's for its meter under its conditions; rows with wildcards apply to models that the catalogue knows, so
that no made-up name becomes known by them.

`caught_up` finds the entries that upstream has made needless; ``tollspan prices check`` shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final

from tollspan.pricing.book import MatchKind, PriceBook, Sku, TableLayer
from tollspan.pricing.catalogue import Catalogue
from tollspan.pricing.catalogue_names import known_spellings
from tollspan.pricing.meters import Axis
from tollspan.pricing.patterns import ANY, is_pattern
from tollspan.pricing.resolve import Quote, Situation
from tollspan.pricing.rows import Alias, Factor, Interval, PriceRow, Term
from tollspan.pricing.schedule import WEEK
from tollspan.pricing.selectors import Selectors
from tollspan.pricing.yamlbook import read_layer

_HOUR: Final = 3600 * 10**9
_EARLIEST: Final = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp()) * 10**9
_LATEST: Final = int(datetime(2027, 7, 1, tzinfo=UTC).timestamp()) * 10**9
"""Open sides of an entry's time are compared from and to here."""


class Corrections:
    """The layer in front of the catalogue.

    Args:
        table: rows, aliases and factors, with models under the catalogue's ids.
        catalogue: what they correct.
    """

    def __init__(self, table: TableLayer, catalogue: Catalogue) -> None:
        self.table = table
        self.catalogue = catalogue
        self.name, self.version = table.name, table.version
        self.factors: Sequence[Factor] = table.factors
        self.adjustments: Sequence[Factor] = table.adjustments
        self.terms: Sequence[Term] = table.terms

    def skus(self, axis: Axis, provider: str | None, name: str | None) -> list[tuple[MatchKind, Sku]]:
        if axis != "model" or provider is None or name is None:
            return self.table.skus(axis, provider, name)
        found: dict[Sku, MatchKind] = {}
        for spelling in self._spellings(provider, name):
            for kind, sku in self.table.skus(axis, provider, spelling):
                if kind == "exact":
                    found.setdefault(sku, "exact" if spelling == name else "alias")
        known = self.catalogue.identify(provider, name)
        if known is not None:
            how, model, _ = known
            for kind, sku in self.table.skus(axis, provider, model):
                found.setdefault(sku, how if kind == "exact" else "pattern")
        return [(kind, sku) for sku, kind in found.items()]

    def aliases(self, axis: Axis, provider: str | None, name: str | None) -> list[Alias]:
        if axis != "model" or provider is None or name is None:
            return self.table.aliases(axis, provider, name)
        names = self._spellings(provider, name)
        return list(dict.fromkeys(chain.from_iterable(self.table.aliases(axis, provider, each) for each in names)))

    def _spellings(self, provider: str, name: str) -> Iterator[str]:
        known = self.catalogue.identify(provider, name)
        return known_spellings(provider, name, known[2] if known is not None else None)

    def model_id(self, provider: str, name: str) -> str | None:
        return None  # the catalogue behind knows

    def known_as(self, provider: str, name: str) -> Sequence[str]:
        return ()

    def names(self, axis: Axis, provider: str | None) -> Iterable[str]:
        return [name for name in self.table.names(axis, provider) if not is_pattern(name)]

    def owners(self, name: str) -> Iterable[str]:
        return self.table.owners(name)


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """A correction that changes nothing any more: the catalogue says the same wherever it was compared.

    Attributes:
        id: of the row, or ``alias <ref>``.
        provider, sku: what it is about.
        meter: of the row; empty for an alias.
        note: what was wrong upstream.
    """

    id: str
    provider: str
    sku: str
    meter: str
    note: str


@cache
def corrections() -> Corrections:
    """The layer that ships. Its file is read when this is first called, the catalogue when a model is first priced."""
    return Corrections(read_layer(Path(__file__).with_name("corrections.yaml")), Catalogue())


def caught_up(layer: Corrections | None = None) -> list[CaughtUp]:
    """Rows and aliases that the catalogue behind them has made needless, in the order of the file.

    Each is compared at the beginning, in the middle and at the end of its time, at every hour of a week there, wherever
    it is the one that decides. Rows of one meter under the same conditions stand or fall together, since an off-peak
    price without its peak price would be wrong. Factors are not compared: upstream has none.

    Args:
        layer: which corrections; None = those that ship.
    """
    layer = layer or corrections()
    own = PriceBook((layer,))
    without = PriceBook((layer.catalogue,))
    differing = {
        _group(row)
        for row in layer.table.rows
        if not all(_same(ours, theirs) for ours, theirs in _row_quotes(row, layer, own, without))
    }
    found = [
        CaughtUp(row.id, row.provider or ANY, row.sku, row.meter, row.source.note)
        for row in layer.table.rows
        if _group(row) not in differing
    ]
    for alias in layer.table.listed_aliases:
        pairs = list(_alias_quotes(alias, without))
        if pairs and all(_same(target, named) for target, named in pairs):
            found.append(CaughtUp(f"alias {alias.ref}", alias.provider or ANY, alias.target_sku, "", ""))
    return found


def _group(row: PriceRow) -> tuple[str | None, str, str, frozenset[tuple[str, str]]]:
    return row.provider, row.sku, row.meter, frozenset(row.when.items())


def _row_quotes(row: PriceRow, layer: Corrections, own: PriceBook, without: PriceBook) -> Iterator[tuple[Quote, Quote]]:
    """What a row and the catalogue say, wherever the row decides."""
    for model in _models(row, layer.catalogue):
        selectors = Selectors(provider=row.provider, model=model, **row.when).normalized()
        ours, theirs = Situation(own, row.axis, selectors), Situation(without, row.axis, selectors)
        for instant in _instants(row.effective):
            quote = ours.quote(row.meter, instant)
            if quote.row is row or (quote.row is None and row.status == "withdrawn"):
                yield quote, theirs.quote(row.meter, instant)


def _models(row: PriceRow, catalogue: Catalogue) -> list[str]:
    """Models that a row is about: itself, or those that its wildcards match."""
    if not is_pattern(row.sku):
        return [row.sku]
    table = TableLayer("", "", [row])
    known = (name.lower() for name in catalogue.names(row.axis, row.provider))
    return [name for name in known if table.skus(row.axis, row.provider, name)]


def _alias_quotes(alias: Alias, without: PriceBook) -> Iterator[tuple[Quote, Quote]]:
    """What the catalogue says for an alias's target and for the alias, over all meters that the target has."""
    target = Situation(without, "model", Selectors(provider=alias.target_provider, model=alias.target_sku).normalized())
    named = Situation(
        without, "model", Selectors(provider=alias.provider or alias.target_provider, model=alias.ref).normalized()
    )
    meters = {meter for match in target.matches for meter in match.sku.rows}
    for instant in _instants(alias.effective):
        for meter in sorted(meters):
            yield target.quote(meter, instant), named.quote(meter, instant)


def _instants(effective: Interval) -> Iterator[int]:
    """Every hour of a week at the beginning, in the middle and at the end of an interval, inside it."""
    start = _EARLIEST if effective.start is None else effective.start
    end = max(_LATEST, start + WEEK) if effective.end is None else effective.end
    start = min(start, end - _HOUR)
    for first in dict.fromkeys((start, start + (end - start) // 2, end - WEEK)):
        for hour in range(WEEK // _HOUR):
            instant = first + hour * _HOUR
            if effective.holds(instant):
                yield instant


def _same(one: Quote, other: Quote) -> bool:
    """Whether two quotes charge the same for any quantity."""
    return one is other or (
        (one.row is None) == (other.row is None)
        and [rate for _, _, rate in one.steps] == [rate for _, _, rate in other.steps]
        and (one.bounds, one.minimum, one.graduated) == (other.bounds, other.minimum, other.graduated)
    )
