"""The sampling file: what it may say, and every mistake told with its line."""

from __future__ import annotations

import json
import logging
import os
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tollspan.processor.counters import Counters
from tollspan.processor.sample import condition_fields as fields
from tollspan.processor.sample import rules
from tollspan.processor.sample.conditions import (
    KEYS,
    All,
    AnyOf,
    AtLeast,
    Attribute,
    Condition,
    Expensive,
    HttpStatus,
    Level,
    Marked,
    Not,
    Rare,
    Root,
    Slow,
    Some,
    Status,
    Text,
    implies,
    impossible,
)
from tollspan.processor.sample.file import SamplingFile
from tollspan.processor.sample.matchers import PRESENT, OneOf, Pattern, Range
from tollspan.processor.sample.rules import Sampling, SamplingError, parse_sampling, plain, read_sampling

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "sampling" / "sampling.yaml"
SCHEMA: Final = json.loads(files("tollspan.processor.sample").joinpath("sampling.schema.json").read_text())


def read(text: str) -> Sampling:
    return parse_sampling(text.encode(), "s.yaml")


def when(text: str) -> Condition:
    """A rule's condition, from flow YAML."""
    sampling = read(f"rules: [{{name: r, when: {text}, keep: always}}]")
    (rule,) = (rule for rule in sampling.rules if rule.name == "r")
    return rule.when


def one_of(*values: str) -> OneOf:
    return OneOf(frozenset(values))


ERROR: Final = Some(Status(frozenset({"error"})))

# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("{error: true}", ERROR),
        ("{error: false}", Not(ERROR)),
        ("{status: [error, unset]}", Some(Status(frozenset({"error", "unset"})))),
        ("{http_status: [429, 500-503, 4xx]}", Some(HttpStatus(((429, 429), (500, 503), (400, 499))))),
        ("{tenant: acme}", Some(Text("tenant", one_of("acme")))),
        ("{tenant: [acme, wile]}", Some(Text("tenant", one_of("acme", "wile")))),
        ("{environment: {regex: ^prod}}", Some(Text("environment", Pattern("^prod")))),
        ("{tenant: {exists: false}}", Not(Some(Text("tenant", PRESENT)))),
        ("{name: GET /}", Some(Text("name", one_of("GET /")))),
        ("{version: {equals: 1.10}}", Some(Attribute("service.version", True, one_of("1.10")))),
        ("{attributes: {a.b: {range: [1, null]}}}", Some(Attribute("a.b", False, Range(1.0, None)))),
        ("{attributes: {a: true}}", Some(Attribute("a", False, one_of("true")))),
        ("{resource: {k8s.pod.name: {in: [x, 5]}}}", Some(Attribute("k8s.pod.name", True, one_of("x", "5")))),
        ("{marked: keep}", Some(Marked(True))),
        ("{slow: 1500ms}", Slow(1_500_000_000)),
        ("{slow: {over: 2m}}", Slow(120 * 10**9)),
        (
            "{slow: {above: p99.9, of: route, window: 30m, least: 7}}",
            Slow(None, Level("duration", "route", "quantile", 30, 7, (0.999,))),
        ),
        ("{expensive: 0.000000000001}", Expensive(1)),
        ('{expensive: {over: "1.5"}}', Expensive(1_500_000_000_000)),
        ("{expensive: {above: p95}}", Expensive(None, Level("trace_cost", "", "quantile", 60, 100, (0.95,)))),
        (
            "{expensive: {above: p95, of: model}}",
            Expensive(None, Level("call_cost", "model", "quantile", 60, 100, (0.95,))),
        ),
        ("{expensive: {top: 5}}", Expensive(None, Level("trace_cost", "", "top", 1, 0, (5.0,)))),
        ("{rare: model}", Rare(20, Level("seen", "model", "count", 24 * 60))),
        ("{rare: {of: version, fewer_than: 3, window: 6h}}", Rare(3, Level("seen", "version", "count", 360))),
        ("{loop: {same_request: 4}}", AtLeast("same_request", 4)),
        ("{loop: {depth: 9, calls: 40}}", AnyOf((AtLeast("depth", 9), AtLeast("calls", 40)))),
        ("{spans: 1000}", AtLeast("spans", 1000)),
        ("{error: true, tenant: a}", All((ERROR, Some(Text("tenant", one_of("a")))))),
        ("{any: [{error: true}, {slow: 5s}]}", AnyOf((ERROR, Slow(5 * 10**9)))),
        ("{not: {error: true, tenant: a}}", Not(All((ERROR, Some(Text("tenant", one_of("a"))))))),
        (
            "{span: {error: true, not: {tenant: a}}}",
            Some(All((Status(frozenset({"error"})), Not(Text("tenant", one_of("a")))))),
        ),
        ("{root: {name: chat}}", Some(All((Root(), Text("name", one_of("chat")))))),
    ],
)
def test_conditions_are_read(text: str, condition: Condition) -> None:
    assert when(text) == condition


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{error: true}", "error"),
        ("{status: unset}", "status"),
        ("{http_status: 500}", "status"),
        ("{error_type: timeout}", "status"),
        ("{slow: 5s, tenant: a}", "slow"),
        ("{expensive: 1, slow: 5s}", "expensive"),
        ("{anomaly: feature}", "anomaly"),
        ("{unpriced: true}", "unpriced"),
        ("{rare: tenant}", "rare"),
        ("{loop: {calls: 9}}", "loop"),
        ("{cold_start: true}", "cold_start"),
        ("{marked: drop}", "drop"),
        ("{tenant: a, not: {error: true}}", "match"),
        ("{span: {error: true}}", "error"),
        ("{spans: 9}", "match"),
    ],
)
def test_the_reason_is_the_kind_of_the_rule(text: str, reason: str) -> None:
    sampling = read(f"rules: [{{when: {text}, keep: always}}]")
    rule = next(rule for rule in sampling.rules if rule.line)
    assert rule.reason == reason
    assert rule.name == reason, "rules without a name are called by their reason"


