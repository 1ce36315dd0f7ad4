-- What one part of the bill adds to one inference.
-- measure
-- definition: the charges of the part <component> on everything in the ledger, for each inference that has a price
-- formula: Σ cost of charges of <component> ÷ priced inferences
-- unit: USD for each inference
-- pitfall: the divisor is that of cost-per-inference, with or without this part, so that the parts add up to the whole;
--     using_inferences says how many calls have a charge of it.
-- pitfall: where such a charge has no price (open_rows) the mean is a lower bound; where none has one it is NULL.
-- pitfall: it is 0 where nothing of it was measured: a provider's own machines are in its price, and time on machines
--     of one's own is measured only in instrumented processes.
SELECT
    $by
    if(priced_inferences = 0 OR isNull(cost), NULL,
       divideDecimal(cost, toDecimal128(greatest(priced_inferences, 1), 0), 18)) AS cost_per_inference,
    cost,
    'USD' AS currency,
    priced_inferences,
    using_inferences,
    unpriced_inferences,
    open_rows
FROM
(
    SELECT
        ${keys}countIf(ledger.kind = 'inference'
            AND ledger.cost_status IN ('priced', 'free', 'included', 'partial')) AS priced_inferences,
        countIf(ledger.kind = 'inference' AND ledger.cost_status NOT IN ('rollup', 'not_billed')
            AND notEmpty(ledger.mine)) AS using_inferences,
        countIf(ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
        countIf(arrayExists(each -> isNull(each), ledger.mine)) AS open_rows,
        -- A row without a cost has no part in any total, whatever its charges say.
        countIf(isNotNull(ledger.cost) AND arrayExists(each -> isNotNull(each), ledger.mine)) AS known_rows,
        sumIf(arraySum(each -> ifNull(each, toDecimal128(0, 12)), ledger.mine), isNotNull(ledger.cost)) AS known_cost,
        if(known_rows = 0 AND open_rows > 0, NULL, toDecimal128(known_cost, 12)) AS cost
    FROM
    (
        SELECT
            *,
            arrayFilter((each, part) -> part = {component:String}, ledger.charges.cost, ledger.charges.component) AS mine
        FROM ledger FINAL
        WHERE $window
    ) AS ledger
    GROUP BY $group
)
ORDER BY ${times}cost_per_inference DESC NULLS LAST, cost DESC NULLS LAST$last
LIMIT {limit:UInt64}
