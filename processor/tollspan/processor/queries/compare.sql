-- A against B: cost and latency of models, variants or anything else, with confidence intervals.
-- by: variant
-- parameter: z = 1.96: half-width of the interval in standard errors; 1.96 is 95 %
-- definition: mean cost of a priced inference and mean duration for each group with the interval that holds the true mean,
--     and the difference from the group with the most calls (the first row)
-- formula: mean ± z × s ÷ √n; difference ± z × √(s₁² ÷ n₁ + s₂² ÷ n₂)
-- unit: USD for each inference; nanoseconds
-- pitfall: means and differences are exact, intervals are estimates by the normal distribution: with less than 30 calls, or
--     a few very dear ones, they are too narrow. Calls of one trace are not independent of each other.
-- pitfall: groups that were not given the same work by chance differ by their work: compare variants of an experiment.
-- pitfall: calls without a price are in calls and in durations, and in no cost.
SELECT
    ${by}calls,
    priced_calls,
    failed_calls,
    'USD' AS currency,
    mean_cost,
    if(priced_calls < 2, NULL, mean_cost - toDecimal128({z:Float64} * cost_error, 12)) AS cost_from,
    if(priced_calls < 2, NULL, mean_cost + toDecimal128({z:Float64} * cost_error, 12)) AS cost_to,
    if(nth = 1, NULL, mean_cost - base_cost) AS cost_difference,
    if(nth = 1 OR priced_calls < 2 OR base_priced < 2, NULL,
       cost_difference - toDecimal128({z:Float64} * sqrt(pow(cost_error, 2) + pow(base_cost_error, 2)), 12)) AS difference_from,
    if(nth = 1 OR priced_calls < 2 OR base_priced < 2, NULL,
       cost_difference + toDecimal128({z:Float64} * sqrt(pow(cost_error, 2) + pow(base_cost_error, 2)), 12)) AS difference_to,
    if(isNull(difference_from), NULL, toBool(difference_from > 0 OR difference_to < 0)) AS cost_differs,
    toUInt64(mean_ns) AS mean_duration_ns,
    if(calls < 2, NULL, round({z:Float64} * ns_error)) AS duration_margin_ns,
    if(nth = 1, NULL, round(mean_ns - base_ns)) AS duration_difference_ns,
    if(nth = 1 OR calls < 2 OR base_calls < 2, NULL,
       toBool(abs(mean_ns - base_ns) > {z:Float64} * sqrt(pow(ns_error, 2) + pow(base_ns_error, 2)))) AS duration_differs,
    p50_ns,
    p95_ns
FROM
(
    SELECT
        *,
        row_number() OVER largest AS nth,
        first_value(calls) OVER largest AS base_calls,
        first_value(priced_calls) OVER largest AS base_priced,
        first_value(mean_cost) OVER largest AS base_cost,
        first_value(cost_error) OVER largest AS base_cost_error,
        first_value(mean_ns) OVER largest AS base_ns,
        first_value(ns_error) OVER largest AS base_ns_error
    FROM
    (
        SELECT
            ${keys}count() AS calls,
            countIf(isNotNull(ledger.cost)) AS priced_calls,
            countIf(ledger.span_status = 'error') AS failed_calls,
            if(priced_calls = 0, NULL, toDecimal128(divideDecimal(
                ifNull(sum(ledger.cost), toDecimal128(0, 12)), toDecimal128(greatest(priced_calls, 1), 0), 12), 12)) AS mean_cost,
            if(priced_calls < 2, 0, ifNull(stddevSampStable(toFloat64(ledger.cost)), 0) / sqrt(priced_calls)) AS cost_error,
            avg(ledger.duration_ns) AS mean_ns,
            if(calls < 2, 0, stddevSampStable(toFloat64(ledger.duration_ns)) / sqrt(calls)) AS ns_error,
            quantileExactLow(0.5)(ledger.duration_ns) AS p50_ns,
            quantileExactLow(0.95)(ledger.duration_ns) AS p95_ns
        FROM ledger FINAL
        WHERE $window AND ledger.counted
        GROUP BY $group
    )
    WINDOW largest AS (ORDER BY calls DESC$last ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
)
ORDER BY nth
LIMIT {limit:UInt64}
