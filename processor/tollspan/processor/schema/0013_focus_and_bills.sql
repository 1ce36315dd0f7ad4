-- What Tollspan metered as a FOCUS 1.2 dataset, and what providers billed for it.
--
-- One row for each charge that has a price. FOCUS asks for a cost in every row and allows no placeholder for one, so what
-- has no price is not here: `tollspan query focus-left-out`. Every date and every condition on x_StartTime reads only
-- that part of the ledger.
--
-- Costs: EffectiveCost is what the ledger charges. ContractedCost adds what a commitment took off, ListCost what a
-- contract took off; where there is no list price the contracted one stands in its place, and x_ListPriceKnown is false.
-- BilledCost is 0 where a commitment or a prepaid purchase covers the charge, as that purchase is what is invoiced.
-- A unit price is the book's where it gives the cost exactly (to the twelve decimals that costs have), else cost by
-- quantity: tiers and least quantities have no single price. What no cloud or provider is named for is the account's own.
DROP VIEW IF EXISTS focus;
CREATE VIEW IF NOT EXISTS focus AS
WITH
    -- Names of units, as FOCUS writes them.
    ['second', 'minute', 'hour', 'byte', 'KB', 'MB', 'GB', 'TB', 'KiB', 'MiB', 'GiB', 'TiB', 'byte-second', 'GB-second',
     'GiB-second', 'GB-hour', 'GiB-hour', 'GB-month', 'GiB-month', 'token-second', 'token-hour', 'unit-second',
     'unit-hour', 'search', 'query', 'fetch', 'search unit'] AS ledger_units,
    ['Seconds', 'Minutes', 'Hours', 'B', 'KB', 'MB', 'GB', 'TB', 'KiB', 'MiB', 'GiB', 'TiB', 'B-Seconds', 'GB-Seconds',
     'GiB-Seconds', 'GB-Hours', 'GiB-Hours', 'GB-Months', 'GiB-Months', 'Token-Seconds', 'Token-Hours', 'Unit-Seconds',
     'Unit-Hours', 'Searches', 'Queries', 'Fetches', 'Search Units'] AS focus_units
