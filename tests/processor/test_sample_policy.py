"""Rules on columns: every condition on spans that real exporters could have sent, judged as by hand."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tollspan.pricing import PriceEngine, shipped_book
from tollspan.processor.charge import charge
from tollspan.processor.decode import decode
from tollspan.processor.identity import distinct, span_keys, trace_keys, words
from tollspan.processor.normalize import normalize
from tollspan.processor.recall import Identities
from tollspan.processor.sample.conditions import Level
from tollspan.processor.sample.levels import LAG, Figure, Levels
from tollspan.processor.sample.plain import Plain
from tollspan.processor.sample.policy import RulePolicy, thresholds
from tollspan.processor.sample.rules import parse_sampling, plain
from tollspan.processor.sample.spans_seen import key_of, picos
from tollspan.processor.sample.thresholds import NEVER, adjusted_count, threshold
from tollspan.processor.sample.traces_seen import MINUTE_NS, Traces
from tollspan.processor.sample.types import STRIPPED, Arrived, Due, Signs, Verdicts

from .otlp_factory import START, resource_spans, span

ENGINE: Final = PriceEngine(shipped_book())
MINUTE: Final = START // MINUTE_NS
SECOND: Final = 10**9
DOLLAR: Final = 10**12
SEED: Final = np.uint64(7)


class Trace:
    """Spans of one trace, as they would be sent."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.spans: list[tuple[Span, Mapping[str, object]]] = []

    def add(
        self,
        values: Mapping[str, object] | None = None,
        *,
        parent: int = 0,
        at: float = 0,
        lasts: float = 0.001,
        status: int = 0,
        resource: Mapping[str, object] | None = None,
        name: str = "work",
    ) -> Trace:
        """One span more; ``parent`` is the number of another of the trace, counted from 1; 0: it is a root."""
        number = len(self.spans) + 1
        begin = START + round(at * SECOND)
        made = span(
            values,
            trace_id=self.number.to_bytes(16, "big"),
            span_id=(self.number * 1000 + number).to_bytes(8, "big"),
            parent_span_id=(self.number * 1000 + parent).to_bytes(8, "big") if parent else b"",
            name=name,
            start_time_unix_nano=begin,
            end_time_unix_nano=begin + round(lasts * SECOND),
            status=Status(code=status),  # type: ignore[arg-type]
        )
        self.spans.append((made, {"service.name": "web", **(resource or {})}))
        return self

    def call(self, tokens: int = 1000, model: str = "gpt-5-mini", **more: Any) -> Trace:
        """A model call: gpt-5-mini takes $0.25 for a million input tokens, and $2 for a million output tokens."""
        values = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.usage.input_tokens": tokens,
            "gen_ai.usage.output_tokens": 0,
        }
        return self.add({**values, **more.pop("values", {})}, **more)


def arrived(spans: Sequence[tuple[Span, Mapping[str, object]]]) -> Arrived:
    """A batch out of real bytes, by the real stages before the policy."""
    request = ExportTraceServiceRequest(resource_spans=[resource_spans([one], resource) for one, resource in spans])
    decoded = decode([request.SerializeToString()])
    normalized = normalize(decoded, received_ns=START + 10**15)
    charged = charge(normalized, np.zeros(len(decoded), np.bool_), ENGINE)
    trace = words(decoded.spans["trace_id"], 2)
    span_, parent = (words(decoded.spans[name], 1)[:, 0] for name in ("span_id", "parent_span_id"))
    traces = trace_keys(trace, SEED)
    keys, parents = (span_keys(traces, each, SEED) for each in (span_, parent))
    return Arrived(
        decoded,
        normalized,
        charged,
        Identities(trace, span_, traces, keys, parents, parent == 0, keys, np.argsort(keys)),
    )


def due(policy: RulePolicy | Plain, batches: Sequence[Arrived], randomness: Mapping[int, int] | int = 0) -> Due:
    """All traces of some batches, in the order of their numbers."""
    signs = Signs.concat([policy.look(batch) for batch in batches])
    numbers = np.concatenate([batch.who.trace[:, 1] for batch in batches])
    known, _, group = distinct(numbers)
    values = [randomness if isinstance(randomness, int) else randomness[int(n)] for n in known]
    return Due(signs, group, len(known), np.array(values, np.uint64))


def judged(text: str, *traces: Trace, levels: Levels | None = None, randomness: Any = 0) -> Verdicts:
    policy = RulePolicy(parse_sampling(text.encode(), "s.yaml"), levels)
    return policy.decide(due(policy, [arrived([each for trace in traces for each in trace.spans])], randomness))


