"""A window that is read in slices has the rows of the window."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tollspan.processor.page import views
from tollspan.processor.queries import LATEST, dimensions_of, extent, find, named_queries, run, slices
from tollspan.processor.sqlfront import SqlFront
from tollspan.processor.store import Store, open_store

from .small_world import small_world

COPIES = ((3, 11), (9, 17), (17, 26), (25, 30), (27, 29))
"""Hours after the small world for which parts have copies of it: neighbours meet in some, one is within another."""
START = datetime(2026, 10, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def world(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The small world, in which every third row was priced again, in another part; and parts with copies of it."""
    with open_store(f"chdb://{store_directory}?database=slices") as opened:
        opened.migrate()
        small_world(opened, tmp_path_factory.mktemp("world"))
        opened.execute("SYSTEM STOP MERGES ledger")
        opened.execute(
            "INSERT INTO ledger SELECT * REPLACE (revision + bitShiftLeft(toUInt64(1), 46) AS revision,"
            # What is stored of a charge's cost is by how much it is above linear.
            " cost * 2 AS cost, arrayMap((each, linear) -> each * 2 + reinterpret(linear, 'Decimal(38, 12)'),"
            " `charges.residual`, `charges.linear`) AS `charges.residual`) FROM ledger FINAL"
            " WHERE cityHash64(span_id) % 3 = 0"
        )
        for first, after in COPIES:
            opened.execute(
                "INSERT INTO ledger SELECT * REPLACE (start_time + toIntervalHour(hour) AS start_time) FROM"
                " (SELECT * FROM ledger FINAL WHERE start_hour = (SELECT min(start_hour) FROM ledger))"
                f" ARRAY JOIN range({first}, {after}) AS hour"
            )
        yield opened
        opened.execute("DROP DATABASE slices")


def cut(monkeypatch: pytest.MonkeyPatch, enough: int) -> None:
    monkeypatch.setattr(slices, "ENOUGH_ROWS", enough)
    monkeypatch.setattr(slices, "ENOUGH_FREE", 1)


@pytest.mark.parametrize("name", sorted(name for name, each in named_queries().items() if each.sliceable))
def test_every_query_says_the_same_of_slices_as_of_the_whole(
    world: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"owned_monthly": "100"}
    query, held = find(name), extent(world)
    assert held
    middle = held[0] + (held[1] - held[0]) / 2
    for since, until, by in (
        (None, None, "service,hour"),
        (held[0] - timedelta(days=9), middle, None),
        (middle, LATEST, ",".join(dimensions_of(query))),
    ):
        more: dict[str, Any] = {
            "by": [by] if by and query.divisible else None,
            "parameters": [f"{each}={values[each]}" for each in query.needs],
            "where": ["service=shop"] if query.filterable and by is None else [],
        }
        found = []
        for enough in (10**9, 1):
            cut(monkeypatch, enough)
            assert bool(slices.alone(world, since, until)) == (enough == 1)
            found.append(run(world, name, since, until, **more))
        assert found[0] == found[1], (since, until, by)


