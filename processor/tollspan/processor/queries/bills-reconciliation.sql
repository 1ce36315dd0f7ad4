-- What was metered beside what was billed, by time, provider and model, and why they differ; largest difference first.
-- Metered is BilledCost of the view focus: what should be on an invoice. Where a bill names no models, a provider's are
-- one row, with model NULL. The difference is billed less metered, and is taken apart: taxes, credits, purchases (fees,
-- commitments, least amounts) and adjustments as the bill calls them, then what is left of the usage: rounding (no more
-- than half the last place of each line of the bill), or else unexplained.
-- state: equal; explained (all of the difference has a name); rounding; unpriced (calls without a price are in the bill:
-- how much they are of the difference is not known, and unexplained is NULL); unmetered (billed, and nothing metered);
-- unbilled (metered, and the bill has nothing); outside (metered when no bill of that provider is for); currency (the
-- bill is not in USD, or says no currency, and is compared with nothing); unexplained. Nothing of another currency is in any sum of USD.
WITH
    -- Whole days, as bills have them.
    toDate32({since:DateTime64(9, 'UTC')}) AS first_day,
    toDate32({until:DateTime64(9, 'UTC')} - toIntervalNanosecond(1)) AS last_day,
    usage AS
    (
        SELECT
            if({grain:String} = 'month', toStartOfMonth(day), day) AS time,
            provider, model, category, currency, cost, step,
            countIf(category = 'Usage' AND model = '') OVER (PARTITION BY time, provider) > 0 AS lumped
        FROM billed
        WHERE day BETWEEN first_day AND last_day
    ),
    bill AS
    (
        SELECT
            time, provider, if(lumped, '', usage.model) AS model,
            usage.currency AS currency,
            sumIf(usage.cost, category = 'Usage') AS used,
            sumIf(usage.cost, category = 'Tax') AS taxes,
            sumIf(usage.cost, category = 'Credit') AS credits,
            sumIf(usage.cost, category = 'Purchase') AS purchases,
            sumIf(usage.cost, category = 'Adjustment') AS adjustments,
            sum(usage.cost) AS cost,
            sumIf(usage.step, category = 'Usage') AS steps,
            countIf(category = 'Usage') AS used_lines,
            count() AS lines
        FROM usage
        GROUP BY time, provider, model, currency
    ),
    lumps AS (SELECT DISTINCT time, provider FROM usage WHERE lumped),
    -- What days a provider's bills are for: from its first line to its last.
    extents AS
    (
        SELECT provider, if({grain:String} = 'month', toStartOfMonth(min(day)), min(day)) AS first, max(day) AS last
        FROM billed GROUP BY provider
    ),
    charged AS
    (
        SELECT
            if({grain:String} = 'month', toStartOfMonth(toDate(x_StartTime)), toDate(x_StartTime)) AS time,
            lower(if(x_ProviderKnown, ProviderName, '')) AS provider,
            ifNull(x_Model, '') AS model,
            sum(BilledCost) AS cost,
            count() AS charges,
            0 AS unpriced
        FROM focus
        WHERE x_StartTime >= toDateTime64(first_day, 9, 'UTC') AND x_StartTime < toDateTime64(last_day + 1, 9, 'UTC')
        GROUP BY time, provider, model
        UNION ALL
        SELECT
            if({grain:String} = 'month', toStartOfMonth(toDate(start_time)), toDate(start_time)) AS time,
            lower(if(kind = 'capacity', ledger.cloud_provider, ledger.provider)) AS provider,
            if(ledger.model != '', ledger.model, ledger.request_model) AS model,
            toDecimal128(0, 12) AS cost,
            0 AS charges,
            count() AS unpriced
        FROM ledger FINAL
        WHERE start_time >= toDateTime64(first_day, 9, 'UTC') AND start_time < toDateTime64(last_day + 1, 9, 'UTC')
            AND cost_status IN ('unpriced', 'invalid', 'partial')
        GROUP BY time, provider, model
    ),
    metered AS
    (
        SELECT
            charged.time AS time, charged.provider AS provider, if(lump.found, '', charged.model) AS model,
            sum(charged.cost) AS cost, sum(charged.charges) AS charges,
            sum(charged.unpriced) AS unpriced
        FROM charged
        LEFT JOIN (SELECT time, provider, true AS found FROM lumps) AS lump
            ON lump.time = charged.time AND lump.provider = charged.provider
        GROUP BY time, provider, model
    ),
    compared AS
    (
        SELECT
            if(bill.lines > 0, bill.time, metered.time) AS time,
            if(bill.lines > 0, bill.provider, metered.provider) AS provider,
            if(bill.lines > 0, bill.model, metered.model) AS model,
            bill.currency AS currency,
            bill.used AS used, bill.taxes AS taxes, bill.credits AS credits, bill.purchases AS purchases,
            bill.adjustments AS adjustments, bill.cost AS bill_cost, bill.steps AS steps,
            bill.used_lines AS used_lines, bill.lines AS lines,
            metered.cost AS metered_cost, metered.charges AS charges, metered.unpriced AS unpriced
        FROM bill
        FULL OUTER JOIN metered ON bill.time = metered.time AND bill.provider = metered.provider
            AND bill.model = metered.model AND bill.currency = 'USD'
    )
SELECT
    compared.time AS time,
    nullIf(compared.provider, '') AS provider,
    nullIf(compared.model, '') AS model,
    multiIf(
        lines > 0 AND compared.currency != 'USD', 'currency',
        lines = 0 AND (extents.provider != compared.provider OR compared.time < extents.first
            OR compared.time > extents.last), 'outside',
        lines = 0 AND charges = 0, 'unpriced',
        lines = 0, if(metered_cost = 0, 'equal', 'unbilled'),
        used_lines > 0 AND charges = 0 AND compared.unpriced = 0 AND used != 0, 'unmetered',
        abs(used - metered_cost) = 0, if(bill_cost = used, 'equal', 'explained'),
        2 * abs(used - metered_cost) <= steps, if(bill_cost = used, 'rounding', 'explained'),
        compared.unpriced > 0, 'unpriced',
        used_lines = 0 AND charges > 0, 'unbilled',
        'unexplained') AS state,
    if(charges = 0 AND compared.unpriced > 0, NULL, if(state = 'currency', NULL, metered_cost)) AS metered,
    if(state = 'outside', NULL, bill_cost) AS billed,
    if(lines > 0, compared.currency, 'USD') AS currency,
    if(state IN ('outside', 'currency') OR isNull(metered), NULL, bill_cost - metered_cost) AS difference,
    if(lines = 0, NULL, compared.taxes) AS taxes,
    if(lines = 0, NULL, compared.credits) AS credits,
    if(lines = 0, NULL, compared.purchases) AS purchases,
    if(lines = 0, NULL, compared.adjustments) AS adjustments,
    multiIf(
        state IN ('outside', 'currency'), NULL,
        state IN ('equal', 'explained', 'rounding'), used - metered_cost,
        toDecimal128(0, 12)) AS rounding,
    multiIf(
        state IN ('outside', 'currency', 'unpriced'), NULL,
        state IN ('equal', 'explained', 'rounding'), toDecimal128(0, 12),
        used - metered_cost) AS unexplained,
    compared.unpriced AS unpriced_calls,
    compared.lines AS bill_lines
FROM compared
LEFT JOIN extents ON extents.provider = compared.provider
ORDER BY abs(ifNull(unexplained, difference)) DESC NULLS LAST, time, provider NULLS LAST, model NULLS LAST, currency
LIMIT {limit:UInt64}
