"""The report: what inference cost, who caused it and what is not known, on one page.

In: a read-only handle and a window. Out: `build_report` gives plain data (rows of the named queries, money as Decimal),
`print_report` a page for a terminal, a document or a program. ``tollspan report`` and ``tollspan demo`` share both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from rich.console import Console

from tollspan.processor.cli.output import Format, plain, print_rows, text
from tollspan.processor.queries import Rows, run

SECTIONS: Final[tuple[tuple[str, str, str], ...]] = (
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
"""Key in the report, named query, heading."""

_CONSTANT: Final = frozenset({"currency"})
"""Columns that say the same in every row, left out of tables for people."""

_PLACES: Final = (("cost_per_inference", 9), ("cost_per_1000", 6), ("cost_per_request", 9), ("cost_per_item", 12))
"""Columns of quotients → decimal places that people are shown."""

_EXCEPTIONS: Final = frozenset(
    {"unpriced_requests", "unpriced_inferences", "partial_inferences", "failed_calls", "not_billed"}
)


def build_report(reader: Rows, since: datetime | None = None, until: datetime | None = None) -> dict[str, Any]:
    """Gather the report.

    Args:
        reader: a `tollspan.processor.store.Reader` or `Store`.
        since, until: start times taken; None for an open end.

    Returns:
        ``since``, ``until`` (aware datetimes or None), ``total`` and ``telemetry`` (one row each), and a list of rows
        for each key of `SECTIONS`. Money as Decimal; None is unknown.

    Raises:
        StoreError: see `Reader.query`.
    """
    report: dict[str, Any] = {
        "since": since,
        "until": until,
        "total": run(reader, "total", since, until)[0],
        "telemetry": run(reader, "telemetry", since, until)[0],
    }
    for key, name, _ in SECTIONS:
        report[key] = run(reader, name, since, until)
    return report


def print_report(report: Mapping[str, Any], fmt: Format) -> None:
    """Print a report on stdout.

    Args:
        report: from `build_report`.
        fmt: ``table``, ``markdown`` or ``json`` (one object, money as strings).

    Raises:
        ValueError: for ``csv``, which is one table and not nine.
    """
    if fmt is Format.csv:
        raise ValueError("a report is several tables; csv is for one")
    if fmt is Format.json:
        print(json.dumps(plain(report), ensure_ascii=False, indent=2))
        return
    _heading("What inference cost", fmt, level=1)
    for line in summary(report):
        print(f"- {line}" if fmt is Format.markdown else f"  {line}")
    for key, _, title in SECTIONS:
        rows = for_people(report[key])
        if not rows:
            continue
        if fmt is Format.markdown:
            _heading(title, fmt, level=2)
            print_rows(rows, fmt)
        else:
            print()
            print_rows(rows, fmt, title=title)


def summary(report: Mapping[str, Any]) -> list[str]:
    """The report in a few sentences, most important first."""
    total, telemetry = report["total"], report["telemetry"]
    currency = total["currency"]
    lines = [f"{text(total['cost'])} {currency} for {text(total['inferences'])} inferences{_window(report)}"]
    overall = next((row for row in report["cost_per_inference"] if row["component"] == "all"), None)
    if overall is not None and overall["cost_per_inference"] is not None:
        each, thousand = overall["cost_per_inference"], overall["cost_per_1000"]
        lines.append(f"{each:.9f} {currency} each, {thousand:.6f} {currency} per 1,000")
    if total["unpriced_inferences"]:
        count = total["unpriced_inferences"]
        lines.append(f"{text(count)} {_s(count, 'inference')} without a price, in none of these sums")
    if total["unpriced_rows"] > total["unpriced_inferences"]:
        count = total["unpriced_rows"] - total["unpriced_inferences"]
        other = f"{_s(count, 'span')} that {'is' if count == 1 else 'are'} no inference"
        lines.append(f"{text(count)} {other} (model loads, feature reads ...) without a price, in none of these sums")
    if total["partial_inferences"]:
        count = total["partial_inferences"]
        lines.append(f"{text(count)} {_s(count, 'inference')} priced in part: the sums are a lower bound")
    if total["estimated_inferences"]:
        count = total["estimated_inferences"]
        cost = "unknown" if total["estimated_cost"] is None else f"{text(total['estimated_cost'])} {currency}"
        lines.append(f"{text(count)} {_s(count, 'inference')} with estimated usage ({cost} of these sums)")
    if total["not_billed"]:
        count = total["not_billed"]
        lines.append(f"{text(count)} failed {_s(count, 'call')} that the provider did not bill")
    retries = "retries not told" if total["retries"] is None else f"retries: {text(total['retries'])}"
    lines.append(f"{retries}, cold starts: {text(total['cold_starts'])}")
    kept, spans = telemetry["all_kept_spans"], telemetry["recorded_spans"]
    share = f" ({100 * kept / spans:.1f} %)" if spans else ""
    lines.append(
        f"{text(spans)} spans in {text(telemetry['traces'])} traces recorded, {text(kept)} spans{share} in "
        f"{text(telemetry['kept_traces'])} traces kept"
    )
    lines += _idle(report)
    telemetry_cost = telemetry["cost"]
    price = "no price for them" if telemetry_cost is None else f"{text(telemetry_cost)} {currency}"
    if telemetry_cost is not None and telemetry["unpriced_traces"]:
        price += f", and {text(telemetry['unpriced_traces'])} traces without a price"
    lines.append(f"{text(telemetry['bytes'])} bytes of telemetry: {price}")
    return lines


def cost_by_part(report: Mapping[str, Any]) -> dict[str, Decimal | None]:
    """Cost of each part of the bill; None where nothing of it has a price. They add up to the total."""
    parts: dict[str, Decimal | None] = {}
    for row in report["per_request"]:
        cost, before = row["cost"], parts.get(row["part"])
        parts[row["part"]] = cost if before is None else before if cost is None else before + cost
    return parts


def _idle(report: Mapping[str, Any]) -> list[str]:
    """How much of what the own machines cost is for time in which they were idle."""
    parts, currency = cost_by_part(report), report["total"]["currency"]
    if "idle" not in parts:
        return ["idle time of machines: not measured"] if "compute" in parts else []
    if parts["idle"] is None:
        return ["idle time of machines: measured, without a price"]
    busy = parts.get("compute")
    beside = "" if busy is None else f", beside {text(busy)} {currency} for the time that spans tell"
    return [f"idle time of machines: {text(parts['idle'])} {currency}{beside}"]


def for_people(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a table that is read: quotients rounded, instants to the second (UTC), and no column without news.

    Without news are the currency, a column of unknowns (but never the cost: that it is not known is news), and a count
    of exceptions that is 0 in every row.
    """
    dull = {
        name
        for name in (rows[0] if rows else ())
        if name in _CONSTANT
        or (name != "cost" and all(row[name] is None or row[name] == "" for row in rows))
        or (name in _EXCEPTIONS and not any(row[name] for row in rows))
    }
    shown = []
    for row in rows:
        cells = {name: value for name, value in row.items() if name not in dull}
        for name, places in _PLACES:
            if cells.get(name) is not None:
                cells[name] = round(cells[name], places)
        for name, value in cells.items():
            if isinstance(value, datetime):
                cells[name] = f"{value:%Y-%m-%d %H:%M:%S}"
        shown.append(cells)
    return shown


def _heading(title: str, fmt: Format, level: int) -> None:
    if fmt is Format.markdown:
        print(f"{'' if level == 1 else chr(10)}{'#' * level} {title}\n")
    else:
        Console(highlight=False).print(f"[bold]{title}[/]")


def _window(report: Mapping[str, Any]) -> str:
    since, until = report["since"], report["until"]
    start = f" from {since:%Y-%m-%d %H:%M} UTC" if since else ""
    return start + (f" until {until:%Y-%m-%d %H:%M} UTC" if until else "")


def _s(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"