@pytest.mark.parametrize("view", [views.executive, views.oncall, views.debug], ids=lambda view: view.__name__)
@pytest.mark.parametrize(("first", "after"), [(0, 30), (5, 12), (9.5, 11.25)], ids=["all", "hours", "minutes"])
def test_views_say_the_same_of_slices_as_of_the_whole(
    world: Store, view: Any, first: float, after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = extent(world)
    assert held
    at = held[0].replace(minute=0, second=0, microsecond=0)
    window = views.Window.of(world, at + timedelta(hours=first), at + timedelta(hours=after))
    found = []
    for enough in (10**9, 1):
        cut(monkeypatch, enough)
        assert bool(slices.alone(world, window.since, window.until)) == (enough == 1 and first != 9.5)
        # Quantiles that are t-digests depend on the order in which they are merged.
        found.append(plain(view(world, window)))
    assert found[0] == found[1]


def plain(found: Any) -> Any:
    """A view's data without what depends on the order in which rows come."""
    if isinstance(found, dict):
        return {key: plain(each) for key, each in found.items() if not key.endswith("_ms")}
    return [plain(each) for each in found] if isinstance(found, list) else found


def test_a_trend_of_a_dimension_says_the_same_of_slices(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    window = views.Window.of(world, None, None)
    found = []
    for enough in (10**9, 1):
        cut(monkeypatch, enough)
        found.append(views.executive(world, window, by="model"))
    assert found[0] == found[1]


def test_slices_pass_the_read_only_port(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 1)
    front = SqlFront(world, "127.0.0.1:0")
    try:
        with open_store(f"clickhouse://{front.start()}/{world.database}", create=False) as through:
            assert slices.alone(through, None, None) == slices.alone(world, None, None) != ()
            for name in ("cost-per-1000", "cost-by-latency", "utilization"):
                assert run(through, name, by=["service"]) == run(world, name, by=["service"]) != []
    finally:
        front.stop()


def test_every_measure_is_read_in_slices() -> None:
    assert [name for name, each in named_queries().items() if each.measure and not each.sliceable] == []


def test_hours_stand_alone_where_one_part_has_rows(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 1)
    held = extent(world)
    assert held
    noon = int(held[0].timestamp()) // 3600

    def found(since: datetime | None = None, until: datetime | None = None) -> list[tuple[int, int]]:
        return [(first - noon, after - noon) for first, after in slices.alone(world, since, until)]

    # The world itself is in two parts; an hour in which a part begins or ends is not whole.
    assert found() == [(4, 9), (11, 16), (18, 25), (26, 27)]
    assert found(held[0] - timedelta(days=400), LATEST) == found()
    at = held[0].replace(minute=0, second=0, microsecond=0)
    assert found(at + timedelta(hours=5), at + timedelta(hours=12)) == [(5, 9), (11, 12)]
    assert found(at + timedelta(hours=5, minutes=1), at + timedelta(hours=7, minutes=59)) == [(6, 7)]
    assert found(at + timedelta(hours=5, minutes=1), at + timedelta(hours=6, minutes=59)) == []
    # A naive instant counts as UTC, as everywhere.
    assert found((at + timedelta(hours=5)).replace(tzinfo=None)) == found(at + timedelta(hours=5))


def test_every_row_of_a_window_is_in_one_slice(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 1)
    held = extent(world)
    assert held
    at = held[0].replace(minute=0, second=0, microsecond=0)
    seen = set()
    for since, until in (
        (None, None),
        (at, at + timedelta(hours=30)),
        (at + timedelta(hours=5), at + timedelta(hours=12)),
        (held[0] + timedelta(hours=6), held[1]),
        (held[0] + timedelta(hours=6, milliseconds=5), held[0] + timedelta(hours=21, milliseconds=9)),
    ):
        ways = []
        for enough in (10**9, 1):
            cut(monkeypatch, enough)
            ways.append(run(world, "cost", since, until, by=["minute", "kind"]))
        assert ways[0] == ways[1] != []
        seen.add(len(ways[0]))
    assert len(seen) > 3


def test_the_hour_of_a_start_is_that_of_any_instant(world: Store) -> None:
    """Also before 1970 and at both ends of what can be stored."""
    (made,) = world.rows("SELECT default_expression AS made FROM system.columns WHERE name = 'start_hour'"
                         " AND database = currentDatabase() AND table = 'ledger'")  # fmt: skip
    texts = {"2026-11-01 10:59:59.999999999": 498202, "1970-01-01 01:00:00": 1, "1970-01-01 00:59:59.999999999": 0,
             "1969-12-31 22:00:00": -2, "1900-01-01 00:00:00": -613608, "2262-01-01 00:00:00": 2559624}  # fmt: skip
    for text, hour in texts.items():
        assert world.rows(
            f"SELECT {made['made']} AS hour FROM (SELECT toDateTime64('{text}', 9, 'UTC') AS start_time)"
        ) == [{"hour": hour}], text


def test_what_counts_as_a_call_is_an_inference_that_is_billed_for_itself(world: Store) -> None:
    (made,) = world.rows("SELECT default_expression AS made FROM system.columns WHERE name = 'counted'"
                         " AND database = currentDatabase() AND table = 'ledger'")  # fmt: skip
    kinds = ["inference", "model_load", "feature_read", "capacity", "other", ""]
    statuses = ["priced", "free", "included", "partial", "unpriced", "invalid", "rollup", "not_billed"]
    told = world.rows(
        f"SELECT kind, cost_status, {made['made']} AS counted"
        f" FROM (SELECT arrayJoin({kinds}) AS kind, arrayJoin({statuses}) AS cost_status)"
    )
    assert len(told) == len(kinds) * len(statuses)
    calls = {(row["kind"], row["cost_status"]) for row in told if row["counted"]}
    assert calls == {("inference", status) for status in statuses[:-2]}
    (stored,) = world.rows(
        f"SELECT countIf(counted) AS calls, countIf(counted != ({made['made']})) AS wrong FROM ledger"
    )
    assert stored["calls"] > 0
    assert stored["wrong"] == 0


@pytest.mark.parametrize(
    ("since", "until"),
    [(datetime(2200, 1, 1, tzinfo=UTC), None), (None, datetime(1990, 1, 1, tzinfo=UTC))],
    ids=["after", "before"],
)
def test_a_window_without_rows_is_not_cut(
    world: Store, since: datetime | None, until: datetime | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, 1)
    assert slices.alone(world, since, until) == ()


def parts(*given: tuple[int, float, float]) -> list[dict[str, Any]]:
    """Parts with rows, first hour and last."""
    return [
        {"part": str(n), "n": n, "first": START + timedelta(hours=first), "last": START + timedelta(hours=last)}
        for n, first, last in given
    ]


class Canned:
    """Answers what `slices.alone` asks."""

    def __init__(self, parts: list[dict[str, Any]], engine: str = "ReplacingMergeTree") -> None:
        self.parts, self.engine = parts, engine

    def rows(self, sql: str, parameters: Any = None) -> list[dict[str, Any]]:
        if "system.tables" in sql:
            return [{"1": 1}] if "MergeTree" in self.engine else []
        return self.parts


def alone(reader: Canned, since: float | None = None, until: float | None = None) -> list[tuple[int, int]]:
    ends = [None if each is None else START + timedelta(hours=each) for each in (since, until)]
    origin = int(START.timestamp()) // 3600
    return [(first - origin, after - origin) for first, after in slices.alone(reader, *ends)]


def test_a_small_part_of_a_large_ledger_is_not_cut() -> None:
    ledger = Canned(parts((30_000_000, 0, 300)))
    assert alone(ledger) == [(0, 300)]
    assert alone(ledger, 0, 20) == [(0, 20)]
    assert alone(ledger, 0, 19) == []


def test_an_empty_ledger_and_a_cluster_are_read_whole() -> None:
    """A ledger on a cluster is a Distributed table: the question for a MergeTree finds none."""
    assert alone(Canned([])) == []
    assert alone(Canned(parts((30_000_000, 0, 300)), "Distributed")) == []


def test_parts_that_all_overlap_are_read_whole() -> None:
    assert alone(Canned(parts((30_000_000, 0, 300), (9, -1, 301)))) == []


def test_stretches_with_few_rows_are_read_with_the_rest() -> None:
    ledger = parts((30_000_000, 0, 300), (1_000_000, 299.5, 400), (1000, 399.5, 500), (500, 100.2, 100.7))
    assert alone(Canned(ledger)) == [(0, 100), (101, 299), (300, 399)]


def test_of_many_stretches_the_largest_are_taken() -> None:
    ledger = parts(*((1_000_000 + 1000 * nth, 10 * nth, 10 * nth + 10.5) for nth in range(50)))
    found = alone(Canned(ledger))
    assert len(found) == slices.MOST
    assert found == sorted(found)
    # The first part stands alone for an hour more than others.
    assert found[:2] == [(0, 10), (10 * (51 - slices.MOST) + 1, 10 * (51 - slices.MOST) + 10)]
