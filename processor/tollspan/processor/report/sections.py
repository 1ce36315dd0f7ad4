"""What a report consists of, as data: each section is a named query that answers somebody's question.

`GROUPS` are the readers: who pays (executive), who answers for the bill (finops), who is called at night (sre).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from tollspan.processor.errors import ConfigError

Draws = Literal["", "trend", "forecast"]

GROUPS: Final = {
    "executive": "What it costs",
    "finops": "Who and what causes it",
    "sre": "How it runs",
}
"""Group → its heading."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section.

    Attributes:
        key: in the JSON form and for ``--section``.
        query: the named query.
        title: heading.
        group: key of `GROUPS`.
        asks: the question it answers.
        by: dimensions; None for the query's own.
        means: what its figures are, where the query has no definition.
        unit: of them, as they are shown; '' = as the query says.
        least: rows at most that people are shown; the JSON form has all.
        limit: rows at most that are asked for; None for the query's own.
        bar: column that bars are drawn of; '' = none.
        sums: its rows are parts of the total, so that what is not shown can be told.
        draws: what is drawn of it, beside its table or in its place.
        before: it looks at the window before, so it needs a beginning.
        open_start: it looks back by itself, so the window's beginning is left out.
        replaceable: ``--by`` takes its place.
        keep: value of ``component`` that is kept; '' = all rows.
        nothing: what it means that there are no rows; '' = it is left out of pages.
        parameters: of the query, ``name=value``.
    """

    key: str
    query: str
    title: str
    group: str
    asks: str
    by: tuple[str, ...] | None = None
    means: str = ""
    unit: str = ""
    least: int = 12
    limit: int | None = None
    bar: str = ""
    sums: bool = False
    draws: Draws = ""
    before: bool = False
    open_start: bool = False
    replaceable: bool = False
    keep: str = ""
    nothing: str = ""
    parameters: tuple[str, ...] = ()


def _broken_down(name: str, *by: str) -> Section:
    return Section(
        f"by_{name}",
        "cost-per-inference",
        f"By {name}",
        "finops",
        f"What does each {name} cost, in all, for one inference and for 1,000?",
        by,
        bar="cost",
        sums=True,
        replaceable=True,
        keep="all",
    )


def _drivers(name: str, *by: str) -> Section:
    return Section(
        f"drivers_by_{name}",
        "drivers",
        f"What changed most, by {name}",
        "executive",
        "Is it more traffic, or dearer calls?",
        by,
        least=8,
        bar="change",
        before=True,
        replaceable=True,
    )


SECTIONS: Final[tuple[Section, ...]] = (
    Section(
        "change",
        "drivers",
        "Beside the window before",
        "executive",
        "Do we spend more than before, and why?",
        (),
        before=True,
    ),
    Section(
        "trend",
        "cost",
        "Trend",
        "executive",
        "Where is it going?",
        ("day",),
        least=31,
        bar="cost",
        draws="trend",
    ),
    Section(
        "forecast",
        "forecast",
        "Forecast of the month",
        "executive",
        "What will this month cost?",
        (),
        draws="forecast",
        open_start=True,
        nothing="Nothing was spent in this month or in the four weeks before its last day so far.",
    ),
    _drivers("feature", "feature"),
    _drivers("tenant", "tenant"),
    _drivers("model", "provider", "model"),
    Section(
        "unpriced",
        "unpriced",
        "Without a price",
        "finops",
        "What is in none of these sums, and why?",
        nothing="Everything has a price.",
        means="calls and other spans that have no price, or one for a part of their usage",
        unit="rows; what is known of their cost in USD",
    ),
    Section(
        "cost_per_inference",
        "cost-per-inference",
        "Cost per inference",
        "finops",
        "What does one inference cost, and which part of the bill is it?",
    ),
    _broken_down("feature", "feature"),
    _broken_down("tenant", "tenant"),
    _broken_down("model", "provider", "model"),
    _broken_down("variant", "variant"),
    Section(
        "by_component",
        "by-component",
        "By component",
        "finops",
        "Which part of the bill is how big?",
        bar="cost",
        means="the exact sum of what is priced, by part of the bill; a call counts in each part that it used",
        unit="USD",
    ),
    Section(
        "per_request",
        "per-request",
        "Per request",
        "finops",
        "What does one request of a user cost?",
        bar="cost",
        means="what requests cost by workflow and part of the bill; a request is a trace with an inference, and one "
        "that has something without a price is in no mean",
        unit="USD",
    ),
    Section(
        "attribution",
        "attribution",
        "Attribution",
        "finops",
        "For how much of it does somebody answer?",
        (),
    ),
    Section(
        "cache_savings",
        "cache-savings",
        "Prompt caches",
        "finops",
        "What did caches save?",
        nothing="No call told input tokens.",
    ),
    Section(
        "price_changes",
        "price-changes",
        "Price changes",
        "finops",
        "Which prices changed, and what did it do?",
        limit=20,
        nothing="No price that was charged changed in this window.",
    ),
    Section(
        "anomalies",
        "anomalies",
        "Anomalies",
        "finops",
        "What stands out?",
        (),
        limit=20,
        nothing="Nothing stands out, or there is too little to say so.",
    ),
    Section(
        "traces",
        "traces",
        "Dearest traces",
        "sre",
        "Which single requests cost most?",
        least=10,
        limit=10,
        bar="cost",
        means="the traces with the highest exact cost, whether or not their spans were kept",
        unit="USD",
    ),
    Section(
        "retries",
        "retries",
        "Retries and failures",
        "sre",
        "Which calls fail or are tried again?",
        means="calls that failed, and those that the client tried again inside one call, by model",
        unit="calls",
    ),
    Section(
        "retry_inflation",
        "retry-inflation",
        "Retry inflation",
        "sre",
        "How much dearer is it for that?",
        ("provider", "model"),
    ),
    Section(
        "cold_start_rate",
        "cold-start-rate",
        "Cold start rate",
        "sre",
        "How many wait for a model to start?",
        (),
    ),
    Section(
        "cold_starts",
        "cold-starts",
        "Cold starts",
        "sre",
        "What does a cold start take?",
        means="first calls of a model in a process beside its other calls",
        unit="USD; milliseconds",
    ),
    Section("latency", "cost-by-latency", "Cost by latency", "sre", "Are slow calls the dear ones?", ()),
    Section(
        "utilization",
        "utilization",
        "Utilization",
        "sre",
        "How much of what is paid for works?",
        (),
        nothing="No time of machines was measured.",
    ),
    Section(
        "idle",
        "idle",
        "Machines held",
        "sre",
        "Which machines stand idle, and what for?",
        means="what devices cost while they were held: the time that spans tell (busy), and that in which their "
        "processes did nothing with them (idle)",
        unit="USD; seconds; percent",
    ),
    Section(
        "batches",
        "batch-efficiency",
        "Batches",
        "sre",
        "Would larger batches be cheaper?",
        ("provider", "model", "device"),
    ),
    Section(
        "observability",
        "observability-cost-per-inference",
        "Telemetry's own cost",
        "sre",
        "What does observing all this cost?",
        (),
    ),
)
"""Every section of the full report, in order."""

BRIEF: Final[tuple[Section, ...]] = tuple(
    Section(key, query, title, "finops", "")
    for key, query, title in (
        ("cost_per_inference", "cost-per-inference", "Cost per inference"),
        ("by_tenant", "by-tenant", "By tenant"),
        ("by_feature", "by-feature", "By feature"),
        ("by_model", "by-model", "By model"),
        ("by_variant", "by-variant", "By variant"),
        ("by_component", "by-component", "By component"),
        ("per_request", "per-request", "Per request"),
        ("batches", "batches", "Batches"),
        ("idle", "idle", "Machines held"),
        ("retries", "retries", "Retries and failures"),
        ("cold_starts", "cold-starts", "Cold starts"),
        ("unpriced", "unpriced", "Without a price"),
    )
)
"""What a run of some minutes has an answer to: the demo's."""


