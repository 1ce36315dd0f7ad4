"""A load of a model in the ledger: its kind, what its time and its bytes cost; and cold starts, which it is none of."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from tollspan.pricing import attributes as names
from tollspan.processor.queries import find

from .otlp_factory import START, request, span
from .test_pipeline import Line, line  # noqa: F401 (a fixture)

HOST = {"cloud.provider": "aws", "cloud.region": "us-east-1", "host.type": "m7i.xlarge"}
VCPU_HOUR = Decimal("0.0504")
SECOND = 1_000_000_000

LOAD = {
    names.OPERATION: names.OPERATION_MODEL_LOAD,
    names.PROVIDER: "pytorch",
    names.MODEL: "acme/ranker",
    names.MODEL_SOURCE: "hub:acme/ranker@main",
    names.MODEL_FORMAT: "safetensors",
    names.MODEL_SIZE: 400_000_000,
    names.MODEL_MAPPED: 400_000_000,
    names.MODEL_DOWNLOADED: 400_000_000,
    names.MODEL_CACHED: 0,
    names.CPU_TIME_SOURCE: "process",
    names.TENANT: "acme",
    names.usage("cpu.seconds"): 7.5,
    names.usage("network.ingress.internet.bytes"): 400_000_000,
}
INFERENCE = {
    names.OPERATION: names.OPERATION_INFERENCE,
    names.PROVIDER: "pytorch",
    names.MODEL: "acme/ranker",
    names.usage("cpu.seconds"): 0.25,
}
COLD = {**INFERENCE, names.COLD_START: True, names.COLD_START_SECONDS: 12.5}


def cost(seconds: str) -> Decimal:
    return (Decimal(seconds) * VCPU_HOUR / 3600).quantize(Decimal("0.000000000001"))


@pytest.fixture
def loaded(line: Line) -> Line:  # noqa: F811
    spans = [
        span({**LOAD}, number=1, end_time_unix_nano=START + 9 * SECOND),
        span({**COLD}, number=2, end_time_unix_nano=START + 2 + SECOND),
        span({**INFERENCE}, number=3, end_time_unix_nano=START + 3 + SECOND // 4),
    ]
    line.journal.append(request(spans, HOST)).wait()
    line.drain()
    return line


def test_a_load_costs_its_time_and_its_bytes(loaded: Line) -> None:
    (row,) = loaded.rows(
        "SELECT operation, model, tenant, cost, cost_status, charges.meter AS meters, charges.cost AS costs "
        "FROM ledger FINAL WHERE kind = 'model_load'"
    )
    assert (row["operation"], row["model"], row["tenant"]) == ("model_load", "acme/ranker", "acme")
    assert dict(zip(row["meters"], row["costs"], strict=True)) == {
        "cpu.seconds": cost("7.5"),
        "network.ingress.internet.bytes": Decimal(0),  # the cloud asks nothing for what comes in
    }
    assert (row["cost"], row["cost_status"]) == (cost("7.5"), "priced")


def test_a_load_whose_machine_has_no_price_is_not_free(line: Line) -> None:  # noqa: F811
    line.journal.append(request([span(LOAD)])).wait()
    line.drain()
    (row,) = line.rows("SELECT kind, cost, cost_status FROM ledger FINAL")
    assert row == {"kind": "model_load", "cost": None, "cost_status": "unpriced"}


def test_cold_starts_are_inferences_and_no_loads(loaded: Line) -> None:
    reader = loaded.store.reader()
    try:
        window = {"since": "2020-01-01 00:00:00", "until": "2100-01-01 00:00:00", "limit": 10}
        (row,) = reader.query(find("cold-starts").sql, window).to_pylist()
    finally:
        reader.close()
    assert (row["model"], row["cold_starts"], row["warm_calls"]) == ("acme/ranker", 1, 1)
    assert row["cold_cost"] == cost("0.25")
    assert (row["cold_mean_ns"], row["warm_mean_ns"]) == (SECOND, SECOND // 4)


def test_what_a_load_says_stays_on_its_kept_span(loaded: Line) -> None:
    (row,) = loaded.rows("SELECT toJSONString(SpanAttributes) AS a FROM spans FINAL WHERE SpanId = '0000000000000002'")
    kept = json.loads(row["a"])
    assert kept[names.MODEL_SOURCE] == "hub:acme/ranker@main"
    assert int(kept[names.MODEL_DOWNLOADED]) == 400_000_000
    (row,) = loaded.rows("SELECT toJSONString(SpanAttributes) AS a FROM spans FINAL WHERE SpanId = '0000000000000003'")
    assert float(json.loads(row["a"])[names.COLD_START_SECONDS]) == 12.5
