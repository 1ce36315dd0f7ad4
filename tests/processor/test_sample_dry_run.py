"""A dry run decides the past as the line did, says what another file would miss, and changes nothing."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from incident_day import AGENT, BEGAN, MODEL, Day, book_yaml, make
from service import Service, chat, payload, tollspan
from virtual_line import VirtualLine, arrived_of

from tollspan.pricing import PriceEngine, load_book
from tollspan.processor.cli.app import app
from tollspan.processor.identity import find
from tollspan.processor.sample.budget import read_limit
from tollspan.processor.sample.dry_run import DryRun, blind, dry_run, telemetry_price
from tollspan.processor.sample.past import past
from tollspan.processor.sample.past_levels import PastLevels
from tollspan.processor.sample.policy import RulePolicy
from tollspan.processor.sample.rules import Sampling, parse_sampling, plain, read_sampling
from tollspan.processor.store import Reader, Store, open_store

RECEIVED = "{id: t/received, meter: telemetry.bytes, amount: '0.02', per: 1000000000}"
STORED = "{id: t/stored, meter: telemetry.stored.byte_seconds, amount: '25', unit: GB-month}"
START = datetime.fromtimestamp(BEGAN / 1e9, UTC)
KEEP = 0.1


@pytest.fixture(scope="module")
def day() -> Day:
    return make(hours=1, per_minute=14, seed=5)


@pytest.fixture(scope="module")
def store(store_directory: Path, tmp_path_factory: pytest.TempPathFactory, day: Day) -> Iterator[Store]:
    """The day through the real line, sampled as without a file."""
    folder = tmp_path_factory.mktemp("dry-run")
    (folder / "book.yaml").write_text(book_yaml(RECEIVED))
    with open_store(f"chdb://{store_directory}?database=dry_run") as opened:
        opened.migrate()
        line = VirtualLine(opened, folder / "journal", load_book(folder / "book.yaml"), keep=KEEP)
        for payload in filter(None, day.payloads()):
            line.send(payload)
        line.work()
        line.end()
        line.close()
        yield opened
        opened.execute("DROP DATABASE dry_run")


@pytest.fixture
def reader(store: Store) -> Iterator[Reader]:
    with store.reader() as opened:
        yield opened


def tried(reader: Reader, sampling: Sampling, budget: str = "", *prices: str) -> DryRun:
    with tempfile.TemporaryDirectory() as folder:
        book = Path(folder) / "book.yaml"
        book.write_text(book_yaml(*prices))
        price = telemetry_price(PriceEngine(load_book(book)), reader)
    window = past(reader, START - timedelta(hours=1), START + timedelta(hours=2), time.time_ns())
    return dry_run(window, RulePolicy(sampling), price, read_limit(budget) if budget else None)


def rows(sampling: bytes) -> Sampling:
    return parse_sampling(sampling, "tried.yaml")


def by(found: list[dict[str, Any]], column: str, value: str) -> dict[str, Any]:
    (row,) = (row for row in found if row[column] == value)
    return row


def traces_of(day: Day, incident: str) -> int:
    return len({one.trace for one in day.sent if one.incident == incident})


def test_the_configuration_that_was_in_force_keeps_what_was_kept(reader: Reader, day: Day) -> None:
    found = tried(reader, plain(KEEP))
    was, would = found.beside
    assert (found.traces, found.undecided) == (day.traces, 0)
    assert found.inference == day.bill, "to the last digit"
    assert (was["traces"], was["spans"]) == (would["traces"], would["spans"])
    assert found.missed == []
    assert all(row["were_kept"] == row["would_be_kept"] for row in found.incidents)
    errors = by(found.rules, "rule", "error")
    assert errors["matches"] == errors["keeps"] == len({one.trace for one in day.sent if one.error})


def test_what_a_file_without_errors_misses_is_said_with_examples(reader: Reader, day: Day) -> None:
    found = tried(reader, rows(b"rules: [{when: {error: true}, keep: never}]\nbase: {keep: 10%}"))
    failed = {one.trace.hex() for one in day.sent if one.error}
    missed = by(found.missed, "were_kept_as", "error")
    assert missed["would_be_dropped"] == len(failed)
    assert set(str(missed["examples"]).split(", ")) <= failed
    incidents = by(found.incidents, "traces", "with an error")
    assert (incidents["there_are"], incidents["were_kept"], incidents["would_be_kept"]) == (len(failed), len(failed), 0)


def test_rules_on_what_the_ledger_has_see_traces_that_were_not_kept(reader: Reader, day: Day) -> None:
    found = tried(
        reader,
        rows(
            b"rules:\n"
            b"  - {name: new, when: {model: frontier}, keep: always}\n"
            b"  - {name: agents, when: {loop: {growing: 10}}, keep: always}\n"
            b"  - {name: storms, when: {spans: 30}, keep: always}\n"
            b"  - {name: of tenants, when: {tenant: tenant-3}, keep: 50%}\n"
            b"base: {keep: 0}"
        ),
    )
    new, agents = by(found.rules, "rule", "new"), by(found.rules, "rule", "agents")
    assert (new["matches"], new["keeps"]) == (traces_of(day, MODEL), traces_of(day, MODEL))
    assert (agents["matches"], agents["keeps"]) == (traces_of(day, AGENT), 1)
    cost = sum((one.cost for one in day.sent if one.incident == AGENT and one.cost is not None), Decimal(0))
    assert agents["inference_cost"] == cost
    tenants = by(found.rules, "rule", "of tenants")
    assert 0 < tenants["keeps"] < tenants["matches"]
    assert by(found.rules, "rule", "base")["keeps"] == 0


def test_what_it_costs_comes_from_the_book(reader: Reader, day: Day) -> None:
    sampling = rows(b"base: {keep: 100%}")
    unpriced = tried(reader, sampling)
    assert unpriced.beside[1]["telemetry_cost"] is None, "unknown is not zero"
    assert any("no price" in note for note in unpriced.notes)
    received = Decimal(sum(map(len, day.payloads()))) * Decimal("0.02") / 10**9
    priced = tried(reader, sampling, "", RECEIVED)
    assert abs(Decimal(str(priced.beside[1]["telemetry_cost"])) / received - 1) < Decimal("0.01")
    assert priced.beside[1]["traces"] == day.traces
    assert sum(row["inference_cost"] for row in priced.hours) == day.bill  # type: ignore[misc]


def test_a_budget_that_cannot_be_met_names_the_rules_in_the_way(reader: Reader) -> None:
    found = tried(
        reader,
        rows(b"rules: [{name: all of it, when: {service: assistant}, keep: always}]\nbase: {keep: 10%}"),
        "0.001%",
        RECEIVED,
        STORED,
    )
    (answer,) = found.budget
    assert answer["cannot_be_met"] == len(found.hours)
    assert answer["in_the_way"] == "all of it"


def test_a_budget_says_what_the_base_rate_would_have_to_be(reader: Reader) -> None:
    sampling = rows(b"rules: [{when: {error: true}, keep: always}]\nbase: {keep: 100%}")
    (share,) = tried(reader, sampling, "2%", RECEIVED, STORED).budget
    assert 0 < share["base_rate_lowest"] < 1  # type: ignore[operator]
    assert (share["cannot_be_met"], share["without_a_price"]) == (0, 0)
    (size,) = tried(reader, sampling, "10 GB/day").budget
    assert size["base_rate_lowest"] == size["within_as_written"] == 1, "bytes need no prices"
    (unknown,) = tried(reader, sampling, "2%").budget
    assert unknown["without_a_price"] == unknown["hours"]
    assert "base_rate_lowest" not in unknown


def test_spans_out_of_the_store_look_as_they_did_when_they_came(reader: Reader, day: Day, tmp_path: Path) -> None:
    """A kept body says all that it said, and a ledger row all but its attributes, under every rule that there is."""
    (tmp_path / "book.yaml").write_text(book_yaml())
    sampling = read_sampling(Path(__file__).parents[2] / "examples" / "sampling" / "sampling.yaml")
    policy = RulePolicy(sampling, steered=True)
    came, _ = arrived_of([one for one in day.payloads() if one], load_book(tmp_path / "book.yaml"))
    then, order = policy.look(came), np.argsort(came.who.keys)
    seen = 0
    for one in past(reader, START - timedelta(hours=1), START + timedelta(hours=2), time.time_ns()):
        now = policy.look(one.arrived)
        real = np.flatnonzero(~one.made_up)
        at = order[find(one.arrived.who.keys[real], came.who.keys[order])]
        body = real < one.bodies
        seen += int(body.sum())
        for name, values in then.columns.items():
            found, expected = now[name][real], values[at]
            if name.startswith("marks"):
                assert (found[body] == expected[body]).all(), name
                continue
            # Fingerprints and versions are attributes that the ledger does not have.
            rows = body if name in ("request", "of_version") else slice(None)
            assert (found[rows] == expected[rows]).all(), name
    assert seen > 100


def test_rules_that_compare_with_figures_have_those_of_that_time(reader: Reader, day: Day) -> None:
    sampling = rows(
        b"rules:\n"
        b"  - {name: new, when: {rare: {of: model, fewer_than: 15, window: 24h}}, keep: always}\n"
        b"  - {name: dear, when: {expensive: {top: 1}}, keep: always}\n"
        b"  - {name: slow, when: {slow: {above: p95, of: route, least: 20}}, keep: always}\n"
        b"base: {keep: 20%, by: cost}"
    )
    minute = BEGAN // (60 * 10**9)
    levels = PastLevels(reader, RulePolicy(sampling).levels_needed, minute, minute + 59)
    assert levels.unknown == []
    window = past(reader, START - timedelta(hours=1), START + timedelta(hours=2), time.time_ns())
    found = dry_run(window, RulePolicy(sampling, levels), lambda *_: None)
    matches = {row["rule"]: row["matches"] for row in found.rules}
    # What is new is so until there were 15 of it, and some minutes on; each minute has its dearest.
    assert traces_of(day, MODEL) <= matches["new"] < 200
    assert 20 < matches["dear"] <= 3 * 60
    # A twentieth of the past, and most of the slow ones.
    assert 5 < matches["slow"] < 0.2 * day.traces
    base = by(found.rules, "rule", "base")
    assert 0.05 < base["keeps"] / base["matches"] < 0.45


def test_an_empty_window_is_said_and_no_fault(reader: Reader) -> None:
    window = past(reader, START + timedelta(days=3), START + timedelta(days=4), time.time_ns())
    found = dry_run(window, RulePolicy(plain(KEEP)), lambda *_: None)
    assert (found.traces, found.rules) == (0, [])


def test_rules_that_can_only_see_kept_bodies_are_named() -> None:
    sampling = rows(
        b"rules:\n"
        b"  - {name: storms, when: {loop: {same_request: 4}}, keep: always}\n"
        b"  - {name: beta, when: {attributes: {app.beta: true}}, keep: always}\n"
        b"  - {name: model, when: {attributes: {gen_ai.response.model: small}}, keep: always}\n"
        b"  - {name: 5xx, when: {http_status: 5xx}, keep: always}\n"
        b"  - {name: growing, when: {loop: {growing: 4}, tenant: acme}, keep: always}\n"
    )
    assert blind(sampling) == ["drop", "storms", "beta", "5xx"]


# -- the command -------------------------------------------------------------------------------------------------------

RUN = CliRunner()


def command(*arguments: str) -> Any:
    return RUN.invoke(app, ["sample", *arguments])


def test_check_tells_all_mistakes_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("rules:\n  - {when: {eror: true}, keep: always}\n  - {when: {error: true}, keep: 150%}\n")
    done = command("--check", str(file))
    assert done.exit_code == 1
    assert f"{file}:2: rules[0].when.eror" in done.stderr
    assert f"{file}:3: rules[1].keep" in done.stderr


def test_check_lists_the_rules_and_warnings_count_only_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(
        "rules:\n  - {name: a, when: {error: true}, keep: always}\n"
        "  - {name: b, when: {error: true, tenant: x}, keep: 50%}\nbase: {keep: 5%}\n"
    )
    done = command("--check", str(file), "--format", "json")
    assert done.exit_code == 0
    listed = json.loads(done.stdout)
    assert [row["rule"] for row in listed][-3:] == ["a", "b", "base"]
    assert [row["keeps"] for row in listed][-3:] == ["always", "50%", "5%"]
    assert f"warning: {file}:3" in done.stderr
    assert command("--check", str(file), "--strict").exit_code == 1


def test_a_command_that_does_not_say_what_to_do_is_used_wrongly(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("base: {keep: 5%}\n")
    assert command(str(file)).exit_code == 2
    assert command("--check", "--dry-run", str(file)).exit_code == 2
    assert command("--dry-run", str(file), "--budget", "many").exit_code == 2


def test_a_dry_run_prints_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    file, prices = tmp_path / "s.yaml", tmp_path / "p.yaml"
    file.write_text("rules: [{name: errors, when: {error: true}, keep: always}]\nbase: {keep: 1%}\n")
    prices.write_text(book_yaml(RECEIVED, STORED))
    tables = "SELECT table, sum(rows) AS n FROM system.parts WHERE active AND database = 'dry_run' GROUP BY table"
    before = sorted(map(str, store.rows(tables)))
    asked = ["--dry-run", str(file), "--store", store.url, "--since", "3d", "--prices", str(prices)]
    done = command(*asked, "--format", "json", "--budget", "2%")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert {row["rule"] for row in answer["rules"]} >= {"errors", "base"}
    assert answer["budget"][0]["budget"] == "2%"
    assert any("not in the store" in note for note in answer["notes"])
    for format in ("table", "markdown", "csv"):
        done = command(*asked, "--format", format)
        assert done.exit_code == 0, done.output
        assert "errors" in done.stdout
    assert sorted(map(str, store.rows(tables))) == before


def test_a_dry_run_asks_a_service_that_runs(tmp_path: Path) -> None:
    """Through its SQL port, as another user of the machine would; the file is the one that the service samples by."""
    file = tmp_path / "s.yaml"
    file.write_text("rules: [{name: errors, when: {error: true}, keep: always}]\nbase: {keep: 0}\n")
    with Service(tmp_path / "store", ["--sampling-file", str(file), "--sampling-decision-wait", "0"]) as service:
        service.export(payload([chat(number, error=number % 7 == 0) for number in range(1, 50)]))
        deadline = time.monotonic() + 60
        while service.query("sampling", "--since", "2025-01-01") == [] and time.monotonic() < deadline:
            time.sleep(0.2)
        done = tollspan("sample", "--dry-run", str(file), "--store", service.url, "--since", "2025-01-01",
                        "--format", "json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [row["traces"] for row in found["beside"]] == [7, 7]
    assert found["traces"] == 49
    assert found["missed"] == []
