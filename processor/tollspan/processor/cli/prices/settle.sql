-- What was used in a period and what it cost, for everything that a price can be found by.
-- Roll-ups are billed on their descendants, and what failed before anything was used is not billed at all. A charge of
-- a row without a cost has none either; a quantity that cannot be right counts for nothing.
-- A call without usage has no charges: its meter is empty here.
SELECT
    provider,
    model,
    request_model,
    cloud_provider,
    host_type,
    device,
    meter,
    price_id,
    isNotNull(contracted) AS priced,
    isNotNull(listed) AS has_list,
    sum(if(status = 'invalid', toDecimal128(0, 9), quantity)) AS quantity,
    sum(contracted) AS contracted_cost,
    sum(listed) AS list_cost,
    count() AS charges
FROM
(
    SELECT
        provider, model, request_model, cloud_provider, host_type, device, meter, price_id, status, quantity,
        if(isNull(ledger.cost), NULL, charge_cost + committed) AS contracted,
        contracted + negotiated AS listed
    FROM ledger FINAL
    LEFT ARRAY JOIN
        charges.meter AS meter,
        charges.price_id AS price_id,
        charges.status AS status,
        charges.quantity AS quantity,
        charges.cost AS charge_cost,
        charges.negotiated AS negotiated,
        charges.committed AS committed
    WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
        AND cost_status NOT IN ('rollup', 'not_billed') AND status != 'rollup'
)
GROUP BY ALL
ORDER BY ALL
