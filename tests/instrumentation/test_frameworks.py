"""Frameworks over the OpenAI client: under their own spans for agents, workflows and models, each request to the
provider is billed once.

Against a local server that speaks OpenAI's wire format, with the framework's own tracing on where it speaks
OpenTelemetry, or a common instrumentation of it where it does not. Each framework is skipped where it is not installed.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from tests.instrumentation.conftest import completion, completion_chunks, response, response_events
from tests.instrumentation.openai_bill import ENGINE
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.processor.assemble import Assembler
from tollspan.processor.charge import charge
from tollspan.processor.decode import decode
from tollspan.processor.identity import span_keys, trace_keys, words
from tollspan.processor.normalize import normalize
from tollspan.processor.pipeline import used

MODEL = "gpt-5-mini"
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "double", "arguments": '{"number": 2}'},
}


class Service:
    """OpenAI's chat and Responses APIs: asks for the tool ``double`` where there is one, then answers.

    Attributes:
        requests: how often a model was asked: each time is billed.
    """

    def __init__(self) -> None:
        self.requests = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                content, kind = service.answer(self.path, asked)
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, path: str, asked: dict[str, Any]) -> tuple[bytes, str]:
        self.requests += 1
        said = json.dumps(asked)
        calls = bool(asked.get("tools")) and '"role": "tool"' not in said and "function_call_output" not in said
        if path.endswith("/responses"):
            item = {
                "type": "function_call",
                "id": "fc_1",
                "status": "completed",
                "call_id": "call_1",
                **CALL["function"],
            }
            changed: dict[str, Any] = {"output": [item]} if calls else {}
            changed["tool_usage"] = None
            whole = response(**changed)
            events = response_events(**changed)
            if calls:
                place = {"output_index": 0, "item_id": "fc_1"}
                arguments = item["arguments"]
                events[1:-1] = [
                    {"type": "response.output_item.added", **place, "item": {**item, "arguments": ""}},
                    {"type": "response.function_call_arguments.delta", **place, "delta": arguments},
                    {"type": "response.function_call_arguments.done", **place, "arguments": arguments},
                    {"type": "response.output_item.done", **place, "item": item},
                ]
                events = [{**event, "sequence_number": number} for number, event in enumerate(events)]
        else:
            message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            whole = completion(**({"choices": [choice]} if calls else {}))
            events = completion_chunks(usage=bool((asked.get("stream_options") or {}).get("include_usage")))
            if calls:
                first = {"index": 0, "delta": {"tool_calls": [{"index": 0, **CALL}]}, "finish_reason": None}
                events = [{**events[0], "choices": [first]}, *events[3:]]
        if not asked.get("stream"):
            return json.dumps(whole).encode(), "application/json"
        lines = [(f"event: {e['type']}\n" if "type" in e else "") + f"data: {json.dumps(e)}\n\n" for e in events]
        done = "" if "type" in events[0] else "data: [DONE]\n\n"
        return ("".join(lines) + done).encode(), "text/event-stream"


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    yield service
    service.server.shutdown()
    service.server.server_close()


def billed_once(telemetry: Any, service: Service, expected: int, traced: bool) -> None:
    """Check that the processor bills each of the requests, and each only once; and that the spans that could have been
    billed beside them are there where they should be."""
    finished = telemetry.spans()
    theirs = [span for span in finished if not span.instrumentation_scope.name.startswith("tollspan.")]
    assert bool(theirs) is traced
    table = [(span.name, span.instrumentation_scope.name) for span in finished]
    normalized = normalize(decode([encode_spans(finished).SerializeToString()]), received_ns=time.time_ns())
    spans = normalized.table
    traces = trace_keys(words(spans["trace_id"], 2))
    parent = words(spans["parent_span_id"], 1)[:, 0]
    rollups, _ = Assembler().mark(
        span_keys(traces, words(spans["span_id"], 1)[:, 0]),
        span_keys(traces, parent),
        parent == 0,
        np.asarray(spans["token_bearing"]),
        used=used(normalized),
        embeddings=np.asarray(pc.fill_null(pc.equal(spans["operation"].cast("string"), "embeddings"), False)),
    )
    ledger = charge(normalized, rollups, ENGINE).ledger
    rows = [row for row in ledger.select(["cost", "cost_status"]).to_pylist() if row["cost_status"] != "rollup"]
    assert service.requests == expected
    assert [row["cost_status"] for row in rows] == ["priced"] * expected, table
    assert all(row["cost"] == rows[0]["cost"] for row in rows)
    assert rows[0]["cost"] > Decimal(0)


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    OpenAIInstrumentor().uninstrument()


@pytest.fixture(params=["alone", "with its tracing"])
def traced(request: pytest.FixtureRequest) -> bool:
    """Whether the framework's own spans are there too."""
    return bool(request.param != "alone")


def peer(module: str, telemetry: Any) -> Any:
    """An instrumentor of the framework, switched on."""
    found: Any = pytest.importorskip(module)
    kind = next(
        getattr(found, name) for name in dir(found) if name.endswith("Instrumentor") and name != "BaseInstrumentor"
    )
    instrumentor = kind()
    instrumentor.instrument(tracer_provider=telemetry.provider, skip_dep_check=True)
    return instrumentor


def double(number: int) -> int:
    """Twice a number."""
    return 2 * number


# -- LangChain, LangGraph --------------------------------------------------------------------------------------------


@pytest.fixture
def langchain(spans: Any, service: Service, traced: bool) -> Iterator[Any]:
    library = pytest.importorskip("langchain_openai")
    theirs = peer("openinference.instrumentation.langchain", spans) if traced else None
    yield library
    if theirs is not None:
        theirs.uninstrument()


