-- Calls that were tried again inside the client, by model; NULL where no call tells its retries.
SELECT
    nullIf(ledger.provider, '') AS provider,
    nullIf(if(ledger.model != '', ledger.model, ledger.request_model), '') AS model,
    countIf(kind = 'inference' AND cost_status != 'rollup') AS calls,
    countIf(ledger.retries > 0) AS retried_calls,
    sum(ledger.retries) AS retries,
    countIf(span_status = 'error') AS failed_calls,
    countIf(cost_status = 'not_billed') AS not_billed
FROM $ledger
WHERE $window
GROUP BY provider, model
HAVING retried_calls > 0 OR failed_calls > 0
ORDER BY retries DESC NULLS LAST, failed_calls DESC, provider NULLS LAST, model NULLS LAST
LIMIT {limit:UInt64}
