-- Attribution accuracy: how much of what was billed for usage can be told to a tenant or feature, by provider.
-- definition: Billed cost of usage that is attributed to a tenant (or feature), over all billed cost of usage.
-- formula: Σ over days and models of (tagged by the bill + min(rest of the bill, metered) × metered with the tag ÷
--     metered) ÷ Σ billed
-- unit: share of 1
-- pitfall: What is billed beyond what was metered is attributed to nobody, and neither are taxes, credits and fees.
-- A line that the bill itself tags with a tenant is attributed by that. Lines in other currencies than USD are not in it.
WITH
    -- Whole days, as bills have them.
    toDate32({since:DateTime64(9, 'UTC')}) AS first_day,
    toDate32({until:DateTime64(9, 'UTC')} - toIntervalNanosecond(1)) AS last_day,
    -- Of what is billed, as far as it was metered, the share of what has the tag; none of it where nothing was metered.
    (rest, whole, tagged) -> if(whole <= 0 OR rest <= 0, toDecimal128(0, 12),
        toDecimal128(divideDecimal(
            toDecimal256(least(rest, whole), 12) * toDecimal256(tagged, 12),
            toDecimal256(if(whole <= 0, toDecimal128(1, 12), whole), 12), 12), 12)) AS shared,
    lines AS
    (
        SELECT
            day, provider, model, tenant, feature, cost,
            countIf(model = '') OVER (PARTITION BY day, provider) > 0 AS lumped
        FROM billed
        WHERE category = 'Usage' AND currency = 'USD'
            AND day BETWEEN first_day AND last_day
    ),
    bill AS
    (
        SELECT
            day, provider, if(lumped, '', lines.model) AS model,
            sum(lines.cost) AS cost,
            sumIf(lines.cost, tenant != '') AS tenant_tagged,
            sumIf(lines.cost, feature != '') AS feature_tagged
        FROM lines GROUP BY day, provider, model
    ),
    lumps AS (SELECT DISTINCT day, provider, true AS found FROM lines WHERE lumped),
    metered AS
    (
        SELECT
            charged.day AS day, charged.provider AS provider, if(lumps.found, '', charged.model) AS model,
            sum(charged.cost) AS cost, sum(charged.tenant_cost) AS tenant_cost, sum(charged.feature_cost) AS feature_cost
        FROM
        (
            SELECT
                toDate(x_StartTime) AS day,
                lower(if(x_ProviderKnown, ProviderName, '')) AS provider,
                ifNull(x_Model, '') AS model,
                sum(BilledCost) AS cost,
                sumIf(BilledCost, isNotNull(SubAccountId)) AS tenant_cost,
                sumIf(BilledCost, JSONHas(ifNull(Tags, '{}'), 'feature')) AS feature_cost
            FROM focus
            WHERE x_StartTime >= toDateTime64(first_day, 9, 'UTC') AND x_StartTime < toDateTime64(last_day + 1, 9, 'UTC')
            GROUP BY day, provider, model
        ) AS charged
        LEFT JOIN lumps ON lumps.day = charged.day AND lumps.provider = charged.provider
        GROUP BY day, provider, model
    ),
    parts AS
    (
        SELECT
            bill.provider AS provider, bill.cost AS billed_cost,
            bill.tenant_tagged + shared(bill.cost - bill.tenant_tagged, metered.cost, metered.tenant_cost) AS by_tenant,
            bill.feature_tagged + shared(bill.cost - bill.feature_tagged, metered.cost, metered.feature_cost) AS by_feature
        FROM bill
        LEFT JOIN metered ON metered.day = bill.day AND metered.provider = bill.provider AND metered.model = bill.model
    )
SELECT
    nullIf(parts.provider, '') AS provider,
    sum(billed_cost) AS billed,
    'USD' AS currency,
    sum(by_tenant) AS attributed_to_tenant,
    if(billed = 0, NULL, toDecimal128(divideDecimal(toDecimal256(attributed_to_tenant, 12),
        toDecimal256(if(billed = 0, toDecimal128(1, 12), billed), 12), 6), 6)) AS tenant_accuracy,
    sum(by_feature) AS attributed_to_feature,
    if(billed = 0, NULL, toDecimal128(divideDecimal(toDecimal256(attributed_to_feature, 12),
        toDecimal256(if(billed = 0, toDecimal128(1, 12), billed), 12), 6), 6)) AS feature_accuracy
FROM parts
GROUP BY provider
ORDER BY billed DESC, provider NULLS LAST
LIMIT {limit:UInt64}
