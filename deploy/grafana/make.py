"""Makes the dashboards and alert rules of this folder: ``python deploy/grafana/make.py``.

A panel is a title, what it shows and its SQL; how Grafana wants that written is said once, here. The SQL uses the
macros of the official ClickHouse data source (``$__timeFilter``, ``$__timeInterval``, ``$__interval_s``,
``$__fromTime``, ``$__toTime``, ``$__conditionalAll``). `tests/processor/test_grafana.py` runs all of it.

Costs are sums of what is priced: beside every sum stands how many inferences have no price and are in none of them.
Roll-ups have no cost and are no inferences, so nothing is counted twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SOURCE = {"type": "grafana-clickhouse-datasource", "uid": "tollspan"}
PLUGIN = "4.20.0"

FILTERS = {
    "tenant": "tenant",
    "environment": "environment",
    "service": "service",
    "model": "if(model != '', model, request_model)",
}
"""Variables of every dashboard → the ledger's expression."""

WHERE = "WHERE $__timeFilter(start_time)" + "".join(
    f"\n  AND $__conditionalAll({column} IN (${{{name}:singlequote}}), ${name})" for name, column in FILTERS.items()
)
CALL = "kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')"
MADE = "kind = 'inference' AND cost_status != 'rollup'"
UNPRICED = "kind = 'inference' AND cost_status IN ('unpriced', 'invalid')"
PRICED = "kind = 'inference' AND cost_status IN ('priced', 'free', 'included', 'partial')"
MODEL = FILTERS["model"]
PER_1000 = f"sum(ledger.cost) * 1000 / nullIf(countIf({PRICED}), 0)"
TIME = "$__timeInterval(start_time) AS time"


def by(column: str, name: str) -> str:
    return f"""SELECT
  if({column} = '', '(none)', toString({column})) AS {name},
  sum(ledger.cost) AS spend,
  countIf({CALL}) AS inferences,
  {PER_1000} AS per_1000,
  countIf({UNPRICED}) AS without_price,
  countIf(kind = 'inference' AND cost_status = 'partial') AS in_part
FROM ledger FINAL
{WHERE}
GROUP BY {name}
ORDER BY spend DESC NULLS LAST, inferences DESC
LIMIT 50"""


def change(column: str, name: str) -> str:
    """This window against the one before it, of the same length."""
    begin = "$__fromTime - (toUnixTimestamp($__toTime) - toUnixTimestamp($__fromTime))"
    where = WHERE.replace("$__timeFilter(start_time)", f"start_time >= {begin} AND start_time <= $__toTime")
    return f"""SELECT
  if({column} = '', '(none)', toString({column})) AS {name},
  ifNull(sumIf(ledger.cost, start_time < $__fromTime), 0) AS before,
  ifNull(sumIf(ledger.cost, start_time >= $__fromTime), 0) AS now,
  now - before AS change,
  countIf(start_time < $__fromTime AND {CALL}) AS inferences_before,
  countIf(start_time >= $__fromTime AND {CALL}) AS inferences_now
FROM ledger FINAL
{where}
GROUP BY {name}
HAVING change != 0
ORDER BY abs(change) DESC
LIMIT 20"""


def over_time(columns: str, series: str = "") -> str:
    named = f"  if({series} = '', '(none)', toString({series})) AS series,\n" if series else ""
    group = "time, series" if series else "time"
    return f"SELECT\n  {TIME},\n{named}{columns}\nFROM ledger FINAL\n{WHERE}\nGROUP BY {group}\nORDER BY time"


def one(columns: str) -> str:
    return f"SELECT\n{columns}\nFROM ledger FINAL\n{WHERE}"


USD, COUNT, SHARE, SECONDS, NS, RATE = "currencyUSD", "short", "percentunit", "s", "ns", "cps"

Panel = dict[str, Any]


