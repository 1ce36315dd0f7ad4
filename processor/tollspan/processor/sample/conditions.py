"""Conditions: what a rule may ask of a trace, and what follows from what.

Two kinds. A `SpanCondition` is asked of every span when it arrives (``on_spans``, over the columns of a batch,
`spans_seen.Seen`) and leaves one bit; `Some` of them asks a trace whether any of its spans has it. A trace condition is
asked at the decision (``on_traces``, `traces_seen.Traces`), of sums, durations and levels. `All`, `AnyOf` and `Not`
join either kind. Conditions are frozen and compared by value: equal ones share a bit.

``implies`` finds rules that can never be reached: it says True only where it is certain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from tollspan.processor.identity import Mask
from tollspan.processor.sample.matchers import Matcher

if TYPE_CHECKING:
    from tollspan.processor.sample.spans_seen import Seen
    from tollspan.processor.sample.traces_seen import Traces

TEXT_COLUMNS: Final = (
    *("service", "environment", "region", "tenant", "team", "feature", "workflow", "variant"),
    *("provider", "model", "request_model", "operation", "kind", "error_type", "processing", "service_tier", "device"),
)
"""Canonical text columns (`normalize`) that rules name as they are; of the resource where a span does not say."""

NAME: Final = "name"
"""The span's name."""


class Level(NamedTuple):
    """A figure that moves, and that some rule compares with; see `levels`.

    Attributes:
        metric: ``trace_cost`` (pico-dollars), ``call_cost``, ``duration`` (ns), ``seen`` (traces).
        dimension: by what: ``feature``, ``model``, ``route`` …; '' = of everything.
        statistic: ``quantile``, ``anomaly``, ``top``, ``count``, ``scale``.
        window: minutes that it looks back.
        least: observations below which there is no figure.
        parameters: of the statistic.
    """

    metric: str
    dimension: str
    statistic: str
    window: int
    least: int = 0
    parameters: tuple[float, ...] = ()


class Condition:
    """A condition of either kind."""

    kind: str = "match"
    """Why a trace is kept that a rule with this condition keeps."""

    @property
    def parts(self) -> tuple[Condition, ...]:
        """Conditions inside."""
        return ()

    @property
    def levels(self) -> tuple[Level, ...]:
        """Figures that this one compares with."""
        return ()

    @property
    def columns(self) -> frozenset[str]:
        """Signs that this one needs at the decision."""
        return frozenset()

    def on_spans(self, seen: Seen) -> Mask:
        """Which spans of a batch, shape (n,)."""
        raise NotImplementedError

    def on_traces(self, traces: Traces) -> Mask:
        """Which of the traces that are due, shape (t,)."""
        raise NotImplementedError

    def within(self, other: Condition) -> bool:
        """Whether the other follows from this one, both without parts."""
        return self == other

    def apart(self, other: Condition) -> bool:
        """Whether no single span can have both."""
        return False

    def everything(self) -> Iterator[Condition]:
        """This one and all inside."""
        yield self
        for part in self.parts:
            yield from part.everything()


# -- joined ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class All(Condition):
    """All of some; none at all is always true."""

    of: tuple[Condition, ...]

    @property
    def parts(self) -> tuple[Condition, ...]:
        return self.of

    def on_spans(self, seen: Seen) -> Mask:
        found = np.ones(len(seen), np.bool_)
        for part in self.of:
            found &= part.on_spans(seen)
        return found

    def on_traces(self, traces: Traces) -> Mask:
        found = np.ones(len(traces), np.bool_)
        for part in self.of:
            found &= part.on_traces(traces)
        return found


@dataclass(frozen=True, slots=True)
class AnyOf(Condition):
    """At least one of some."""

    of: tuple[Condition, ...]

    @property
    def parts(self) -> tuple[Condition, ...]:
        return self.of

    def on_spans(self, seen: Seen) -> Mask:
        found = np.zeros(len(seen), np.bool_)
        for part in self.of:
            found |= part.on_spans(seen)
        return found

    def on_traces(self, traces: Traces) -> Mask:
        found = np.zeros(len(traces), np.bool_)
        for part in self.of:
            found |= part.on_traces(traces)
        return found


