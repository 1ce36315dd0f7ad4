-- What the telemetry itself took: traces and spans recorded and kept, their bytes and cost. One row.
-- single
SELECT
    count() AS traces,
    countIf(kept > 0) AS kept_traces,
    countIf(error > 0) AS failed_traces,
    sum(spans) AS recorded_spans,
    sum(kept_spans) AS all_kept_spans,
    sum(telemetry_bytes) AS bytes,
    sum(telemetry_cost) AS cost,
    countIf(isNull(telemetry_cost)) AS unpriced_traces
FROM traces FINAL
WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
