"""Named queries as data: the ``.sql`` files of this folder, and names for some of them with something already chosen.

A file's first comment line says what it answers. Further lines of its head are fields::

    -- measure                          it is one of the measures
    -- single                           it has exactly one row
    -- limit: N                         rows shown unless asked otherwise
    -- by: provider, model              dimensions unless others are asked for
    -- dimensions: tenant, service      the only ones it can be broken down by
    -- parameter: level = 0.95: ...     a number that is bound as {level:Float64}, its default (none = it has to be
    --     given) and what it is
    -- definition: ...                  what the figure means; also formula, unit, and pitfall as often as needed;
    --     continued                    a field goes on in lines that are indented

and what is none of these is notes. The text is a `string.Template` in which ``$window`` stands for the window and the
filters on ``ledger`` (``$filters`` for the filters alone), and for a query that can be broken down the ``$`` names of
`_fragments` for its dimensions. ``FROM $ledger`` is ``FROM ledger FINAL``, or the same in slices (`slices`); there
``$machines`` is every column with those of charges of machines, and ``$costless`` whether a row has no cost, for which
its cost is not read.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from string import Template
from typing import Any, Final

from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import slices
from tollspan.processor.queries.dimensions import DIMENSIONS, Dimension, Filter, condition, dimensions

NO_LIMIT: Final = 2**63 - 1

_FIELD: Final = re.compile(r"(measure|single|limit|by|dimensions|parameter|definition|formula|unit|pitfall)(?:: (.*))?")
_PARAMETER: Final = re.compile(r"(\w+)(?: = (\S+))?: (.*)")
_VALUES: Final = (re.compile(r"[0-9]{1,18}(\.[0-9]{1,12})?"), re.compile(r"[0-9a-f]{32}"))
"""What a parameter can be: a number, and the id of a trace."""
_MACHINES: Final = "*, machines.meter, machines.quantity, machines.cost, cost.null AS costless"
_WINDOW: Final = "{0} >= {{since:DateTime64(9, 'UTC')}} AND {0} < {{until:DateTime64(9, 'UTC')}}"


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """One query.

    Attributes:
        name: as on the command line.
        title: what it answers.
        template: its text.
        single: it has exactly one row.
        limit: rows shown unless asked otherwise.
        measure: it is one of the measures.
        by: dimensions unless others are asked for.
        allowed: names of the dimensions that it can be broken down by and filtered by; empty = all.
        definition, formula, unit: of a measure; '' = not given.
        pitfalls: what to know before using the figure.
        notes: what else its file says.
        asks: name of a parameter → (default or '', what it is).
        parameters: values bound besides those of window, limit and filters.
    """

    name: str
    title: str
    template: str
    single: bool = False
    limit: int = NO_LIMIT
    measure: bool = False
    by: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    definition: str = ""
    formula: str = ""
    unit: str = ""
    pitfalls: tuple[str, ...] = ()
    notes: str = ""
    asks: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def divisible(self) -> bool:
        """Whether it can be broken down by dimensions."""
        return not {"group", "by"}.isdisjoint(Template(self.template).get_identifiers())

    @property
    def filterable(self) -> bool:
        """Whether rows can be filtered."""
        return not {"window", "filters"}.isdisjoint(Template(self.template).get_identifiers())

    @property
    def sliceable(self) -> bool:
        """Whether a large window can be read in slices."""
        return "ledger" in Template(self.template).get_identifiers()

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the parameters that have to be given."""
        return tuple(name for name, (default, _) in self.asks.items() if not default)

    @property
    def sql(self) -> str:
        """Its text with the dimensions that it has unless asked otherwise."""
        return self.text()[0]

    def text(
        self, by: Sequence[Dimension] | None = None, where: Sequence[Filter] = (), free: Sequence[slices.Hours] = ()
    ) -> tuple[str, dict[str, Any]]:
        """SQL, and the values to bind that come from filters and from the query itself.

        Args:
            by: dimensions in the order of the columns; None for the query's own.
            where: filters.
            free: hours of the window that are read apart (`slices.alone`), for a query that is `sliceable`.

        Raises:
            ConfigError: it cannot be broken down, or filtered.
        """
        if by and not self.divisible:
            raise ConfigError(
                f"{self.name} cannot be broken down.", "Leave out --by; `tollspan query --list` says which can."
            )
        if where and not self.filterable:
            raise ConfigError(f"{self.name} takes no filters.", "Leave out --where.")
        chosen = dimensions(self.by, self.allowed) if by is None else by
        ours, values = condition(where)
        theirs, _ = condition(where, "telemetry") if not _untold(where) else ("", {})
        ledger, bounds = slices.source(free) if free else ("ledger FINAL", {})
        fragments = {
            "ledger": ledger,
            "machines": "*" if free else _MACHINES,
            "costless": "ledger.costless" if free else "ledger.cost.null",
            "window": ("true" if free else _WINDOW.format("ledger.start_time")) + ours,
            "filters": ours,
            "telemetry_window": _WINDOW.format("telemetry.minute") + theirs,
            **_fragments(chosen),
        }
        return Template(self.template).substitute(fragments), {**self.parameters, **values, **bounds}

    def given(self, texts: Sequence[str]) -> dict[str, str]:
        """Values of its parameters: those that are given as ``name=value``, and defaults.

        Raises:
            ConfigError: it has no such parameter, the value is not of its kind, or one is missing.
        """
        values = {name: default for name, (default, _) in self.asks.items()}
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or name not in self.asks:
                known = ", ".join(self.asks) or "none"
                raise ConfigError(f"--set {text!r} names no parameter of {self.name}.", f"It has: {known}.")
            values[name] = value.strip()
        for name, value in values.items():
            about = self.asks[name][1]
            if not value:
                raise ConfigError(f"{self.name} needs --set {name}=…", f"It is {about}.")
            if not _VALUES[name == "trace"].fullmatch(value):
                raise ConfigError(f"--set {name}={value} cannot be read.", f"It is {about}.")
        return values