def matches(when: str, *traces: Trace, levels: Levels | None = None) -> list[bool]:
    """Which of the traces a rule with a condition matches."""
    policy = RulePolicy(parse_sampling(f"rules: [{{name: r, when: {when}, keep: always}}]".encode(), "s.yaml"), levels)
    verdicts = policy.decide(due(policy, [arrived([each for trace in traces for each in trace.spans])]))
    names = [policy.names[number] for number in verdicts.matched]
    return [name == "r" for name in names]


def trace(number: int = 1) -> Trace:
    return Trace(number)


# -- conditions of spans -----------------------------------------------------------------------------------------------

ERROR: Final = 2


@pytest.mark.parametrize(
    ("when", "yes", "no"),
    [
        ("{error: true}", trace().add().add(parent=1, status=ERROR), trace(2).add(status=1)),
        ("{error: false}", trace().add(status=1), trace(2).add().add(status=ERROR)),
        ("{status: [ok, unset]}", trace().add(status=1), trace(2).add(status=ERROR)),
        (
            "{http_status: [429, 5xx]}",
            trace().add({"http.response.status_code": 503}),
            trace(2).add({"http.response.status_code": 404}).add(),
        ),
        ("{http_status: 429}", trace().add({"http.status_code": 429}), trace(2).add({"other": 429})),
        ("{error_type: [timeout]}", trace().add({"error.type": "timeout"}), trace(2).add({"error.type": "other"})),
        ("{cold_start: true}", trace().add({"tollspan.cold_start": True}), trace(2).add()),
        ("{cold_start: false}", trace().add(), trace(2).add({"tollspan.cold_start": True})),
        ("{unpriced: true}", trace().call(model="nobody-knows"), trace(2).call()),
        ("{cost_status: priced}", trace().call(), trace(2).add()),
        ("{tenant: acme}", trace().add({"tollspan.tenant": "acme"}), trace(2).add({"tollspan.tenant": "wile"})),
        ("{tenant: acme}", trace().add(resource={"tollspan.tenant": "acme"}), trace(2).add()),
        ("{tenant: {exists: true}}", trace().add({"tollspan.tenant": "x"}), trace(2).add()),
        ("{tenant: {exists: false}}", trace().add(), trace(2).add({"tollspan.tenant": "x"})),
        (
            "{environment: {regex: ^prod}}",
            trace().add(resource={"deployment.environment.name": "prod-eu"}),
            trace(2).add(resource={"deployment.environment.name": "preprod"}),
        ),
        ("{feature: [a, b]}", trace().add({"tollspan.feature": "b"}), trace(2).add({"tollspan.feature": "c"})),
        ("{model: {regex: mini}}", trace().call(), trace(2).call(model="gpt-5")),
        ("{provider: openai}", trace().call(), trace(2).add()),
        ("{operation: chat, kind: inference}", trace().call(), trace(2).add()),
        ("{service: web}", trace().add(), trace(2).add(resource={"service.name": "shop"})),
        ("{name: GET /a}", trace().add(name="GET /a"), trace(2).add(name="GET /b")),
        (
            "{version: {regex: '^2[.]'}}",
            trace().add(resource={"service.version": "2.1"}),
            trace(2).add(resource={"service.version": "12.1"}).add({"service.version": "2.1"}),
        ),
        ("{attributes: {a.b: 5}}", trace().add({"a.b": 5}), trace(2).add({"a.b": 6}).add({"b": 5})),
        ("{attributes: {a: 5}}", trace().add({"a": 5.0}), trace(2).add({"a": 5.5})),
        ("{attributes: {a: true}}", trace().add({"a": True}), trace(2).add({"a": False})),
        ("{attributes: {a: {in: [x, y]}}}", trace().add({"a": "y"}), trace(2).add({"a": "z"})),
        ("{attributes: {a: {regex: 'y$'}}}", trace().add({"a": "xy"}), trace(2).add({"a": "yx"})),
        ("{attributes: {a: {range: [1, 2]}}}", trace().add({"a": 2}), trace(2).add({"a": 2.5}).add({"a": "2"})),
        ("{attributes: {a: {range: [null, 0]}}}", trace().add({"a": -0.5}), trace(2).add({"a": float("nan")})),
        ("{attributes: {a: {exists: true}}}", trace().add({"a": [1, 2]}), trace(2).add({"a": None}).add()),
        ("{attributes: {a: {exists: false}}}", trace().add({"b": 1}), trace(2).add().add({"a": 1})),
        ("{attributes: {a: 1, b: 2}}", trace().add({"a": 1}).add({"b": 2}), trace(2).add({"a": 1, "b": 3})),
        (
            "{resource: {k8s.pod.name: p}}",
            trace().add(resource={"k8s.pod.name": "p"}),
            trace(2).add({"k8s.pod.name": "p"}),
        ),
        (
            "{span: {error: true, tenant: acme}}",
            trace().add({"tollspan.tenant": "acme"}, status=ERROR),
            trace(2).add({"tollspan.tenant": "acme"}).add(status=ERROR),
        ),
        (
            "{span: {error: true, not: {tenant: acme}}}",
            trace().add({"tollspan.tenant": "acme"}).add(status=ERROR),
            trace(2).add({"tollspan.tenant": "acme"}, status=ERROR),
        ),
        ("{root: {name: a}}", trace().add(name="a"), trace(2).add(name="b").add(name="a", parent=1)),
        ("{error: true, tenant: acme}", trace().add({"tollspan.tenant": "acme"}).add(status=ERROR), trace(2).add()),
        ("{any: [{error: true}, {name: a}]}", trace().add(name="a"), trace(2).add()),
        ("{not: {error: true, name: a}}", trace().add(name="a"), trace(2).add(name="a", status=ERROR)),
        ("{all: [{error: true}, {not: {name: a}}]}", trace().add(status=ERROR), trace(2).add(name="a", status=ERROR)),
    ],
)
def test_a_condition_of_spans(when: str, yes: Trace, no: Trace) -> None:
    assert matches(when, yes, no) == [True, False]
    assert matches(when, yes) == [True]
    assert matches(when, no) == [False]


