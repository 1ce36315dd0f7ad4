-- What everything cost: one row.
-- single
-- cost is NULL when there are calls without a price and none with one; with no calls at all it is 0.
SELECT
    countIf(kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')) AS inferences,
    if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS cost,
    'USD' AS currency,
    countIf(kind = 'inference' AND cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
    -- Whatever its kind: all that the cost leaves out.
    countIf(cost_status IN ('unpriced', 'invalid')) AS unpriced_rows,
    countIf(kind = 'inference' AND cost_status = 'partial') AS partial_inferences,
    -- Calls whose usage was estimated in the program that made them, and how much of the cost is theirs.
    countIf(kind = 'inference' AND cost_status != 'rollup'
        AND has(splitByChar(',', cost_reasons), 'usage_estimated')) AS estimated_inferences,
    if(estimated_inferences = 0, toDecimal128(0, 12),
       sumIf(ledger.cost, kind = 'inference' AND cost_status != 'rollup'
           AND has(splitByChar(',', cost_reasons), 'usage_estimated'))) AS estimated_cost,
    countIf(cost_status = 'not_billed') AS not_billed,
    -- NULL when no call tells.
    sum(ledger.retries) AS retries,
    countIf(cold_start) AS cold_starts,
    count() AS ledger_rows,
    if(count() = 0, NULL, min(start_time)) AS first_start,
    if(count() = 0, NULL, max(start_time)) AS last_start
FROM $ledger
WHERE $window
