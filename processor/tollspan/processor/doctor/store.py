"""The store: reachable, of a version that is known to work, with the rights, tables and room that it needs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from tollspan.processor.config import Config, Places
from tollspan.processor.doctor.finding import FAIL, WARN, Finding, fail, ok, skip, warn
from tollspan.processor.doctor.live import Live
from tollspan.processor.errors import ConfigError, StoreError, StoreUnavailable, TollspanError
from tollspan.processor.schema import SCHEMAS, migrations
from tollspan.processor.store import Embedded, Reader, connect_for_query, locate

if TYPE_CHECKING:
    from tollspan.processor.doctor import Asked

OLDEST: Final = (25, 8)
"""ClickHouse versions before this were never tried."""
PARTS_WARN: Final = 1000
PARTS_FAIL: Final = 2700
"""Active parts of one partition; from 3,000 on (``parts_to_throw_insert``) inserts are refused."""
SKEW_WARN_S: Final = 2.0
SKEW_FAIL_S: Final = 60.0
RIGHTS: Final = ("SELECT", "INSERT", "CREATE TABLE", "ALTER TABLE")


def store(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """Everything about the store."""
    url = config.get(Places).store
    try:
        where = locate(url)
        reader = connect_for_query(url)
    except ConfigError as error:
        yield fail("store.url", error.message, error.hint)
        return
    except StoreUnavailable as error:
        do = error.hint or "Start it, or fix store; spans wait in the journal meanwhile."
        yield fail("store.reach", error.message, do)
        return
    except StoreError as error:
        if isinstance(where, Embedded) and not where.engine.exists():
            yield ok("store.reach", f"{where.url} does not exist yet; the service makes it.")
        else:
            yield fail("store.reach", error.message, error.hint or "The store says why.")
        return
    with reader:
        version = str(reader.rows("SELECT version() AS v")[0]["v"])
        yield ok("store.reach", f"{where.url} answers (ClickHouse {version}).")
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers < OLDEST:
            said = f"ClickHouse {version} is older than any version that was tried ({'.'.join(map(str, OLDEST))})."
            yield warn("store.version", said, "Upgrade it.")
        for check in (_migrations, _columns, _settings, _rights, _parts, _disks):
            try:
                yield from check(reader, isinstance(where, Embedded))
            except (TollspanError, KeyError) as error:
                name = check.__name__.strip("_")
                said = f"It could not be looked at: {str(error).rstrip('.')}."
                yield skip(f"store.{name}", said, "Let this user read the system tables.")


def _migrations(reader: Reader, embedded: bool) -> Iterator[Finding]:
    if not reader.rows("SELECT 1 FROM system.tables WHERE database = currentDatabase() AND name = 'schema_migrations'"):
        yield ok("store.migrations", "No tables yet; the service makes them.")
        return
    applied = {
        int(row["version"]): str(row["checksum"])
        for row in reader.rows("SELECT version, checksum FROM schema_migrations FINAL ORDER BY version")
    }
    wanted = {each.version: each for each in migrations()}
    newer = sorted(applied.keys() - wanted.keys())
    edited = [str(each) for number, each in wanted.items() if applied.get(number, each.checksum) != each.checksum]
    missing = [str(each) for number, each in wanted.items() if number not in applied]
    if newer:
        yield fail("store.migrations", f"A newer Tollspan made these tables (migration {newer[-1]}).", "Upgrade.")
    elif edited:
        yield fail("store.migrations", f"{edited[0]} was applied with another text.", "Install the right version.")
    elif missing:
        yield warn("store.migrations", f"{len(missing)} to be applied: {', '.join(missing)}.", "Restart the service.")
    else:
        yield ok("store.migrations", f"All {len(wanted)} are applied.")


def _columns(reader: Reader, embedded: bool) -> Iterator[Finding]:
    """Columns that somebody removed; more of them harm nobody."""
    if reader.rows("SELECT max(version) AS v FROM schema_migrations FINAL")[0]["v"] != migrations()[-1].version:
        return  # what a migration adds is not there before it
    there: dict[str, set[str]] = {}
    for row in reader.rows("SELECT table, name FROM system.columns WHERE database = currentDatabase()"):
        there.setdefault(str(row["table"]), set()).add(str(row["name"]))
    for table, schema in SCHEMAS.items():
        if table in there and (gone := sorted(set(schema.names) - there[table])):
            yield fail(
                "store.columns",
                f"{table} lacks {', '.join(gone)}: inserts are refused.",
                "Somebody altered it: add them again with the types of the migrations.",
            )
            return
    if "ledger" in there:
        yield ok("store.columns", "The tables have the columns that are written.")


def _settings(reader: Reader, embedded: bool) -> Iterator[Finding]:
    rows = reader.rows(
        "SELECT name, create_table_query AS made FROM system.tables"
        " WHERE database = currentDatabase() AND name IN ('ledger', 'traces', 'spans')"
    )
    without = [str(row["name"]) for row in rows if "deduplication_window" not in str(row["made"])]
    replicated = [str(row["name"]) for row in rows if "Replicated" in str(row["made"])]
    if without and set(without) - set(replicated):
        yield fail(
            "store.deduplication",
            f"{', '.join(without)} do not remember inserts: a retry is a second insert.",
            "ALTER TABLE … MODIFY SETTING non_replicated_deduplication_window = 1000",
        )
    elif rows:
        yield ok("store.deduplication", "Inserts that are repeated count once.")


def _rights(reader: Reader, embedded: bool) -> Iterator[Finding]:
    if embedded:
        return
    lacking = []
    for right in RIGHTS:
        try:
            found = reader.rows(f"CHECK GRANT {right} ON *")
        except StoreError:
            yield skip("store.rights", "This ClickHouse cannot tell what its user may do.")
            return
        if not all(next(iter(row.values())) for row in found):
            lacking.append(right)
    if lacking:
        said = f"The store's user may not {', '.join(lacking)}."
        yield fail("store.rights", said, f"GRANT {', '.join(lacking)} ON database.* TO user")
    else:
        yield ok("store.rights", f"Its user may {', '.join(RIGHTS)}.")


def _parts(reader: Reader, embedded: bool) -> Iterator[Finding]:
    rows = reader.rows(
        "SELECT table, partition, count() AS parts FROM system.parts"
        " WHERE active AND database = currentDatabase() GROUP BY table, partition ORDER BY parts DESC LIMIT 1"
    )
    if not rows:
        return
    most: dict[str, Any] = rows[0]
    said = f"{most['table']} has up to {most['parts']:,} parts in a partition."
    if most["parts"] >= PARTS_FAIL:
        yield fail("store.parts", said, "Merges do not keep up: inserts are about to be refused. Give it CPU.")
    elif most["parts"] >= PARTS_WARN:
        yield warn("store.parts", said, "Merges do not keep up: see system.merges, its CPU and its disk.")
    else:
        yield ok("store.parts", said)


def _disks(reader: Reader, embedded: bool) -> Iterator[Finding]:
    for row in reader.rows("SELECT name, free_space AS free, total_space AS total FROM system.disks"):
        free, total = int(row["free"]), int(row["total"])
        if total and free < 0.1 * total:
            status = FAIL if free < 0.02 * total or free < 1 << 30 else WARN
            said = f"Disk {row['name']} of the store has {100 * free / total:.0f} % free."
            yield Finding("store.disk", status, said, "Make room, or let old spans go: ALTER TABLE spans MODIFY TTL.")


def clock(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """Whether this machine's clock is right, as far as the store's tells."""
    if time.time() < 1_735_689_600:
        yield fail("clock.date", f"This machine says it is {time.strftime('%Y-%m-%d')}.", "Set its clock.")
        return
    try:
        where = locate(config.get(Places).store)
        if isinstance(where, Embedded):
            yield ok("clock.date", f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}.")
            return
        with connect_for_query(config.get(Places).store) as reader:
            before = time.time()
            theirs = float(reader.rows("SELECT toUnixTimestamp64Milli(now64(3)) / 1000 AS t")[0]["t"])
            after = time.time()
    except TollspanError:
        yield skip("clock.skew", "The store does not answer, so there is no other clock to compare with.")
        return
    # The answer was made somewhere between; what lies outside of that is skew.
    skew = max(0.0, before - theirs, theirs - after)
    said = f"This clock and the store's are {skew:.1f} s apart."
    if skew > SKEW_FAIL_S:
        yield fail("clock.skew", said, "Synchronise both (NTP): prices and months go by these clocks.")
    elif skew > SKEW_WARN_S:
        yield warn("clock.skew", said, "Synchronise both (NTP).")
    else:
        yield ok("clock.skew", said)
