"""The example: its LLM stub serves the real client in every mode, its program runs, its tally adds up."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import anthropic
import openai
import pytest

from tollspan.processor.demo import (
    SUPPORT_AGENT,
    TOKEN_KINDS,
    child_environment,
    example_directory,
    launcher,
    program_environment,
)

sys.path.insert(0, str(Path(__file__).parent))
from stub import Stub, script

EXAMPLE = example_directory()
QUESTION = [{"role": "user", "content": "where is my order AC-12345"}]
LONG = "Policy: be kind. " * 400
"""Long enough for the providers' prompt caches, which begin at 1,024 tokens."""


def load(name: str) -> ModuleType:
    return script(EXAMPLE / f"{name}.py")


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    running = Stub(tmp_path, "--faults", "off")
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def faulty_stub(tmp_path: Path) -> Iterator[Stub]:
    running = Stub(tmp_path)
    yield running
    running.process.kill()
    running.process.wait()


def test_the_real_client_gets_a_chat_completion_with_usage_that_the_tally_confirms(stub: Stub) -> None:
    with stub.client() as client:
        done = client.chat.completions.create(model="gpt-5-mini", messages=QUESTION, service_tier="flex")
    assert done.choices[0].message.content
    assert (done.model, done.service_tier) == ("gpt-5-mini-2025-08-07", "flex")
    usage = done.usage
    assert usage.completion_tokens > usage.completion_tokens_details.reasoning_tokens
    (line,) = stub.stop()
    assert line["usage"] == {
        "input": usage.prompt_tokens,
        "cached": usage.prompt_tokens_details.cached_tokens,
        "written_5m": 0,
        "written_1h": 0,
        "output": usage.completion_tokens,
        "reasoning": usage.completion_tokens_details.reasoning_tokens,
    }
    assert (line["status"], line["complete"], line["stream"], line["service_tier"]) == (200, True, False, "flex")


def test_a_streamed_chat_completion_says_its_usage_in_a_last_chunk_without_choices_when_asked(stub: Stub) -> None:
    with stub.client() as client:
        ask = {"model": "gpt-5", "messages": QUESTION, "stream": True}
        chunks = list(client.chat.completions.create(**ask, stream_options={"include_usage": True}))
        silent = list(client.chat.completions.create(**ask))
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in silent)
    first, second = stub.stop()
    assert first["usage"]["input"] == chunks[-1].usage.prompt_tokens
    assert second["usage"] is not None  # the provider bills what the client was not told


def test_the_responses_api_answers_whole_and_streamed(stub: Stub) -> None:
    with stub.client() as client:
        whole = client.responses.create(model="gpt-5-mini", input="hello", instructions=LONG)
        events = list(client.responses.create(model="gpt-5-mini", input="hello", instructions=LONG, stream=True))
        with client.responses.stream(model="gpt-5-mini", input="hello", instructions=LONG) as stream:
            helper = stream.get_final_response()
    assert whole.output_text
    types = [event.type for event in events]
    assert (types[0], types[-1]) == ("response.created", "response.completed")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == events[-1].response.output_text == helper.output_text
    lines = stub.stop()
    for response, line in zip((whole, events[-1].response, helper), lines, strict=True):
        assert response.usage.input_tokens == line["usage"]["input"]
        assert response.usage.input_tokens_details.cached_tokens == line["usage"]["cached"]
        assert response.usage.output_tokens == line["usage"]["output"]
        assert response.usage.output_tokens_details.reasoning_tokens == line["usage"]["reasoning"]


def test_the_async_client_is_served_too(stub: Stub) -> None:
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=stub.base_url, api_key="stub") as client:
            whole = await client.chat.completions.create(model="gpt-5-nano", messages=QUESTION)
            stream = await client.chat.completions.create(model="gpt-5-nano", messages=QUESTION, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content or "", "".join(parts)

    whole, streamed = asyncio.run(both())
    assert whole
    assert streamed
    assert len(stub.stop()) == 2


def test_the_same_request_is_served_the_same_whenever_it_comes(stub: Stub) -> None:
    with stub.client() as client:
        answers = [client.chat.completions.create(model="gpt-5", messages=QUESTION) for _ in range(2)]
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "something else"}])
    assert answers[0].usage == answers[1].usage
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    first, second, third = stub.stop()
    assert first == second != third


def test_a_long_constant_head_is_often_read_from_the_cache_in_steps_of_128(stub: Stub) -> None:
    with stub.client() as client:
        for number in range(20):
            messages = [{"role": "system", "content": LONG}, {"role": "user", "content": f"question {number}"}]
            client.chat.completions.create(model="gpt-5-nano", messages=messages)
    cached = {line["usage"]["cached"] for line in stub.stop()}
    assert cached == {0, 1664}


