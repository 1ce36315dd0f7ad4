"""What a report says in sentences: the summary, what a section means, and what its sums leave out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from tollspan.processor.cli.output import text
from tollspan.processor.queries import find
from tollspan.processor.report.sections import Section


def summary(report: Mapping[str, Any]) -> list[str]:
    """The report in a few sentences, most important first; of what was asked."""
    total, telemetry = report["total"], report["telemetry"]
    currency = total["currency"]
    lines = [f"{text(total['cost'])} {currency} for {text(total['inferences'])} inferences{window_text(report)}"]
    if report["nothing"]:
        return [*lines, report["nothing"]]
    overall = next((row for row in report.get("cost_per_inference") or () if row["component"] == "all"), None)
    if overall is not None and overall["cost_per_inference"] is not None:
        each, thousand = overall["cost_per_inference"], overall["cost_per_1000"]
        lines.append(f"{each:.9f} {currency} each, {thousand:.6f} {currency} per 1,000")
    lines += left_out(report)
    if report["errors"]:
        lines.append(f"COULD NOT BE READ: {', '.join(_title(key, report) for key in report['errors'])}")
    if report["moved"]:
        lines.append("spans arrived while this was read, so its sections may differ by them; an --until prevents that")
    lines += _change(report)
    lines += _forecast(report)
    retries = "retries not told" if total["retries"] is None else f"retries: {text(total['retries'])}"
    lines.append(f"{retries}, cold starts: {text(total['cold_starts'])}")
    if telemetry is not None:
        kept, spans = telemetry["all_kept_spans"], telemetry["recorded_spans"]
        share = f" ({100 * kept / spans:.1f} %)" if spans else ""
        lines.append(
            f"{text(spans)} spans in {text(telemetry['traces'])} traces recorded, {text(kept)} spans{share} in "
            f"{text(telemetry['kept_traces'])} traces kept"
        )
    lines += _idle(report)
    if telemetry is not None:
        telemetry_cost = telemetry["cost"]
        price = "no price for them" if telemetry_cost is None else f"{text(telemetry_cost)} {currency}"
        if telemetry_cost is not None and telemetry["unpriced_traces"]:
            price += f", and {text(telemetry['unpriced_traces'])} traces without a price"
        lines.append(f"{text(telemetry['bytes'])} bytes of telemetry: {price}")
    return lines


def lacking(report: Mapping[str, Any]) -> list[str]:
    """What has no price, or one for a part of it: by how much the sums are too low nobody knows."""
    total = report["total"]
    lines = []
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
    return lines


def left_out(report: Mapping[str, Any]) -> list[str]:
    """What no sum contains, or contains only in part or by an estimate."""
    total, lines = report["total"], lacking(report)
    if total["estimated_inferences"]:
        count = total["estimated_inferences"]
        cost = "unknown" if total["estimated_cost"] is None else f"{text(total['estimated_cost'])} {total['currency']}"
        lines.append(f"{text(count)} {_s(count, 'inference')} with estimated usage ({cost} of these sums)")
    if total["not_billed"]:
        count = total["not_billed"]
        lines.append(f"{text(count)} failed {_s(count, 'call')} that the provider did not bill")
    return lines


def footnotes(report: Mapping[str, Any]) -> list[str]:
    """What to know of every figure: what the sums hold and leave out, how they are rounded, which time they are of."""
    lines = [
        *left_out(report),
        "every billable span is in these sums, whether or not its trace was kept: no figure comes from a sample",
        "money is exact to 12 places; means are cut or rounded where they are shown, the JSON form has all places",
        "spans count by their start (UTC); a span that arrives later changes a report that is made again",
        "a dash is what nobody told; it is never 0",
    ]
    if report["where"]:
        lines.insert(0, f"only {'; '.join(report['where'])}")
    why: dict[str, list[str]] = {}
    for key, reason in report["not_told"].items():
        why.setdefault(reason, []).append(_title(key, report))
    lines += [f"not told: {', '.join(titles)}. {reason.rstrip('.')}" for reason, titles in why.items()]
    return [f"{line[0].upper()}{line[1:]}." for line in lines]


def _title(key: str, report: Mapping[str, Any]) -> str:
    return next((each.title for each in report["sections"] if each.key == key), key)


_SHOWN: Final = (
    ("a share from 0 to 1", "percent"),
    ("shares from 0 to 1", "percent"),
    ("nanoseconds", "milliseconds"),
)
"""Units of queries → as a report shows them."""


def means(section: Section) -> str:
    """One line that says what a section's figures are, and their unit."""
    query = find(section.query)
    said = (section.means or query.definition or query.title).rstrip(".")
    unit = section.unit or query.unit
    for theirs, ours in _SHOWN:
        unit = unit.replace(theirs, ours)
    return f"{said[0].upper()}{said[1:]}. Unit: {unit}."


