-- Cost by part of the window and value of one dimension; place 0 = none of those that were asked for.
SELECT
    toInt32(intDiv(toInt64(toUnixTimestamp(ledger.start_time)) - {origin:Int64}, {step:Int64})) AS bucket,
    indexOf({top:Array(String)}, toString($dimension)) AS place,
    sum(ledger.cost) AS cost,
    countIf(isNotNull(ledger.cost)) AS known,
    countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_rows
FROM $ledger
WHERE $window
GROUP BY bucket, place
