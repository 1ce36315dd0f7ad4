-- What telemetry took in each hour, beside what everything else cost, and the rates that a budget published.
-- By the start of the spans, newest first; hours without telemetry are not listed. Shares are in percent; rates are the
-- mean of the hour's minutes for all tenants without a budget of their own, NULL where nothing was published. What rules
-- that no budget steers took is stored_certain_cost: `tollspan query telemetry-by-rule` names them.
SELECT
    hour,
    received_bytes,
    stored_bytes,
    removed_content_bytes,
    received_cost,
    stored_cost,
    stored_certain_cost,
    telemetry_cost,
    everything_else_cost,
    if(ifNull(everything_else_cost, 0) = 0 OR isNull(telemetry_cost), NULL,
       round(100 * toFloat64(telemetry_cost) / toFloat64(everything_else_cost), 3)) AS percent,
    unpriced_bytes,
    base_rate,
    content_rate,
    round(100 * budget_used, 1) AS budget_used_percent
FROM
(
    SELECT
        toStartOfHour(minute) AS hour,
        sum(telemetry.bytes) AS received_bytes,
        sum(telemetry.stored_bytes) AS stored_bytes,
        sum(telemetry.removed_bytes) AS removed_content_bytes,
        sum(telemetry.received_cost) AS received_cost,
        sum(telemetry.stored_cost) AS stored_cost,
        sum(arraySum((cost, steered) -> if(steered, toDecimal128(0, 12), ifNull(cost, toDecimal128(0, 12))),
                     rules.stored_cost, rules.steered)) AS stored_certain_cost,
        if(isNull(received_cost) AND isNull(stored_cost), NULL,
           ifNull(received_cost, toDecimal128(0, 12)) + ifNull(stored_cost, toDecimal128(0, 12))) AS telemetry_cost,
        sumIf(telemetry.bytes, isNull(telemetry.received_cost))
            + sumIf(telemetry.stored_bytes, isNull(telemetry.stored_cost)) AS unpriced_bytes
    FROM telemetry FINAL
    WHERE minute >= {since:DateTime64(9, 'UTC')} AND minute < {until:DateTime64(9, 'UTC')}
    GROUP BY hour
) AS took
LEFT JOIN
(
    SELECT toStartOfHour(start_time) AS hour, sum(ledger.cost) AS everything_else_cost
    FROM ledger FINAL
    WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
    GROUP BY hour
) AS billed USING (hour)
LEFT JOIN
(
    SELECT
        toStartOfHour(toDateTime64(sampling_levels.minute, 9, 'UTC')) AS hour,
        avgIf(value, metric = 'base_rate') AS base_rate,
        avgIf(value, metric = 'content_rate') AS content_rate,
        argMaxIf(value, sampling_levels.minute, metric = 'budget_used') AS budget_used
    FROM sampling_levels FINAL
    WHERE metric IN ('base_rate', 'content_rate', 'budget_used') AND dimension = ''
    GROUP BY hour
) AS rates USING (hour)
ORDER BY hour DESC
LIMIT {limit:UInt64}
