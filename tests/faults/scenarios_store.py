"""Faults of the store: away, slow, refusing for every reason there is, changed by somebody, dying after the commit."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from world import Figures, World

from tollspan.processor.sqlfront import Fault

_PART: Final = re.compile(r"\.[01]:")
"""In the token of a part of a batch that the pipeline divided."""

REFUSALS: Final = {
    "too many parts": 252,
    "memory limit": 241,
    "table read-only": 242,
    "user read-only": 164,
    "login refused": 516,
    "access denied": 497,
    "disk full": 243,
}
"""What a server says while it takes nothing, by ClickHouse's code."""


Trouble = tuple[str, Callable[[], None], Callable[[], None]]
"""Its name, what begins it, and what ends it."""


def _through(world: World, fault: str, troubles: Sequence[Trouble], hold_s: float) -> Figures:
    """Spans before, in and after each trouble; those in it are acknowledged while it lasts."""
    line = world.line()
    clients = world.clients(line)
    clients.all(world.generator.batches(6))
    world.landed()
    recoveries = []
    for name, begin, end in troubles:
        begin()
        began = time.monotonic()
        clients.all(world.generator.batches(20))
        # Longer than a batch waits, and than it is tried before a pipeline may think that it is to blame.
        while time.monotonic() - began < hold_s:
            clients.all(world.generator.batches(2))
            time.sleep(0.2)
        assert not world.account.refusals, f"refused while the store was in trouble ({name}): {world.account.refusals}"
        end()
        clients.all(world.generator.batches(6))
        recoveries.append(world.landed())
    figures = world.finish(fault, len(troubles), max(recoveries), "acks went on all the while")
    changed = [token for token, bodies in world.database.bodies.items() if len(bodies) > 1]
    figures.problems += [f"tried again with other rows under one token: {len(changed)}"] if changed else []
    divided = [token for token in world.database.bodies if _PART.search(token)]
    figures.problems += [f"{len(divided)} inserts of divided batches, for a fault of the store's"] if divided else []
    set_aside = world.stats["pipeline.set_aside"]
    figures.problems += [f"{set_aside} requests set aside for a fault of the store's"] if set_aside else []
    return figures


def _away(world: World) -> Trouble:
    return "away", world.database.down, world.database.up


def _slow(world: World) -> Trouble:
    answered = threading.Event()

    def end() -> None:
        world.database.heals()
        answered.set()

    return "slow", lambda: world.database.fails(Fault(until=answered)), end


def _refusing(world: World, reason: str) -> Trouble:
    def begin() -> None:
        # A refused login is refused whatever is asked.
        world.database.everything = reason == "login refused"
        world.database.fails(Fault(code=REFUSALS[reason], message=reason))

    return reason, begin, world.database.heals


def _column_removed(world: World) -> Trouble:
    change = world.database.execute
    return (
        "a column removed",
        lambda: change("ALTER TABLE {db}.ledger DROP COLUMN variant"),
        lambda: change("ALTER TABLE {db}.ledger ADD COLUMN variant LowCardinality(String) AFTER workflow"),
    )


def _columns_added(world: World) -> Trouble:
    def change() -> None:
        for table, kind in (
            ("ledger", "String"),
            ("spans", "String"),
            ("traces", "SimpleAggregateFunction(max, String)"),
        ):
            world.database.execute(f"ALTER TABLE {{db}}.{table} ADD COLUMN `cost centre` {kind} FIRST")
            world.database.execute(f"ALTER TABLE {{db}}.{table} ADD COLUMN `cost center` {kind}")

    return "columns added", change, lambda: None


def _table_renamed(world: World) -> Trouble:
    change = world.database.execute
    return (
        "the table renamed",
        lambda: change("RENAME TABLE {db}.ledger TO {db}.ledger_old"),
        lambda: change("RENAME TABLE {db}.ledger_old TO {db}.ledger"),
    )


def away(world: World, long: bool) -> Figures:
    """The server is gone, and comes back at the same address."""
    hold = 600.0 if long else 1.5
    return _through(world, f"store away {hold:g} s", [_away(world)], hold)


def slow(world: World, long: bool) -> Figures:
    """Inserts hang."""
    hold = 30.0 if long else 2.0
    return _through(world, f"store slow {hold:g} s", [_slow(world)], hold)