def panel(
    kind: str,
    title: str,
    about: str,
    sql: str,
    width: int,
    height: int,
    unit: str = COUNT,
    units: dict[str, str] | None = None,
    links: dict[str, str] | None = None,
    warn_above: float | None = None,
    stacked: bool = False,
) -> Panel:
    """A panel without its place.

    Args:
        kind: timeseries, stat, table or barchart.
        unit, units: of all figures, and of columns by name.
        links: column → address, with ``${__value.raw}`` for what was clicked.
        warn_above: figures above it are orange.
    """
    overrides: list[dict[str, Any]] = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": each}]}
        for name, each in (units or {}).items()
    ]
    overrides += [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": "links", "value": [{"title": "Open", "url": url}]}],
        }
        for name, url in (links or {}).items()
    ]
    steps: list[dict[str, Any]] = [{"color": "text", "value": None}]
    if warn_above is not None:
        steps.append({"color": "orange", "value": warn_above})
    defaults: dict[str, Any] = {
        "unit": unit,
        "noValue": "unknown",
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    if kind == "timeseries":
        custom = {"drawStyle": "bars", "fillOpacity": 70} if stacked else {"drawStyle": "line", "fillOpacity": 10}
        defaults["custom"] = {**custom, "stacking": {"mode": "normal" if stacked else "none"}, "showPoints": "never"}
        defaults["min"] = 0
    options: dict[str, Any] = {}
    if kind == "stat":
        options = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "graphMode": "none"}
    elif kind == "table":
        options = {"showHeader": True}
        defaults["custom"] = {"filterable": True}
    elif kind == "barchart":
        options = {"orientation": "horizontal", "legend": {"showLegend": False}}
    series = kind == "timeseries"
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "gridPos": {"h": height, "w": width},
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": options,
        "targets": [
            {
                "refId": "A",
                "datasource": SOURCE,
                "editorType": "sql",
                "queryType": "timeseries" if series else "table",
                "format": 0 if series else 1,
                "pluginVersion": PLUGIN,
                "rawSql": sql,
            }
        ],
    }


LEFT_OUT = panel(
    "stat",
    "Without a price",
    "Inferences whose cost is unknown: they are in no sum here.",
    one(f"  countIf({UNPRICED}) AS without_price"),
    4,
    4,
    warn_above=1,
)

EXECUTIVE = [
    panel("stat", "Spend", "Sum of what is priced in this window.", one("  sum(ledger.cost) AS spend"), 5, 4, USD),
    panel("stat", "Inferences", "Calls that are billed here.", one(f"  countIf({CALL}) AS inferences"), 5, 4),
    panel(
        "stat",
        "Cost of 1,000 inferences",
        "Spend by priced inferences; model loads, feature reads and machines held are in the spend.",
        one(f"  {PER_1000} AS per_1000"),
        5,
        4,
        USD,
    ),
    panel(
        "stat",
        "This month, at the pace so far",
        "Spend of this calendar month (UTC), drawn out in proportion to its end; the window above is not asked.",
        f"""SELECT
  sum(ledger.cost)
    * dateDiff('second', toStartOfMonth(now('UTC')), toStartOfMonth(now('UTC')) + INTERVAL 1 MONTH)
    / greatest(dateDiff('second', toDateTime(toStartOfMonth(now('UTC')), 'UTC'), now('UTC')), 1) AS month
FROM ledger FINAL
{WHERE.replace("$__timeFilter(start_time)", "start_time >= toDateTime(toStartOfMonth(now('UTC')), 'UTC')")}""",
        5,
        4,
        USD,
    ),
    LEFT_OUT,
    panel(
        "timeseries",
        "Spend by feature",
        "USD in each interval.",
        over_time("  sum(ledger.cost) AS spend", "feature"),
        16,
        9,
        USD,
        stacked=True,
    ),
    panel(
        "barchart",
        "Spend by part of the bill",
        "Model, compute, network, storage, telemetry, overhead.",
        f"""SELECT
  component,
  sum(charge) AS spend
FROM ledger FINAL
ARRAY JOIN charges.component AS component, charges.cost AS charge
{WHERE}
  AND isNotNull(ledger.cost) AND isNotNull(charge)
GROUP BY component
ORDER BY spend DESC""",
        8,
        9,
        USD,
    ),
    panel(
        "table",
        "What changed, by feature",
        "This window against the one before it.",
        change("feature", "feature"),
        12,
        8,
        units={"before": USD, "now": USD, "change": USD},
    ),
    panel(
        "table",
        "What changed, by model",
        "This window against the one before it.",
        change(MODEL, "name"),
        12,
        8,
        units={"before": USD, "now": USD, "change": USD},
    ),
    *(
        panel(
            "table",
            f"By {name}",
            "Dearest first; per_1000 is over priced inferences.",
            by(column, label),
            12,
            9,
            units={"spend": USD, "per_1000": USD},
        )
        for name, column, label in (
            ("tenant", "ledger.tenant", "name"),
            ("feature", "ledger.feature", "name"),
            ("model", MODEL, "name"),
            ("team", "ledger.team", "name"),
        )
    ),
]

