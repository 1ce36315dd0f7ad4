"""What spans cost, as attributes on the wire.

In: the ledger's cost columns of a batch, held until its traces are decided, and the decisions. Out: attributes in wire
form for `encode`. Names and meanings: `tollspan.pricing.attributes`. A span without a row in the ledger gets none of
them but those of sampling; what is not known is absent, never zero.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import attributes as names
from tollspan.pricing.arrays import SAFE_COST, decimals
from tollspan.pricing.money import PICO, digits_of, usd
from tollspan.processor.charge import plain
from tollspan.processor.encode import attribute, together
from tollspan.processor.identity import U64, Mask, Rows
from tollspan.processor.sample import REASONS, adjusted_count

COLUMNS: Final = ("cost", "cost_status", "cost_reasons", "charges.component", "charges.cost", "book_version")

WRITTEN: Final = frozenset(
    {
        names.COST_AMOUNT,
        names.COST_APPROXIMATE,
        names.COST_CURRENCY,
        names.COST_STATUS,
        names.COST_REASONS,
        names.COST_COMPONENT_PREFIX,
        names.COST_BOOK_VERSION,
        names.SAMPLING_ADJUSTED_COUNT,
        names.SAMPLING_REASON,
    }
)
"""What is said here, and so nobody else's word on a span that comes from here."""

_COIN: Final = 10**PICO


@dataclass(frozen=True, slots=True)
class Costs:
    """Cost columns of n spans.

    Attributes:
        ledger: `COLUMNS` of their rows in the ledger.
        rows: which row is a span's, -1 for none, shape (n,).
    """

    ledger: pa.Table
    rows: Rows

    @classmethod
    def of(cls, ledger: pa.Table, rows: Rows, spans: int, columns: Sequence[str] = COLUMNS) -> Costs:
        """From a batch's ledger rows and the span that each of them is about; of the columns no more than is needed."""
        place = np.full(spans, -1, np.int64)
        place[rows] = np.arange(len(rows))
        return cls(ledger.select(columns), place)

    def select(self, rows: Rows) -> Costs:
        """A copy for some of the spans."""
        wanted = self.rows[rows]
        billed = wanted >= 0
        place = np.where(billed, np.cumsum(billed) - 1, -1)
        return Costs(self.ledger.take(pa.array(wanted[billed])).combine_chunks(), place)

    @staticmethod
    def together(parts: Sequence[Costs]) -> Costs:
        """Of the spans of the first part, then of those of the next; at least one part."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(each.ledger.num_rows for each in parts)])
        rows = [np.where(each.rows < 0, -1, each.rows + start) for each, start in zip(parts, starts[:-1], strict=True)]
        return Costs(pa.concat_tables([each.ledger for each in parts]).combine_chunks(), np.concatenate(rows))

    @property
    def nbytes(self) -> int:
        """Approximate memory."""
        return int(self.ledger.nbytes + self.rows.nbytes)


def attributes(costs: Costs, reasons: npt.NDArray[np.integer[Any]], thresholds: U64) -> Any:
    """Attributes of spans that are sent on.

    Args:
        costs: of n spans.
        reasons: why each was kept, numbers of `sample.names`, shape (n,).
        thresholds: at which, shape (n,).

    Returns:
        binary array of n, for `encode`'s ``extra``.
    """
    ledger = costs.ledger
    cost = plain(ledger["cost"])
    fields = [
        attribute(names.COST_AMOUNT, _text(cost)),
        attribute(names.COST_APPROXIMATE, pc.cast(cost, pa.float64())),
        *_components(plain(ledger["charges.component"]), plain(ledger["charges.cost"])),
        _words(ledger, cost),
    ]
    billed = costs.rows >= 0
    of_span = together(*fields).take(pa.array(np.where(billed, costs.rows, 0), mask=~billed))
    return together(of_span, _sampling(reasons, thresholds))


def _words(ledger: pa.Table, cost: Any) -> Any:
    """What few rows say differently: status, reasons, book and currency, written once for each combination."""
    columns = {
        names.COST_STATUS: _coded(ledger["cost_status"]),
        names.COST_REASONS: _coded(ledger["cost_reasons"]),
        names.COST_BOOK_VERSION: _coded(ledger["book_version"]),
    }
    known = np.asarray(pc.is_valid(cost))
    combined = known.astype(np.int64)
    for column in columns.values():
        combined = combined * max(len(column.dictionary), 1) + np.asarray(column.indices)
    _, first, number = np.unique(combined, return_index=True, return_inverse=True)
    fields = [attribute(names.COST_CURRENCY, pa.array(["USD" if known[row] else None for row in first], pa.string()))]
    for name, column in columns.items():
        texts = pc.cast(column.take(pa.array(first)), pa.string()).to_pylist()
        fields.append(attribute(name, pa.array([text or None for text in texts], pa.string())))
    return together(*fields).take(pa.array(number))


def _coded(column: Any) -> Any:
    """A string column as a dictionary without nulls."""
    array = plain(column)
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def _sampling(reasons: npt.NDArray[np.integer[Any]], thresholds: U64) -> Any:
    """Why and at which rate spans were kept, written once for each combination."""
    levels, level = np.unique(thresholds, return_inverse=True)
    codes, number = np.unique(level * len(REASONS) + reasons, return_inverse=True)
    counts = [adjusted_count(int(levels[code])) for code in codes // len(REASONS)]
    words = pa.array([REASONS[code] for code in codes % len(REASONS)], pa.string())
    return together(
        attribute(names.SAMPLING_ADJUSTED_COUNT, pa.array(counts, pa.float64())),
        attribute(names.SAMPLING_REASON, words),
    ).take(pa.array(number))


def _components(components: Any, costs: Any) -> list[Any]:
    """One attribute for each component of the bill that has a known cost somewhere."""
    offsets = np.asarray(components.offsets).astype(np.int64)
    kinds = plain(components.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0])))
    kinds = kinds if pa.types.is_dictionary(kinds.type) else kinds.dictionary_encode()
    begins = np.asarray(costs.offsets)
    amounts = plain(costs.values.slice(int(begins[0]), int(begins[-1] - begins[0])))
    known = np.asarray(pc.is_valid(amounts))
    # A dictionary may name a component twice, so by name.
    words = list(dict.fromkeys(kinds.dictionary.to_pylist()))
    place = np.array([words.index(word) for word in kinds.dictionary.to_pylist()], np.int8)
    codes = place[np.asarray(kinds.indices)] if len(place) else np.zeros(0, np.int8)
    out = []
    for number, word in enumerate(words):
        mine = known & (codes == number)
        if mine.any():
            sums = _sums(amounts, mine, offsets - offsets[0])
            out.append(attribute(names.COST_COMPONENT_PREFIX + word, _text(sums)))
    return out


def _sums(amounts: Any, mine: Mask, offsets: Rows) -> Any:
    """Exact sum of each owner's chosen amounts, null where it has none.

    Args:
        amounts: decimal128 array of all owners' amounts, an owner's next to each other.
        mine: which are chosen, and not null.
        offsets: where each owner's begin, shape (n + 1,).
    """
    has = _of_owners(mine.astype(np.int64), offsets) > 0
    pico = _pico(amounts)
    if pico is None:
        chosen = [digits_of(v, PICO) if m else 0 for v, m in zip(amounts.to_pylist(), mine.tolist(), strict=True)]
        exact = [sum(chosen[a:b]) for a, b in itertools.pairwise(offsets.tolist())]
        return pa.array([usd(v) if h else None for v, h in zip(exact, has.tolist(), strict=True)], amounts.type)
    sums = _of_owners(np.where(mine, pico, 0), offsets)
    return pc.if_else(pa.array(has), decimals(sums, amounts.type), None)


def _of_owners(values: npt.NDArray[np.int64], offsets: Rows) -> npt.NDArray[np.int64]:
    """Sum of each owner's values. What wraps round on the way wraps back: differences are exact."""
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(values)))
    sums: npt.NDArray[np.int64] = ends[offsets[1:]] - ends[offsets[:-1]]
    return sums