@dataclass(frozen=True, slots=True)
class Not(Condition):
    """Not another. Of a trace: no span of it."""

    of: Condition

    @property
    def parts(self) -> tuple[Condition, ...]:
        return (self.of,)

    def on_spans(self, seen: Seen) -> Mask:
        return ~self.of.on_spans(seen)

    def on_traces(self, traces: Traces) -> Mask:
        return ~self.of.on_traces(traces)


@dataclass(frozen=True, slots=True)
class Some(Condition):
    """Some span of the trace has a span condition."""

    of: Condition

    @property
    def parts(self) -> tuple[Condition, ...]:
        return (self.of,)

    def on_traces(self, traces: Traces) -> Mask:
        return traces.marked(self.of)


# -- of spans ----------------------------------------------------------------------------------------------------------


class SpanCondition(Condition):
    """A condition of one span."""


@dataclass(frozen=True, slots=True)
class Root(SpanCondition):
    """The span has no parent."""

    def on_spans(self, seen: Seen) -> Mask:
        return seen.root


@dataclass(frozen=True, slots=True)
class Text(SpanCondition):
    """A canonical column, or the span's name, is so."""

    column: str
    matcher: Matcher

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "status" if self.column == "error_type" else "match"

    def on_spans(self, seen: Seen) -> Mask:
        return seen.text(self.column, self.matcher)

    def within(self, other: Condition) -> bool:
        return isinstance(other, Text) and other.column == self.column and self.matcher.within(other.matcher)

    def apart(self, other: Condition) -> bool:
        return isinstance(other, Text) and other.column == self.column and self.matcher.apart(other.matcher)


@dataclass(frozen=True, slots=True)
class Attribute(SpanCondition):
    """An attribute of the span, or of its resource, is so."""

    key: str
    resource: bool
    matcher: Matcher

    def on_spans(self, seen: Seen) -> Mask:
        return seen.attribute(self.key, self.resource, self.matcher)

    def within(self, other: Condition) -> bool:
        same = isinstance(other, Attribute) and (other.key, other.resource) == (self.key, self.resource)
        return same and self.matcher.within(other.matcher)  # type: ignore[attr-defined]

    def apart(self, other: Condition) -> bool:
        same = isinstance(other, Attribute) and (other.key, other.resource) == (self.key, self.resource)
        return same and self.matcher.apart(other.matcher)  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Status(SpanCondition):
    """The span's status is one of some: ``error``, ``ok``, ``unset``."""

    values: frozenset[str]

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "error" if self.values == {"error"} else "status"

    def on_spans(self, seen: Seen) -> Mask:
        return seen.one_of("span_status", self.values)

    def within(self, other: Condition) -> bool:
        return isinstance(other, Status) and self.values <= other.values

    def apart(self, other: Condition) -> bool:
        return isinstance(other, Status) and not self.values & other.values


@dataclass(frozen=True, slots=True)
class CostStatus(SpanCondition):
    """The ledger says of the span's cost that it is one of some: ``unpriced``, ``invalid`` …"""

    values: frozenset[str]
    kind = "unpriced"

    def on_spans(self, seen: Seen) -> Mask:
        return seen.cost_status(self.values)

    def within(self, other: Condition) -> bool:
        return isinstance(other, CostStatus) and self.values <= other.values

    def apart(self, other: Condition) -> bool:
        return isinstance(other, CostStatus) and not self.values & other.values


@dataclass(frozen=True, slots=True)
class HttpStatus(SpanCondition):
    """The HTTP status of the span's response lies in one of some ranges, both ends with it."""

    ranges: tuple[tuple[int, int], ...]
    kind = "status"

    def on_spans(self, seen: Seen) -> Mask:
        return seen.http_status(self.ranges)

    def within(self, other: Condition) -> bool:
        return isinstance(other, HttpStatus) and all(
            any(low >= theirs[0] and high <= theirs[1] for theirs in other.ranges) for low, high in self.ranges
        )

    def apart(self, other: Condition) -> bool:
        return isinstance(other, HttpStatus) and not any(
            low <= theirs[1] and theirs[0] <= high for low, high in self.ranges for theirs in other.ranges
        )