ARRIVAL = "dateDiff('millisecond', addNanoseconds(start_time, toInt64(duration_ns)), assumeNotNull(arrived_at)) / 1000"

ON_CALL = [
    panel("stat", "Inferences", "In this window.", one(f"  countIf({CALL}) AS inferences"), 4, 4),
    panel(
        "stat",
        "Failed",
        "Share of calls with an error.",
        one(f"  countIf({MADE} AND span_status = 'error') / nullIf(countIf({MADE}), 0) AS failed"),
        4,
        4,
        SHARE,
        warn_above=0.05,
    ),
    panel(
        "stat",
        "p95 latency",
        "Of calls that are billed.",
        one(f"  quantileIf(0.95)(duration_ns, {CALL}) AS p95"),
        4,
        4,
        NS,
    ),
    panel(
        "stat",
        "Arrival, p95",
        "From a span's end to its arrival: export, network and clocks.",
        one(f"  quantileIf(0.95)({ARRIVAL}, isNotNull(arrived_at)) AS arrival"),
        4,
        4,
        SECONDS,
        warn_above=120,
    ),
    panel(
        "stat",
        "Cold starts",
        "Calls that waited for a process or model.",
        one("  countIf(ledger.cold_start) AS cold"),
        4,
        4,
    ),
    LEFT_OUT,
    panel(
        "timeseries",
        "Inferences by second",
        "By service.",
        over_time(f"  countIf({CALL}) / $__interval_s AS rate", "service"),
        12,
        8,
        RATE,
    ),
    panel(
        "timeseries",
        "Spend by hour",
        "USD an hour, by model.",
        over_time("  sum(ledger.cost) * 3600 / $__interval_s AS rate", MODEL),
        12,
        8,
        USD,
    ),
    panel(
        "timeseries",
        "Latency",
        "Of calls that are billed.",
        over_time(
            f"  quantileIf(0.5)(duration_ns, {CALL}) AS p50,\n  quantileIf(0.95)(duration_ns, {CALL}) AS p95,\n"
            f"  quantileIf(0.99)(duration_ns, {CALL}) AS p99"
        ),
        12,
        8,
        NS,
    ),
    panel(
        "timeseries",
        "Errors, retries, cold starts",
        "Calls with an error, attempts inside of clients, and cold starts in each interval.",
        over_time(
            f"  countIf({MADE} AND span_status = 'error') AS errors,\n  sum(ledger.retries) AS retried,\n"
            "  countIf(ledger.cold_start) AS cold_starts"
        ),
        12,
        8,
    ),
    panel(
        "table",
        "Errors",
        "By model and type; not_billed failed before anything was used.",
        f"""SELECT
  {MODEL} AS name,
  error_type,
  count() AS calls,
  countIf(cost_status = 'not_billed') AS not_billed,
  sum(ledger.cost) AS spend,
  max(start_time) AS last
FROM ledger FINAL
{WHERE}
  AND {MADE} AND span_status = 'error'
GROUP BY name, error_type
ORDER BY calls DESC
LIMIT 50""",
        12,
        8,
        units={"spend": USD},
    ),
    panel(
        "table",
        "Retries",
        "Where calls are tried again; NULL where no call tells it.",
        f"""SELECT
  provider,
  {MODEL} AS name,
  countIf({MADE}) AS calls,
  sum(ledger.retries) AS retried,
  countIf(ledger.retries > 0) AS calls_with_retries
FROM ledger FINAL
{WHERE}
GROUP BY provider, name
HAVING calls_with_retries > 0
ORDER BY retried DESC
LIMIT 50""",
        12,
        8,
    ),
    panel(
        "timeseries",
        "Arrival",
        "From a span's end to its arrival, median and p95.",
        over_time(
            f"  quantileIf(0.5)({ARRIVAL}, isNotNull(arrived_at)) AS median,\n"
            f"  quantileIf(0.95)({ARRIVAL}, isNotNull(arrived_at)) AS p95"
        ),
        12,
        8,
        SECONDS,
    ),
    panel(
        "timeseries",
        "Traces kept",
        "How many traces there were, and whose spans are kept. Filters other than the time are not asked.",
        """SELECT
  $__timeInterval(start_time) AS time,
  count() AS traces,
  countIf(kept > 0) AS traces_kept
FROM traces FINAL
WHERE $__timeFilter(start_time)
GROUP BY time
ORDER BY time""",
        12,
        8,
    ),
]

