"""Faults of senders: what comes twice, late, out of order, from wrong clocks, at other prices, in one huge trace."""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import replace
from typing import Final

from line import Line
from oracle import BOOK, DEARER, NOW, Account, Call, regrouped
from scenarios_crash import families
from world import Figures, World

from tollspan.processor.missing import missing_rollups, roll_up

DAY_NS: Final = 86_400 * 10**9
HOUR_NS: Final = 3_600 * 10**9
RELOADED: Final = "tollspan_prices_reloaded_total"


def sent_twice(world: World, long: bool) -> Figures:
    """Every request three times: as it was, and regrouped into others; also over a restart."""
    line = world.line()
    clients = world.clients(line)
    batches = list(world.generator.batches(200 if long else 15))
    clients.all(batches)
    clients.all(batches)
    clients.all(regrouped(batches, world.generator.chance, 17))
    world.kill(line)
    line.start()
    clients.all(regrouped(batches, world.generator.chance, 61))
    recovery = world.landed()
    return world.finish("sent four times, regrouped, over a kill", 4, recovery)


def other_content(world: World, long: bool) -> Figures:
    """The same ids with other content: the first that was acknowledged stays."""
    line = world.line()
    clients = world.clients(line)
    batches = [[world.generator.call() for _ in range(40)] for _ in range(50 if long else 5)]
    clients.all(batches)
    world.landed()
    others = Account()
    again = [[replace(call, tokens=(call.tokens[0] * 2, 7)) for call in batch if call.tokens] for batch in batches]
    for batch in again:
        # Sent past the account: what it expects is the first.
        assert not clients.by_grpc(batch).code
    others.send(call for batch in again for call in batch)
    clients.all([[world.generator.call()]])
    recovery = world.landed()
    figures = world.finish("same ids, other content", len(others.sent), recovery)
    counted = world.stats["recent.conflicts"]
    figures.problems += [] if counted == len(others.sent) else [f"{counted} conflicts counted, not {len(others.sent)}"]
    figures.note = f"{counted} counted as conflicts; the first stays"
    return figures


def out_of_order(world: World, long: bool) -> Figures:
    """Children before parents in other requests, spans an hour late, traces whose root never comes."""
    line = world.line(keep=0.5, wait_s=0.3)
    clients = world.clients(line)
    chance = world.generator.chance
    calls: list[Call] = []
    for number, batch in enumerate(world.generator.batches(150 if long else 12)):
        late = HOUR_NS * (number % 3)
        calls += [replace(c, start_ns=c.start_ns - late, end_ns=c.end_ns - late) for c in batch]
    # Of every seventh trace the root stays away.
    calls = [call for call in calls if call.parent or call.trace % 7]
    clients.all(regrouped([calls], chance, 25))
    world.landed()
    late_ones = [world.generator.call(call.trace, call.span) for call in calls[::9]]
    time.sleep(1.0)
    clients.all(regrouped([late_ones], chance, 25))
    recovery = world.landed()
    figures = world.finish("out of order, an hour late, rootless", recovery_s=recovery, bodies=False)
    whole = "SELECT TraceId, count() AS n, uniqExact(KeepReason, SamplingThreshold) AS fates FROM {db}.spans FINAL"
    kept = {int(row["TraceId"], 16): row for row in world.query(whole + " GROUP BY TraceId").to_pylist()}
    sent = Counter(call.trace for call in world.account.sent.values())
    errors = [call for call in world.account.sent.values() if call.failed]
    # An error that comes when its trace is decided is kept, whatever chance said of the rest that came before it.
    others = kept.keys() - {call.trace for call in errors}
    several = [trace for trace in others if kept[trace]["fates"] > 1]
    figures.problems += [f"{len(several)} traces were decided twice"] if several else []
    parts = [trace for trace in others if kept[trace]["n"] != sent[trace]]
    figures.problems += [f"{len(parts)} traces were kept in part"] if parts else []
    lost = {call.span for call in errors} - world.bodies()
    figures.problems += [f"{len(lost)} errors have no body"] if lost else []
    late = sum(kept[trace]["n"] != sent[trace] or kept[trace]["fates"] > 1 for trace in kept.keys() - others)
    figures.note = f"{len(kept):,} of {len(sent):,} traces kept, each whole"
    figures.note += f" but for {late} of which an error came late; every error kept" if late else ""
    return figures