def _untold(where: Sequence[Filter]) -> bool:
    return any(not each.dimension.telemetry for each in where)


def _fragments(by: Sequence[Dimension]) -> dict[str, str]:
    """What the ``$`` names of a breakdown stand for."""
    names = [each.name for each in by]
    sorted_names = [each.name if each.time else f"{each.name} NULLS LAST" for each in by]

    def keys(table: str) -> str:
        told = [each.sql if table == "ledger" else each.telemetry for each in by]
        return "".join(
            f"{sql if each.time else f'''nullIf({sql}, '')'''} AS {each.name},\n    "
            for each, sql in zip(by, told, strict=True)
        )

    return {
        # Columns computed from the table, and the same columns by name further out; both end in a comma.
        "keys": keys("ledger"),
        "telemetry_keys": keys("telemetry") if all(each.telemetry for each in by) else "",
        "by": "".join(f"{name}, " for name in names),
        # The same where rows are grouped by something else that tells them apart, `one` among it.
        "any": "".join(f"{_any(each, alone=len(by) == 1)} AS {each.name},\n        " for each in by),
        # Behind GROUP BY. No row at all comes of grouping nothing.
        "group": ", ".join(names) or "tuple()",
        "partition": f"PARTITION BY {', '.join(names)}" if names else "",
        # All of them as one text or number, for looking something up: different ones have different ones. And the same
        # in a type for arrays.
        "one": _one(by),
        "one_alone": _one(by) if _is_number(by) else f"toString({_one(by)})",
        # Which of ``edges.1`` it is, from 1 on; 0: none of them.
        "nth": _nth(by, "edges.1"),
        # For joins, in which NULL would not equal NULL.
        "texts": f"[{', '.join(f'''ifNull(toString({name}), '')''' for name in names)}]"
        if names
        else "emptyArrayString()",
        # In an ORDER BY: time before figures, the other names behind them; or all names first.
        "times": "".join(f"{each.name}, " for each in by if each.time),
        "last": "".join(f", {each}" for each in sorted_names),
        "ordered": "".join(f"{each}, " for each in sorted_names),
    }


