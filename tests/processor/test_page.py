"""The page's server: every figure is the ledger's, can be followed down to its charges, and nobody else gets one."""

from __future__ import annotations

import base64
import json
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tollspan.pricing import PriceEngine, load_book
from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError, StoreUnavailable
from tollspan.processor.page import Api, Live, Page, Source, source
from tollspan.processor.page.api import plain
from tollspan.processor.page.details import ONLY
from tollspan.processor.page.views import DAYS, Window
from tollspan.processor.queries import find, named_queries, run
from tollspan.processor.senders import Readers, new_token
from tollspan.processor.store import Store, open_store
from tollspan.processor.tls import Tls

from .small_world import BOOK, NOON, asked, made, request_of, send, small_world, tags
from .test_tls import Certificates, certificates

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import Service as Process
from service import chat, payload, tollspan

__all__ = ["certificates"]

DAY = {"since": "2026-10-01T06:00:00Z", "until": "2026-10-02T06:00:00Z"}
"""The window of the small world."""
HOSTILE = "<img src=x onerror=alert(1)> ' \" \\ ; DROP TABLE ledger -- {x:String} ﷽ 💸\n\tend"


def opened(store: Store, counters: Counters | None = None) -> Source:
    """What `Service` reads an embedded store by."""

    def stop(tag: str) -> None:
        store.execute(f"KILL QUERY WHERE Settings['log_comment'] = '{tag}' ASYNC")

    return Source(lambda settings: store.reader(settings), stop, counters)


class Site:
    """A page, and a browser that asks it."""

    def __init__(self, store: Store | None = None, of: Source | None = None, live: Live | None = None) -> None:
        self.source = of if of is not None else opened(store)  # type: ignore[arg-type]
        self.page = Page(self.source, Api("chdb:///here", live or Live()), address="127.0.0.1:0")
        self.page.start()
        self.client = httpx.Client(base_url=self.page.url, timeout=60)

    def ask(self, path: str, **params: Any) -> httpx.Response:
        return self.client.get(path, params=params)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """The answer to a question about the world's day."""
        answer = self.ask(f"/api/{path}", **{**DAY, **params})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = json.loads(answer.text, parse_float=float)
        return found

    def refused(self, path: str, status: int, **params: Any) -> tuple[str, str]:
        answer = self.ask(path, **params)
        assert answer.status_code == status, answer.text
        found = answer.json()
        assert set(found) == {"error", "hint"}
        return found["error"], found["hint"]

    def close(self) -> None:
        self.client.close()
        self.page.stop()


