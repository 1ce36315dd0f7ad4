-- Fully loaded cost: what each tenant caused, and its share of idle machines and of what belongs to nobody.
-- definition: Direct cost (charges with the payer's tag, idle time apart), and a share of idle time, of charges without a
--     tag, and of what bills charge beside usage where asked for.
-- formula: direct + Σ over shared pots of pot × weight ÷ Σ weights
-- unit: USD
-- pitfall: unpriced_rows cost something that is in no sum; the loaded cost is then a lower bound.
-- pitfall: Taxes, credits and fees of a bill are in it only where asked for, and a commitment that is bought is counted
--     twice where its price is amortised over calls too.
-- Pots: the idle time of each device (or host type) and service; all charges without a tag; what bills charge beside
-- usage. Policies, one for idle time and one for the other pots: proportional (idle time by busy seconds in the same pot,
-- the others by direct cost), reservation (by the weights that were given, whoever was busy), platform (nobody's). Where
-- a policy finds nobody to bear a pot, the platform does: the row without a name. Shares are whole 10⁻¹² USD, what rounding
-- leaves goes by the largest remainder: the loaded costs add up to the whole, to the last digit.
WITH
    -- Whole days, as bills have them.
    toDate32({since:DateTime64(9, 'UTC')}) AS first_day,
    toDate32({until:DateTime64(9, 'UTC')} - toIntervalNanosecond(1)) AS last_day,
    (pico) -> toDecimal128(toDecimal256(pico, 12) / toInt256('1000000000000'), 12) AS usd,
    JSONExtract({reserved:String}, 'Map(String, UInt64)') AS reservations,
    -- Rows by who pays (ifs that are nested, so that only the tag asked for is read), and the charges of machines apart; a subquery in this place is computed once.
    (
        SELECT groupArray((tagged, is_idle, is_busy, resource, place, pool_service, seconds, cost, opened, known))
        FROM
        (
            SELECT
                toString(tag) AS tagged, is_idle, false AS is_busy, '' AS resource, '' AS place, '' AS pool_service,
                toDecimal128(0, 9) AS seconds,
                if(is_idle, toNullable(toDecimal128(0, 12)), usd) AS cost,
                if(is_idle, open_capacity, open_calls) AS opened,
                if(is_idle, 0, priced) AS known
            FROM
            (
                SELECT
                    if({payer:String} = 'team', ledger.team,
                    if({payer:String} = 'feature', ledger.feature,
                    if({payer:String} = 'workflow', ledger.workflow,
                    if({payer:String} = 'agent', ledger.agent,
                    if({payer:String} = 'service', ledger.service, ledger.tenant))))) AS tag,
                    sum(ledger.cost) AS usd,
                    countIf((isNull(ledger.cost) OR ledger.open_parts != 0) AND kind = 'capacity') AS open_capacity,
                    countIf((isNull(ledger.cost) OR ledger.open_parts != 0) AND kind != 'capacity') AS open_calls,
                    countIf(isNotNull(ledger.cost) AND ledger.priced_parts != 0 AND kind != 'capacity') AS priced
                FROM ledger FINAL
                WHERE $window AND cost_status NOT IN ('rollup', 'not_billed')
                GROUP BY tag
            )
            ARRAY JOIN [false, true] AS is_idle
            UNION ALL
            -- What machines cost is in a pool, and so no more in what a row costs besides.
            SELECT
                toString(tag), pooled AND of_idle, pooled AND NOT of_idle, if(pooled, of_resource, ''),
                if(pooled, of_place, ''), if(pooled, of_service, ''), if(pooled, used, toDecimal128(0, 9)), if(pooled, usd, -usd), 0, 0
            FROM
            (
                SELECT
                    if({payer:String} = 'team', ledger.team,
                    if({payer:String} = 'feature', ledger.feature,
                    if({payer:String} = 'workflow', ledger.workflow,
                    if({payer:String} = 'agent', ledger.agent,
                    if({payer:String} = 'service', ledger.service, ledger.tenant))))) AS tag,
                    endsWith(meter, '.idle_seconds') AS of_idle,
                    splitByChar('.', meter)[1] AS of_resource,
                    toString(if(of_resource = 'gpu', ledger.device, ledger.host_type)) AS of_place,
                    toString(ledger.service) AS of_service,
                    sum(if(of_idle, toDecimal128(0, 9), quantity)) AS used,
                    toNullable(ifNull(sumIf(charge_cost, NOT ledger.costless), toDecimal128(0, 12))) AS usd
                FROM
                (
                    SELECT *, machines.meter, machines.quantity, machines.cost, cost.null AS costless
                    FROM ledger FINAL
                    WHERE $window AND cost_status NOT IN ('rollup', 'not_billed') AND notEmpty(ledger.machines.meter)
                ) AS ledger
                ARRAY JOIN
                    ledger.machines.meter AS meter,
                    ledger.machines.quantity AS quantity,
                    ledger.machines.cost AS charge_cost
                WHERE meter IN ('gpu.seconds', 'gpu.idle_seconds', 'cpu.seconds', 'cpu.idle_seconds')
                GROUP BY tag, of_idle, of_resource, of_place, of_service
            )
            ARRAY JOIN [true, false] AS pooled
        )
    ) AS facts,
    -- Whole numbers, so that nothing is lost: nanoseconds and 10⁻¹² USD.
    entries AS
    (
        SELECT
            fact.1 AS tagged, fact.2 AS is_idle, fact.3 AS is_busy, fact.4 AS resource, fact.5 AS place,
            fact.6 AS pool_service,
            toInt256(toDecimal256(fact.7, 9) * toInt256('1000000000')) AS ns,
            toInt256(toDecimal256(ifNull(fact.8, toDecimal128(0, 12)), 12) * toInt256('1000000000000')) AS pico,
            fact.9 AS opened,
            fact.10 AS known
        FROM (SELECT arrayJoin(facts) AS fact)
    ),
    direct AS
    (
        SELECT
            if(is_idle, '', tagged) AS payer,
            sumIf(pico, NOT is_idle AND payer != '') AS direct_pico,
            sumIf(entries.known, NOT is_idle AND payer != '') AS known,
            sum(entries.opened) AS opened
        FROM entries
        GROUP BY payer
    ),
    pots AS
    (
        SELECT 'idle' AS kind, resource, place, pool_service, sum(pico) AS pot
        FROM entries WHERE is_idle GROUP BY kind, resource, place, pool_service
        UNION ALL
        SELECT 'shared' AS kind, '' AS resource, '' AS place, '' AS pool_service, sum(pico) AS pot
        FROM entries WHERE NOT is_idle AND tagged = ''
        UNION ALL
        SELECT 'billed' AS kind, '' AS resource, '' AS place, '' AS pool_service,
            sum(toInt256(toDecimal256(cost, 12) * toInt256('1000000000000'))) AS pot
        FROM billed
        WHERE {bills:String} IN ('extras', 'all') AND currency = 'USD'
            AND (category IN ('Tax', 'Credit', 'Adjustment') OR (category = 'Purchase' AND {bills:String} = 'all'))
            AND day BETWEEN first_day AND last_day
    ),
    weights AS
    (
        SELECT 'idle' AS kind, resource, place, pool_service, tagged AS payer, sum(ns) AS weight
        FROM entries
        WHERE is_busy AND tagged != '' AND {idle_policy:String} = 'proportional'
        GROUP BY kind, resource, place, pool_service, payer
        UNION ALL
        SELECT kind, '' AS resource, '' AS place, '' AS pool_service, payer, direct_pico AS weight
        FROM direct ARRAY JOIN ['shared', 'billed'] AS kind
        WHERE payer != '' AND {overhead_policy:String} = 'proportional'
        UNION ALL
        SELECT kind, resource, place, pool_service, reserved.1 AS payer, toInt256(reserved.2) AS weight
        FROM pots ARRAY JOIN arrayZip(mapKeys(reservations), mapValues(reservations)) AS reserved
        WHERE if(kind = 'idle', {idle_policy:String}, {overhead_policy:String}) = 'reservation'
    ),
    bearers AS
    (
        -- The platform bears what nobody else does.
        SELECT
            pots.kind AS kind, pots.resource AS resource, pots.place AS place, pots.pool_service AS pool_service,
            pots.pot AS pot, weights.payer AS payer, weights.weight AS weight
        FROM pots
        INNER JOIN (SELECT * FROM weights WHERE weight > 0) AS weights USING (kind, resource, place, pool_service)
        UNION ALL
        SELECT kind, resource, place, pool_service, pot, '' AS payer, toInt256(1) AS weight
        FROM pots
        WHERE (kind, resource, place, pool_service) NOT IN
            (SELECT kind, resource, place, pool_service FROM weights WHERE weight > 0)
    ),
    parts AS
    (
        SELECT
            *,
            sum(weight) OVER (PARTITION BY kind, resource, place, pool_service) AS whole_weight,
            intDiv(abs(pot) * weight, whole_weight) AS whole,
            (abs(pot) * weight) % whole_weight AS rest
        FROM bearers
    ),
    ranked AS
    (
        SELECT
            *,
            row_number() OVER (PARTITION BY kind, resource, place, pool_service ORDER BY rest DESC, payer) AS nth,
            abs(pot) - sum(whole) OVER (PARTITION BY kind, resource, place, pool_service) AS left_over
        FROM parts
    ),
    shares AS
    (
        SELECT
            payer,
            sumIf(share, kind = 'idle') AS idle_pico,
            sumIf(share, kind = 'shared') AS shared_pico,
            sumIf(share, kind = 'billed') AS billed_pico
        FROM (SELECT kind, payer, sign(pot) * (whole + (nth <= left_over)) AS share FROM ranked)
        GROUP BY payer
    ),
    together AS
    (
        SELECT
            payer, sum(direct_pico) AS direct_pico, sum(known) AS known, sum(opened) AS opened,
            sum(idle_pico) AS idle_pico, sum(shared_pico) AS shared_pico, sum(billed_pico) AS billed_pico
        FROM
        (
            SELECT payer, direct_pico, known, opened, toInt256(0) AS idle_pico, toInt256(0) AS shared_pico,
                toInt256(0) AS billed_pico FROM direct
            UNION ALL
            SELECT payer, toInt256(0), 0, 0, idle_pico, shared_pico, billed_pico FROM shares
        )
        GROUP BY payer
    )
SELECT
    nullIf(together.payer, '') AS payer,
    if(together.direct_pico + together.idle_pico + together.shared_pico + together.billed_pico = 0
        AND known = 0 AND opened > 0, NULL,
        usd(together.direct_pico + together.idle_pico + together.shared_pico + together.billed_pico)) AS loaded_cost,
    if(known = 0 AND opened > 0, NULL, usd(together.direct_pico)) AS direct_cost,
    usd(together.idle_pico) AS idle_share,
    usd(together.shared_pico) AS shared_share,
    usd(together.billed_pico) AS billed_share,
    'USD' AS currency,
    opened AS unpriced_rows
FROM together
WHERE payer IS NOT NULL OR opened > 0
    OR together.idle_pico != 0 OR together.shared_pico != 0 OR together.billed_pico != 0
ORDER BY loaded_cost DESC NULLS LAST, payer NULLS LAST
LIMIT {limit:UInt64}
