-- What GPUs and CPUs cost while they were held: busy and idle, by device and service, dearest idle time first.
-- Busy is what the spans of calls tell, idle what the minutes of the processes that held the devices tell, and allocated
-- is the sum of both. For CPUs that leaves out what the processes used outside of measured calls.
-- A minute of which nothing is known has no part in any sum: unknown_seconds is their length. Where no minute is known or
-- has a price, nobody can tell what was idle: its cost is NULL then, and not 0.
SELECT
    resource,
    nullIf(place, '') AS device,
    nullIf(ledger_service, '') AS service,
    if(countIf(is_idle AND isNotNull(known_cost)) = 0, NULL, sumIf(known_cost, is_idle)) AS idle_cost,
    if(countIf(is_idle AND isNotNull(known_cost)) = 0, NULL, sum(known_cost)) AS allocated_cost,
    'USD' AS currency,
    ifNull(sumIf(seconds, NOT is_idle), toDecimal128(0, 9)) AS busy_seconds,
    if(countIf(is_idle AND isNotNull(seconds)) = 0, NULL, sumIf(seconds, is_idle)) AS idle_seconds,
    busy_seconds + idle_seconds AS allocated_seconds,
    if(allocated_seconds > 0, round(toFloat64(busy_seconds) / toFloat64(allocated_seconds), 6), NULL) AS busy_share,
    sum(unknown_ns) / 1000000000 AS unknown_seconds,
    countIf(open) AS unpriced_rows
FROM
(
    SELECT
        if(meter = '', if(ledger.device != '', 'gpu', 'cpu'), splitByChar('.', meter)[1]) AS resource,
        if(resource = 'gpu', ledger.device, ledger.host_type) AS place,
        ledger.service AS ledger_service,
        kind = 'capacity' OR endsWith(meter, 'idle_seconds') AS is_idle,
        if(meter = '', NULL, quantity) AS seconds,
        if(ledger.costless OR meter = '', NULL, charge_cost) AS known_cost,
        meter = '' OR isNull(known_cost) AS open,
        if(meter = '', duration_ns, 0) AS unknown_ns
    FROM
    (
        SELECT $machines
        FROM $ledger
        -- Charges of machines, and minutes of which nothing is known.
        WHERE $window AND (notEmpty(ledger.machines.meter)
            OR (ledger.kind = 'capacity' AND ledger.priced_parts = 0 AND ledger.open_parts = 0))
    ) AS ledger
    LEFT ARRAY JOIN
        ledger.machines.meter AS meter,
        ledger.machines.quantity AS quantity,
        ledger.machines.cost AS charge_cost
    WHERE meter IN ('gpu.seconds', 'gpu.idle_seconds', 'cpu.seconds', 'cpu.idle_seconds', '')
)
GROUP BY resource, place, ledger_service
-- The CPUs' minutes are told only where somebody asked for them.
HAVING countIf(is_idle) > 0 OR resource = 'gpu'
ORDER BY idle_cost DESC NULLS LAST, allocated_cost DESC NULLS LAST, resource, device NULLS LAST, service NULLS LAST
LIMIT {limit:UInt64}