@contextmanager
def site(*args: Any, **options: Any) -> Iterator[Site]:
    made = Site(*args, **options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> PriceEngine:
    path = tmp_path_factory.mktemp("book") / "book.yaml"
    path.write_text(BOOK)
    return PriceEngine(load_book(path, shipped=False))


@pytest.fixture(scope="module")
def store(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=page") as opened:
        opened.migrate()
        small_world(opened, tmp_path_factory.mktemp("world"))
        yield opened
        opened.execute("DROP DATABASE page")


@pytest.fixture(scope="module")
def world(store: Store, engine: PriceEngine) -> Iterator[Site]:
    with site(store, live=Live(engine=lambda: engine)) as made:
        yield made


def ledger(store: Store, name: str, by: str | None = None, *where: str, **more: Any) -> list[dict[str, Any]]:
    """What the named query says of the world's day."""
    ends = (datetime.fromisoformat(each) for each in DAY.values())
    return run(store, name, *ends, by=None if by is None else [by] if by else [], where=where, **more)


def money(value: str | None) -> Decimal | None:
    assert value is None or isinstance(value, str), "money is never a float"
    return None if value is None else Decimal(value)


def total(values: Any) -> Decimal:
    return sum((money(each) or Decimal(0) for each in values), Decimal(0))


# -- figures ----------------------------------------------------------------------------------------------------------


def test_the_executive_view_says_what_the_named_queries_say(world: Site, store: Store) -> None:
    view = world.get("executive")
    (whole,) = ledger(store, "total")
    assert money(view["spend"]["cost"]) == whole["cost"] == Decimal("0.14714")
    assert [view["spend"][name] for name in ("inferences", "unpriced", "partial", "rows", "unpriced_rows")] == [
        whole[name]
        for name in ("inferences", "unpriced_inferences", "partial_inferences", "ledger_rows", "unpriced_rows")
    ]
    mean = next(row for row in ledger(store, "cost-per-inference") if row["component"] == "all")
    assert money(view["spend"]["cost_per_inference"]) == mean["cost_per_inference"]
    assert view["spend"]["priced"] == mean["priced_inferences"]
    for name in ("tenant", "feature", "model"):
        assert [(row["value"], money(row["cost"]), row["inferences"], row["unpriced"]) for row in view["by"][name]] == [
            (row[name], row["cost"], row["inferences"], row["unpriced_inferences"])
            for row in ledger(store, "cost", name)
        ]
        means = {row[name]: row for row in ledger(store, "cost-per-inference", name) if row["component"] == "all"}
        for row in view["by"][name]:
            assert money(row["cost_per_inference"]) == means[row["value"]]["cost_per_inference"]
            assert row["priced"] == means[row["value"]]["priced_inferences"]
    assert sorted(
        (row["component"], money(row["cost"]), row["inferences"], row["unpriced"]) for row in view["components"]
    ) == sorted(
        (row["component"], row["cost"], row["inferences"], row["unpriced_inferences"])
        for row in ledger(store, "by-component")
    )
    assert view["unpriced"]["rows"] == 1
    assert [row["model"] for row in view["unpriced"]["reasons"]] == ["mystery"]
    assert view["nothing"] is None


@pytest.mark.parametrize("by", ["component", "tenant", "feature", "model", "service", "cost_status", "agent"])
def test_the_trend_adds_up_to_what_was_spent(world: Site, by: str) -> None:
    view = world.get("executive", by=by)
    trend = view["trend"]
    assert trend["by"] == by
    assert total(point["cost"] for point in trend["points"]) == money(view["spend"]["cost"])
    for point in trend["points"]:
        assert len(point["parts"]) == len(trend["values"])
        assert total(point["parts"]) == (money(point["cost"]) or 0)
    assert sum(point["inferences"] for point in trend["points"]) == view["spend"]["inferences"]
    began = [datetime.fromisoformat(point["at"]) for point in trend["points"]]
    assert began == [datetime(2026, 10, 1, 6, tzinfo=UTC) + n * timedelta(hours=1) for n in range(24)]
    if by != "component":
        # What is shown of a value over time is what its breakdown says.
        for place, value in enumerate(trend["values"]):
            row = next(row for row in view["by"][by] if row["value"] == value)
            assert total(point["parts"][place] for point in trend["points"]) == (money(row["cost"]) or 0)


def test_the_forecast_is_that_of_its_query_also_where_the_days_are_known(world: Site, store: Store) -> None:
    assert DAYS.search(find("forecast").text(())[0]), "the query reads the ledger in another way now"
    for since, until, where in (
        ("2026-09-02", "2026-10-02T06:00:00Z", []),
        ("2026-09-02", "2026-10-02T06:00:00Z", ["tenant=acme"]),
        ("2026-08-20", "2026-10-20", []),
        ("2026-09-02", "2026-10-30", ["model=mystery"]),
        ("2026-10-01", "2026-10-02", []),
        ("2026-09-02", "2026-10-30", ["model=none"]),
        # The month began before the window.
        ("2026-10-01T12:00:00Z", "2026-10-31T12:00:00Z", []),
        ("2026-10-01T12:00:00Z", "2026-10-31T12:00:00Z", ["model=mystery"]),
        ("2026-10-02T05:00:00Z", "2026-10-31T12:00:00Z", ["tenant=acme"]),
        ("2026-10-02T07:00:00Z", "2026-10-31T12:00:00Z", []),
    ):
        told = world.get("executive", since=since, until=until, where=where)["forecast"]
        rows = run(store, "forecast", until=datetime.fromisoformat(until).replace(tzinfo=UTC), where=where)
        if not rows:
            assert told is None
            continue
        assert {name: told[name] for name in rows[0]} == plain(rows[0]), (since, until)


def test_a_breakdown_with_many_values_ends_with_all_the_others(store_url: str, tmp_path: Path) -> None:
    with open_store(store_url) as store:
        store.migrate()
        spans = [made(n, n, asked("small", (1000 * n, 0)) | tags(f"t{n:02}", "chat"), ms=100) for n in range(1, 26)] + [
            made(26, 26, asked("mystery", (10, 1)) | tags("nobody's", "chat"), ms=100)
        ]
        send(store, tmp_path / "journal", request_of(({"service.name": "shop"}, spans)))
        with site(store) as page:
            for by in ("tenant", "component"):
                view = page.get("executive", by=by)
                rows = view["by"]["tenant"]
                assert [row["value"] for row in rows[:3]] == ["t25", "t24", "t23"]
                assert rows[-1]["rest"] is True
                assert rows[-1]["value"] == 16
                assert not any(row["rest"] for row in rows[:-1])
                for name in ("inferences", "priced", "unpriced", "partial", "rows", "unpriced_rows"):
                    assert sum(row[name] for row in rows) == view["spend"][name], name
                assert total(row["cost"] for row in rows) == money(view["spend"]["cost"]) == Decimal("0.325")
                assert rows[-1]["unpriced"] == 1
                assert money(rows[-1]["cost"]) == Decimal("0.12")
            trend = page.get("executive", by="tenant")["trend"]
            assert trend["rest"] is True
            assert len(trend["values"]) == 8
            assert total(each for point in trend["points"] for each in point["parts"]) == Decimal("0.325")


def test_a_window_stands_beside_the_one_before_it(store_url: str, tmp_path: Path) -> None:
    with open_store(store_url) as store:
        store.migrate()
        spans = [
            made(1, 1, asked("small", (1_000_000, 0)) | tags("acme"), ms=100),
            made(2, 2, asked("small", (2_000_000, 0)) | tags("globex"), ms=100),
        ]
        send(store, tmp_path / "journal", request_of(({"service.name": "shop"}, spans)))
        later = NOON + timedelta(milliseconds=1, microseconds=500)  # between the two
        with site(store) as page:
            view = page.get("executive", since=later.isoformat(), until=(later + timedelta(hours=1)).isoformat())
    assert money(view["spend"]["cost"]) == 2
    assert money(view["spend_before"]["cost"]) == 1
    assert view["change"] == {"cost": "1.000000000000", "share": 1.0}
    assert view["before"]["until"] == later.isoformat()
    assert [(row["value"], money(row["before"]), money(row["change"])) for row in view["by"]["tenant"]] == [
        ("globex", 0, 2)
    ]
    assert [(each["dimension"], each["value"], money(each["change"])) for each in view["drivers"]][:3] == [
        ("tenant", "globex", 2),
        ("feature", None, 1),
        ("model", "small", 1),
    ]
    assert {"acme"} == {each["value"] for each in view["drivers"] if (money(each["change"]) or 0) < 0}


def test_without_a_window_before_nothing_is_said_to_have_changed(world: Site) -> None:
    view = world.get("executive")
    assert view["before"] is None
    assert view["spend_before"] is None
    assert view["change"] is None
    assert view["drivers"] == []


def test_a_cost_that_nobody_knows_is_no_zero(world: Site) -> None:
    view = world.get("executive", where="model=mystery")
    assert view["spend"]["cost"] is None
    assert view["spend"]["cost_per_inference"] is None
    assert view["spend"]["inferences"] == view["spend"]["unpriced"] == 1
    assert [row["cost"] for row in view["by"]["tenant"]] == [None]
    assert {point["cost"] for point in view["trend"]["points"]} == {None, "0"}
    assert world.get("oncall", where="model=mystery")["now"]["cost"] is None
    assert world.get("calls", where="model=mystery")["total"] == {"calls": 1, "cost": None, "unpriced": 1}


def test_the_on_call_view_says_what_the_ledger_says(world: Site, store: Store) -> None:
    view = world.get("oncall")
    (whole,) = ledger(store, "total")
    now = view["now"]
    assert money(now["cost"]) == whole["cost"]
    assert now["inferences"] == whole["inferences"] == 13
    assert now["retries"] == whole["retries"]
    assert now["cold_starts"] == whole["cold_starts"]
    assert (now["calls"], now["errors"]) == (14, 2)
    assert now["error_share"] == 2 / 14
    assert money(now["cost_per_h"]) == round(Decimal("0.14714") / 24, 12)
    assert now["p50_ms"] <= now["p95_ms"] <= now["p99_ms"] <= 2100
    assert total(point["cost"] for point in view["rate"]) == whole["cost"]
    for name in ("inferences", "calls", "errors", "cold_starts", "unpriced"):
        assert sum(point[name] for point in view["rate"]) == now[name], name
    empty = next(point for point in view["rate"] if not point["calls"])
    assert empty["cost"] == "0"
    assert empty["p95_ms"] is None
    assert {row["value"] for row in view["by"]["tenant"]} == {"acme", "globex", None}
    assert [row["errors"] for row in view["by"]["error_type"]] != []
    assert view["before"] is None
    assert view["last"].startswith("2026-10-01T13:00:00")
    # No service around it: what only one knows is not known.
    assert view["lag"] is None
    assert view["ready"] is None
    assert view["trouble"] == []


def test_how_fast_a_budget_is_spent(world: Site, store: Store) -> None:
    view = world.get("oncall", budget="10.00")
    (forecast,) = ledger(store, "forecast")
    assert money(view["budget"]["spent"]) == forecast["spent"] == Decimal("0.14714")
    assert money(view["budget"]["forecast"]) == forecast["forecast"]
    assert view["budget"]["month"] == "2026-10-01"
    assert view["budget"]["budget"] == "10.00"
    # October has 31 days; the window is one.
    assert view["budget"]["burn_rate"] == pytest.approx(0.14714 * 31 / 10)
    assert view["budget"]["share"] == pytest.approx(0.014714)
    left_days = (10 - 0.14714) / 0.14714
    gone = datetime.fromisoformat(view["budget"]["exhausted_at"])
    assert gone == pytest.approx(
        datetime.fromisoformat(DAY["until"]) + timedelta(days=left_days), abs=timedelta(seconds=2)
    )
    assert world.get("oncall")["budget"]["burn_rate"] is None


def test_the_debug_view_says_what_the_named_queries_say(world: Site, store: Store) -> None:
    view = world.get("debug")
    for part, name in (
        ("traces", "traces"),
        ("batches", "batches"),
        ("features", "chattiness"),
        ("loops", "runaway-loops"),
    ):
        told = ledger(store, name, limit=20)
        assert len(view[part]) == len(told)
        assert [money(row["cost"]) for row in view[part]] == [row["cost"] for row in told], name
    models = {(row["provider"], row["model"]): row for row in ledger(store, "by-model", None, "kind=inference")}
    assert {(row["provider"], row["model"]): (money(row["cost"]), row["inferences"]) for row in view["models"]} == {
        name: (row["cost"], row["inferences"]) for name, row in models.items() if row["inferences"]
    }


def test_every_named_query_answers_in_the_words_of_the_command_line(world: Site, store: Store) -> None:
    for name, query in named_queries().items():
        given = {"set": f"trace={1:032x}"} if name == "trace" else {}
        answer = world.ask(f"/api/query/{name}", **DAY, **given)
        if query.needs and not given:
            assert answer.status_code == 400
            assert f"needs set {query.needs[0]}" in answer.json()["error"]
            continue
        assert answer.status_code == 200, (name, answer.text)
        found = answer.json()
        assert found["title"] == query.title
        if not found["rows"]:
            assert found["nothing"]["text"]
    found = world.get("query/cost", by="tenant,day", where=["environment=prod", "tenant!=acme"], limit=2)
    assert found["columns"][:2] == ["tenant", "day"]
    assert len(found["rows"]) == 2


# -- from a figure to its charges -------------------------------------------------------------------------------------


def test_from_the_headline_to_a_single_charge_and_its_price(world: Site) -> None:
    view = world.get("executive")
    why = view["figures"]["spend"]
    behind = world.get("calls", only=why["only"])
    assert money(behind["total"]["cost"]) == money(view["spend"]["cost"])
    assert total(row["cost"] for row in behind["rows"]) == money(view["spend"]["cost"])
    row = next(row for row in behind["rows"] if row["span_id"].endswith("02"))
    tree = world.ask(f"/api/trace/{row['trace_id']}").json()
    node = next(each for each in tree["rows"] if each["span_id"] == row["span_id"])
    assert node["charged"]
    assert node["cost"] == row["cost"] == "0.001640000000"
    assert money(tree["total"]["cost"]) == Decimal("0.02864")
    assert tree["total"]["inferences"] == 3
    assert all(0 <= each["offset_ms"] <= tree["duration_ms"] for each in tree["rows"])
    # Sampling kept none of its bodies.
    assert (tree["root"], tree["recorded"], tree["kept"], len(tree["rows"])) == ("span 1", 4, False, 4)
    told = world.ask(f"/api/charge/{row['trace_id']}/{row['span_id']}").json()
    assert [(each["meter"], money(each["quantity"]), money(each["cost"])) for each in told["charges"]] == [
        ("tokens.input.uncached", 600, Decimal("0.0006")),
        ("tokens.input.cache_read", 400, Decimal("0.00004")),
        ("tokens.output", 250, Decimal("0.001")),
    ]
    assert told["charges"][0]["words"] == "600 tokens × 1 USD per 1,000,000 tokens = 0.0006 USD"
    assert told["sum"] == "0.0006 + 0.00004 + 0.001 = 0.00164 USD"
    assert told["row"]["status_words"].startswith("priced")
    assert told["book"]["same"] is True
    assert told["notes"] == []
    price = told["charges"][0]["price"]
    assert price["same"]
    assert price["id"] == told["charges"][0]["price_id"]
    assert money(price["amount"]) == 1
    assert price["lines"][0] == "600 token × 1 USD per 1000000 token = 0.0006 USD"
    assert any("price" in line for line in price["lines"][1:])


def test_every_row_of_the_ledger_is_explained(world: Site) -> None:
    for row in world.get("calls")["rows"]:
        told = world.ask(f"/api/charge/{row['trace_id']}/{row['span_id']}")
        assert told.status_code == 200, told.text
        found = told.json()
        assert total(each["cost"] for each in found["charges"]) == (money(row["cost"]) or 0), row
        assert found["row"]["cost"] == row["cost"]
        for each in found["charges"]:
            assert each["words"]
            assert each["price"] is not None
            if each["cost"] is not None:
                assert each["price"]["same"], each
                assert f"{each['words'].rpartition(' USD')[0].rpartition(' ')[2]}" in each["price"]["lines"][0]
        if row["cost"] is None:
            assert found["sum"] == f"not known ({row['cost_status']})"


def test_a_price_of_another_book_is_said_to_be_one(store: Store, tmp_path: Path, world: Site) -> None:
    (tmp_path / "new.yaml").write_text(BOOK.replace('version: "1"', 'version: "2"').replace("amount: 4,", "amount: 5,"))
    newer = PriceEngine(load_book(tmp_path / "new.yaml", shipped=False))
    row = next(row for row in world.get("calls")["rows"] if row["model"] == "small" and row["cost"])
    with site(store, live=Live(engine=lambda: newer)) as page:
        told = page.ask(f"/api/charge/{row['trace_id']}/{row['span_id']}").json()
    assert told["book"]["same"] is False
    assert "may differ" in told["notes"][0]
    output = next(each for each in told["charges"] if each["meter"] == "tokens.output")
    assert "× 4 USD" in output["words"]
    assert output["price"]["same"] is False
    with site(store) as page:  # nobody has prices
        told = page.ask(f"/api/charge/{row['trace_id']}/{row['span_id']}").json()
    assert all(each["price"] is None and each["words"] for each in told["charges"])


def test_what_is_behind_a_figure_adds_up_to_it(world: Site, store: Store) -> None:
    view = world.get("executive")
    for component in view["components"]:
        only = f"component:{component['component']}"
        behind = world.get("calls", only=only, limit=1000)
        assert money(behind["total"]["cost"]) == money(component["cost"]), only
        assert total(row["amount"] for row in behind["rows"]) == (money(component["cost"]) or 0), only
    for name in ("tenant", "feature", "model"):
        for row in view["by"][name]:
            behind = world.get("calls", where=f"{name}={row['value'] or ''}")
            assert (money(behind["total"]["cost"]), behind["total"]["calls"]) == (money(row["cost"]), row["rows"])
    oncall = world.get("oncall")["now"]
    for only, count in (
        ("inferences", oncall["inferences"]), ("unpriced", oncall["unpriced"]), ("errors", oncall["errors"]),
        ("cold_starts", oncall["cold_starts"]), ("priced", view["spend"]["priced"]), ("", 20),
        ("unpriced_rows", view["spend"]["unpriced_rows"]), ("idle", 2), ("loads", 1), ("reads", 1), ("batches", 4),
    ):  # fmt: skip
        behind = world.get("calls", only=only)
        assert behind["total"]["calls"] == len(behind["rows"]) == count, only
    for only in ONLY:
        assert world.get("calls", only=only)["total"]["calls"] >= 0


def test_calls_come_in_the_order_that_was_asked_for(world: Site) -> None:
    for order, key in (("latency", "duration_ms"), ("time", "start_time")):
        found = [row[key] for row in world.get("calls", order=order)["rows"]]
        assert found == sorted(found, reverse=True), order
    costs = [money(row["cost"]) for row in world.get("calls")["rows"]]
    known = [each for each in costs if each is not None]
    assert known == sorted(known, reverse=True)
    assert costs[: len(known)] == known
    few = world.get("calls", limit=3)
    assert len(few["rows"]) == 3
    assert few["more"] is True
    assert few["total"]["calls"] == 20
    assert world.get("calls", limit=20)["more"] is False


def test_the_sql_of_an_explanation_gives_the_figure(world: Site, store: Store) -> None:
    told = world.get("explain/cost", by="tenant", where="environment=prod")
    assert told["definition"]
    assert told["formula"]
    assert told["pitfalls"]
    assert "FINAL" in told["sql"]
    assert "prod" not in told["sql"]
    assert told["parameters"]["where_0"] == "prod"
    assert store.rows(told["sql"], told["parameters"]) == ledger(store, "cost", "tenant", "environment=prod")
    assert told["command"].startswith("tollspan query cost --since 2026-10-01T06:00:00Z")
    assert "--by tenant --where environment=prod" in told["command"]
    for name in named_queries():
        assert world.ask(f"/api/explain/{name}", **DAY).status_code == 200, name
    for view in ("executive", "oncall", "debug"):
        for figure, why in world.get(view)["figures"].items():
            by = {"by": why["by"]} if why["by"] else {}
            assert world.ask(f"/api/explain/{why['query']}", **DAY, **by).status_code == 200, figure
            assert why["only"] in ONLY


def test_values_of_a_dimension_for_filters(world: Site, store: Store) -> None:
    found = world.get("values/tenant")
    assert {row["value"]: money(row["cost"]) for row in found["rows"]} == {
        row["tenant"]: row["cost"] for row in ledger(store, "cost", "tenant")
    }
    assert [row["value"] for row in world.get("values/tenant", contains="CM")["rows"]] == ["acme"]
    assert world.get("values/tenant", contains=HOSTILE)["rows"] == []
    assert world.get("values/model", limit=1)["more"] is True


def test_values_that_look_like_something_else_are_values(store_url: str, tmp_path: Path) -> None:
    with open_store(store_url) as store:
        store.migrate()
        long = "x" * 1000
        spans = [
            made(1, 1, asked("small", (1000, 0)) | tags(HOSTILE), ms=100),
            made(2, 2, asked("small", (2000, 0)) | tags(long), ms=100),
        ]
        send(store, tmp_path / "journal", request_of(({"service.name": "shop"}, spans)))
        with site(store) as page:
            view = page.get("executive", by="tenant")
            assert view["trend"]["values"] == [long, HOSTILE]
            assert total(each for point in view["trend"]["points"] for each in point["parts"]) == Decimal("0.003")
            for value, cost in ((HOSTILE, "0.001"), (long, "0.002")):
                for path in ("executive", "query/total"):
                    found = page.get(path, where=f"tenant={value}")
                    told = found["spend"]["cost"] if path == "executive" else found["rows"][0]["cost"]
                    assert money(told) == Decimal(cost)
            assert page.get("values/tenant", contains="onerror")["rows"][0]["value"] == HOSTILE
            assert page.ask("/").headers["content-security-policy"].startswith("default-src 'none'")


# -- bad input and empty ledgers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "params", "says"),
    [
        ("executive", {"since": "yesterday"}, "since 'yesterday' is neither an instant nor an age"),
        ("executive", {"since": "2026-11-02", "until": "2026-11-01"}, "is not before until"),
        ("executive", {"sinse": "24h"}, "did you mean since?"),
        ("executive", {"since": ["24h", "7d"]}, "since is there twice"),
        ("executive", {"by": "tennant"}, "There is no dimension 'tennant'. | Did you mean tenant"),
        ("executive", {"by": "tenant,model"}, "stacked by one dimension"),
        ("executive", {"by": "day"}, "goes over time already"),
        ("executive", {"where": "tenant"}, "where 'tenant' is no filter"),
        ("executive", {"where": "tenat=acme"}, "Did you mean tenant"),
        ("executive", {"where": "day=2026-10-01"}, "Use since and until"),
        ("query/cots", {}, "Did you mean cost"),
        ("query/cost", {"limit": "0"}, "would show no rows"),
        ("query/cost", {"limit": "many"}, "is no number of rows"),
        ("query/cost", {"set": "level=2"}, "names no parameter of cost"),
        ("query/trace", {}, "needs set trace"),
        ("query/total", {"by": "tenant"}, "cannot be broken down"),
        ("calls", {"order": "price"}, "order 'price' is not known"),
        ("calls", {"only": "error"}, "did you mean errors?"),
        ("calls", {"only": "component:gpu"}, "is not known"),
        ("oncall", {"budget": "lots"}, "is no amount above zero"),
        ("oncall", {"budget": "0"}, "is no amount above zero"),
        ("values/tenat", {}, "Did you mean tenant"),
        ("trace/xyz", {}, "is no trace id"),
        ("charge/" + "0" * 32 + "/12", {}, "is no span id"),
        ("about", {"since": "24h"}, "There is no parameter 'since' here"),
    ],
)
def test_bad_input_is_said_in_words(world: Site, path: str, params: dict[str, Any], says: str) -> None:
    error, hint = world.refused(f"/api/{path}", 400, **params)
    assert says in f"{error} | {hint}", (error, hint)
    assert not re.search(r"--(since|until|where|by|limit|set)", error + hint)  # no options here


@pytest.mark.parametrize(
    "path", ["/api/nothing", "/api/query", "/api/trace", "/api/charge/" + "0" * 32, "/api/about/x", "/secrets.txt",
             "/../views.py", "/%2e%2e/views.py", "/api/trace/" + "f" * 32,
             "/api/charge/" + "0" * 31 + "1/" + "f" * 16]
)  # fmt: skip
def test_what_is_not_here_is_said_to_be_not_here(world: Site, path: str) -> None:
    error, hint = world.refused(path, 404)
    assert error
    assert hint


def test_an_empty_ledger_says_what_to_do(store: Store, store_url: str) -> None:
    with open_store(store_url) as empty:
        empty.migrate()
        with site(empty) as page:
            about = page.ask("/api/about").json()
            assert about["extent"] is None
            assert "tollspan demo" in about["nothing"]["hint"]
            for path in ("executive", "oncall", "debug", "calls", "query/cost", "values/tenant"):
                found = page.ask(f"/api/{path}").json()
                assert "empty" in found["nothing"]["text"], path
            assert page.ask("/api/executive").json()["spend"]["cost"] == "0"
            assert page.ask("/api/executive", since="all").json()["nothing"]["text"]


def test_a_window_with_nothing_in_it_says_where_the_ledger_is(world: Site) -> None:
    for path in ("executive", "oncall", "debug", "calls", "query/cost", "values/tenant"):
        nothing = world.get(path, since="2026-09-01", until="2026-09-02")["nothing"]
        assert "2026-10-01 12:00 UTC" in nothing["hint"], path


def test_without_a_window_each_view_has_its_own(world: Site) -> None:
    about = world.ask("/api/about").json()
    for view, length in about["views"].items():
        found = world.ask(f"/api/{view}").json()
        since = datetime.fromisoformat(found["since"])
        days = {"30d": 30.0, "24h": 1.0, "1h": 1 / 24}[length]
        assert (datetime.now(UTC) - since) / timedelta(days=1) == pytest.approx(days, abs=0.01)
    assert world.ask("/api/executive", since="all").json()["since"] is None
    names = {each["name"] for each in about["queries"]}
    assert names == set(named_queries())
    assert {each["name"] for each in about["only"]} == set(ONLY)


@pytest.mark.parametrize("length", [0.02, 1, 6, 24, 24 * 7, 24 * 30, 24 * 90, 24 * 365, 24 * 365 * 30])
def test_a_window_has_a_handful_of_steps_that_cover_it(length: float) -> None:
    until = datetime(2026, 11, 5, 17, 23, 11, 987_654, UTC)
    window = Window.of(None, until - timedelta(hours=length), until)  # type: ignore[arg-type]
    steps = window.steps
    assert 1 <= len(steps) <= 95
    assert steps[0] <= window.since < steps[0] + timedelta(seconds=window.step_s)
    assert steps[-1] < until <= steps[-1] + timedelta(seconds=window.step_s)
    if window.step_s == 7 * 86_400:
        assert all(each.weekday() == 0 and each.hour == 0 for each in steps)


# -- who may ask, and how ----------------------------------------------------------------------------------------------


def test_every_answer_is_sealed(world: Site) -> None:
    for path in ("/", "/api/about", "/api/nothing", "/nothing", "/api/executive?since=x"):
        answer = world.client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy.replace("style-src 'self' 'unsafe-inline'", "")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
        if path.startswith("/api"):
            assert answer.headers["cache-control"] == "no-store"


def test_files_are_kept_by_browsers_and_asked_about(world: Site) -> None:
    first = world.client.get("/")
    assert first.status_code == 200
    assert first.headers["content-type"].startswith("text/html")
    again = world.client.get("/", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304
    assert first.headers["cache-control"] == "no-cache"
    assert world.client.head("/").status_code == world.client.head("/api/about").status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_changed(world: Site, method: str) -> None:
    for path in ("/", "/api/about", "/api/query/cost"):
        answer = world.client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8130"}, 403),
        ({"host": "localhost"}, 200),
        ({"host": "LOCALHOST:8130"}, 200),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "[::1]:8130"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
    ],
)
def test_other_sites_and_rebound_names_get_nothing(world: Site, headers: dict[str, str], status: int) -> None:
    assert world.client.get("/api/about", headers=headers).status_code == status
    if "sec-fetch-site" in headers:
        # A link on another site may lead to the page itself.
        assert world.client.get("/", headers=headers).status_code == 200


