-- What kept bodies alone would say (Σ adjusted count), beside the exact ledger, with the standard error of the estimate.
-- A body stands for as many spans as its adjusted count; spans of one trace share their chance. An estimate is Float64 and
-- no money: the bill is in the exact column. off_by is in standard errors: beyond 3 or so, look for a sampler that does not
-- tell its threshold, or for traces that wait for their decision.
WITH
    bodies AS
    (
        SELECT
            toFixedString(unhex(TraceId), 16) AS trace,
            toFixedString(unhex(SpanId), 8) AS span,
            AdjustedCount AS weight
        FROM spans FINAL
        WHERE Timestamp >= {since:DateTime64(9, 'UTC')} AND Timestamp < {until:DateTime64(9, 'UTC')} AND weight > 0
    ),
    billed AS
    (
        SELECT
            trace_id,
            span_id,
            ledger.kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed') AS inference,
            ifNull(input_tokens, 0) AS tokens_in,
            ifNull(output_tokens, 0) AS tokens_out,
            ifNull(ledger.cost, toDecimal128(0, 12)) AS usd
        FROM ledger FINAL
        WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
    ),
    -- By trace, and by weight within it: spans whose senders sampled before have weights of their own.
    shares AS
    (
        SELECT
            trace,
            weight,
            sum(1) AS s_spans,
            sum(inference) AS s_inferences,
            sum(tokens_in) AS s_in,
            sum(tokens_out) AS s_out,
            toFloat64(sum(usd)) AS s_cost
        FROM bodies LEFT JOIN billed ON billed.trace_id = bodies.trace AND billed.span_id = bodies.span
        GROUP BY trace, weight
    ),
    measured AS
    (
        SELECT
            trace,
            groupArray(weight) AS weights,
            name,
            groupArray(value) AS amounts
        FROM shares
        ARRAY JOIN
            ['spans', 'inferences', 'input_tokens', 'output_tokens', 'cost'] AS name,
            [toFloat64(s_spans), toFloat64(s_inferences), toFloat64(s_in), toFloat64(s_out), s_cost] AS value
        GROUP BY trace, name
        UNION ALL
        SELECT trace, [min(weight)] AS weights, 'traces' AS name, [toFloat64(1)] AS amounts
        FROM shares
        GROUP BY trace
    ),
    estimates AS
    (
        SELECT
            name,
            count() AS kept_traces,
            sum(arraySum((y, w) -> y * w, amounts, weights)) AS estimate,
            -- Horvitz and Thompson: two spans of a trace are kept together as often as the rarer of them.
            sqrt(sum(arraySum(
                (y, w) -> y * w * arraySum((z, v) -> z * v * (1 - 1 / least(w, v)), amounts, weights),
                amounts, weights))) AS standard_error
        FROM measured
        GROUP BY name
    ),
    exactly AS
    (
        SELECT
            tupleElement(pair, 1) AS name,
            tupleElement(pair, 2) AS amount
        FROM
        (
            SELECT arrayJoin([
                ('inferences', toDecimal256(sum(inference), 12)),
                ('input_tokens', toDecimal256(sum(tokens_in), 12)),
                ('output_tokens', toDecimal256(sum(tokens_out), 12)),
                ('cost', toDecimal256(sum(usd), 12))]) AS pair
            FROM billed
            UNION ALL
            SELECT arrayJoin([
                ('traces', toDecimal256(count(), 12)),
                ('spans', toDecimal256(sum(traces.spans), 12))]) AS pair
            FROM traces FINAL
            WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
        )
    )
SELECT
    exactly.name AS measure,
    exactly.amount AS exact,
    ifNull(estimates.estimate, 0) AS estimate,
    estimates.standard_error AS standard_error,
    if(standard_error > 0, round((estimate - toFloat64(exact)) / standard_error, 2), NULL) AS off_by,
    ifNull(estimates.kept_traces, 0) AS from_traces
FROM exactly LEFT JOIN estimates ON estimates.name = exactly.name
ORDER BY indexOf(['traces', 'spans', 'inferences', 'input_tokens', 'output_tokens', 'cost'], measure)
LIMIT {limit:UInt64}