@pytest.mark.parametrize(
    ("text", "rate"), [("always", 1), ("never", 0), ("0.25", 0.25), ("25%", 0.25), (".5 %", 0.005)]
)
def test_rates(text: str, rate: float) -> None:
    sampling = read(f"rules: [{{name: r, when: {{error: true}}, keep: {text}}}]\nbase: {{keep: {text}}}")
    assert sampling.rules[-1].rate == sampling.base.share == rate


def test_what_the_program_asks_for_comes_first_unless_the_file_speaks_of_it() -> None:
    silent = read("rules: [{name: r, when: {error: true}, keep: always}]")
    assert [rule.name for rule in silent.rules] == ["keep", "drop", "r"]
    spoken = read("rules: [{name: r, when: {marked: keep, tenant: a}, keep: 50%}]")
    assert [rule.name for rule in spoken.rules] == ["r"]


def test_the_base_is_what_the_settings_say_where_the_file_says_nothing() -> None:
    assert parse_sampling(b"rules: []\n", "s.yaml", keep=0.4).base.share == 0.4
    assert parse_sampling(b"base: {content: remove}\n", "s.yaml", keep=0.4).base == rules.Base(0.4, content=False)
    scaled = read("base: {keep: 10%, by: cost}").base
    assert scaled.scale == Level("trace_cost", "", "scale", 60, 100, (0.1, 0.01))
    assert scaled.floor == 0.01
    assert read("base: {keep: 0, by: cost}").base.scale is None, "nothing has no proportions"


def test_without_a_file_errors_are_kept_and_a_share() -> None:
    assert [(rule.name, rule.rate) for rule in plain(0.1).rules] == [("keep", 1), ("drop", 0), ("error", 1)]
    assert plain(0.1).base.share == 0.1


