-- Batch efficiency: what one item costs by size of the batch, beside the size at which it is cheapest.
-- measure
-- by: provider, model, device
-- definition: what one item of a batch costs where it is cheapest, beside what it costs at this size: at 0.25 an item
--     costs four times as much as there
-- formula: min (Σ cost ÷ Σ items) of all sizes ÷ (Σ cost ÷ Σ items) of this size
-- unit: a share from 0 to 1
-- pitfall: sizes stand in classes that end at powers of two. Left out are first calls in a process, which
--     cold-start-rate has, and of means of cost the calls without a price.
-- pitfall: it compares within a group: over several models or devices the sizes would be different work.
SELECT
    $by
    if(smallest = largest, toString(smallest), concat(toString(smallest), '-', toString(largest))) AS batch_size,
    calls,
    items,
    cost,
    'USD' AS currency,
    cost_per_item,
    if(ifNull(cost_per_item, 0) = 0, NULL, toDecimal128(divideDecimal(
        ifNull(min(cost_per_item) OVER ($partition), 0),
        ifNull(nullIf(cost_per_item, 0), toDecimal128(1, 18)), 18), 3)) AS efficiency,
    ns_per_item
FROM
(
    WITH assumeNotNull(ledger.batch_size) AS size
    SELECT
        ${keys}toUInt8(ceil(log2(size))) AS size_class,
        min(size) AS smallest,
        max(size) AS largest,
        count() AS calls,
        sum(size) AS items,
        sumIf(size, isNotNull(ledger.cost)) AS priced_items,
        sum(ledger.cost) AS cost,
        if(priced_items = 0, NULL,
           divideDecimal(sum(ledger.cost), toDecimal128(greatest(priced_items, 1), 0), 18)) AS cost_per_item,
        intDiv(sum(ledger.duration_ns), items) AS ns_per_item
    FROM $ledger
    WHERE $window
        AND ledger.counted
        AND ledger.batch_size > 0 AND NOT ifNull(ledger.cold_start, false)
    GROUP BY ${by}size_class
)
ORDER BY ${ordered}smallest
LIMIT {limit:UInt64}
