"""Every panel, variable and alert rule answers, with the figures that the ledger has."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest
import yaml

from tollspan.processor.schema.roles import READER_SETTINGS, reader_rights
from tollspan.processor.store import Store, open_store

Make = Callable[[list[dict[str, Any]]], pa.Table]

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
COMPOSE = GRAFANA.parent / "compose"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
ALERTS = yaml.safe_load((GRAFANA / "provisioning" / "alerting" / "rules.yaml").read_text())
RULES = {rule["uid"].removeprefix("tollspan-"): rule for group in ALERTS["groups"] for rule in group["rules"]}


@functools.cache
def started() -> datetime:
    """When the first test of this file began; modules are imported long before that where there are many tests."""
    return datetime.now(UTC).replace(microsecond=0)


MODEL = ("tokens.output", "model", "0.25", "priced")
NETWORK = ("network.egress.bytes", "network", "0.125", "priced")
NO_PRICE = ("gpu.seconds", "compute", None, "unpriced")


def expand(
    sql: str,
    since: datetime,
    until: datetime,
    interval_s: int = 60,
    **variables: str | list[str],
) -> str:
    """SQL as the data source sends it: its macros, then Grafana's variables. A list is a choice; none is All."""

    def seconds(at: datetime) -> str:
        return f"toDateTime({int(at.timestamp())})"

    def chosen(match: re.Match[str]) -> str:
        return match[1] if variables.get(match[2]) else "1=1"

    sql = re.sub(r"\$__conditionalAll\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*), \$(\w+)\)", chosen, sql)
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 >= {seconds(since)} AND \1 <= {seconds(until)}", sql)
    every = rf"toStartOfInterval(toDateTime(\1), INTERVAL {interval_s} second)"
    sql = re.sub(r"\$__timeInterval\((\w+)\)", every, sql)
    sql = sql.replace("$__interval_s", str(interval_s))
    sql = sql.replace("$__fromTime", seconds(since)).replace("$__toTime", seconds(until))
    for name, value in variables.items():
        values = [value] if isinstance(value, str) else value
        quoted = ",".join("'" + each.replace("'", "''") + "'" for each in values)
        sql = sql.replace(f"${{{name}:singlequote}}", quoted)
    assert "$" not in sql, sql
    return sql


def panels() -> list[tuple[str, str, dict[str, Any]]]:
    return [(name, each["title"], each) for name, board in DASHBOARDS.items() for each in board["panels"]]


@pytest.fixture(scope="module")
def full(store_directory: Path) -> Iterator[Store]:
    with open_store(f"chdb://{store_directory}?database=grafana") as store:
        store.migrate()
        yield store
        store.execute("DROP DATABASE grafana")


@pytest.fixture
def store(full: Store, ledger_rows: Make) -> Store:
    """An hour with ten calls of two tenants, one of them without a price, and a call of the hour before."""
    for table in ("ledger", "traces", "spans"):
        full.execute(f"TRUNCATE TABLE {table}")

    def at(minutes: float, **more: Any) -> dict[str, Any]:
        arrived = int((started() - timedelta(minutes=minutes) + timedelta(seconds=3)).timestamp() * 1000)
        revision = 70368744177663 - (arrived - 1577836800000)
        start = started() - timedelta(minutes=minutes)
        return {"start_time": start, "charges": [MODEL], "revision": revision, "duration_ns": 10**9, **more}

    rows = [
        *(at(30, tenant="acme", feature="search", service="api", retries=1) for _ in range(6)),
        at(20, tenant="bolt", feature="chat", charges=[MODEL, NETWORK], batch_size=4),
        at(10, tenant="bolt", charges=[NO_PRICE], model="new"),
        at(5, tenant="bolt", charges=[], cost=None, cost_status="not_billed", span_status="error", error_type="429"),
        at(5, tenant="bolt", charges=[], cost=None, cost_status="rollup"),
        at(5, kind="feature_read", charges=[], cost=Decimal(0), cost_status="free", provider="feast", service="api"),
        at(90, tenant="acme", feature="search"),
    ]
    full.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
    return full


def ask(store: Store, panel: dict[str, Any], **variables: Any) -> list[dict[str, Any]]:
    (target,) = panel["targets"]
    return store.rows(expand(target["rawSql"], started() - timedelta(hours=1), started(), **{"trace": "", **variables}))


