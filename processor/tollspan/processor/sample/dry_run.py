"""Dry run: what a sampling file would have kept of the last hours, at what cost, and what it would have missed.

In: `past.Past` slices, a policy and prices of telemetry. Out: `DryRun`. Nothing is written and nothing of the service
is asked. Traces are decided once, on all that the store knows of them; what it does not know is said in ``notes``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine, Selectors
from tollspan.processor.charge import plain
from tollspan.processor.decode.arrow_bytes import hexadecimal
from tollspan.processor.identity import U64, Mask, find
from tollspan.processor.sample.budget import BudgetSettings, Limit
from tollspan.processor.sample.conditions import AtLeast, Attribute, Condition, HttpStatus, Marked
from tollspan.processor.sample.content import strip
from tollspan.processor.sample.past import UNKNOWN, Past, Reads
from tollspan.processor.sample.past_spans import IN_THE_LEDGER
from tollspan.processor.sample.rules import Sampling
from tollspan.processor.sample.spans_seen import picos
from tollspan.processor.sample.telemetry_cost import RECEIVED, STORED
from tollspan.processor.sample.types import STRIPPED, Due, Policy, Signs

DEFAULT_RETENTION_S: Final = int(BudgetSettings().retention_s)
"""Where the store does not tell yet how long it keeps bodies."""
HOUR_NS: Final = 3600 * 10**9
EXAMPLES: Final = 3
"""Trace ids that are shown of each kind."""
DEAREST: Final = 100
"""How many of the dearest and of the slowest traces are looked at."""

SEEN_BODIES: Final = 5_000
"""Kept bodies of a slice in which content is measured."""

Price = Callable[[int, int, int], Decimal | None]
"""USD for bytes received and bytes stored at an instant (ns since the epoch); None where the book has no price."""

Row = dict[str, object]


def telemetry_price(engine: PriceEngine, reader: Reads) -> Price:
    """What telemetry costs by a book, stored for as long as it is now; what of it has no price is left out."""
    told = reader.rows("SELECT max(retention_s) AS retention_s FROM telemetry WHERE minute > now() - INTERVAL 30 DAY")
    retention_s = int(told[0]["retention_s"] or DEFAULT_RETENTION_S)

    def price(at_ns: int, received: int, stored: int) -> Decimal | None:
        parts = [
            engine.price({meter: count}, at=at_ns, selectors=Selectors()).cost
            for meter, count in ((RECEIVED, received), (STORED, stored * retention_s))
            if count
        ]
        known = [part for part in parts if part is not None]
        return sum(known, Decimal(0)) if known or not parts else None

    return price


@dataclass(slots=True)
class DryRun:
    """The answer.

    Attributes:
        traces: that began in the window and were decided; ``undecided``: began in it and have no decision yet.
        inference: what they cost, USD, exact; ``unpriced``: traces of which something has no price.
        rules: a row a rule, in order: what it matches and keeps, and what that costs.
        beside: two rows: what was kept, and what would be.
        incidents: a row a kind: errors, unpriced, dearest, slowest, and how many of them were and would be kept.
        missed: a row for each reason for which traces were kept that would be dropped, with examples.
        hours: a row an hour: cost of inference and telemetry, as it was and would be.
        budget: what it would take to stay within the budget; empty without one.
        notes: what cannot be known, and what was taken instead.
    """

    traces: int = 0
    undecided: int = 0
    inference: Decimal = Decimal(0)
    unpriced: int = 0
    rules: list[Row] = field(default_factory=list)
    beside: list[Row] = field(default_factory=list)
    incidents: list[Row] = field(default_factory=list)
    missed: list[Row] = field(default_factory=list)
    hours: list[Row] = field(default_factory=list)
    budget: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Traces:
    """Traces of the window in columns of length t, by ascending key.

    Attributes:
        cost: of inference, 10⁻¹² USD; ``unpriced``: whether something in it has no price.
        received, stored: bytes (stored: if it were kept whole, estimated where it was not); ``stored_now``: bytes that
            are in the store. ``stripped_share``: of these bytes, those that are no content.
    """

    keys: U64
    table: pa.Table
    start: npt.NDArray[np.int64]
    duration: npt.NDArray[np.int64]
    cost: npt.NDArray[np.int64]
    unpriced: Mask
    error: Mask
    spans: npt.NDArray[np.int64]
    received: npt.NDArray[np.int64]
    stored: npt.NDArray[np.int64]
    stored_now: npt.NDArray[np.int64]
    kept: Mask
    kept_spans: npt.NDArray[np.int64]
    stripped_share: float

    def __len__(self) -> int:
        return len(self.keys)


def blind(sampling: Sampling) -> list[str]:
    """Names of the rules that ask for something that only kept bodies have: of the others they match too few."""
    return [rule.name for rule in sampling.rules if any(map(_unseen, rule.when.everything()))]


def _unseen(condition: Condition) -> bool:
    match condition:
        case Attribute(key=key):
            return key not in IN_THE_LEDGER
        case AtLeast(what=what):
            return what in ("spans", "same_request", "depth")
        # Who asked for a trace has it.
        case Marked(keep=keep):
            return not keep
    return isinstance(condition, HttpStatus)


def dry_run(
    slices: Iterable[Past], policy: Policy, price: Price, budget: Limit | None = None, blind: Collection[str] = ()
) -> DryRun:
    """Judge the past by another policy.

    Args:
        slices: see `past.past`.
        policy: the one to try, with the levels that held.
        price: of telemetry.
        budget: what telemetry may take; None for none.
        blind: rules that can only see kept bodies, see `blind`.
    """
    signs, keys, chances = list[Signs](), list[U64](), list[U64]()
    summaries, costs = list[pa.Table](), list[pa.Table]()
    whole, bare = 0, 0
    for one in slices:
        signs.append(policy.look(one.arrived))
        keys.append(one.traces)
        chances.append(one.randomness)
        summaries.append(one.summaries)
        costs.append(one.cost)
        sizes = _content(one)
        whole, bare = whole + sizes[0], bare + sizes[1]
    out = DryRun(notes=[f"not in the store: {what}" for what in UNKNOWN])
    if not summaries or not sum(table.num_rows for table in summaries):
        return out
    traces, notes = _traces(pa.concat_tables(summaries), pa.concat_tables(costs), bare / whole if whole else 1.0)
    out.notes += notes
    at = find(np.concatenate(keys), traces.keys)
    out.undecided = len(np.unique(np.concatenate(keys)[at < 0]))
    rows = np.flatnonzero(at >= 0)
    group = at[rows]
    chance = np.zeros(len(traces), np.uint64)
    chance[group] = np.concatenate(chances)[rows]
    verdicts = policy.decide(Due(Signs.concat(signs).select(rows), group, len(traces), chance))
    kept: Mask = verdicts.rule > 0
    body = np.where(verdicts.content == STRIPPED, traces.stripped_share * traces.stored, traces.stored)
    stored = np.where(kept, body, 0).astype(np.int64)
    out.traces = len(traces)
    out.inference = _usd(traces.cost)
    out.unpriced = int(traces.unpriced.sum())
    out.rules = _rules(policy, verdicts.matched, kept, verdicts.content == STRIPPED, stored, traces, price, blind)
    now = _sum("as it was", traces.kept, int(traces.kept_spans.sum()), traces.stored_now, traces, price)
    then = _sum("as it would be", kept, int(traces.spans[kept].sum()), stored, traces, price)
    out.beside = [now, then]
    out.incidents = _incidents(traces, kept)
    out.missed = _missed(traces, kept)
    out.hours, out.budget = _hours(traces, verdicts.matched, kept, stored, policy, price, budget)
    _warn(out, now)
    return out


def _content(one: Past) -> tuple[int, int]:
    """Bytes of the attributes of kept bodies, with their content and without."""
    if not one.bodies:
        return 0, 0
    some = one.arrived.decoded.select(np.arange(min(one.bodies, SEEN_BODIES), dtype=np.int64))
    before = int(some.attributes.raw.nbytes)
    return before, before - min(int(strip(some).removed.sum()), before)


def _traces(summaries: pa.Table, costs: pa.Table, bare: float) -> tuple[_Traces, list[str]]:
    order = np.argsort(np.asarray(plain(summaries["key"])), kind="stable")
    table = summaries.take(pa.array(order))
    keys = np.asarray(plain(table["key"]))
    spent = costs.group_by("key").aggregate([("cost", "sum"), ("unpriced", "any")])
    at = find(np.asarray(plain(spent["key"])), keys)
    cost = np.zeros(len(keys), np.int64)
    cost[at[at >= 0]] = picos(plain(spent["cost_sum"]))[at >= 0]
    unpriced = np.zeros(len(keys), np.bool_)
    unpriced[at[at >= 0]] = np.asarray(pc.fill_null(plain(spent["unpriced_any"]), False))[at >= 0]

    def numbers(name: str) -> npt.NDArray[np.int64]:
        return np.asarray(pc.fill_null(pc.cast(plain(table[name]), pa.int64()), 0))

    kept = numbers("kept") > 0
    received, told = numbers("telemetry_bytes"), numbers("stored_bytes")
    known = told > 0
    whole = kept & known & (numbers("kept_spans") >= numbers("spans"))
    notes = []
    if whole.any():
        ratio = float(told[whole].sum() / max(received[whole].sum(), 1))
        notes.append(
            f"bytes stored of a trace that was not kept: {ratio:.2f} × its bytes received, as of the "
            f"{int(whole.sum()):,} kept whole"
        )
    else:
        ratio = 1.0
        notes.append("bytes stored of a trace that was not kept: taken as its bytes received, as none was kept whole")
    stored = np.where(whole, told, np.rint(received * ratio)).astype(np.int64)
    start, end = numbers("start_ns"), numbers("end_ns")
    return _Traces(
        keys=keys,
        table=table,
        start=start,
        duration=end - start,
        cost=cost,
        unpriced=unpriced,
        error=numbers("error") > 0,
        spans=numbers("spans"),
        received=received,
        stored=stored,
        stored_now=np.where(kept, np.where(known, told, stored), 0),
        kept=kept,
        kept_spans=numbers("kept_spans"),
        stripped_share=bare,
    ), notes


# -- the tables --------------------------------------------------------------------------------------------------------


def _usd(pico: npt.NDArray[np.int64]) -> Decimal:
    """Their sum, exactly, whatever its size."""
    high, low = pico >> 32, pico & 0xFFFFFFFF
    return Decimal((int(high.sum()) << 32) + int(low.sum())).scaleb(-12)


def _spent(traces: _Traces, chosen: Mask) -> Decimal:
    return _usd(traces.cost[chosen])


def _telemetry(traces: _Traces, stored: npt.NDArray[np.int64], chosen: Mask, price: Price) -> Decimal | None:
    """USD of what is stored of some traces; what they cost to receive is paid whatever is kept."""
    return price(int(traces.start.max()), 0, int(stored[chosen].sum()))


def _rules(
    policy: Policy,
    matched: npt.NDArray[np.int16],
    kept: Mask,
    stripped: Mask,
    stored: npt.NDArray[np.int64],
    traces: _Traces,
    price: Price,
    blind: Collection[str],
) -> list[Row]:
    rows: list[Row] = []
    for number, (name, reason) in enumerate(zip(policy.names, policy.reasons, strict=True)):
        mine = matched == number
        if number == 0 and not mine.any():
            continue
        here = mine & kept
        rows.append(
            {
                "rule": name or "(no rule)",
                "reason": reason,
                "always": bool(policy.certain[number]),
                "sees": "kept bodies" if name in blind else "all",
                "matches": int(mine.sum()),
                "keeps": int(here.sum()),
                "spans": int(traces.spans[here].sum()),
                "without_content": int((here & stripped).sum()),
                "stored_bytes": int(stored[here].sum()),
                "telemetry_cost": _telemetry(traces, stored, here, price),
                "inference_cost": _spent(traces, mine),
                "seen_in_kept": _spent(traces, here),
            }
        )
    return rows


def _sum(name: str, kept: Mask, spans: int, stored: npt.NDArray[np.int64], traces: _Traces, price: Price) -> Row:
    telemetry = price(int(traces.start.max()), int(traces.received.sum()), int(stored.sum()))
    total = _usd(traces.cost)
    return {
        "kept": name,
        "traces": int(kept.sum()),
        "of_traces": len(traces),
        "spans": spans,
        "stored_bytes": int(stored.sum()),
        "telemetry_cost": telemetry,
        "share_of_inference": _share(telemetry, total),
        "inference_cost_seen": _spent(traces, kept),
    }


def _share(part: Decimal | None, whole: Decimal) -> Decimal | None:
    return None if part is None or not whole else (part / whole).quantize(Decimal("0.000001"))


def _ids(traces: _Traces, chosen: Mask) -> list[str]:
    """The first ids of some traces, the dearest first."""
    some = np.flatnonzero(chosen)
    rows = some[np.argsort(-traces.cost[some], kind="stable")][:EXAMPLES]
    column = pc.cast(plain(traces.table["trace_id"].take(pa.array(rows))), pa.binary(16))
    return list(hexadecimal(column).to_pylist())


def _top(values: npt.NDArray[np.int64], count: int) -> Mask:
    found = np.zeros(len(values), np.bool_)
    found[np.argsort(-values, kind="stable")[:count]] = True
    return found


def _incidents(traces: _Traces, kept: Mask) -> list[Row]:
    most = min(DEAREST, len(traces))
    kinds = {
        "with an error": traces.error,
        "unpriced or invalid": traces.unpriced,
        f"dearest {most}": _top(traces.cost, most),
        f"slowest {most}": _top(traces.duration, most),
    }
    return [
        {
            "traces": name,
            "there_are": int(them.sum()),
            "were_kept": int((them & traces.kept).sum()),
            "would_be_kept": int((them & kept).sum()),
            "examples_that_would_be_missed": ", ".join(_ids(traces, them & ~kept)),
        }
        for name, them in kinds.items()
        if them.any()
    ]


def _missed(traces: _Traces, kept: Mask) -> list[Row]:
    """Kept then and not kept now, by why they were kept; and the other way round in one row."""
    lost = traces.kept & ~kept
    reasons = plain(traces.table["keep_reason"]).to_pylist()
    rules = plain(traces.table["keep_rule"]).to_pylist()
    why: dict[tuple[str, str], list[int]] = {}
    for row in np.flatnonzero(lost).tolist():
        why.setdefault((reasons[row] or "", rules[row] or ""), []).append(row)
    rows: list[Row] = []
    for (reason, rule), members in sorted(why.items(), key=lambda item: -len(item[1])):
        chosen = np.zeros(len(traces), np.bool_)
        chosen[members] = True
        rows.append(
            {
                "were_kept_as": reason,
                "by_rule": rule,
                "would_be_dropped": len(members),
                "inference_cost": _spent(traces, chosen),
                "examples": ", ".join(_ids(traces, chosen)),
            }
        )
    return rows


def _hours(
    traces: _Traces,
    matched: npt.NDArray[np.int16],
    kept: Mask,
    stored: npt.NDArray[np.int64],
    policy: Policy,
    price: Price,
    limit: Limit | None,
) -> tuple[list[Row], list[Row]]:
    rows: list[Row] = []
    rates: list[Decimal | None] = []
    hour = traces.start // HOUR_NS
    steered = np.asarray(policy.steered)[matched]
    for number in np.unique(hour).tolist():
        mine = hour == number
        at = int(number) * HOUR_NS
        spent, received = _spent(traces, mine), int(traces.received[mine].sum())
        now = price(at, received, int(traces.stored_now[mine].sum()))
        then = price(at, received, int(stored[mine].sum()))
        rows.append(
            {
                "hour": np.datetime64(at, "ns").astype("datetime64[m]").item().isoformat() + "Z",
                "inference_cost": spent,
                "telemetry_as_it_was": now,
                "telemetry_as_it_would_be": then,
                "share_as_it_was": _share(now, spent),
                "share_as_it_would_be": _share(then, spent),
            }
        )
        if limit is not None:
            firm, base = int(stored[mine & ~steered].sum()), int(stored[mine & steered].sum())
            rates.append(_rate(limit, price, at, spent, received, firm, base))
    return rows, [] if limit is None else [_budget(limit, rates, policy, matched, kept, stored)]


def _rate(limit: Limit, price: Price, at: int, spent: Decimal, received: int, firm: int, base: int) -> Decimal | None:
    """What of the base an hour's budget has room for: 1 is all, below 0 not even for the rest; None: nobody knows.

    Args:
        firm, base: bytes that are stored whatever a budget says, and those that it steers.
    """
    amount = Decimal(limit.amount.numerator) / Decimal(limit.amount.denominator)
    if limit.kind == "bytes":
        return (amount * 60 - firm) / base if base else Decimal(1 if amount * 60 >= firm else -1)
    allowed = amount * spent if limit.kind == "share" else amount * 60 * Decimal("1e-12")
    costs = (price(at, received, 0), price(at, 0, firm + base), price(at, 0, firm))
    if costs[0] is None or costs[1] is None or costs[2] is None:
        return None
    left, of_base = allowed - costs[0] - costs[2], costs[1] - costs[2]
    return left / of_base if of_base else Decimal(1 if left >= 0 else -1)


def _budget(
    limit: Limit,
    rates: list[Decimal | None],
    policy: Policy,
    matched: npt.NDArray[np.int16],
    kept: Mask,
    stored: npt.NDArray[np.int64],
) -> Row:
    known = [rate for rate in rates if rate is not None]
    answer: Row = {"budget": limit.text, "hours": len(rates), "without_a_price": len(rates) - len(known)}
    if not known:
        return answer
    lowest, highest = (min(max(extreme(known), Decimal(0)), Decimal(1)) for extreme in (min, max))
    short = sum(rate < 0 for rate in known)
    in_the_way = sorted(
        (
            (int(stored[kept & (matched == n)].sum()), name)
            for n, name in enumerate(policy.names)
            if not policy.steered[n]
        ),
        reverse=True,
    )
    return answer | {
        "within_as_written": sum(rate >= 1 for rate in known),
        "base_rate_lowest": lowest.quantize(Decimal("0.001")),
        "base_rate_highest": highest.quantize(Decimal("0.001")),
        "cannot_be_met": short,
        "in_the_way": ", ".join(name for size, name in in_the_way if size) if short else "",
    }


def _warn(out: DryRun, now: Row) -> None:
    if now["telemetry_cost"] is None:
        out.notes.append(
            "telemetry has no price in the book, so its cost is not known: give it rows for the meters telemetry.*"
        )
    if out.undecided:
        out.notes.append(f"{out.undecided:,} traces have no decision yet and are left out")
    if out.unpriced:
        out.notes.append(f"{out.unpriced:,} traces have calls without a price: what they cost is a lower bound")
