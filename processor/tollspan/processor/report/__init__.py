"""The report: what inference cost, who caused it and what is not known, on one page.

In: a read-only handle, a window and filters. Out: `build_report` gives plain data (rows of the named queries, money as
Decimal); `print_report` makes a page for a terminal, a document or a program of it, `html_page` a file that needs
nothing but a browser. ``tollspan report`` and ``tollspan demo`` share them. `sections` says what a report consists of.
"""

from __future__ import annotations

from tollspan.processor.report.cells import for_people
from tollspan.processor.report.gather import build_report
from tollspan.processor.report.html import html_page
from tollspan.processor.report.pages import print_report
from tollspan.processor.report.sections import BRIEF, GROUPS, SECTIONS, Section, chosen
from tollspan.processor.report.words import cost_by_part, footnotes, summary

__all__ = [
    "BRIEF",
    "GROUPS",
    "SECTIONS",
    "Section",
    "build_report",
    "chosen",
    "cost_by_part",
    "footnotes",
    "for_people",
    "html_page",
    "print_report",
    "summary",
]
