"""Head sampling under the real launcher: the bill is the same to the last digit, whatever share of requests is sampled.

A program that looks like one: requests with tags, an agent that adds up what its tools' calls used, streams,
embeddings, failures, threads, a forked child that serves part of a request, and a trace that is asked for. It runs
once for each share, against the same server, and what the ledger says has to be equal row by row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tollspan.processor.demo import child_environment, launcher, other_instrumentations

sys.path.insert(0, str(Path(__file__).parent))
from service import Service

REQUESTS = 60

PROGRAM = """
    import multiprocessing, threading
    import openai
    from opentelemetry import trace
    from opentelemetry.propagate import extract, inject
    from tollspan.instrumentation import faults, keep_trace, tag

    client = openai.OpenAI(max_retries=0)
    tracer = trace.get_tracer("program")
    MODELS = ("gpt-5-mini", "gpt-5", "no-such-model")

    def ask(n, **more):
        asked = [{"role": "user", "content": f"question {n}"}]
        return client.chat.completions.create(model=MODELS[n % 3], messages=asked, **more)

    def request(n):
        with tag(tenant=f"t{n % 4}", feature=f"f{n % 5}"), tracer.start_as_current_span("GET /") as root:
            about = {"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "openai"}
            with tracer.start_as_current_span("agent", attributes=about) as agent:
                with tracer.start_as_current_span("tool"):
                    told = ask(n).usage
                agent.set_attribute("gen_ai.usage.input_tokens", told.prompt_tokens)
                agent.set_attribute("gen_ai.usage.output_tokens", told.completion_tokens)
            list(ask(n + 1000, stream=True, stream_options={"include_usage": True}))
            thread = threading.Thread(target=client.embeddings.create,
                                      kwargs=dict(model="text-embedding-3-small", input=f"question {n}"))
            thread.start()
            thread.join()
            if n % 7 == 0:
                try:
                    client.chat.completions.create(model="broken", messages=[])
                except openai.InternalServerError:
                    pass
            if n % 11 == 0:
                keep_trace("every eleventh")
                ask(n + 2000)
                with tracer.start_as_current_span("afterwards"):
                    pass

    def serve(carriers):
        for n, carrier in carriers:
            with tracer.start_as_current_span("POST /", extract(carrier)):
                ask(n)
        trace.get_tracer_provider().force_flush()

    for n in range(REQUESTS):
        request(n)
    carriers = []
    for n in range(5000, 5008):
        carrier = {}
        with tag(tenant="far"), tracer.start_as_current_span("GET /far"):
            inject(carrier)
        carriers.append((n, carrier))
    child = multiprocessing.get_context("fork").Process(target=serve, args=(carriers,))
    child.start()
    child.join()
    assert child.exitcode == 0, child.exitcode
    assert faults() == {}, faults()
    print("done", flush=True)
""".replace("REQUESTS", str(REQUESTS))


class Provider(BaseHTTPRequestHandler):
    """OpenAI, whose counts are told by the number of the question."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["model"] == "broken":
            self.answer(500, "application/json", b'{"error": {"message": "broken"}}')
            return
        said = asked.get("input") or asked["messages"][0]["content"]
        number = int(said.split()[1])
        model = asked["model"]
        if "input" in asked:
            usage = {"prompt_tokens": 7 + number, "total_tokens": 7 + number}
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            whole = {"object": "list", "model": model, "data": data, "usage": usage}
            self.answer(200, "application/json", json.dumps(whole).encode())
            return
        usage = {
            "prompt_tokens": 1000 + 3 * number,
            "completion_tokens": 50 + number,
            "total_tokens": 1050 + 4 * number,
            "prompt_tokens_details": {"cached_tokens": number},
        }
        about = {"id": f"chatcmpl-{number}", "created": 1, "model": model, "service_tier": "default"}
        if asked.get("stream"):
            delta = [{"index": 0, "delta": {"content": "yes"}, "finish_reason": None}]
            chunks = [{"choices": delta, "usage": None}, {"choices": [], "usage": usage}]
            pieces = [json.dumps({**about, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
            body = "".join(f"data: {piece}\n\n" for piece in (*pieces, "[DONE]")).encode()
            self.answer(200, "text/event-stream", body)
            return
        said = [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]
        whole = {**about, "object": "chat.completion", "choices": said, "usage": usage}
        self.answer(200, "application/json", json.dumps(whole).encode())

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


def run(folder: Path, provider: str, share: str, **settings: str) -> None:
    """The program under the launcher."""
    folder.mkdir(exist_ok=True)
    script = folder / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    environment = child_environment(
        OPENAI_API_KEY="none",
        OPENAI_BASE_URL=provider,
        OTEL_SERVICE_NAME="shop",
        OTEL_TRACES_SAMPLER="tollspan",
        OTEL_TRACES_SAMPLER_ARG=share,
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=other_instrumentations(),
        TOLLSPAN_NETWORK="off",  # ids in a request make its bytes differ from run to run
        **settings,
    )
    done = subprocess.run(
        [*launcher(), sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.endswith("done\n"), done.stderr
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "tollspan" not in done.stderr, done.stderr


COLUMNS = (
    "tenant, feature, service, kind, operation, provider, model, request_model, span_status, error_type, cost_status, "
    "cost_reasons, toString(cost) AS usd, charges.meter, charges.quantity, charges.cost"
)

READ = """
import json, sys
from tollspan.processor.store import open_store
with open_store(sys.argv[1], create=False) as store:
    print(json.dumps(store.query(sys.argv[2], {}).to_pylist(), default=str))
"""


class Told:
    """What the store says after a run."""

    def __init__(self, store: str) -> None:
        self.store = store
        rows = self.query(f"SELECT {COLUMNS} FROM ledger FINAL")
        self.rows = Counter(json.dumps(row, sort_keys=True) for row in rows)
        self.total = sum(Decimal(row["usd"]) for row in rows if row["usd"] is not None)
        self.bodies = self.query("SELECT SpanName, SpanAttributes, AdjustedCount, KeepReason FROM spans FINAL")
        self.traces = self.query("SELECT trace_id_hex, spans, kept, kept_spans FROM traces FINAL")

    def query(self, sql: str) -> list[dict[str, Any]]:
        # A process opens one embedded store in its life.
        done = subprocess.run(
            [sys.executable, "-c", READ, self.store, sql], capture_output=True, text=True, timeout=100, check=True
        )
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def named(self, name: str) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body["SpanName"] == name]


CALLS = REQUESTS * 3 + 9 + 6 + 8
"""Of models: three a request, a ninth part fail, six are asked for, eight are the child's."""


def through_a_service(folder: Path, provider: str, share: str) -> Told:
    with Service(folder / "store", ["--keep", "1.0"]) as service:
        run(
            folder,
            provider,
            share,
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{service.info['http']}",
        )
        service.stop()
    return Told(service.url)


@pytest.mark.timeout(300)
def test_the_bill_is_the_same_at_one_ten_and_a_hundred_per_cent(tmp_path: Path, provider: str) -> None:
    told = {share: through_a_service(tmp_path / share, provider, share) for share in ("1", "0.1", "0.01")}
    whole = told["1"]
    assert whole.total > 0
    assert sum(whole.rows.values()) == CALLS + REQUESTS, "the agents' own rows are roll-ups"
    for share in ("0.1", "0.01"):
        assert told[share].rows == whole.rows
        assert told[share].total == whole.total
        assert len({trace["trace_id_hex"] for trace in told[share].traces}) == len(told[share].traces)
    requests = len(whole.named("GET /"))
    assert requests == REQUESTS
    for share in ("0.1", "0.01"):
        sampled = told[share].named("GET /")
        assert len(sampled) < REQUESTS / 2
        assert all(body["AdjustedCount"] == pytest.approx(1 / float(share)) for body in sampled)
        # What failed and what was asked for is there to be looked at, sampled or not.
        assert len(told[share].named("chat broken")) == 9
        assert len(told[share].named("afterwards")) == 6
        notes = [body["SpanAttributes"] for body in told[share].bodies if "every eleventh" in str(body)]
        assert len(notes) == 6
        slim = [body for body in told[share].bodies if dict(body["SpanAttributes"]).get("tollspan.slim") == "true"]
        assert slim == [], "a slim span is no body"
        whole_ones = [body for body in told[share].bodies if dict(body["SpanAttributes"]).get("tollspan.slim")]
        assert {body["AdjustedCount"] for body in whole_ones} == {0.0}
        assert len(whole_ones) > 5


@pytest.mark.timeout(300)
def test_so_it_is_with_the_drop_in_exporter(tmp_path: Path, provider: str) -> None:
    told = {}
    for share in ("1", "0.01"):
        store = f"chdb://{tmp_path / share / 'store'}"
        run(
            tmp_path / share,
            provider,
            share,
            OTEL_TRACES_EXPORTER="tollspan",
            TOLLSPAN_STORE=store,
            TOLLSPAN_EXPORTER_DRAIN="60s",
        )
        told[share] = Told(store)
    assert told["0.01"].rows == told["1"].rows
    assert sum(told["1"].rows.values()) == CALLS + REQUESTS