def later_than_remembered(world: World, long: bool) -> Figures:
    """Children that come when their parents are forgotten: billed beside them, until `reconcile --repair`."""
    line = world.line("--recent-window", "1s", "--sampling-decision-timeout", "0.5s")
    clients = world.clients(line)
    times = 10 if long else 1
    for _ in range(times):
        traces = [trace for batch in world.generator.batches(8) for trace in families(batch)]
        clients.all([[call for trace in traces for call in trace[:2]]])
        world.landed()
        time.sleep(1.2)
        # What was there before is forgotten when something else comes.
        clients.all(world.generator.batches(1))
        world.landed()
        clients.all([[call for trace in traces for call in trace[2:]]])
        world.landed()
    world.until(line.released, "kept spans in the store")
    with world.database.opened() as store:
        missing = missing_rollups(store, None, None)
        repaired, left = roll_up(store, missing)
    figures = world.finish("children later than what is remembered", times)
    figures.problems += [] if repaired and not left else [f"{repaired} repaired, {left} left"]
    figures.note = f"{repaired} calls were billed beside their children until `reconcile --repair`"
    return figures


def one_trace(world: World, long: bool) -> Figures:
    """One trace of very many spans, deep and wide, that goes on while it is being written."""
    size = 1_000_000 if long else 50_000
    line = world.line()
    clients = world.clients(line, lanes=4)
    root = world.generator.plain()
    parent = root
    batch = [root]
    flights = []
    for number in range(size - 1):
        # A chain of plain spans a thousand deep, and under each link calls.
        if number % (size // 1000) == 0:
            parent = world.generator.plain(root.trace, parent.span)
            batch.append(parent)
        else:
            batch.append(world.generator.call(root.trace, parent.span))
        if len(batch) >= 2000:
            flights.append(clients.offer(batch))
            batch = []
            if len(flights) > 8:
                assert flights.pop(0).result()
    flights.append(clients.offer(batch))
    assert all(flight.result() for flight in flights)
    recovery = world.landed(600)
    return world.finish(f"one trace of {size:,} spans", recovery_s=recovery)


def wrong_clocks(world: World, long: bool) -> Figures:
    """Clocks a day off, and times that cannot be, beside good spans in one request."""
    line = world.line()
    clients = world.clients(line)
    now = time.time_ns()
    make = world.generator.call
    times = 100 if long else 5
    for _ in range(times):
        odd = [
            make(start_ns=now - DAY_NS, end_ns=now - DAY_NS + 10**9),
            make(start_ns=now + DAY_NS - 60 * 10**9, end_ns=now + DAY_NS),
            make(start_ns=0, end_ns=0, status="invalid"),
            make(start_ns=2**63, end_ns=2**63 + 5, status="invalid"),
            make(start_ns=2**64 - 1, end_ns=2**64 - 1, status="invalid"),
            make(start_ns=NOW, end_ns=NOW - 1, status="invalid"),
            make(start_ns=NOW, end_ns=0, status="invalid"),
            make(start_ns=now + 3 * DAY_NS, end_ns=now + 3 * DAY_NS + 1, status="invalid"),
            make(start_ns=1, end_ns=NOW),
        ]
        clients.all([[*odd, *world.generator.trace()]])
    recovery = world.landed()
    return world.finish("clock skew of a day, zero and absurd times", times * 9, recovery)


def other_prices(world: World, long: bool) -> Figures:
    """The price book changes while spans come; each has the prices of one book, and what is sent again its first."""
    world.account.books = (BOOK, DEARER)
    line = world.line()
    clients = world.clients(line)
    first = list(world.generator.batches(10))
    clients.all(first)
    world.landed()
    swaps = 10 if long else 2
    for number in range(swaps):
        flights = [clients.offer(batch) for batch in world.generator.batches(30)]
        swap(line, (DEARER, BOOK)[number % 2].yaml())
        flights += [clients.offer(batch) for batch in world.generator.batches(30)]
        assert all(flight.result() for flight in flights)
        world.until(lambda done=number + 1: line.metrics().get(RELOADED, 0) >= done, "reload")
        clients.all(world.generator.batches(2))
        # Priced when their turn comes: not after the next swap.
        world.landed()
    clients.all(first)
    recovery = world.landed()
    figures = world.finish("price book swapped mid-stream", swaps, recovery)
    dear = sum("oracle@2" in row[2] for row in world.ledger().values())
    again = {call.span for batch in first for call in batch} & set(world.ledger())
    moved = sum("oracle@1" not in world.ledger()[span][2] for span in again)
    figures.problems += [f"{moved} spans took another price when they came again"] if moved else []
    figures.problems += [] if dear else ["no span has the new price"]
    figures.note = f"{dear:,} rows at the new prices"
    return figures


def swap(line: Line, book: str) -> None:
    """Put another book in the place of the one in use, as editors do."""
    draft = line.book.with_suffix(".new")
    draft.write_text(book)
    draft.replace(line.book)
    assert line.process is not None
    line.process.send_signal(signal.SIGHUP)


ALL: Final = [sent_twice, other_content, out_of_order, later_than_remembered, one_trace, wrong_clocks, other_prices]
