-- Cost by part of the bill (model, compute, network, storage), dearest first.
-- A call counts in each part that it used. The part 'unpriced' is what is billable and has no charge at all, such as a
-- call whose usage nobody gave.
SELECT
    component,
    if(countIf(costed AND priced_here) = 0 AND countIf(open_here) > 0, NULL, sumIf(usd, costed AND priced_here)) AS cost,
    'USD' AS currency,
    sumIf(n, counts) AS inferences,
    sumIf(n, counts AND open_here) AS unpriced_inferences
FROM
(
    SELECT
        component,
        costed,
        counts,
        n,
        usd,
        component != 'unpriced' AND bitTest(priced, place) AS priced_here,
        -- No charge at all, and none that is known.
        if(component = 'unpriced', priced = 0 AND opened = 0 AND unknown, bitTest(opened, place)) AS open_here
    FROM
    (
        -- Rows that are alike: what is asked of each part is then asked of some groups.
        SELECT
            ledger.priced_parts AS priced,
            ledger.open_parts AS opened,
            isNotNull(ledger.cost) AS costed,
            ledger.counted AS counts,
            ledger.cost_status IN ('unpriced', 'invalid') AS unknown,
            count() AS n,
            [sum(ledger.compute_cost), sum(ledger.network_cost), sum(ledger.storage_cost),
             sum(ledger.telemetry_cost), sum(ledger.overhead_cost)] AS others,
            arrayConcat([ifNull(sum(ledger.cost), toDecimal128(0, 12)) - arraySum(others)], others, [0]) AS parts
        FROM $ledger
        WHERE $window
        GROUP BY priced, opened, costed, counts, unknown
    )
    ARRAY JOIN
        ['model', 'compute', 'network', 'storage', 'telemetry', 'overhead', 'unpriced'] AS component,
        arrayMap(each -> toDecimal128(each, 12), parts) AS usd,
        [0, 1, 2, 3, 4, 5, 6] AS place
)
WHERE priced_here OR open_here
GROUP BY component
ORDER BY cost DESC NULLS LAST, component
LIMIT {limit:UInt64}
