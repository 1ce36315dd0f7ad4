"""A window that is read in slices has the rows of the window."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tollspan.processor.queries import LATEST, dimensions_of, extent, find, named_queries, run, slices
from tollspan.processor.sqlfront import SqlFront
from tollspan.processor.store import Store, open_store

from .small_world import small_world


@pytest.fixture(scope="module")
def world(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The small world, in which every third row was priced again, in another part."""
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
        yield opened
        opened.execute("DROP DATABASE slices")


def cut(monkeypatch: pytest.MonkeyPatch, enough: int) -> None:
    monkeypatch.setattr(slices, "ENOUGH_ROWS", enough)


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
            assert len(slices.borders(world, since, until)) == (slices.SLICES - 1 if enough == 1 else 0)
            found.append(run(world, name, since, until, **more))
        assert found[0] == found[1], (since, until, by)


def test_slices_pass_the_read_only_port(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 1)
    front = SqlFront(world, "127.0.0.1:0")
    try:
        with open_store(f"clickhouse://{front.start()}/{world.database}", create=False) as through:
            assert slices.borders(through, None, None) == slices.borders(world, None, None) != ()
            for name in ("cost-per-1000", "cost-by-latency", "utilization"):
                assert run(through, name, by=["service"]) == run(world, name, by=["service"]) != []
    finally:
        front.stop()


def test_every_measure_is_read_in_slices() -> None:
    assert [name for name, each in named_queries().items() if each.measure and not each.sliceable] == []


def test_borders_are_even_within_what_there_is_of_the_window(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 1)
    held = extent(world)
    assert held
    first, last = held
    cuts = slices.borders(world, None, None)
    assert cuts == slices.borders(world, first - timedelta(days=400), LATEST)
    assert list(cuts) == sorted(set(cuts))
    assert first < cuts[0]
    assert cuts[-1] < last
    steps = {round((after - each) / timedelta(milliseconds=1)) for each, after in itertools.pairwise(cuts)}
    assert max(steps) - min(steps) <= 1
    # A naive instant counts as UTC, as everywhere.
    assert slices.borders(world, first.replace(tzinfo=None), None) == cuts


@pytest.mark.parametrize(
    ("since", "until"),
    [(datetime(2200, 1, 1, tzinfo=UTC), None), (None, datetime(1990, 1, 1, tzinfo=UTC))],
    ids=["after", "before"],
)
def test_a_window_without_rows_is_not_cut(
    world: Store, since: datetime | None, until: datetime | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(monkeypatch, 1)
    assert slices.borders(world, since, until) == ()


def test_a_small_part_of_a_large_ledger_is_not_cut(world: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    held = extent(world)
    assert held
    (row,) = world.rows("SELECT count() AS n FROM ledger")
    cut(monkeypatch, row["n"])
    assert slices.borders(world, None, None)
    assert slices.borders(world, held[0] + (held[1] - held[0]) / 10, None) == ()


def test_an_empty_ledger_and_a_cluster_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger on a cluster is a Distributed table: the last question, for a MergeTree, finds none."""
    cut(monkeypatch, 1)
    at = datetime(2026, 1, 1, tzinfo=UTC)

    class Canned:
        def __init__(self, many: int, engines: list[dict[str, Any]]) -> None:
            self.many, self.engines = many, engines

        def rows(self, sql: str, parameters: Any = None) -> list[dict[str, Any]]:
            if "system.tables" in sql:
                return self.engines
            return [{"n": self.many, "first": at, "last": at + timedelta(days=1)}]

    assert slices.borders(Canned(0, [{"1": 1}]), None, None) == ()
    assert slices.borders(Canned(9, []), None, None) == ()
    assert slices.borders(Canned(9, [{"1": 1}]), None, None)
