"""A day on which everything goes wrong, under a budget of 2 %: nothing that matters is lost, and no money either.

The short form is three hours with all five incidents; the long one (`make soak`) is the whole day.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from incident_day import AGENT, ERRORS, INCIDENTS, MODEL, SLOW, STORM, Day, Judged, make, rows
from sampled_day import BUDGET, judged, others, rows_of, sampled, stored_of, unsampled

from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.queries import run
from tollspan.processor.reconcile import reconcile
from tollspan.processor.store import Store, open_store

pytestmark = pytest.mark.timeout(600)

LEDGER = (
    "SELECT count() AS n, sum(ledger.cost) AS cost, groupBitXor(cityHash64(trace_id, span_id, ledger.cost, cost_status,"
    " charges.meter, charges.quantity, charges.cost)) AS rows FROM ledger FINAL"
)


class Seen(NamedTuple):
    """A day that was run: the stores of the sampled and the unsampled run, and how its samplers were judged."""

    day: Day
    store: Store
    whole: Store
    ours: Judged
    others: dict[str, Judged]


def seen(folder: Path, directory: Path, day: Day, levels_every: int) -> Iterator[Seen]:
    with open_store(f"chdb://{directory}?database=day_{day.hours}") as store:
        store.migrate()
        sampled(store, folder, day, levels_every)
        stored = stored_of(day)
        ours = judged(store, day, stored)
        with open_store(f"chdb://{directory}?database=whole_{day.hours}") as whole:
            whole.migrate()
            unsampled(whole, folder, day)
            beside = others(day, stored)
            print_rows(rows([*beside, (f"Tollspan, {BUDGET} budget", ours)], day), Format.markdown)
            yield Seen(day, store, whole, ours, dict(beside))
            whole.execute(f"DROP DATABASE whole_{day.hours}")
        store.execute(f"DROP DATABASE day_{day.hours}")


@pytest.fixture(scope="module", params=[3, pytest.param(24, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def run_of(
    request: pytest.FixtureRequest, store_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Seen]:
    hours = request.param
    yield from seen(tmp_path_factory.mktemp("day"), store_directory, make(hours), 3 if hours < 24 else 1)


def test_the_ledger_is_that_of_the_unsampled_run_to_the_last_digit(run_of: Seen) -> None:
    (sampled_,), (whole,) = rows_of(run_of.store, LEDGER), rows_of(run_of.whole, LEDGER)
    assert sampled_ == whole
    assert sampled_["cost"] == run_of.day.bill, "and what ten lines of Decimal say"
    with run_of.store.reader() as reader:
        assert reconcile(reader, None).agrees


def test_every_error_has_its_body(run_of: Seen) -> None:
    kept, there_are = run_of.ours.errors
    assert kept == there_are > 40
    assert run_of.others["probabilistic 10 %"].errors[0] < there_are / 4


@pytest.mark.parametrize("incident", INCIDENTS)
def test_each_incident_has_kept_examples(run_of: Seen, incident: str) -> None:
    kept, there_are = run_of.ours.incidents[incident]
    assert kept >= {ERRORS: there_are, AGENT: 1, STORM: 1, MODEL: 3, SLOW: 1}[incident]


def test_of_the_runaway_agent_most_is_kept(run_of: Seen) -> None:
    """Until it was known to run away its steps were dropped; what came after is there."""
    kept, spans = run_of.ours.agent
    assert kept > spans / 2


def test_telemetry_is_within_the_budget_in_every_hour_after_the_first(run_of: Seen) -> None:
    assert all(share is not None and share <= 0.02 for share in run_of.ours.by_hour[1:]), run_of.ours.by_hour
    # And it is a budget that binds: what is kept without one takes many times as much.
    assert run_of.others["keep everything"].share > 0.05


def test_what_is_kept_says_why_and_how_much_it_stands_for(run_of: Seen) -> None:
    (row,) = rows_of(
        run_of.store,
        "SELECT count() AS spans, countIf(KeepReason = '' OR KeepRule = '' OR SamplingThreshold = '') AS mute,"
        " countIf(AdjustedCount < 1) AS odd FROM spans FINAL",
    )
    assert row["spans"] == run_of.ours.spans > 0
    assert (row["mute"], row["odd"]) == (0, 0)


def test_the_query_of_rules_adds_up(run_of: Seen) -> None:
    found = {row["rule"]: row for row in run(run_of.store, "sampling")}
    assert sum(row["spans"] for row in found.values()) == len(run_of.day.sent)
    assert sum(row["kept_spans"] for row in found.values()) == run_of.ours.spans
    assert sum(row["stored_bytes"] for row in found.values()) == run_of.ours.nbytes
    assert sum(row["kept_traces"] for row in found.values()) == run_of.ours.traces
    assert found["errors"]["kept_spans"] == found["errors"]["spans"], "always is always"
    assert {name for name, row in found.items() if row["steered"]} == {"base", "probability"}
    assert found["runaways"]["inference_cost"] == sum(
        one.cost for one in run_of.day.sent if one.incident == AGENT and one.cost is not None
    )
