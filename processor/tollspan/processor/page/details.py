"""What is behind a figure: the calls, one trace, one call's charges and the prices they were made with.

In: a read-only handle, and what a figure is the figure of. Out: plain data as in `views`. The rows behind a figure add
up to it: `calls` tells their sum as well as the first of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from tollspan.pricing import PriceEngine
from tollspan.pricing.explain import Explanation, MeterExplanation, explain
from tollspan.pricing.said import interval_text
from tollspan.processor.cli.explained import lines_of
from tollspan.processor.cli.output import text
from tollspan.processor.errors import ConfigError
from tollspan.processor.page.asked import Asked
from tollspan.processor.page.views import COMPONENTS, statement
from tollspan.processor.queries import Rows, run
from tollspan.processor.queries.dimensions import dimensions
from tollspan.processor.queries.window import EARLIEST, LATEST, bound
from tollspan.processor.recharge import told
from tollspan.processor.schema import LEDGER
from tollspan.processor.trace_tree import tree
from tollspan.processor.values import nearest

_CALL: Final = "ledger.counted"
_OPEN: Final = "ledger.cost_status IN ('unpriced', 'invalid')"

ONLY: Final[dict[str, tuple[str, str]]] = {
    "": ("all rows: calls, model loads, reads and idle time", "true"),
    "inferences": ("inferences", _CALL),
    "priced": ("inferences with a price", f"{_CALL} AND NOT {_OPEN}"),
    "unpriced": ("inferences without a price", f"{_CALL} AND {_OPEN}"),
    "unpriced_rows": ("whatever has no price", _OPEN),
    "partial": ("inferences priced in part", "ledger.kind = 'inference' AND ledger.cost_status = 'partial'"),
    "errors": (
        "calls that failed",
        "ledger.kind = 'inference' AND ledger.cost_status != 'rollup' AND ledger.span_status = 'error'",
    ),
    "retries": (
        "calls that were tried again",
        "ledger.kind = 'inference' AND ledger.cost_status != 'rollup' AND ifNull(ledger.retries, 0) > 0",
    ),
    "cold_starts": ("first calls in a process", "ifNull(ledger.cold_start, false)"),
    "reads": ("feature reads and vector queries", "ledger.operation IN ('feature_read', 'vector_query')"),
    "batches": ("calls that tell the size of their batch", "ifNull(ledger.batch_size, 0) > 0"),
    "loads": ("model loads", "ledger.kind = 'model_load'"),
    "idle": ("machines held", "ledger.kind = 'capacity'"),
    **{
        f"component:{name}": (
            f"rows with a charge of the component {name}",
            f"bitTest(bitOr(ledger.priced_parts, ledger.open_parts), {place})",
        )
        for place, name in enumerate(COMPONENTS)
    },
    "component:unpriced": (
        "rows without any charge that should have one",
        f"ledger.priced_parts = 0 AND ledger.open_parts = 0 AND {_OPEN}",
    ),
}
"""Which rows are behind a figure → what they are, and the condition."""

_ORDERS: Final = {
    "cost": "amount DESC NULLS LAST, ledger.start_time DESC, ledger.trace_id, ledger.span_id",
    "latency": "ledger.duration_ns DESC, ledger.start_time DESC, ledger.trace_id, ledger.span_id",
    "time": "ledger.start_time DESC, ledger.trace_id DESC, ledger.span_id DESC",
}
_LISTED: Final = 100
_ID: Final = {"trace": re.compile(r"[0-9a-f]{32}"), "span": re.compile(r"[0-9a-f]{16}")}

_STATUS: Final = {
    "priced": "every meter has a price",
    "free": "every meter is free",
    "included": "paid for elsewhere, by prepaid throughput or a seat",
    "partial": "some meters have no price: the cost is a lower bound",
    "unpriced": "no meter has a price: the cost is not known",
    "invalid": "the usage cannot be right, so nothing is priced",
    "rollup": "billed on the calls beneath it",
    "not_billed": "failed before anything was used",
}


class Missing(ConfigError):
    """There is no such thing here."""


def window_of(asked: Asked) -> dict[str, Any]:
    """What statements bind for a window that may be open."""
    return {"from": bound(asked.since, EARLIEST), "until": bound(asked.until, LATEST)}


def calls(reader: Rows, asked: Asked) -> dict[str, Any]:
    """Rows of the ledger behind a figure.

    Raises:
        ConfigError: ``only`` is not known, or a filter.
    """
    check_only(asked.only)
    part = asked.only.partition(":")[2]
    amount = "ledger.cost" if part not in COMPONENTS else f"if(isNull(ledger.cost), NULL, ledger.{part}_cost)"
    chosen = {"only": ONLY[asked.only][1], "amount": amount}
    limit = asked.limit or _LISTED
    sql, values = statement("calls", asked.where, order=_ORDERS[asked.order], **chosen)
    rows = [_call(row) for row in reader.rows(sql, {**window_of(asked), **values, "limit": limit + 1})]
    sql, values = statement("behind", asked.where, **chosen)
    (total,) = reader.rows(sql, {**window_of(asked), **values})
    return {
        "order": asked.order,
        "only": asked.only,
        "about": ONLY[asked.only][0],
        "total": total,
        "more": len(rows) > limit,
        "rows": rows[:limit],
    }


def check_only(only: str) -> None:
    """Refuse a condition that is not in the list.

    Raises:
        ConfigError: names the nearest.
    """
    if only not in ONLY:
        raise ConfigError(
            f"only {only!r} is not known{nearest(only, list(ONLY)) or '.'}",
            f"One of {', '.join(name for name in ONLY if name)}.",
        )


def _call(row: Mapping[str, Any]) -> dict[str, Any]:
    cells = dict(row)
    cells["duration_ms"] = cells.pop("duration_ns") / 1e6
    return cells


def values(reader: Rows, name: str, asked: Asked) -> dict[str, Any]:
    """Values of a dimension, dearest first.

    Raises:
        ConfigError: there is no such dimension.
    """
    (dimension,) = dimensions([name])
    limit = asked.limit or 20
    sql, bind = statement("values", asked.where, dimension=dimension.sql)
    rows = reader.rows(sql, {**window_of(asked), **bind, "contains": asked.contains, "limit": limit + 1})
    return {"dimension": name, "rows": rows[:limit], "more": len(rows) > limit}


def trace(reader: Rows, trace_id: str) -> dict[str, Any]:
    """One trace as the tree of its calls, and how many spans of it were recorded: those that cost nothing are shown
    only where sampling kept them.

    Raises:
        Missing: it is not here.
    """
    _checked("trace", trace_id)
    rows = tree(run(reader, "trace", parameters=[f"trace={trace_id}"]))
    if not rows:
        raise Missing(f"No span of trace {trace_id} is here.", "Its rows may be older than the store keeps.")
    began = min(row["start_time"] for row in rows)
    ends = max(row["start_time"] + timedelta(microseconds=row["duration_ns"] / 1e3) for row in rows)
    roots = [row for row in rows if row["depth"] == 0]
    known = [row["branch_cost"] for row in roots if row["branch_cost"] is not None]
    unpriced = sum(row["branch_unpriced"] for row in roots)
    shown = []
    for row in rows:
        cells = dict(row)
        cells["duration_ms"] = cells.pop("duration_ns") / 1e6
        cells["offset_ms"] = (row["start_time"] - began) / timedelta(milliseconds=1)
        cells["charged"] = row["cost_status"] is not None
        shown.append(cells)
    sql, _ = statement("summary")
    summary = reader.rows(sql, {"trace": trace_id})
    unknown = dict.fromkeys(("root", "root_service", "tenant", "recorded", "kept", "keep_reason"))
    return {
        "trace_id": trace_id,
        **(summary[0] if summary else unknown),
        "start_time": began,
        "duration_ms": (ends - began) / timedelta(milliseconds=1),
        "total": {
            "cost": sum(known, Decimal(0)) if known else None if unpriced else Decimal(0),
            "inferences": sum(row["branch_inferences"] for row in roots),
            "unpriced": unpriced,
            "spans": len(rows),
            "failed": sum(bool(row["failed"]) for row in rows),
        },
        "rows": shown,
    }


def charge(reader: Any, engine: PriceEngine | None, trace_id: str, span_id: str) -> dict[str, Any]:
    """One row of the ledger: its charges, the arithmetic in words, and the price rows.

    Args:
        reader: a `tollspan.processor.store.Reader`.
        engine: the prices in use, which tell where a price was read; None where nobody has any.
        trace_id, span_id: lower hex.

    Raises:
        Missing: there is no such row.
    """
    _checked("trace", trace_id)
    _checked("span", span_id)
    sql, _ = statement("row")
    table = reader.query(sql, {"trace": trace_id, "span": span_id})
    if not table.num_rows:
        raise Missing(
            f"Span {span_id} of trace {trace_id} has no row in the ledger.",
            "Only spans that use something billable have one; the trace shows all that were kept.",
        )
    (row,) = reader.rows(sql, {"trace": trace_id, "span": span_id})
    explanation = _explained(table.select(LEDGER.names), engine)
    same = engine is not None and engine.book_version == row["book_version"]
    charges = [_charge(row, place, explanation) for place in range(len(row["charges.meter"]))]
    return {
        "trace_id": trace_id,
        "span_id": span_id,
        "row": _row(row),
        "charges": charges,
        "sum": _sum(row, charges),
        "book": {"row": row["book_version"] or None, "in_use": engine and engine.book_version, "same": same},
        "notes": list(_notes(row, same, engine is not None)),
    }


def _checked(what: str, value: str) -> None:
    if not _ID[what].fullmatch(value):
        digits = 32 if what == "trace" else 16
        raise ConfigError(f"{value[:100]!r} is no {what} id.", f"It has {digits} hexadecimal digits, in lower case.")


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    tags = ("tenant", "team", "feature", "workflow", "agent", "service", "environment", "region", "route", "version",
            "variant", "provider", "request_model", "operation", "service_tier", "processing", "cloud_provider",
            "host_type", "device", "purchase", "residency", "error_type")  # fmt: skip
    status = row["cost_status"]
    return {
        "start_time": row["start_time"],
        "duration_ms": row["duration_ns"] / 1e6,
        **{name: row.get(name) or None for name in tags},
        "model": row["model"] or row["request_model"] or None,
        **{
            name: row[name]
            for name in (
                "kind", "cost", "cost_status", "cost_reasons", "input_tokens", "output_tokens", "retries", "cold_start",
                "batch_size", "convention", "book_version", "repriced", "first_cost", "list_cost", "contracted_cost",
                "reported_cost",
            )
        },
        "failed": row["span_status"] == "error",
        "status_words": f"{status}: {_STATUS.get(status, status)}",
    }  # fmt: skip


def _charge(row: Mapping[str, Any], place: int, explanation: Explanation | None) -> dict[str, Any]:
    cells = {name.removeprefix("charges."): row[name][place] for name in LEDGER.names if name.startswith("charges.")}
    cost = cells["cost"]
    known = cost is not None
    meter = _meter_of(explanation, cells["meter"])
    return {
        **cells,
        "contracted_cost": cost + cells["committed"] if known else None,
        "list_cost": cost + cells["committed"] + cells["negotiated"] if known else None,
        "words": _words(cells),
        "price": _price(meter, cells, explanation),
    }


def _words(cells: Mapping[str, Any]) -> str:
    """A charge's arithmetic, from what was written when it was made."""
    counted = cells["quantity"]
    used = _many(counted, cells["unit"])
    if cells["cost"] is None:
        return f"{used}: no price ({cells['status']})"
    if cells["status"] == "included":
        return f"{used}: included, paid for elsewhere = {text(cells['cost'])} USD"
    if cells["unit_price"] is None:
        return f"{used} = {text(cells['cost'])} USD"
    exact = _product(counted, cells["unit_price"], cells["per"])
    # A price in steps, or one multiplied by a factor, is told by the price row.
    sign = "=" if exact is not None and round(exact, 12) == cells["cost"] else "→"
    number, _, unit = cells["per"].partition(" ")
    per = _many(Decimal(number), unit) if number.isdecimal() else cells["per"]
    return f"{used} × {text(cells['unit_price'])} USD per {per} {sign} {text(cells['cost'])} USD"


