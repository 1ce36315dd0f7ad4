"""One trace as a tree: what each call cost, and each branch with everything beneath it.

In: rows of the named query ``trace``. Out: the same rows in the order of a tree, with depth and sums of branches.
``tollspan trace`` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

_OPEN: Final = frozenset({"unpriced", "invalid"})
"""Status of what should have a price and has none."""


def tree(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put spans in the order of their tree.

    Args:
        rows: of the query ``trace``, each span once, in any order.

    Returns:
        The rows, every parent before its children and siblings by start, each with ``depth`` (0 for a root),
        ``branch_cost`` (exact; NULL where something of the branch has no price and nothing has one),
        ``branch_inferences`` and ``branch_unpriced``. A span whose parent is not among the rows is a root, and so is
        the first of a circle.
    """
    by_id = {row["span_id"]: row for row in rows}
    in_time = sorted(rows, key=lambda row: (row["start_time"], row["span_id"]))
    children: dict[str, list[str]] = {}
    for row in in_time:
        if row["parent_span_id"] in by_id and row["parent_span_id"] != row["span_id"]:
            children.setdefault(row["parent_span_id"], []).append(row["span_id"])
    roots = [row["span_id"] for row in in_time if row["parent_span_id"] not in by_id]
    ordered: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    above: list[int] = []  # place of each row's parent, -1 = none
    for start in [*roots, *(row["span_id"] for row in in_time)]:
        waiting = [(start, 0, -1)]
        while waiting:
            span, depth, parent = waiting.pop()
            if span in places:
                continue
            places[span] = len(ordered)
            above.append(parent)
            row = by_id[span]
            ordered.append(
                {
                    **row,
                    "depth": depth,
                    "branch_cost": row["cost"],
                    "branch_inferences": int(row["inference"]),
                    "branch_unpriced": int(row["cost_status"] in _OPEN),
                }
            )
            waiting += [(child, depth + 1, places[span]) for child in reversed(children.get(span, []))]
    known = [row["cost"] is not None for row in ordered]
    for place in reversed(range(len(ordered))):
        row, parent = ordered[place], above[place]
        if not known[place]:
            row["branch_cost"] = None if row["branch_unpriced"] else Decimal(0)
        if parent < 0:
            continue
        # Children stand behind their parent, so this branch is whole.
        for name in ("branch_inferences", "branch_unpriced"):
            ordered[parent][name] += row[name]
        if known[place]:
            ordered[parent]["branch_cost"] = (ordered[parent]["branch_cost"] or Decimal(0)) + row["branch_cost"]
            known[parent] = True
    return ordered
