-- Attributes that look like token counts or models and that no dialect knows; most frequent first.
-- limit: 100
SELECT
    unknown_attributes.scope AS scope,
    unknown_attributes.scope_version AS version,
    attribute,
    usage_told,
    sum(unknown_attributes.spans) AS spans,
    min(unknown_attributes.first_seen) AS first_seen,
    max(unknown_attributes.last_seen) AS last_seen
FROM unknown_attributes FINAL
WHERE unknown_attributes.last_seen >= {since:DateTime64(9, 'UTC')}
    AND unknown_attributes.first_seen < {until:DateTime64(9, 'UTC')}
GROUP BY scope, version, attribute, usage_told
ORDER BY usage_told, spans DESC, scope, version, attribute
LIMIT {limit:UInt64}