def test_what_the_program_asks_for_stands_above_the_rules() -> None:
    kept, dropped, both = (
        trace(1).add({"tollspan.sampling.keep": True}),
        trace(2).add({"tollspan.sampling.keep": False}, status=ERROR),
        trace(3).add({"tollspan.sampling.keep": False}).add({"tollspan.sampling.keep": True}),
    )
    said_wrongly = trace(4).add({"tollspan.sampling.keep": "true"})
    text = "rules: [{name: r, when: {error: true}, keep: always}]\nbase: {keep: never}"
    verdicts = judged(text, kept, dropped, both, said_wrongly)
    policy = RulePolicy(parse_sampling(text.encode(), "s.yaml"))
    assert [policy.reasons[n] for n in verdicts.rule] == ["keep", "", "keep", ""]
    assert [policy.reasons[n] for n in verdicts.matched] == ["keep", "drop", "keep", "probability"]


def test_many_conditions_have_bits_of_their_own() -> None:
    rules = "\n".join(f"- {{name: r{n}, when: {{attributes: {{a: {n}}}}}, keep: always}}" for n in range(150))
    traces = [trace(n + 1).add({"a": n}) for n in range(150)]
    verdicts = judged(f"rules:\n{rules}\n", *traces)
    assert verdicts.matched.tolist() == [n + 3 for n in range(150)]


# -- conditions of traces ----------------------------------------------------------------------------------------------


def at(minute: int, level: Level, figures: Mapping[str, int]) -> Levels:
    """Figures that are in force for traces that start a few minutes later."""
    keys = np.array([key_of(key) for key in figures], np.uint64)
    order = np.argsort(keys)
    table = (keys[order], np.array(list(figures.values()), np.int64)[order])
    return Levels.by_hand(tables={minute - LAG: {level: table}})


def test_slow_is_from_the_first_start_to_the_last_end() -> None:
    fast = trace(1).add(lasts=4).add(parent=1, at=3.5, lasts=1.5)
    slow = trace(2).add(lasts=4).add(parent=1, at=3.5, lasts=1.6)
    assert matches("{slow: 5s}", fast, slow) == [False, True]


def test_slow_above_the_level_of_its_route() -> None:
    level = Level("duration", "route", "quantile", 60, 100, (0.99,))
    levels = at(MINUTE, level, {"web | GET /a": 2 * SECOND, "web | GET /b": 9 * SECOND})
    traces = [
        trace(1).add(name="GET /a", lasts=3),
        trace(2).add(name="GET /a", lasts=1),
        trace(3).add(name="GET /b", lasts=3).add(name="GET /a", parent=1),
        trace(4).add(name="GET /c", lasts=99),
        trace(5).add(name="GET /a", lasts=99, parent=7),  # whose root has not come
        trace(6).add(name="GET /a", lasts=99, resource={"service.name": "shop"}),
    ]
    when = "{slow: {above: p99, of: route}}"
    assert matches(when, *traces, levels=levels) == [True, False, False, False, False, False]
    assert matches(when, *traces) == [False] * 6, "no level, no match"


