-- Prompt caches: the share of input that was read from them, and what that saved.
-- by: provider, model
-- definition: input tokens by where they came from, and what reading from the cache saved beside the price of uncached
--     input in the same call, less what writing to it cost more
-- formula: saved = Σ (read tokens × uncached price − cost of reads) − Σ (cost of writes − written tokens × uncached price)
-- unit: tokens; a share from 0 to 1; USD
-- pitfall: a call without uncached tokens has no such price to compare with (uncompared_calls): its reads are in the share
--     and not in the saving.
-- pitfall: what was missed is not here: prefixes that could have been shared are not told by spans. uncached_tokens beside
--     a small share is where to look, and `duplicate-requests`.
SELECT
    ${by}calls,
    uncached AS uncached_tokens,
    reads AS cache_read_tokens,
    writes AS cache_write_tokens,
    if(uncached + reads + writes = 0, NULL, divideDecimal(toDecimal128(reads, 0),
        toDecimal128(greatest(uncached + reads + writes, 1), 0), 9)) AS cache_read_share,
    if(compared = 0 AND uncompared > 0, NULL, toDecimal128(saving, 12)) AS saved,
    'USD' AS currency,
    uncompared AS uncompared_calls
FROM
(
    SELECT
        ${keys}count() AS calls,
        toUInt64(sum(plain_tokens)) AS uncached,
        toUInt64(sum(read_tokens)) AS reads,
        toUInt64(sum(write_tokens)) AS writes,
        countIf(read_tokens + write_tokens > 0 AND comparable) AS compared,
        countIf(read_tokens + write_tokens > 0 AND NOT comparable) AS uncompared,
        sumIf(divideDecimal(toDecimal256(read_tokens + write_tokens, 0) * price, toDecimal256(greatest(per, 1), 0), 12)
              - paid, read_tokens + write_tokens > 0 AND comparable) AS saving
    FROM
    (
        SELECT
            *,
            indexOf(ledger.charges.meter, 'tokens.input.uncached') AS at,
            toDecimal256(if(at = 0, NULL, ledger.charges.unit_price[at]), 18) AS told_price,
            ifNull(told_price, toDecimal256(0, 18)) AS price,
            toUInt64OrZero(splitByChar(' ', if(at = 0, '', ledger.charges.per[at]))[1]) AS per,
            if(at = 0, toDecimal128(0, 9), ledger.charges.quantity[at]) AS plain_tokens,
            arraySum((meter, n) -> if(position(meter, '.cache_read') > 0, n, toDecimal128(0, 9)),
                     ledger.charges.meter, ledger.charges.quantity) AS read_tokens,
            arraySum((meter, n) -> if(position(meter, '.cache_write') > 0, n, toDecimal128(0, 9)),
                     ledger.charges.meter, ledger.charges.quantity) AS write_tokens,
            toDecimal256(arraySum((meter, usd) -> if(position(meter, '.cache_') > 0, ifNull(usd, toDecimal128(0, 12)),
                toDecimal128(0, 12)), ledger.charges.meter, ledger.charges.cost), 12) AS paid,
            isNotNull(told_price) AND per > 0 AND NOT arrayExists(
                (meter, usd) -> position(meter, '.cache_') > 0 AND isNull(usd),
                ledger.charges.meter, ledger.charges.cost) AS comparable
        FROM ledger FINAL
        WHERE $window AND ledger.counted
            AND arrayExists(meter -> startsWith(meter, 'tokens.input.'), ledger.charges.meter)
    ) AS ledger
    GROUP BY $group
)
ORDER BY ${times}saved DESC NULLS LAST, uncached_tokens DESC$last
LIMIT {limit:UInt64}
