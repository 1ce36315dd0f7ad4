"""A day of an LLM product that goes wrong in five ways, made by law from a seed, and a judge of what samplers keep.

Words: a *sent* span is one with the minute in which it arrives, what it costs by ten lines of Decimal, and the incident
that it belongs to. The day is a product of four routes and twelve tenants; most traces are a request, a search, a model
call and its rendering. In it stand, at fixed parts of the day: an *error burst* (a database that times out), a *retry
storm* (a call made six to nine times because its answer cannot be parsed; none of them fails), one *runaway agent* (one
trace that calls a model with ever more tokens), a *new model* that costs sixty times as much, and a *slow route*.

Beside the day two baselines: the plain probabilistic sampler, and the Collector's tail sampler, emulated from its
documentation (`Collector`). `judge` says of any choice of spans what it keeps and what that costs.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))
from oracle import PROVIDER, Book

from tollspan.processor.bodies import bodies
from tollspan.processor.decode import decode
from tollspan.processor.sample.telemetry_cost import row_bytes

BEGAN: Final = (time.time_ns() // (86_400 * 10**9) - 1) * 86_400 * 10**9
"""Midnight (UTC) at which yesterday began, ns since the epoch: tables for sampling forget what is some days old."""
MINUTE: Final = 60 * 10**9
HOUR: Final = 60 * MINUTE

BOOK: Final = Book(
    1,
    {
        "small": (Decimal("0.05"), Decimal("0.4")),
        "medium": (Decimal("0.25"), Decimal("2")),
        "frontier": (Decimal("15"), Decimal("75")),
    },
)
ERRORS, STORM, AGENT, MODEL, SLOW = "error burst", "retry storm", "runaway agent", "new model", "slow route"
INCIDENTS: Final = (ERRORS, STORM, AGENT, MODEL, SLOW)
ROUTES: Final = {"/chat": (0.5, 0.9), "/search": (0.25, 0.5), "/summarize": (0.15, 1.6), "/report": (0.1, 2.5)}
"""Share of the traffic, and median seconds."""
_TEXT: Final = (
    "the customer asks whether the second order of this week was sent, and wants to know what a return would cost; "
    "the order is on its way, it arrives on Thursday, and a return within thirty days is free of charge"
)


@dataclass(frozen=True, slots=True)
class Sent:
    """One span of the day.

    Attributes:
        span: as it goes over the wire, ``minute`` the one of the day in which it arrives (when it has ended, mostly).
        trace: its trace id; ``cost``: USD, None for a span that is not billed.
        nbytes: on the wire; ``error``: its status; ``incident``: one of `INCIDENTS`, or ''.
    """

    span: Span
    minute: int
    trace: bytes
    cost: Decimal | None
    nbytes: int
    error: bool
    incident: str
    model: str


@dataclass(slots=True)
class Day:
    """All of it.

    Attributes:
        hours: length; ``sent``: every span, by arrival.
    """

    hours: int
    sent: list[Sent] = field(default_factory=list)

    def payloads(self) -> list[bytes]:
        """One OTLP request for each minute, empty bytes for one in which nothing came."""
        requests = [ExportTraceServiceRequest() for _ in range(self.hours * 60)]
        scopes = []
        for request in requests:
            resource = request.resource_spans.add()
            resource.resource.attributes.extend(_attributes({"service.name": "assistant"}))
            scopes.append(resource.scope_spans.add())
            scopes[-1].scope.name = "incident-day"
        for one in self.sent:
            scopes[min(one.minute, len(scopes) - 1)].spans.append(one.span)
        return [r.SerializeToString() if s.spans else b"" for r, s in zip(requests, scopes, strict=True)]

    @property
    def bill(self) -> Decimal:
        """What the day costs, to the last digit."""
        return sum((one.cost for one in self.sent if one.cost is not None), Decimal(0))

    @property
    def traces(self) -> int:
        """How many traces there are."""
        return len({one.trace for one in self.sent})


def book_yaml(*telemetry: str) -> str:
    """The day's price book, with rows for the telemetry itself."""
    return BOOK.yaml() + "".join(f"  - {row}\n" for row in telemetry)


