-- Batch efficiency: what one item costs by size of the batch, for each model on hardware of one's own.
-- Sizes stand in classes that end at powers of two. Left out are first calls in a process, which cold-starts has, and of
-- means of cost the calls without a price. The efficiency of a model's cheapest class is 1; at 0.25 an item costs four
-- times as much as there.
SELECT
    provider,
    model,
    device,
    if(smallest = largest, toString(smallest), concat(toString(smallest), '-', toString(largest))) AS batch_size,
    calls,
    items,
    cost,
    'USD' AS currency,
    cost_per_item,
    if(ifNull(cost_per_item, 0) = 0, NULL, toDecimal128(divideDecimal(
        ifNull(min(cost_per_item) OVER (PARTITION BY provider, model, device), 0),
        ifNull(nullIf(cost_per_item, 0), toDecimal128(1, 18)), 18), 3)) AS efficiency,
    ns_per_item
FROM
(
    SELECT
        nullIf(ledger.provider, '') AS provider,
        nullIf(ledger.model, '') AS model,
        nullIf(ledger.device, '') AS device,
        toUInt8(ceil(log2(ledger.batch_size))) AS size_class,
        min(ledger.batch_size) AS smallest,
        max(ledger.batch_size) AS largest,
        count() AS calls,
        sum(ledger.batch_size) AS items,
        sumIf(ledger.batch_size, isNotNull(ledger.cost)) AS priced_items,
        sum(ledger.cost) AS cost,
        if(priced_items = 0, NULL,
           divideDecimal(sum(ledger.cost), toDecimal128(greatest(priced_items, 1), 0), 18)) AS cost_per_item,
        intDiv(sum(duration_ns), items) AS ns_per_item
    FROM ledger FINAL
    WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
        AND kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')
        AND ledger.batch_size > 0 AND NOT ifNull(cold_start, false)
    GROUP BY provider, model, device, size_class
)
ORDER BY provider NULLS LAST, model NULLS LAST, device NULLS LAST, smallest
LIMIT {limit:UInt64}
