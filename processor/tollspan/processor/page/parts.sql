-- Cost by step of time and component, of the rows that have a cost in several of them.
SELECT
    toInt32(intDiv(toInt64(toUnixTimestamp(ledger.start_time)) - {origin:Int64}, {step:Int64})) AS bucket,
    [sum(ledger.model_cost), sum(ledger.compute_cost), sum(ledger.network_cost), sum(ledger.storage_cost),
     sum(ledger.telemetry_cost), sum(ledger.overhead_cost)] AS costs
FROM $ledger
WHERE $window AND bitCount(ledger.priced_parts) > 1 AND isNotNull(ledger.cost)
GROUP BY bucket