def make(hours: int = 24, per_minute: float = 20.0, seed: int = 7) -> Day:
    """A day of ``hours`` hours; the incidents stand at the same parts of a shorter one, and are shorter in it."""
    maker = _Maker(random.Random(seed), hours * 60)
    for minute in range(hours * 60):
        # More by day than by night.
        rate = per_minute * (1 - 0.5 * math.cos(2 * math.pi * minute / (hours * 60)))
        for _ in range(_poisson(maker.random, rate)):
            maker.usual(minute)
    part = hours * 60 / 24
    maker.error_burst(round(7.3 * part), max(round(0.25 * part), 6))
    maker.retry_storm(round(10.2 * part), max(round(0.4 * part), 6))
    maker.runaway_agent(round(13.1 * part), max(round(1.5 * part), 15))
    maker.new_model(round(16.4 * part), max(round(1.2 * part), 12))
    maker.slow_route(round(20.2 * part), max(round(0.6 * part), 8))
    maker.sent.sort(key=lambda one: (one.minute, one.span.end_time_unix_nano))
    return Day(hours, maker.sent)


def _poisson(rng: random.Random, mean: float) -> int:
    limit, product, count = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def _attributes(values: dict[str, Any]) -> list[KeyValue]:
    return [
        KeyValue(key=k, value=AnyValue(int_value=v) if isinstance(v, int) else AnyValue(string_value=v))
        for k, v in values.items()
    ]


