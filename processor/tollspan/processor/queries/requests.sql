-- The dearest requests (traces with an inference), each by part of the bill: models, compute, feature and vector stores, network, rest.
-- limit: 20
-- The parts are those of per-request, and add up to the request's cost. One is NULL where it was used and nothing of it
-- has a price, and 0 where it was not used.
SELECT
    lower(hex(id)) AS trace_id,
    min(first_start) AS start_time,
    nullIf(max(tags.1), '') AS workflow,
    nullIf(max(tags.2), '') AS tenant,
    nullIf(max(tags.3), '') AS variant,
    if(countIf(isNotNull(part_cost)) = 0, NULL, sum(part_cost)) AS cost,
    'USD' AS currency,
    if(countIf(part = 'model') = 0, toDecimal128(0, 12), anyIf(part_cost, part = 'model')) AS model_cost,
    if(countIf(part = 'compute') = 0, toDecimal128(0, 12), anyIf(part_cost, part = 'compute')) AS compute_cost,
    if(countIf(part = 'feature') = 0, toDecimal128(0, 12), anyIf(part_cost, part = 'feature')) AS feature_cost,
    if(countIf(part = 'vector') = 0, toDecimal128(0, 12), anyIf(part_cost, part = 'vector')) AS vector_cost,
    if(countIf(part = 'network') = 0, toDecimal128(0, 12), anyIf(part_cost, part = 'network')) AS network_cost,
    if(countIf(part = 'other') = 0, toDecimal128(0, 12), anyIf(part_cost, part = 'other')) AS other_cost
FROM
(
    SELECT
        ledger.trace_id AS id,
        min(start_time) AS first_start,
        max((ledger.workflow, ledger.tenant, ledger.variant)) AS tags,
        multiIf(
            endsWith(meter, '.idle_seconds'), 'other',
            startsWith(meter, 'feature.'), 'feature',
            startsWith(meter, 'vector.'), 'vector',
            component = 'storage' AND operation IN ('feature_read', 'feature_write'), 'feature',
            component = 'storage' AND operation = 'vector_query', 'vector',
            component IN ('model', 'compute', 'network'), component,
            'other') AS part,
        max(kind = 'inference') AS inferred,
        -- A row without a cost has no part in any total, whatever its charges say.
        sum(if(isNull(ledger.cost), NULL, charge_cost)) AS part_cost
    FROM ledger FINAL
    LEFT ARRAY JOIN
        charges.meter AS meter,
        charges.component AS component,
        charges.cost AS charge_cost
    WHERE $window
        AND (notEmpty(charges.component) OR cost_status IN ('unpriced', 'invalid'))
    GROUP BY id, part
)
GROUP BY id
HAVING max(inferred)
ORDER BY cost DESC NULLS LAST, trace_id
LIMIT {limit:UInt64}