SELECT
    toDecimal128(if(covered, toDecimal256(0, 12), effective), 12) AS BilledCost,
    currentDatabase() AS BillingAccountId,
    CAST(NULL, 'Nullable(String)') AS BillingAccountName,
    'USD' AS BillingCurrency,
    toStartOfMonth(x_StartTime + INTERVAL 1 MONTH)::DateTime('UTC') AS BillingPeriodEnd,
    toStartOfMonth(x_StartTime)::DateTime('UTC') AS BillingPeriodStart,
    'Usage' AS ChargeCategory,
    CAST(NULL, 'Nullable(String)') AS ChargeClass,
    concat(SkuId, if(operation = '', '', concat(' (', operation, ')'))) AS ChargeDescription,
    'Usage-Based' AS ChargeFrequency,
    -- The end is exclusive, and FOCUS has whole seconds: the period is the seconds that the call touches.
    toDateTime(intDiv(toUnixTimestamp64Nano(x_StartTime) + toInt64(duration_ns), 1000000000) + 1, 'UTC') AS ChargePeriodEnd,
    toDateTime(intDiv(toUnixTimestamp64Nano(x_StartTime), 1000000000), 'UTC') AS ChargePeriodStart,
    -- The ledger does not know what the provider calls a commitment.
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountCategory,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountId,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountName,
    CAST(NULL, 'Nullable(Decimal(38, 9))') AS CommitmentDiscountQuantity,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountStatus,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountType,
    CAST(NULL, 'Nullable(String)') AS CommitmentDiscountUnit,
    charge_quantity AS ConsumedQuantity,
    transform(charge_unit, ledger_units, focus_units, concat(initcap(charge_unit), 's')) AS ConsumedUnit,
    toDecimal128(contracted, 12) AS ContractedCost,
    toDecimal128(multiIf(
        contracted = effective AND stated_fits, toDecimal256(assumeNotNull(stated), 18),
        priced_quantity = 0, toDecimal256(0, 18),
        divideDecimal(contracted, if(priced_quantity = 0, toDecimal256(1, 18), priced_quantity), 18)), 18)
        AS ContractedUnitPrice,
    toDecimal128(effective, 12) AS EffectiveCost,
    CAST(NULL, 'Nullable(String)') AS InvoiceId,
    ProviderName AS InvoiceIssuerName,
    toDecimal128(listed, 12) AS ListCost,
    toDecimal128(multiIf(
        listed = effective AND stated_fits, toDecimal256(assumeNotNull(stated), 18),
        priced_quantity = 0, toDecimal256(0, 18),
        divideDecimal(listed, if(priced_quantity = 0, toDecimal256(1, 18), priced_quantity), 18)), 18)
        AS ListUnitPrice,
    multiIf(covered, 'Other', purchase = 'spot', 'Dynamic', 'Standard') AS PricingCategory,
    'USD' AS PricingCurrency,
    ContractedUnitPrice AS PricingCurrencyContractedUnitPrice,
    EffectiveCost AS PricingCurrencyEffectiveCost,
    ListUnitPrice AS PricingCurrencyListUnitPrice,
    toDecimal128(priced_quantity, 18) AS PricingQuantity,
    concat(
        if(per_count = 1, '', concat(toString(per_count), ' ')),
        transform(per_unit, ledger_units, focus_units, concat(initcap(per_unit), 's'))) AS PricingUnit,
    if(seller = '', currentDatabase(), seller) AS ProviderName,
    ProviderName AS PublisherName,
    nullIf(region, '') AS RegionId,
    nullIf(region, '') AS RegionName,
    service_of.2 AS ServiceCategory,
    service_of.1 AS ServiceName,
    service_of.3 AS ServiceSubcategory,
    concat(if(seller = '', '', concat(seller, '/')), if(sold = '', '', concat(sold, '/')), SkuMeter) AS SkuId,
    charge_meter AS SkuMeter,
    CAST(NULL, 'Nullable(String)') AS SkuPriceDetails,
    -- A price can stand for several SKUs (a pattern, an alias); FOCUS wants one for each.
    concat(SkuId, '#', price) AS SkuPriceId,
    nullIf(tenant, '') AS SubAccountId,
    nullIf(tenant, '') AS SubAccountName,
    if(tenant = '', NULL, 'Tenant') AS SubAccountType,
    if(empty(tag_map), NULL, toJSONString(tag_map)) AS Tags,
    book_version AS x_BookVersion,
    charge_status AS x_ChargeStatus,
    charge_component AS x_Component,
    -- False: the call has other charges without a price, so what it cost in all is more.
    cost_status != 'partial' AS x_CostComplete,
    nullIf(device, '') AS x_Device,
    nullIf(host_type, '') AS x_HostType,
    isNotNull(negotiated) AS x_ListPriceKnown,
    matched AS x_MatchedBy,
    nullIf(model_name, '') AS x_Model,
    nullIf(operation, '') AS x_Operation,
    price AS x_PriceId,
    seller != '' AS x_ProviderKnown,
    nullIf(service_tier, '') AS x_ServiceTier,
    lower(hex(span_id)) AS x_SpanId,
    start_time AS x_StartTime,
    lower(hex(trace_id)) AS x_TraceId