def test_a_model_of_ones_own_says_no_tier_and_no_details(stub: Stub) -> None:
    with stub.client() as client:
        done = client.chat.completions.create(model="northwind-support-8b", messages=QUESTION, service_tier="flex")
    assert done.service_tier is None
    assert done.usage.prompt_tokens_details is None


def test_a_plan_comes_as_json_when_json_is_asked_for(stub: Stub) -> None:
    with stub.client() as client:
        done = client.chat.completions.create(
            model="gpt-5-nano", messages=QUESTION, response_format={"type": "json_object"}
        )
    assert set(json.loads(done.choices[0].message.content or "")) == {"articles", "tone"}


def test_what_the_api_refuses_is_refused_as_the_real_one_does(stub: Stub) -> None:
    with stub.client() as client:
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="gpt-99", messages=QUESTION)
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="gpt-5", input="x")
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(
                model="gpt-5", messages=QUESTION, extra_headers={"Authorization": openai.Omit()}
            )
        assert "gpt-5-mini" in {model.id for model in client.models.list()}
    assert stub.stop() == []  # nothing was served, so there is nothing to tally


def test_some_calls_fail_at_first_and_some_for_good_and_the_tally_knows_every_attempt(faulty_stub: Stub) -> None:
    retries, failures = [], []
    with faulty_stub.client(max_retries=2) as client:
        for number in range(200):
            messages = [{"role": "user", "content": f"question {number}"}]
            try:
                raw = client.chat.completions.with_raw_response.create(model="gpt-5-nano", messages=messages)
            except openai.APIStatusError as error:
                failures.append(error.status_code)
            else:
                retries.append(raw.retries_taken)
    assert set(retries) == {0, 1, 2}
    assert {400, 429, 500} >= set(failures) != set()
    lines = faulty_stub.stop()
    assert sum(line["usage"] is not None for line in lines) == len(retries)
    assert sum(line["attempt"] == 0 for line in lines) == 200
    refused = [line for line in lines if line["usage"] is None]
    assert {line["status"] for line in refused} <= {400, 429, 500}
    assert all(line["error"] for line in refused)


def test_a_stream_that_the_client_leaves_is_tallied_as_generated_but_not_as_known(tmp_path: Path) -> None:
    running = Stub(tmp_path, "--faults", "off", "--pace", "0.02")
    try:
        with running.client() as client:
            events = client.responses.create(model="gpt-5", input="hello", stream=True)
            next(iter(events))
            events.close()
        (line,) = running.stop()
    finally:
        running.process.kill()
    assert line["complete"] is False
    assert line["usage"]["output"] > 0


def ask_claude(number: int = 0, ttl: str | None = None) -> dict[str, Any]:
    """Arguments of a call of Claude with a head that is cached."""
    mark = {"type": "ephemeral"} | ({"ttl": ttl} if ttl else {})
    return {
        "model": "claude-sonnet-4-6",
        "max_tokens": 100,
        "system": [{"type": "text", "text": LONG, "cache_control": mark}],
        "messages": [{"role": "user", "content": f"question {number}"}],
    }


def claude_usage(usage: Any) -> dict[str, int]:
    """What Anthropic's client was told, in the words of the tally."""
    written = usage.cache_creation_input_tokens
    return {
        "input": usage.input_tokens + usage.cache_read_input_tokens + written,
        "cached": usage.cache_read_input_tokens,
        "written_5m": usage.cache_creation.ephemeral_5m_input_tokens,
        "written_1h": usage.cache_creation.ephemeral_1h_input_tokens,
        "output": usage.output_tokens,
        "reasoning": 0,
    }


def test_anthropics_client_is_told_what_was_read_from_the_cache_and_written_to_it_whole_and_streamed(
    stub: Stub,
) -> None:
    told, texts = [], []
    with stub.claude() as client:
        for number in range(20):
            for ttl in (None, "1h"):
                message = client.messages.create(**ask_claude(number, ttl))
                with client.messages.stream(**ask_claude(number, ttl)) as stream:
                    texts.append("".join(stream.text_stream))
                    final = stream.get_final_message()
                assert (final.stop_reason, final.content[0].text) == ("end_turn", texts[-1])
                told += [claude_usage(message.usage), claude_usage(final.usage)]
    lines = stub.stop()
    assert [line["usage"] for line in lines] == told
    assert {line["service_tier"] for line in lines} == {"standard"}
    assert all(texts)
    head = 1704  # 6,800 characters, and four tokens for the block
    kinds = {(usage["cached"], usage["written_5m"], usage["written_1h"]) for usage in told}
    assert kinds == {(head, 0, 0), (0, head, 0), (0, 0, head)}
    assert all(head < usage["input"] < head + 20 for usage in told)