def _many(count: Decimal, unit: str) -> str:
    """A number of units, in words."""
    whole = count == count.to_integral_value()
    if count != 1:
        unit = unit[:-1] + "ies" if unit.endswith("y") else unit + ("es" if unit.endswith("ch") else "s")
    return f"{text(int(count)) if whole else text(count)} {unit}"


def _product(counted: Decimal, unit_price: Decimal, per: str) -> Decimal | None:
    """Quantity times price, where the pricing unit is a plain multiple of the quantity's."""
    number, _, unit = per.partition(" ")
    try:
        times = {"hour": 3600, "day": 86_400}.get(unit, 1)
        return counted * unit_price / (Decimal(number) * times)
    except (ArithmeticError, ValueError):
        return None


def _sum(row: Mapping[str, Any], charges: Sequence[Mapping[str, Any]]) -> str:
    known = [each["cost"] for each in charges if each["cost"] is not None]
    if row["cost"] is None:
        return f"not known ({row['cost_status']})"
    if len(known) < 2:
        return f"{text(row['cost'])} USD"
    left_out = len(charges) - len(known)
    more = f", and {left_out} without a price" if left_out else ""
    return f"{' + '.join(text(each) for each in known)} = {text(row['cost'])} USD{more}"


def _notes(row: Mapping[str, Any], same: bool, engine: bool) -> Any:
    if engine and not same and row["charges.meter"]:
        yield (
            f"Priced with book {row['book_version']}; the price rows are those of the book in use now, which may "
            "differ. The arithmetic is that of the ledger."
        )
    if not engine:
        yield "The price rows' sources are told by a page with a price book (`tollspan serve`)."
    if row["repriced"]:
        yield f"Repriced: it cost {text(row['first_cost'])} USD when it arrived."
    if row["reported_cost"] is not None:
        yield f"The provider itself says {text(row['reported_cost'])} USD."
    if row["cost_reasons"]:
        yield f"Assumed or missing: {row['cost_reasons'].replace(',', ', ')}."
    if any(each.endswith(", implied") for each in row["charges.matched_by"]):
        yield "A charge that ends in 'implied' follows from the price book: the span counted none of it."


