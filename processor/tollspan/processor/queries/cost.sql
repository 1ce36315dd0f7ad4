-- Cost by any dimension, dearest first.
-- definition: the exact sum of what is priced of everything in the ledger: inferences, model loads, reads, idle time
-- formula: Σ cost
-- unit: USD
-- pitfall: what has no price is in no cost: unpriced_inferences says how many calls that leaves out, and a partial one
--     is in it with a lower bound. `tollspan query unpriced` lists them.
SELECT
    ${keys}if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(ledger.cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS cost,
    'USD' AS currency,
    countIf(ledger.counted) AS inferences,
    countIf(ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
    countIf(ledger.kind = 'inference' AND ledger.cost_status = 'partial') AS partial_inferences
FROM $ledger
WHERE $window
GROUP BY $group
ORDER BY ${times}cost DESC NULLS LAST$last
LIMIT {limit:UInt64}
