"""Conditions of the sampling file: one name and its YAML value at a time.

In: `Field`s, with their lines. Out: conditions, or a `BookError` that names place, mistake and what to write. `rules`
reads whole files with this; which names there are stands in `OF_SPANS` and `OF_TRACES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final

from tollspan.pricing import BookError
from tollspan.pricing.names import nearest
from tollspan.pricing.yamlfield import Field
from tollspan.processor.sample.conditions import (
    COUNTS,
    KEYS,
    MOST_REPEATS,
    NAME,
    TEXT_COLUMNS,
    Anomaly,
    AnyOf,
    AtLeast,
    Attribute,
    Condition,
    CostStatus,
    Expensive,
    Flag,
    HttpStatus,
    Level,
    Marked,
    Not,
    Rare,
    Slow,
    Some,
    Status,
    Text,
)
from tollspan.processor.sample.matchers import PRESENT, Matcher, OneOf, Pattern, Range, regex_fault
from tollspan.processor.sample.spans_seen import VERSION
from tollspan.processor.sample.states import MOST_SEEN
from tollspan.processor.values import Given, Problem, read

PICO: Final = 12

MATCHERS: Final = ("equals", "in", "regex", "range", "exists")
STATUSES: Final = ("error", "ok", "unset")
KINDS: Final = ("inference", "model_load", "feature_read", "capacity", "other")
COST_STATUSES: Final = (
    *("priced", "free", "included", "partial", "unpriced", "invalid", "rollup", "not_billed"),
)  # fmt: skip
JOINED: Final = ("any", "all", "not")
OF_SPANS: Final = (
    *("error", "status", "http_status", "cold_start", "unpriced", "cost_status", "marked"),
    *(NAME, *TEXT_COLUMNS, "version", "attributes", "resource"),
)
"""Conditions of spans."""
OF_TRACES: Final = ("slow", "expensive", "anomaly", "rare", "loop", "spans", "span", "root")
"""Conditions of traces alone."""
LOOPS: Final = tuple(what for what in COUNTS if what != "spans")
DURATION_BY: Final = ("route", "service", "tenant")
COST_BY: Final = ("feature", "model", "tenant", "service", "workflow", "variant", "team", "environment")
RARE_BY: Final = ("model", "tenant", "route", "version", "feature", "service", "workflow", "variant", "team",
                  "environment")  # fmt: skip

HOUR: Final = 60
DAY: Final = 24 * HOUR
"""Minutes."""
LONGEST_WINDOW: Final = DAY
LEAST_OBSERVATIONS: Final = 100
DEEPEST: Final = 1000

_QUANTILE: Final = re.compile(r"p([0-9]{1,2}(?:\.[0-9]{1,3})?)")
_PERCENT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*%")
_REASONS: Final = (
    *("keep", "drop", "error", "loop", "anomaly", "expensive", "slow", "unpriced", "rare", "cold_start", "status"),
)  # fmt: skip
"""Of the conditions of a rule the first of these is why it keeps; else ``match``."""


def joined(condition: Condition, negative: bool, on_span: bool) -> Condition:
    """A condition of a span where it stands: on one span, or on some span of a trace."""
    found = condition if on_span else Some(condition)
    return Not(found) if negative else found


def span_condition(name: str, value: Field) -> tuple[Condition, bool]:
    """A condition of a span, and whether it is meant the other way round."""
    if name == "error":
        return Status(frozenset({"error"})), not _truth(value)
    if name == "cold_start":
        return Flag("cold_start"), not _truth(value)
    if name == "unpriced":
        return CostStatus(frozenset({"unpriced", "invalid"})), not _truth(value)
    if name == "status":
        return Status(frozenset(_choices(value, STATUSES))), False
    if name == "cost_status":
        return CostStatus(frozenset(_choices(value, COST_STATUSES))), False
    if name == "marked":
        return Marked(read_choice(value, ("keep", "drop")) == "keep"), False
    if name == "http_status":
        return HttpStatus(tuple(_http(each) for each in _listed(value))), False
    if name == "version":
        return attribute_condition(VERSION, True, value)
    matcher, negative = _matcher(value)
    if matcher.numeric:
        raise value.error(f"{name!r} is text", "'range' is for attributes that are numbers.")
    if name == "kind" and isinstance(matcher, OneOf):
        for each in sorted(matcher.values - set(KINDS)):
            raise value.error(f"{each!r} is no kind of call", nearest(each, KINDS))
    return Text(name, matcher), negative


def attribute_condition(key: str, resource: bool, value: Field) -> tuple[Condition, bool]:
    matcher, negative = _matcher(value)
    return Attribute(key, resource, matcher), negative


def _matcher(value: Field) -> tuple[Matcher, bool]:
    if not value.is_mapping:
        return OneOf(frozenset(_scalar(each) for each in _listed(value))), False
    found = value.mapping(*MATCHERS)
    if len(found) != 1:
        raise value.error("expected one of " + ", ".join(MATCHERS), "For several conditions use 'all:' or 'any:'.")
    ((name, inside),) = found.items()
    if name == "equals":
        return OneOf(frozenset({_scalar(inside)})), False
    if name == "in":
        return OneOf(frozenset(_scalar(each) for each in inside.some())), False
    if name == "exists":
        return PRESENT, not _truth(inside)
    if name == "regex":
        regex = inside.text()
        if fault := regex_fault(regex):
            raise inside.error(f"{regex!r} is no regular expression (RE2): {fault}")
        return Pattern(regex), False
    bounds = list(inside.items())
    if len(bounds) != 2:
        raise inside.error("expected [from, to]", "Either may be null, and both belong to it.")
    low, high = (None if bound.is_null else float(bound.decimal()) for bound in bounds)
    if low is None and high is None:
        raise inside.error("a range without any end", "Use {exists: true}.")
    if low is not None and high is not None and low > high:
        raise inside.error(f"nothing lies from {low:g} to {high:g}", "Put the lower end first.")
    return Range(low, high), False


def _http(value: Field) -> tuple[int, int]:
    text = value.text().lower()
    if re.fullmatch(r"[1-5]xx", text):
        return int(text[0]) * 100, int(text[0]) * 100 + 99
    ends = re.fullmatch(r"([0-9]{1,4})(?:\s*-\s*([0-9]{1,4}))?", text)
    if ends is None:
        raise value.error(f"{text!r} is no HTTP status", "Write it like 429, 500-599 or 5xx.")
    low, high = int(ends[1]), int(ends[2] or ends[1])
    if low > high:
        raise value.error(f"nothing lies from {low} to {high}", "Put the lower end first.")
    if low < 100 or high > 599:
        raise value.error(f"{text!r} is no HTTP status", "They are from 100 to 599.")
    return low, high


def _slow(value: Field) -> Condition:
    if not value.is_mapping:
        return Slow(_nanoseconds(value))
    found = value.mapping("over", "above", "of", "window", "least")
    if "over" in found:
        _alone(value, found, "over")
        return Slow(_nanoseconds(found["over"]))
    return Slow(None, _above(value, found, "duration", DURATION_BY, HOUR))


def _expensive(value: Field) -> Condition:
    if not value.is_mapping:
        return Expensive(_money(value))
    found = value.mapping("over", "above", "top", "of", "window", "least")
    if "over" in found:
        _alone(value, found, "over")
        return Expensive(_money(found["over"]))
    if "top" in found:
        _alone(value, found, "top", "of")
        of = read_choice(found["of"], tuple(each for each in COST_BY if each != "model")) if "of" in found else ""
        return Expensive(None, Level("trace_cost", of, "top", 1, 0, (float(found["top"].whole(1)),)))
    return Expensive(None, _above(value, found, "trace_cost", COST_BY, HOUR))


def _above(value: Field, found: dict[str, Field], metric: str, dimensions: tuple[str, ...], window: int) -> Level:
    if "above" not in found:
        raise value.error("expected 'over', or 'above' (a percentile)", "Write it like {above: p99}.")
    text = found["above"].text()
    quantile = _QUANTILE.fullmatch(text)
    if quantile is None or not 0 < float(quantile[1]) < 100:
        raise found["above"].error(f"{text!r} is no percentile", "Write it like p99 or p99.9.")
    of = read_choice(found["of"], dimensions) if "of" in found else ""
    return Level(
        "call_cost" if metric == "trace_cost" and of == "model" else metric,
        of,
        "quantile",
        read_window(found["window"]) if "window" in found else window,
        found["least"].whole(1) if "least" in found else LEAST_OBSERVATIONS,
        (float(Decimal(quantile[1]) / 100),),
    )


def _anomaly(value: Field) -> Condition:
    found = value.mapping("of", "deviations", "times", "window", "least") if value.is_mapping else {"of": value}
    by = tuple(each for each in COST_BY if each != "model")
    deviations = float(found["deviations"].amount()) if "deviations" in found else 6.0
    times = float(found["times"].amount()) if "times" in found else 3.0
    if times < 1:
        raise found["times"].error(f"{times:g} times the usual is nothing unusual", "1 or more.")
    return Anomaly(
        Level(
            "trace_cost",
            read_choice(found["of"], by) if "of" in found else "",
            "anomaly",
            read_window(found["window"]) if "window" in found else DAY,
            found["least"].whole(2) if "least" in found else LEAST_OBSERVATIONS,
            (deviations, times),
        )
    )


def _rare(value: Field) -> Condition:
    found = value.mapping("of", "fewer_than", "window", required=("of",)) if value.is_mapping else {"of": value}
    window = read_window(found["window"]) if "window" in found else DAY
    fewer_than = found["fewer_than"].whole(1) if "fewer_than" in found else 20
    if fewer_than > MOST_SEEN:
        raise found["fewer_than"].error(f"{fewer_than} are not few", f"At most {MOST_SEEN}.")
    return Rare(fewer_than, Level("seen", read_choice(found["of"], RARE_BY), "count", window))


def _loop(value: Field) -> Condition:
    found = value.mapping(*LOOPS)
    if not found:
        raise value.error("expected one of " + ", ".join(LOOPS), "Write it like {same_request: 5}.")
    parts = []
    for what, least in found.items():
        count = least.whole(1 if what == "retries" else 2)
        if what == "depth" and count > DEEPEST:
            raise least.error(f"{count} is deeper than anybody looks", f"At most {DEEPEST}.")
        if what in ("same_request", "growing") and count > MOST_REPEATS:
            raise least.error(f"nobody counts as far as {count}", f"At most {MOST_REPEATS}.")
        parts.append(AtLeast(what, count))
    return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))


def _spans(value: Field) -> Condition:
    return AtLeast("spans", value.whole(1))


TRACE_CONDITIONS: Final[dict[str, Callable[[Field], Condition]]] = {
    "slow": _slow,
    "expensive": _expensive,
    "anomaly": _anomaly,
    "rare": _rare,
    "loop": _loop,
    "spans": _spans,
}


# -- values ------------------------------------------------------------------------------------------------------------


def reason_of(when: Condition) -> str:
    """Why a rule keeps what it keeps: its first telling condition, those that are denied left out."""
    kinds = set(_kinds(when))
    return next((reason for reason in _REASONS if reason in kinds), "match")


def _kinds(condition: Condition) -> Iterator[str]:
    if isinstance(condition, Not):
        return
    yield condition.kind
    for part in condition.parts:
        yield from _kinds(part)


def _listed(value: Field) -> list[Field]:
    return value.some() if value.is_sequence else [value]


def _scalar(value: Field) -> str:
    """A value to compare with, booleans as attributes write them."""
    text = value.text()
    if str(value.node.tag).endswith(":bool"):
        return "true" if text.lower() in ("true", "yes", "on") else "false"
    return text


def read_choice(value: Field, known: tuple[str, ...]) -> str:
    text = value.text()
    if text not in known:
        raise value.error(f"{text!r} is not one of {', '.join(known)}", nearest(text, known))
    return text


def _choices(value: Field, known: tuple[str, ...]) -> list[str]:
    return [read_choice(each, known) for each in _listed(value)]


def _truth(value: Field) -> bool:
    text = value.text().lower()
    if text not in ("true", "false"):
        raise value.error(f"{value.text()!r} is neither true nor false")
    return text == "true"


def read_rate(value: Field) -> float:
    text = value.text()
    if text in ("always", "never"):
        return 1.0 if text == "always" else 0.0
    percent = _PERCENT.fullmatch(text)
    hint = "always, never, or a rate from 0 to 1: 0.25 or 25%."
    try:
        rate = float(Decimal(percent[1]) / 100) if percent else float(value.decimal())
    except BookError:
        raise value.error(f"{text!r} is no rate", hint) from None
    if not 0 <= rate <= 1:
        raise value.error(f"{text!r} is no rate", hint)
    return rate


def _money(value: Field) -> int:
    """USD in whole pico-dollars; more decimals than money has are cut, and a cost is above that or not."""
    return int(value.amount().scaleb(PICO))


def _seconds(value: Field) -> float:
    try:
        seconds: Any = read(float, "time_s", Given(value.text(), ""))
    except Problem as error:
        raise value.error(str(error), "Write it like 250ms, 5s or 2m.") from None
    return float(seconds)


def _nanoseconds(value: Field) -> int:
    return round(_seconds(value) * 1e9)


def read_window(value: Field) -> int:
    minutes = _seconds(value) / 60
    if minutes != int(minutes) or not 1 <= minutes <= LONGEST_WINDOW:
        raise value.error(f"{value.text()!r} is no window", "Whole minutes, from 1m to 24h.")
    if minutes > 2 * HOUR and minutes % HOUR:
        raise value.error(f"{value.text()!r} is no window", "Beyond two hours, whole hours.")
    return int(minutes)


def _alone(value: Field, found: dict[str, Field], *names: str) -> None:
    for other in found:
        if other not in names:
            raise value.error(f"{other!r} does not go with {names[0]!r}", f"It goes with: {', '.join(names)}.")


assert set(DURATION_BY) | set(COST_BY) | set(RARE_BY) <= set(KEYS)
