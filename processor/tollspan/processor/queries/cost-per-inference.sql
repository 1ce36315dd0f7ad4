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
    ${by}component,
    cost,
    'USD' AS currency,
    sum(priced) OVER ($partition) AS priced_inferences,
    sum(unpriced) OVER ($partition) AS unpriced_inferences,
    sum(partial) OVER ($partition) AS partial_inferences,
    if(priced_inferences = 0 OR isNull(cost), NULL,
       divideDecimal(cost, toDecimal128(greatest(priced_inferences, 1), 0), 18)) AS cost_per_inference,
    if(priced_inferences = 0 OR isNull(cost), NULL,
       divideDecimal(cost * 1000, toDecimal128(greatest(priced_inferences, 1), 0), 18)) AS cost_per_1000
FROM
(
    SELECT
        ${keys}'all' AS component,
        toNullable(if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(ledger.cost_status IN ('unpriced', 'invalid')) > 0,
           NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12)))) AS cost,
        countIf(ledger.kind = 'inference'
            AND ledger.cost_status IN ('priced', 'free', 'included', 'partial')) AS priced,
        countIf(ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced,
        countIf(ledger.kind = 'inference' AND ledger.cost_status = 'partial') AS partial
    FROM ledger FINAL
    WHERE $window
    GROUP BY $group
    UNION ALL
    SELECT
        ${keys}toString(part) AS component,
        -- A row without a cost has no part in any total, whatever its charges say.
        sumIf(part_cost, isNotNull(ledger.cost)) AS cost,
        0 AS priced,
        0 AS unpriced,
        0 AS partial
    FROM ledger FINAL
    ARRAY JOIN ledger.charges.component AS part, ledger.charges.cost AS part_cost
    WHERE $window
    GROUP BY ${by}component
)
ORDER BY ${ordered}component != 'all', cost DESC NULLS LAST, component
LIMIT {limit:UInt64}