def test_an_open_address_needs_tls_and_a_login_or_the_word_of_its_owner(
    store: Store, certificates: Certificates, tmp_path: Path
) -> None:
    readers, _ = reader_file(tmp_path)
    tls = Tls(certificates.files)
    for given, says in (({}, "not encrypted"), ({"tls": tls}, "may look"), ({"readers": readers}, "not encrypted")):
        of = opened(store)
        with pytest.raises(ConfigError, match=says):
            Page(of, Api("x"), address="0.0.0.0:0", **given)  # type: ignore[arg-type]
        of.stop()
    made = Page(opened(store), Api("x"), address="0.0.0.0:0", insecure_listen=True)
    port = made.start().rpartition(":")[2]
    assert httpx.get(f"http://127.0.0.1:{port}/api/about", headers={"host": "any.name"}).status_code == 200
    made.stop()
    with pytest.raises(ConfigError, match="no address"):
        Page(opened(store), Api("x"), address="somewhere")


def reader_file(folder: Path) -> tuple[Readers, str]:
    token, digest = new_token()
    path = folder / "readers.yaml"
    path.write_text(yaml.safe_dump({"readers": [{"id": "ann", "sha256": digest}]}))
    return Readers(path, Counters()), token


def test_readers_log_in_under_tls(store: Store, certificates: Certificates, tmp_path: Path) -> None:
    readers, token = reader_file(tmp_path)
    made = Page(opened(store), Api("x"), address="127.0.0.1:0", tls=Tls(certificates.files), readers=readers)
    made.start()
    assert made.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(certificates.ca_file))
    base = made.url.replace("127.0.0.1", "localhost")
    try:
        with httpx.Client(base_url=base, verify=context) as client:
            for path in ("/", "/api/about", "/app.js"):
                refused = client.get(path)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"].startswith("Basic ")
                assert client.get(path, auth=("ann", "wrong")).status_code == 401
                assert client.get(path, auth=("bob", token)).status_code == 401
                assert client.get(path, headers={"authorization": "Basic !!!"}).status_code == 401
            assert client.get("/", auth=("ann", token)).status_code == 200
            assert client.get("/api/about", auth=("ann", token)).status_code == 200
            assert client.get("/api/about", headers={"authorization": f"Bearer {token}"}).status_code == 200
            plain = base64.b64encode(b"ann:\xff").decode()
            assert client.get("/", headers={"authorization": f"Basic {plain}"}).status_code == 401
    finally:
        made.stop()