def test_a_trace_is_judged_by_the_levels_of_the_minute_of_its_root() -> None:
    level = Level("duration", "", "quantile", 60, 100, (0.9,))
    nothing = np.zeros(1, np.uint64)
    levels = Levels.by_hand(
        tables={MINUTE + n - LAG: {level: (nothing, np.array([n * SECOND]))} for n in (0, 10, 20)},
    )
    when = "{slow: {above: p90}}"
    for start, expected in ((0, True), (599 - START / SECOND % 60, True), (600, False), (1300, False)):
        one = trace().add(at=start, lasts=5)
        assert matches(when, one, levels=levels) == [expected], start
    # An earlier span with another clock does not decide where there is a root.
    assert matches(when, trace().add(at=700, lasts=5).add(parent=1, at=10, lasts=1), levels=levels) == [True]
    assert matches(when, trace().add(at=700, lasts=5, parent=9).add(parent=1, at=690, lasts=1), levels=levels) == [True]


def test_expensive_is_exact_to_the_last_digit() -> None:
    # 4,000,000 × 0.25 / 1,000,000 = 1 USD, in two calls.
    one = trace(1).call(3_000_000).call(1_000_000)
    more = trace(2).call(3_000_000).call(1_000_001)
    assert matches("{expensive: 1}", one, more) == [False, True]
    assert matches('{expensive: "1.00000025"}', one, more) == [False, False]
    assert matches('{expensive: "1.000000249999"}', one, more) == [False, True]


def test_costs_larger_than_any_are_cut_and_do_not_wrap() -> None:
    import decimal

    import pyarrow as pa

    values = [decimal.Decimal("9999999999"), decimal.Decimal("-1"), None, decimal.Decimal("0.000000000001")]
    assert picos(pa.array(values, pa.decimal128(38, 12))).tolist() == [2**63 - 1, -(10**12), 0, 1]
    signs = Signs({"marks0": np.zeros(4, np.uint64), "cost": np.full(4, 2**62, np.int64)}, 4)
    seen = Traces(Due(signs, np.zeros(4, np.int64), 1, np.zeros(1, np.uint64)), {}, None)
    assert seen.cost.tolist() == [2**63 - 1]


def test_expensive_among_traces_of_its_feature() -> None:
    level = Level("trace_cost", "feature", "quantile", 60, 100, (0.99,))
    levels = at(MINUTE, level, {"search": DOLLAR, "chat": 3 * DOLLAR})
    dear = {"tokens": 8_000_000}
    traces = [
        trace(1).add({"tollspan.feature": "search"}).call(**dear, parent=1),
        trace(2).add({"tollspan.feature": "chat"}).call(**dear, parent=1),
        trace(3).add().call(**dear, parent=1, values={"tollspan.feature": "search"}),
        trace(4).call(**dear),
    ]
    assert matches("{expensive: {above: p99, of: feature}}", *traces, levels=levels) == [True, False, True, False]


def test_expensive_among_calls_of_its_model() -> None:
    level = Level("call_cost", "model", "quantile", 60, 100, (0.99,))
    levels = at(MINUTE, level, {"gpt-5-mini": DOLLAR})
    traces = [
        trace(1).add().call(8_000_000, parent=1),
        trace(2).add().call(3_000_000, parent=1).call(3_000_000, parent=1),
        trace(3).call(8_000_000, model="gpt-5"),
    ]
    assert matches("{expensive: {above: p99, of: model}}", *traces, levels=levels) == [True, False, False]


def test_the_dearest_of_a_minute_and_what_costs_more_than_its_history() -> None:
    top = at(MINUTE, Level("trace_cost", "", "top", 1, 0, (5.0,)), {"": DOLLAR})
    traces = [trace(1).call(4_000_004), trace(2).call(4_000_000)]
    assert matches("{expensive: {top: 5}}", *traces, levels=top) == [True, False]
    history = at(MINUTE, Level("trace_cost", "", "anomaly", 24 * 60, 100, (6.0, 3.0)), {"": DOLLAR})
    assert matches("{anomaly: {}}", *traces, levels=history) == [True, False]


def test_rare_is_what_few_had_and_nothing_where_nobody_counted() -> None:
    level = Level("seen", "model", "count", 24 * 60)
    levels = at(MINUTE, level, {"gpt-5-mini": 5000, "gpt-5": 19})
    traces = [
        trace(1).call(),
        trace(2).call(model="gpt-5"),
        trace(3).call().call(model="brand-new"),
        trace(4).add(),  # no model
        trace(5).add({"gen_ai.operation.name": "chat", "gen_ai.request.model": "asked-for"}),
    ]
    assert matches("{rare: model}", *traces, levels=levels) == [False, True, True, False, True]
    assert matches("{rare: {of: model, fewer_than: 19}}", *traces, levels=levels) == [False, False, True, False, True]
    assert matches("{rare: model}", *traces) == [False] * 5
    empty = at(MINUTE, level, {})
    assert matches("{rare: model}", *traces, levels=empty) == [True, True, True, False, True]


