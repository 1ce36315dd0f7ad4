-- Runaway loops: traces with many more inferences than is usual for their service, workflow and agent, dearest first.
-- limit: 20
-- parameter: at_least = 10: how many inferences make a loop
-- parameter: times = 5: how many times as many as the median trace of its group
-- definition: traces with at_least inferences and times as many as the median of the traces with the same service,
--     workflow and agent (those of their first call)
-- formula: inferences ÷ median inferences of the group ≥ times
-- unit: inferences; USD
-- pitfall: a trace that is cut by the window has fewer calls; a group with few traces has no median to speak of
--     (group_traces says how many it has).
SELECT
    lower(hex(id)) AS trace_id,
    first_start AS start_time,
    nullIf(of_service, '') AS service,
    nullIf(of_workflow, '') AS workflow,
    nullIf(of_agent, '') AS agent,
    nullIf(payer, '') AS tenant,
    calls AS inferences,
    typical AS median_inferences,
    group_traces,
    if(typical = 0, NULL, round(calls / typical, 3)) AS factor,
    usd AS cost,
    'USD' AS currency,
    open AS unpriced_inferences,
    failures AS failed_calls,
    seconds,
    first_input AS first_input_tokens,
    last_input AS last_input_tokens
FROM
(
    SELECT
        *,
        quantileExactLow(0.5)(calls) OVER (PARTITION BY of_service, of_workflow, of_agent) AS typical,
        count() OVER (PARTITION BY of_service, of_workflow, of_agent) AS group_traces
    FROM
    (
        SELECT
            ledger.trace_id AS id,
            min(ledger.start_time) AS first_start,
            argMin(toString(ledger.service), ledger.start_time) AS of_service,
            argMin(toString(ledger.workflow), ledger.start_time) AS of_workflow,
            argMin(toString(ledger.agent), ledger.start_time) AS of_agent,
            max(ledger.tenant) AS payer,
            count() AS calls,
            if(countIf(isNotNull(ledger.cost)) = 0, NULL, sum(ledger.cost)) AS usd,
            countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS open,
            countIf(ledger.span_status = 'error') AS failures,
            dateDiff('second', min(ledger.start_time), max(ledger.start_time)) AS seconds,
            argMin(ledger.input_tokens, ledger.start_time) AS first_input,
            argMax(ledger.input_tokens, ledger.start_time) AS last_input
        FROM ledger FINAL
        WHERE $window AND ledger.kind = 'inference' AND ledger.cost_status NOT IN ('rollup', 'not_billed')
        GROUP BY id
    )
)
WHERE calls >= {at_least:UInt64} AND calls >= {times:Float64} * typical
ORDER BY cost DESC NULLS LAST, inferences DESC, trace_id
LIMIT {limit:UInt64}