def _explained(rows: Any, engine: PriceEngine | None) -> Explanation | None:
    """The row as the prices in use explain it; None where they cannot."""
    if engine is None:
        return None
    usage, selectors = told(rows, engine)
    if not usage:
        return None
    at = rows["start_time"][0].value
    return explain(engine, usage, at=int(at), selectors=selectors)


def _meter_of(explanation: Explanation | None, meter: str) -> MeterExplanation | None:
    return next((each for each in explanation.meters if each.charge.meter == meter), None) if explanation else None


def _price(
    meter: MeterExplanation | None, cells: Mapping[str, Any], explanation: Explanation | None
) -> dict[str, Any] | None:
    """The price row behind a charge: what it is, where it was read, and how it was found."""
    if meter is None or explanation is None:
        return None
    lines = list(lines_of(meter, explanation))
    if not meter.levels:
        return {"id": None, "same": False, "lines": lines}
    level = meter.levels[0]
    row = level.row
    return {
        "id": row.id,
        "same": row.id == cells["price_id"] and level.cost == cells["cost"],
        "amount": row.amount,
        "per": row.per_unit,
        "kind": row.kind,
        "status": row.status,
        "book": level.layer,
        "in_force": interval_text(row.effective),
        "when": dict(row.when),
        "source": {name: getattr(row.source, name) for name in ("url", "retrieved_at", "via", "note", "sha256")},
        "lines": lines,
    }
