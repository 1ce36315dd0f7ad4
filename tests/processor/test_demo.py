"""The demo's parts: where the example is found, how children are kept, what is compared."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tollspan.processor.children import Child, ChildFailed
from tollspan.processor.demo import (
    SUPPORT_AGENT,
    DemoResult,
    child_environment,
    comparison,
    example_directory,
    launcher,
    other_instrumentations,
    program_environment,
    summary,
)


def python(tmp_path: Path, code: str, stdout: Path | None = None) -> Child:
    return Child("worker", [sys.executable, "-c", code], child_environment(), tmp_path, stdout)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Child]:
    """A child with a child of its own; both ignore SIGTERM."""
    code = (
        "import os, signal, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pid = os.fork()\n"
        "pathlib.Path('pids').write_text(f'{pid}\\n') if pid else None\n"
        "time.sleep(60)\n"
    )
    child = python(tmp_path, code)
    yield child
    child.kill()


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    child = python(tmp_path, "import sys\nfor n in range(50): print('line', n)\nsys.exit('no price book')")
    with pytest.raises(ChildFailed) as caught:
        child.finish(20)
    message = str(caught.value)
    assert message.startswith("The worker ended with exit code 1.")
    assert "no price book" in message
    assert "line 0\n" not in message  # the end, not the whole


def test_waiting_for_a_child_ends_when_it_does(tmp_path: Path) -> None:
    child = python(tmp_path, "raise SystemExit(3)")
    with pytest.raises(ChildFailed, match="The worker ended before it listened"):
        child.wait_for(lambda: None, 20, "it listened")


def test_what_a_child_wrote_just_before_it_ended_is_still_found(tmp_path: Path) -> None:
    child = python(tmp_path, "import pathlib; pathlib.Path('ready').write_text('yes')")
    while child.running:
        time.sleep(0.01)
    assert child.wait_for(lambda: (tmp_path / "ready").read_text() or None, 1, "ready") == "yes"


def test_output_goes_where_it_was_sent(tmp_path: Path) -> None:
    out = tmp_path / "spans.txt"
    child = python(tmp_path, "import sys; print('a span'); print('a log line', file=sys.stderr)", out)
    child.finish(20)
    assert out.read_text() == "a span\n"
    assert child.tail() == "    a log line"


@linux
def test_killing_a_child_ends_what_it_started_too(
    sleeper: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollspan.processor.children._END_S", 0.5)

    def grandchild() -> int | None:
        try:
            return int((tmp_path / "pids").read_text())
        except (FileNotFoundError, ValueError):
            return None

    pid = sleeper.wait_for(grandchild, 20, "it forked")
    assert alive(pid)
    sleeper.kill()
    assert not sleeper.running
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)  # init collects it, and nobody tells us when
    assert not alive(pid)
    sleeper.kill()  # once more is harmless


def test_the_example_is_found_and_complete() -> None:
    names = {path.name for path in example_directory().iterdir()}
    assert names >= {"README.md", "support_agent.py", "llm_stub.py", "tally.py", "prices.yaml", "feature_repo"}
    assert names >= {"stub_served.py", "stub_openai.py", "stub_anthropic.py"}


def test_the_example_knows_nothing_of_tollspan_but_its_tags() -> None:
    for path in example_directory().rglob("*.py"):
        lines = [line.strip() for line in path.read_text().splitlines() if "import" in line and "tollspan" in line]
        expected = ["from tollspan.instrumentation import tag"] if path.name == "support_agent.py" else []
        assert lines == expected, path.name


def test_children_do_not_inherit_settings_that_would_change_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("TOLLSPAN_KEEP", "1")
    monkeypatch.setenv("OPENAI_API_KEY", "a real key")
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "a real token")
    monkeypatch.setenv("NO_PROXY", "example.com")
    environment = program_environment(SUPPORT_AGENT, "http://127.0.0.1:8000/v1", "127.0.0.1:4317")
    assert "OTEL_SDK_DISABLED" not in environment
    assert "TOLLSPAN_KEEP" not in environment
    assert environment["OPENAI_API_KEY"] == environment["ANTHROPIC_API_KEY"] == "stub"
    assert "ANTHROPIC_AUTH_TOKEN" not in environment
    assert environment["OPENAI_BASE_URL"] == "http://127.0.0.1:8000/v1"
    assert environment["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8000"
    assert environment["NO_PROXY"] == "example.com,127.0.0.1,localhost"
    assert environment["PATH"] == os.environ["PATH"]


def test_other_vendors_instrumentations_are_off_and_ours_are_not() -> None:
    names = other_instrumentations().split(",")
    assert not any(name.startswith("tollspan_") for name in names)
    assert "threading" not in names


def test_the_launcher_is_the_one_of_this_environment() -> None:
    assert Path(launcher()[0]).parent == Path(sys.executable).parent


def result(**changes: Any) -> DemoResult:
    """A run on which everything agrees, with changes."""
    total = {"cost": Decimal("1.250000000000"), "currency": "USD", "inferences": 9, "unpriced_inferences": 1}
    row = {"cost": Decimal("1.25"), "tenant": None, "feature": "chat", "provider": "openai", "model": None}
    report = {
        "total": total | {"not_billed": 2},
        "telemetry": {"traces": 3, "recorded_spans": 20, "all_kept_spans": 7, "bytes": 99, "cost": None},
        "retries": [{"retries": 2}, {"retries": None}],
        "cold_starts": [{"cold_starts": 2}],
        "by_tenant": [row],
        "by_feature": [row],
        "by_model": [row, {"provider": "openai", "model": "house", "cost": None}],
        "by_variant": [{"variant": "A", "cost": Decimal("1.25")}],
        "by_component": [{"component": "model", "cost": Decimal("1.25")}],
        "per_request": [{"part": "model", "cost": Decimal("1.25")}],
    }
    tally = {"cost": "1.25", "inferences": 9, "unpriced_inferences": 1, "spans": 20, "traces": 3}
    tally["tokens"] = {"uncached": 1200, "written_1h": 34}
    tokens = {"tokens.input.uncached": 1200, "tokens.input.cache_write.1h": 34}
    values = {
        "report": report,
        "tally": tally,
        "tokens": tokens,
        "spans_acked": 20,
        "store": "chdb:///tmp/s",
        "files": None,
    }
    for name, value in changes.items():
        report["total"].update({name: value}) if name in report["total"] else values.update({name: value})
    return DemoResult(**values)


def test_equal_to_the_last_digit_is_said_in_one_line() -> None:
    agreed, sentence = comparison(result())
    assert agreed
    assert sentence.startswith("Ledger 1.250000000000 USD = tally 1.250000000000 USD, to the last digit")
    assert "1,234 tokens of 2 kinds" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cost": Decimal("1.250000000001")}, "cost 1.250000000001 USD against 1.250000000000 USD"),
        ({"cost": None}, "cost unknown against 1.250000000000 USD"),
        ({"inferences": 8}, "inferences 8 against 9"),
        ({"unpriced_inferences": 0}, "unpriced inferences 0 against 1"),
        ({"spans_acked": 19}, "spans acknowledged 19 against 20"),
        (
            {"tokens": {"tokens.input.uncached": 1200, "tokens.input.cache_write.5m": 34}},
            "tokens.input.cache_write.1h 0 against 34, tokens.input.cache_write.5m 34 against 0",
        ),
        (
            {"tokens": {"tokens.input.uncached": 1200, "tokens.input.cache_write.1h": 34, "tokens.input.audio": 5}},
            "tokens.input.audio 5 against 0",
        ),
    ],
)
def test_any_difference_is_one(changes: dict[str, Any], said: str) -> None:
    agreed, sentence = comparison(result(**changes))
    assert not agreed
    assert sentence == f"Ledger and tally DIFFER: {said}."


def test_the_summary_is_flat_and_keeps_what_is_unknown_unknown() -> None:
    flat = summary(result())
    assert flat["total_cost"] == flat["tally_cost"] == Decimal("1.250000000000")
    assert str(flat["tally_cost"]) == "1.250000000000"
    assert flat["by_tenant"] == {"(none)": Decimal("1.25")}
    assert flat["by_model"] == {"openai/(none)": Decimal("1.25"), "openai/house": None}
    assert flat["telemetry_cost"] is None
    assert flat["tokens"] == {"tokens.input.cache_write.1h": 34, "tokens.input.uncached": 1200}
    assert (flat["retries"], flat["cold_starts"], flat["spans_kept"]) == (2, 2, 7)
