-- What telemetry itself takes and costs, by tenant and service, dearest first.
-- Received are the bytes of requests, stored those of kept spans, not compressed, for as long as they are kept. A cost is
-- NULL when the price book has no price for it, and leaves out what has none; bytes of no new span (sent again, or
-- broken) have neither tenant nor service.
SELECT
    nullIf(telemetry.tenant, '') AS tenant,
    nullIf(telemetry.service, '') AS service,
    sum(telemetry.spans) AS spans,
    sum(telemetry.kept_spans) AS kept_spans,
    sum(telemetry.bytes) AS received_bytes,
    sum(telemetry.stored_bytes) AS stored_bytes,
    sum(telemetry.removed_bytes) AS removed_content_bytes,
    sum(telemetry.received_cost) AS received_cost,
    sum(telemetry.stored_cost) AS stored_cost,
    if(isNull(received_cost) AND isNull(stored_cost), NULL,
       ifNull(received_cost, toDecimal128(0, 12)) + ifNull(stored_cost, toDecimal128(0, 12))) AS cost,
    'USD' AS currency,
    sumIf(telemetry.bytes, isNull(telemetry.received_cost))
        + sumIf(telemetry.stored_bytes, isNull(telemetry.stored_cost)) AS unpriced_bytes
FROM telemetry FINAL
WHERE minute >= {since:DateTime64(9, 'UTC')} AND minute < {until:DateTime64(9, 'UTC')}
GROUP BY tenant, service
ORDER BY cost DESC NULLS LAST, received_bytes DESC, tenant NULLS LAST, service NULLS LAST
LIMIT {limit:UInt64}
