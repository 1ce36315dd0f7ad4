-- What each trace cost, from the ledger itself, so that it cannot drift from it. A cost is NULL when something of it is
-- not priced and nothing is; unpriced_inferences says how many calls it leaves out.
CREATE VIEW IF NOT EXISTS trace_costs AS
SELECT
    trace_id,
    lower(hex(trace_id)) AS trace_id_hex,
    min(start_time) AS first_start,
    max(tenant) AS tenant,
    if(countIf(isNotNull(cost)) = 0 AND countIf(cost_status IN ('unpriced', 'invalid')) > 0,
       NULL, ifNull(sum(cost), toDecimal128(0, 12))) AS total_cost,
    sumArray(arrayFilter((x, component) -> component = 'model', charges.cost, charges.component)) AS model_cost,
    sumArray(arrayFilter((x, component) -> component = 'compute', charges.cost, charges.component)) AS compute_cost,
    sumArray(arrayFilter((x, component) -> component = 'network', charges.cost, charges.component)) AS network_cost,
    sumArray(arrayFilter((x, component) -> component = 'storage', charges.cost, charges.component)) AS storage_cost,
    countIf(kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')) AS inferences,
    countIf(kind = 'inference' AND cost_status IN ('unpriced', 'invalid')) AS unpriced_inferences,
    countIf(kind = 'inference' AND cost_status = 'partial') AS partial_inferences,
    countIf(span_status = 'error') AS failed_calls,
    sum(retries) AS retried_attempts,
    countIf(cold_start) AS cold_starts
FROM ledger FINAL
GROUP BY trace_id;
