-- Reads of feature and vector stores for each inference, by service and feature, and how many read a row again.
-- limit: 20
-- Reads, their cost and inferences are the ledger's, and so of every trace: feature reads (historical ones too) and
-- vector queries, failed ones too; inferences are those of the traces in which the service has something in the ledger,
-- whichever service ran them. most_reads is that of one trace.
-- Which rows were read is only on spans that sampling kept, and only where the program has a fingerprint key
-- (tollspan.read.keys): the rows read and those read again are estimates, each kept span weighted by how many it stands
-- for (AdjustedCount), and NULL where no span tells its keys. A row is read again when an earlier read of the same trace,
-- by any service, has asked the same provider and views for the same key. Of a read, 256 keys are told at most.
SELECT
    reads.service AS service,
    reads.feature AS feature,
    reads.inferences AS inferences,
    reads.feature_reads AS feature_reads,
    reads.vector_queries AS vector_queries,
    if(reads.inferences = 0, NULL,
       round((reads.feature_reads + reads.vector_queries) / reads.inferences, 3)) AS reads_per_inference,
    reads.most_reads AS most_reads,
    reads.cost AS cost,
    'USD' AS currency,
    if(keyed.rows_read = 0, NULL, round(keyed.rows_read, 1)) AS rows_read,
    if(keyed.rows_read = 0, NULL, round(keyed.read_again, 1)) AS rows_read_again,
    if(keyed.rows_read = 0, NULL, round(keyed.read_again / keyed.rows_read, 3)) AS again_share
FROM
(
    SELECT
        nullIf(by_trace.service, '') AS service,
        nullIf(by_trace.feature, '') AS feature,
        sum(by_trace.feature_reads) AS feature_reads,
        sum(by_trace.vector_queries) AS vector_queries,
        max(by_trace.feature_reads + by_trace.vector_queries) AS most_reads,
        if(sum(by_trace.known) = 0 AND sum(by_trace.open) > 0,
           NULL, ifNull(sum(by_trace.cost), toDecimal128(0, 12))) AS cost,
        sum(calls.inferences) AS inferences
    FROM
    (
        SELECT
            ledger.trace_id AS trace_id,
            ledger.service AS service,
            ledger.feature AS feature,
            countIf(operation = 'feature_read') AS feature_reads,
            countIf(operation = 'vector_query') AS vector_queries,
            countIf(is_read AND isNotNull(ledger.cost)) AS known,
            countIf(is_read AND cost_status IN ('unpriced', 'invalid')) AS open,
            sumIf(ledger.cost, operation IN ('feature_read', 'vector_query') AS is_read) AS cost
        FROM ledger FINAL
        WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
            -- Most services read nothing, in any of their traces.
            AND (ledger.service, ledger.feature) IN (
                SELECT ledger.service, ledger.feature
                FROM ledger FINAL
                WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
                    AND operation IN ('feature_read', 'vector_query'))
        GROUP BY trace_id, service, feature
    ) AS by_trace
    INNER JOIN
    (
        SELECT
            trace_id,
            countIf(kind = 'inference' AND cost_status NOT IN ('rollup', 'not_billed')) AS inferences
        FROM ledger FINAL
        WHERE start_time >= {since:DateTime64(9, 'UTC')} AND start_time < {until:DateTime64(9, 'UTC')}
        GROUP BY trace_id
    ) AS calls ON calls.trace_id = by_trace.trace_id
    GROUP BY service, feature
    HAVING feature_reads + vector_queries > 0
) AS reads
LEFT JOIN
(
    SELECT service, feature, sum(weight) AS rows_read, sumIf(weight, nth > 1) AS read_again
    FROM
    (
        SELECT
            ServiceName AS service,
            SpanAttributes['tollspan.feature'] AS feature,
            AdjustedCount AS weight,
            row_number() OVER (
                PARTITION BY TraceId, SpanAttributes['tollspan.provider'], SpanAttributes['tollspan.feature.views'],
                             if(SpanAttributes['tollspan.feature.views'] = '', SpanAttributes['tollspan.model'], ''), key
                ORDER BY Timestamp, SpanId
            ) AS nth
        FROM spans FINAL
        ARRAY JOIN JSONExtract(SpanAttributes['tollspan.read.keys'], 'Array(String)') AS key
        WHERE Timestamp >= {since:DateTime64(9, 'UTC')} AND Timestamp < {until:DateTime64(9, 'UTC')}
            AND SpanAttributes['tollspan.operation'] IN ('feature_read', 'vector_query')
    )
    GROUP BY service, feature
) AS keyed ON keyed.service = ifNull(reads.service, '') AND keyed.feature = ifNull(reads.feature, '')
ORDER BY reads_per_inference DESC NULLS FIRST, feature_reads + vector_queries DESC, service NULLS LAST,
         feature NULLS LAST
LIMIT {limit:UInt64}
