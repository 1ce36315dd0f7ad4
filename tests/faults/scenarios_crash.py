"""Faults of the service's own: killed at any moment, its journal damaged, its disk full, upgraded under load."""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import pytest
from line import Line
from oracle import Call, encode
from world import Figures, World

import tollspan.processor

RECORD_HEAD: Final = 28
"""Bytes before a payload in a segment of the journal."""

MIGRATION: Final = """
-- What a next version may bring: a column, another codec, a table of its own.
ALTER TABLE ledger ADD COLUMN IF NOT EXISTS pretended LowCardinality(String) DEFAULT 'as before' AFTER tenant;
ALTER TABLE ledger MODIFY COLUMN duration_ns UInt64 CODEC(Delta, ZSTD(3));
ALTER TABLE spans ADD COLUMN IF NOT EXISTS Pretended String;
CREATE TABLE IF NOT EXISTS pretended (name String) ENGINE = ReplacingMergeTree ORDER BY name;
"""


def kill_nine(world: World, long: bool) -> Figures:
    """kill -9 at random points under load: before and after the journal, in an insert, between insert and release."""
    return _killed(world, 100 if long else 10, "kill -9 under load")


def kill_nine_with_its_store(world: World, long: bool) -> Figures:
    """The same where the engine dies with the service."""
    return _killed(world, 50 if long else 3, "kill -9 under load, embedded store")


def _killed(world: World, kills: int, fault: str) -> Figures:
    chance = world.generator.chance
    line = world.line()
    clients = world.clients(line)
    recoveries = []
    for _ in range(kills):
        flights = []
        for batch in world.generator.batches(chance.randrange(4, 24)):
            # Some senders give up, so that not everything that is sent is acknowledged.
            clients.patience_s = 60.0 if chance.random() < 0.9 else 0.0
            flights.append(clients.offer(batch))
        time.sleep(chance.uniform(0.0, 0.7))
        world.kill(line)
        began = time.monotonic()
        line.start()
        recoveries.append(time.monotonic() - began)
        for flight in flights:
            flight.result()
    landed = world.landed()
    return world.finish(fault, kills, max(recoveries) + landed)


def families_parted(world: World, long: bool) -> Figures:
    """Agents and the calls below them on two sides of a kill -9, either first: each call is billed once."""
    line = world.line("--sampling-decision-timeout", "0.5s")
    clients = world.clients(line)
    kills = 20 if long else 2
    for _ in range(kills):
        traces = [trace for batch in world.generator.batches(8) for trace in families(batch)]
        above = [call for trace in traces for call in trace[:2]]
        below = [call for trace in traces for call in trace[2:]]
        first, second = (above, below) if world.generator.chance.random() < 0.5 else (below, above)
        clients.all([first])
        world.landed()
        world.until(line.released, "journal that has forgotten them")
        world.kill(line)
        line.start()
        clients.all([second])
        world.landed()
    return world.finish("parents and children on two sides of a kill -9", kills)


def families(batch: list[Call]) -> list[list[Call]]:
    """A request's traces, those with something below their second span."""
    traces: dict[int, list[Call]] = {}
    for call in batch:
        traces.setdefault(call.trace, []).append(call)
    return [trace for trace in traces.values() if len(trace) > 2 and trace[2].parent == trace[1].span]


def restarts(world: World, long: bool) -> Figures:
    """SIGTERM and a new start, again and again, while senders send."""
    times = 30 if long else 3
    line = world.line()
    clients = world.clients(line)
    recoveries = []
    for _ in range(times):
        flights = [clients.offer(batch) for batch in world.generator.batches(30)]
        time.sleep(world.generator.chance.uniform(0.1, 0.5))
        world.stop(line)
        began = time.monotonic()
        line.start()
        recoveries.append(time.monotonic() - began)
        assert all(flight.result() for flight in flights), world.account.refusals
    world.kills = 1  # a process that is gone cannot count what it is sent
    return world.finish("restart under load", times, max(recoveries) + world.landed())


