"""The sampling file: rules in YAML, read with their lines, and everything that can be wrong with them told at once.

In: a file. Out: a `Sampling`, or one `SamplingError` with a line for each mistake. ``sampling.schema.json`` beside this
file says the same to editors. ``examples/sampling/sampling.yaml`` has every condition with a comment.

    rules:                                  # the first that matches a trace decides it
      - name: errors                        # stands on what it keeps; left out = made of its reason
        when: {error: true}                 # all of these have to hold
        keep: always                        # always, never, or a rate: 0.25, 25%
        content: keep                       # or remove: without prompts, completions and the like
      - when: {any: [{slow: 30s}, {slow: {above: p99, of: route}}], not: {tenant: internal}}
        keep: 50%
    base:                                   # what no rule matches
      keep: 10%                             # left out = sampling.keep
      by: cost                              # or chance (the same for all): in proportion to what a trace costs
      floor: 0.5%                           # of ``by: cost``

A condition of spans (``error``, ``tenant``, ``attributes`` …) holds for a trace when some span of it has it; inside of
``span:`` all have to hold on one span, and inside of ``root:`` on the root. Values are written as ``a``, ``[a, b]``, or
``{equals: a}``, ``{in: [a, b]}``, ``{regex: ^a}``, ``{range: [1, null]}`` (numbers, both ends with it), ``{exists:
true}``. Unless some rule says ``marked``, what the program asked for itself (``keep_trace()``, ``drop_trace()``) comes
first.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from tollspan.pricing import BookError
from tollspan.pricing.names import nearest
from tollspan.pricing.yamlfield import Field, compose
from tollspan.processor.errors import ConfigError
from tollspan.processor.sample.condition_fields import (
    HOUR,
    JOINED,
    LEAST_OBSERVATIONS,
    OF_SPANS,
    OF_TRACES,
    TRACE_CONDITIONS,
    attribute_condition,
    joined,
    read_choice,
    read_rate,
    read_window,
    reason_of,
    span_condition,
)
from tollspan.processor.sample.conditions import (
    All,
    AnyOf,
    Condition,
    Level,
    Marked,
    Not,
    Root,
    Some,
    Status,
    implies,
    impossible,
)

PICO: Final = 12

FIELDS: Final = ("rules", "base")
RULE_FIELDS: Final = ("name", "when", "keep", "content")
BASE_FIELDS: Final = ("keep", "by", "floor", "window", "content")
BY: Final = ("chance", "cost")
CONTENT: Final = ("keep", "remove")
MOST_RULES: Final = 1000

_NAME: Final = re.compile(r"[\w.:/ -]{1,80}")


class SamplingError(ConfigError):
    """A sampling file that cannot be used.

    Args:
        problems: a line for each mistake, with its place.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(sorted(dict.fromkeys(problems), key=_line))
        told = self.problems[0] if len(self.problems) == 1 else "\n".join(
            [f"{len(self.problems)} mistakes in the sampling file:", *(f"  {each}" for each in self.problems)]
        )  # fmt: skip
        super().__init__(told)


def _line(problem: str) -> int:
    found = re.search(r":([0-9]+): ", problem)
    return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule.

    Attributes:
        name: stands on the traces that it keeps.
        when: which traces.
        rate: share of these that is kept: 1 = always, 0 = never.
        content: whether their content is kept.
        reason: kind of the rule.
        line: in the file; 0: it is not from there.
    """

    name: str
    when: Condition
    rate: float
    content: bool = True
    reason: str = "match"
    line: int = 0


@dataclass(frozen=True, slots=True)
class Base:
    """What becomes of traces that no rule matches.

    Attributes:
        share: of them that is kept, before any budget.
        content: whether their content is kept.
        scale: the level by which the share is in proportion to cost; None: it is the same for all.
        floor: least share where it is.
    """

    share: float
    content: bool = True
    scale: Level | None = None
    floor: float = 0.0
    name: str = "base"


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a sampling file says.

    Attributes:
        rules: in order.
        base: for what no rule matches.
        file: where it stands; '' where there is none.
        warnings: what is odd and no mistake, with places.
    """

    rules: tuple[Rule, ...]
    base: Base
    file: str = ""
    warnings: tuple[str, ...] = field(default=(), compare=False)


KEEP_ASKED: Final = Rule("keep", Some(Marked(True)), 1.0, reason="keep")
DROP_ASKED: Final = Rule("drop", Some(Marked(False)), 0.0, reason="drop")
ERRORS: Final = Rule("error", Some(Status(frozenset({"error"}))), 1.0, reason="error")


def plain(keep: float) -> Sampling:
    """What holds without a file: the program's own wishes, errors, and a share of the rest."""
    return Sampling((KEEP_ASKED, DROP_ASKED, ERRORS), Base(keep, name="probability"))


