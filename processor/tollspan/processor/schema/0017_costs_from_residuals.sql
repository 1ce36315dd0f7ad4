-- charges.cost is computed when it is read (0016). Rows are inserted with charges.given_cost, of which the residual is
-- kept. One statement, so that at no time a cost is neither stored nor computed: a process of an older version that
-- still names charges.cost in an insert is refused from here on, and waits until it is upgraded.
ALTER TABLE ledger
    ADD COLUMN IF NOT EXISTS `charges.given_cost` Array(Nullable(Decimal(38, 12)))
        EPHEMERAL CAST([], 'Array(Nullable(Decimal(38, 12)))')
        COMMENT 'Only for INSERT: USD, what charges.cost then is; NULL: no price' AFTER `charges.cost`,
    MODIFY COLUMN `charges.residual` Array(Nullable(Decimal(38, 12))) DEFAULT arrayMap(
        (usd, linear) -> reinterpret(reinterpret(usd, 'Int128') - linear, 'Decimal(38, 12)'),
        `charges.given_cost`, `charges.linear`),
    MODIFY COLUMN `charges.cost` Array(Nullable(Decimal(38, 12))) ALIAS arrayMap(
        (residual, linear) -> reinterpret(reinterpret(residual, 'Int128') + linear, 'Decimal(38, 12)'),
        `charges.residual`, `charges.linear`),
    -- The same as in 0015 by what is stored: a residual is NULL where the cost is.
    MODIFY COLUMN priced_parts UInt8 MATERIALIZED
        if(has(`charges.residual`, NULL),
          1 * arrayExists((part, x) -> part = 'model' AND isNotNull(x), `charges.component`, `charges.residual`)
          + 2 * arrayExists((part, x) -> part = 'compute' AND isNotNull(x), `charges.component`, `charges.residual`)
          + 4 * arrayExists((part, x) -> part = 'network' AND isNotNull(x), `charges.component`, `charges.residual`)
          + 8 * arrayExists((part, x) -> part = 'storage' AND isNotNull(x), `charges.component`, `charges.residual`)
          + 16 * arrayExists((part, x) -> part = 'telemetry' AND isNotNull(x), `charges.component`, `charges.residual`)
          + 32 * arrayExists((part, x) -> part = 'overhead' AND isNotNull(x), `charges.component`, `charges.residual`),
          1 * has(`charges.component`, 'model')
          + 2 * has(`charges.component`, 'compute')
          + 4 * has(`charges.component`, 'network')
          + 8 * has(`charges.component`, 'storage')
          + 16 * has(`charges.component`, 'telemetry')
          + 32 * has(`charges.component`, 'overhead')),
    MODIFY COLUMN open_parts UInt8 MATERIALIZED
        if(has(`charges.residual`, NULL),
          1 * arrayExists((part, x) -> part = 'model' AND isNull(x), `charges.component`, `charges.residual`)
          + 2 * arrayExists((part, x) -> part = 'compute' AND isNull(x), `charges.component`, `charges.residual`)
          + 4 * arrayExists((part, x) -> part = 'network' AND isNull(x), `charges.component`, `charges.residual`)
          + 8 * arrayExists((part, x) -> part = 'storage' AND isNull(x), `charges.component`, `charges.residual`)
          + 16 * arrayExists((part, x) -> part = 'telemetry' AND isNull(x), `charges.component`, `charges.residual`)
          + 32 * arrayExists((part, x) -> part = 'overhead' AND isNull(x), `charges.component`, `charges.residual`),
          0);

-- What parts hold of charges.cost goes; residuals that are stored stay as they are (from ClickHouse 24.2 on).
ALTER TABLE ledger MATERIALIZE COLUMN `charges.residual` SETTINGS mutations_sync = 0;
