-- What observing adds to one inference: telemetry received and stored, by Tollspan and by what spans say of others.
-- measure
-- dimensions: tenant, service, minute, hour, day, week, month
-- definition: the cost of telemetry taken in and of the bodies that are kept, and charges of the part telemetry in the
--     ledger, for each inference that has a price
-- formula: (Σ received + Σ stored + Σ charges of telemetry) ÷ priced inferences
-- unit: USD for each inference
-- pitfall: bytes that the price book has no price for are in no cost: unpriced_bytes counts them, and the mean is a lower
--     bound then, or NULL where nothing has a price.
-- pitfall: telemetry of services without inferences is in rows without a mean; stored bytes are billed for as long as
--     they are kept, at once.
SELECT
    $by
    if(priced_inferences = 0 OR isNull(cost), NULL,
       divideDecimal(cost, toDecimal128(greatest(priced_inferences, 1), 0), 18)) AS cost_per_inference,
    cost,
    'USD' AS currency,
    priced_inferences,
    unpriced_inferences,
    received_bytes,
    stored_bytes,
    unpriced_bytes
FROM
(
    SELECT
        ${by}sum(priced) AS priced_inferences,
        sum(unpriced) AS unpriced_inferences,
        sum(received) AS received_bytes,
        sum(stored) AS stored_bytes,
        sum(open_bytes) AS unpriced_bytes,
        if(sum(known) = 0 AND sum(open) > 0, NULL, ifNull(sum(part), toDecimal128(0, 12))) AS cost
    FROM
    (
        SELECT
            ${keys}toUInt64(countIf(ledger.kind = 'inference'
                AND ledger.cost_status IN ('priced', 'free', 'included', 'partial'))) AS priced,
            toUInt64(countIf(ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid'))) AS unpriced,
            toUInt64(0) AS received,
            toUInt64(0) AS stored,
            toUInt64(0) AS open_bytes,
            toUInt64(countIf(NOT $costless AND bitTest(ledger.priced_parts, 4))) AS known,
            toUInt64(countIf(bitTest(ledger.open_parts, 4))) AS open,
            toNullable(sum(ledger.telemetry_cost)) AS part
        FROM $ledger
        WHERE $window
        GROUP BY $group
        UNION ALL
        SELECT
            ${telemetry_keys}toUInt64(0) AS priced,
            toUInt64(0) AS unpriced,
            sum(telemetry.bytes) AS received,
            sum(telemetry.stored_bytes) AS stored,
            sumIf(telemetry.bytes, isNull(telemetry.received_cost))
                + sumIf(telemetry.stored_bytes, isNull(telemetry.stored_cost)) AS open_bytes,
            countIf(isNotNull(telemetry.received_cost) OR isNotNull(telemetry.stored_cost)) AS known,
            open_bytes AS open,
            sum(if(isNull(telemetry.received_cost) AND isNull(telemetry.stored_cost), NULL,
                   ifNull(telemetry.received_cost, toDecimal128(0, 12))
                   + ifNull(telemetry.stored_cost, toDecimal128(0, 12)))) AS part
        FROM telemetry FINAL
        WHERE $telemetry_window
        GROUP BY $group
    )
    GROUP BY $group
)
ORDER BY ${times}cost_per_inference DESC NULLS LAST, cost DESC NULLS LAST$last
LIMIT {limit:UInt64}
