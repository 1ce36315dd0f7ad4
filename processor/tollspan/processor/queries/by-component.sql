-- Cost by part of the bill (model, compute, network, storage), dearest first.
-- A call counts in each part that it used. The part 'unpriced' is what is billable and has no charge at all, such as a
-- call whose usage nobody gave.
SELECT
    component,
    if(countIf(isNotNull(known_cost)) = 0 AND countIf(open) > 0,
       NULL, ifNull(sum(known_cost), toDecimal128(0, 12))) AS cost,
    'USD' AS currency,
    countIf(inference AND nth <= 1) AS inferences,
    countIf(inference AND open AND nth_alike <= 1) AS unpriced_inferences
FROM
(
    SELECT
        if(part = '', 'unpriced', part) AS component,
        kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed') AS inference,
        -- A row without a cost has no part in any total, whatever its charges say.
        if(isNull(ledger.cost), NULL, part_cost) AS known_cost,
        part = '' OR part_open AS open,
        nth,
        nth_alike
    FROM ledger FINAL
    LEFT ARRAY JOIN
        charges.component AS part,
        charges.cost AS part_cost,
        arrayMap(status -> status IN ('unpriced', 'ambiguous', 'invalid'), charges.status) AS part_open,
        -- A call counts once in a part, however many charges it has there.
        arrayEnumerateUniq(charges.component) AS nth,
        arrayEnumerateUniq(
            charges.component, arrayMap(status -> status IN ('unpriced', 'ambiguous', 'invalid'), charges.status)
        ) AS nth_alike
    WHERE $window
        AND (notEmpty(charges.component) OR cost_status IN ('unpriced', 'invalid'))
)
GROUP BY component
ORDER BY cost DESC NULLS LAST, component
LIMIT {limit:UInt64}