FROM
(
    SELECT
        start_time, duration_ns, trace_id, span_id, tenant, region, operation, purchase, device, host_type, service_tier,
        book_version, cost_status,
        if(model != '', model, request_model) AS model_name,
        charge_meter, charge_component, charge_quantity, charge_unit, charge_status, price, matched, negotiated, stated,
        multiIf(
            charge_component IN ('model', 'overhead'), provider,
            startsWith(charge_meter, 'feature.') OR startsWith(charge_meter, 'vector.'), provider,
            cloud_provider) AS seller,
        multiIf(
            charge_component IN ('model', 'overhead'), model_name,
            startsWith(charge_meter, 'feature.') OR startsWith(charge_meter, 'vector.'), model_name,
            startsWith(charge_meter, 'gpu.'), device,
            charge_component = 'compute', host_type,
            '') AS sold,
        multiIf(
            startsWith(charge_meter, 'feature.'), ('Feature Store', 'Databases', 'Other (Databases)'),
            startsWith(charge_meter, 'vector.'), ('Vector Database', 'Databases', 'Other (Databases)'),
            charge_component = 'model', ('Model Inference', 'AI and Machine Learning', 'Generative AI'),
            charge_component = 'compute', ('Compute', 'Compute', 'Virtual Machines'),
            charge_component = 'network', ('Network', 'Networking', 'Network Connectivity'),
            charge_component = 'storage', ('Object Storage', 'Storage', 'Object Storage'),
            charge_component = 'telemetry', ('Telemetry', 'Management and Governance', 'Observability'),
            ('Overhead', 'Other', 'Other (Other)')) AS service_of,
        if(per = '', 1, toUInt64OrZero(splitByChar(' ', toString(per))[1])) AS per_count,
        if(per = '', toString(charge_unit), substring(toString(per), position(toString(per), ' ') + 1)) AS per_unit,
        transform(
            per_unit,
            ['minute', 'hour', 'KB', 'MB', 'GB', 'TB', 'KiB', 'MiB', 'GiB', 'TiB', 'GB-second', 'GiB-second', 'GB-hour',
             'GiB-hour', 'GB-month', 'GiB-month', 'token-hour', 'unit-hour'],
            [60, 3600, 1000, 1000000, 1000000000, 1000000000000, 1024, 1048576, 1073741824, 1099511627776, 1000000000,
             1073741824, 3600000000000, 3865470566400, 2628000000000000, 2821793513472000, 3600, 3600],
            1) AS per_size,
        divideDecimal(
            toDecimal256(charge_quantity, 9), toDecimal256(toUInt256(per_count) * toUInt256(per_size), 0), 18)
            AS priced_quantity,
        toDecimal256(assumeNotNull(charge_cost), 12) AS effective,
        effective + toDecimal256(ifNull(committed, toDecimal128(0, 12)), 12) AS contracted,
        contracted + toDecimal256(ifNull(negotiated, toDecimal128(0, 12)), 12) AS listed,
        charge_status = 'included' OR ifNull(committed, toDecimal128(0, 12)) != 0 AS covered,
        isNotNull(stated)
            AND abs(toDecimal256(ifNull(stated, toDecimal128(0, 18)), 18) * priced_quantity - toDecimal256(effective, 36))
                <= toDecimal256('0.0000000000005', 36) AS stated_fits,
        mapFilter((k, v) -> v != '', map(
            'agent', toString(agent), 'environment', toString(environment), 'feature', toString(feature),
            'route', toString(route), 'service', toString(service), 'team', toString(team), 'tenant', toString(tenant),
            'variant', toString(variant), 'workflow', toString(workflow))) AS tag_map
    FROM ledger FINAL
    ARRAY JOIN
        charges.meter AS charge_meter,
        charges.component AS charge_component,
        charges.quantity AS charge_quantity,
        charges.unit AS charge_unit,
        charges.unit_price AS stated,
        charges.per AS per,
        charges.cost AS charge_cost,
        charges.negotiated AS negotiated,
        charges.committed AS committed,
        charges.price_id AS price,
        charges.matched_by AS matched,
        charges.status AS charge_status
    WHERE isNotNull(ledger.cost) AND isNotNull(charge_cost) AND charge_status IN ('priced', 'free', 'included')
);