class _Maker:
    """Makes traces; ``sent`` has what was made."""

    def __init__(self, rng: random.Random, minutes: int) -> None:
        self.random, self.minutes = rng, minutes
        self.sent: list[Sent] = []

    def _text(self, words: int) -> str:
        given: list[str] = _TEXT.split()
        start = self.random.randrange(len(given))
        turned = given[start:] + given[:start]
        return " ".join((turned * (words // len(turned) + 1))[:words])

    def _add(
        self,
        trace: bytes,
        parent: bytes,
        name: str,
        start: int,
        seconds: float,
        values: dict[str, Any],
        *,
        kind: Any = Span.SPAN_KIND_INTERNAL,
        error: bool = False,
        cost: Decimal | None = None,
        incident: str = "",
        identifier: bytes = b"",
        late_minutes: int = 0,
    ) -> bytes:
        identifier = identifier or self.random.randbytes(8)
        end = start + round(seconds * 1e9)
        span = Span(
            trace_id=trace,
            span_id=identifier,
            parent_span_id=parent,
            name=name,
            kind=kind,
            start_time_unix_nano=start,
            end_time_unix_nano=end,
            attributes=_attributes(values),
            status=Status(code=Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET),
        )
        minute = min((end - BEGAN) // MINUTE + late_minutes, self.minutes - 1)
        model = values.get("gen_ai.response.model", "")
        self.sent.append(Sent(span, minute, trace, cost, span.ByteSize(), error, incident, model))
        return identifier

    def _call(
        self,
        trace: bytes,
        parent: bytes,
        start: int,
        seconds: float,
        model: str,
        tokens: tuple[int, int],
        incident: str,
        **more: Any,
    ) -> None:
        """A model call with its prompt and its answer."""
        values = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.usage.input_tokens": tokens[0],
            "gen_ai.usage.output_tokens": tokens[1],
            "gen_ai.input.messages": self._text(260),
            "gen_ai.output.messages": self._text(90),
            **more,
        }
        cost = BOOK.cost(model, tokens)
        self._add(
            trace, parent, f"chat {model}", start, seconds, values,
            kind=Span.SPAN_KIND_CLIENT, cost=cost, incident=incident,
        )  # fmt: skip

    def _request(self, minute: int, route: str, incident: str) -> tuple[bytes, bytes, int, dict[str, Any]]:
        """Trace, root span, start and the facts of a request."""
        rng = self.random
        start = BEGAN + minute * MINUTE + rng.randrange(MINUTE * 9 // 10)
        tenant = f"tenant-{min(int(rng.paretovariate(0.9)), 12)}"
        facts = {
            "http.route": route,
            "http.request.method": "POST",
            "tollspan.tenant": tenant,
            "tollspan.feature": route.strip("/"),
        }
        return rng.randbytes(16), rng.randbytes(8), start, facts

    def usual(self, minute: int, route: str = "", incident: str = "", model: str = "", slower: float = 1.0) -> None:
        rng = self.random
        route = route or rng.choices(list(ROUTES), [share for share, _ in ROUTES.values()])[0]
        trace, root, start, facts = self._request(minute, route, incident)
        took = min(ROUTES[route][1] * rng.lognormvariate(0, 0.35) * slower, 45.0)
        failed = not incident and rng.random() < 0.006
        tags = {k: v for k, v in facts.items() if k.startswith("tollspan.")}
        top = {**facts, "http.response.status_code": 500 if failed else 200}
        seconds = took * 0.1 if failed else took
        self._add(
            trace, b"", f"POST {route}", start, seconds, top,
            kind=Span.SPAN_KIND_SERVER, error=failed, incident=incident, identifier=root,
        )  # fmt: skip
        self._add(
            trace, root, "search documents", start + 1_000_000, seconds * 0.8 if failed else took * 0.15,
            {**tags, "db.system": "pgvector", "retrieval.documents": self._text(120)}, error=failed, incident=incident,
        )  # fmt: skip
        if failed:
            return
        model = model or rng.choices(["small", "medium"], [6, 4])[0]
        tokens = (int(600 * rng.lognormvariate(0.6, 0.6)), int(120 * rng.lognormvariate(0.3, 0.6)))
        self._call(trace, root, start + round(took * 0.2e9), took * 0.7, model, tokens, incident, **tags)
        late = 3 if not incident and rng.random() < 0.01 else 0
        self._add(
            trace, root, "render", start + round(took * 0.92e9), took * 0.05, tags,
            incident=incident, late_minutes=late,
        )  # fmt: skip

    def error_burst(self, first: int, minutes: int) -> None:
        for minute in range(first, first + minutes):
            for _ in range(_poisson(self.random, 7)):
                trace, root, start, facts = self._request(minute, "/search", ERRORS)
                self._add(
                    trace, b"", "POST /search", start, 2.1, {**facts, "http.response.status_code": 504},
                    kind=Span.SPAN_KIND_SERVER, error=True, incident=ERRORS, identifier=root,
                )  # fmt: skip
                self._add(
                    trace, root, "search documents", start + 1_000_000, 2.0,
                    {"db.system": "pgvector", "error.type": "timeout"}, error=True, incident=ERRORS,
                )  # fmt: skip

    def retry_storm(self, first: int, minutes: int) -> None:
        for minute in range(first, first + minutes):
            for _ in range(_poisson(self.random, 4)):
                trace, root, start, facts = self._request(minute, "/chat", STORM)
                tags = {k: v for k, v in facts.items() if k.startswith("tollspan.")}
                times = self.random.randint(6, 9)
                tokens = (int(900 * self.random.lognormvariate(0, 0.2)), 150)
                print_ = f"{self.random.getrandbits(128):032x}"
                for number in range(times):
                    begun = start + round((0.05 + number * 0.9) * 1e9)
                    self._call(
                        trace, root, begun, 0.8, "small", tokens, STORM,
                        **{**tags, "tollspan.request.fingerprint": print_},
                    )  # fmt: skip
                self._add(
                    trace, b"", "POST /chat", start, times * 0.9 + 0.1, {**facts, "http.response.status_code": 200},
                    kind=Span.SPAN_KIND_SERVER, incident=STORM, identifier=root,
                )  # fmt: skip

    def runaway_agent(self, first: int, minutes: int) -> None:
        trace, root, start, facts = self._request(first, "/agent", AGENT)
        tags = {"tollspan.tenant": "tenant-3", "tollspan.feature": "agent", "tollspan.workflow": "planner"}
        calls = minutes * 5
        for number in range(calls):
            at = start + round(number * minutes * 60e9 / calls)
            tokens = (2_000 + number * 250, 180)
            self._call(trace, root, at, 9.0, "medium", tokens, AGENT, **tags)
            self._add(
                trace, root, "execute_tool search", at + round(9.1e9), 1.5,
                {**tags, "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search",
                 "gen_ai.tool.call.result": self._text(60)}, incident=AGENT,
            )  # fmt: skip
        self._add(
            trace, b"", "invoke_agent planner", start, minutes * 60 + 5.0, {**facts, **tags},
            incident=AGENT, identifier=root,
        )  # fmt: skip

    def new_model(self, first: int, minutes: int) -> None:
        for minute in range(first, first + minutes):
            for _ in range(_poisson(self.random, 0.8)):
                self.usual(minute, "/chat", MODEL, "frontier")

    def slow_route(self, first: int, minutes: int) -> None:
        for minute in range(first, first + minutes):
            for _ in range(_poisson(self.random, 2)):
                self.usual(minute, "/report", SLOW, "small", slower=8.0)


# -- other samplers ----------------------------------------------------------------------------------------------------

Choice = set[int]
"""Positions in ``Day.sent`` that are kept."""

CHANCE_BITS: Final = 56


def chance(trace: bytes) -> int:
    """A trace's randomness, 56 bits (W3C trace context level 2)."""
    return int.from_bytes(trace[9:], "big")


def probabilistic(day: Day, percent: float) -> Choice:
    """The plain sampler: a share of trace ids, whatever is in them."""
    threshold = round((1 - percent / 100) * 2**CHANCE_BITS)
    return {n for n, one in enumerate(day.sent) if chance(one.trace) >= threshold}


@dataclass(slots=True)
class _Held:
    spans: list[int]
    first_ns: int
    verdict: bool | None = None


@dataclass(slots=True)
class Collector:
    """The Collector's tail sampling processor, as its documentation has it.

    A trace is decided ``wait_s`` after its first span, on what has come by then: it is kept where any policy says so. A
    span that comes later follows the decision as long as the trace is in memory; where that has been given up (the
    oldest of ``num_traces`` goes first) the late span is a new trace, decided by itself. What is given up before its
    decision is lost. Its decision caches are off, as by default.

    Attributes:
        policies: of the spans of a trace that have come; OR.
        wait_s: ``decision_wait``, 30 s by default.
        num_traces: 50,000 by default.
        lost: spans given up undecided; ``again``: traces that were decided more than once.
    """

    policies: Sequence[Callable[[list[Sent]], bool]]
    wait_s: float = 30.0
    num_traces: int = 50_000
    lost: int = 0
    again: int = 0

    def choose(self, day: Day) -> Choice:
        kept: Choice = set()
        held: OrderedDict[bytes, _Held] = OrderedDict()
        due: deque[tuple[int, bytes, _Held]] = deque()
        decided: Counter[bytes] = Counter()

        def decide(until: float) -> None:
            while due and due[0][0] <= until:
                _, trace, one = due.popleft()
                if held.get(trace) is not one:
                    self.lost += len(one.spans)
                    continue
                spans = [day.sent[n] for n in one.spans]
                one.verdict = any(policy(spans) for policy in self.policies)
                decided[trace] += 1
                if one.verdict:
                    kept.update(one.spans)
                one.spans = []

        for n, sent in sorted(enumerate(day.sent), key=lambda item: _arrival(item[1])):
            now = _arrival(sent)
            decide(now)
            one = held.get(sent.trace)
            if one is None:
                one = held[sent.trace] = _Held([], now)
                due.append((now + round(self.wait_s * 1e9), sent.trace, one))
                if len(held) > self.num_traces:
                    held.popitem(last=False)
            if one.verdict is None:
                one.spans.append(n)
            elif one.verdict:
                kept.add(n)
        decide(math.inf)
        self.again = sum(times > 1 for times in decided.values())
        return kept


def _arrival(sent: Sent) -> int:
    """When a span comes: at its end, or later where it is late."""
    return max(sent.span.end_time_unix_nano, BEGAN + sent.minute * MINUTE)


def collector_policies(percent: float = 10.0, slow_s: float = 10.0, tokens: int = 20_000) -> list[Any]:
    """What its users write: errors, slow traces, calls with very many tokens, and a share of the rest."""
    threshold = round((1 - percent / 100) * 2**CHANCE_BITS)

    def slow(spans: list[Sent]) -> bool:
        first = min(one.span.start_time_unix_nano for one in spans)
        return max(one.span.end_time_unix_nano for one in spans) - first > slow_s * 1e9

    def many_tokens(spans: list[Sent]) -> bool:
        return any(
            a.key == "gen_ai.usage.input_tokens" and a.value.int_value >= tokens
            for one in spans
            for a in one.span.attributes
        )

    return [
        lambda spans: any(one.error for one in spans),
        slow,
        many_tokens,
        lambda spans: chance(spans[0].trace) >= threshold,
    ]


# -- the judge ---------------------------------------------------------------------------------------------------------

Price = Callable[[int, int], Decimal]
"""USD for (bytes received, bytes stored)."""


def sizes(day: Day) -> list[int]:
    """Bytes that each span of the day has as a row of the store, with its content."""
    found: dict[tuple[bytes, bytes], int] = {}
    for payload in filter(None, day.payloads()):
        decoded = decode([payload])
        table = bodies(decoded, {})
        ids = zip(decoded.spans["trace_id"].to_pylist(), decoded.spans["span_id"].to_pylist(), strict=True)
        found.update(zip(ids, row_bytes(table).tolist(), strict=True))
    return [found[one.trace, one.span.span_id] for one in day.sent]


@dataclass(frozen=True, slots=True)
class Judged:
    """What a choice keeps and costs.

    Attributes:
        telemetry: USD; ``by_hour``: as a share of the hour's inference cost, None for an hour without.
        errors: (kept, all) traces with an error; ``whole``: share of kept traces of which no span is missing.
        incidents: by incident, (traces with a kept span, traces).
        agent: (kept spans, spans) of the runaway agent.
    """

    traces: int
    spans: int
    nbytes: int
    telemetry: Decimal
    share: float
    by_hour: list[float | None]
    errors: tuple[int, int]
    whole: float
    incidents: dict[str, tuple[int, int]]
    agent: tuple[int, int]


def judge(day: Day, kept: Mapping[int, int], price: Price) -> Judged:
    """Hold a choice against the day.

    Args:
        kept: bytes stored of each span that is kept, by its position in ``Day.sent``.
        price: of telemetry.
    """
    traces = {day.sent[n].trace for n in kept}
    of_trace = Counter(one.trace for one in day.sent)
    kept_of = Counter(day.sent[n].trace for n in kept)
    failed = {one.trace for one in day.sent if one.error}
    incidents = {name: {one.trace for one in day.sent if one.incident == name} for name in INCIDENTS}
    agent = [n for n, one in enumerate(day.sent) if one.incident == AGENT]
    inference = [Decimal(0)] * day.hours
    received, stored = ([0] * day.hours for _ in range(2))
    for n, one in enumerate(day.sent):
        hour = (one.span.start_time_unix_nano - BEGAN) // HOUR
        inference[hour] += one.cost or 0
        received[hour] += one.nbytes
        stored[hour] += kept.get(n, 0)
    costs = [price(r, s) for r, s in zip(received, stored, strict=True)]
    telemetry = sum(costs, Decimal(0))
    return Judged(
        traces=len(traces),
        spans=len(kept),
        nbytes=sum(stored),
        telemetry=telemetry,
        share=float(telemetry / day.bill),
        by_hour=[float(c / i) if i else None for c, i in zip(costs, inference, strict=True)],
        errors=(len(failed & traces), len(failed)),
        whole=sum(kept_of[t] == of_trace[t] for t in traces) / len(traces) if traces else 1.0,
        incidents={name: (len(them & traces), len(them)) for name, them in incidents.items()},
        agent=(sum(n in kept for n in agent), len(agent)),
    )


def rows(judged: Iterable[tuple[str, Judged]], day: Day) -> list[dict[str, object]]:
    """The table: a row a sampler."""
    return [
        {
            "sampler": name,
            "traces": j.traces,
            "spans": j.spans,
            "MB": round(j.nbytes / 1e6, 2),
            "telemetry_usd": round(j.telemetry, 4),
            "share": f"{j.share:.2%}",
            "worst_hour": f"{max((h for h in j.by_hour[1:] if h is not None), default=0):.2%}",
            "errors": f"{j.errors[0]} of {j.errors[1]}",
            **{
                name_: f"{j.incidents[name_][0]} of {j.incidents[name_][1]}"
                for name_ in INCIDENTS
                if name_ not in (AGENT, ERRORS)
            },
            "agent_spans": f"{j.agent[0]} of {j.agent[1]}",
            "whole_traces": f"{j.whole:.0%}",
        }
        for name, j in judged
    ]
