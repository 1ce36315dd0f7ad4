"""QUERIES.md says what the queries and dimensions say.

``TOLLSPAN_WRITE_DOCS=1`` writes it anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from tollspan.processor.queries import DIMENSIONS, NamedQuery, dimensions_of, named_queries

DOCUMENT = Path(__file__).parents[2] / "processor" / "QUERIES.md"

HEAD = """# Queries

Every question that `tollspan query NAME` answers. This page is generated from the queries
(`processor/tollspan/processor/queries`), by
`TOLLSPAN_WRITE_DOCS=1 pytest tests/processor/test_queries_document.py`; `tollspan query NAME --explain` says the same,
with the SQL.

    tollspan query cost-per-inference --by tenant --since 7d
    tollspan query cost-per-1000 --by feature,day --where environment=prod --format csv
    tollspan query compare --by variant --where feature=search
    tollspan query break-even --set owned_monthly=1800

All figures come from the exact ledger, never from sampled bodies, unless a query says so. What has no price is in no
cost, and beside every cost stands how much that leaves out. A cost is NULL where something has no price and nothing has
one. `--where` may be repeated: values of one dimension add, dimensions narrow.

"""


def document() -> str:
    """The page."""
    queries = named_queries().values()
    parts = [HEAD, "## Dimensions\n\n| `--by`, `--where` | what it is |\n|--|--|\n"]
    parts += [f"| `{each.name}` | {each.about}{_time(each.time)} |\n" for each in DIMENSIONS.values()]
    parts.append("\n## Measures\n")
    parts += [_section(each) for each in queries if each.measure]
    parts.append("\n## Questions\n")
    parts += [_section(each) for each in queries if not each.measure]
    return "".join(parts)


def _time(is_time: bool) -> str:
    return "; no filter: `--since` and `--until`" if is_time else ""


def _section(query: NamedQuery) -> str:
    lines = [f"\n### {query.name}\n\n{query.title}\n\n"]
    lines += [
        f"- **{part}**: {said}\n"
        for part, said in (("definition", query.definition), ("formula", query.formula), ("unit", query.unit))
        if said
    ]
    known = dimensions_of(query)
    if known:
        default = f"; unless asked otherwise {', '.join(query.by)}" if query.by else ""
        lines.append(f"- **by**: {'any dimension' if len(known) == len(DIMENSIONS) else ', '.join(known)}{default}\n")
    lines += [
        f"- **`--set {name}=…`**: {about}{f' (default {default})' if default else ''}\n"
        for name, (default, about) in query.asks.items()
    ]
    lines += [f"- {pitfall[0].upper()}{pitfall[1:]}\n" for pitfall in query.pitfalls]
    if query.notes:
        lines.append(f"\n{query.notes}\n" if len(lines) > 1 else f"{query.notes}\n")
    return "".join(lines)


def test_the_page_says_what_the_queries_say() -> None:
    made = document()
    if os.environ.get("TOLLSPAN_WRITE_DOCS"):
        DOCUMENT.write_text(made, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == made, "write it anew: TOLLSPAN_WRITE_DOCS=1"
