"""The rules of a sampling file as a policy: what the engine asks (`types.Policy`), answered in columns.

`look` leaves of each span a few bits and only those numbers that some rule needs; `decide` asks the rules in their
order and gives a trace to the first that it matches. A rule with a rate keeps a trace by comparing the trace's
randomness with the rate's threshold; one that chance rejects is dropped, and no later rule is asked, or the rates would
say something else than what was done. What no rule matches belongs to the base, whose share a budget may move.

Loops run over rules and over distinct values, never over spans or traces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tollspan.pricing.attributes import REQUEST_FINGERPRINT, SAMPLING_KEEP
from tollspan.processor.identity import U64, Mask, find
from tollspan.processor.sample.conditions import (
    KEYS,
    MOST_REPEATS,
    All,
    Attribute,
    Condition,
    Level,
    Marked,
    Rare,
    Some,
)
from tollspan.processor.sample.rules import Sampling
from tollspan.processor.sample.spans_seen import VERSION, Seen
from tollspan.processor.sample.thresholds import ALWAYS, NEVER, threshold
from tollspan.processor.sample.traces_seen import FIRST_BIT, KNOWN_COST, ROOT, InForce, Traces
from tollspan.processor.sample.types import FULL, STRIPPED, Arrived, Due, Signs, Verdicts

BASE_RATE: Final = "base_rate"
CONTENT_RATE: Final = "content_rate"
"""Rates that a budget publishes (`levels`): what part of the base share is kept, and what part of those keeps its
content. 1 where nobody publishes any."""

STEERED_BY: Final = ("tenant", "service")
"""Dimensions by which a rate may be published, the one that wins first; then the one for everything."""


class RulePolicy:
    """A policy made of rules; see `types.Policy`.

    Args:
        sampling: rules and base.
        levels: figures that rules compare with, and published rates. None: rules that need one match nothing, and the
            base share is as it is written.
        steered: whether a budget may publish rates, so that what they go by is carried along.
    """

    def __init__(self, sampling: Sampling, levels: InForce | None = None, steered: bool = False) -> None:
        self.sampling = sampling
        self.names: Sequence[str] = ("", *(rule.name for rule in sampling.rules), sampling.base.name)
        self.reasons: Sequence[str] = ("", *(rule.reason for rule in sampling.rules), "probability")
        rates = [rule.rate for rule in sampling.rules]
        self.certain: Mask = np.array([False, *(rate == 1 for rate in rates), False], np.bool_)
        self.steered: Mask = np.array([False, *(False for _ in rates), True], np.bool_)
        self.tally: Tally | None = levels if isinstance(levels, Tally) else None
        self._levels = levels
        self._thresholds = [threshold(rate) for rate in rates]
        conditions = list(All(tuple(rule.when for rule in sampling.rules)).everything())
        of_spans = dict.fromkeys(each.of for each in conditions if isinstance(each, Some))
        self._bits: dict[Condition, int] = {each: FIRST_BIT + n for n, each in enumerate(of_spans)}
        bits = 1 + max(self._bits.values(), default=FIRST_BIT - 1)
        # As few bytes as the bits need: they are held for every span that waits.
        self._marks = [_least(min(bits - first, 64)) for first in range(0, bits, 64)]
        scale = sampling.base.scale
        self.levels_needed: tuple[Level, ...] = tuple(
            dict.fromkeys((*(level for each in conditions for level in each.levels), *((scale,) if scale else ())))
        )
        needs = {name for each in conditions for name in each.columns}
        if scale is not None:
            needs |= {"cost", "start"}
        if steered:
            needs |= {"start", *(KEYS[dimension] for dimension in STEERED_BY)}
        self._is_steered = steered
        self._columns = tuple(sorted(needs))
        self._counts_versions = any(isinstance(each, Rare) and each.seen.dimension == "version" for each in conditions)
        attributes = [each for each in conditions if isinstance(each, Attribute)]
        of_span = {each.key for each in attributes if not each.resource}
        if any(isinstance(each, Marked) for each in conditions):
            of_span.add(SAMPLING_KEEP)
        if "request" in needs:
            of_span.add(REQUEST_FINGERPRINT)
        of_resource = {each.key for each in attributes if each.resource}
        if KEYS["version"] in needs:
            of_resource.add(VERSION)
        self._wanted = (frozenset(of_span), frozenset(of_resource))
        self._versions: dict[int, str] = {}

    # -- at arrival ----------------------------------------------------------------------------------------------------

    def look(self, batch: Arrived) -> Signs:
        """What will be needed of each span: bits of conditions, and the numbers that some rule asks for."""
        seen = Seen(batch, self._wanted)
        words = [np.zeros(len(seen), kind) for kind in self._marks]
        words[0][seen.root] = 1 << ROOT
        if "cost" in self._columns:
            words[0][seen.known_cost] |= words[0].dtype.type(1 << KNOWN_COST)
        for condition, bit in self._bits.items():
            found = condition.on_spans(seen)
            if found.any():
                word = words[bit // 64]
                word |= found.astype(word.dtype) << word.dtype.type(bit % 64)
        columns: dict[str, npt.NDArray[Any]] = {f"marks{n}": word for n, word in enumerate(words)}
        for name in self._columns:
            columns[name] = self._column(seen, name)
        return Signs(columns, len(seen))

    def _column(self, seen: Seen, name: str) -> npt.NDArray[Any]:
        if name in ("repeats", "run"):
            return np.ones(len(seen), np.uint16)
        if name == "spans":
            return np.ones(len(seen), np.int32)
        if name == "calls":
            return seen.calls.astype(np.int32)
        who = seen.arrived.who
        if name == "span":
            return who.keys
        if name == "parent":
            return np.where(seen.root, np.uint64(0), who.parents)
        if name.startswith("of_"):
            keys, names = seen.keys(name.removeprefix("of_"))
            if name == KEYS["version"] and len(self._versions) < MOST_VERSIONS:
                self._versions.update(names())
            return keys
        found: npt.NDArray[Any] = getattr(seen, name)
        return found

    # -- at the decision -----------------------------------------------------------------------------------------------

    def decide(self, due: Due) -> Verdicts:
        """Give each trace to the first rule that it matches, and to chance where that has a rate."""
        traces = Traces(due, self._bits, self._levels)
        matched = np.zeros(len(traces), np.int16)
        own = np.full(len(traces), ALWAYS, np.uint64)
        stripped = np.zeros(len(traces), np.bool_)
        open_ = np.ones(len(traces), np.bool_)
        for number, rule in enumerate(self.sampling.rules, start=1):
            found = open_ & rule.when.on_traces(traces)
            if not found.any():
                continue
            matched[found] = number
            own[found] = self._thresholds[number - 1]
            if not rule.content:
                stripped |= found
            open_ &= ~found
            if not open_.any():
                break
        full = own.copy()
        if open_.any():
            self._base(traces, open_, matched, own, full, stripped)
        kept = (due.randomness >= own) & (own < np.uint64(NEVER))
        if self._counts_versions and self.tally is not None:
            self._count_versions(traces)
        return Verdicts(
            rule=np.where(kept, matched, 0).astype(np.int16),
            matched=matched,
            threshold=own,
            full=full,
            content=np.where(stripped & kept, STRIPPED, FULL).astype(np.int8),
        )

    def _base(
        self,
        traces: Traces,
        open_: Mask,
        matched: npt.NDArray[np.int16],
        own: U64,
        full: U64,
        stripped: Mask,
    ) -> None:
        """The base's verdicts on the traces that no rule matched."""
        base = self.sampling.base
        matched[open_] = len(self.sampling.rules) + 1
        share = np.full(len(traces), base.share)
        if base.scale is not None:
            scale, known = traces.level(base.scale)
            # What nobody can price is as likely as the mean.
            known &= traces.bit(KNOWN_COST) & (scale > 0)
            cost = np.maximum(traces.cost, 0).astype(np.float64)
            in_proportion = np.clip(cost / np.where(known, scale, 1), base.floor, 1.0)
            share = np.where(known, in_proportion, share)
        full[open_] = thresholds(share)[open_]
        if not self._is_steered or self._levels is None:
            own[open_] = full[open_]
            if not base.content:
                stripped |= open_
            return
        share = share * self._rate(traces, BASE_RATE)
        own[open_] = thresholds(share)[open_]
        content = thresholds(share * self._rate(traces, CONTENT_RATE))
        stripped |= open_ & ((traces.due.randomness < content) if base.content else True)

    def _rate(self, traces: Traces, metric: str) -> npt.NDArray[np.float64]:
        """The published rate of each trace, 1 where there is none."""
        assert self._levels is not None
        out = np.ones(len(traces))
        for minute, rows in traces.minutes:
            tables = self._levels.rates(metric, minute)
            if not tables:
                continue
            found = np.zeros(len(rows), np.bool_)
            for dimension in (*STEERED_BY, ""):
                table = tables.get(dimension)
                if table is None:
                    continue
                keys = traces.key(dimension)[rows] if dimension else np.zeros(len(rows), np.uint64)
                at = find(keys, table[0])
                here = (at >= 0) & ~found
                out[rows[here]] = table[1][at[here]]
                found |= here
        return np.clip(out, 0.0, 1.0)

    def _count_versions(self, traces: Traces) -> None:
        """Tell the levels how many traces of each version began in which minute: no table of the store has versions."""
        assert self.tally is not None
        keys = traces.key("version")
        said = np.flatnonzero(keys)
        if not len(said):
            return
        pairs, counts = np.unique(np.stack([traces.minute[said].astype(np.uint64), keys[said]]), axis=1,
                                  return_counts=True)  # fmt: skip
        for (minute, key), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
            name = self._versions.get(key)
            if name is not None:
                self.tally.count("seen", "version", int(minute), name, count)

    def fold(self, due: Due) -> Signs:
        """One row for each trace: what is known of all its spans so far.

        Sums, bits, first and last instants and the most frequent request are exact. Of the depth of a chain of spans
        nothing is left, and of growing calls the run that is still going on.
        """
        traces = Traces(due, self._bits, self._levels)
        columns: dict[str, npt.NDArray[Any]] = {f"marks{n}": marks for n, marks in enumerate(traces.marks)}
        for name in self._columns:
            columns[name] = self._folded(traces, name)
        return Signs(columns, len(traces))

    def _folded(self, traces: Traces, name: str) -> npt.NDArray[Any]:
        kind = traces.due.signs[name].dtype
        found: npt.NDArray[Any]
        if name == "start":
            found = traces.first
        elif name == "end":
            found = traces.first + traces.duration
        elif name == "cost":
            found = traces.cost
        elif name in ("spans", "calls", "retries"):
            found = np.minimum(traces.reduced(np.add, traces.column(name).astype(np.int64)), 2**31 - 1)
        elif name == "request":
            found = traces.repeats[0]
        elif name == "repeats":
            found = np.minimum(traces.repeats[1], MOST_REPEATS)
        elif name == "tokens":
            found = traces.runs[1]
        elif name == "run":
            found = np.minimum(traces.runs[2], MOST_REPEATS)
        elif name in ("span", "parent"):
            found = np.zeros(len(traces), np.uint64)
        else:
            found = traces.key(name.removeprefix("of_"))
        return found.astype(kind, copy=False)


MOST_VERSIONS: Final = 100_000


class Tally:
    """Takes counts that no query can find in the store; `levels.Levels` is one."""

    def count(self, metric: str, dimension: str, minute: int, key: str, traces: int) -> None:
        """Add traces of a minute to a key."""
        raise NotImplementedError


def _least(bits: int) -> Any:
    """The smallest unsigned type with so many bits."""
    return next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if bits <= 8 * np.dtype(kind).itemsize)


def thresholds(shares: npt.NDArray[np.float64]) -> U64:
    """`thresholds.threshold` of an array."""
    return np.clip(np.rint((1.0 - shares) * NEVER), 0, NEVER).astype(np.uint64)