def test_rare_versions_are_counted_by_the_processors_themselves() -> None:
    level = Level("seen", "version", "count", 24 * 60)
    levels = at(MINUTE, level, {"1.0": 100})
    told: list[tuple[Any, ...]] = []
    levels.count = lambda *args: told.append(args)  # type: ignore[method-assign]
    traces = [
        trace(1).add(resource={"service.version": "1.0"}),
        trace(2).add(resource={"service.version": "1.1"}).add(parent=1, resource={"service.version": "1.1"}),
        trace(3).add(resource={"service.version": "1.1"}, at=61),
        trace(4).add(),
    ]
    assert matches("{rare: version}", *traces, levels=levels) == [False, True, True, False]
    assert sorted(told) == [
        ("seen", "version", MINUTE, "1.0", 1),
        ("seen", "version", MINUTE, "1.1", 1),
        ("seen", "version", MINUTE + 1, "1.1", 1),
    ]


@pytest.mark.parametrize(
    ("when", "yes", "no"),
    [
        ("{spans: 3}", trace(1).add().add().add(), trace(2).add().add()),
        ("{loop: {calls: 2}}", trace(1).call().call(), trace(2).call().add()),
        (
            "{loop: {retries: 3}}",
            trace(1).call(values={"tollspan.retries": 2}).call(values={"tollspan.retries": 1}),
            trace(2).call(values={"tollspan.retries": 2}).call(),
        ),
        (
            "{loop: {same_request: 3}}",
            trace(1).call(values={"tollspan.request.fingerprint": "a" * 32}).call(
                values={"tollspan.request.fingerprint": "b" * 32}
            ).call(values={"tollspan.request.fingerprint": "a" * 32}).call(
                values={"tollspan.request.fingerprint": "a" * 32}
            ),
            trace(2).call(values={"tollspan.request.fingerprint": "a" * 32}).call(
                values={"tollspan.request.fingerprint": "a" * 32}
            ).call(values={"tollspan.request.fingerprint": "c" * 32}).call().call().call(),
        ),
        (
            "{loop: {depth: 4}}",
            trace(1).add().add(parent=1).add(parent=2).add(parent=3),
            trace(2).add().add(parent=1).add(parent=1).add(parent=2),
        ),
        (
            "{loop: {depth: 3}}",
            trace(1).add(parent=9).add(parent=1).add(parent=2),
            trace(2).add(parent=9).add(parent=1),
        ),
        (
            "{loop: {growing: 3}}",
            trace(1).call(9, at=1).call(3, at=2).call(5, at=3).call(6, at=4).call(6, at=5),
            trace(2).call(3, at=1).call(5, at=2).call(5, at=3).call(6, at=4).call(2, at=5),
        ),
        # In the order of time, whatever they were sent in; and calls at once are no chain.
        ("{loop: {growing: 3}}", trace(1).call(9, at=3).call(3, at=1).call(5, at=2), trace(2).call(3).call(5).call(6)),
    ],
)  # fmt: skip
def test_loops(when: str, yes: Trace, no: Trace) -> None:
    assert matches(when, yes, no) == [True, False]


def test_spans_that_are_each_others_parents_are_an_end_of_their_own() -> None:
    ring = trace(1).add(parent=2).add(parent=1)
    self_ = trace(2).add(parent=1)
    assert matches("{loop: {depth: 1000}}", ring, self_) == [True, False], "a ring has no end; it is looked at so deep"


# -- rates, base, budget -----------------------------------------------------------------------------------------------

HALF: Final = threshold(0.5)


