-- What changed most: the cost of the window beside that of the window of the same length before it.
-- by: feature
-- definition: cost of the window, cost of the window of the same length that ends where it begins, and the change, parted
--     into what the change of the number of inferences did (at what one cost before) and what one inference's cost did
-- formula: change = cost − cost before; volume effect = (priced inferences − those before) × cost before ÷ those before;
--     rate effect = change − volume effect
-- unit: USD
-- pitfall: without --since there is no window before, and everything is new. The window ends now, or at --until.
-- pitfall: what has no price is in no cost: something that got a price in between shows as dearer. unpriced_inferences and
--     unpriced_before say how many calls each side leaves out.
-- pitfall: where there were no priced inferences before there is nothing to part: both effects are NULL. Model loads, reads
--     and idle time are in the costs and are no inferences, so their change is in the rate effect.
WITH
    greatest(least({until:DateTime64(9, 'UTC')}, now64(9, 'UTC')), {since:DateTime64(9, 'UTC')}) AS at,
    -- DateTime64 begins in 1900.
    fromUnixTimestamp64Nano(greatest(toInt64(-2208988800000000000), toUnixTimestamp64Nano({since:DateTime64(9, 'UTC')})
        - (toUnixTimestamp64Nano(at) - toUnixTimestamp64Nano({since:DateTime64(9, 'UTC')}))), 'UTC') AS before_from
SELECT
    ${by}cost,
    cost_before,
    cost - cost_before AS change,
    if(isNull(change) OR ifNull(cost_before, 0) = 0, NULL,
       round(100 * (toFloat64(cost) / toFloat64(cost_before) - 1), 3)) AS percent,
    if(isNull(change) OR priced_before = 0, NULL, toDecimal128(divideDecimal(
        ifNull(toDecimal256(cost_before, 12), toDecimal256(0, 12)) * toDecimal256(toInt64(priced) - toInt64(priced_before), 0),
        toDecimal256(greatest(priced_before, 1), 0), 12), 12)) AS volume_effect,
    change - volume_effect AS rate_effect,
    'USD' AS currency,
    priced AS priced_inferences,
    priced_before,
    unpriced AS unpriced_inferences,
    unpriced_before
FROM
(
    WITH
        ledger.start_time >= {since:DateTime64(9, 'UTC')} AS here,
        ledger.kind = 'inference' AND ledger.cost_status IN ('priced', 'free', 'included', 'partial') AS is_priced
    SELECT
        ${keys}if(countIf(here AND isNotNull(ledger.cost)) = 0
               AND countIf(here AND ledger.cost_status IN ('unpriced', 'invalid')) > 0,
           NULL, ifNull(sumIf(ledger.cost, here), toDecimal128(0, 12))) AS cost,
        if(countIf(NOT here AND isNotNull(ledger.cost)) = 0
               AND countIf(NOT here AND ledger.cost_status IN ('unpriced', 'invalid')) > 0,
           NULL, ifNull(sumIf(ledger.cost, NOT here), toDecimal128(0, 12))) AS cost_before,
        countIf(here AND is_priced) AS priced,
        countIf(NOT here AND is_priced) AS priced_before,
        countIf(here AND ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced,
        countIf(NOT here AND ledger.kind = 'inference' AND ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_before
    FROM ledger FINAL
    WHERE ledger.start_time >= before_from AND ledger.start_time < {until:DateTime64(9, 'UTC')}$filters
    GROUP BY $group
)
ORDER BY ${times}abs(change) DESC NULLS LAST, cost DESC NULLS LAST$last
LIMIT {limit:UInt64}