def refusing(reason: str, world: World, long: bool) -> Figures:
    """The server answers every insert with one error; a refused login, every statement."""
    return _through(world, f"store refuses: {reason}", [_refusing(world, reason)], 20.0 if long else 1.6)


def drifting(change: Callable[[World], Trouble], world: World, long: bool) -> Figures:
    """Somebody changes the tables, and somebody puts them back."""
    trouble = change(world)
    return _through(world, f"schema drift: {trouble[0]}", [trouble], 20.0 if long else 1.6)


def trouble_after_trouble(world: World, long: bool) -> Figures:
    """All of these, one after the other, in the life of one process."""
    troubles = [_away(world), _slow(world), *(_refusing(world, reason) for reason in REFUSALS)]
    troubles += [_column_removed(world), _columns_added(world), _table_renamed(world)]
    if long:
        world.generator.chance.shuffle(troubles)
    return _through(world, "store away, slow, refusing, its tables changed, in turn", troubles, 5.0 if long else 1.2)


def dying_after_commit(world: World, long: bool) -> Figures:
    """Inserts are committed and their replies never come."""
    times = 30 if long else 6
    line = world.line()
    clients = world.clients(line)
    for _ in range(times):
        world.database.fails(Fault(drop="after"), times=1 + world.generator.chance.randrange(2))
        met = world.database.refused
        clients.all(world.generator.batches(4))
        world.until(lambda met=met: world.database.refused > met, "an insert")
    recovery = world.landed()
    times = world.database.refused
    twice = world.query("SELECT count() - uniqExact(span_id) AS n FROM {db}.ledger")["n"][0].as_py()
    figures = world.finish("store dies after commit, before reply", times, recovery)
    # Without FINAL: the token alone has to keep the second insert out.
    figures.problems += [f"{twice} rows were inserted twice"] if twice else []
    return figures


def past_the_window(world: World, long: bool) -> Figures:
    """Killed with batches inserted and not released, and restarted when the store has forgotten their tokens."""
    line = world.line(wait_s=600)
    clients = world.clients(line)
    roots = [[*batch, world.generator.plain()] for batch in world.generator.batches(20)]
    clients.all(roots)
    world.landed()
    world.kill(line)
    if long:
        # The default window is of 1,000 inserts: as many more, of somebody else's rows that are taken out again.
        columns = "start_time, trace_id, span_id, service"
        for number in range(1100):
            world.database.execute(
                f"INSERT INTO {{db}}.ledger ({columns}) SELECT now64(9), unhex('00'), unhex('00'), 'other{number}'"
            )
        delete = "DELETE WHERE startsWith(service, 'other') SETTINGS mutations_sync = 2"
        world.database.execute(f"ALTER TABLE {{db}}.ledger {delete}")
    else:
        world.database.execute("ALTER TABLE {db}.ledger MODIFY SETTING non_replicated_deduplication_window = 0")
    line.options = [*line.options[:2], "--decision-wait", "0"]
    began = time.monotonic()
    line.start()
    clients.all(world.generator.batches(4))
    world.landed()
    return world.finish("restart past the deduplication window", 1, time.monotonic() - began)


def poisoned_rows(world: World, long: bool) -> Figures:
    """The store refuses every insert with certain spans in it: only these stay out, and a person can read them."""
    line = world.line()
    clients = world.clients(line)
    bad = [
        world.generator.call(status="", more={"tollspan.tenant": "poisoned"}) for _ in range(60 if long else 3)
    ]  # in the account they have no row
    world.database.poison = b"poisoned"
    batches = list(world.generator.batches(100 if long else 10))
    for call in bad:
        world.generator.chance.choice(batches).append(call)
    clients.all(batches)
    recovery = world.landed(300)
    figures = world.finish("rows that the store refuses among others", len(bad), recovery, bodies=False)
    aside = world.stats["pipeline.set_aside"]
    figures.problems += [] if aside == len(bad) else [f"{aside} set aside, not {len(bad)}"]
    figures.note = f"{aside} spans in quarantine, the others of their requests billed"
    return figures


EACH: Final = [
    away,
    slow,
    *(partial(refusing, reason) for reason in REFUSALS),
    *(partial(drifting, change) for change in (_column_removed, _columns_added, _table_renamed)),
]
"""One trouble in the life of one process: for the long form."""

ALL: Final = [trouble_after_trouble, dying_after_commit, past_the_window, poisoned_rows]
