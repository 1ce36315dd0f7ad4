"""Levels: figures that rules compare with, from a real store, in worlds small enough to count by hand."""

from __future__ import annotations

import json
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.processor.counters import Counters
from tollspan.processor.errors import StoreUnavailable
from tollspan.processor.queries import run
from tollspan.processor.sample import figures
from tollspan.processor.sample.conditions import Level
from tollspan.processor.sample.figures import Window
from tollspan.processor.sample.level_table import TABLE
from tollspan.processor.sample.levels import LAG, Figure, Levels
from tollspan.processor.sample.spans_seen import key_of
from tollspan.processor.sample.states import states
from tollspan.processor.schema import TRACES
from tollspan.processor.store import Reader, Store

# The tables forget after some days.
NOON = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
MINUTE = int(NOON.timestamp()) // 60
DOLLAR = 10**12

COST_BY_FEATURE = Level("trace_cost", "feature", "quantile", 60, 1, (0.5,))
SEEN_BY_MODEL = Level("seen", "model", "count", 24 * 60)

# -- figures -----------------------------------------------------------------------------------------------------------


def histogram(*values: int) -> Counter[int]:
    return Counter(map(figures.bucket, values))


@given(st.integers(1, 10**19))
def test_a_bucket_holds_what_falls_into_it(value: int) -> None:
    number = figures.bucket(value)
    slack = value // 10**12 + 1  # the scale is of doubles
    assert figures.lower(number) - slack <= value <= figures.upper(number) + slack
    assert figures.upper(number) <= 1.0201 * value + slack


def test_nothing_has_a_bucket_of_its_own() -> None:
    assert figures.bucket(0) == figures.bucket(-5) == figures.ZERO
    assert figures.upper(figures.ZERO) == 0
    assert figures.bucket(1) == 0


def near(value: int) -> Any:
    return pytest.approx(value, rel=0.021)


def test_percentiles_are_by_nearest_rank() -> None:
    values = [n * 1000 for n in range(1, 101)]
    assert figures.quantile(histogram(*values), 0.5) == near(50_000)
    assert figures.quantile(histogram(*values), 0.99) == near(99_000)
    assert figures.quantile(histogram(*values), 0.999) == near(100_000)
    assert figures.quantile(histogram(0, 0, 0, 7), 0.75) == 0
    # Whoever is at the level does not exceed it, whoever is three percent above it does.
    assert 99_000 <= figures.quantile(histogram(*values), 0.99) < 99_000 * 1.03


def test_the_highest_are_as_many_as_asked_for() -> None:
    values = [n * 1000 for n in range(1, 101)]
    level = figures.top(histogram(*values), 5)
    assert [value for value in values if value > level][-5:] == [96_000, 97_000, 98_000, 99_000, 100_000]
    assert sum(value > level for value in values) <= 7, "those in one bucket with the fifth"
    assert figures.top(histogram(5, 6), 3) == 0, "fewer than three: all that cost anything"


def test_an_anomaly_is_far_from_the_median_in_deviations_and_in_times() -> None:
    # Median 100, deviations 0, 10, 10, 20, 20: MAD 10.
    level = figures.anomaly(histogram(80, 90, 100, 110, 120), deviations=6, times=1)
    assert level == pytest.approx(100 + 6 * 1.4826 * 10, rel=0.06)
    # All alike: no deviation, and only the factor is left.
    assert figures.anomaly(histogram(*[100] * 50), deviations=6, times=3) == near(300)
    # One outlier moves nothing.
    assert figures.anomaly(histogram(*[100] * 50, 10**9), deviations=6, times=3) == near(300)