# -- load, slowness and faults -----------------------------------------------------------------------------------------


class Slow:
    """Handles whose queries wait until they are let go, or killed."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked = threading.Semaphore(0)
        self.opened: list[Mapping[str, str]] = []
        self.killed: list[str] = []
        self.closed = 0

    def open(self, settings: Mapping[str, str]) -> Any:
        slow = self
        self.opened.append(settings)
        tag = settings["log_comment"]

        class Handle:
            def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
                slow.asked.release()
                while not slow.go.wait(0.01):
                    if tag in slow.killed:
                        raise StoreUnavailable("Query was cancelled.")
                return []

            def close(self) -> None:
                slow.closed += 1

        return Handle()

    def kill(self, tag: str) -> None:
        self.killed.append(tag)


def test_the_same_question_at_once_is_one_query_and_soon_after_none(store: Store) -> None:
    slow = Slow()
    counters = Counters()
    of = Source(slow.open, slow.kill, counters)
    with site(of=of) as page, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(page.client.get, "/api/query/total") for _ in range(8)]
        assert slow.asked.acquire(timeout=10)
        while counters.get("page.reused") < 7:
            time.sleep(0.005)
        slow.go.set()
        answers = [each.result(20) for each in asked]
        # `rows`, and `extent` for why there are none of them.
        assert {each.status_code for each in answers} == {500}
    assert counters.get("page.questions") == 1


def test_an_answer_is_given_again_for_some_seconds_and_says_so(store: Store) -> None:
    now = [100.0]
    counters = Counters()
    of = Source(lambda settings: store.reader(settings), counters=counters, clock=lambda: now[0])
    with site(of=of) as page:
        first, second = page.get("query/total"), page.get("query/total")
        assert first["reused"] is False
        assert second["reused"] is True
        assert second["computed_at"] == first["computed_at"]
        assert first["took_ms"] >= 0
        now[0] += source.REUSE_S
        assert page.get("query/total")["reused"] is False
        assert counters.get("page.questions") == 2
        assert counters.get("page.reused") == 1
        # Not for another window or filter.
        assert page.get("query/total", where="tenant=acme")["reused"] is False


def test_more_than_is_good_is_refused_in_words_and_files_are_still_served(store: Store) -> None:
    slow = Slow()
    of = Source(slow.open, slow.kill)
    with site(of=of) as page, ThreadPoolExecutor(64) as pool:
        asked = [pool.submit(page.client.get, f"/api/trace/{n:032x}") for n in range(source.AT_ONCE + source.QUEUE + 4)]
        for _ in range(source.AT_ONCE):
            assert slow.asked.acquire(timeout=10)
        refused = next(each for each in _as_they_come(asked) if each.status_code == 429)
        assert refused.headers["retry-after"]
        assert "Try again" in refused.json()["hint"]
        assert page.client.get("/").status_code == 200  # no thread of the pool is needed
        assert page.client.get("/api/explain/cost").status_code == 200
        assert len(slow.opened) == source.AT_ONCE
        slow.go.set()
        codes = [each.result(20).status_code for each in asked]
    assert codes.count(429) == 4
    assert codes.count(404) == source.AT_ONCE + source.QUEUE
    assert slow.closed == len(slow.opened)


def _as_they_come(futures: list[Any]) -> Iterator[httpx.Response]:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        yield from (each.result() for each in futures if each.done())
        time.sleep(0.01)


def test_a_question_that_nobody_waits_for_is_stopped(store: Store) -> None:
    slow = Slow()
    counters = Counters()
    of = Source(slow.open, slow.kill, counters)
    with site(of=of) as page:
        with pytest.raises(httpx.TimeoutException):
            page.client.get("/api/query/total", timeout=0.3)
        until = time.monotonic() + 10
        while not slow.killed and time.monotonic() < until:
            time.sleep(0.01)
        assert slow.killed == [slow.opened[0]["log_comment"]]
        assert counters.get("page.given_up") == 1


def test_one_who_leaves_does_not_take_the_answer_from_the_others(store: Store) -> None:
    slow = Slow()
    of = Source(slow.open, slow.kill)
    with site(of=of) as page, ThreadPoolExecutor(2) as pool:
        patient = pool.submit(page.client.get, f"/api/trace/{'0' * 32}")
        assert slow.asked.acquire(timeout=10)
        with pytest.raises(httpx.TimeoutException):
            page.client.get(f"/api/trace/{'0' * 32}", timeout=0.3)
        time.sleep(0.1)
        slow.go.set()
        assert patient.result(20).status_code == 404
        assert slow.killed == []


def test_a_query_that_takes_too_long_is_stopped_by_the_engine_and_said(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = source.LIMITS
    monkeypatch.setattr(source, "LIMITS", {**usual, "max_execution_time": "0.2"})

    def forever(reader: Any, **_: Any) -> dict[str, Any]:
        return {"rows": reader.rows("SELECT sum(cityHash64(number)) AS n FROM numbers(1000000000000)")}

    monkeypatch.setattr("tollspan.processor.page.details.trace", forever)
    with site(store) as page:
        began = time.monotonic()
        answer = page.ask(f"/api/trace/{'0' * 32}")
        assert answer.status_code == 503
        assert "took longer" in answer.json()["error"]
        assert time.monotonic() - began < 10
        monkeypatch.setattr(source, "LIMITS", usual)
        assert page.get("query/total")["rows"]  # and the page goes on


def test_a_stop_stops_what_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def forever(reader: Any, **_: Any) -> dict[str, Any]:
        began.set()
        return {"rows": reader.rows("SELECT sum(cityHash64(number)) AS n FROM numbers(1000000000000)")}

    monkeypatch.setattr("tollspan.processor.page.details.trace", forever)
    with ThreadPoolExecutor(1) as pool:
        page = Site(store)
        asked = pool.submit(page.client.get, f"/api/trace/{'0' * 32}")
        assert began.wait(10)
        time.sleep(0.2)
        stopped = time.monotonic()
        page.page.stop()
        assert time.monotonic() - stopped < 5
        with_answer = asked.exception(10) is None
        assert not with_answer or asked.result().status_code == 503
        page.client.close()
    (row,) = store.rows("SELECT count() AS n FROM system.processes WHERE query LIKE '%numbers(1000000000000)%'")
    assert row["n"] <= 1  # this one


def test_a_store_that_is_away_is_said_and_comes_back(store: Store) -> None:
    away = [True]

    def open_it(settings: Mapping[str, str]) -> Any:
        if away[0]:
            raise StoreUnavailable("ClickHouse at ch:8123 does not answer: connection refused.", "Check host and port.")
        return store.reader(settings)

    with site(of=Source(open_it)) as page:
        answer = page.ask("/api/executive", **DAY)
        assert answer.status_code == 503
        assert answer.json() == {
            "error": "ClickHouse at ch:8123 does not answer: connection refused.",
            "hint": "Check host and port.",
        }
        assert page.client.get("/").status_code == 200
        assert page.ask("/api/state").status_code == 200
        away[0] = False
        assert page.get("executive")["spend"]["rows"] == 20


def test_a_fault_of_ours_is_one_line_to_the_browser(world: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr("tollspan.processor.page.details.calls", broken)
    answer = world.ask("/api/calls", where="tenant=faulty")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["hint"]
    assert "content-security-policy" in answer.headers
    monkeypatch.undo()
    assert world.get("calls", where="tenant=faulty")["total"]["calls"] == 0


def test_a_handle_cannot_write_and_keeps_its_limits(store: Store) -> None:
    handle = store.reader({**source.LIMITS, "log_comment": "x"})
    (row,) = handle.rows(
        "SELECT getSetting('readonly') AS readonly, getSetting('max_execution_time') AS s,"
        " getSetting('log_comment') AS tag, getSetting('max_threads') AS threads"
    )
    assert (row["readonly"], row["s"], row["tag"]) == (1, source.LONGEST_S, "x")
    assert row["threads"] <= 4
    handle.close()


# -- in a service ------------------------------------------------------------------------------------------------------


def test_a_service_has_the_page_and_takes_spans_while_it_is_asked(tmp_path: Path) -> None:
    with Process(tmp_path / "store", ["--page", "127.0.0.1:0", "--keep", "1"]) as service:
        url = service.info["page"]
        page = httpx.Client(base_url=url, timeout=60)
        assert page.get("/api/about").json()["live"] is True
        assert "empty" in page.get("/api/executive").json()["nothing"]["text"]
        ended = threading.Event()
        asked = [0]

        def look() -> None:
            while not ended.is_set():
                for path in ("executive", "oncall", "debug"):
                    answer = httpx.get(f"{url}api/{path}?where=tenant=t{asked[0]}", timeout=60)
                    assert answer.status_code == 200, answer.text
                    asked[0] += 1

        with ThreadPoolExecutor(2) as pool:
            lookers = [pool.submit(look) for _ in range(2)]
            slowest = 0.0
            for batch in range(40):
                began = time.monotonic()
                service.export(payload([chat(50 * batch + n + 1) for n in range(50)]))
                slowest = max(slowest, time.monotonic() - began)
            ended.set()
            for each in lookers:
                each.result(60)
        assert asked[0] >= 6
        assert slowest < 5
        until = time.monotonic() + 60
        while page.get("/api/executive?since=all").json()["spend"]["rows"] < 2000:
            assert time.monotonic() < until
            time.sleep(0.2)
        state = page.get("/api/state").json()
        assert state["ready"] is True
        assert state["trouble"] == []
        assert state["lag"]["journal_cap_bytes"] > 0
        oncall = page.get("/api/oncall?since=all").json()
        assert oncall["now"]["inferences"] == 2000
        assert oncall["lag"]["seconds"] is not None
        row = page.get("/api/calls?since=all&limit=1").json()["rows"][0]
        told = page.get(f"/api/charge/{row['trace_id']}/{row['span_id']}").json()
        assert told["book"]["same"] is True
        assert all(each["price"]["lines"] for each in told["charges"])
        page.close()


def test_the_page_can_be_off_and_gives_way_only_where_nobody_named_its_port(tmp_path: Path) -> None:
    with Process(tmp_path / "off", ["--page", "off"]) as service:
        assert service.info["page"] == ""
    with Process(tmp_path / "one", ["--page", "127.0.0.1:0"]) as one:
        address = one.info["page"].removeprefix("http://").rstrip("/")
        refused = tollspan("serve", "--store", f"chdb://{tmp_path}/two", "--listen", "127.0.0.1:0", "--http", "off",
                           "--sql", "off", "--page", address)  # fmt: skip
        assert refused.returncode == 1
        assert "Cannot listen" in refused.stderr
        assert "--page" in refused.stderr


def test_the_page_alone_over_a_store(tmp_path: Path) -> None:
    with Process(tmp_path / "store", ["--page", "off", "--keep", "1"]) as service:
        service.export(payload([chat(n) for n in range(1, 6)]))
        # Beside the service that owns it, by its SQL port, and then by itself.
        with alone(service.url) as url:
            _wait_for(lambda: httpx.get(f"{url}api/executive?since=all").json()["spend"]["inferences"] == 5)
    with alone(service.url) as url:
        assert httpx.get(f"{url}api/executive?since=all").json()["spend"]["inferences"] == 5
        assert httpx.get(f"{url}api/about").json()["live"] is False
        assert httpx.get(f"{url}api/oncall?since=all").json()["ready"] is None
    missing = tollspan("page", "--store", f"chdb://{tmp_path}/nowhere", "--listen", "127.0.0.1:0")
    assert missing.returncode == 1
    assert "There is no store" in missing.stderr


def _wait_for(done: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.1)


@contextmanager
def alone(store: str) -> Iterator[str]:
    command = [sys.executable, "-m", "tollspan.processor.main", "page", "--store", store, "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "the page is at http://" in line, line + process.stderr.read()
        yield line.split()[-1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