def chosen(names: Iterable[str], by: Sequence[str] = ()) -> tuple[Section, ...]:
    """Sections by what was typed.

    Args:
        names: keys or groups, each one or several with commas; none = all.
        by: dimensions that take the place of feature, tenant, model and variant.

    Raises:
        ConfigError: there is no such section; names the nearest.
    """
    sections = [each for each in SECTIONS if not (by and each.replaceable)]
    if by:
        said = ", ".join(by)
        drivers = replace(_drivers("by", *by), key="drivers_by", title=f"What changed most, by {said}")
        own = replace(
            _broken_down("by", *by), key="by", title=f"By {said}", asks="What does each cost, in all and for one?"
        )
        at = next(n for n, each in enumerate(sections) if each.group != "executive")
        after = next(n for n, each in enumerate(sections) if each.key == "cost_per_inference") + 1
        sections = [*sections[:at], drivers, *sections[at:after], own, *sections[after:]]
    wanted = [part.strip().replace("-", "_") for each in names for part in each.split(",") if part.strip()]
    if not wanted:
        return tuple(sections)
    known = {each.key for each in sections} | set(GROUPS)
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            all_names = ", ".join([*GROUPS, *(each.key for each in sections)])
            raise ConfigError(f"There is no section {name!r}.", f"{hint}There are: {all_names}.")
    return tuple(each for each in sections if each.key in wanted or each.group in wanted)
