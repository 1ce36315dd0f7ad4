-- Network: bytes and cost by direction and by how far they went (zone, region, internet, another cloud), dearest first.
-- definition: charges of the network's meters, with the calls and everything else that made them
-- formula: Σ quantity, Σ cost of charges of network.<direction>.<scope>.bytes
-- unit: bytes; USD
-- pitfall: scope is told only where both ends' places are known; `not told` is priced as the book prices that.
-- pitfall: where bytes have no price their cost is NULL, and unpriced_bytes counts them.
SELECT
    ${by}direction,
    scope,
    toUInt64(sum(quantity)) AS bytes,
    if(countIf(isNotNull(known_cost)) = 0, NULL, sum(known_cost)) AS cost,
    'USD' AS currency,
    count() AS charged_rows,
    toUInt64(sumIf(quantity, isNull(known_cost))) AS unpriced_bytes
FROM
(
    SELECT
        ${keys}splitByChar('.', meter)[2] AS direction,
        if(length(splitByChar('.', meter)) = 3, 'not told', splitByChar('.', meter)[3]) AS scope,
        n AS quantity,
        if(isNull(ledger.cost), NULL, usd) AS known_cost
    FROM ledger FINAL
    ARRAY JOIN
        ledger.charges.meter AS meter,
        ledger.charges.quantity AS n,
        ledger.charges.cost AS usd
    WHERE $window AND startsWith(meter, 'network.')
)
GROUP BY ${by}direction, scope
ORDER BY ${times}cost DESC NULLS LAST, bytes DESC, direction, scope$last
LIMIT {limit:UInt64}
