-- What each sampling rule decided: spans that came and were kept, traces, what their bodies take and cost, the calls in them.
-- Rows of bodies are counted in the minutes in which spans started, traces by when they began. rule is NULL where nothing
-- matched; steered says whether a budget may thin the rule out. stored_cost is NULL where the price book has no price.
SELECT
    nullIf(decided.rule, '') AS rule,
    nullIf(decided.reason, '') AS reason,
    decided.steered AS steered,
    decided.spans AS spans,
    decided.kept_spans AS kept_spans,
    if(kept.seen, kept.traces, 0) AS kept_traces,
    if(kept.seen, kept.without_content, 0) AS kept_without_content,
    decided.stored_bytes AS stored_bytes,
    decided.removed_bytes AS removed_bytes,
    decided.stored_cost AS stored_cost,
    if(kept.seen, kept.cost, toDecimal128(0, 12)) AS inference_cost,
    'USD' AS currency
FROM
(
    SELECT
        each_rule AS rule,
        any(each_reason) AS reason,
        max(each_steered) AS steered,
        sum(each_spans) AS spans,
        sum(each_kept) AS kept_spans,
        sum(each_stored) AS stored_bytes,
        sum(each_removed) AS removed_bytes,
        if(countIf(isNotNull(each_cost)) = 0 AND sum(each_stored) > 0,
           NULL, ifNull(sum(each_cost), toDecimal128(0, 12))) AS stored_cost
    FROM telemetry FINAL
    ARRAY JOIN
        rules.rule AS each_rule,
        rules.reason AS each_reason,
        rules.steered AS each_steered,
        rules.spans AS each_spans,
        rules.kept_spans AS each_kept,
        rules.stored_bytes AS each_stored,
        rules.removed_bytes AS each_removed,
        rules.stored_cost AS each_cost
    WHERE minute >= {since:DateTime64(9, 'UTC')} AND minute < {until:DateTime64(9, 'UTC')}
    GROUP BY rule
) AS decided
LEFT JOIN
(
    SELECT
        summaries.rule AS rule,
        count() AS traces,
        countIf(summaries.content = 'removed') AS without_content,
        ifNull(sum(costs.cost), toDecimal128(0, 12)) AS cost,
        true AS seen
    FROM
    (
        SELECT trace_id, traces.keep_rule AS rule, traces.content AS content
        FROM traces FINAL
        WHERE traces.kept > 0
            AND start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
    ) AS summaries
    LEFT JOIN
    (
        SELECT ledger.trace_id AS trace_id, sum(ledger.cost) AS cost
        FROM ledger FINAL
        WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
        GROUP BY trace_id
    ) AS costs ON costs.trace_id = summaries.trace_id
    GROUP BY rule
) AS kept ON kept.rule = decided.rule
ORDER BY stored_cost DESC NULLS LAST, stored_bytes DESC, rule
LIMIT {limit:UInt64}