def test_a_streamed_message_tells_its_input_first_and_its_output_last(stub: Stub) -> None:
    with stub.claude() as client:
        events = list(client.messages.create(**ask_claude(), stream=True))
    assert (events[0].type, events[-2].type, events[-1].type) == ("message_start", "message_delta", "message_stop")
    assert events[0].message.usage.output_tokens == 1  # a placeholder
    (line,) = stub.stop()
    assert events[-2].usage.output_tokens == line["usage"]["output"] > 1


def test_a_short_prompt_and_one_that_is_not_marked_are_not_cached(stub: Stub) -> None:
    short = ask_claude() | {"system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]}
    with stub.claude() as client:
        client.messages.create(**short)
        client.messages.create(**ask_claude() | {"system": LONG})
    for line in stub.stop():
        usage = line["usage"]
        assert (usage["cached"], usage["written_5m"], usage["written_1h"]) == (0, 0, 0)


def test_what_anthropics_api_refuses_is_refused_in_its_own_words(stub: Stub) -> None:
    with stub.claude() as client:
        with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
            client.messages.create(**ask_claude() | {"model": "claude-99"})
        keyless = {"Authorization": anthropic.Omit(), "X-Api-Key": anthropic.Omit()}
        with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
            client.messages.create(**ask_claude(), extra_headers=keyless)
    assert stub.stop() == []


def test_anthropics_client_gets_past_an_overloaded_service_or_gives_up(faulty_stub: Stub) -> None:
    failed = 0
    with faulty_stub.claude(max_retries=2) as client:
        for number in range(150):
            try:
                client.messages.create(**ask_claude(number))
            except anthropic.APIStatusError:
                failed += 1
    lines = faulty_stub.stop()
    assert sum(line["attempt"] == 0 for line in lines) == 150
    assert sum(line["usage"] is not None for line in lines) == 150 - failed
    assert ("overloaded_error", 529) in {(line["error"], line["status"]) for line in lines}
    assert any(line["attempt"] > 0 and line["usage"] for line in lines)


def tally(served: Path, spans: Path) -> dict[str, Any]:
    command = [sys.executable, str(EXAMPLE / "tally.py"), "--served", str(served), "--spans", str(spans)]
    result: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return result


def test_the_tally_charges_each_kind_of_usage_once_and_leaves_out_what_has_no_rate(tmp_path: Path) -> None:
    usage = {"input": 1200, "cached": 1024, "written_5m": 0, "written_1h": 0, "output": 300, "reasoning": 256}
    claude = {"input": 1210, "cached": 100, "written_5m": 200, "written_1h": 900, "output": 50, "reasoning": 0}
    call = {"model": "gpt-5-mini-2025-08-07", "service_tier": "default", "complete": True, "usage": usage}
    lines = [
        call,
        call | {"service_tier": "flex"},
        call | {"model": "northwind-support-8b", "service_tier": None},
        call | {"service_tier": "scale"},  # a tier with no rate is unpriced, not standard
        call | {"model": "claude-sonnet-4-6", "service_tier": "standard", "usage": claude},
        call | {"complete": False},
        call | {"usage": None},
    ]
    served = tmp_path / "served.jsonl"
    served.write_text("".join(json.dumps(line) + "\n" for line in lines))
    span = {
        "context": {"trace_id": "0x01"},
        "attributes": {
            "tollspan.operation": "inference",
            "tollspan.usage.cpu.seconds": 1.23e-06,
            "tollspan.usage.feature.reads": 4,
            "tollspan.usage.storage.read.bytes": 7,
        },
    }
    plain = {"context": {"trace_id": "0x01"}, "attributes": {}}
    spans = tmp_path / "spans.txt"
    spans.write_text(json.dumps(span, indent=4) + "\n" + json.dumps(plain, indent=4) + "\n")
    result = tally(served, spans)
    # 176 × 0.25 + 1024 × 0.025 + 300 × 2 = 669.6 per million; flex is half of it.
    # 10 × 3 + 100 × 0.3 + 200 × 3.75 + 900 × 6 + 50 × 15 = 6960 per million.
    assert Decimal(result["llm"]) == Decimal("0.0006696") + Decimal("0.0003348") + Decimal("0.00696")
    assert result["tokens"] == {
        "uncached": 4 * 176 + 10,
        "cached": 4 * 1024 + 100,
        "written_5m": 200,
        "written_1h": 900,
        "output": 4 * 44 + 50,
        "reasoning": 4 * 256,
    }
    assert Decimal(result["compute"]) == Decimal("0.000000000015")  # 1230 ns × 0.0425 / 3600 s = 14.52 pico-dollars
    assert Decimal(result["storage"]) == Decimal("0.00000112") + Decimal("0.000000000088")  # 87.5, half to even
    assert Decimal(result["cost"]) == sum(Decimal(result[part]) for part in ("llm", "compute", "storage"))
    counted = {name: result[name] for name in ("inferences", "unpriced_inferences", "incomplete", "refused")}
    assert counted == {"inferences": 6, "unpriced_inferences": 2, "incomplete": 1, "refused": 1}
    assert (result["spans"], result["traces"]) == (2, 1)


def test_the_rates_written_down_twice_agree_with_the_books() -> None:
    from tollspan.pricing import PriceEngine, Selectors, load_book

    module = load("tally")
    engine = PriceEngine(load_book(EXAMPLE / "prices.yaml"))
    at = datetime(2026, 11, 20, tzinfo=UTC)

    def cost(meter: str, quantity: int, **selectors: str) -> Decimal | None:
        return engine.price({meter: quantity}, at=at, selectors=Selectors(**selectors)).cost

    for (model, tier), rates in module.LLM_RATES.items():
        provider = "anthropic" if model.startswith("claude") else "openai"
        known = {kind: Decimal(rate) for kind, rate in rates._asdict().items() if rate is not None}
        # Not the whole million at once: above some size of the prompt a model may cost more.
        for meter, kind in TOKEN_KINDS.items():
            if kind in known:
                found = cost(meter, 100_000, provider=provider, model=model, service_tier=tier)
                assert found == known.pop(kind) / 10, (model, kind)
        assert known == {}
    for snapshot, model in module.SNAPSHOTS.items():
        assert cost("tokens.output", 7, provider="openai", model=snapshot) == cost(
            "tokens.output", 7, provider="openai", model=model
        )
    assert cost("cpu.seconds", 3600 * 10**9) == module.CPU_HOUR
    assert cost("feature.reads", 10**6, provider="feast", model="support") == module.FEATURE_READS_MILLION
    assert cost("storage.read.bytes", 10**9) == module.STORAGE_READ_GB
    assert cost("tokens.output", 10**6, provider="openai", model="northwind-support-8b") is None


def run_program(stub: Stub, folder: Path, command: list[str], environment: dict[str, str]) -> Path:
    """Run the assistant with 12 requests; its standard output in a file."""
    spans = folder / "spans.txt"
    with spans.open("w") as out:
        done = subprocess.run(
            [*command, sys.executable, str(EXAMPLE / "support_agent.py"), "--requests", "12", "--workers", "2"],
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


def test_the_program_runs_under_the_launcher_with_the_console_exporter_and_the_tally_reads_it(
    stub: Stub, tmp_path: Path
) -> None:
    environment = program_environment(SUPPORT_AGENT, stub.base_url, "127.0.0.1:1") | {"OTEL_TRACES_EXPORTER": "console"}
    spans = run_program(stub, tmp_path, launcher(), environment)
    lines = stub.stop()
    printed = list(load("tally").printed_spans(spans))
    roots = [span for span in printed if span["name"] == "support request"]
    assert len(roots) == 12
    assert all(span["parent_id"] is None for span in roots)
    assert {span["attributes"]["tollspan.tenant"] for span in roots} > {"acme-outdoor", "globex-home"}
    answers = [span for span in printed if "gen_ai.usage.input_tokens" in (span["attributes"] or {})]
    assert len(answers) == len(lines) == 24
    assert sorted(span["attributes"]["gen_ai.usage.input_tokens"] for span in answers) == sorted(
        line["usage"]["input"] for line in lines
    )
    operations = [(span["attributes"] or {}).get("tollspan.operation") for span in printed]
    assert operations.count("feature_read") == 12
    assert operations.count("model_load") == 1
    torch = importlib.util.find_spec("torch") is not None
    assert operations.count("inference") == (24 if torch else 12)
    result = tally(stub.served, spans)
    assert result["spans"] == len(printed)
    assert result["traces"] == 14  # one for each request; at the start the model load, and the filling of the store
    assert all(Decimal(result[part]) > 0 for part in ("llm", "compute", "storage"))


def test_in_process_and_without_any_service_the_ledger_is_the_same(stub: Stub, tmp_path: Path) -> None:
    environment = program_environment(SUPPORT_AGENT, stub.base_url, "127.0.0.1:1") | {
        "OTEL_TRACES_EXPORTER": "tollspan,console",
        "TOLLSPAN_STORE": f"chdb://{tmp_path}/store",
        "TOLLSPAN_PRICES": str(EXAMPLE / "prices.yaml"),
    }
    spans = run_program(stub, tmp_path, launcher(), environment)
    stub.stop()
    expected = tally(stub.served, spans)
    query = [sys.executable, "-m", "tollspan.processor.main", "query", "total", "--format", "json"]
    total = json.loads(
        subprocess.run(
            [*query, "--store", f"chdb://{tmp_path}/store"], capture_output=True, check=True, env=child_environment()
        ).stdout
    )
    assert Decimal(total["cost"]) == Decimal(expected["cost"])
    assert total["inferences"] == expected["inferences"]


def test_the_program_is_an_ordinary_one_without_any_telemetry(stub: Stub, tmp_path: Path) -> None:
    environment = child_environment(
        OPENAI_BASE_URL=stub.base_url,
        OPENAI_API_KEY="stub",
        ANTHROPIC_BASE_URL=stub.base_url.removesuffix("/v1"),
        ANTHROPIC_API_KEY="stub",
    )
    assert run_program(stub, tmp_path, [], environment).read_text() == ""
    assert len(stub.stop()) == 24


@pytest.mark.parametrize("given", [None, "OPENAI_API_KEY", "ANTHROPIC_API_KEY"])
def test_without_a_key_the_program_says_what_to_do(given: str | None) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "support_agent.py")],
        env=child_environment(**({given: "a key"} if given else {})),  # which hands on no key of its own
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "llm_stub.py" in done.stderr
    missing = {"OPENAI_API_KEY", "ANTHROPIC_API_KEY"} - {given}
    assert f"not set: {', '.join(sorted(missing, reverse=True))}." in done.stderr