# -- mistakes ----------------------------------------------------------------------------------------------------------

RULE: Final = "rules:\n  - {name: r, keep: always, when: %s}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "says nothing|expected"),
        ("[1]", "s.yaml:1: expected 'rules:' and 'base:'"),
        ("{}", "the file says nothing"),
        ("rules: {a: b}", "s.yaml:1: rules: expected a list"),
        ("rule: []", "rule: unknown field. Did you mean rules?"),
        ("rules: [3]", r"s.yaml:1: rules\[0\]: expected a mapping"),
        ("rules: [{when: {error: true}}]", "'keep' is missing"),
        ("rules: [{keep: always}]", "'when' is missing. What no rule matches is the base's"),
        ("rules: [{keep: always, when: {error: true}, keap: 1}]", "keap: unknown field of a rule. Did you mean keep?"),
        ("rules: [{keep: 1.5, when: {error: true}}]", "'1.5' is no rate. always, never, or a rate from 0 to 1"),
        ("rules: [{keep: -1, when: {error: true}}]", "'-1' is no rate"),
        ("rules: [{keep: 101%, when: {error: true}}]", "'101%' is no rate"),
        ("rules: [{keep: sometimes, when: {error: true}}]", "'sometimes' is no rate"),
        ("rules: [{keep: 1, name: base, when: {error: true}}]", "'base' is taken"),
        ("rules: [{keep: 1, name: 'a\\nb', when: {error: true}}]", "is no name of a rule"),
        ("rules: [{keep: 1, content: no, when: {error: true}}]", "'no' is not one of keep, remove"),
        ("base: {keep: 2}", "base.keep: '2' is no rate"),
        ("base: {keep: 10%, by: price}", "'price' is not one of chance, cost"),
        ("base: {keep: 10%, by: cost, floor: 20%}", "'20%' is no floor of a share of 0.1"),
        ("base: {keep: 10%, by: cost, floor: 0}", "what is never kept cannot be estimated"),
        ("base: {keep: 10%, floor: 1%}", "floor: is of 'by: cost' alone"),
        ("a: [b", "s.yaml:1: not valid YAML|s.yaml:2: not valid YAML"),
        (RULE % "{}", "no condition at all"),
        (RULE % "{eror: true}", r"s.yaml:2: rules\[0\].when.eror: unknown condition. Did you mean error"),
        (RULE % "{error: yes please}", "'yes please' is neither true nor false"),
        (RULE % "{error: }", "when.error: has no value"),
        (RULE % "{error: true, error: true}", "given twice"),
        (RULE % "{status: failed}", "'failed' is not one of error, ok, unset"),
        (RULE % "{cost_status: unprized}", "Did you mean unpriced"),
        (RULE % "{kind: infrence}", "'infrence' is no kind of call. Did you mean inference"),
        (RULE % "{marked: kept}", "'kept' is not one of keep, drop"),
        (RULE % "{http_status: 599-500}", "nothing lies from 599 to 500"),
        (RULE % "{http_status: 700}", "They are from 100 to 599"),
        (RULE % "{http_status: teapot}", "'teapot' is no HTTP status"),
        (RULE % "{tenant: {regex: '('}}", r"'\(' is no regular expression \(RE2\): missing \)"),
        (RULE % "{tenant: {regex: a, in: [b]}}", "expected one of equals, in, regex, range, exists"),
        (RULE % "{tenant: {is: a}}", "is: unknown field"),
        (RULE % "{tenant: {in: []}}", "the list is empty"),
        (RULE % "{tenant: {range: [1, 2]}}", "'tenant' is text"),
        (RULE % "{attributes: {}}", "no attribute at all"),
        (RULE % "{attributes: {a: {range: [5, 1]}}}", "nothing lies from 5 to 1"),
        (RULE % "{attributes: {a: {range: [null, null]}}}", "a range without any end"),
        (RULE % "{attributes: {a: {range: [1]}}}", r"expected \[from, to\]"),
        (RULE % "{attributes: {a: {range: [one, 2]}}}", "'one' is not a decimal number"),
        (RULE % "{slow: soon}", "slow: has to be a duration such as 30s, not 'soon'"),
        (RULE % "{slow: {of: route}}", "expected 'over', or 'above'"),
        (RULE % "{slow: {above: 99}}", "'99' is no percentile. Write it like p99"),
        (RULE % "{slow: {above: p99, of: feature}}", "'feature' is not one of route, service, tenant"),
        (RULE % "{slow: {over: 5s, of: route}}", "'of' does not go with 'over'"),
        (RULE % "{slow: {above: p99, window: 90s}}", "Whole minutes, from 1m to 24h"),
        (RULE % "{slow: {above: p99, window: 150m}}", "Beyond two hours, whole hours"),
        (RULE % "{expensive: -1}", "'-1' is not an amount of 0 or more"),
        (RULE % "{expensive: {top: 0}}", "'0' is not a whole number of at least 1"),
        (RULE % "{expensive: {top: 5, of: model}}", "'model' is not one of"),
        (RULE % "{anomaly: {of: feature, times: 0.5}}", "0.5 times the usual is nothing unusual"),
        (RULE % "{anomaly: route}", "'route' is not one of"),
        (RULE % "{rare: user}", "'user' is not one of"),
        (RULE % "{rare: {of: model, fewer_than: 101}}", "101 are not few. At most 100"),
        (RULE % "{rare: {fewer_than: 3}}", "'of' is missing"),
        (RULE % "{loop: {}}", "expected one of calls, retries, same_request"),
        (RULE % "{loop: {calls: 1}}", "'1' is not a whole number of at least 2"),
        (RULE % "{loop: {depth: 5000}}", "deeper than anybody looks"),
        (RULE % "{span: {slow: 5s}}", "is a condition of a whole trace. Put it beside"),
        (RULE % "{any: []}", "the list is empty"),
        (RULE % "{any: {error: true}}", "expected a list"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(SamplingError, match=told) as caught:
        read(text)
    assert all(problem.startswith("s.yaml:") for problem in caught.value.problems)


@pytest.mark.parametrize(
    "condition",
    [
        "{error: true, not: {error: true}}",
        "{error: true, all: [{error: false}]}",
        "{slow: 10s, not: {slow: 5s}}",
        "{span: {tenant: a, all: [{tenant: b}]}}",
        "{span: {http_status: 500, all: [{http_status: 4xx}]}}",
        "{span: {attributes: {a: {range: [1, 2]}}, all: [{attributes: {a: {range: [3, 4]}}}]}}",
        "{any: [{error: true, not: {error: true}}]}",
        "{tenant: a, not: {tenant: {exists: true}}}",
        "{tenant: a, not: {tenant: {regex: a}}}",
    ],
)
def test_a_rule_that_can_match_nothing_is_an_error(condition: str) -> None:
    with pytest.raises(SamplingError, match=r"s.yaml:2: rules\[0\]: no trace can match this rule"):
        read(RULE % condition)


@pytest.mark.parametrize(
    "condition",
    [
        "{error: true, all: [{status: ok}]}",  # of two spans
        "{tenant: a, all: [{tenant: b}]}",
        "{slow: 5s, not: {slow: 10s}}",
        "{span: {tenant: [a, b], all: [{tenant: [b, c]}]}}",
        "{rare: model, not: {rare: {of: model, fewer_than: 3}}}",
    ],
)
def test_a_rule_that_can_match_is_none(condition: str) -> None:
    assert not impossible(when(condition))


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("{error: true, tenant: a}", "{error: true}"),
        ("{tenant: a}", "{tenant: [a, b]}"),
        ("{tenant: prod-1}", "{tenant: {regex: ^prod}}"),
        ("{tenant: {regex: ^prod}}", "{tenant: {exists: true}}"),
        ("{http_status: 503}", "{http_status: 5xx}"),
        ("{slow: 10s}", "{slow: 5s}"),
        ("{slow: {above: p99, of: route}}", "{slow: {above: p95, of: route}}"),
        ("{expensive: 2}", "{expensive: 1}"),
        ("{expensive: {top: 5}}", "{expensive: {top: 10}}"),
        ("{rare: {of: model, fewer_than: 5}}", "{rare: {of: model, fewer_than: 10}}"),
        ("{loop: {calls: 50}}", "{loop: {calls: 40, depth: 9}}"),
        ("{span: {error: true, tenant: a}}", "{error: true}"),
        ("{root: {error: true}}", "{error: true}"),
        ("{any: [{slow: 9s}, {error: true, tenant: a}]}", "{any: [{error: true}, {slow: 9s}, {tenant: b}]}"),
        ("{not: {slow: 5s}}", "{not: {slow: 10s}}"),
        ("{attributes: {a: {range: [2, 3]}}}", "{attributes: {a: {range: [1, null]}}}"),
        ("{anomaly: {of: feature, times: 9}}", "{anomaly: {of: feature, times: 5}}"),
    ],
)
def test_a_rule_behind_a_wider_one_is_told(narrow: str, wide: str) -> None:
    assert implies(when(narrow), when(wide))
    assert not implies(when(wide), when(narrow))
    shadowed = read(f"rules:\n  - {{name: w, when: {wide}, keep: always}}\n  - {{name: n, when: {narrow}, keep: 10%}}")
    (warning,) = shadowed.warnings
    assert warning.startswith("s.yaml:3: rule 'n' is never reached: 'w' (line 2)")
    good = read(f"rules:\n  - {{name: n, when: {narrow}, keep: 10%}}\n  - {{name: w, when: {wide}, keep: always}}")
    assert not good.warnings


