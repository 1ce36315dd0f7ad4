-- One trace, span by span: what each call cost; `tollspan trace ID` shows it as a tree with the cost of each branch.
-- parameter: trace: the trace id, 32 hexadecimal digits
-- Rows of the ledger (every billable span), and of the bodies that sampling kept. A cost is NULL where a span has no row in
-- the ledger (it used nothing that is billed), is a roll-up (billed on the calls beneath it) or has no price: cost_status
-- says which.
SELECT
    lower(hex(id)) AS span_id,
    if(parent = toFixedString('', 8), '', lower(hex(parent))) AS parent_span_id,
    started AS start_time,
    took_ns AS duration_ns,
    if(span_name != '', span_name, trim(concat(what, ' ', served))) AS name,
    nullIf(from_service, '') AS service,
    nullIf(bills, '') AS provider,
    nullIf(served, '') AS model,
    nullIf(by_agent, '') AS agent,
    tokens_in AS input_tokens,
    tokens_out AS output_tokens,
    usd AS cost,
    'USD' AS currency,
    nullIf(state, '') AS cost_status,
    failed,
    is_inference AS inference
FROM
(
    SELECT
        id,
        max(parent_id) AS parent,
        min(start) AS started,
        max(ns) AS took_ns,
        max(named) AS span_name,
        max(of_service) AS from_service,
        max(of_provider) AS bills,
        max(of_model) AS served,
        max(of_agent) AS by_agent,
        max(operated) AS what,
        max(ins) AS tokens_in,
        max(outs) AS tokens_out,
        max(money) AS usd,
        max(status) AS state,
        toBool(max(error)) AS failed,
        toBool(max(infers)) AS is_inference
    FROM
    (
        SELECT
            ledger.span_id AS id,
            ledger.parent_span_id AS parent_id,
            ledger.start_time AS start,
            ledger.duration_ns AS ns,
            '' AS named,
            toString(ledger.service) AS of_service,
            toString(ledger.provider) AS of_provider,
            toString(if(ledger.model != '', ledger.model, ledger.request_model)) AS of_model,
            toString(ledger.agent) AS of_agent,
            toString(ledger.operation) AS operated,
            ledger.input_tokens AS ins,
            ledger.output_tokens AS outs,
            ledger.cost AS money,
            toString(ledger.cost_status) AS status,
            ledger.span_status = 'error' AS error,
            ledger.counted AS infers
        FROM ledger FINAL
        WHERE $window AND ledger.trace_id = toFixedString(unhex({trace:String}), 16)
        UNION ALL
        SELECT
            toFixedString(unhex(SpanId), 8),
            toFixedString(unhex(ParentSpanId), 8),
            Timestamp,
            Duration,
            toString(SpanName),
            toString(ServiceName),
            '',
            '',
            '',
            '',
            NULL,
            NULL,
            NULL,
            '',
            StatusCode = 'Error',
            false
        FROM spans FINAL
        WHERE TraceId = {trace:String}
    )
    GROUP BY id
)
ORDER BY start_time, span_id
LIMIT {limit:UInt64}