DEMO = [sys.executable, "-m", "tollspan.processor.main", "demo"]


def test_the_demo_ends_with_ledger_and_tally_equal_to_the_last_digit(tmp_path: Path) -> None:
    environment = child_environment(TMPDIR=str(tmp_path))
    done = subprocess.run(
        [*DEMO, "--requests", "60", "--format", "json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)  # one object and nothing else
    assert answer["total_cost"] == answer["tally_cost"]
    assert Decimal(answer["total_cost"]) > 0
    assert answer["spans_sent"] == answer["spans_acked"] > 300
    assert answer["traces"] == 62
    assert 0 < answer["spans_kept"] < answer["spans_sent"]
    assert sum(map(Decimal, answer["by_component"].values())) == Decimal(answer["total_cost"])
    assert set(answer["by_component"]) == {"model", "compute", "storage"}
    assert set(answer["by_tenant"]) == {"acme-outdoor", "globex-home", "northwind-foods", "(none)"}
    assert answer["retries"] > 0
    assert set(answer["tokens"]) == set(TOKEN_KINDS)
    assert all(answer["tokens"].values())
    assert {name.split("/")[0] for name, cost in answer["by_model"].items() if cost} >= {"openai", "anthropic"}
    # The store stays to be asked, and nothing else does.
    assert answer["store"] in done.stderr
    (home,) = tmp_path.glob("tollspan-demo-*")
    assert [path.name for path in home.iterdir()] == ["store"]
    query = [sys.executable, "-m", "tollspan.processor.main", "query", "total", "--format", "json"]
    total = subprocess.run([*query, "--store", answer["store"]], env=environment, capture_output=True, check=True)
    assert json.loads(total.stdout)["cost"] == answer["total_cost"]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for left processes in /proc")
def test_a_demo_that_is_ended_leaves_neither_processes_nor_files(tmp_path: Path) -> None:
    demo = subprocess.Popen([*DEMO], env=child_environment(TMPDIR=str(tmp_path)), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("tollspan-demo-*/files/assistant.log")):
        assert demo.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    demo.send_signal(signal.SIGTERM)
    assert demo.wait(30) == 128 + signal.SIGTERM
    assert list(tmp_path.glob("tollspan-demo-*")) == []
    mentions = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(tmp_path).encode() in _read(path) or str(tmp_path).encode() in _read(path.parent / "environ")
    ]
    assert mentions == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile, or is not ours
        return b""