def test_the_same_condition_with_another_rate_is_a_contradiction() -> None:
    with pytest.raises(SamplingError, match=r"s.yaml:3: rule 'b' contradicts 'a' \(line 2\)"):
        read(
            "rules:\n"
            "  - {name: a, when: {tenant: x, error: true}, keep: always}\n"
            "  - {name: b, when: {error: true, tenant: x}, keep: never}"
        )
    same = read("rules:\n  - {name: a, when: {error: true}, keep: 1}\n  - {name: b, when: {error: true}, keep: 1}")
    assert "matches the same traces before it" in same.warnings[0]


def test_all_mistakes_are_told_at_once_in_the_order_of_lines() -> None:
    with pytest.raises(SamplingError) as caught:
        read(
            "base: {keep: 7}\n"
            "rules:\n"
            "  - {name: a, when: {eror: true}, keep: always}\n"
            "  - {name: b, when: {error: true, tenant: {regex: '('}}, kep: 1}\n"
            "  - {name: a, when: {slow: 1s}, keep: 1}\n"
            "  - {name: a, when: {slow: 2s}, keep: 1}\n"
        )
    lines = [int(problem.split(":")[1]) for problem in caught.value.problems]
    assert lines == sorted(lines) == [1, 3, 4, 4, 4, 6]
    assert str(caught.value).startswith("6 mistakes in the sampling file:\n  s.yaml:1: base.keep")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(SamplingError, match="cannot read the sampling file: No such file"):
        read_sampling(tmp_path / "s.yaml")


