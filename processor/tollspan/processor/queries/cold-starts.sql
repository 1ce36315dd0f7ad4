-- First calls of a model in a process beside the others: how often, how long, how dear.
SELECT
    nullIf(ledger.provider, '') AS provider,
    nullIf(ledger.model, '') AS model,
    nullIf(ledger.device, '') AS device,
    countIf(cold_start) AS cold_starts,
    sumIf(ledger.cost, cold_start) AS cold_cost,
    toUInt64(avgIf(duration_ns, cold_start)) AS cold_mean_ns,
    countIf(cold_start = false OR isNull(cold_start)) AS warm_calls,
    if(warm_calls = 0, NULL, toUInt64(avgIf(duration_ns, isNull(cold_start) OR NOT cold_start))) AS warm_mean_ns
FROM $ledger
WHERE $window
    AND kind = 'inference'
GROUP BY provider, model, device
HAVING cold_starts > 0
ORDER BY cold_starts DESC, provider NULLS LAST, model NULLS LAST, device NULLS LAST
LIMIT {limit:UInt64}