def _pico(amounts: Any) -> npt.NDArray[np.int64] | None:
    """Pico-dollars of decimals, 0 for null; None where one is too large for that and for sums of 64 of them."""
    values = pc.fill_null(amounts, pa.scalar(Decimal(0), amounts.type))
    buffer = values.buffers()[1]
    if not len(values) or buffer is None:
        return np.zeros(0, np.int64)
    limbs = np.frombuffer(buffer, np.int64, 2 * len(values), 16 * values.offset).reshape(-1, 2)
    low, high = limbs[:, 0], limbs[:, 1]
    return low if bool(((high == low >> 63) & (np.abs(low) <= SAFE_COST)).all()) else None


def _text(amounts: Any) -> Any:
    """Decimals of 12 places as plain digits without zeros at the end: string array, null where null."""
    pico = _pico(amounts)
    if pico is None:
        written = [None if v is None else _plain(v) for v in amounts.to_pylist()]
        return pa.array(written, pa.string())
    size = np.abs(pico)
    whole, rest = pc.cast(pa.array(size // _COIN), pa.string()), size % _COIN
    places = pc.utf8_rtrim(pc.utf8_lpad(pc.cast(pa.array(rest), pa.string()), PICO, "0"), "0")
    text = pc.if_else(pa.array(rest == 0), whole, pc.binary_join_element_wise(whole, places, "."))
    if (pico < 0).any():
        text = pc.if_else(pa.array(pico < 0), pc.binary_join_element_wise("-", text, ""), text)
    return text if not amounts.null_count else pc.if_else(pc.is_valid(amounts), text, None)


def _plain(amount: Decimal) -> str:
    return f"{amount:f}".rstrip("0").rstrip(".")
