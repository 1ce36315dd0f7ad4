-- What is known of a trace besides its rows in the ledger; no row until it is summarized.
SELECT
    nullIf(root_name, '') AS root,
    nullIf(root_service, '') AS root_service,
    nullIf(tenant, '') AS tenant,
    spans AS recorded,
    toBool(kept) AS kept,
    nullIf(keep_reason, '') AS keep_reason
FROM traces FINAL
WHERE trace_id = toFixedString(unhex({trace:String}), 16)
LIMIT 1
