-- What a charge costs follows from its quantity and unit price, but for tiers, least quantities and a rounding here and
-- there. So what is stored of charges.cost is by how much it differs: mostly 0, which takes no room, where costs took 7
-- of 50 bytes of a row. From the next migration on charges.cost is computed from that when it is read, to the last
-- digit; here rows that are there get it. While this runs, and if it breaks off, the ledger reads and takes rows as
-- before.
--
-- charges.linear may be any function of the three columns that gives the same for ever, whatever they hold: whole
-- numbers of 128 bits that wrap round, no floats, divisors that are never 0. What it does not foresee (a `per` that is
-- not listed, a product beyond 128 bits, a half that is rounded to even) makes a residual larger and no cost wrong.
ALTER TABLE ledger
    ADD COLUMN IF NOT EXISTS `charges.linear` Array(Int128) ALIAS arrayMap(
        (quantity, price, size) -> intDiv(
            intDiv(reinterpret(quantity, 'Int128') * reinterpret(ifNull(price, toDecimal128(0, 18)), 'Int128')
                   + 500000000000000 * size, 1000000000000000),
            size),
        `charges.quantity`,
        `charges.unit_price`,
        arrayMap(
            per -> toInt128(transform(
                per,
                ['1000000 token', '1000 token', '1000 token-second', '1000000 token-second',
                 '1000 request', '1000000 request', '1000 character', '1000000 character',
                 '1000 image', '1000000 image', '1000 page', '1000000 page', '1000 second',
                 '1000000 second', '1000 search unit', '1000000 search unit', '1000 search',
                 '1000000 search', '1000 fetch', '1000000 fetch', '1000 session', '1000000 session',
                 '1000 call', '1000000 call', '1000 unit-second', '1000000 unit-second',
                 '1000 byte-second', '1000000 byte-second', '1000 byte', '1000000 byte',
                 '1000 read', '1000000 read', '1000 write', '1000000 write', '1000 query',
                 '1000000 query', '1 token-hour', '1 minute', '1 hour', '1 unit-hour',
                 '1 GB-second', '1 GiB-second', '1 GB-hour', '1 GiB-hour', '1 GB-month',
                 '1 GiB-month', '1 KB', '1 MB', '1 GB', '1 TB', '1 KiB', '1 MiB', '1 GiB', '1 TiB',
                 '2 hour', '2 unit-hour', '4 hour', '4 unit-hour', '8 hour', '8 unit-hour'],
                [1000000, 1000, 1000, 1000000, 1000, 1000000, 1000, 1000000, 1000, 1000000, 1000,
                 1000000, 1000, 1000000, 1000, 1000000, 1000, 1000000, 1000, 1000000, 1000, 1000000,
                 1000, 1000000, 1000, 1000000, 1000, 1000000, 1000, 1000000, 1000, 1000000, 1000,
                 1000000, 1000, 1000000, 3600, 60, 3600, 3600, 1000000000, 1073741824,
                 3600000000000, 3865470566400, 2628000000000000, 2821793513472000, 1000, 1000000,
                 1000000000, 1000000000000, 1024, 1048576, 1073741824, 1099511627776, 7200, 7200,
                 14400, 14400, 28800, 28800],
                1)),
            `charges.per`))
        COMMENT '10^-12 USD: quantity times unit price, which charges.cost mostly is; 0: no unit price'
        AFTER `charges.per`,
    ADD COLUMN IF NOT EXISTS `charges.residual` Array(Nullable(Decimal(38, 12))) DEFAULT arrayMap(
        (usd, linear) -> reinterpret(reinterpret(usd, 'Int128') - linear, 'Decimal(38, 12)'),
        `charges.cost`, `charges.linear`)
        COMMENT 'USD that charges.cost is above charges.linear, mostly 0; NULL: no price' CODEC(ZSTD(1))
        AFTER `charges.linear`,
    -- So that the next statement always finds one to remove.
    MODIFY COLUMN `charges.cost` Array(Nullable(Decimal(38, 12))) CODEC(ZSTD(1));

-- A column that is computed may have none.
ALTER TABLE ledger MODIFY COLUMN `charges.cost` REMOVE CODEC;

-- Another process may be in the middle of an insert that knows nothing of the new column, and its rows would come after
-- the next statement has looked. Such an insert is ended and waited for; who sent it sends it again. Those of other
-- databases are nobody's business here; those of other accounts take the right to end them.
KILL QUERY WHERE query_kind = 'Insert' AND current_database = currentDatabase()
    AND query ILIKE 'INSERT INTO%ledger%' SYNC;

-- Reads the charges of all rows and writes the one column; `schema migrate` waits for it. Again it changes nothing.
ALTER TABLE ledger MATERIALIZE COLUMN `charges.residual` SETTINGS mutations_sync = 0;