@given(
    st.lists(st.integers(1, 10**13), min_size=2, max_size=300),
    st.floats(0.01, 0.9),
)
def test_shares_in_proportion_to_cost_have_the_mean_that_is_asked_for(costs: list[int], share: float) -> None:
    found = figures.scale(histogram(*costs), share, share / 10)
    middles = np.array([figures.middle(figures.bucket(cost)) for cost in costs])
    shares = np.clip(middles / found, share / 10, 1)
    # Where C is a small whole number it cannot be exact.
    assert shares.mean() == pytest.approx(share, rel=0.02 + 2 / found, abs=0.5 if found == 1 else 0)


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from("ab"), st.integers(0, 30)), max_size=60), st.booleans())
def test_a_window_has_exactly_the_minutes_that_it_is_of(events: list[tuple[int, str, int]], long: bool) -> None:
    minutes = 240 if long else 60
    window = Window(minutes)
    by_minute: dict[int, dict[str, dict[int, int]]] = {}
    for minute, key, number in events:
        of_key = by_minute.setdefault(minute, {}).setdefault(key, {})
        of_key[number] = of_key.get(number, 0) + 1
    for now in range(401):
        window.push(now, by_minute.get(now, {}))
        if now % 37 == 0 or now == 400:
            first = (now // 60) * 60 - minutes if long else now - minutes + 1
            expected: dict[str, Counter[int]] = {}
            for minute, key, number in events:
                if first <= minute <= now:
                    expected.setdefault(key, Counter())[number] += 1
            assert window.totals == expected


# -- from the store ----------------------------------------------------------------------------------------------------


class World:
    """A store with a clock that a test turns."""

    def __init__(self, store: Store, rows: Callable[..., pa.Table]) -> None:
        self.store, self._rows = store, rows
        self.now = NOON
        self._ids = random.Random(1)

    def clock(self) -> float:
        return self.now.timestamp()

    def at(self, minute: int, second: float = 0) -> None:
        """So many minutes and seconds after noon."""
        self.now = NOON + timedelta(minutes=minute, seconds=second)

    def ledger(self, *rows: dict[str, Any]) -> None:
        """Rows; ``at`` is seconds after noon."""
        made = []
        for row in rows:
            row = dict(row)
            at = row.pop("at")
            trace = row.pop("trace", None)
            made.append(
                {
                    "start_time": NOON + timedelta(seconds=at),
                    "trace_id": (trace if trace is not None else self._ids.getrandbits(100)).to_bytes(16, "big"),
                    "span_id": self._ids.getrandbits(60).to_bytes(8, "big"),
                    **row,
                }
            )
        self.store.insert("ledger", self._rows(made), uuid.uuid4().hex)

    def traces(self, *rows: tuple[float, float, str, str]) -> None:
        """Summaries: start in seconds after noon, duration in seconds, service and name of the root."""
        plain: dict[str, Any] = {
            field.name: "" if pa.types.is_string(field.type) else None if field.nullable else 0 for field in TRACES
        }
        made = [
            {
                **plain,
                "trace_id": self._ids.getrandbits(100).to_bytes(16, "big"),
                "day": NOON.date(),
                "start_time": NOON + timedelta(seconds=start),
                "end_time": NOON + timedelta(seconds=start + duration),
                "root_service": service,
                "root_name": name,
                "tenant": "acme",
            }
            for start, duration, service, name in rows
        ]
        self.store.insert("traces", pa.Table.from_pylist(made, schema=TRACES), uuid.uuid4().hex)

    def levels(self, *wanted: Level, folder: Path | None = None) -> Levels:
        made = Levels(lambda: self.store, folder, Counters(), self.clock)
        made.want(wanted)
        return made


@pytest.fixture
def world(store: Store, ledger_rows: Callable[..., pa.Table]) -> World:
    return World(store, ledger_rows)


@pytest.fixture
def reader(store: Store) -> Iterator[Reader]:
    with store.reader() as made:
        yield made


def call(at: float, cost: str | None, **more: Any) -> dict[str, Any]:
    return {"at": at, "cost": None if cost is None else Decimal(cost), "feature": "search", **more}


def of(levels: Levels, level: Level, key: str, minute: int) -> int | None:
    table = levels.table(level, MINUTE + minute)
    if table is None:
        return None
    at = np.flatnonzero(table[0] == np.uint64(key_of(key)))
    return int(table[1][at[0]]) if len(at) else None


def test_what_a_trace_costs_is_the_sum_of_its_spans_in_the_minute_that_it_began_in(
    world: World, reader: Reader
) -> None:
    world.ledger(
        call(10, "0.25", trace=1),
        call(70, "0.75", trace=1),  # in the next minute, of the same trace
        call(65, "2", trace=2),
        call(66, None, trace=2),
        call(67, None, trace=3),  # nobody knows what it costs: in no histogram
        call(20, "5", trace=4, feature="chat"),
        call(-30, "1", trace=5),  # began before
        call(5, "1", trace=5),
    )
    found = states(reader, "trace_cost", "feature", MINUTE, MINUTE + 2)
    assert found == {
        MINUTE: {"search": {figures.bucket(DOLLAR): 1}, "chat": {figures.bucket(5 * DOLLAR): 1}},
        MINUTE + 1: {"search": {figures.bucket(2 * DOLLAR): 1}},
    }
    everything = states(reader, "trace_cost", "", MINUTE, MINUTE + 1)
    assert everything == {MINUTE: {"": {figures.bucket(DOLLAR): 1, figures.bucket(5 * DOLLAR): 1}}}


def test_calls_are_by_the_model_that_answered_or_was_asked_for(world: World, reader: Reader) -> None:
    world.ledger(
        call(1, "1", model="big"),
        call(2, "3", model="big"),
        call(3, "1", model="", request_model="asked"),
        call(4, "9", model="big", cost_status="rollup"),
        call(5, "9", model="big", kind="other"),
    )
    assert states(reader, "call_cost", "model", MINUTE, MINUTE + 1)[MINUTE] == {
        "big": {figures.bucket(DOLLAR): 1, figures.bucket(3 * DOLLAR): 1},
        "asked": {figures.bucket(DOLLAR): 1},
    }


def test_how_many_traces_had_a_key(world: World, reader: Reader) -> None:
    world.ledger(
        *(call(n, "1", model="big", tenant="a") for n in range(5)),
        call(7, "1", model="big", tenant="b", trace=9),
        call(8, "1", model="small", tenant="b", trace=9),
        call(9, "1", model="small", tenant="", trace=9),
    )
    assert states(reader, "seen", "model", MINUTE, MINUTE + 1)[MINUTE] == {"big": {0: 6}, "small": {0: 1}}
    assert states(reader, "seen", "tenant", MINUTE, MINUTE + 1)[MINUTE] == {"a": {0: 5}, "b": {0: 1}}


def test_durations_are_of_all_traces_by_route(world: World, reader: Reader) -> None:
    world.traces((1, 2, "web", "GET /a"), (2, 4, "web", "GET /a"), (3, 8, "web", "GET /b"), (4, 16, "", ""))
    second = 10**9
    assert states(reader, "duration", "route", MINUTE, MINUTE + 1)[MINUTE] == {
        "web | GET /a": {figures.bucket(2 * second): 1, figures.bucket(4 * second): 1},
        "web | GET /b": {figures.bucket(8 * second): 1},
    }
    assert sum(states(reader, "duration", "", MINUTE, MINUTE + 1)[MINUTE][""].values()) == 4
    assert states(reader, "seen", "route", MINUTE, MINUTE + 1)[MINUTE] == {
        "web | GET /a": {0: 2},
        "web | GET /b": {0: 1},
    }


def test_figures_come_into_force_after_their_minute_has_settled(world: World) -> None:
    world.ledger(*(call(n, "1") for n in range(30)), *(call(60 + n, "4") for n in range(31)))
    levels = world.levels(COST_BY_FEATURE)
    world.at(1, 30)
    levels.step()
    assert of(levels, COST_BY_FEATURE, "search", 60) is None
    world.at(4, 21)
    levels.step()
    assert of(levels, COST_BY_FEATURE, "search", LAG) == near(DOLLAR), "minute 0 alone"
    world.at(5, 21)
    levels.step()
    assert of(levels, COST_BY_FEATURE, "search", LAG) == near(DOLLAR), "what was in force stays"
    assert of(levels, COST_BY_FEATURE, "search", LAG + 1) == near(4 * DOLLAR), "31 of 61"
    assert of(levels, COST_BY_FEATURE, "chat", LAG + 1) is None
    assert levels.counters.snapshot()["sampling.levels.renewed"] >= 2


def test_history_is_there_as_soon_as_a_rule_asks_for_it(world: World) -> None:
    world.ledger(*(call(-60 * n, "1", model="old") for n in range(1, 1200)))
    world.at(10)
    levels = world.levels(SEEN_BY_MODEL)
    levels.step()
    assert of(levels, SEEN_BY_MODEL, "old", 10) == 1199
    assert of(levels, SEEN_BY_MODEL, "new", 10) is None


def test_too_few_observations_are_no_figure(world: World) -> None:
    world.ledger(*(call(n, "1") for n in range(9)))
    enough, too_few = COST_BY_FEATURE._replace(least=9), COST_BY_FEATURE._replace(least=10)
    levels = world.levels(enough, too_few)
    world.at(10)
    levels.step()
    assert of(levels, enough, "search", 10) == near(DOLLAR)
    assert of(levels, too_few, "search", 10) is None


def test_another_processor_has_the_same_figures_also_from_what_came_later(world: World) -> None:
    world.ledger(*(call(n, "1") for n in range(30)))
    first = world.levels(COST_BY_FEATURE, SEEN_BY_MODEL)
    for minute in range(1, 12):
        world.at(minute, 25)
        first.step()
        if minute >= 3:
            # Late rows of a minute that is told already: the second would count them, if it counted for itself.
            world.ledger(*(call(n, "64") for n in range(40)))
    second = world.levels(COST_BY_FEATURE, SEEN_BY_MODEL)
    second.step()
    for minute in range(LAG, 12):
        for level in (COST_BY_FEATURE, SEEN_BY_MODEL):
            mine, theirs = (each.table(level, MINUTE + minute) for each in (first, second))
            assert mine is not None
            assert theirs is not None
            assert [part.tolist() for part in mine] == [part.tolist() for part in theirs], (minute, level)
    assert of(second, COST_BY_FEATURE, "search", 11) == near(DOLLAR)


def test_two_that_are_first_at_once_read_what_was_written_first(world: World) -> None:
    one, other = world.levels(), world.levels()
    minute = MINUTE + 3
    world.at(1)
    one.publish([Figure(minute, "base_rate", "", "", 0.25), Figure(minute, "base_rate", "tenant", "a", 0.5)])
    world.at(2)
    other.publish([Figure(minute, "base_rate", "", "", 0.75)])
    for levels in (one, other):
        levels.add(Rates([]))
        levels.step()
        assert levels.value("base_rate", "", "", minute) == 0.25
        assert levels.value("base_rate", "tenant", "a", minute) == 0.5
        assert levels.value("base_rate", "tenant", "b", minute) is None
        assert levels.published("base_rate", "", "", minute) == {minute: 0.25}


class Rates:
    """A source that is asked once a minute."""

    metrics = ("base_rate",)
    ahead = 3

    def __init__(self, asked: list[int]) -> None:
        self.asked = asked

    def figures(self, reader: Reader, minute: int, levels: Levels) -> list[Figure]:
        self.asked.append(minute)
        rows = reader.query("SELECT count() AS n FROM ledger FINAL")["n"].to_pylist()[0]
        return [Figure(minute + self.ahead, "base_rate", "", "", 1 / (1 + rows))]


def test_a_source_is_asked_once_for_each_minute_by_whoever_comes_first(world: World) -> None:
    asked: list[int] = []
    pair = [world.levels(), world.levels()]
    for levels in pair:
        levels.add(Rates(asked))
    world.ledger(call(1, "1"))
    for minute, second in ((1, 10), (1, 21), (1, 40), (2, 21)):
        world.at(minute, second)
        for levels in pair:
            levels.step()
    assert asked == [MINUTE - 1, MINUTE, MINUTE + 1]
    for levels in pair:
        assert levels.value("base_rate", "", "", MINUTE + 3) == 0.5
        assert levels.value("base_rate", "", "", MINUTE + 99) == 0.5, "the last one stays in force"


def test_counts_of_several_processors_add_up_and_come_again_only_once(world: World) -> None:
    of_version = Level("seen", "version", "count", 60)
    pair = [world.levels(of_version), world.levels(of_version)]
    world.at(0, 30)
    pair[0].count("seen", "version", MINUTE, "v1", 3)
    pair[1].count("seen", "version", MINUTE, "v1", 4)
    world.at(3, 5)
    pair[0].step()
    pair[0].count("seen", "version", MINUTE, "v1", 2)  # told, and not yet read back: the sum is told again
    world.at(3, 15)
    for levels in pair:
        levels.step()
    world.at(4, 21)
    for levels in pair:
        levels.step()
        assert of(levels, of_version, "v1", LAG) == 9


class Away:
    """A store that cannot be reached."""

    def reader(self) -> Reader:
        raise StoreUnavailable("ClickHouse does not answer.")


def test_a_store_that_is_away_leaves_the_last_figures_in_force_also_over_a_restart(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world.ledger(*(call(n, "1") for n in range(30)))
    world.at(10)
    levels = world.levels(COST_BY_FEATURE, folder=tmp_path)
    levels.publish([Figure(MINUTE + 9, "base_rate", "tenant", "a", 0.5)])
    levels.add(Rates([]))
    levels.step()
    for kept in (levels, Levels(Away, tmp_path, Counters(), world.clock)):  # type: ignore[arg-type]
        kept._open = Away  # type: ignore[assignment]
        kept.want([COST_BY_FEATURE])
        kept._reads_from = None
        for _ in range(3):
            kept.step()
        assert kept.trouble == "ClickHouse does not answer."
        assert kept.counters.get("sampling.levels.failures") == 3
        assert of(kept, COST_BY_FEATURE, "search", 500) == near(DOLLAR)
        assert kept.value("base_rate", "", "", MINUTE + 500) is not None
    assert len([r for r in caplog.records if "not renewed" in r.message]) == 2, "once each"


def test_a_file_of_figures_that_is_broken_is_no_reason_not_to_start(tmp_path: Path) -> None:
    for text in ("", "{", "[]", json.dumps({"minute": 1, "figures": [["a"]], "rates": []})):
        (tmp_path / "levels.json").write_text(text)
        assert Levels(folder=tmp_path).table(COST_BY_FEATURE, MINUTE) is None


def test_nothing_is_asked_of_the_store_where_no_rule_needs_it(world: World) -> None:
    def refuse() -> Store:
        raise AssertionError("nobody needs it")

    Levels(refuse, None, Counters(), world.clock).step()


def test_the_thread_renews_by_itself_and_stops(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollspan.processor.sample.levels.STEP_S", 0.01)
    world.ledger(*(call(n, "1") for n in range(30)))
    world.at(10)
    levels = world.levels(COST_BY_FEATURE)
    levels.start()
    try:
        for _ in range(1000):
            if levels.table(COST_BY_FEATURE, MINUTE + 10) is not None:
                break
            levels._stop.wait(0.02)
        assert of(levels, COST_BY_FEATURE, "search", 10) == near(DOLLAR)
    finally:
        levels.stop()
    assert levels._thread is None


def test_the_query_shows_what_stands(world: World, store: Store) -> None:
    world.ledger(*(call(n, "1") for n in range(30)))
    world.at(10)
    levels = world.levels(COST_BY_FEATURE)
    levels.step()
    levels.publish([Figure(MINUTE, "base_rate", "", "", 0.25)])
    rows = run(store, "sampling-levels")
    by_metric = {(row["metric"], row["key"]): row for row in rows}
    cost = by_metric["trace_cost", "search"]
    assert cost["observations"] == 30
    assert cost["p50"] == pytest.approx(1.0, rel=0.03)
    assert by_metric["base_rate", None]["latest"] == 0.25
    assert store.rows(f"SELECT count() AS n FROM {TABLE}")[0]["n"] > 0


def test_of_many_traces_a_share_stands_for_all(world: World, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    world.ledger(*(call(n / 20, "1", trace=n + 1, model="big") for n in range(800)))
    world.traces(*((n / 20, 2, "web", "GET /a") for n in range(800)))
    exact = {
        metric: states(reader, metric, "", MINUTE, MINUTE + 1)[MINUTE][""] for metric in ("trace_cost", "duration")
    }
    assert [sum(each.values()) for each in exact.values()] == [800, 800]
    monkeypatch.setattr("tollspan.processor.sample.states.ENOUGH_ROWS", 100)
    for metric, by, key in (("trace_cost", "", ""), ("duration", "", ""), ("call_cost", "model", "big")):
        about = sum(states(reader, metric, by, MINUTE, MINUTE + 1)[MINUTE][key].values())
        assert about % 9 == 0, "each stands for nine"
        assert about == pytest.approx(800, abs=4 * (800 * 8) ** 0.5)
    assert states(reader, "seen", "model", MINUTE, MINUTE + 1)[MINUTE] == {"big": {0: 100}}, (
        "counted so far, and exactly"
    )


def test_a_server_on_the_wire_gives_the_same(world: World) -> None:
    from tollspan.processor.sqlfront import SqlFront
    from tollspan.processor.store import open_store

    world.ledger(*(call(n, "1") for n in range(30)))
    world.at(10)
    front = SqlFront(world.store, "127.0.0.1:0", writable=True)
    address = front.start()
    try:
        with open_store(f"clickhouse://{address}/{world.store.database}", create=False) as server:
            remote = Levels(lambda: server, None, Counters(), world.clock)
            remote.want([COST_BY_FEATURE, SEEN_BY_MODEL])
            remote.add(Rates([]))
            remote.step()
            assert remote.trouble == ""
            local = world.levels(COST_BY_FEATURE, SEEN_BY_MODEL)
            local.step()
            for levels in (remote, local):
                assert of(levels, COST_BY_FEATURE, "search", 10) == near(DOLLAR)
                assert of(levels, SEEN_BY_MODEL, "gpt-5-mini", 10) == 30
            assert remote.value("base_rate", "", "", MINUTE + 11) == pytest.approx(1 / 31)
            remote.stop()
    finally:
        front.stop()


def test_counts_that_could_not_be_told_are_told_later_whole(world: World) -> None:
    of_version = Level("seen", "version", "count", 60)
    levels = world.levels(of_version)
    world.at(0, 30)
    levels.count("seen", "version", MINUTE, "v1", 3)
    world.at(3, 5)
    levels.step()
    levels.count("seen", "version", MINUTE, "v1", 2)

    class Refuses:
        """Reads, and takes nothing."""

        def reader(self) -> Reader:
            return world.store.reader()

        def insert(self, table: str, rows: pa.Table, token: str) -> None:
            raise StoreUnavailable("away")

    levels._open = Refuses  # type: ignore[assignment]
    world.at(3, 10)
    levels.step()
    assert levels.trouble == "away"
    levels.count("seen", "version", MINUTE, "v1", 1)
    levels._open = lambda: world.store
    world.at(3, 15)
    levels.step()
    world.at(4, 21)
    levels.step()
    assert of(levels, of_version, "v1", LAG) == 6
