-- Forecast of the month: what was spent, what the rest of the month will add, and how sure that is.
-- parameter: z = 1.96: half-width of the interval in standard errors; 1.96 is 95 %
-- definition: cost of the calendar month (UTC) in which the window ends so far, and the mean of the last 28 whole days
--     for each day that is left; from 14 days on each weekday has a mean of its own
-- formula: forecast = Σ cost since the first of the month + Σ expected cost of the seconds that are left;
--     interval = forecast ± z × s × √(Σ w² + Σ W² ÷ n), s the spread of whole days around their means, w the days left
-- unit: USD
-- pitfall: it ends now, or at --until; leave --since out, or history and month begin there.
-- pitfall: the mean is exact, the interval an estimate: days are taken for independent, and growth, a launch or a new price
--     within the month for nothing. It never begins below what was spent.
-- pitfall: days without rows count as 0 after the first day of the group; what has no price is in no figure
--     (unpriced_inferences of those days).
WITH
    least({until:DateTime64(9, 'UTC')}, now64(9, 'UTC')) AS at,
    toDate(at, 'UTC') AS today,
    toStartOfMonth(today) AS month_from,
    toDate(addMonths(month_from, 1)) AS month_to
SELECT
    ${by}month_from AS month,
    toDecimal128(spent, 12) AS spent,
    toDecimal128(rest, 12) AS expected_rest,
    toDecimal128(spent + rest, 12) AS forecast,
    if(isNull(margin), NULL, toDecimal128(greatest(spent, spent + rest - toDecimal256(margin, 12)), 12)) AS forecast_from,
    if(isNull(margin), NULL, toDecimal128(spent + rest + toDecimal256(margin, 12), 12)) AS forecast_to,
    'USD' AS currency,
    history_days,
    length(left_days) AS days_left,
    open AS unpriced_inferences
FROM
(
    SELECT
        *,
        arrayMap(each -> today - history_days + each, range(history_days)) AS past_days,
        arrayMap(each -> if(has(days, each), moneys[indexOf(days, each)], toDecimal256(0, 12)), past_days) AS past,
        -- Days that share a mean.
        arrayMap(each -> if(history_days >= 14, toDayOfWeek(each), toUInt8(0)), past_days) AS past_kinds,
        arrayMap(each -> today + each, range(toUInt32(month_to - today))) AS left_days,
        arrayMap(each -> if(history_days >= 14, toDayOfWeek(each), toUInt8(0)), left_days) AS left_kinds,
        arrayMap(each -> if(each = today, 86400 - dateDiff('second', toDateTime(today, 'UTC'), toDateTime(at, 'UTC')), 86400),
                 left_days) AS left_seconds,
        arrayDistinct(past_kinds) AS kinds,
        arrayMap(kind -> divideDecimal(arraySum(arrayMap((usd, of) -> if(of = kind, usd, toDecimal256(0, 12)), past, past_kinds)),
                                       toDecimal256(greatest(countEqual(past_kinds, kind), 1), 0), 12), kinds) AS means,
        if(history_days = 0 OR unknown, NULL, arraySum(arrayMap((kind, seconds) -> divideDecimal(
            if(has(kinds, kind), means[indexOf(kinds, kind)], toDecimal256(0, 12)) * toDecimal256(seconds, 0),
            toDecimal256(86400, 0), 12), left_kinds, left_seconds))) AS rest,
        if(history_days <= length(kinds) OR unknown OR isNull(spent), NULL, sqrt(arraySum(arrayMap(
            (usd, kind) -> pow(toFloat64(usd - means[indexOf(kinds, kind)]), 2), past, past_kinds))
            / (history_days - length(kinds)))) AS spread,
        {z:Float64} * spread * sqrt(
            arraySum(arrayMap(seconds -> pow(seconds / 86400, 2), left_seconds))
            + arraySum(arrayMap(kind -> pow(arraySum(arrayMap((of, seconds) -> if(of = kind, seconds / 86400, 0),
                left_kinds, left_seconds)), 2) / countEqual(past_kinds, kind), kinds))) AS margin
    FROM
    (
        SELECT
            ${by}groupArray(day_of) AS days,
            groupArray(toDecimal256(ifNull(usd, 0), 12)) AS moneys,
            -- Unknown, and not 0, where nothing of it has a price.
            if(countIf(day_of >= month_from AND isNotNull(usd)) = 0 AND sumIf(unpriced, day_of >= month_from) > 0,
               NULL, sumIf(toDecimal256(ifNull(usd, 0), 12), day_of >= month_from)) AS spent,
            countIf(isNotNull(usd)) = 0 AND sum(unpriced) > 0 AS unknown,
            sum(unpriced) AS open,
            dateDiff('day', greatest(min(day_of), today - 28), today) AS history_days
        FROM
        (
            SELECT
                ${keys}toDate(ledger.start_time) AS day_of,
                sum(ledger.cost) AS usd,
                countIf(ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced
            FROM $ledger
            WHERE $window AND ledger.start_time < at
                AND ledger.start_time >= toDateTime64(least(month_from, today - 28), 9, 'UTC')
            GROUP BY ${by}day_of
        )
        GROUP BY $group
    )
)
ORDER BY forecast DESC NULLS LAST$last
LIMIT {limit:UInt64}