@pytest.mark.parametrize("responses", [False, True])
def test_langchain(spans: Any, service: Service, langchain: Any, traced: bool, responses: bool) -> None:
    langchain.ChatOpenAI(model=MODEL, use_responses_api=responses).invoke("hello")
    billed_once(spans, service, 1, traced)


@pytest.mark.parametrize("responses", [False, True])
async def test_langchain_streamed(spans: Any, service: Service, langchain: Any, traced: bool, responses: bool) -> None:
    model = langchain.ChatOpenAI(model=MODEL, use_responses_api=responses, stream_usage=True)
    async for _ in model.astream("hello"):
        pass
    billed_once(spans, service, 1, traced)


def test_langchain_many_at_once(spans: Any, service: Service, langchain: Any, traced: bool) -> None:
    langchain.ChatOpenAI(model=MODEL).batch(["a", "b", "c"])
    billed_once(spans, service, 3, traced)


def test_langgraph_agent(spans: Any, service: Service, langchain: Any, traced: bool) -> None:
    prebuilt = pytest.importorskip("langgraph.prebuilt")
    agent = prebuilt.create_react_agent(langchain.ChatOpenAI(model=MODEL), [double])
    assert agent.invoke({"messages": [("user", "double 2")]})["messages"][-1].content == "Hello."
    billed_once(spans, service, 2, traced)


async def test_langgraph_agent_async(spans: Any, service: Service, langchain: Any, traced: bool) -> None:
    prebuilt = pytest.importorskip("langgraph.prebuilt")
    agent = prebuilt.create_react_agent(langchain.ChatOpenAI(model=MODEL), [double])
    await agent.ainvoke({"messages": [("user", "double 2")]})
    billed_once(spans, service, 2, traced)


# -- LlamaIndex ------------------------------------------------------------------------------------------------------


@pytest.fixture
def llama(spans: Any, service: Service, traced: bool) -> Iterator[Any]:
    library = pytest.importorskip("llama_index.llms.openai")
    theirs = peer("openinference.instrumentation.llama_index", spans) if traced else None
    yield library.OpenAI(model=MODEL, api_base=service.url, api_key="none")
    if theirs is not None:
        theirs.uninstrument()


def test_llama_index(spans: Any, service: Service, llama: Any, traced: bool) -> None:
    llama.complete("hello")
    billed_once(spans, service, 1, traced)


def test_llama_index_agent(spans: Any, service: Service, llama: Any, traced: bool) -> None:
    workflow = pytest.importorskip("llama_index.core.agent.workflow")

    async def work() -> None:
        await workflow.FunctionAgent(tools=[double], llm=llama, streaming=False).run("double 2")

    asyncio.run(work())
    billed_once(spans, service, 2, traced)


# -- OpenAI Agents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_openai_agents(spans: Any, service: Service, traced: bool, api: Any, streamed: bool) -> None:
    agents = pytest.importorskip("agents")
    if not hasattr(agents, "set_default_openai_api"):
        pytest.skip("another package of the name")
    agents.set_trace_processors([])  # its own go to OpenAI's service
    theirs = peer("openinference.instrumentation.openai_agents", spans) if traced else None
    try:
        import openai

        agents.set_default_openai_client(openai.AsyncOpenAI(), use_for_tracing=False)
        agents.set_default_openai_api(api)
        settings = agents.ModelSettings(include_usage=True)
        tools = [agents.function_tool(double)]
        agent = agents.Agent(name="doubler", model=MODEL, tools=tools, model_settings=settings)
        if streamed:
            result = agents.Runner.run_streamed(agent, "double 2")
            async for _ in result.stream_events():
                pass
        else:
            result = await agents.Runner.run(agent, "double 2")
        assert result.final_output
    finally:
        if theirs is not None:
            theirs.uninstrument()
    billed_once(spans, service, 2, traced)


# -- pydantic-ai -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_pydantic_ai(spans: Any, service: Service, traced: bool, api: str, streamed: bool) -> None:
    library = pytest.importorskip("pydantic_ai")
    models = importlib.import_module("pydantic_ai.models.openai")
    instrumented = importlib.import_module("pydantic_ai.models.instrumented")
    kind = models.OpenAIChatModel if api == "chat" else models.OpenAIResponsesModel
    settings = instrumented.InstrumentationSettings(tracer_provider=spans.provider) if traced else False
    library.Agent.instrument_all(settings)
    try:
        agent = library.Agent(kind(MODEL), tools=[double])
        if streamed:
            async with agent.run_stream("double 2") as result:
                assert await result.get_output()
        else:
            assert (await agent.run("double 2")).output == "Hello."
    finally:
        library.Agent.instrument_all(False)
    billed_once(spans, service, 2, traced)


# -- CrewAI ----------------------------------------------------------------------------------------------------------


def test_crewai(spans: Any, service: Service, traced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CREWAI_DISABLE_TELEMETRY", "CREWAI_DISABLE_TRACKING"):
        monkeypatch.setenv(name, "true")
    library = pytest.importorskip("crewai")
    theirs = peer("openinference.instrumentation.crewai", spans) if traced else None
    try:
        llm = library.LLM(model=f"openai/{MODEL}", base_url=service.url, api_key="none")
        agent = library.Agent(role="greeter", goal="greet", backstory="polite", llm=llm)
        task = library.Task(description="say hello", expected_output="a word", agent=agent)
        library.Crew(agents=[agent], tasks=[task]).kickoff()
    finally:
        if theirs is not None:
            theirs.uninstrument()
    billed_once(spans, service, service.requests, traced)
    assert service.requests >= 1
