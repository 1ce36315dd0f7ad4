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
            -- BilledCost of the view focus, without the columns that make it slow. What a charge is billed by is the
            -- provider of the call, or the cloud of its machine.
            SELECT
                day,
                lower(toString(if(own, of_provider, of_cloud))) AS provider,
                toString(of_model) AS model,
                sum(if(own, own_cost, whole_cost - own_cost)) AS cost,
                sum(if(own, own_tenant, whole_tenant - own_tenant)) AS tenant_cost,
                sum(if(own, own_feature, whole_feature - own_feature)) AS feature_cost
            FROM
            (
                SELECT
                    day, of_provider, of_cloud, of_model,
                    sum(of_own) AS own_cost, sumIf(of_own, tagged_tenant) AS own_tenant, sumIf(of_own, tagged_feature) AS own_feature,
                    sum(of_all) AS whole_cost, sumIf(of_all, tagged_tenant) AS whole_tenant, sumIf(of_all, tagged_feature) AS whole_feature
                FROM
                (
                    SELECT
                        toDate(ledger.start_time) AS day,
                        ledger.provider AS of_provider,
                        ledger.cloud_provider AS of_cloud,
                        if(ledger.model != '', ledger.model, ledger.request_model) AS of_model,
                        ledger.tenant != '' AS tagged_tenant,
                        ledger.feature != '' AS tagged_feature,
                        -- What a commitment or a prepaid purchase covers is billed with that.
                        arrayMap((usd, off, state) -> if(state IN ('priced', 'free') AND ifNull(off, toDecimal128(0, 12)) = 0,
                                     ifNull(usd, toDecimal128(0, 12)), toDecimal128(0, 12)),
                                 ledger.charges.cost, ledger.charges.committed, ledger.charges.status) AS each,
                        arraySum((usd, part, meter) -> if(part IN ('model', 'overhead') OR startsWith(meter, 'feature.')
                                     OR startsWith(meter, 'vector.'), usd, toDecimal128(0, 12)),
                                 each, ledger.charges.component, ledger.charges.meter) AS of_own,
                        arraySum(each) AS of_all
                    FROM ledger FINAL
                    WHERE isNotNull(ledger.cost) AND ledger.start_time >= toDateTime64(first_day, 9, 'UTC')
                        AND ledger.start_time < toDateTime64(last_day + 1, 9, 'UTC')
                )
                GROUP BY day, of_provider, of_cloud, of_model
            )
            ARRAY JOIN [true, false] AS own
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