def titled(board: str, title: str) -> dict[str, Any]:
    (found,) = [each for each in DASHBOARDS[board]["panels"] if each["title"] == title]
    return dict(found)


def test_the_files_are_what_the_program_makes() -> None:
    spec = importlib.util.spec_from_file_location("grafana_make", GRAFANA / "make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    for path, text in make.files().items():
        if os.environ.get("TOLLSPAN_WRITE_DOCS"):
            path.write_text(text)
        assert path.read_text() == text, "run deploy/grafana/make.py"
    assert {path.stem for path in (GRAFANA / "dashboards").iterdir()} == {"executive", "on-call", "debug"}


@pytest.mark.parametrize(
    ("board", "title", "panel"), panels(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_panel_answers(store: Store, board: str, title: str, panel: dict[str, Any]) -> None:
    trace = (1).to_bytes(16, "big").hex()
    everything = ask(store, panel, trace=trace)
    assert everything or title == "Spans of the trace" or title == "Traces kept"
    # With a choice in every variable, one of them hostile.
    ask(store, panel, trace="x'); --", tenant=["acme", "o'neil"], environment=["p"], service=["api"], model=["a", "b"])
    ask(store, panel, trace="00" * 40)
    store.execute("TRUNCATE TABLE ledger")
    for row in ask(store, panel):
        assert panel["type"] == "stat", f"{title} shows {row} of nothing"


@pytest.mark.parametrize("board", DASHBOARDS)
def test_variables_and_places(store: Store, board: str) -> None:
    made = DASHBOARDS[board]
    for variable in made["templating"]["list"]:
        if variable["type"] == "query":
            found = store.rows(expand(variable["query"]["rawSql"], started() - timedelta(hours=1), started()))
            assert "" not in [row["v"] for row in found]
    taken = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, "panels that lie on each other"
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"]
        assert panel["datasource"] == {"type": "grafana-clickhouse-datasource", "uid": "tollspan"}
        shown = {each["matcher"]["options"] for each in panel["fieldConfig"]["overrides"]}
        columns = set((ask(store, panel) or [dict.fromkeys(shown)])[0])
        assert shown <= columns, "a unit of a column that is not there"
        if panel["type"] == "timeseries" and ask(store, panel):
            assert "time" in columns
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])


def test_the_figures_are_those_of_the_ledger(store: Store) -> None:
    def figure(board: str, title: str, **variables: Any) -> Any:
        ((value,),) = [list(row.values()) for row in ask(store, titled(board, title), **variables)]
        return value

    assert figure("executive", "Spend") == Decimal("1.875")
    assert figure("executive", "Spend", tenant=["bolt"]) == Decimal("0.375")
    assert figure("executive", "Inferences") == 8, "neither a roll-up nor what was not billed"
    assert figure("executive", "Without a price") == 1
    assert figure("executive", "Cost of 1,000 inferences") == pytest.approx(Decimal(1875) / 7, abs=Decimal("1e-11"))
    assert figure("on-call", "Failed") == pytest.approx(1 / 9)
    assert figure("on-call", "Arrival, p95") == pytest.approx(2.0)
    parts = {row["component"]: row["spend"] for row in ask(store, titled("executive", "Spend by part of the bill"))}
    assert parts == {"model": Decimal("1.75"), "network": Decimal("0.125")}
    changes = {row["feature"]: row for row in ask(store, titled("executive", "What changed, by feature"))}
    assert (changes["search"]["before"], changes["search"]["now"]) == (Decimal("0.25"), Decimal("1.5"))
    assert changes["search"]["change"] == Decimal("1.25")
    tenants = {row["name"]: row for row in ask(store, titled("executive", "By tenant"))}
    assert (tenants["bolt"]["spend"], tenants["bolt"]["without_price"]) == (Decimal("0.375"), 1)
    models = {row["name"]: row for row in ask(store, titled("executive", "By model"))}
    assert models["new"]["spend"] is None, "unknown is not zero"
    assert sum(row["rate"] for row in ask(store, titled("on-call", "Inferences by second"))) * 60 == pytest.approx(8)
    assert sum(row["spend"] for row in ask(store, titled("executive", "Spend by feature")) if row["spend"]) == Decimal(
        "1.875"
    )
    dearest = ask(store, titled("debug", "Dearest traces"))[0]
    assert dearest["spend"] == Decimal("0.375")
    charges = ask(store, titled("debug", "Charges of the trace"), trace=dearest["trace"])
    assert sum(row["spend"] for row in charges) == dearest["spend"]
    assert [row["spend"] for row in ask(store, titled("debug", "Calls of the trace"), trace=dearest["trace"])] == [
        dearest["spend"]
    ]


def value(store: Store, rule: str) -> tuple[float, bool]:
    """What an alert rule measures, and whether it is beyond its threshold."""
    query, condition = RULES[rule]["data"]
    ((found,),) = [list(row.values()) for row in store.rows(query["model"]["rawSql"])]
    ((evaluator),) = [each["evaluator"] for each in condition["model"]["conditions"]]
    assert evaluator["type"] == "gt"
    return float(found), found > evaluator["params"][0]


def test_alert_rules_are_whole_and_say_one_figure(store: Store) -> None:
    text = (GRAFANA / "provisioning" / "alerting" / "rules.yaml").read_text()
    assert "$" not in text, "Grafana would read it as a variable of its environment"
    for name, rule in RULES.items():
        assert rule["condition"] == "C"
        assert [each["datasourceUid"] for each in rule["data"]] == ["tollspan", "__expr__"]
        value(store, name)
        store.execute("SELECT 1")
    store.execute("TRUNCATE TABLE ledger")
    assert [name for name in RULES if value(store, name)[1]] == [], "nothing is no alarm"


def test_alert_rules_fire_when_they_should(store: Store, ledger_rows: Make) -> None:
    assert value(store, "unpriced") == (1.0, True)
    assert value(store, "invalid") == (0.0, False)
    assert value(store, "errors") == (0.0, False), "one call is no rate"
    assert value(store, "silence")[1] is False
    now = datetime.now(UTC)
    failed = {"start_time": now, "span_status": "error", "charges": [], "cost_status": "not_billed"}
    dear = {"start_time": now, "charges": [("requests", "model", "9", "priced")]}
    rows = [*(failed for _ in range(15)), *(dear for _ in range(15))]
    store.insert("ledger", ledger_rows(rows), uuid.uuid4().hex)
    rate, fires = value(store, "errors")
    assert fires
    assert rate == pytest.approx(16 / 31, abs=0.02)
    assert value(store, "spend")[1]
    store.execute("TRUNCATE TABLE ledger")
    old = {"start_time": now - timedelta(minutes=40), "charges": [MODEL]}
    store.insert("ledger", ledger_rows([old]), uuid.uuid4().hex)
    assert value(store, "silence") == (pytest.approx(40, abs=1), True)


def test_grafana_asks_as_a_reader_and_is_open_to_this_machine_alone() -> None:
    base = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    more = yaml.safe_load((COMPOSE / "grafana.yaml").read_text())
    grafana = more["services"]["grafana"]
    assert all(port.startswith("127.0.0.1:") for port in grafana["ports"])
    assert set(grafana["networks"]) <= set(base["networks"])
    assert "ports" not in more["services"]["clickhouse"]
    for volume in [*grafana["volumes"], *more["services"]["clickhouse"]["volumes"]]:
        source = volume.split(":")[0]
        assert source in more["volumes"] or (COMPOSE / source).exists(), source
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "clickhouse.yaml").read_text())[
        "datasources"
    ]
    named = set(re.findall(r"\$\{(\w+)\}", json.dumps(source)))
    assert named <= set(grafana["environment"]), "every variable of the data source is given"
    assert (source["uid"], source["type"]) == ("tollspan", "grafana-clickhouse-datasource")
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "files.yaml").read_text())["providers"]
    assert any(volume.split(":")[1] == provider["options"]["path"] for volume in grafana["volumes"])

    users = ElementTree.parse(GRAFANA / "reader.xml").getroot()
    assert users.find("users/grafana") is not None
    assert grafana["environment"]["CLICKHOUSE_READER"] == "grafana"
    assert [each.text for each in users.findall("users/grafana/grants/query")] == [
        f"GRANT {right}" for right in reader_rights("tollspan")
    ]
    for name, given in READER_SETTINGS.items():
        found = users.find(f"profiles/tollspan_reader/{name}")
        assert found is not None
        assert found.text == given.split()[0].strip("'")