@dataclass(frozen=True, slots=True)
class Flag(SpanCondition):
    """A canonical flag is true: ``cold_start``."""

    column: str

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.column

    def on_spans(self, seen: Seen) -> Mask:
        return seen.flag(self.column)


@dataclass(frozen=True, slots=True)
class Marked(SpanCondition):
    """The program asked that the trace be kept, or dropped (`tollspan.pricing.attributes.SAMPLING_KEEP`)."""

    keep: bool

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "keep" if self.keep else "drop"

    def on_spans(self, seen: Seen) -> Mask:
        return seen.asked(self.keep)


# -- of traces ---------------------------------------------------------------------------------------------------------


class TraceCondition(Condition):
    """A condition of a trace as a whole."""


@dataclass(frozen=True, slots=True)
class Slow(TraceCondition):
    """From the first start to the last end of its spans it took longer than a time, or than a level of its route,
    service or tenant."""

    over: int | None
    above: Level | None = None
    kind = "slow"

    @property
    def levels(self) -> tuple[Level, ...]:
        return () if self.above is None else (self.above,)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"start", "end"}) | _keys(self.above)

    def on_traces(self, traces: Traces) -> Mask:
        return traces.exceeds(traces.duration, self.over, self.above)

    def within(self, other: Condition) -> bool:
        return isinstance(other, Slow) and _higher((self.over, self.above), (other.over, other.above))


@dataclass(frozen=True, slots=True)
class Expensive(TraceCondition):
    """Its spans cost more together than an amount (10⁻¹² USD), or than a level of its feature …; with the metric
    ``call_cost``: one of its calls cost more than the level of its model."""

    over: int | None
    above: Level | None = None
    kind = "expensive"

    @property
    def levels(self) -> tuple[Level, ...]:
        return () if self.above is None else (self.above,)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"cost"}) | _keys(self.above)

    def on_traces(self, traces: Traces) -> Mask:
        if self.above is not None and self.above.metric == "call_cost":
            return traces.some_call_exceeds(self.above)
        return traces.exceeds(traces.cost, self.over, self.above)

    def within(self, other: Condition) -> bool:
        return isinstance(other, Expensive) and _higher((self.over, self.above), (other.over, other.above))


@dataclass(frozen=True, slots=True)
class Anomaly(TraceCondition):
    """It cost more than the history of its feature … lets one expect (`figures.anomaly`)."""

    above: Level
    kind = "anomaly"

    @property
    def levels(self) -> tuple[Level, ...]:
        return (self.above,)

    @property
    def columns(self) -> frozenset[str]:
        return frozenset({"cost"}) | _keys(self.above)

    def on_traces(self, traces: Traces) -> Mask:
        return traces.exceeds(traces.cost, None, self.above)

    def within(self, other: Condition) -> bool:
        if not isinstance(other, Anomaly) or self.above._replace(parameters=()) != other.above._replace(parameters=()):
            return False
        return all(mine >= theirs for mine, theirs in zip(self.above.parameters, other.above.parameters, strict=True))


@dataclass(frozen=True, slots=True)
class Rare(TraceCondition):
    """Fewer traces than so many had its model, tenant, route or version within the window."""

    fewer_than: int
    seen: Level
    kind = "rare"

    @property
    def levels(self) -> tuple[Level, ...]:
        return (self.seen,)

    @property
    def columns(self) -> frozenset[str]:
        return _keys(self.seen)

    def on_traces(self, traces: Traces) -> Mask:
        return traces.some_rare(self.seen, self.fewer_than)

    def within(self, other: Condition) -> bool:
        return isinstance(other, Rare) and self.seen == other.seen and self.fewer_than <= other.fewer_than


