-- What GPUs and CPUs cost each tenant with its part of the idle time, by device and service, dearest first.
-- Idle cost is shared out in proportion to busy seconds, within a device's product and a service; what rounding leaves
-- over goes by the largest remainder, so that the loaded costs add up to what the devices cost busy and idle, to the
-- last digit. Where nobody was busy a row without a tenant bears it; where no minute is known or has a price, nobody can
-- tell what was idle, and the loaded cost is NULL.
WITH
    held AS
    (
        SELECT
            splitByChar('.', meter)[1] AS resource,
            if(resource = 'gpu', ledger.device, ledger.host_type) AS place,
            ledger.service AS pool_service,
            if(endsWith(meter, 'idle_seconds'), '', ledger.tenant) AS payer,
            endsWith(meter, 'idle_seconds') AS is_idle,
            -- Whole numbers, so that nothing is lost: nanoseconds and 10⁻¹² USD.
            toInt256(toDecimal256(quantity, 9) * toInt256('1000000000')) AS ns,
            isNull(ledger.cost) OR isNull(charge_cost) AS open,
            toInt256(toDecimal256(if(open, toDecimal128(0, 12), assumeNotNull(charge_cost)), 12)
                * toInt256('1000000000000')) AS pico
        FROM ledger FINAL
        ARRAY JOIN
            charges.meter AS meter,
            charges.quantity AS quantity,
            charges.cost AS charge_cost
        WHERE $window
            AND meter IN ('gpu.seconds', 'gpu.idle_seconds', 'cpu.seconds', 'cpu.idle_seconds')
    ),
    pools AS
    (
        SELECT
            resource, place, pool_service,
            sumIf(pico, is_idle) AS idle_pico,
            sumIf(ns, NOT is_idle) AS pool_ns,
            countIf(is_idle AND NOT open) > 0 AS known
        FROM held
        GROUP BY resource, place, pool_service
        -- The CPUs' minutes are told only where somebody asked for them.
        HAVING countIf(is_idle) > 0 OR resource = 'gpu'
    ),
    payers AS
    (
        -- Where nobody was busy, one who bears all of it; else those who were.
        SELECT
            resource, place, pool_service, payer,
            sumIf(pico, NOT is_idle) AS busy_pico,
            sumIf(ns, NOT is_idle) AS busy_ns,
            any(pools.idle_pico) AS idle_pico,
            any(pools.pool_ns) AS pool_ns,
            any(pools.known) AS known,
            countIf(open) AS opened,
            countIf(NOT open AND NOT is_idle) AS priced
        FROM held
        INNER JOIN pools USING (resource, place, pool_service)
        WHERE NOT is_idle OR pools.pool_ns = 0
        GROUP BY resource, place, pool_service, payer
    ),
    parts AS
    (
        SELECT
            *,
            if(pool_ns = 0,
               if(payer = '', idle_pico, toInt256(0)),
               intDiv(idle_pico * busy_ns, if(pool_ns = 0, toInt256(1), pool_ns))) AS whole,
            if(pool_ns = 0, toInt256(0), (idle_pico * busy_ns) % if(pool_ns = 0, toInt256(1), pool_ns)) AS rest
        FROM payers
    ),
    shared AS
    (
        SELECT
            *,
            row_number() OVER (PARTITION BY resource, place, pool_service ORDER BY rest DESC, payer) AS nth,
            idle_pico - sum(whole) OVER (PARTITION BY resource, place, pool_service) AS left_over
        FROM parts
    )
SELECT
    resource,
    nullIf(place, '') AS device,
    nullIf(pool_service, '') AS service,
    nullIf(payer, '') AS tenant,
    if(known, toDecimal128(toDecimal256(busy_pico + whole + (nth <= left_over), 12)
        / toInt256('1000000000000'), 12), NULL) AS loaded_cost,
    if(priced = 0 AND opened > 0, NULL,
       toDecimal128(toDecimal256(busy_pico, 12) / toInt256('1000000000000'), 12)) AS busy_cost,
    'USD' AS currency,
    toDecimal128(toDecimal256(busy_ns, 9) / toInt256('1000000000'), 9) AS busy_seconds,
    opened AS unpriced_rows
FROM shared
ORDER BY loaded_cost DESC NULLS LAST, resource, device NULLS LAST, service NULLS LAST, tenant NULLS LAST
LIMIT {limit:UInt64}