def test_the_first_rule_that_matches_decides_also_where_chance_rejects() -> None:
    text = """
rules:
  - {name: half, when: {tenant: a}, keep: 50%}
  - {name: errors, when: {error: true}, keep: always}
  - {name: never, when: {name: probe}, keep: never}
base: {keep: 10%}
"""
    traces = [
        trace(1).add({"tollspan.tenant": "a"}, status=ERROR),
        trace(2).add({"tollspan.tenant": "a"}, status=ERROR),
        trace(3).add(status=ERROR),
        trace(4).add(name="probe"),
        trace(5).add(),
        trace(6).add(),
    ]
    chance = {1: HALF - 1, 2: HALF, 3: 0, 4: NEVER - 1, 5: threshold(0.1) - 1, 6: threshold(0.1)}
    policy = RulePolicy(parse_sampling(text.encode(), "s.yaml"))
    verdicts = judged(text, *traces, randomness=chance)
    assert [policy.names[n] for n in verdicts.rule] == ["", "half", "errors", "", "", "base"]
    assert [policy.names[n] for n in verdicts.matched] == ["half", "half", "errors", "never", "base", "base"]
    assert verdicts.threshold.tolist() == [HALF, HALF, 0, NEVER, threshold(0.1), threshold(0.1)]
    assert dict(zip(policy.names, zip(policy.certain, policy.steered, strict=True), strict=True)) == {
        "": (False, False),
        "keep": (True, False),
        "drop": (False, False),
        "half": (False, False),
        "errors": (True, False),
        "never": (False, False),
        "base": (False, True),
    }


def test_shares_in_proportion_to_cost() -> None:
    text = "base: {keep: 10%, by: cost, floor: 1%}"
    level = Level("trace_cost", "", "scale", 60, 100, (0.1, 0.01))
    levels = at(MINUTE, level, {"": 10 * DOLLAR})
    traces = [
        trace(1).call(4_000_000),  # 1 USD of 10
        trace(2).call(400_000_000),  # 100 USD: certain
        trace(3).call(4),  # next to nothing: the floor
        trace(4).call(model="nobody-knows"),  # nobody knows: the mean
        trace(5).add(),
    ]
    verdicts = judged(text, *traces, levels=levels)
    assert verdicts.threshold.tolist() == [threshold(p) for p in (0.1, 1, 0.01, 0.1, 0.1)]
    assert judged(text, *traces).threshold.tolist() == [threshold(0.1)] * 5, "before there is any figure"


def test_thresholds_of_arrays_are_those_of_numbers() -> None:
    shares = np.random.default_rng(1).random(1000)
    assert thresholds(shares).tolist() == [threshold(float(share)) for share in shares]
    assert thresholds(np.array([0.0, 1.0])).tolist() == [NEVER, 0]


def test_a_budget_moves_the_base_and_sheds_its_content_and_leaves_rules_alone() -> None:
    text = "rules: [{name: errors, when: {error: true}, keep: always}, {when: {name: x}, keep: 50%}]\nbase: {keep: 40%}"
    levels = Levels.by_hand(
        [
            Figure(MINUTE, "base_rate", "", "", 0.5),
            Figure(MINUTE, "base_rate", "tenant", "poor", 0.25),
            Figure(MINUTE, "content_rate", "", "", 0.5),
            Figure(MINUTE + 1, "base_rate", "", "", 0.0),
        ]
    )
    sampling = parse_sampling(text.encode(), "s.yaml")
    policy = RulePolicy(sampling, levels, steered=True)
    traces = [
        trace(1).add(),
        trace(2).add(),
        trace(3).add({"tollspan.tenant": "poor"}),
        trace(4).add(status=ERROR),
        trace(5).add(name="x"),
        trace(6).add(at=61),
    ]
    chance = {1: threshold(0.1) - 1, 2: threshold(0.1), 3: NEVER - 1, 4: 0, 5: HALF, 6: NEVER - 1}
    batch = arrived([each for one in traces for each in one.spans])
    verdicts = policy.decide(due(policy, [batch], chance))
    assert verdicts.threshold.tolist() == [*map(threshold, (0.2, 0.2, 0.1, 1, 0.5, 0))]
    assert verdicts.full.tolist() == [*map(threshold, (0.4, 0.4, 0.4, 1, 0.5, 0.4))]
    assert (verdicts.content == STRIPPED).tolist() == [True, False, False, False, False, False]
    assert (verdicts.rule > 0).tolist() == [True, True, True, True, True, False]
    unsteered = RulePolicy(sampling, levels)
    assert unsteered.decide(due(unsteered, [batch], chance)).threshold[0] == threshold(0.4)


def test_a_rule_can_do_without_content() -> None:
    text = "rules: [{when: {error: true}, keep: always, content: remove}]\nbase: {keep: always}"
    verdicts = judged(text, trace(1).add(status=ERROR), trace(2).add())
    assert (verdicts.content == STRIPPED).tolist() == [True, False]


