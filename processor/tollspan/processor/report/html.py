"""A report as one HTML file: no scripts, nothing from elsewhere; drawn in SVG, so that it prints and can be sent.

Every text goes through Jinja's escaping; the page's own policy (CSP) would let no script run either.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from importlib import resources
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from tollspan.processor.cli.output import text
from tollspan.processor.queries import find
from tollspan.processor.report.cells import bars, stretches, table
from tollspan.processor.report.pages import failed, stretch_text
from tollspan.processor.report.sections import GROUPS, Section
from tollspan.processor.report.words import footnotes, lacking, means, summary, window_text

if TYPE_CHECKING:
    from jinja2 import Template

_PLAIN_PLACES: Final = 2
"""Decimal places of a headline figure that stand large; the others follow small, for none is left out."""


def html_page(report: Mapping[str, Any]) -> str:
    """The report of `build_report` as a whole HTML document."""
    asked: list[Section] = [each for each in report["sections"] if each.key not in report["not_told"]]
    shown = [] if report["nothing"] else [part for each in asked if (part := _section(each, report)) is not None]
    for n, part in enumerate(shown):  # said once, where sections are of one kind
        part["means"] = "" if any(each["means"] == part["means"] for each in shown[:n]) else part["means"]
    return _template().render(
        title="What inference cost",
        window=window_text(report).strip() or "everything in the ledger",
        where=report["where"],
        made_at=f"{report['made_at']:%Y-%m-%d %H:%M} UTC",
        version=version("tollspan"),
        nothing=report["nothing"],
        warnings=lacking(report),
        listed=any(part["key"] == "unpriced" for part in shown),
        broken=[each.title for each in asked if each.key in report["errors"]],
        tiles=_tiles(report),
        summary=summary(report),
        groups=[
            (key, heading, parts)
            for key, heading in GROUPS.items()
            if (parts := [part for part in shown if part["group"] == key])
        ],
        footnotes=footnotes(report),
    )


@functools.cache
def _template() -> Template:
    # Here, so that commands that write no HTML do not wait for it.
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def own(name: str) -> str:
        return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.globals["css"] = Markup(own("page.css"))  # ours alone: no text of a user's is in it
    return page.from_string(own("page.html.j2"))


def _tiles(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures that stand at the top: name, value, the rest of its digits, unit, a line below."""
    total = report["total"]
    currency = total["currency"]
    tiles = [_tile("Spend", total["cost"], currency, f"{text(total['inferences'])} inferences")]
    change = next(iter(report.get("change") or ()), None)
    if change is not None and change["change"] is not None and change["percent"] is not None:
        tiles.append(
            _tile(
                "Beside the window before",
                change["change"],
                currency,
                f"{change['percent']:+.1f} % of {_money(change['cost_before'])}",
                sign=True,
            )
        )
    overall = next((row for row in report.get("cost_per_inference") or () if row["component"] == "all"), None)
    if overall is not None and overall["cost_per_1000"] is not None:
        each = round(overall["cost_per_inference"], 9)
        tiles.append(
            _tile("1,000 inferences", round(overall["cost_per_1000"], 6), currency, f"{each:f} {currency} each")
        )
    forecast = next(iter(report.get("forecast") or ()), None)
    if forecast is not None and forecast["forecast"] is not None:
        low, high = forecast["forecast_from"], forecast["forecast_to"]
        about = "too few days for an interval" if low is None else f"{low:,.2f} to {high:,.2f}, 95 %"
        tiles.append(_tile(f"Forecast, {forecast['month']:%B %Y}", forecast["forecast"], currency, about))
    open_calls = total["unpriced_inferences"]
    tiles.append(
        {
            "name": "Without a price",
            "value": text(open_calls),
            "rest": "",
            "unit": "inferences",
            "about": "in none of these sums" if open_calls else "every inference has one",
            "bad": bool(open_calls),
        }
    )
    return tiles