OPEN_TRACE = "/d/tollspan-debug?var-trace=${__value.raw}&${__url_time_range}"

DEBUG = [
    panel(
        "table",
        "Dearest traces",
        "Click a trace to see its calls and charges below.",
        f"""SELECT
  lower(hex(trace_id)) AS trace,
  min(start_time) AS started,
  max(ledger.tenant) AS who,
  sum(ledger.cost) AS spend,
  countIf({CALL}) AS inferences,
  countIf({UNPRICED}) AS without_price,
  sum(input_tokens) AS tokens_in,
  sum(output_tokens) AS tokens_out
FROM ledger FINAL
{WHERE}
GROUP BY trace_id
ORDER BY spend DESC NULLS LAST
LIMIT 50""",
        24,
        9,
        units={"spend": USD},
        links={"trace": OPEN_TRACE},
    ),
    panel(
        "table",
        "Calls of the trace",
        "In the order of their start; a roll-up is billed on a descendant.",
        """SELECT
  start_time,
  span_id_hex AS span,
  parent_id_hex AS parent,
  service,
  kind,
  operation,
  if(model != '', model, request_model) AS name,
  ledger.cost AS spend,
  cost_status,
  cost_reasons,
  duration_ns AS took,
  input_tokens AS tokens_in,
  output_tokens AS tokens_out,
  retries,
  span_status
FROM ledger FINAL
WHERE trace_id = toFixedString(substring(unhex(${trace:singlequote}), 1, 16), 16)
ORDER BY start_time, span_id
LIMIT 1000""",
        24,
        9,
        units={"spend": USD, "took": NS},
    ),
    panel(
        "table",
        "Charges of the trace",
        "Every figure down to its price: quantity, unit price, price row and how it was found.",
        """SELECT
  span_id_hex AS span,
  meter,
  quantity,
  unit,
  unit_price,
  per,
  charge AS spend,
  price_id,
  matched_by,
  status,
  book_version
FROM ledger FINAL
ARRAY JOIN
  charges.meter AS meter, charges.quantity AS quantity, charges.unit AS unit, charges.unit_price AS unit_price,
  charges.per AS per, charges.cost AS charge, charges.price_id AS price_id, charges.matched_by AS matched_by,
  charges.status AS status
WHERE trace_id = toFixedString(substring(unhex(${trace:singlequote}), 1, 16), 16)
ORDER BY start_time, span, meter
LIMIT 1000""",
        24,
        9,
        units={"spend": USD},
    ),
    panel(
        "table",
        "Spans of the trace",
        "Bodies, where sampling kept them.",
        """SELECT
  Timestamp,
  SpanId,
  ParentSpanId,
  ServiceName,
  SpanName,
  Duration,
  StatusCode,
  StatusMessage,
  SpanAttributes
FROM spans FINAL
WHERE TraceId = ${trace:singlequote}
ORDER BY Timestamp
LIMIT 1000""",
        24,
        9,
        units={"Duration": NS},
    ),
    panel(
        "table",
        "Without a price",
        "What, why, and how often.",
        f"""SELECT
  provider,
  {MODEL} AS name,
  kind,
  cost_status,
  cost_reasons,
  count() AS rows,
  max(start_time) AS last
FROM ledger FINAL
{WHERE}
  AND cost_status IN ('unpriced', 'invalid', 'partial')
GROUP BY provider, name, kind, cost_status, cost_reasons
ORDER BY rows DESC
LIMIT 50""",
        12,
        8,
    ),
    panel(
        "table",
        "Batches",
        "How many requests shared an execution, and what one of them cost.",
        f"""SELECT
  {MODEL} AS name,
  batch_size,
  count() AS executions,
  sum(ledger.cost) AS spend,
  quantile(0.95)(duration_ns) AS p95
FROM ledger FINAL
{WHERE}
  AND isNotNull(batch_size)
GROUP BY name, batch_size
ORDER BY name, batch_size
LIMIT 100""",
        12,
        8,
        units={"spend": USD, "p95": NS},
    ),
    panel(
        "table",
        "Feature and vector reads",
        "By store; spend is NULL where nothing has a price.",
        f"""SELECT
  service,
  provider,
  operation,
  count() AS reads,
  countDistinct(trace_id) AS in_traces,
  sum(ledger.cost) AS spend
FROM ledger FINAL
{WHERE}
  AND kind = 'feature_read'
GROUP BY service, provider, operation
ORDER BY reads DESC
LIMIT 50""",
        12,
        8,
        units={"spend": USD},
    ),
    panel(
        "table",
        "Models",
        "Tokens, cost and latency.",
        f"""SELECT
  provider,
  {MODEL} AS name,
  countIf({CALL}) AS inferences,
  sum(input_tokens) AS tokens_in,
  sum(output_tokens) AS tokens_out,
  sum(ledger.cost) AS spend,
  quantileIf(0.5)(duration_ns, {CALL}) AS median,
  quantileIf(0.95)(duration_ns, {CALL}) AS p95
FROM ledger FINAL
{WHERE}
  AND kind = 'inference'
GROUP BY provider, name
ORDER BY spend DESC NULLS LAST
LIMIT 50""",
        12,
        8,
        units={"spend": USD, "median": NS, "p95": NS},
    ),
]

