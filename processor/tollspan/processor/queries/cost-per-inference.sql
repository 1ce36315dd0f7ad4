-- What one inference costs, and 1,000 of them: overall, then by part of the bill.
-- Calls without a price are left out of both sides: a mean over them would take their cost for zero. Model loads,
-- feature reads and idle time are in the cost and are no inferences.
WITH
    (
        SELECT (countIf(cost_status IN ('priced', 'free', 'included', 'partial')),
            countIf(cost_status IN ('unpriced', 'invalid')))
        FROM ledger FINAL
        WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
            AND kind = 'inference'
    ) AS calls
SELECT
    component,
    known_total AS cost,
    'USD' AS currency,
    calls.1 AS priced_inferences,
    calls.2 AS unpriced_inferences,
    if(calls.1 = 0, NULL, divideDecimal(known_total, toDecimal128(greatest(calls.1, 1), 0), 18)) AS cost_per_inference,
    if(calls.1 = 0, NULL, divideDecimal(known_total * 1000, toDecimal128(greatest(calls.1, 1), 0), 18)) AS cost_per_1000
FROM
(
    SELECT 'all' AS component, sum(ledger.cost) AS known_total, 0 AS place
    FROM ledger FINAL
    WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
    UNION ALL
    SELECT component, sum(known_cost) AS known_total, 1 AS place
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
        WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
            AND (notEmpty(charges.component) OR cost_status IN ('unpriced', 'invalid'))
    )
    GROUP BY component
    HAVING component != 'unpriced'
)
ORDER BY place, cost DESC NULLS LAST, component
LIMIT {limit:UInt64}
