-- Parts of a row's cost as columns of their own, so that questions about a component read a few bytes of a row and not
-- all its charges: two to five times as fast for .7 bytes a row (tests/benchmarks/clickhouse.py). They follow from the
-- charges alone; ClickHouse makes them when rows are written, and for rows from before when they are read. What is not
-- in the others is the model's, so the largest of them is not stored.
--
-- Start times in steps of what they have in common, then only as many bits as a block needs; batch sizes likewise.
ALTER TABLE ledger
    MODIFY COLUMN start_time DateTime64(9, 'UTC') CODEC(GCD, Delta, T64, ZSTD(1)),
    MODIFY COLUMN batch_size Nullable(UInt32) CODEC(T64, ZSTD(1)),
    ADD COLUMN IF NOT EXISTS compute_cost Decimal(38, 12) MATERIALIZED
        if(isNotNull(cost) AND has(`charges.component`, 'compute'),
           arraySum((part, each) -> if(part = 'compute', ifNull(each, toDecimal128(0, 12)), toDecimal128(0, 12)),
                    `charges.component`, `charges.cost`),
           toDecimal128(0, 12))
        COMMENT 'What charges of the component compute add to cost; 0 also where the row has no cost'
        CODEC(GCD, ZSTD(1)),
    ADD COLUMN IF NOT EXISTS network_cost Decimal(38, 12) MATERIALIZED
        if(isNotNull(cost) AND has(`charges.component`, 'network'),
           arraySum((part, each) -> if(part = 'network', ifNull(each, toDecimal128(0, 12)), toDecimal128(0, 12)),
                    `charges.component`, `charges.cost`),
           toDecimal128(0, 12))
        COMMENT 'What charges of the component network add to cost; 0 also where the row has no cost'
        CODEC(GCD, ZSTD(1)),
    ADD COLUMN IF NOT EXISTS storage_cost Decimal(38, 12) MATERIALIZED
        if(isNotNull(cost) AND has(`charges.component`, 'storage'),
           arraySum((part, each) -> if(part = 'storage', ifNull(each, toDecimal128(0, 12)), toDecimal128(0, 12)),
                    `charges.component`, `charges.cost`),
           toDecimal128(0, 12))
        COMMENT 'What charges of the component storage add to cost; 0 also where the row has no cost'
        CODEC(GCD, ZSTD(1)),
    ADD COLUMN IF NOT EXISTS telemetry_cost Decimal(38, 12) MATERIALIZED
        if(isNotNull(cost) AND has(`charges.component`, 'telemetry'),
           arraySum((part, each) -> if(part = 'telemetry', ifNull(each, toDecimal128(0, 12)), toDecimal128(0, 12)),
                    `charges.component`, `charges.cost`),
           toDecimal128(0, 12))
        COMMENT 'What charges of the component telemetry add to cost; 0 also where the row has no cost'
        CODEC(GCD, ZSTD(1)),
    ADD COLUMN IF NOT EXISTS overhead_cost Decimal(38, 12) MATERIALIZED
        if(isNotNull(cost) AND has(`charges.component`, 'overhead'),
           arraySum((part, each) -> if(part = 'overhead', ifNull(each, toDecimal128(0, 12)), toDecimal128(0, 12)),
                    `charges.component`, `charges.cost`),
           toDecimal128(0, 12))
        COMMENT 'What charges of the component overhead add to cost; 0 also where the row has no cost'
        CODEC(GCD, ZSTD(1)),
    ADD COLUMN IF NOT EXISTS priced_parts UInt8 MATERIALIZED
        if(has(`charges.cost`, NULL),
            1 * arrayExists((part, x) -> part = 'model' AND isNotNull(x), `charges.component`, `charges.cost`)
            + 2 * arrayExists((part, x) -> part = 'compute' AND isNotNull(x), `charges.component`, `charges.cost`)
            + 4 * arrayExists((part, x) -> part = 'network' AND isNotNull(x), `charges.component`, `charges.cost`)
            + 8 * arrayExists((part, x) -> part = 'storage' AND isNotNull(x), `charges.component`, `charges.cost`)
            + 16 * arrayExists((part, x) -> part = 'telemetry' AND isNotNull(x), `charges.component`, `charges.cost`)
            + 32 * arrayExists((part, x) -> part = 'overhead' AND isNotNull(x), `charges.component`, `charges.cost`),
            1 * has(`charges.component`, 'model')
            + 2 * has(`charges.component`, 'compute')
            + 4 * has(`charges.component`, 'network')
            + 8 * has(`charges.component`, 'storage')
            + 16 * has(`charges.component`, 'telemetry')
            + 32 * has(`charges.component`, 'overhead'))
        COMMENT 'Components with a priced charge, in bits: model 1, compute 2, network 4, storage 8, telemetry 16, overhead 32'
        CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS open_parts UInt8 MATERIALIZED
        if(has(`charges.cost`, NULL),
            1 * arrayExists((part, x) -> part = 'model' AND isNull(x), `charges.component`, `charges.cost`)
            + 2 * arrayExists((part, x) -> part = 'compute' AND isNull(x), `charges.component`, `charges.cost`)
            + 4 * arrayExists((part, x) -> part = 'network' AND isNull(x), `charges.component`, `charges.cost`)
            + 8 * arrayExists((part, x) -> part = 'storage' AND isNull(x), `charges.component`, `charges.cost`)
            + 16 * arrayExists((part, x) -> part = 'telemetry' AND isNull(x), `charges.component`, `charges.cost`)
            + 32 * arrayExists((part, x) -> part = 'overhead' AND isNull(x), `charges.component`, `charges.cost`),
            0)
        COMMENT 'Components with a charge without a price, in bits as in priced_parts' CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS `machines.meter` Array(LowCardinality(String)) MATERIALIZED
        arrayFilter((each, part) -> part = 'compute', `charges.meter`, `charges.component`)
        COMMENT 'Charges of the component compute alone: meter' CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS `machines.quantity` Array(Decimal(38, 9)) MATERIALIZED
        arrayFilter((each, part) -> part = 'compute', `charges.quantity`, `charges.component`)
        COMMENT 'Charges of the component compute alone: quantity' CODEC(GCD, ZSTD(1)),
    ADD COLUMN IF NOT EXISTS `machines.cost` Array(Nullable(Decimal(38, 12))) MATERIALIZED
        arrayFilter((each, part) -> part = 'compute', `charges.cost`, `charges.component`)
        COMMENT 'Charges of the component compute alone: cost' CODEC(GCD, ZSTD(1)),
    ADD COLUMN IF NOT EXISTS model_cost Decimal(38, 12) ALIAS
        if(bitTest(priced_parts, 0) AND isNotNull(cost),
           assumeNotNull(cost) - compute_cost - network_cost - storage_cost - telemetry_cost - overhead_cost,
           toDecimal128(0, 12))
        COMMENT 'What charges of the component model add to cost; 0 also where the row has no cost';
