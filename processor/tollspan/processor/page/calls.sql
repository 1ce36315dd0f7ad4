-- Rows of the ledger behind a figure.
SELECT
    ledger.trace_id_hex AS trace_id,
    ledger.span_id_hex AS span_id,
    ledger.start_time AS start_time,
    ledger.duration_ns AS duration_ns,
    nullIf(toString(ledger.tenant), '') AS tenant,
    nullIf(toString(ledger.team), '') AS team,
    nullIf(toString(ledger.feature), '') AS feature,
    nullIf(toString(ledger.workflow), '') AS workflow,
    nullIf(toString(ledger.agent), '') AS agent,
    nullIf(toString(ledger.service), '') AS service,
    nullIf(toString(ledger.provider), '') AS provider,
    nullIf(toString(if(ledger.model != '', ledger.model, ledger.request_model)), '') AS model,
    nullIf(toString(ledger.operation), '') AS operation,
    toString(ledger.kind) AS kind,
    $amount AS amount,
    ledger.cost AS cost,
    toString(ledger.cost_status) AS cost_status,
    toString(ledger.cost_reasons) AS cost_reasons,
    ledger.input_tokens AS input_tokens,
    ledger.output_tokens AS output_tokens,
    ledger.retries AS retries,
    ledger.cold_start AS cold_start,
    ledger.batch_size AS batch_size,
    nullIf(toString(ledger.error_type), '') AS error_type,
    toBool(ledger.span_status = 'error') AS failed
FROM ledger FINAL
WHERE $window AND ($only)
ORDER BY $order
LIMIT {limit:UInt64}