def test_plain_rules_say_what_the_policy_without_a_file_says() -> None:
    rng = random.Random(1)
    traces = []
    for number in range(1, 200):
        one = trace(number)
        for _ in range(rng.randint(1, 4)):
            asked = rng.choice([None, None, True, False])
            one.add({} if asked is None else {"tollspan.sampling.keep": asked}, status=rng.choice([0, 0, 0, 1, 2]))
        traces.append(one)
    batch = arrived([each for one in traces for each in one.spans])
    chance = {number: rng.getrandbits(56) for number in range(1, 200)}
    mine, theirs = RulePolicy(plain(0.3)), Plain(0.3)
    one, other = (policy.decide(due(policy, [batch], chance)) for policy in (mine, theirs))
    assert list(mine.reasons) == list(theirs.reasons)
    for field in ("rule", "matched", "threshold", "full", "content"):
        assert getattr(one, field).tolist() == getattr(other, field).tolist()
    assert len(set(one.matched.tolist())) == 4


def test_estimates_are_unbiased_whatever_rules_look_at() -> None:
    """Σ adjusted count, and Σ adjusted count × cost, over 200 seeds."""
    text = """
rules:
  - {when: {error: true}, keep: 50%}
  - {when: {expensive: 0.5}, keep: always}
base: {keep: 10%, by: cost, floor: 2%}
"""
    level = Level("trace_cost", "", "scale", 60, 100, (0.1, 0.02))
    policy = RulePolicy(parse_sampling(text.encode(), "s.yaml"), at(MINUTE, level, {"": DOLLAR}))
    rng = random.Random(5)
    traces = [
        trace(number).call(round(4_000_000 * rng.random() ** 6), status=ERROR if rng.random() < 0.1 else 0)
        for number in range(1, 401)
    ]
    signs = due(policy, [arrived([each for one in traces for each in one.spans])])
    cost = Traces(signs, policy._bits, None).cost.astype(np.float64)
    estimates, errors = [], []
    for seed in range(200):
        chance = np.random.default_rng(seed).integers(0, NEVER, signs.traces, dtype=np.uint64)
        verdicts = policy.decide(Due(signs.signs, signs.group, signs.traces, chance))
        kept = verdicts.rule > 0
        weight = np.array([adjusted_count(int(each)) for each in verdicts.threshold[kept]])
        estimates.append((weight.sum(), (weight * cost[kept]).sum()))
        errors.append(((weight * (weight - 1)).sum(), (weight * (weight - 1) * cost[kept] ** 2).sum()))
    mean, spread = np.mean(estimates, axis=0), np.sqrt(np.mean(errors, axis=0) / 200)
    truth = np.array([len(traces), cost.sum()])
    assert (np.abs(mean - truth) < 4 * spread).all(), (mean, truth, spread)


# -- the same decision whatever the way ----------------------------------------------------------------------------

RULES: Final = """
rules:
  - {name: errors, when: {error: true}, keep: always}
  - {name: loops, when: {loop: {same_request: 3, growing: 3, depth: 4, calls: 6}}, keep: 90%}
  - {name: slow, when: {slow: {above: p99, of: route}}, keep: 80%}
  - {name: dear, when: {any: [{expensive: {above: p99, of: feature}}, {expensive: {above: p99, of: model}}]}, keep: 70%}
  - {name: rare, when: {rare: model}, keep: 60%}
  - {name: tagged, when: {span: {tenant: a, attributes: {n: {range: [1, 2]}}}, not: {name: probe}}, keep: 50%}
  - {name: many, when: {spans: 5}, keep: 40%}
base: {keep: 30%, by: cost}
"""


