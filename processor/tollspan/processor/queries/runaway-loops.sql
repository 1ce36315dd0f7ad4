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
WITH
    -- Numbers first, and of all traces as few as there can be: what else they did is asked of those that are shown.
    (
        SELECT groupArray((id, typical, group_traces))
        FROM
        (
            SELECT each.1 AS id, each.2 AS calls, each.3 AS usd, typical, group_traces
            FROM
            (
                SELECT
                    quantileExactLow(0.5)(calls) AS typical,
                    count() AS group_traces,
                    groupArrayIf((id, calls, usd), calls >= {at_least:UInt64}) AS many
                FROM
                (
                    SELECT
                        ledger.trace_id AS id,
                        argMin(cityHash64(ledger.service, ledger.workflow, ledger.agent), ledger.start_time) AS of_group,
                        count() AS calls,
                        if(countIf(isNotNull(ledger.cost)) = 0, NULL, sum(ledger.cost)) AS usd
                    FROM ledger FINAL
                    WHERE $window AND ledger.counted
                    GROUP BY id
                )
                GROUP BY of_group
            )
            ARRAY JOIN many AS each
            WHERE each.2 >= {times:Float64} * typical
            ORDER BY usd DESC NULLS LAST, calls DESC, id
            LIMIT {limit:UInt64}
        )
    ) AS loops
SELECT
    lower(hex(ledger.trace_id)) AS trace_id,
    min(ledger.start_time) AS start_time,
    nullIf(argMin(toString(ledger.service), ledger.start_time), '') AS service,
    nullIf(argMin(toString(ledger.workflow), ledger.start_time), '') AS workflow,
    nullIf(argMin(toString(ledger.agent), ledger.start_time), '') AS agent,
    nullIf(max(ledger.tenant), '') AS tenant,
    count() AS inferences,
    arrayFirst(loop -> loop.1 = any(ledger.trace_id), loops).2 AS median_inferences,
    arrayFirst(loop -> loop.1 = any(ledger.trace_id), loops).3 AS group_traces,
    if(median_inferences = 0, NULL, round(inferences / median_inferences, 3)) AS factor,
    if(countIf(isNotNull(ledger.cost)) = 0, NULL, sum(ledger.cost)) AS cost,
    'USD' AS currency,
    countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
    countIf(ledger.span_status = 'error') AS failed_calls,
    dateDiff('second', min(ledger.start_time), max(ledger.start_time)) AS seconds,
    argMin(ledger.input_tokens, ledger.start_time) AS first_input_tokens,
    argMax(ledger.input_tokens, ledger.start_time) AS last_input_tokens
FROM ledger FINAL
WHERE $window AND ledger.counted
    AND ledger.trace_id IN (SELECT arrayJoin(loops).1)
GROUP BY ledger.trace_id
ORDER BY cost DESC NULLS LAST, inferences DESC, trace_id
LIMIT {limit:UInt64}
