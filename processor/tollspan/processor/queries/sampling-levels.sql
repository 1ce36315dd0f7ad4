-- What sampling rules compare with: observations in the window and where they lie (USD or seconds), and published rates.
-- limit: 200
SELECT
    metric,
    nullIf(dimension, '') AS by,
    nullIf(name, '') AS key,
    first_minute,
    last_minute,
    nullIf(total, 0) AS observations,
    -- Costs in USD, durations in seconds, off by 2 % at most.
    if(isNull(unit) OR total = 0, NULL, pow(1.02, histogram.1[arrayFirstIndex(n -> n >= ceil(0.5 * total), seen)] + 1) / unit) AS p50,
    if(isNull(unit) OR total = 0, NULL, pow(1.02, histogram.1[arrayFirstIndex(n -> n >= ceil(0.95 * total), seen)] + 1) / unit) AS p95,
    if(isNull(unit) OR total = 0, NULL, pow(1.02, histogram.1[arrayFirstIndex(n -> n >= ceil(0.99 * total), seen)] + 1) / unit) AS p99,
    latest
FROM
(
    SELECT
        sampling_levels.metric AS metric,
        sampling_levels.dimension AS dimension,
        sampling_levels.key AS name,
        min(sampling_levels.minute) AS first_minute,
        max(sampling_levels.minute) AS last_minute,
        sumMap(sampling_levels.buckets, sampling_levels.counts) AS histogram,
        arraySum(histogram.2) AS total,
        arrayCumSum(histogram.2) AS seen,
        argMax(sampling_levels.value, sampling_levels.minute) AS latest,
        multiIf(metric IN ('trace_cost', 'call_cost'), 1e12, metric = 'duration', 1e9, NULL) AS unit
    FROM sampling_levels FINAL
    WHERE sampling_levels.minute >= {since:DateTime64(9, 'UTC')}
        AND sampling_levels.minute < {until:DateTime64(9, 'UTC')}
    GROUP BY metric, dimension, name
)
WHERE total > 0 OR isNotNull(latest)
ORDER BY metric, dimension, observations DESC NULLS LAST, name
LIMIT {limit:UInt64}
