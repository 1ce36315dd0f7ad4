"""The bytes that calls send and receive, against what a server saw of them, and by where it stands."""

from __future__ import annotations

import asyncio
import gzip
import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from tollspan.instrumentation import network, network_http, network_zones
from tollspan.instrumentation.network_zones import ITSELF, OUTSIDE, Place
from tollspan.pricing import PriceEngine, Selectors, shipped_book

from .every_client import BEDROCK, CLIENTS, COHERE, GOOGLE, OPENAI, Ask, Client, Make
from .openai_bill import ledger
from .stub_server import StubServer

HERE = {"cloud.provider": "aws", "cloud.region": "us-west-2", "cloud.availability_zone": "us-west-2a"}
STUB = "127.0.0.1=aws/us-west-2/us-west-2b"
COUNTS = (1000, 100)
PREFIX = "tollspan.usage.network."
ROOT = Path(__file__).parents[2]


class Program:
    """A program in a place, whose client is instrumented; for one test."""

    def __init__(self, stub: StubServer, client: Client, resource: Mapping[str, Any], **options: Any) -> None:
        self.stub = stub
        self.client = client
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(resource=Resource(dict(resource)), **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.instrumentors = [
            getattr(importlib.import_module(f"tollspan.instrumentation.{module}"), name)()
            for module, name in (each.split(":") for each in client.instrumentor.split())
        ]

    def switch(self, on: bool = True) -> None:
        for instrumentor in self.instrumentors:
            if on:
                instrumentor.instrument(tracer_provider=self.provider)
            else:
                instrumentor.uninstrument()

    def run(self, asynchronous: bool, use: Callable[[Any], Any], attempts: int = 0, timeout: float = 30.0) -> None:
        """Give a client to ``use``, a coroutine function."""

        async def program() -> None:
            made = self.client.make(Make(self.stub.url, attempts, timeout), asynchronous)
            if asynchronous and hasattr(made, "__aenter__"):
                async with made as entered:
                    await use(entered)
                return
            await use(made)
            if asynchronous and hasattr(made, "aio"):
                await made.aio.aclose()

        asyncio.run(program())

    def ask(self, asynchronous: bool = False, **how: Any) -> None:
        """The client's plain call; what it raises is looked for on the span."""

        async def use(made: Any) -> None:
            try:
                result = next(iter(self.client.asks.values())).of(asynchronous)(made)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                assert not self.exporter.get_finished_spans()[-1].status.is_ok

        self.run(asynchronous, use, **how)

    def read(self, asynchronous: bool = False, most: int = -1) -> None:
        """The client's stream, so many chunks of it."""

        async def use(made: Any) -> None:
            stream = next(iter(self.client.streams.values())).of(asynchronous)(made)
            stream = await stream if inspect.isawaitable(stream) else stream
            left = most
            if hasattr(stream, "__aiter__"):
                chunks = stream.__aiter__()
                while left and await anext(chunks, None) is not None:
                    left -= 1
            else:
                chunks = iter(stream)
                while left and next(chunks, None) is not None:
                    left -= 1
            if most >= 0:
                closed = getattr(stream, "close", getattr(stream, "aclose", lambda: None))()
                if inspect.isawaitable(closed):
                    await closed

        self.run(asynchronous, use)

    @property
    def sent(self) -> int:
        """Bytes of the bodies that came to the server."""
        return sum(int(headers["content-length"]) for headers in self.stub.headers)

    @property
    def bytes(self) -> dict[str, int]:
        """The network's usage on the one span."""
        (span,) = self.exporter.get_finished_spans()
        found = {name: value for name, value in (span.attributes or {}).items() if name.startswith(PREFIX)}
        return {name.removeprefix(PREFIX): value for name, value in found.items()}  # type: ignore[misc]


@pytest.fixture(scope="module")
def server() -> Iterator[StubServer]:
    with StubServer() as stub:
        yield stub


@pytest.fixture
def program(server: StubServer, monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Callable[..., Program]]:
    """Makes a program of a client in a place."""
    server.forget()
    monkeypatch.setenv("TOLLSPAN_PLACES", STUB)
    monkeypatch.delenv("TOLLSPAN_NETWORK", raising=False)
    monkeypatch.setenv("TOLLSPAN_PEERS", "beside")
    made: list[Program] = []

    def make(client: Client = OPENAI, resource: Mapping[str, Any] = HERE, **how: Any) -> Program:
        pytest.importorskip(client.module)
        switches = {name: how.pop(name) for name in list(how) if name.isupper()}
        for name, value in switches.items():
            monkeypatch.setenv(f"TOLLSPAN_{name}", value)
        made.append(Program(server, client, resource, **how))
        made[-1].switch()
        return made[-1]

    yield make
    for each in made:
        each.switch(False)


def size(body: Any) -> int:
    return len(json.dumps(body).encode())


# -- every client, against what the server saw -------------------------------------------------------------------------

both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
every = pytest.mark.parametrize("client", CLIENTS, ids=str)


@every
@both
def test_a_call_tells_the_bytes_of_its_bodies(program: Any, client: Client, asynchronous: bool) -> None:
    told = program(client)
    told.stub.json(client.answer(COUNTS))
    told.ask(asynchronous)
    assert told.bytes == {"egress.cross_zone.bytes": told.sent, "ingress.cross_zone.bytes": size(client.answer(COUNTS))}


@every
@both
def test_a_stream_tells_what_came(program: Any, client: Client, asynchronous: bool) -> None:
    told = program(client)
    events = client.events(COUNTS)
    told.stub.stream(events, client.kind)
    told.read(asynchronous)
    assert told.bytes == {"egress.cross_zone.bytes": told.sent, "ingress.cross_zone.bytes": len(b"".join(events))}


@pytest.mark.parametrize("client", [each for each in CLIENTS if each.retrying], ids=str)
@both
def test_all_attempts_are_summed(program: Any, client: Client, asynchronous: bool) -> None:
    told = program(client)
    told.stub.json(client.refusal(503), 503, **client.headers).json(client.answer(COUNTS))
    told.ask(asynchronous, attempts=1)
    assert len(told.stub.requests) == 2
    received = size(client.refusal(503)) + size(client.answer(COUNTS))
    assert told.bytes == {"egress.cross_zone.bytes": told.sent, "ingress.cross_zone.bytes": received}


@every
def test_a_refusal_has_bytes_too(program: Any, client: Client) -> None:
    told = program(client)
    told.stub.json(client.refusal(400), 400, **client.headers)
    told.ask()
    assert told.bytes == {"egress.cross_zone.bytes": told.sent, "ingress.cross_zone.bytes": size(client.refusal(400))}


@pytest.mark.parametrize("client", [OPENAI, GOOGLE, BEDROCK, COHERE], ids=str)
@both
def test_compressed_bodies_count_as_they_came(program: Any, client: Client, asynchronous: bool) -> None:
    told = program(client)
    packed = gzip.compress(json.dumps({**client.answer(COUNTS), "padding": "x" * 10_000}).encode())
    told.stub.raw(packed, "application/json", content_encoding="gzip")
    told.ask(asynchronous)
    assert told.bytes["ingress.cross_zone.bytes"] == len(packed) < 1000


@pytest.mark.parametrize("client", [OPENAI, GOOGLE, BEDROCK], ids=str)
@both
def test_compressed_chunks_count_as_they_came(program: Any, client: Client, asynchronous: bool) -> None:
    told = program(client)
    packed = gzip.compress(json.dumps({**client.answer(COUNTS), "padding": "x" * 10_000}).encode())
    told.stub.stream([packed[:50], packed[50:]], "application/json", content_encoding="gzip")
    told.ask(asynchronous)
    assert told.bytes["ingress.cross_zone.bytes"] == len(packed)


@both
def test_a_stream_that_is_left_tells_what_was_read(program: Any, asynchronous: bool) -> None:
    told = program()
    events = OPENAI.events(COUNTS)
    told.stub.stream(events, OPENAI.kind, slow=True)
    told.read(asynchronous, most=1)
    told.stub.hold.set()
    assert told.bytes["egress.cross_zone.bytes"] == told.sent
    assert told.bytes["ingress.cross_zone.bytes"] == len(events[0])


# -- attempts that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", [OPENAI, GOOGLE, BEDROCK], ids=str)
@both
def test_an_answer_that_breaks_off_leaves_what_was_sent(program: Any, client: Client, asynchronous: bool) -> None:
    told = program(client)
    told.stub.drop()
    told.ask(asynchronous)
    assert told.bytes == {"egress.cross_zone.bytes": told.sent}


@both
def test_nothing_was_sent_where_there_was_no_connection(program: Any, asynchronous: bool) -> None:
    told = program()
    told.stub = type("Nobody", (), {"url": "http://127.0.0.1:9"})()
    told.ask(asynchronous)
    assert told.bytes == {}


@both
def test_an_attempt_that_timed_out_is_in_the_sum_of_what_was_sent(program: Any, asynchronous: bool) -> None:
    told = program()
    told.stub.stall().json(OPENAI.answer(COUNTS))
    told.ask(asynchronous, attempts=1, timeout=0.3)
    told.stub.hold.set()
    assert len(told.stub.requests) == 2
    assert told.bytes == {"egress.cross_zone.bytes": told.sent}  # what came of the first nobody knows


def test_a_cancelled_call_tells_nothing_that_is_not_known(program: Any) -> None:
    told = program()
    told.stub.stall()

    async def use(made: Any) -> None:
        task = asyncio.ensure_future(next(iter(OPENAI.asks.values())).of(True)(made))
        await asyncio.to_thread(told.stub.arrived.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    told.run(True, use)
    told.stub.hold.set()
    assert told.bytes == {}


# -- whose requests they are -------------------------------------------------------------------------------------------


def test_what_a_call_sends_elsewhere_is_not_the_models(program: Any) -> None:
    from .http_library import httpx2

    told = program()
    told.stub.json(OPENAI.answer(COUNTS))

    def elsewhere(request: Any) -> Any:
        tool = httpx2.MockTransport(lambda request: httpx2.Response(200, content=b"x" * 999))
        httpx2.Client(transport=tool).post("http://tool.example/", content=b"y" * 999)
        return None

    async def use(made: Any) -> None:
        made._client.event_hooks = {"request": [elsewhere], "response": []}
        next(iter(OPENAI.asks.values())).of(False)(made)

    told.run(False, use)
    assert told.bytes["egress.cross_zone.bytes"] == told.sent


def test_calls_side_by_side_count_their_own(program: Any) -> None:
    told = program()
    told.stub.json(OPENAI.answer(COUNTS))

    async def use(made: Any) -> None:
        def ask(number: int) -> None:
            made.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "x" * number}])

        threads = [threading.Thread(target=ask, args=(100 * number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    told.run(False, use)
    spans = told.exporter.get_finished_spans()
    counted = sorted((span.attributes or {})[f"{PREFIX}egress.cross_zone.bytes"] for span in spans)
    assert counted == sorted(int(headers["content-length"]) for headers in told.stub.headers)
    assert len(set(counted)) == 8


# -- stores ----------------------------------------------------------------------------------------------------------


@both
def test_a_store_that_is_asked_over_http_counts_too(program: Any, asynchronous: bool) -> None:
    qdrant = pytest.importorskip("qdrant_client")

    def make(how: Make, asynchronous: bool) -> Any:
        kind = qdrant.AsyncQdrantClient if asynchronous else qdrant.QdrantClient
        return kind(url=how.url, check_compatibility=False)

    ask = Ask(lambda client: client.query_points("answers", query=[1.0, 0.0]))
    store = Client(
        name="qdrant",
        module="qdrant_client",
        instrumentor="vectors.qdrant:QdrantInstrumentor",
        make=make,
        asks={"query": ask},
        streams={},
        answer=lambda counts: {
            "result": {"points": [{"id": 1, "version": 1, "score": 0.5}]},
            "status": "ok",
            "time": 0,
        },
        events=lambda counts: [],
    )
    told = program(store)
    told.stub.json(store.answer(None))
    told.ask(asynchronous)
    assert told.bytes == {"egress.cross_zone.bytes": told.sent, "ingress.cross_zone.bytes": size(store.answer(None))}


# -- switches and places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "place", "scope"),
    [
        (HERE, STUB, "cross_zone"),
        (HERE, "127.0.0.1=aws/us-west-2/us-west-2a", "same_zone"),
        (HERE, "127.0.0.1=aws/us-west-2/*", "same_zone"),
        (HERE, "*.0.0.1=aws/us-east-1", "cross_region"),
        (HERE, "127.0.0.1=internet", "internet"),
    ],
)
def test_a_place_with_prices_counts_by_itself(program: Any, resource: Any, place: str, scope: str) -> None:
    told = program(resource=resource, PLACES=place)
    told.stub.json(OPENAI.answer(COUNTS))
    told.ask()
    assert set(told.bytes) == {f"egress.{scope}.bytes", f"ingress.{scope}.bytes"}
    (row,) = ledger(told.exporter.get_finished_spans())
    assert (row["cost_status"], row["cost_reasons"]) == ("priced", "")
    network_charges = {
        meter: (cost, status)
        for meter, cost, status in zip(row["charges.meter"], row["charges.cost"], row["charges.status"], strict=True)
        if meter.startswith("network.")
    }
    assert {status for _, status in network_charges.values()} <= {"priced", "free"}
    if scope != "same_zone":
        assert network_charges[f"network.egress.{scope}.bytes"][0] > 0


@pytest.mark.parametrize(
    ("resource", "place"),
    [
        ({}, STUB),
        ({"cloud.provider": "aws"}, STUB),
        ({**HERE, "cloud.region": "eu-central-1"}, "127.0.0.1=internet"),
        ({**HERE, "cloud.provider": "hall-2"}, "127.0.0.1=internet"),
        (HERE, "127.0.0.1=aws"),
        (HERE, "127.0.0.1=gcp/us-central1"),
        (HERE, "elsewhere=aws"),
    ],
    ids=[
        "no cloud",
        "no region",
        "no prices there",
        "own cloud",
        "scope not known",
        "other cloud",
        "the machine itself",
    ],
)
def test_what_nobody_could_price_is_not_counted_unasked(program: Any, resource: Any, place: str) -> None:
    told = program(resource=resource, PLACES=place)
    told.stub.json(OPENAI.answer(COUNTS))
    told.ask()
    assert told.bytes == {}
    (row,) = ledger(told.exporter.get_finished_spans())
    assert row["cost_status"] == "priced"


@pytest.mark.parametrize(
    ("resource", "place", "scope"),
    [({}, STUB, ""), (HERE, "127.0.0.1=gcp/us-central1", ".cross_cloud"), (HERE, "127.0.0.1=aws", "")],
)
def test_it_can_be_asked_for(program: Any, resource: Any, place: str, scope: str) -> None:
    told = program(resource=resource, PLACES=place, NETWORK="on")
    told.stub.json(OPENAI.answer(COUNTS))
    told.ask()
    assert set(told.bytes) == {f"egress{scope}.bytes", f"ingress{scope}.bytes"}
    (row,) = ledger(told.exporter.get_finished_spans())
    assert row["cost_status"] == "partial"  # a lower bound, as the shipped prices have none for it


def test_it_can_be_switched_off(program: Any) -> None:
    told = program(NETWORK="off")
    assert not network_http.HOOKS._users
    told.stub.json(OPENAI.answer(COUNTS))
    told.ask()
    assert told.bytes == {}


def test_a_word_that_is_none_of_them_is_named(program: Any, caplog: pytest.LogCaptureFixture) -> None:
    program(NETWORK="perhaps", PLACES="nonsense")
    assert "TOLLSPAN_NETWORK=perhaps" in caplog.text
    assert "nonsense" in caplog.text


def test_a_span_that_nobody_records_counts_nothing(program: Any) -> None:
    told = program(sampler=ALWAYS_OFF)
    told.stub.json(OPENAI.answer(COUNTS))
    told.ask()
    assert not network_http.HOOKS._users


def stood() -> dict[str, Any]:
    """What stands at each target now."""
    found = {}
    for target in network_http.TARGETS:
        module, _, path = target.partition(":")
        owner: Any = importlib.import_module(module)
        *parts, name = path.split(".")
        for part in parts:
            owner = getattr(owner, part)
        found[target] = vars(owner)[name]
    return found


def test_the_libraries_are_touched_only_while_somebody_counts(program: Any) -> None:
    for module in ("anthropic", "aiohttp", "urllib3", "httpx", "httpx2"):
        pytest.importorskip(module)
    before = stood()
    first = program()
    second = program(next(client for client in CLIENTS if client.name == "anthropic"))
    assert stood() == before
    first.stub.json(OPENAI.answer(COUNTS))
    first.ask()
    first.stub.forget()
    second.stub.json(second.client.answer(COUNTS))
    second.ask()
    changed = stood()
    assert not any(changed[target] is before[target] for target in before)
    first.switch(False)
    assert all(stood()[target] is changed[target] for target in before)
    second.switch(False)
    assert all(stood()[target] is before[target] for target in before)


def test_nothing_is_imported_for_it() -> None:
    code = (
        "import sys; from tollspan.instrumentation.openai import OpenAIInstrumentor; OpenAIInstrumentor().instrument();"
        "print([m for m in ('httpx', 'httpx2', 'urllib3', 'aiohttp', 'openai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


LATE = """
from opentelemetry.instrumentation.openai import OpenAIInstrumentor as Peer
from tests.instrumentation.conftest import Wire
from tests.instrumentation.test_network import HERE, PREFIX
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tollspan.instrumentation.openai import OpenAIInstrumentor

spans = InMemorySpanExporter()
provider = TracerProvider(resource=Resource(HERE))
provider.add_span_processor(SimpleSpanProcessor(spans))
Peer().instrument(tracer_provider=provider)
OpenAIInstrumentor().instrument(tracer_provider=provider)
wire = Wire()
wire.json(wire.completion()).client().chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
for span in spans.get_finished_spans():
    print(span.instrumentation_scope.name.split(".")[0], sum(name.startswith(PREFIX) for name in span.attributes))
"""


def test_beside_another_instrumentation_ours_tells_them() -> None:
    pytest.importorskip("opentelemetry.instrumentation.openai")
    environment = {**os.environ, "TOLLSPAN_PEERS": "under"}
    done = subprocess.run(
        [sys.executable, "-c", LATE], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
    )
    assert sorted(done.stdout.split("\n")) == ["", "opentelemetry 0", "tollspan 2"]


# -- the table of places -----------------------------------------------------------------------------------------------

WEST = Place("aws", "us-west-2", "us-west-2a")
NONE = network_zones.rows("")


@pytest.mark.parametrize(
    ("host", "place"),
    [
        ("bedrock-runtime.us-west-2.amazonaws.com", Place("aws", "us-west-2", "*")),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", Place("aws", "us-gov-west-1", "*")),
        ("bedrock-agent-runtime.eu-central-1.amazonaws.com", Place("aws", "eu-central-1", "*")),
        ("bedrock-mantle.us-east-1.api.aws", Place("aws", "us-east-1", "*")),
        ("runtime.sagemaker.us-east-1.amazonaws.com", Place("aws", "us-east-1", "*")),
        ("vpce-0a1-2b.bedrock-runtime.us-east-1.vpce.amazonaws.com", Place("aws", "us-east-1", "*")),
        ("vpce-0a1-2b-us-east-1a.bedrock-runtime.us-east-1.vpce.amazonaws.com", Place("aws", "us-east-1", "*")),
        ("lb-7.us-east-1.elb.amazonaws.com", Place("aws", "us-east-1")),
        ("ec2-1-2-3-4.us-west-2.compute.amazonaws.com", Place("aws", "us-west-2")),
        ("us-central1-aiplatform.googleapis.com", Place("gcp", "us-central1", "*")),
        ("northamerica-northeast1-aiplatform.googleapis.com", Place("gcp", "northamerica-northeast1", "*")),
        ("aiplatform.us.rep.googleapis.com", Place("gcp")),
        ("aiplatform.europe-west4.rep.googleapis.com", Place("gcp", "europe-west4", "*")),
        ("generativelanguage.googleapis.com", Place("gcp")),
        ("gateway-123.us-central1.run.app", Place("gcp", "us-central1", "*")),
        ("mine.openai.azure.com", Place("azure")),
        ("eastus2.api.cognitive.microsoft.com", Place("azure", "eastus2", "*")),
        ("m-7.eastus2.models.ai.azure.com", Place("azure", "eastus2", "*")),
        ("e-7.westus2.inference.ml.azure.com", Place("azure", "westus2", "*")),
        ("x7.us-east-1.aws.endpoints.huggingface.cloud", Place("aws", "us-east-1")),
        ("api.openai.com", OUTSIDE),
        ("api.anthropic.com", OUTSIDE),
        ("router.huggingface.co", OUTSIDE),
        ("localhost", ITSELF),
        ("127.0.0.1", ITSELF),
        ("::1", ITSELF),
        ("10.0.3.4", None),
        ("34.1.2.3", None),
        ("qdrant", None),
        ("models.default.svc.cluster.local", None),
        ("gateway.example.com", None),
    ],
)
def test_a_hosts_name_says_where_it_is(host: str, place: Place | None) -> None:
    assert network_zones.peer_of(host, NONE) == place


@pytest.mark.parametrize(
    ("local", "host", "scope"),
    [
        (WEST, "bedrock-runtime.us-west-2.amazonaws.com", "same_zone"),
        (WEST, "bedrock-runtime.us-east-1.amazonaws.com", "cross_region"),
        (WEST, "lb-7.us-west-2.elb.amazonaws.com", None),
        (WEST, "lb-7.us-east-1.elb.amazonaws.com", "cross_region"),
        (WEST, "us-central1-aiplatform.googleapis.com", "internet"),
        (WEST, "mine.openai.azure.com", "internet"),
        (Place("azure", "eastus"), "mine.openai.azure.com", None),
        (Place("aws"), "bedrock-runtime.us-west-2.amazonaws.com", None),
        (WEST, "api.openai.com", "internet"),
        (WEST, "10.0.3.4", None),
        (None, "api.openai.com", None),
        (WEST, "db.internal", "cross_cloud"),
        (WEST, "a.near.internal", "same_zone"),
        (WEST, "b.near.internal", "cross_zone"),
        (WEST._replace(zone=None), "b.near.internal", None),
        (WEST, "cdn.internal", "internet"),
    ],
)
def test_two_places_have_a_distance(local: Place | None, host: str, scope: str | None) -> None:
    said = network_zones.rows(
        "db.internal=GCP/us-central1, *.near.internal=aws/us-west-2/us-west-2a, "
        "b.near.internal=aws/us-west-2/us-west-2c, cdn.internal=internet"
    )
    assert network_zones.scope(local, network_zones.peer_of(host, said)) == scope


def test_the_table_of_places_with_prices_is_the_shipped_book() -> None:
    engine = PriceEngine(shipped_book())
    at = datetime(2026, 11, 21, tzinfo=UTC)
    for cloud, regions in network.PRICED.items():
        costs = set()
        for region in regions:
            usage = {
                f"network.{direction}.{scope}.bytes": 10**9
                for direction in ("egress", "ingress")
                for scope in network.PRICED_SCOPES
            }
            charges = engine.price(usage, at=at, selectors=Selectors(cloud_provider=cloud, region=region))
            assert charges.status == "priced", (cloud, region)
            costs.add(charges.cost)
        # A span may name the region of its peer, by which its prices are then chosen: it must make no difference.
        assert len(costs) == 1, cloud
