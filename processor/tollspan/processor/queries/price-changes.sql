-- Prices that changed in the window, and what each change did to the bill since.
-- definition: two unit prices of one meter, model and conditions that follow each other, and the difference between them
--     for everything that was used at the later one
-- formula: effect = (new price − old price) × quantity since the change
-- unit: USD, at the prices that were charged
-- pitfall: prices that alternate (hours of the week) or that differ by the size of a request overlap in time and are not
--     taken for a change.
-- pitfall: it shows what the change added at the load since, and not what the load would have been without it.
SELECT
    nullIf(bills, '') AS provider,
    nullIf(served, '') AS model,
    used AS meter,
    first_at AS changed_at,
    old_price,
    price AS new_price,
    step AS per,
    if(old_price = 0, NULL, round(100 * (toFloat64(price) / toFloat64(old_price) - 1), 3)) AS percent,
    quantity AS quantity_since,
    toDecimal128(charged, 12) AS cost_since,
    toDecimal128(divideDecimal((toDecimal256(price, 18) - toDecimal256(old_price, 18)) * toDecimal256(quantity, 9),
        toDecimal256(greatest(toUInt64OrZero(splitByChar(' ', step)[1]), 1), 0), 12), 12) AS effect,
    'USD' AS currency,
    price_ids
FROM
(
    SELECT
        *,
        lagInFrame(toNullable(price)) OVER one AS old_price,
        lagInFrame(last_at) OVER one AS old_until
    FROM
    (
        SELECT
            toString(ledger.provider) AS bills,
            toString(if(ledger.model != '', ledger.model, ledger.request_model)) AS served,
            toString(charge.1) AS used,
            (ledger.service_tier, ledger.processing, ledger.region, ledger.cloud_provider, ledger.host_type, ledger.device,
             ledger.purchase, ledger.residency) AS conditions,
            assumeNotNull(charge.2) AS price,
            toString(charge.3) AS step,
            min(ledger.start_time) AS first_at,
            max(ledger.start_time) AS last_at,
            sum(charge.4) AS quantity,
            sum(assumeNotNull(charge.5)) AS charged,
            arrayStringConcat(arraySort(groupUniqArray(toString(charge.6))), ', ') AS price_ids
        FROM ledger FINAL
        ARRAY JOIN arrayZip(ledger.charges.meter, ledger.charges.unit_price, ledger.charges.per, ledger.charges.quantity,
                            ledger.charges.cost, ledger.charges.price_id) AS charge
        WHERE $window AND isNotNull(charge.2) AND isNotNull(charge.5) AND isNotNull(ledger.cost)
        GROUP BY bills, served, used, conditions, price, step
    )
    WINDOW one AS (PARTITION BY bills, served, used, conditions, step ORDER BY first_at
                   ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
)
WHERE isNotNull(old_price) AND old_until < first_at
ORDER BY abs(effect) DESC, provider NULLS LAST, model NULLS LAST, meter, changed_at
LIMIT {limit:UInt64}
