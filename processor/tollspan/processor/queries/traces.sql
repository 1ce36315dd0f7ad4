-- The dearest traces: what each cost, what it did, and whether its spans were kept.
-- limit: 20
WITH
    -- Found once; their summaries are then looked up by key, and not read all.
    (
        SELECT groupArray((id, first_start, payer, total, calls, open))
        FROM
        (
            SELECT
                ledger.trace_id AS id,
                min(ledger.start_time) AS first_start,
                max(ledger.tenant) AS payer,
                if(countIf(isNotNull(ledger.cost)) = 0 AND countIf(cost_status IN ('unpriced', 'invalid')) > 0,
                   NULL, ifNull(sum(ledger.cost), toDecimal128(0, 12))) AS total,
                countIf(kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')) AS calls,
                countIf(kind = 'inference' AND cost_status IN ('unpriced', 'invalid')) AS open
            FROM ledger FINAL
            WHERE $window
            GROUP BY id
            ORDER BY total DESC NULLS LAST, id
            LIMIT {limit:UInt64}
        )
    ) AS dearest
SELECT
    lower(hex(costs.id)) AS trace_id,
    costs.first_start AS start_time,
    nullIf(summaries.root_name, '') AS root,
    nullIf(costs.payer, '') AS tenant,
    costs.total AS cost,
    'USD' AS currency,
    costs.calls AS inferences,
    costs.open AS unpriced_inferences,
    -- NULL until the trace is summarized.
    if(summaries.seen, summaries.span_count, NULL) AS spans,
    if(summaries.seen, summaries.milliseconds, NULL) AS duration_ms,
    if(summaries.seen, toBool(summaries.error), NULL) AS failed,
    if(summaries.seen, toBool(summaries.kept), NULL) AS kept,
    nullIf(summaries.keep_reason, '') AS keep_reason
FROM
(
    SELECT
        tupleElement(each, 1) AS id,
        tupleElement(each, 2) AS first_start,
        tupleElement(each, 3) AS payer,
        tupleElement(each, 4) AS total,
        tupleElement(each, 5) AS calls,
        tupleElement(each, 6) AS open
    FROM (SELECT arrayJoin(dearest) AS each)
) AS costs
LEFT JOIN
(
    SELECT
        traces.trace_id AS id,
        root_name,
        traces.spans AS span_count,
        dateDiff('millisecond', start_time, end_time) AS milliseconds,
        error,
        kept,
        keep_reason,
        true AS seen
    FROM traces FINAL
    WHERE traces.trace_id IN (SELECT arrayJoin(dearest).1)
) AS summaries ON summaries.id = costs.id
ORDER BY cost DESC NULLS LAST, trace_id
