-- What one request costs, by workflow and part of the bill, dearest first.
-- A request is a trace with an inference, and its workflow the tag of that name. Parts: model (what providers of models
-- charge), compute, idle (machines held and not at work), feature and vector (stores, with the bytes that are read from
-- them), network, storage ... The rows' costs add up to the total; what is part of no request (model loads, idle time)
-- is in no mean. A request with something that has no price is left out of both sides of the mean, which would take its
-- cost for zero.
WITH
    requests AS
    (
        SELECT
            trace_id,
            max(ledger.workflow) AS tagged,
            max(kind = 'inference') AS is_request,
            is_request AND NOT max(cost_status IN ('unpriced', 'invalid', 'partial')) AS whole
        FROM ledger FINAL
        WHERE $window
        GROUP BY trace_id
    )
SELECT
    nullIf(charged.tagged, '') AS workflow,
    charged.part AS part,
    if(countIf(isNotNull(charged.known_cost)) = 0 AND countIf(charged.open) > 0,
       NULL, ifNull(sum(charged.known_cost), toDecimal128(0, 12))) AS cost,
    'USD' AS currency,
    any(counted.priced) AS priced_requests,
    any(counted.requests) - any(counted.priced) AS unpriced_requests,
    if(priced_requests = 0 OR isNull(cost) OR countIf(charged.is_request) = 0, NULL,
       divideDecimal(ifNull(sumIf(charged.known_cost, charged.whole), toDecimal128(0, 12)),
                     toDecimal128(greatest(priced_requests, 1), 0), 18)) AS cost_per_request
FROM
(
    SELECT tagged, is_request, whole, part, known_cost, open
    FROM
    (
        SELECT
            trace_id,
            multiIf(
                endsWith(meter, '.idle_seconds'), 'idle',
                startsWith(meter, 'feature.'), 'feature',
                startsWith(meter, 'vector.'), 'vector',
                component = 'storage' AND operation IN ('feature_read', 'feature_write'), 'feature',
                component = 'storage' AND operation = 'vector_query', 'vector',
                component = '', 'unpriced',
                component) AS part,
            -- A row without a cost has no part in any total, whatever its charges say.
            if(isNull(ledger.cost), NULL, part_cost) AS known_cost,
            component = '' OR part_status IN ('unpriced', 'ambiguous', 'invalid') AS open
        FROM ledger FINAL
        LEFT ARRAY JOIN
            charges.meter AS meter,
            charges.component AS component,
            charges.cost AS part_cost,
            charges.status AS part_status
        WHERE $window
            AND (notEmpty(charges.component) OR cost_status IN ('unpriced', 'invalid'))
    ) AS parts
    INNER JOIN requests USING (trace_id)
) AS charged
INNER JOIN
(
    SELECT tagged, countIf(is_request) AS requests, countIf(whole) AS priced FROM requests GROUP BY tagged
) AS counted ON counted.tagged = charged.tagged
GROUP BY workflow, part
ORDER BY workflow NULLS LAST, cost DESC NULLS LAST, part
LIMIT {limit:UInt64}