-- What providers billed: `tollspan bills import`. A bill is an account's of one issuer for one billing period; the file
-- that was imported last for it is the one that counts. Its lines are written before the bill points at them, so that
-- an import which breaks off changes nothing. Read it with FINAL; nothing here is in the ledger.
CREATE TABLE IF NOT EXISTS bills
(
    bill        String COMMENT 'Issuer, account and billing period' CODEC(ZSTD(1)),
    file        String COMMENT 'SHA-256 of what was imported and of how it was read' CODEC(ZSTD(1)),
    name        String COMMENT 'Names of the files' CODEC(ZSTD(1)),
    format      LowCardinality(String) COMMENT 'focus, cur or simple' CODEC(ZSTD(1)),
    currency    LowCardinality(String) COMMENT 'ISO 4217; several are separated by commas' CODEC(ZSTD(1)),
    lines       UInt64 COMMENT 'Lines of the bill' CODEC(ZSTD(1)),
    billed      Decimal(38, 12) COMMENT 'Sum of its lines' CODEC(ZSTD(1)),
    first_day   Date COMMENT 'First day that its lines are for' CODEC(ZSTD(1)),
    last_day    Date COMMENT 'Last day that its lines are for' CODEC(ZSTD(1)),
    imported_at DateTime64(3, 'UTC') COMMENT 'When it was imported; the last import counts' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(imported_at)
ORDER BY bill
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Bills of providers that were imported; read it with FINAL';

CREATE TABLE IF NOT EXISTS billed_lines
(
    bill        String COMMENT 'As in bills' CODEC(ZSTD(1)),
    file        String COMMENT 'As in bills; lines of a file that the bill does not point at do not count' CODEC(ZSTD(1)),
    line        UInt64 COMMENT 'Place in what was imported' CODEC(Delta, ZSTD(1)),
    day         Date COMMENT 'For which it is charged, UTC' CODEC(ZSTD(1)),
    category    LowCardinality(String) COMMENT 'Usage, Purchase, Tax, Credit or Adjustment' CODEC(ZSTD(1)),
    provider    LowCardinality(String) COMMENT 'As the ledger names it; empty: not given, as in all texts here' CODEC(ZSTD(1)),
    model       LowCardinality(String) COMMENT 'As the ledger names it' CODEC(ZSTD(1)),
    service     LowCardinality(String) COMMENT 'Service of the provider' CODEC(ZSTD(1)),
    sku         LowCardinality(String) COMMENT 'What was sold' CODEC(ZSTD(1)),
    tenant      LowCardinality(String) COMMENT 'Tag tenant of the bill itself' CODEC(ZSTD(1)),
    feature     LowCardinality(String) COMMENT 'Tag feature of the bill itself' CODEC(ZSTD(1)),
    description LowCardinality(String) COMMENT 'As the bill says it' CODEC(ZSTD(1)),
    currency    LowCardinality(String) COMMENT 'ISO 4217' CODEC(ZSTD(1)),
    cost        Decimal(38, 12) COMMENT 'What was billed' CODEC(GCD, ZSTD(1)),
    step        Decimal(38, 12) COMMENT 'Last place that the bill writes; the line can be half of it off' CODEC(GCD, ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (bill, file, line)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Lines of bills; the view billed has those that count';

-- The lines that count.
CREATE VIEW IF NOT EXISTS billed AS
SELECT
    entry.bill AS bill, entry.line AS line, entry.day AS day, entry.category AS category, entry.provider AS provider,
    entry.model AS model, entry.service AS service, entry.sku AS sku, entry.tenant AS tenant, entry.feature AS feature,
    entry.description AS description, entry.currency AS currency, entry.cost AS cost, entry.step AS step
FROM (SELECT * FROM billed_lines FINAL) AS entry
INNER JOIN (SELECT bill, file FROM bills FINAL) AS current ON current.bill = entry.bill AND current.file = entry.file;
