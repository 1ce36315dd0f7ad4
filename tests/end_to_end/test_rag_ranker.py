"""The help centre: it finds what it should, its tally adds up, and every part of its bill is in the ledger."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from tollspan.pricing import PriceEngine, Selectors, load_book
from tollspan.processor.demo import (
    RAG_RANKER,
    check_requirements,
    child_environment,
    example_directory,
    launcher,
    program_environment,
)
from tollspan.processor.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parent))
from stub import Stub, script

EXAMPLE = example_directory("rag_ranker")
PROGRAM = EXAMPLE / RAG_RANKER.program
DEMO = [sys.executable, "-m", "tollspan.processor.main", "demo", "rag_ranker"]
PARTS = {"model", "compute", "feature", "vector", "network", "storage"}

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in RAG_RANKER.needs), reason="needs the extra rag"
)


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    running = Stub(tmp_path, "--faults", "off")
    yield running
    running.process.kill()
    running.process.wait()


def run_program(stub: Stub, folder: Path, command: list[str], environment: dict[str, str]) -> Path:
    """Run the help centre with 12 questions; its standard output in a file."""
    spans = folder / "spans.txt"
    with spans.open("w") as out:
        done = subprocess.run(
            [*command, sys.executable, str(PROGRAM), "--requests", "12", "--workers", "2"],
            env=environment,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "answered 12, failed 0" in done.stderr
    return spans


def test_the_example_knows_nothing_of_tollspan_but_its_tags() -> None:
    for path in EXAMPLE.rglob("*.py"):
        lines = [line.strip() for line in path.read_text().splitlines() if "import" in line and "tollspan" in line]
        assert lines == (["from tollspan.instrumentation import tag"] if path == PROGRAM else []), path.name


RETRIEVAL = """
import pathlib, sys
import numpy as np
from models import EMBEDDER, FACTS, RANKER, Embedder, Ranker, make_models
from scenario import PASSAGES, PRODUCTS, TOPICS
folder = pathlib.Path(sys.argv[1])
make_models(folder, 0)
embed, rank = Embedder(folder / EMBEDDER), Ranker(folder / RANKER)
passages = embed(PASSAGES)
questions = [question.format(product=product) for product in PRODUCTS for question, _ in TOPICS.values()]
facts = np.ones((len(PASSAGES), FACTS), np.float32)
found = [number in rank(asked, passages, facts, 4) for number, asked in enumerate(embed(questions))]
print(sum(found) / len(found))
"""


def test_the_right_passage_is_among_the_best_far_more_often_than_by_chance(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RETRIEVAL, str(tmp_path)]
    done = subprocess.run(command, cwd=EXAMPLE, capture_output=True, text=True, check=True, timeout=100)
    assert float(done.stdout) > 0.5  # 4 of 120 by chance


def tally(served: Path, spans: Path) -> dict[str, Any]:
    command = [sys.executable, str(EXAMPLE / "tally.py"), "--served", str(served), "--spans", str(spans)]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return result


def span(**attributes: Any) -> str:
    named = {name.replace("__", "."): value for name, value in attributes.items()}
    return json.dumps({"context": {"trace_id": "0x01"}, "attributes": named}, indent=4) + "\n"


def test_the_tally_puts_every_usage_in_one_part(tmp_path: Path) -> None:
    usage = {"input": 100, "cached": 0, "written_5m": 0, "written_1h": 0, "output": 30, "reasoning": 0}
    call = {"model": "gpt-5-mini-2025-08-07", "service_tier": "default", "complete": True, "usage": usage}
    (tmp_path / "served").write_text(json.dumps(call) + "\n")
    (tmp_path / "spans").write_text(
        span(tollspan__operation="inference", tollspan__usage__cpu__seconds=1.23e-06)
        + span(
            tollspan__operation="feature_read",
            tollspan__usage__feature__reads=4,
            tollspan__usage__storage__read__bytes=7,
        )
        + span(tollspan__operation="feature_write", tollspan__usage__feature__writes=2)
        + span(tollspan__operation="vector_query", tollspan__usage__vector__queries=3)
        + span(tollspan__operation="model_load", tollspan__usage__storage__read__bytes=10**6)
        + span(tollspan__usage__network__egress__internet__bytes=500)
        + span(tollspan__usage__network__ingress__internet__bytes=500)
        + span(tollspan__operation="capacity", tollspan__usage__cpu__idle_seconds=3.6)
        + span(gen_ai__usage__input_tokens=100, tollspan__usage__tokens__output=30)  # the stub's word counts
    )
    result = tally(tmp_path / "served", tmp_path / "spans")
    assert {part: Decimal(cost) for part, cost in result["parts"].items()} == {
        "model": Decimal("0.000085"),
        "compute": Decimal("0.000000000015"),  # 1230 ns × 0.0425 / 3600 s = 14.52 pico-dollars
        "feature": Decimal("0.00000112") + Decimal("0.0000025") + Decimal("0.000000000088"),  # 87.5, half to even
        "vector": Decimal("0.000036"),
        "storage": Decimal("0.0000125"),
        "network": Decimal("0.000000045"),
        "idle": Decimal("0.0000425"),
    }
    assert Decimal(result["cost"]) == sum(map(Decimal, result["parts"].values()))
    assert (result["inferences"], result["spans"], result["traces"]) == (2, 9, 1)


def test_a_usage_that_the_tally_has_no_rate_for_is_not_taken_for_free(tmp_path: Path) -> None:
    (tmp_path / "served").write_text("")
    (tmp_path / "spans").write_text(span(tollspan__usage__gpu__seconds=1))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        tally(tmp_path / "served", tmp_path / "spans")
    assert "KeyError: 'gpu.seconds'" in caught.value.stderr


def test_the_rates_written_down_twice_agree_with_the_book() -> None:
    module = script(EXAMPLE / "tally.py")
    engine = PriceEngine(load_book(EXAMPLE / "prices.yaml"))
    at = datetime(2026, 11, 20, tzinfo=UTC)
    for meter, (rate, per) in module.RATES.items():
        provider = {"feature": "feast", "vector": "qdrant"}.get(meter.split(".")[0])
        selectors = Selectors(provider=provider)
        assert engine.price({meter: per}, at=at, selectors=selectors).cost == Decimal(rate), meter


def test_under_the_launcher_every_step_of_a_request_is_a_span_of_its_tenant(stub: Stub, tmp_path: Path) -> None:
    environment = program_environment(RAG_RANKER, stub.base_url, "127.0.0.1:1") | {"OTEL_TRACES_EXPORTER": "console"}
    spans = run_program(stub, tmp_path, launcher(), environment)
    lines = stub.stop()
    printed = list(script(EXAMPLE.parent / "support_agent" / "tally.py").printed_spans(spans))
    roots = [each for each in printed if each["name"] == "help request"]
    assert len(roots) == 12
    for root in roots:
        trace = root["context"]["trace_id"]
        inside = [each["attributes"] for each in printed if each["context"]["trace_id"] == trace]
        tags = ("tollspan.tenant", "tollspan.feature", "tollspan.workflow", "tollspan.variant")
        assert all(
            [attributes[tag] for tag in tags] == [root["attributes"][tag] for tag in tags] for attributes in inside
        )
        # The question's embedding and the ranker; the reader and the passages; the search; the answer.
        operations = Counter(attributes.get("tollspan.operation") for attributes in inside)
        assert operations == {"inference": 2, "feature_read": 2, "vector_query": 1, None: 2}
        candidates = {"narrow": 8, "wide": 32}[root["attributes"]["tollspan.variant"]]
        of_ranker = next(each for each in inside if each.get("tollspan.model") == "PassageRanker")
        assert of_ranker["tollspan.batch.size"] == candidates
        reads = sorted(each["tollspan.usage.feature.reads"] for each in inside if "tollspan.feature.rows" in each)
        assert reads == [3, 2 * candidates]
        assert root["attributes"]["tollspan.usage.network.egress.internet.bytes"] > 100
    assert {root["attributes"]["tollspan.tenant"] for root in roots} == {"acme-cloud", "globex-bank", "initech-hr"}
    loaded = {each["attributes"]["tollspan.model"] for each in printed if each["name"].startswith("model_load")}
    assert "embedder" in loaded
    batches = [each["attributes"]["tollspan.batch.size"] for each in printed if each["name"] == "inference embedder"]
    assert Counter(batches) == {1: 12, 16: 7, 8: 1}
    result = tally(stub.served, spans)
    assert set(result["parts"]) >= PARTS
    assert result["llm_calls"] == len(lines) == 12
    assert result["inferences"] == 12 + 12 + 12 + 8


def test_the_program_is_an_ordinary_one_without_any_telemetry(stub: Stub, tmp_path: Path) -> None:
    environment = child_environment(OPENAI_BASE_URL=stub.base_url, OPENAI_API_KEY="stub")
    assert run_program(stub, tmp_path, [], environment).read_text() == ""
    assert len(stub.stop()) == 12


def test_the_demo_ends_with_every_part_equal_to_the_tally_and_the_sum_of_the_parts_to_the_total(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--requests", "24", "--format", "json"],
        env=child_environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["total_cost"] == answer["tally_cost"]
    assert set(answer["by_part"]) >= PARTS
    assert all(Decimal(cost) > 0 for cost in answer["by_part"].values())
    assert sum(map(Decimal, answer["by_part"].values())) == Decimal(answer["total_cost"])
    # Idle time is told by an instrumentation of its own, which an older installation does not have yet.
    if any(entry.name == "tollspan_capacity" for entry in entry_points(group="opentelemetry_instrumentor")):
        assert "idle" in answer["by_part"]
    assert answer["cold_starts"] == 2  # the embedder's and the ranker's
    assert answer["spans_sent"] == answer["spans_acked"]
    report = subprocess.run(
        [sys.executable, "-m", "tollspan.processor.main", "report", "--format", "json", "--store", answer["store"]],
        env=child_environment(),
        capture_output=True,
        check=True,
    )
    batches = {(row["model"], row["batch_size"]): row for row in json.loads(report.stdout)["batches"]}
    assert {size for model, size in batches if model == "PassageRanker"} == {"8", "32"}
    assert {size for model, size in batches if model == "embedder"} == {"1", "8", "16"}


WITHOUT_TORCH = 'raise ModuleNotFoundError("No module named \'torch\'", name="torch")\n'


def test_without_torch_the_program_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(WITHOUT_TORCH)
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=child_environment(OPENAI_API_KEY="stub", PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "rag_ranker: torch is missing: pip install 'tollspan[rag]'\n")


def test_without_torch_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    with pytest.raises(ConfigError, match=r"The demo needs torch\. Install them: pip install 'tollspan\[rag\]'"):
        check_requirements(RAG_RANKER, embedded=True)


def test_without_a_key_the_program_says_what_to_do() -> None:
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "llm_stub.py" in done.stderr
