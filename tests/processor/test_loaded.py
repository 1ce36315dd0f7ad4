"""Fully loaded cost: a world with figures on paper, under each policy; the shares are the whole, to the last digit."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.processor.test_focus import charge, row
from tollspan.processor.billing import import_bills
from tollspan.processor.cli.app import app
from tollspan.processor.errors import ConfigError
from tollspan.processor.loaded import fully_loaded, read_reservations
from tollspan.processor.queries import run
from tollspan.processor.store import Store, open_store

Make = Callable[[list[dict[str, Any]]], pa.Table]
PICO = Decimal("1e-12")


@pytest.fixture(scope="module")
def shared(store_directory: Path) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=loaded") as opened:
        opened.migrate()
        yield opened
        opened.execute("DROP DATABASE loaded")


@pytest.fixture
def store(shared: Store) -> Store:
    for table in ("ledger", "bills", "billed_lines"):
        shared.execute(f"TRUNCATE TABLE {table}")
    return shared


def busy(seconds: str, cost: str, device: str = "H200", **more: Any) -> dict[str, Any]:
    return row([charge("gpu.seconds", seconds, "1", "1 second", cost)], device=device, service="ranker", **more)


def idle(seconds: str, cost: str | None, device: str = "H200") -> dict[str, Any]:
    told = charge("gpu.idle_seconds", seconds, None if cost is None else "1", "1 second", cost)
    if cost is None:
        told["status"] = "unpriced"
    return row([told], device=device, service="ranker", kind="capacity")


def model(cost: str, **more: Any) -> dict[str, Any]:
    return row([charge("tokens.output", "1", cost, "1 token", cost)], **more)


# Idle 60 on the H200, where acme was busy for 30 s and beta for 10; idle 5 on the L4, where nobody was busy.
# Direct: acme 30 + 50, beta 10 + 6. Without a tag: 24. A bill adds taxes of 12, credits of -2 and a fee of 100.
WORLD = [
    busy("30", "30", tenant="acme"),
    busy("10", "10", tenant="beta"),
    idle("60", "60"),
    idle("5", "5", "L4"),
    model("50", tenant="acme"),
    model("6", tenant="beta"),
    model("24"),
]
BILL = "date,cost,category\n2026-11-01,12,Tax\n2026-11-01,-2,Credit\n2026-11-01,100,Fee\n2026-11-01,96,Usage\n"


@pytest.fixture
def world(store: Store, ledger_rows: Make, tmp_path: Path) -> Store:
    store.insert("ledger", ledger_rows(WORLD), uuid.uuid4().hex)
    (tmp_path / "bill.csv").write_text(BILL)
    import_bills(store, [tmp_path / "bill.csv"])
    return store


def shares(store: Store, **chosen: Any) -> dict[str | None, tuple[Decimal | int, ...]]:
    """(loaded, direct, idle, shared, billed) by payer."""
    names = ("loaded_cost", "direct_cost", "idle_share", "shared_share", "billed_share")
    return {line["payer"]: tuple(line[name] for name in names) for line in fully_loaded(store, **chosen)}


def test_proportional(world: Store) -> None:
    assert shares(world) == {
        "acme": (145, 80, 45, 20, 0),
        "beta": (35, 16, 15, 4, 0),
        None: (5, 0, 5, 0, 0),
    }
    whole = run(world, "total")[0]["cost"]
    assert sum(line[0] for line in shares(world).values()) == whole == 185


def test_reservation(world: Store) -> None:
    weights = {"acme": 1, "beta": 2, "gamma": 1, "": 1}
    found = shares(world, idle="reservation", overhead="reservation", reserved=weights)
    assert found == {
        "acme": (Decimal("97.8"), 80, 13, Decimal("4.8"), 0),
        "beta": (Decimal("51.6"), 16, 26, Decimal("9.6"), 0),
        # Reserved, and never used.
        "gamma": (Decimal("17.8"), 0, 13, Decimal("4.8"), 0),
        None: (Decimal("17.8"), 0, 13, Decimal("4.8"), 0),
    }


def test_platform(world: Store) -> None:
    assert shares(world, idle="platform", overhead="platform") == {
        "acme": (80, 80, 0, 0, 0),
        "beta": (16, 16, 0, 0, 0),
        None: (89, 0, 65, 24, 0),
    }


def test_policies_are_chosen_apart(world: Store) -> None:
    found = shares(world, idle="platform", bills="extras")
    # Of 24 without a tag and 10 of taxes and credits acme bears 80/96.
    assert found["acme"] == (
        80 + 20 + Decimal("8.333333333333"),
        80,
        0,
        20,
        Decimal("8.333333333333"),
    )
    assert found["beta"][4] == Decimal("1.666666666667")
    assert found[None] == (65, 0, 65, 0, 0)
    assert sum(line[0] for line in found.values()) == 195
    assert sum(line[0] for line in shares(world, bills="all").values()) == 295


def test_a_bill_that_gives_back_more_than_it_takes_is_shared_too(
    store: Store, ledger_rows: Make, tmp_path: Path
) -> None:
    store.insert("ledger", ledger_rows([model("1", tenant=name) for name in ("a", "b", "c")]), uuid.uuid4().hex)
    (tmp_path / "bill.csv").write_text("date,cost,category\n2026-11-01,-1,Credit\n")
    import_bills(store, [tmp_path / "bill.csv"])
    found = shares(store, bills="extras")
    assert sorted(line[4] for line in found.values()) == [Decimal("-0.333333333334"), *[Decimal("-0.333333333333")] * 2]
    assert sum(line[0] for line in found.values()) == 2


@pytest.mark.parametrize("payer", ["team", "feature", "workflow", "agent", "service"])
def test_by_any_payer(store: Store, ledger_rows: Make, payer: str) -> None:
    store.insert("ledger", ledger_rows([model("3", **{payer: "x"}), model("1")]), uuid.uuid4().hex)
    assert shares(store, payer=payer) == {"x": (4, 3, 0, 1, 0)}


def test_what_has_no_price_is_told_and_is_no_zero(store: Store, ledger_rows: Make) -> None:
    rows = [model("3", tenant="a"), row([], tenant="a"), row([], tenant="b"), idle("60", None)]
    store.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
    found = {line["payer"]: line for line in run(store, "fully-loaded")}
    assert (found["a"]["loaded_cost"], found["a"]["unpriced_rows"]) == (3, 1)
    assert (found["b"]["loaded_cost"], found["b"]["direct_cost"], found["b"]["unpriced_rows"]) == (None, None, 1)
    assert (found[None]["loaded_cost"], found[None]["unpriced_rows"]) == (None, 1)


def test_rolled_up_calls_are_not_counted(store: Store, ledger_rows: Make) -> None:
    above = row([charge("tokens.output", "1", "9", "1 token", "9")], tenant="a") | {
        "cost": None,
        "cost_status": "rollup",
    }
    store.insert("ledger", ledger_rows([above, model("3", tenant="a")]), uuid.uuid4().hex)
    assert shares(store) == {"a": (3, 3, 0, 0, 0)}
    assert run(store, "fully-loaded")[0]["unpriced_rows"] == 0


amount = st.integers(0, 10**20)
piece = st.tuples(
    st.sampled_from(["busy", "idle", "model"]),
    st.sampled_from(["", "a", "b", "c"]),
    st.sampled_from(["H200", "L4"]),
    st.integers(0, 10**15),
    amount,
)
policy = st.sampled_from(["proportional", "reservation", "platform"])
weights = st.dictionaries(st.sampled_from(["", "a", "b", "z"]), st.integers(1, 10**18), min_size=1)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(piece, max_size=12), idle_by=policy, rest_by=policy, reserved=weights)
def test_the_shares_are_the_whole(
    shared: Store, ledger_rows: Make, pieces: list[Any], idle_by: str, rest_by: str, reserved: dict[str, int]
) -> None:
    shared.execute("TRUNCATE TABLE ledger")
    rows = []
    for kind, tenant, device, nanoseconds, pico in pieces:
        seconds, cost = str(Decimal(nanoseconds).scaleb(-9)), f"{Decimal(pico).scaleb(-12):f}"
        if kind == "model":
            rows.append(model(cost, tenant=tenant))
        else:
            rows.append(idle(seconds, cost, device) if kind == "idle" else busy(seconds, cost, device, tenant=tenant))
    if rows:
        shared.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
    found = shares(shared, idle=idle_by, overhead=rest_by, reserved=reserved)
    whole = Decimal(sum(each[4] for each in pieces)).scaleb(-12)
    assert sum(line[0] for line in found.values()) == whole
    for payer, line in found.items():
        mine = sum(each[4] for each in pieces if each[0] != "idle" and each[1] == payer)
        assert line[1] == Decimal(mine).scaleb(-12)
        assert all(part >= 0 for part in line)


@pytest.mark.parametrize("bad", [{"payer": "planet"}, {"idle": "fair"}, {"bills": "some"}, {"overhead": "reservation"}])
def test_an_unknown_choice_is_refused(store: Store, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        fully_loaded(store, **bad)


def test_reservations_are_exact_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("acme: 0.1\nbeta: 3\n'': 1e-9\n")
    assert read_reservations(path) == {"acme": 100_000_000, "beta": 3_000_000_000, "": 1}
    for bad in (
        "",
        "acme: -1",
        "acme: 0",
        "acme: many",
        "acme: 1e-10",
        "acme: 1e10",
        "- acme",
        "acme: [1]",
        "a: nan",
        "[",
    ):
        path.write_text(bad)
        with pytest.raises(ConfigError, match=r"r\.yaml"):
            read_reservations(path)


def test_the_command(world: Store, tmp_path: Path) -> None:
    def loaded(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["loaded", "--store", world.url, *arguments])

    done = loaded("--format", "json", "--by", "tenant")
    assert done.exit_code == 0, done.output
    assert {line["tenant"]: line["loaded_cost"] for line in json.loads(done.stdout)}["acme"] == "145.000000000000"
    assert "Together 185 USD." in loaded().stderr
    (tmp_path / "r.yaml").write_text("beta: 1\n")
    reserved = loaded(
        "--policy", "platform", "--idle", "reservation", "--reservations", str(tmp_path / "r.yaml"), "--format", "json"
    )
    assert {line["tenant"]: line["idle_share"] for line in json.loads(reserved.stdout)}["beta"] == "65.000000000000"
    missing = loaded("--policy", "reservation")
    assert missing.exit_code == 2
    assert "--reservations FILE" in missing.stderr