def read_sampling(path: str | os.PathLike[str], keep: float = 0.1) -> Sampling:
    """Rules of a file.

    Args:
        path: YAML.
        keep: base share where the file says none.

    Raises:
        SamplingError: it cannot be read or used.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SamplingError(
            [f"{file}: cannot read the sampling file: {error.strerror or error}. Check the path and its permissions."]
        ) from error
    return parse_sampling(content, str(file), keep)


def parse_sampling(content: bytes, file: str, keep: float = 0.1) -> Sampling:
    """Rules in YAML text; ``file`` is what errors call it. Otherwise as `read_sampling`."""
    return _Reader(file).whole(content, keep)


class _Reader:
    """Reads one file and gathers what is wrong with it."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[str] = []
        self.warnings: list[str] = []

    @contextlib.contextmanager
    def gathering(self) -> Iterator[None]:
        """Take note of a mistake, and go on."""
        try:
            yield
        except BookError as error:
            self.problems.append(str(error))

    def whole(self, content: bytes, keep: float) -> Sampling:
        rules: list[Rule] = []
        base = Base(keep)
        with self.gathering():
            root = compose(content, self.file)
            if root.node is None or not root.is_mapping:
                raise root.error("expected 'rules:' and 'base:'", "examples/sampling/sampling.yaml shows a file.")
            found = self._pairs(root, FIELDS, "field")
            if "rules" in found:
                with self.gathering():
                    items = list(found["rules"].items())
                    if len(items) > MOST_RULES:
                        raise found["rules"].error(f"{len(items)} rules are more than {MOST_RULES}")
                    rules = [rule for item in items if (rule := self._rule(item)) is not None]
            if "base" in found:
                with self.gathering():
                    base = self._base(found["base"], keep)
            if not found:
                raise root.error("the file says nothing", "List rules under 'rules:', and a share under 'base:'.")
        rules = self._named(rules)
        self._order(rules)
        if self.problems:
            raise SamplingError(self.problems)
        if not any(isinstance(each, Marked) for rule in rules for each in rule.when.everything()):
            rules = [KEEP_ASKED, DROP_ASKED, *rules]
        return Sampling(tuple(rules), base, self.file, tuple(self.warnings))

    # -- rules ---------------------------------------------------------------------------------------------------------

    def _rule(self, item: Field) -> Rule | None:
        with self.gathering():
            before = len(self.problems)
            found = self._pairs(item, RULE_FIELDS, "field of a rule")
            for name in ("when", "keep"):
                if name not in found:
                    hint = "What no rule matches is the base's." if name == "when" else "always, never or a rate."
                    self.problems.append(str(item.error(f"{name!r} is missing", hint)))
            name, rate, content, when = "", 0.0, True, None
            if "name" in found:
                with self.gathering():
                    name = found["name"].text()
                    if not _NAME.fullmatch(name):
                        raise found["name"].error(
                            f"{name[:90]!r} is no name of a rule", "Up to 80 letters, digits, spaces and . : / _ -"
                        )
                    if name in ("base", KEEP_ASKED.name, DROP_ASKED.name):
                        raise found["name"].error(f"{name!r} is taken", "Call it something else.")
            if "keep" in found:
                with self.gathering():
                    rate = read_rate(found["keep"])
            if "content" in found:
                with self.gathering():
                    content = read_choice(found["content"], CONTENT) == "keep"
            if "when" in found:
                with self.gathering():
                    when = self.conditions(found["when"])
            if len(self.problems) > before or when is None:
                return None
            if impossible(when):
                raise item.error(
                    "no trace can match this rule", "Its conditions exclude each other; 'any:' takes alternatives."
                )
            return Rule(name, when, rate, content, reason_of(when), item.line)
        return None

    def _named(self, rules: list[Rule]) -> list[Rule]:
        """Rules with names, those that have none by their reasons."""
        seen: dict[str, int] = {}
        for rule in rules:
            if rule.name and rule.name in seen:
                self.problems.append(
                    f"{self.file}:{rule.line}: the name {rule.name!r} is used twice (line {seen[rule.name]}). "
                    "Change one of the two."
                )
            elif rule.name:
                seen[rule.name] = rule.line
        out = []
        for rule in rules:
            name, number = rule.name or rule.reason, 1
            while not rule.name and name in seen:
                number += 1
                name = f"{rule.reason}-{number}"
            seen.setdefault(name, rule.line)
            out.append(replace(rule, name=name))
        return out

    def _order(self, rules: list[Rule]) -> None:
        """Tell of rules that an earlier one leaves nothing to."""
        for place, rule in enumerate(rules):
            for earlier in rules[:place]:
                if not implies(rule.when, earlier.when):
                    continue
                same = implies(earlier.when, rule.when)
                where = f"{self.file}:{rule.line}: rule {rule.name!r}"
                before = f"{earlier.name!r} (line {earlier.line})"
                if same and (rule.rate, rule.content) != (earlier.rate, earlier.content):
                    self.problems.append(
                        f"{where} contradicts {before}: both match the same traces, and the first that matches "
                        "decides. Take one of the two out."
                    )
                else:
                    self.warnings.append(
                        f"{where} is never reached: {before} matches {'the same' if same else 'all its'} traces before "
                        "it. Put the narrower rule first."
                    )
                break

    def _base(self, item: Field, keep: float) -> Base:
        found = self._pairs(item, BASE_FIELDS, "field of the base")
        share, by, content, floor, window = keep, "chance", True, None, HOUR
        if "keep" in found:
            with self.gathering():
                share = read_rate(found["keep"])
        if "by" in found:
            with self.gathering():
                by = read_choice(found["by"], BY)
        if "content" in found:
            with self.gathering():
                content = read_choice(found["content"], CONTENT) == "keep"
        if "floor" in found:
            with self.gathering():
                floor = read_rate(found["floor"])
                if not 0 < floor <= share:
                    raise found["floor"].error(
                        f"{found['floor'].text()!r} is no floor of a share of {share:g}",
                        "It is above 0 (what is never kept cannot be estimated) and at most the share itself.",
                    )
        if "window" in found:
            with self.gathering():
                window = read_window(found["window"])
        if by == "chance":
            for name in ("floor", "window"):
                if name in found:
                    self.problems.append(str(found[name].error("is of 'by: cost' alone", "Add it, or take this out.")))
            return Base(share, content)
        floor = share / 10 if floor is None else floor
        if not 0 < share < 1:
            return Base(share, content)  # all or nothing has no proportions
        scale = Level("trace_cost", "", "scale", window, LEAST_OBSERVATIONS, (share, floor))
        return Base(share, content, scale, floor)

    # -- conditions ----------------------------------------------------------------------------------------------------

    def conditions(self, item: Field, on_span: bool = False) -> Condition:
        """What stands under ``when:``, ``span:`` or inside of ``any:``: all of it has to hold."""
        known = (*OF_SPANS, *JOINED) if on_span else (*OF_SPANS, *OF_TRACES, *JOINED)
        found: list[Condition] = []
        pairs = self._pairs(item, known, "condition", OF_TRACES if on_span else ())
        for name, value in pairs.items():
            with self.gathering():
                found.append(self._condition(name, value, on_span))
        if not item.node.value:
            raise item.error("no condition at all", "What no rule matches is the base's.")
        if not found:
            return All(())  # what was wrong is told
        return found[0] if len(found) == 1 else All(tuple(found))

    def _condition(self, name: str, value: Field, on_span: bool) -> Condition:
        if name in ("any", "all"):
            parts = tuple(self.conditions(each, on_span) for each in value.some())
            return AnyOf(parts) if name == "any" else All(parts)
        if name == "not":
            return Not(self.conditions(value, on_span))
        if name == "span":
            return Some(self.conditions(value, on_span=True))
        if name == "root":
            return Some(All((Root(), self.conditions(value, on_span=True))))
        if name in OF_TRACES:
            return TRACE_CONDITIONS[name](value)
        if name in ("attributes", "resource"):
            keys = self._pairs(value, None, "attribute")
            if not keys:
                raise value.error("no attribute at all", "Write it like {http.route: /v1/chat}.")
            parts = tuple(
                joined(*attribute_condition(key, name == "resource", each), on_span) for key, each in keys.items()
            )
            return parts[0] if len(parts) == 1 else All(parts)
        return joined(*span_condition(name, value), on_span)

    def _pairs(
        self, item: Field, known: tuple[str, ...] | None, what: str, elsewhere: tuple[str, ...] = ()
    ) -> dict[str, Field]:
        """A mapping; unknown names and empty values are told, and left out."""
        if not item.is_mapping:
            raise item.error(f"expected a mapping{' with ' + ', '.join(known) if known and len(known) < 9 else ''}")
        found: dict[str, Field] = {}
        for key, value in item.node.value:
            with self.gathering():
                name = Field(key, self.file, item.path).text()
                here = Field(key, self.file, f"{item.path}.{name}" if item.path else name)
                if name in elsewhere:
                    raise here.error("is a condition of a whole trace", "Put it beside 'span:' or 'root:', not inside.")
                if known is not None and name not in known:
                    raise here.error(f"unknown {what}", nearest(name, known))
                if name in found:
                    raise here.error("given twice")
                placed = Field(value, self.file, here.path)
                if placed.is_null:
                    raise here.error("has no value", "Give it one, or take it out.")
                found[name] = placed
        return found
