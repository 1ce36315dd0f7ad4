-- What 1,000 inferences cost, dearest first.
-- measure
-- definition: what everything costs, for each 1,000 inferences that have a price
-- formula: 1000 × Σ cost ÷ priced inferences
-- unit: USD for 1,000 inferences
-- pitfall: calls without a price are left out of both sides; model loads, feature reads and idle time are in the cost.
-- pitfall: of few inferences it is a projection: look at priced_inferences beside it.
SELECT
    $by
    if(priced_inferences = 0 OR isNull(cost), NULL,
       divideDecimal(cost * 1000, toDecimal128(greatest(priced_inferences, 1), 0), 18)) AS cost_per_1000,
    cost,
    'USD' AS currency,
    priced_inferences,
    unpriced_inferences,
    partial_inferences
FROM
(
    SELECT
        ${keys}countIf(ledger.kind = 'inference'
            AND ledger.cost_status IN ('priced', 'free', 'included', 'partial')) AS priced_inferences,
        countIf(ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
        countIf(ledger.kind = 'inference' AND ledger.cost_status = 'partial') AS partial_inferences,
        if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(ledger.cost_status IN ('unpriced', 'invalid')) > 0,
           NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS cost
    FROM $ledger
    WHERE $window
    GROUP BY $group
)
ORDER BY ${times}cost_per_1000 DESC NULLS LAST$last
LIMIT {limit:UInt64}