def _is_number(by: Sequence[Dimension]) -> bool:
    """Whether `_one` is a number: an instant is, alone."""
    return len(by) == 1 and by[0].time


def _any(dimension: Dimension, *, alone: bool) -> str:
    """A column of a group whose rows are alike in it; ``alone``: `one` is its text, if it is one."""
    if alone and not dimension.time:
        return "nullIf(one, '')"
    made = f"any({dimension.sql})"
    if len(dimension.columns) == 1:
        # What is made of a column is made once a group.
        made = dimension.sql.replace(dimension.columns[0], f"any({dimension.columns[0]})")
    return made if dimension.time else f"nullIf({made}, '')"


def _nth(by: Sequence[Dimension], among: str) -> str:
    def look_up(what: str) -> str:
        return f"transform({what}, {among}, arrayEnumerate({among}), 0)"

    if len(by) == 1 and not by[0].time and len(by[0].columns) == 2:
        # Of each column alone it is asked of each text once; of what is made of two, of every row.
        first, second = by[0].columns
        return f"if({first} != '', {look_up(first)}, {look_up(second)})"
    return look_up(_one(by))


def _one(by: Sequence[Dimension]) -> str:
    if not by:
        return "''"
    if len(by) == 1 and not by[0].time:
        # As it is: a function of a column of few texts is asked of each text once.
        return by[0].sql
    if _is_number(by):
        return by[0].number
    return f"toString(({', '.join(f'toString({each.sql})' for each in by)}, ''))"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A name for another query with something already chosen.

    Attributes:
        query: the other one.
        title: what it answers.
        by: its dimensions.
        parameters: values bound; in the fields of the head ``<name>`` stands for them.
    """

    query: str
    title: str
    by: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)


def _steps(seconds: int, period: int) -> dict[str, str]:
    return {"step": str(seconds), "period": str(period)}


CHOSEN: Final[dict[str, Chosen]] = {
    "by-tenant": Chosen("cost", "Cost by tenant, dearest first; tenant is NULL where the calls had none.", ("tenant",)),
    "by-feature": Chosen(
        "cost", "Cost by feature, dearest first; feature is NULL where the calls had none.", ("feature",)
    ),
    "by-variant": Chosen(
        "cost", "Cost by variant, dearest first; variant is NULL where the calls had none.", ("variant",)
    ),
    "by-model": Chosen(
        "cost",
        "Cost by provider and model, dearest first; the model as served, or as asked for where the answer named none.",
        ("provider", "model"),
    ),
    "batches": Chosen(
        "batch-efficiency",
        "Batch efficiency: what one item costs by size of the batch, for each model on hardware of one's own.",
        ("provider", "model", "device"),
    ),
    "anomalies": Chosen(
        "anomalies", "Anomalies: days whose cost stands out from their own past.", parameters=_steps(86_400, 7)
    ),
    "anomalies-by-hour": Chosen(
        "anomalies", "Anomalies: hours whose cost stands out from their own past.", parameters=_steps(3_600, 24)
    ),
    **{
        name: Chosen(
            "bills-reconciliation",
            f"What was metered beside what was billed, by {grain}, provider and model, and why they differ.",
            parameters={"grain": grain},
        )
        for name, grain in (("bills-reconcile", "day"), ("bills-reconcile-by-month", "month"))
    },
    "fully-loaded": Chosen(
        "fully-loaded-cost",
        "Fully loaded cost by tenant: direct, and a proportional share of idle time and of what belongs to nobody.",
        parameters={
            "payer": "tenant",
            "idle_policy": "proportional",
            "overhead_policy": "proportional",
            "reserved": "{}",
            "bills": "no",
        },
    ),
    **{
        f"{part}-cost-per-inference": Chosen(
            "component-cost-per-inference", f"What {what} adds to one inference.", parameters={"component": part}
        )
        for part, what in (
            ("model", "what providers of models charge"),
            ("compute", "compute (GPUs and CPUs, busy and idle)"),
            ("network", "the network"),
            ("storage", "storage (object stores, feature stores, vector databases)"),
        )
    },
}
"""Further names of queries."""

_HIDDEN: Final = frozenset({"bills-reconciliation", "fully-loaded-cost", "component-cost-per-inference"})
"""Files that are asked for by the names of `CHOSEN` only."""


@functools.cache
def named_queries() -> dict[str, NamedQuery]:
    """All queries by name, in the order of their names."""
    files = {
        item.name.removesuffix(".sql"): _read(item.name.removesuffix(".sql"), item.read_text(encoding="utf-8"))
        for item in resources.files(__package__).iterdir()
        if item.name.endswith(".sql")
    }
    found = {name: query for name, query in files.items() if name not in _HIDDEN}
    for name, chosen in CHOSEN.items():
        made = files[chosen.query]
        said = {
            part: functools.reduce(
                lambda text, pair: text.replace(f"<{pair[0]}>", pair[1]), chosen.parameters.items(), getattr(made, part)
            )
            for part in ("definition", "formula", "unit")
        }
        found[name] = replace(
            made,
            name=name,
            title=chosen.title,
            # A breakdown that has a name is no measure of its own.
            measure=made.measure and not chosen.by,
            by=chosen.by or made.by,
            parameters=chosen.parameters,
            **said,
        )
    return dict(sorted(found.items()))


def _read(name: str, text: str) -> NamedQuery:
    lines = text.splitlines()
    head = next((number for number, line in enumerate(lines) if not line.startswith("--")), len(lines))
    said: dict[str, list[str]] = {"notes": []}
    last = "notes"
    for line in (each.removeprefix("--").removeprefix(" ") for each in lines[1:head]):
        is_field = _FIELD.fullmatch(line)
        if is_field:
            last = is_field[1]
            said.setdefault(last, []).append(is_field[2] or "")
        elif line.startswith(" ") and last != "notes":
            said[last][-1] += " " + line.strip()
        else:
            last = "notes"
            said[last].append(line)

    def listed(part: str) -> tuple[str, ...]:
        return tuple(each.strip() for each in ",".join(said.get(part, [])).split(",") if each.strip())

    return NamedQuery(
        name=name,
        title=lines[0].removeprefix("-- "),
        template="\n".join(lines[head:]) + "\n",
        single="single" in said,
        limit=int(said["limit"][0]) if "limit" in said else NO_LIMIT,
        measure="measure" in said,
        by=listed("by"),
        allowed=listed("dimensions"),
        definition=" ".join(said.get("definition", [])),
        formula=" ".join(said.get("formula", [])),
        unit=" ".join(said.get("unit", [])),
        pitfalls=tuple(said.get("pitfall", [])),
        notes=" ".join(said["notes"]),
        asks={
            each[1]: (each[2] or "", each[3])
            for each in map(_PARAMETER.fullmatch, said.get("parameter", []))
            if each is not None
        },
    )


def find(name: str) -> NamedQuery:
    """The query of that name.

    Raises:
        ConfigError: there is none; names the nearest ones.
    """
    known = named_queries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See `tollspan query --list`."
        raise ConfigError(f"There is no query {name!r}.", hint)
    return known[name]


def dimensions_of(query: NamedQuery) -> tuple[str, ...]:
    """Names of the dimensions that a query can be broken down by."""
    return () if not query.divisible else query.allowed or tuple(DIMENSIONS)
