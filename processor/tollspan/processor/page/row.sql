-- One row of the ledger, whole.
SELECT
    *,
    ledger.charges.cost AS `charges.cost`,
    ledger.list_cost AS list_cost,
    ledger.contracted_cost AS contracted_cost,
    ledger.first_cost AS first_cost,
    ledger.input_tokens AS input_tokens,
    ledger.output_tokens AS output_tokens,
    ledger.rolled_up AS rolled_up,
    ledger.repriced AS repriced
FROM ledger FINAL
WHERE ledger.trace_id = toFixedString(unhex({trace:String}), 16) AND ledger.span_id = toFixedString(unhex({span:String}), 8)
LIMIT 1
