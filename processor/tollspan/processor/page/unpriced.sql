-- What has no price or only part of one, and why, most frequent first: what the query unpriced says, in few columns.
SELECT
    nullIf(toString(ledger.provider), '') AS provider,
    nullIf(toString(if(ledger.model != '', ledger.model, ledger.request_model)), '') AS model,
    toString(ledger.kind) AS kind,
    toString(ledger.cost_status) AS cost_status,
    toString(ledger.cost_reasons) AS reasons,
    countIf(kind = 'inference') AS inferences,
    count() AS rows
FROM $ledger
WHERE $window AND ledger.cost_status IN ('unpriced', 'invalid', 'partial')
GROUP BY provider, model, kind, cost_status, reasons
ORDER BY rows DESC, provider NULLS LAST, model NULLS LAST, kind, cost_status, reasons
LIMIT 20
