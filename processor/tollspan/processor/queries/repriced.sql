-- What repricing did: cost on arrival beside cost now, of rows that were priced again.
-- by: provider, model
-- definition: for rows that `tollspan reprice` changed, what they cost when they arrived and what they cost now
-- formula: difference = Σ cost now − Σ cost on arrival
-- unit: USD
-- pitfall: rows that had no price on arrival (first_priced) are in the cost now and not in that on arrival, and so in the
--     difference.
SELECT
    ${keys}count() AS rows,
    countIf(isNull(ledger.first_cost) AND isNotNull(ledger.cost)) AS first_priced,
    countIf(isNull(ledger.cost)) AS unpriced,
    sum(ledger.first_cost) AS first_cost,
    sum(ledger.cost) AS cost,
    ifNull(sum(ledger.cost), toDecimal128(0, 12)) - ifNull(sum(ledger.first_cost), toDecimal128(0, 12)) AS difference,
    'USD' AS currency,
    max(ledger.repriced) AS last_repricing
FROM ledger FINAL
WHERE $window AND ledger.repriced > 0
GROUP BY $group
ORDER BY ${times}abs(difference) DESC$last
LIMIT {limit:UInt64}
