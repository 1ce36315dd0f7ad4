-- Context growth: traces whose calls take more and more input, and what that input costs, dearest first.
-- limit: 20
-- definition: for each trace and model with two calls or more that count tokens, input of the first call and of the last
-- formula: growth = input tokens of the last call ÷ input tokens of the first
-- unit: tokens; USD
-- pitfall: regrown_cost is what the input beyond the first call's size cost, at each call's own mean price of input; with
--     a prompt cache it is small although the context grows. It is NULL where a call's input has no price.
SELECT
    lower(hex(id)) AS trace_id,
    first_start AS start_time,
    nullIf(payer, '') AS tenant,
    nullIf(by_agent, '') AS agent,
    served AS model,
    calls AS inferences,
    first_input AS first_input_tokens,
    last_input AS last_input_tokens,
    if(first_input = 0, NULL, divideDecimal(
        toDecimal128(last_input, 0), toDecimal128(greatest(first_input, 1), 0), 3)) AS growth,
    ins AS input_tokens,
    outs AS output_tokens,
    if(open > 0, NULL, paid) AS input_cost,
    if(open > 0, NULL, toDecimal128(arraySum((tokens, usd) -> if(tokens > first_input,
        divideDecimal(usd * toDecimal128(tokens - first_input, 0), toDecimal128(greatest(tokens, 1), 0), 12),
        toDecimal256(0, 12)), each_input, each_paid), 12)) AS regrown_cost,
    'USD' AS currency
FROM
(
    SELECT
        ledger.trace_id AS id,
        if(ledger.model != '', ledger.model, ledger.request_model) AS served,
        min(ledger.start_time) AS first_start,
        max(ledger.tenant) AS payer,
        max(ledger.agent) AS by_agent,
        count() AS calls,
        argMin(assumeNotNull(ledger.input_tokens), ledger.start_time) AS first_input,
        argMax(assumeNotNull(ledger.input_tokens), ledger.start_time) AS last_input,
        sum(assumeNotNull(ledger.input_tokens)) AS ins,
        sum(ledger.output_tokens) AS outs,
        groupArray(assumeNotNull(ledger.input_tokens)) AS each_input,
        groupArray(toDecimal256(arraySum(
            (meter, usd) -> if(startsWith(meter, 'tokens.input.'), ifNull(usd, toDecimal128(0, 12)), toDecimal128(0, 12)),
            ledger.charges.meter, ledger.charges.cost), 12)) AS each_paid,
        toDecimal128(arraySum(each_paid), 12) AS paid,
        countIf(arrayExists((meter, usd) -> startsWith(meter, 'tokens.input.') AND isNull(usd),
                            ledger.charges.meter, ledger.charges.cost)) AS open
    FROM ledger FINAL
    WHERE $window AND ledger.counted
        AND isNotNull(ledger.input_tokens)
    GROUP BY id, served
    HAVING calls > 1
)
ORDER BY regrown_cost DESC NULLS LAST, last_input_tokens DESC, trace_id, model
LIMIT {limit:UInt64}