def _tile(name: str, value: Decimal | None, unit: str, about: str, *, sign: bool = False) -> dict[str, Any]:
    if value is None:
        return {"name": name, "value": "unknown", "rest": "", "unit": "", "about": about, "bad": True}
    whole, _, digits = _money(value).partition(".")
    plus = "+" if sign and value > 0 else ""
    return {
        "name": name,
        "value": plus + whole + (f".{digits[:_PLAIN_PLACES]}" if digits else ""),
        "rest": digits[_PLAIN_PLACES:],
        "unit": unit,
        "about": about,
        "bad": False,
    }


def _section(section: Section, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the template needs of a section; None where there is nothing to say."""
    query = find(section.query)
    error = report["errors"].get(section.key)
    rows, note = table(section, report)
    if not rows and error is None and not section.nothing:
        return None
    names = list(rows[0]) if rows else []
    numeric = {name: any(isinstance(row[name], int | float | Decimal) for row in rows) for name in names}
    lengths = bars(section, report)
    trend = section.draws == "trend"
    return {
        "key": section.key,
        "group": section.group,
        "title": section.title,
        "asks": section.asks,
        "means": means(section),
        "pitfalls": [f"{each[0].upper()}{each[1:]}" for each in query.pitfalls],
        "query": section.query,
        "error": None if error is None else failed(error),
        "nothing": None if rows else section.nothing,
        "note": note,
        "columns": [(name, name.replace("_", " "), numeric[name]) for name in names],
        # A trend's bars stand above its table, the others' beside their rows.
        "rows": [
            (
                [(_cell(row[name]), numeric[name]) for name in names],
                None if trend or n >= len(lengths) or (size := lengths[n]) is None else _width(size),
                bool(section.bar and isinstance(value := row.get(section.bar), Decimal) and value < 0),
            )
            for n, row in enumerate(rows)
        ],
        "bars": bool(lengths) and not trend,
        "trend": _trend(section, report) if trend else None,
        "forecast": _forecast(report[section.key] or []) if section.draws == "forecast" else None,
    }


def _trend(section: Section, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """A trend's bars, all of the window: height in percent of the highest, None where the cost is unknown."""
    found = stretches(report, section)
    costs = [Decimal(0) if row is None else row["cost"] for _, row in found]
    most = max((cost for cost in costs if cost is not None), default=Decimal(0))
    if len(found) < 2 or not most:
        return None
    return {
        "bars": [
            {
                "at": stretch_text(at),
                "height": None if cost is None else _width(cost / most),
                "says": "no price known" if cost is None else f"{_money(cost)} USD",
                "calls": text(0 if row is None else row["inferences"]),
                "open": bool(row and row["unpriced_inferences"]),
            }
            for (at, row), cost in zip(found, costs, strict=True)
        ],
        "most": _money(most),
        "marks": [stretch_text(found[n][0]) for n in dict.fromkeys((0, len(found) // 2, len(found) - 1))],
        "open": any(row and row["unpriced_inferences"] for _, row in found),
    }


def _forecast(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Widths in percent: what was spent, what is expected, and the interval."""
    row = next(iter(rows), None)
    if row is None or not row["forecast"]:
        return None
    end = max(row["forecast"], row["forecast_to"] or 0)
    return {
        "spent": _width(row["spent"] / end),
        "rest": _width(row["expected_rest"] / end),
        "from": None if row["forecast_from"] is None else _width(row["forecast_from"] / end),
        "to": None if row["forecast_to"] is None else _width(row["forecast_to"] / end),
        "says": f"{_money(row['spent'])} spent, {_money(row['expected_rest'])} expected",
    }


def _cell(value: object) -> str:
    if isinstance(value, Decimal):
        return _money(value)
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, int | float):
        return text(value).replace("-", "−")
    return text(value)


def _money(value: Decimal) -> str:
    """Every digit, thousands apart, no zeros behind the last."""
    shown = f"{value:,f}"
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return shown.replace("-", "−")


def _width(share: Decimal) -> str:
    """A length for SVG, in percent: for the eye alone."""
    return f"{100 * share:.2f}"
