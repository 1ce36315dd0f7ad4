-- Cache savings that were missed: requests that were asked again word for word, by model, dearest repetitions first.
-- limit: 20
-- definition: calls whose fingerprint (tollspan.request.fingerprint) an earlier call of the window had, and what they cost
-- formula: repeated = calls − distinct fingerprints; repeated_share is weighted by how many calls each kept span stands for
-- unit: USD, of kept spans only; a share from 0 to 1
-- pitfall: fingerprints are only on spans that sampling kept, and only where the program has a fingerprint key: costs are
--     exact and a lower bound, the share is an estimate. The first call of a fingerprint is never a repetition, also where
--     it fell out of the sample.
-- pitfall: the same question can be meant to have another answer (a creative temperature, fresh data).
SELECT
    nullIf(bills, '') AS provider,
    nullIf(served, '') AS model,
    nullIf(asked_by, '') AS feature,
    count() AS fingerprinted_calls,
    countIf(nth > 1) AS repeated_calls,
    round(sumIf(weight, nth > 1) / sum(weight), 6) AS repeated_share,
    if(repeated_calls > 0 AND countIf(nth > 1 AND isNotNull(usd)) = 0, NULL,
       ifNull(sumIf(usd, nth > 1), toDecimal128(0, 12))) AS repeated_cost,
    'USD' AS currency,
    max(nth) AS most_often
FROM
(
    SELECT
        toString(calls.provider) AS bills,
        toString(calls.asked_model) AS served,
        toString(calls.feature) AS asked_by,
        calls.usd AS usd,
        bodies.weight AS weight,
        row_number() OVER (PARTITION BY bodies.fingerprint ORDER BY calls.at, calls.span) AS nth
    FROM
    (
        SELECT
            ledger.trace_id AS trace,
            ledger.span_id AS span,
            ledger.start_time AS at,
            ledger.provider AS provider,
            if(ledger.model != '', ledger.model, ledger.request_model) AS asked_model,
            ledger.feature AS feature,
            ledger.cost AS usd
        FROM ledger FINAL
        WHERE $window AND ledger.counted
    ) AS calls
    INNER JOIN
    (
        SELECT
            toFixedString(unhex(TraceId), 16) AS trace,
            toFixedString(unhex(SpanId), 8) AS span,
            SpanAttributes['tollspan.request.fingerprint'] AS fingerprint,
            AdjustedCount AS weight
        FROM spans FINAL
        WHERE Timestamp >= {since:DateTime64(9, 'UTC')} AND Timestamp < {until:DateTime64(9, 'UTC')}
            AND fingerprint != '' AND weight > 0
    ) AS bodies ON bodies.trace = calls.trace AND bodies.span = calls.span
)
GROUP BY bills, served, asked_by
ORDER BY repeated_cost DESC NULLS LAST, repeated_calls DESC, provider NULLS LAST, model NULLS LAST, feature NULLS LAST
LIMIT {limit:UInt64}
