-- How many inferences are the first of their model in a process, and what that costs.
-- measure
-- definition: the share of inferences that waited for a cold start, as their spans tell
-- formula: cold starts ÷ inferences
-- unit: a share from 0 to 1
-- pitfall: only runtimes on hardware of one's own tell cold starts; calls of a provider's models count as inferences
--     that had none. Break down by provider or model, or filter.
-- pitfall: loads (kind model_load) are beside it: a model can be loaded and never asked, see `cold-models`.
SELECT
    ${keys}countIf(ledger.counted) AS inferences,
    countIf(ledger.counted
        AND ledger.cold_start) AS cold_starts,
    if(inferences = 0, NULL, divideDecimal(
        toDecimal128(cold_starts, 0), toDecimal128(greatest(inferences, 1), 0), 9)) AS cold_start_rate,
    if(cold_starts > 0, sumIf(ledger.cost, ledger.kind = 'inference' AND ledger.cold_start),
       toNullable(toDecimal128(0, 12))) AS cold_cost,
    'USD' AS currency,
    if(cold_starts = 0, NULL, toUInt64(avgIf(ledger.duration_ns, ledger.counted AND ledger.cold_start))) AS cold_mean_ns,
    countIf(ledger.kind = 'model_load') AS loads
FROM $ledger
WHERE $window
GROUP BY $group
HAVING inferences > 0 OR loads > 0
ORDER BY ${times}cold_start_rate DESC NULLS LAST, cold_starts DESC$last
LIMIT {limit:UInt64}
