-- What one inference costs, and 1,000 of them: overall, then by part of the bill.
-- measure
-- definition: what everything costs, for each inference that has a price
-- formula: Σ cost ÷ priced inferences
-- unit: USD for each inference
-- pitfall: calls without a price are left out of both sides: a mean over them would take their cost for zero.
-- pitfall: model loads, feature reads and idle time are in the cost and are no inferences; where they carry no tenant
--     (idle time seldom does) they stand in the row without one, which then has costs and maybe no mean.
-- pitfall: a call that is priced in part (partial_inferences) makes the mean a lower bound.
-- pitfall: the parts have one divisor, so that they add up to the whole; a part's own mean over the calls that used it
--     is another figure.
SELECT
    ${by}part.1 AS component,
    part.2 AS cost,
    'USD' AS currency,
    priced AS priced_inferences,
    unpriced AS unpriced_inferences,
    partial AS partial_inferences,
    if(priced_inferences = 0 OR isNull(cost), NULL,
       divideDecimal(cost, toDecimal128(greatest(priced_inferences, 1), 0), 18)) AS cost_per_inference,
    if(priced_inferences = 0 OR isNull(cost), NULL,
       divideDecimal(cost * 1000, toDecimal128(greatest(priced_inferences, 1), 0), 18)) AS cost_per_1000
FROM
(
    SELECT
        ${keys}countIf(ledger.kind = 'inference'
            AND ledger.cost_status IN ('priced', 'free', 'included', 'partial')) AS priced,
        countIf(ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced,
        countIf(ledger.kind = 'inference' AND ledger.cost_status = 'partial') AS partial,
        if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(ledger.cost_status IN ('unpriced', 'invalid')) > 0,
           NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS whole,
        -- A row without a cost has no part in any total, whatever its charges say.
        groupBitOr(if(isNull(ledger.cost), 0, ledger.priced_parts)) AS known,
        groupBitOr(bitOr(ledger.priced_parts, ledger.open_parts)) AS there,
        [sum(ledger.compute_cost), sum(ledger.network_cost), sum(ledger.storage_cost),
         sum(ledger.telemetry_cost), sum(ledger.overhead_cost)] AS others,
        arrayPushFront(others, ifNull(whole, toDecimal128(0, 12)) - arraySum(others)) AS sums,
        arrayConcat(
            [('all', toNullable(whole))],
            arrayFilter((_, nth) -> bitTest(there, nth - 1), arrayMap(
                (name, usd, nth) -> (name, if(bitTest(known, nth - 1), toDecimal128(usd, 12), NULL)),
                ['model', 'compute', 'network', 'storage', 'telemetry', 'overhead'], sums, arrayEnumerate(sums)),
                arrayEnumerate(sums))) AS parts
    FROM $ledger
    WHERE $window
    GROUP BY $group
)
ARRAY JOIN parts AS part
ORDER BY ${ordered}component != 'all', cost DESC NULLS LAST, component
LIMIT {limit:UInt64}