# -- the example, and the schema for editors -----------------------------------------------------------------------


def test_the_example_is_a_file_without_any_mistake_and_has_every_condition() -> None:
    sampling = read_sampling(EXAMPLE)
    assert not sampling.warnings
    text = EXAMPLE.read_text()
    for name in (
        *fields.OF_SPANS,
        *fields.OF_TRACES,
        *fields.JOINED,
        *fields.MATCHERS,
        *fields.LOOPS,
    ):
        assert f"{name}:" in text, name


def names(definition: dict[str, Any]) -> set[str]:
    return set(definition["properties"])


def test_the_schema_has_the_names_that_the_reader_has() -> None:
    definitions = SCHEMA["$defs"]
    assert names(SCHEMA) == set(rules.FIELDS)
    assert names(definitions["rule"]) == set(rules.RULE_FIELDS)
    assert names(definitions["base"]) == set(rules.BASE_FIELDS)
    assert names(definitions["on_trace"]) == {
        *fields.OF_SPANS,
        *fields.OF_TRACES,
        *fields.JOINED,
    }
    assert names(definitions["on_span"]) == {*fields.OF_SPANS, *fields.JOINED}
    assert names(definitions["loop"]) == set(fields.LOOPS)
    assert set(definitions["rare_by"]["enum"]) == set(fields.RARE_BY)
    assert set(definitions["cost_by"]["enum"]) == set(fields.COST_BY)
    assert set(definitions["duration_by"]["enum"]) == set(fields.DURATION_BY)
    assert set(fields.RARE_BY) <= set(KEYS)


