-- How much of the time of GPUs and CPUs that were held was work, and what the rest cost.
-- measure
-- definition: busy time as a share of the time for which devices were held, and idle cost as a share of what they cost
-- formula: utilization = busy seconds ÷ (busy + idle seconds); idle_share = idle cost ÷ (busy + idle cost)
-- unit: shares from 0 to 1
-- pitfall: busy is what the spans of calls tell, idle what the minutes of the processes that held the devices tell. Where
--     no minute is known nobody can tell what was idle: NULL, and not 0. unknown_seconds are minutes of which nothing is.
-- pitfall: idle time has a service and a device, but no tenant, feature or model: broken down by those it stands in a row
--     of its own. `tollspan query loaded` shares it out.
-- pitfall: CPUs' minutes leave out what the processes used outside of measured calls.
SELECT
    $by
    resource,
    if(isNull(idle_seconds) OR ifNull(allocated_seconds, 0) = 0, NULL, divideDecimal(
        busy_seconds, ifNull(nullIf(allocated_seconds, 0), toDecimal128(1, 9)), 9)) AS utilization,
    if(isNull(idle_cost) OR ifNull(allocated_cost, 0) = 0, NULL, divideDecimal(
        ifNull(idle_cost, toDecimal128(0, 12)), ifNull(nullIf(allocated_cost, 0), toDecimal128(1, 12)), 9)) AS idle_share,
    busy_seconds,
    idle_seconds,
    allocated_seconds,
    idle_cost,
    allocated_cost,
    'USD' AS currency,
    unknown_seconds,
    unpriced_rows
FROM
(
    SELECT
        ${by}resource,
        ifNull(sumIf(seconds, NOT is_idle), toDecimal128(0, 9)) AS busy_seconds,
        if(countIf(is_idle AND isNotNull(seconds)) = 0, NULL, sumIf(seconds, is_idle)) AS idle_seconds,
        busy_seconds + idle_seconds AS allocated_seconds,
        if(countIf(is_idle AND isNotNull(known_cost)) = 0, NULL, sumIf(known_cost, is_idle)) AS idle_cost,
        if(countIf(is_idle AND isNotNull(known_cost)) = 0, NULL, sum(known_cost)) AS allocated_cost,
        sum(unknown_ns) / 1000000000 AS unknown_seconds,
        countIf(open) AS unpriced_rows
    FROM
    (
        SELECT
            ${keys}if(meter = '', if(ledger.device != '', 'gpu', 'cpu'), splitByChar('.', meter)[1]) AS resource,
            ledger.kind = 'capacity' OR endsWith(meter, 'idle_seconds') AS is_idle,
            if(meter = '', NULL, quantity) AS seconds,
            if(ledger.costless OR meter = '', NULL, charge_cost) AS known_cost,
            meter = '' OR isNull(known_cost) AS open,
            if(meter = '', ledger.duration_ns, 0) AS unknown_ns
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
    GROUP BY ${by}resource
)
ORDER BY ${times}idle_cost DESC NULLS LAST, allocated_cost DESC NULLS LAST, resource$last
LIMIT {limit:UInt64}
