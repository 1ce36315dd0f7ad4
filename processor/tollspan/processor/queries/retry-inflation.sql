-- How much dearer inference is for calls that failed or were tried again.
-- measure
-- definition: what all inferences cost, beside what those cost that succeeded: at 1.25 a fifth of the cost bought nothing
-- formula: Σ cost of inferences ÷ Σ cost of inferences without an error
-- unit: a factor, 1 or more
-- pitfall: attempts that a client makes again inside one call are in `retries` and usually not billed: they show in
--     attempts_per_success, which is taken over the calls that tell their retries (telling_calls).
-- pitfall: a failure that has no price (unpriced_failures), or that the provider did not bill, adds nothing to the factor.
-- pitfall: an answer that was thrown away and asked for again is a success here.
SELECT
    $by
    if(ifNull(succeeded_cost, 0) = 0, NULL,
       divideDecimal(ifNull(cost, toDecimal128(0, 12)), ifNull(nullIf(succeeded_cost, 0), toDecimal128(1, 12)), 9)) AS retry_inflation,
    if(telling_successes = 0, NULL, divideDecimal(
        toDecimal128(telling_calls + ifNull(retries, 0), 0), toDecimal128(greatest(telling_successes, 1), 0), 9)) AS attempts_per_success,
    calls,
    failed_calls,
    retries,
    telling_calls,
    cost,
    if(failed_calls = 0, toDecimal128(0, 12), failed_cost) AS failed_cost,
    'USD' AS currency,
    unpriced_failures
FROM
(
    SELECT
        ${keys}count() AS calls,
        countIf(ledger.span_status = 'error') AS failed_calls,
        sum(ledger.retries) AS retries,
        countIf(isNotNull(ledger.retries)) AS telling_calls,
        countIf(isNotNull(ledger.retries) AND ledger.span_status != 'error') AS telling_successes,
        sum(ledger.cost) AS cost,
        sumIf(ledger.cost, ledger.span_status = 'error') AS failed_cost,
        sum(ledger.cost) - ifNull(failed_cost, toDecimal128(0, 12)) AS succeeded_cost,
        countIf(ledger.span_status = 'error' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_failures
    FROM $ledger
    WHERE $window AND ledger.kind = 'inference' AND ledger.cost_status != 'rollup'
    GROUP BY $group
)
ORDER BY ${times}retry_inflation DESC NULLS LAST, attempts_per_success DESC NULLS LAST, calls DESC$last
LIMIT {limit:UInt64}