def journal_damaged(world: World, long: bool) -> Figures:
    """Flipped bits in records, and a write that was cut short: what is whole is billed, what is not is counted."""
    line = world.line()
    clients = world.clients(line)
    rounds = 10 if long else 1
    damaged: list[list[Call]] = []
    for _ in range(rounds):
        world.database.down()
        batches = list(world.generator.batches(40))
        for batch in batches:
            assert clients.deliver(batch)
        world.kill(line)
        segment = max((line.folder / "journal").glob("segment-*.log"))
        content = bytearray(segment.read_bytes())
        for number, batch in enumerate(world.generator.chance.sample(batches[:-1:2], 4)):
            at = content.index(encode(batch))
            # In the payload, its CRC, its length, and the marker before all of these.
            content[at + (40, -6, -12, -26)[number]] ^= 1 << world.generator.chance.randrange(8)
            damaged.append(batch)
        last = encode(batches[-1])
        at = content.index(last)
        # The next record as a crash leaves it: its head, half of what it says, and no end mark.
        torn = content[at - RECORD_HEAD : at + len(last) // 2]
        segment.write_bytes(content[: at + len(last)] + torn)
        world.database.up()
        line.start()
        lost = {call.span for batch in damaged for call in batch}
        world.account.acked -= lost
        clients.all(world.generator.batches(3))
        world.landed()
        counted = line.metrics()
        world.stats["corrupt"] += int(counted.get("tollspan_journal_corrupt_records_total", 0))
        world.stats["torn"] += int(counted.get("tollspan_journal_torn_bytes_total", 0))
    figures = world.finish("journal with flipped bits and a torn tail", 5 * rounds, bodies=False)
    # A round's damaged records may be met again by a later start, until their segment is released.
    figures.problems += [] if world.stats["corrupt"] >= len(damaged) else [f"{world.stats['corrupt']} damaged counted"]
    figures.problems += [] if world.stats["torn"] else ["no torn bytes counted"]
    figures.note = f"{len(damaged)} damaged requests counted and kept aside, nothing else lost"
    return figures


def disk_full(world: World, long: bool) -> Figures:
    """The journal's disk fills up while the store is away; later there is room again."""
    mount = world.folder / "disk"
    mount.mkdir()
    size = 64 if long else 4
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(mount)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here: {made.stderr.strip()}")
    try:
        segment = f"{size // 4}MiB"
        return _full(world, world.line("--journal-segment-bytes", segment, journal=mount / "journal"), "disk full")
    finally:
        world.close()
        subprocess.run(["umount", "-l", str(mount)], check=False)


def journal_full(world: World, long: bool) -> Figures:
    """The journal reaches its cap while the store is away."""
    return _full(world, world.line("--journal-max-bytes", "64MiB" if long else "4MiB"), "journal at its cap")


def _full(world: World, line: Line, fault: str) -> Figures:
    clients = world.clients(line)
    clients.all(world.generator.batches(3))
    world.landed()
    world.database.down()
    flights: list[Future[bool]] = []

    def refused() -> bool:
        """Whether a request found no room; all have about the same size, so that a larger one finds none either."""
        return line.metrics().get('tollspan_receive_refused_total{reason="journal_full"}', 0) > 0

    def refused_or_idle() -> bool:
        return sum(not flight.done() for flight in flights) < 12 or refused()

    while not refused():
        heavy = {"app.context": "x" * 4000}
        flights += [clients.offer([world.generator.call(more=heavy) for _ in range(50)]) for _ in range(4)]
        world.until(refused_or_idle, "answer")
    # Whatever way it comes by: not stored, and when to come again.
    probe = [world.generator.call(more={"app.context": "x" * 4000}) for _ in range(100)]
    world.account.send(probe)
    for way, code in ((clients.by_grpc, "UNAVAILABLE"), (clients.by_http, "HTTP 503"), (clients.by_json, "HTTP 503")):
        reply = way(probe)
        assert reply.code == code, reply
        assert reply.again_s, f"{reply} does not say when to come again"
    world.until(lambda: not line.ready(), "sign at /readyz that nothing can be stored")
    world.database.up()
    began = time.monotonic()
    assert all(flight.result() for flight in flights), "not taken when there was room again"
    recovery = world.landed() + time.monotonic() - began
    return world.finish(fault, recovery_s=recovery)


def upgrade(world: World, long: bool) -> Figures:
    """Two services on one store; one after the other is upgraded to a version with a migration, under load."""
    times = 5 if long else 1
    lines = [world.line(), world.line()]
    clients = [world.clients(line, lanes=3) for line in lines]
    for number in range(times):
        code = _next_version(world.folder / f"version{number}", number)
        for upgraded in lines:
            flights = [each.offer(batch) for _ in range(25) for each in clients for batch in world.generator.batches(1)]
            upgraded.python = code
            world.stop(upgraded)
            upgraded.start()
            flights += [
                each.offer(batch) for _ in range(25) for each in clients for batch in world.generator.batches(1)
            ]
            assert all(flight.result() for flight in flights)
    recovery = world.landed()
    done = world.query("SELECT count() AS n FROM {db}.schema_migrations FINAL WHERE version >= 9000")["n"][0].as_py()
    world.kills = 1  # as with restarts
    figures = world.finish("upgrade with a migration under load", times * 2, recovery)
    figures.problems += [] if done == times else [f"{done} migrations were applied"]
    return figures


def _next_version(folder: Path, number: int) -> Path:
    """This version's code with one more migration."""
    package = folder / "tollspan" / "processor"
    shutil.copytree(Path(next(iter(tollspan.processor.__path__))), package)
    for earlier in range(number + 1):
        (package / "schema" / f"{9000 + earlier}_pretended.sql").write_text(MIGRATION)
    return folder


ALL: Final = [kill_nine, families_parted, restarts, journal_damaged, disk_full, journal_full, upgrade]