def cost_by_part(report: Mapping[str, Any]) -> dict[str, Decimal | None]:
    """Cost of each part of the bill; None where nothing of it has a price. They add up to the total."""
    parts: dict[str, Decimal | None] = {}
    for row in report["per_request"]:
        cost, before = row["cost"], parts.get(row["part"])
        parts[row["part"]] = cost if before is None else before if cost is None else before + cost
    return parts


def signed(amount: Decimal) -> str:
    """An amount with its sign: +0.5, −0.5."""
    return f"{'−' if amount < 0 else '+'}{text(abs(amount))}"


def _change(report: Mapping[str, Any]) -> list[str]:
    """How the window differs from the one before, and how much of that is traffic and how much is price."""
    if report.get("change") is None:
        return []
    row = next(iter(report["change"]), None)
    if row is None or row["change"] is None:
        return ["beside the window before: not known, one of the two has nothing with a price"]
    currency = row["currency"]
    if row["cost_before"] == 0:
        return ["nothing was spent in the window of the same length before"]
    line = f"{signed(row['change'])} {currency} ({row['percent']:+.1f} %) beside the window of the same length before"
    if row["volume_effect"] is not None:
        line += (
            f": {signed(row['volume_effect'])} for {text(row['priced_inferences'])} priced inferences where it was "
            f"{text(row['priced_before'])}, {signed(row['rate_effect'])} for what one costs"
        )
    if row["unpriced_inferences"] or row["unpriced_before"]:
        line += f" ({text(row['unpriced_inferences'])} and {text(row['unpriced_before'])} without a price left out)"
    return [line]


def _forecast(report: Mapping[str, Any]) -> list[str]:
    row = next(iter(report.get("forecast") or ()), None)
    if row is None:
        return []
    month = f"{row['month']:%B %Y}"
    if row["forecast"] is None:
        return [f"forecast of {month}: not known from the first day; {text(row['spent'])} {row['currency']} so far"]
    line = f"forecast of {month}: {text(row['forecast'])} {row['currency']}"
    if row["forecast_from"] is not None:
        line += f", probably between {row['forecast_from']:.6f} and {row['forecast_to']:.6f}"
    return [line]


def _idle(report: Mapping[str, Any]) -> list[str]:
    """How much of what the own machines cost is for time in which they were idle."""
    if report.get("per_request") is None:
        return []
    parts, currency = cost_by_part(report), report["total"]["currency"]
    if "idle" not in parts:
        return ["idle time of machines: not measured"] if "compute" in parts else []
    if parts["idle"] is None:
        return ["idle time of machines: measured, without a price"]
    busy = parts.get("compute")
    beside = "" if busy is None else f", beside {text(busy)} {currency} for the time that spans tell"
    return [f"idle time of machines: {text(parts['idle'])} {currency}{beside}"]


def window_text(report: Mapping[str, Any]) -> str:
    """`` from … until …``, or '' where both ends are open."""

    def said(word: str, at: datetime | None) -> str:
        return f" {word} {at:%Y-%m-%d %H:%M} UTC" if at else ""

    return said("from", report["since"]) + said("until", report["until"])


def _s(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"