DASHBOARDS = {
    "executive": ("Tollspan: what inference costs", "now-30d", "", EXECUTIVE),
    "on-call": ("Tollspan: on call", "now-1h", "30s", ON_CALL),
    "debug": ("Tollspan: down to a charge", "now-24h", "", DEBUG),
}
"""File → title, window, refresh, panels."""


def variable(name: str, column: str) -> dict[str, Any]:
    sql = f"SELECT DISTINCT {column} AS v FROM ledger WHERE $__timeFilter(start_time) AND v != '' ORDER BY v LIMIT 1000"
    return {
        "type": "query",
        "name": name,
        "label": name,
        "datasource": SOURCE,
        "definition": sql,
        "query": {"editorType": "sql", "queryType": "table", "format": 1, "rawSql": sql},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard(name: str) -> dict[str, Any]:
    """A dashboard as Grafana stores it: panels in rows of 24, in their order."""
    title, since, refresh, panels = DASHBOARDS[name]
    x = y = row = 0
    placed = []
    for number, each in enumerate(panels, 1):
        width, height = each["gridPos"]["w"], each["gridPos"]["h"]
        if x + width > 24:
            x, y, row = 0, y + row, 0
        placed.append({**each, "id": number, "gridPos": {"x": x, "y": y, "w": width, "h": height}})
        x, row = x + width, max(row, height)
    variables = [variable(*each) for each in FILTERS.items()]
    if name == "debug":
        empty = {"text": "", "value": ""}
        variables.append({"type": "textbox", "name": "trace", "label": "trace id", "query": "", "current": empty})
    link = {"type": "dashboards", "tags": ["tollspan"], "title": "Tollspan", "asDropdown": True, "keepTime": True}
    return {
        "uid": f"tollspan-{name}",
        "title": title,
        "tags": ["tollspan"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "utc",
        "time": {"from": since, "to": "now"},
        "refresh": refresh,
        "links": [{**link, "includeVars": True}],
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": placed,
    }


RECENT = "FROM ledger FINAL WHERE start_time >= now64(9, 'UTC') - INTERVAL"

ALERTS: list[tuple[str, str, str, str, float, str, str]] = [
    (
        "unpriced",
        "Inferences without a price",
        "Calls of the last hour whose cost is unknown: `tollspan query unpriced` says why.",
        f"SELECT countIf({UNPRICED}) AS value {RECENT} 1 HOUR",
        0,
        "5m",
        "warning",
    ),
    (
        "errors",
        "Many calls fail",
        "More than 5 % of the calls of the last ten minutes, of at least 20.",
        f"SELECT if(countIf({MADE}) < 20, 0, countIf({MADE} AND span_status = 'error') / countIf({MADE})) AS value"
        f" {RECENT} 10 MINUTE",
        0.05,
        "5m",
        "critical",
    ),
    (
        "spend",
        "Spend is twice what it was",
        "The last hour against the mean hour of the seven days before; below 1 USD it is left alone.",
        "SELECT if(recent < 1 OR mean = 0, 0, toFloat64(recent) / toFloat64(mean)) AS value FROM (SELECT"
        " ifNull(sumIf(ledger.cost, start_time >= now64(9, 'UTC') - INTERVAL 1 HOUR), 0) AS recent,"
        " ifNull(sumIf(ledger.cost, start_time < now64(9, 'UTC') - INTERVAL 1 HOUR), 0) / 168 AS mean"
        f" {RECENT} 169 HOUR)",
        2,
        "10m",
        "warning",
    ),
    (
        "silence",
        "No spans arrive",
        "Minutes since the newest span started, where there were some in the hour before.",
        "SELECT if(count() = 0, 0, dateDiff('second', max(start_time), now64(9, 'UTC')) / 60) AS value"
        f" {RECENT} 75 MINUTE",
        15,
        "0s",
        "critical",
    ),
    (
        "arrival",
        "Spans arrive late",
        "95th percentile of the seconds from a span's end to its arrival, last ten minutes.",
        f"SELECT if(count() = 0, 0, quantile(0.95)({ARRIVAL})) AS value {RECENT} 10 MINUTE AND isNotNull(arrived_at)",
        120,
        "5m",
        "warning",
    ),
    (
        "invalid",
        "Usage that cannot be right",
        "Rows of the last hour whose usage contradicts itself, and which are therefore not priced.",
        f"SELECT countIf(cost_status = 'invalid') AS value {RECENT} 1 HOUR",
        0,
        "5m",
        "warning",
    ),
]
"""Name, title, what it means, SQL with one figure, threshold, for how long, severity. No ``$``: Grafana would read it
as a variable of its environment in this file."""


def alerts() -> dict[str, Any]:
    """The provisioning file of the alert rules."""
    rules = [
        {
            "uid": f"tollspan-{name}",
            "title": title,
            "condition": "C",
            "data": [
                {
                    "refId": "A",
                    "relativeTimeRange": {"from": 3600, "to": 0},
                    "datasourceUid": SOURCE["uid"],
                    "model": {
                        "refId": "A",
                        "editorType": "sql",
                        "queryType": "table",
                        "format": 1,
                        "pluginVersion": PLUGIN,
                        "rawSql": sql,
                    },
                },
                {
                    "refId": "C",
                    "datasourceUid": "__expr__",
                    "model": {
                        "refId": "C",
                        "type": "threshold",
                        "expression": "A",
                        "conditions": [{"evaluator": {"type": "gt", "params": [threshold]}}],
                    },
                },
            ],
            "for": lasting,
            "noDataState": "OK",
            "execErrState": "Error",
            "labels": {"severity": severity},
            "annotations": {"summary": title, "description": about},
        }
        for name, title, about, sql, threshold, lasting, severity in ALERTS
    ]
    group = {"orgId": 1, "name": "tollspan", "folder": "Tollspan", "interval": "1m", "rules": rules}
    return {"apiVersion": 1, "groups": [group]}


def files() -> dict[Path, str]:
    """What is to stand where."""
    made = {HERE / "dashboards" / f"{name}.json": json.dumps(dashboard(name), indent=2) + "\n" for name in DASHBOARDS}
    head = "# Made by make.py.\n"
    text = head + yaml.safe_dump(alerts(), sort_keys=False, width=120)
    return {**made, HERE / "provisioning" / "alerting" / "rules.yaml": text}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(HERE))
