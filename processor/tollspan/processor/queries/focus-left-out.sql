-- What a FOCUS export leaves out, and why: charges and calls without a price, by provider, model and meter.
-- FOCUS asks for a cost in every row and allows no 0 in the place of one that is not known. meter is NULL where a call
-- told no usage at all. Roll-ups and calls that are not billed belong in no bill and are not counted.
SELECT
    nullIf(ledger.provider, '') AS provider,
    nullIf(if(ledger.model != '', ledger.model, ledger.request_model), '') AS model,
    nullIf(charge_meter, '') AS meter,
    nullIf(charge_unit, '') AS unit,
    if(charge_status = '', cost_status, charge_status) AS status,
    cost_reasons AS reasons,
    count() AS charges,
    if(meter IS NULL, NULL, sum(charge_quantity)) AS quantity,
    min(start_time) AS first_start,
    max(start_time) AS last_start
FROM ledger FINAL
LEFT ARRAY JOIN
    charges.meter AS charge_meter,
    charges.unit AS charge_unit,
    charges.quantity AS charge_quantity,
    charges.cost AS charge_cost,
    charges.status AS charge_status
WHERE $window
    AND cost_status NOT IN ('rollup', 'not_billed')
    AND (isNull(ledger.cost) OR isNull(charge_cost) OR charge_status NOT IN ('priced', 'free', 'included'))
    -- A call of which nothing is known and that has a cost all the same (an empty list of charges) costs nothing.
    AND NOT (charge_meter = '' AND isNotNull(ledger.cost))
GROUP BY provider, model, meter, unit, status, reasons
ORDER BY charges DESC, provider NULLS LAST, model NULLS LAST, meter NULLS LAST, status, reasons
LIMIT {limit:UInt64}