def world() -> Levels:
    """Levels of a few minutes for `RULES`."""
    sampling = parse_sampling(RULES.encode(), "s.yaml")
    tables = {}
    for n in range(-3, 4):
        of_minute = {}
        for level in RulePolicy(sampling).levels_needed:
            names = {"route": ["web | probe", "web | work"], "feature": ["f", "g"], "model": ["gpt-5-mini"], "": [""]}
            keys = np.array([key_of(key) for key in names[level.dimension]], np.uint64)
            base = {"duration": SECOND // 2, "seen": 30}.get(level.metric, DOLLAR // 1000)
            of_minute[level] = (np.sort(keys), np.arange(1, len(keys) + 1) * base * (n + 5))
        tables[MINUTE - LAG + n] = of_minute
    return Levels.by_hand(tables=tables)


spans_of_a_trace = st.lists(
    st.fixed_dictionaries(
        {
            "parent": st.integers(0, 6),
            "at": st.sampled_from([0.0, 0.5, 1.0, 30.0, 70.0, 130.0]),
            "lasts": st.sampled_from([0.001, 1.0, 5.0]),
            "status": st.sampled_from([0, 0, 0, 0, 0, 2]),
            "name": st.sampled_from(["work", "probe"]),
            "tokens": st.sampled_from([None, 10, 20, 30, 100_000]),
            "values": st.fixed_dictionaries(
                {},
                optional={
                    "tollspan.tenant": st.sampled_from(["a", "b"]),
                    "tollspan.feature": st.sampled_from(["f", "g"]),
                    "n": st.integers(0, 3),
                    "tollspan.request.fingerprint": st.sampled_from(["a" * 32, "b" * 32]),
                },
            ),
        }
    ),
    min_size=1,
    max_size=6,
)


def built(worlds: list[list[dict[str, Any]]]) -> list[Trace]:
    traces = []
    for number, spans in enumerate(worlds, 1):
        one = trace(number)
        for each in spans:
            each = dict(each)
            tokens = each.pop("tokens")
            model = "gpt-5-mini" if tokens != 20 else "gpt-5"
            if tokens is None:
                one.add(each.pop("values"), **each)
            else:
                one.call(tokens, model=model, **each)
        traces.append(one)
    return traces


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(spans_of_a_trace, min_size=1, max_size=8), st.randoms(use_true_random=False), st.integers(1, 4))
def test_two_replicas_decide_alike_in_any_order_and_any_batching(
    worlds: list[list[dict[str, Any]]], rng: random.Random, parts: int
) -> None:
    traces = built(worlds)
    chance = {number: rng.getrandbits(56) for number in range(1, len(traces) + 1)}
    everything = [each for one in traces for each in one.spans]
    levels = world()
    first = RulePolicy(parse_sampling(RULES.encode(), "s.yaml"), levels)
    expected = first.decide(due(first, [arrived(everything)], chance))
    rng.shuffle(everything)
    cut = [everything[n::parts] for n in range(parts) if everything[n::parts]]
    second = RulePolicy(parse_sampling(RULES.encode(), "s.yaml"), world())
    found = second.decide(due(second, [arrived(part) for part in cut], chance))
    for field in ("rule", "matched", "threshold", "full", "content"):
        assert getattr(found, field).tolist() == getattr(expected, field).tolist(), field
    # Each trace for itself: nothing depends on what else is due.
    for number, one in enumerate(traces, 1):
        alone = second.decide(due(second, [arrived(one.spans)], {number: chance[number]}))
        assert alone.rule.tolist() == expected.rule[number - 1 : number].tolist()


FOLDS: Final = """
rules:
  - {name: errors, when: {error: true}, keep: always}
  - {name: loops, when: {loop: {same_request: 3, calls: 4, retries: 9}}, keep: 90%}
  - {name: dear, when: {expensive: 0.01}, keep: 70%}
  - {name: slow, when: {slow: 31s}, keep: 80%}
  - {name: tagged, when: {tenant: a}, keep: 50%}
  - {name: many, when: {spans: 5}, keep: 40%}
"""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(spans_of_a_trace, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_what_is_folded_is_judged_as_the_spans_would_be(worlds: list[list[dict[str, Any]]], rng: random.Random) -> None:
    traces = built(worlds)
    policy = RulePolicy(parse_sampling(FOLDS.encode(), "s.yaml"))
    everything = [each for one in traces for each in one.spans]
    chance = {number: rng.getrandbits(56) for number in range(1, len(traces) + 1)}
    expected = policy.decide(due(policy, [arrived(everything)], chance))
    rng.shuffle(everything)
    whole = due(policy, [arrived(everything)], chance)
    early = np.array([rng.random() < 0.5 for _ in everything])
    if not early.any():
        early[0] = True
    known, number = np.unique(whole.group[early], return_inverse=True)
    part = Due(whole.signs.select(np.flatnonzero(early)), number, len(known), whole.randomness[known])
    folded = policy.fold(part)
    assert {name: values.dtype for name, values in folded.columns.items()} == {
        name: values.dtype for name, values in whole.signs.columns.items()
    }
    # Which of several most frequent requests a fold keeps, is the one that the whole would have to have too.
    later = np.flatnonzero(~early)
    signs = Signs.concat([whole.signs.select(later), folded])
    group = np.concatenate([whole.group[later], known])
    found = policy.decide(Due(signs, group, whole.traces, whole.randomness))
    requests = [[each[0] for each in one.spans] for one in traces]
    for n, (mine, theirs) in enumerate(zip(found.rule.tolist(), expected.rule.tolist(), strict=True)):
        fingerprints = {
            attribute.value.string_value
            for each in requests[n]
            for attribute in each.attributes
            if attribute.key == "tollspan.request.fingerprint"
        }
        if len(fingerprints) < 2:
            assert mine == theirs


def test_keys_are_the_same_in_every_process() -> None:
    assert key_of("web | GET /a") == 0xAD7B123A5D12DAA9
    assert key_of("") == 0
