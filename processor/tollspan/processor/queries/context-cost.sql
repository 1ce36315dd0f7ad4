-- Retrieval bloat: what input costs beside output, and beside the outcome of the calls.
-- by: model
-- definition: input tokens for each output token, the share of input in the cost of tokens, and input that went into calls
--     that failed
-- formula: Σ input tokens ÷ Σ output tokens; Σ cost of input ÷ Σ cost of tokens
-- unit: tokens for each token; a share from 0 to 1; USD
-- pitfall: calls that tell no tokens are in no figure (untold_calls); what has no price is in no cost (unpriced_calls).
-- pitfall: much input for little output is what retrieval, classification and extraction are for: compare features that
--     do the same work, or one with its past (--by feature,week).
SELECT
    ${keys}countIf(isNotNull(ledger.input_tokens)) AS calls,
    countIf(isNull(ledger.input_tokens)) AS untold_calls,
    countIf(ledger.cost_status IN ('unpriced', 'invalid')) AS unpriced_calls,
    sum(ledger.input_tokens) AS input_tokens,
    sum(ledger.output_tokens) AS output_tokens,
    if(ifNull(output_tokens, 0) = 0, NULL, divideDecimal(
        toDecimal128(ifNull(input_tokens, 0), 0), toDecimal128(greatest(ifNull(output_tokens, 1), 1), 0), 3)) AS input_per_output,
    if(countIf(priced) = 0 AND unpriced_calls > 0, NULL, sumIf(paid_in, priced)) AS input_cost,
    if(countIf(priced) = 0 AND unpriced_calls > 0, NULL, sumIf(paid_out, priced)) AS output_cost,
    'USD' AS currency,
    if(ifNull(input_cost + output_cost, 0) = 0, NULL, divideDecimal(
        ifNull(input_cost, toDecimal128(0, 12)),
        ifNull(nullIf(input_cost + output_cost, 0), toDecimal128(1, 12)), 9)) AS input_share,
    sumIf(paid_in, priced AND ledger.span_status = 'error') AS failed_input_cost,
    quantileExactLow(0.5)(ledger.input_tokens) AS p50_input_tokens,
    quantileExactLow(0.95)(ledger.input_tokens) AS p95_input_tokens
FROM
(
    SELECT
        *,
        input_tokens,
        output_tokens,
        isNotNull(ledger.cost) AS priced,
        toDecimal128(arraySum((meter, usd) -> if(startsWith(meter, 'tokens.input.'), ifNull(usd, toDecimal128(0, 12)),
            toDecimal128(0, 12)), ledger.charges.meter, ledger.charges.cost), 12) AS paid_in,
        toDecimal128(arraySum((meter, usd) -> if(startsWith(meter, 'tokens.output'), ifNull(usd, toDecimal128(0, 12)),
            toDecimal128(0, 12)), ledger.charges.meter, ledger.charges.cost), 12) AS paid_out
    FROM ledger FINAL
    WHERE $window AND ledger.counted
) AS ledger
GROUP BY $group
ORDER BY ${times}input_cost DESC NULLS LAST$last
LIMIT {limit:UInt64}
