-- Cold-model waste: models that were loaded, what loading cost, and how many inferences it was for.
-- by: service, provider, model
-- definition: loads of each model, their time and cost, beside the inferences that the model ran
-- formula: inferences ÷ loads; Σ cost of loads ÷ inferences
-- unit: inferences for each load; USD for each inference
-- pitfall: a model without inferences (0 for each load) was loaded for nothing in this window: maybe it began earlier, or
--     serves later.
-- pitfall: a load and its inferences meet by the model's name; a load that names a file and calls that name a class do not.
SELECT
    ${keys}countIf(ledger.kind = 'model_load') AS loads,
    countIf(ledger.counted) AS inferences,
    countIf(ledger.counted AND ledger.cold_start) AS cold_starts,
    if(countIf(ledger.kind = 'model_load' AND isNotNull(ledger.cost)) = 0, NULL,
       sumIf(ledger.cost, ledger.kind = 'model_load')) AS load_cost,
    'USD' AS currency,
    countIf(ledger.kind = 'model_load' AND isNull(ledger.cost)) AS unpriced_loads,
    sumIf(ledger.duration_ns, ledger.kind = 'model_load') AS load_ns,
    divideDecimal(toDecimal128(inferences, 0), toDecimal128(greatest(loads, 1), 0), 3) AS inferences_per_load,
    if(inferences = 0 OR isNull(load_cost), NULL, divideDecimal(
        ifNull(load_cost, toDecimal128(0, 12)), toDecimal128(greatest(inferences, 1), 0), 18)) AS load_cost_per_inference
FROM $ledger
WHERE $window AND ledger.kind IN ('model_load', 'inference')
GROUP BY $group
HAVING loads > 0
ORDER BY ${times}inferences_per_load, load_cost DESC NULLS LAST, load_ns DESC$last
LIMIT {limit:UInt64}
