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
    WITH
        transform({component:String}, ['model', 'compute', 'network', 'storage', 'telemetry', 'overhead'],
                  [1, 2, 4, 8, 16, 32], 0) AS bit,
        -- Nested, so that only the columns of this part are read.
        if({component:String} = 'model',
           ifNull(sum(ledger.cost), toDecimal128(0, 12)) - sum(ledger.compute_cost) - sum(ledger.network_cost)
               - sum(ledger.storage_cost) - sum(ledger.telemetry_cost) - sum(ledger.overhead_cost),
        if({component:String} = 'compute', sum(ledger.compute_cost),
        if({component:String} = 'network', sum(ledger.network_cost),
        if({component:String} = 'storage', sum(ledger.storage_cost),
        if({component:String} = 'telemetry', sum(ledger.telemetry_cost), sum(ledger.overhead_cost)))))) AS part_cost
    SELECT
        ${keys}countIf(ledger.kind = 'inference'
            AND ledger.cost_status IN ('priced', 'free', 'included', 'partial')) AS priced_inferences,
        countIf(ledger.counted
            AND bitAnd(bitOr(ledger.priced_parts, ledger.open_parts), bit) != 0) AS using_inferences,
        countIf(ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
        countIf(bitAnd(ledger.open_parts, bit) != 0) AS open_rows,
        -- A row without a cost has no part in any total, whatever its charges say.
        countIf(NOT $costless AND bitAnd(ledger.priced_parts, bit) != 0) AS known_rows,
        if(known_rows = 0 AND open_rows > 0, NULL, part_cost) AS cost
    FROM $ledger
    WHERE $window
    GROUP BY $group
)
ORDER BY ${times}cost_per_inference DESC NULLS LAST, cost DESC NULLS LAST$last
LIMIT {limit:UInt64}