@dataclass(frozen=True, slots=True)
class AtLeast(TraceCondition):
    """The trace has at least so many of something (`traces_seen.COUNTS`): spans, calls, retries …"""

    what: str
    least: int

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "match" if self.what == "spans" else "loop"

    @property
    def columns(self) -> frozenset[str]:
        return COUNTS[self.what]

    def on_traces(self, traces: Traces) -> Mask:
        return traces.at_least(self.what, self.least)

    def within(self, other: Condition) -> bool:
        return isinstance(other, AtLeast) and self.what == other.what and self.least >= other.least


COUNTS: Final[dict[str, frozenset[str]]] = {
    "spans": frozenset({"spans"}),
    "calls": frozenset({"calls"}),
    "retries": frozenset({"retries"}),
    "same_request": frozenset({"request", "repeats"}),
    "depth": frozenset({"span", "parent"}),
    "growing": frozenset({"start", "tokens", "run"}),
}
"""What `AtLeast` counts → the signs that it takes. ``calls``: model calls, roll-ups left out; ``retries``: that clients
told; ``same_request``: calls with one fingerprint; ``depth``: spans from one to its furthest ancestor; ``growing``:
calls one after the other of which each took more input tokens than the one before."""

MOST_REPEATS: Final = 65_535
"""Largest number that is counted of ``same_request`` and ``growing``."""

KEYS: Final = {name: f"of_{name}" for name in ("feature", "model", "tenant", "service", "workflow", "variant", "team",
                                               "environment", "route", "version")}  # fmt: skip
"""Dimension → sign with its 64-bit key."""


def _keys(level: Level | None) -> frozenset[str]:
    if level is None:
        return frozenset()
    return frozenset({"start"} | ({KEYS[level.dimension]} if level.dimension else set()))


def _higher(mine: tuple[int | None, Level | None], theirs: tuple[int | None, Level | None]) -> bool:
    """Whether a bound is the other's or above it."""
    if mine[0] is not None and theirs[0] is not None:
        return mine[0] >= theirs[0]
    first, second = mine[1], theirs[1]
    if first is None or second is None or first._replace(parameters=()) != second._replace(parameters=()):
        return False
    # The top 5 are among the top 10; what is above the 99th percentile is above the 95th.
    if first.statistic == "top":
        return first.parameters <= second.parameters
    return first.parameters >= second.parameters


# -- what follows from what --------------------------------------------------------------------------------------------


def implies(a: Condition, b: Condition) -> bool:
    """Whether every trace (or span) that has ``a`` has ``b``; True only where that is certain."""
    if a == b:
        return True
    if isinstance(b, All):
        return all(implies(a, part) for part in b.of)
    if isinstance(a, AnyOf):
        return all(implies(part, b) for part in a.of)
    if isinstance(a, All) and any(implies(part, b) for part in a.of):
        return True
    if isinstance(b, AnyOf) and any(implies(a, part) for part in b.of):
        return True
    if isinstance(a, Not) and isinstance(b, Not):
        return implies(b.of, a.of)
    if isinstance(b, Not):
        return isinstance(a, SpanCondition) and isinstance(b.of, SpanCondition) and a.apart(b.of)
    if isinstance(a, Some) and isinstance(b, Some):
        return implies(a.of, b.of)
    return type(a) is type(b) and not a.parts and a.within(b)


def impossible(condition: Condition) -> bool:
    """Whether nothing can have a condition, as far as that can be told."""
    if isinstance(condition, Some):
        return impossible(condition.of)
    if isinstance(condition, AnyOf):
        return all(impossible(part) for part in condition.of)
    if isinstance(condition, Not):
        return isinstance(condition.of, All) and not condition.of.of
    if not isinstance(condition, All):
        return False
    flat = list(_conjuncts(condition))
    if any(impossible(part) for part in flat):
        return True
    return any(
        (isinstance(no, Not) and implies(yes, no.of))
        or (isinstance(yes, SpanCondition) and isinstance(no, SpanCondition) and yes.apart(no))
        for yes in flat
        for no in flat
    )


def _conjuncts(condition: Condition) -> Iterator[Condition]:
    for part in condition.parts:
        if isinstance(part, All):
            yield from _conjuncts(part)
        else:
            yield part
