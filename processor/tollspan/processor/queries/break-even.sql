-- Break-even of owning against renting: the load at which a machine of one's own costs what is paid now, by model.
-- by: provider, model
-- parameter: owned_monthly: what owning one machine costs a month, USD, all in
-- parameter: owned_per_second = 1000000: inferences a second that one machine does
-- definition: what the observed load costs in 30 days as it is billed now, beside what the machines for it would cost
-- formula: break-even load = owned_monthly ÷ cost per inference; machines = ⌈peak minute's inferences ÷ 60 ÷
--     owned_per_second⌉
-- unit: USD for 30 days; inferences for 30 days
-- pitfall: the window is extended to 30 days as it is: a window with a campaign or a weekend in it is not a month. It goes
--     from the group's first call to its last.
-- pitfall: machines are for the busiest minute and stand idle otherwise; people who run them are in owned_monthly or nowhere.
-- pitfall: it says nothing of whether a model that can be owned answers as well.
SELECT
    ${by}observed_days,
    calls AS inferences,
    mean_cost AS cost_per_inference,
    rented AS rented_monthly,
    machines,
    toDecimal128(machines * {owned_monthly:Decimal(38, 12)}, 12) AS owned_monthly,
    'USD' AS currency,
    toUInt64(calls * 30 / observed_days) AS monthly_inferences,
    if(ifNull(mean_cost, 0) = 0, NULL, toUInt64(ceil(divideDecimal(
        toDecimal256(owned_monthly, 12),
        ifNull(nullIf(toDecimal256(mean_cost, 18), 0), toDecimal256(1, 18)), 6)))) AS break_even_inferences,
    if(isNull(rented), NULL, if(rented > owned_monthly, 'own', 'rent')) AS cheaper,
    toDecimal128(rented - owned_monthly, 12) AS saved_monthly,
    unpriced AS unpriced_inferences
FROM
(
    SELECT
        $by
        sum(n) AS calls,
        sum(open) AS unpriced,
        greatest(dateDiff('second', min(first_at), max(last_at)), 60) / 86400 AS observed_days,
        toUInt64(greatest(ceil(max(n) / 60 / {owned_per_second:Float64}), 1)) AS machines,
        if(sum(priced) = 0, NULL, divideDecimal(ifNull(sum(usd), toDecimal128(0, 12)), toDecimal128(greatest(sum(priced), 1), 0), 18)) AS mean_cost,
        toDecimal128(divideDecimal(toDecimal256(sum(usd), 12) * 2592000, toDecimal256(
            greatest(dateDiff('second', min(first_at), max(last_at)), 60), 0), 12), 12) AS rented
    FROM
    (
        SELECT
            ${keys}toStartOfMinute(ledger.start_time) AS minute_of,
            min(ledger.start_time) AS first_at,
            max(ledger.start_time) AS last_at,
            count() AS n,
            countIf(isNotNull(ledger.cost)) AS priced,
            countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS open,
            sum(ledger.cost) AS usd
        FROM ledger FINAL
        WHERE $window AND ledger.counted
        GROUP BY ${by}minute_of
    )
    GROUP BY $group
)
ORDER BY rented_monthly DESC NULLS LAST$last
LIMIT {limit:UInt64}