def validator() -> Any:
    return pytest.importorskip("jsonschema").Draft202012Validator(SCHEMA)


def test_the_schema_takes_the_example() -> None:
    assert not list(validator().iter_errors(yaml.safe_load(EXAMPLE.read_text())))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "rule: []",
        "rules: [{keep: 1}]",
        RULE % "{eror: true}",
        RULE % "{status: failed}",
        RULE % "{span: {slow: 5s}}",
        RULE % "{loop: {calls: 1}}",
        RULE % "{rare: user}",
        RULE % "{tenant: {is: a}}",
        "base: {keep: 10%, by: price}",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    with pytest.raises(SamplingError):
        read(text)
    assert list(validator().iter_errors(yaml.safe_load(text)))


# -- a file in use -----------------------------------------------------------------------------------------------------

GOOD: Final = "rules: [{name: r, when: {error: true}, keep: always}]\nbase: {keep: %s}\n"


def look(file: SamplingFile) -> None:
    """Two looks: a change is taken when it has stood for one."""
    file.check()
    file.check()


def test_a_good_version_is_taken_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(GOOD % "10%")
    counters = Counters()
    file = SamplingFile(path, 0.5, counters)
    taken: list[float] = []
    health: list[bool] = []
    file.follow(lambda sampling: taken.append(sampling.base.share))
    file.watch_health(health.append)
    path.write_text(GOOD % "20%")
    look(file)
    path.write_text(GOOD % "200%")
    look(file)
    os.utime(path)
    look(file)
    assert taken == [0.1, 0.2]
    assert "200%" in file.error
    assert health == [True, False]
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    path.write_text(GOOD % "30%")
    look(file)
    assert (taken[-1], file.error, health[-1]) == (0.3, "", True)
    assert counters.snapshot() == {"sampling_file.reloaded": 2, "sampling_file.reload_failed": 1}


def test_a_broken_file_stops_a_start(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(GOOD % "200%")
    with pytest.raises(SamplingError, match="'200%' is no rate"):
        SamplingFile(tmp_path / "s.yaml", 0.1, Counters())


def test_warnings_are_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("rules:\n- {when: {slow: 1s}, keep: 1}\n- {when: {slow: 2s}, keep: 1}")
    SamplingFile(path, 0.1, Counters())
    assert "is never reached" in caplog.text


def test_another_base_share_in_the_settings_is_taken(tmp_path: Path) -> None:
    without = SamplingFile(None, 0.1, Counters())
    taken: list[float] = []
    without.follow(lambda sampling: taken.append(sampling.base.share))
    without.retune(0.4)
    without.retune(0.4)
    assert taken == [0.1, 0.4]
    path = tmp_path / "s.yaml"
    path.write_text("rules: [{when: {error: true}, keep: always}]")
    file = SamplingFile(path, 0.1, Counters())
    file.retune(0.3)
    file.check(now=True)
    assert file.current.base.share == 0.3
