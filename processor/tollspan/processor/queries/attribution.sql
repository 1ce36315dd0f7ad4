-- Attribution accuracy: how much of the cost has somebody who answers for it.
-- measure
-- definition: the share of known cost whose rows carry a tag, for each tag; `tenant and feature` is both
-- formula: Σ cost of rows with the tag ÷ Σ cost
-- unit: a share from 0 to 1
-- pitfall: idle time and model loads carry no tenant unless the process has one: they lower it, rightly.
-- pitfall: what has no price is on neither side: unpriced_rows.
-- pitfall: it is the ledger's own cost. What a provider billed and no span told is not here: compare with its bill.
SELECT
    ${by}tag,
    if(ifNull(cost, 0) = 0, NULL, divideDecimal(
        ifNull(attributed_cost, toDecimal128(0, 12)), ifNull(nullIf(cost, 0), toDecimal128(1, 12)), 9)) AS attribution_accuracy,
    cost - ifNull(untold, toDecimal128(0, 12)) AS attributed_cost,
    cost - attributed_cost AS unattributed_cost,
    cost,
    'USD' AS currency,
    unpriced_rows
FROM
(
    SELECT
        ${keys}if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(ledger.cost_status IN ('unpriced', 'invalid')) > 0,
           NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS cost,
        countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_rows,
        -- Of what has no tag, which is less to add up.
        [
            sumIf(ledger.cost, ledger.tenant = ''),
            sumIf(ledger.cost, ledger.team = ''),
            sumIf(ledger.cost, ledger.feature = ''),
            sumIf(ledger.cost, ledger.workflow = ''),
            sumIf(ledger.cost, ledger.tenant = '' OR ledger.feature = '')
        ] AS untagged
    FROM $ledger
    WHERE $window
    GROUP BY $group
)
ARRAY JOIN
    ['tenant', 'team', 'feature', 'workflow', 'tenant and feature'] AS tag,
    untagged AS untold,
    [1, 2, 3, 4, 5] AS place
ORDER BY ${ordered}place
LIMIT {limit:UInt64}
