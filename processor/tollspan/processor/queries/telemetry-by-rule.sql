-- What each sampling rule decided, kept and costs, dearest first; steered rules are those that a budget thins out.
-- A rule is counted where it decided, whether it kept the trace or chance dropped it; NULL is no rule at all.
SELECT
    nullIf(rules.rule, '') AS rule,
    nullIf(rules.reason, '') AS reason,
    max(rules.steered) AS steered,
    sum(rules.spans) AS spans,
    sum(rules.kept_spans) AS kept_spans,
    sum(rules.bytes) AS received_bytes,
    sum(rules.stored_bytes) AS stored_bytes,
    sum(rules.content_bytes) AS stored_content_bytes,
    sum(rules.removed_bytes) AS removed_content_bytes,
    sum(rules.stored_cost) AS stored_cost,
    'USD' AS currency
FROM telemetry FINAL
ARRAY JOIN rules.rule, rules.reason, rules.steered, rules.spans, rules.kept_spans, rules.bytes, rules.stored_bytes,
    rules.content_bytes, rules.removed_bytes, rules.stored_cost
WHERE minute >= {since:DateTime64(9, 'UTC')} AND minute < {until:DateTime64(9, 'UTC')}
GROUP BY rule, reason
ORDER BY stored_cost DESC NULLS LAST, stored_bytes DESC, spans DESC, rule NULLS LAST
LIMIT {limit:UInt64}
