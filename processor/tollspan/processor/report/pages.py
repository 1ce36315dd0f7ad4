"""A report for a terminal, a document or a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from importlib.metadata import version
from typing import Any, Final

from rich.console import Console

from tollspan.processor.cli.output import Format, plain, print_rows, text
from tollspan.processor.queries import find
from tollspan.processor.report.cells import bars, first_rows, for_people, table
from tollspan.processor.report.sections import GROUPS, Section
from tollspan.processor.report.words import footnotes, means, summary

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
_BAR: Final = 24
"""Characters of the longest bar."""


def print_report(report: Mapping[str, Any], fmt: Format, *, brief: bool = False) -> None:
    """Print a report on stdout.

    Args:
        report: from `build_report`.
        fmt: ``table``, ``markdown`` or ``json`` (one object, money as strings).
        brief: tables alone, with all their rows.

    Raises:
        ValueError: for ``csv``, which is one table.
    """
    if fmt is Format.csv:
        raise ValueError("a report is several tables; csv is for one")
    if fmt is Format.json:
        print(json.dumps(as_object(report), ensure_ascii=False, indent=2))
        return
    _heading("What inference cost", fmt, level=1)
    _list(summary(report), fmt)
    group, described = "", set[str]()
    for section in () if report["nothing"] else report["sections"]:
        error = report["errors"].get(section.key)
        if brief:
            if rows := for_people(report[section.key] or []):
                _gap(fmt)
                _heading(section.title, fmt, level=2, title=True)
                _table(rows, fmt, title=section.title)
            continue
        rows, note = table(section, report)
        if section.key in report["not_told"] or not (rows or error or section.nothing):
            continue  # why it is not told stands among the footnotes
        if section.group != group:
            group = section.group
            _gap(fmt)
            _heading(GROUPS[group], fmt, level=2)
        _gap(fmt)
        _heading(section.title, fmt, level=3)
        if (said := means(section)) not in described:
            described.add(said)
            _line(said, fmt, dim=True)
        if not rows:
            _line(failed(error) if error else section.nothing, fmt)
            continue
        _table(_drawn(section, report, rows) if section.draws == "trend" else rows, fmt)
        if note:
            _line(note, fmt)
    if not (brief or report["nothing"]):
        _gap(fmt)
        _heading("What these figures leave out", fmt, level=2)
        _list(footnotes(report), fmt)


def as_object(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report for JSON: rows as they are (money as text), and what each section means."""
    body = {name: plain(value) for name, value in report.items() if name != "sections"}
    about = {
        each.key: {
            "title": each.title,
            "group": each.group,
            "asks": each.asks,
            "query": each.query,
            "definition": (query := find(each.query)).definition or each.means or query.title,
            "formula": query.formula,
            "unit": query.unit or each.unit,
            "pitfalls": list(query.pitfalls),
        }
        for each in report["sections"]
    }
    return {
        **body,
        "version": version("tollspan"),
        "summary": summary(report),
        "footnotes": footnotes(report),
        "about": about,
    }


def failed(error: str) -> str:
    """What stands in the place of a section that the store could not answer."""
    return f"COULD NOT BE READ. {error} The other sections stand."


def stretch_text(at: date) -> str:
    """The beginning of a stretch of time: ``2026-11-01``, ``2026-11-01 12:00``."""
    return f"{at:%Y-%m-%d %H:%M}" if isinstance(at, datetime) else f"{at:%Y-%m-%d}"


def _drawn(section: Section, report: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A trend's rows with a bar in each."""
    name = next(iter(rows[0]))
    return [
        {**row, name: stretch_text(told[name]), "": "unknown" if size is None else _bar(size)}
        for row, told, size in zip(rows, first_rows(section, report), bars(section, report), strict=True)
    ]


def _bar(size: Decimal) -> str:
    whole, rest = divmod(int(size * _BAR * 8), 8)
    return f"{'█' * whole}{_EIGHTHS[rest]}".strip()


def _line(line: str, fmt: Format, *, dim: bool = False) -> None:
    if fmt is Format.markdown:
        print(f"{text(line)}\n")
    elif not sys.stdout.isatty():
        print(text(line))
    else:
        Console(highlight=False, markup=False, emoji=False).print(text(line), style="dim" if dim else None)


def _list(lines: Sequence[str], fmt: Format) -> None:
    for line in lines:
        print(f"- {text(line)}" if fmt is Format.markdown else f"  {text(line)}")
    if fmt is Format.markdown:
        print()


def _table(rows: Sequence[Mapping[str, Any]], fmt: Format, title: str | None = None) -> None:
    print_rows(rows, fmt, title=title)
    if fmt is Format.markdown:
        print()


def _gap(fmt: Format) -> None:
    """Before a heading; what stands before one in Markdown ends in an empty line."""
    if fmt is not Format.markdown:
        print()


def _heading(heading: str, fmt: Format, level: int, *, title: bool = False) -> None:
    """A heading; ``title`` is one that a table in a terminal has already."""
    if fmt is Format.markdown:
        print(f"{'#' * level} {heading}\n")
    elif not title:
        Console(highlight=False, markup=False).print(heading, style="bold underline" if level == 2 else "bold")
