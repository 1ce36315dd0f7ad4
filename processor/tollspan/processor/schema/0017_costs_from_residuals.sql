-- charges.cost is computed when it is read (0016). Rows are inserted with charges.given_cost, of which the residual is
-- kept. One statement, so that at no time a cost is neither stored nor computed: a process of an older version that
-- still names charges.cost in an insert is refused from here on, and waits until it is upgraded.
--
-- What old parts hold of charges.cost goes when they are merged; `OPTIMIZE TABLE ledger FINAL` does it at once.
ALTER TABLE ledger
    ADD COLUMN IF NOT EXISTS `charges.given_cost` Array(Nullable(Decimal(38, 12)))
        EPHEMERAL CAST([], 'Array(Nullable(Decimal(38, 12)))')
        COMMENT 'Only for INSERT: USD, what charges.cost then is; NULL: no price' AFTER `charges.cost`,
    MODIFY COLUMN `charges.residual` Array(Nullable(Decimal(38, 12))) DEFAULT arrayMap(
        (usd, linear) -> reinterpret(reinterpret(usd, 'Int128') - linear, 'Decimal(38, 12)'),
        `charges.given_cost`, `charges.linear`),
    MODIFY COLUMN `charges.cost` Array(Nullable(Decimal(38, 12))) ALIAS arrayMap(
        (residual, linear) -> reinterpret(reinterpret(residual, 'Int128') + linear, 'Decimal(38, 12)'),
        `charges.residual`, `charges.linear`);
