"""Tecton: a read of online features is one span. The real client asks a server here that speaks its HTTP interface."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tollspan.instrumentation import feature_read
from tollspan.instrumentation.tecton import TectonInstrumentor
from tollspan.pricing import attributes as names

from .conftest import Telemetry

tecton = pytest.importorskip("tecton_client")

READS = names.usage("feature.reads")
BYTES = names.usage("storage.read.bytes")
KEYS = {"user_id": "ann", "merchant": 7}

VALUES = ["12", None, None]
STATUSES = ["PRESENT", "PRESENT", "MISSING_DATA"]


class Server(BaseHTTPRequestHandler):
    """Answers with three values, and with what the metadata options ask for."""

    def do_POST(self) -> None:
        params = json.loads(self.rfile.read(int(self.headers["content-length"])))["params"]
        asked = params["metadataOptions"]
        features: list[dict[str, Any]] = [{} for _ in VALUES]
        for number, feature in enumerate(features):
            if asked.get("includeNames"):
                feature["name"] = f"{'spending' if number else 'profile'}.value_{number}"
            if asked.get("includeServingStatus"):
                feature["status"] = STATUSES[number]
            if asked.get("includeEffectiveTimes") and number < 2:
                feature["effectiveTime"] = "2020-01-01T00:00:00Z"
        metadata: dict[str, Any] = {"features": features} if any(features) else {}
        if asked.get("includeSloInfo"):
            metadata["sloInfo"] = {"sloEligible": True, "storeResponseSizeBytes": 204}
        body: dict[str, Any] = {"result": {"features": VALUES}, **({"metadata": metadata} if metadata else {})}
        status = 200
        if params["featureServiceName"] == "no_such":
            status, body = 404, {"error": "not there", "code": 5, "message": "not there"}
        answer = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def spans(telemetry: Telemetry) -> Iterator[Telemetry]:
    TectonInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    TectonInstrumentor().uninstrument()


def client(url: str) -> Any:
    return tecton.TectonClient(url=url, api_key="none", default_workspace_name="prod")


def read(url: str, asynchronous: bool = False, service: str = "fraud:v2", **options: Any) -> Any:
    asked = {"feature_service_name": service, "join_key_map": KEYS, **options}
    if not asynchronous:
        return client(url).get_features(**asked)

    async def ask() -> Any:
        one = tecton.AsyncTectonClient(url=url, api_key="none", default_workspace_name="prod")
        try:
            return await one.get_features(**asked)
        finally:
            await one._client.aclose()

    return asyncio.run(ask())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_read_says_what_it_asked_for_and_what_is_known(spans: Telemetry, url: str, asynchronous: bool) -> None:
    answer = read(url, asynchronous)
    assert type(answer) is tecton.GetFeaturesResponse
    assert answer.result.features == VALUES
    assert spans.only().name == "feature_read fraud:v2"
    assert spans.attributes() == {
        names.OPERATION: "feature_read",
        names.PROVIDER: "tecton",
        names.MODEL: "fraud:v2",
        names.FEATURE_STORE: "tecton",
        names.FEATURE_ACCESS: "online",
        names.FEATURE_ENTITIES: ("merchant", "user_id"),
        names.SERVER_ADDRESS: "127.0.0.1",
        names.FEATURE_ROWS: 1,
        names.FEATURE_COUNT: 3,
        names.FEATURE_HITS: 1,
        READS: 3,
    }


def test_what_the_program_has_asked_tecton_to_tell_is_told(spans: Telemetry, url: str) -> None:
    read(url, metadata_options=tecton.MetadataOptions.all())
    told = spans.attributes()
    assert (told[names.FEATURE_HITS], told[names.FEATURE_NULLS], told[names.FEATURE_MISSES]) == (1, 1, 1)
    assert told[names.FEATURE_VIEWS] == ("profile", "spending")
    assert told[BYTES] == 204
    assert told[names.FEATURE_AGE_OLDEST] > 365 * 86_400
    assert "ann" not in repr(told)


def test_keys_are_told_hashed(spans: Telemetry, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "a secret of the test")
    read(url)
    read(url, join_key_map={"user_id": "bob", "merchant": 7})
    read(url)
    first, other, again = ((span.attributes or {})[names.READ_KEYS] for span in spans.spans())
    assert first == again != other


def test_errors_are_the_clients_own(spans: Telemetry, url: str) -> None:
    with pytest.raises(Exception) as raised:
        read(url, service="no_such")
    assert type(raised.value).__module__.startswith("tecton_client")
    with pytest.raises(ValueError, match="feature_service_name"):
        read(url, service="")
    first, second = (dict(span.attributes or {}) for span in spans.spans())
    assert first[names.ERROR_TYPE].startswith("tecton_client.")
    assert second[names.ERROR_TYPE] == "ValueError"
    assert READS not in first


def test_a_read_inside_one_of_the_programs_own_is_part_of_it(
    spans: Telemetry, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", spans.provider)
    with feature_read(store="tecton", view="fraud"):
        read(url)
    assert spans.only().name == "feature_read fraud"


def test_suppressed_and_concurrent_reads(spans: Telemetry, url: str) -> None:
    one = client(url)
    with suppress_instrumentation():
        one.get_features(feature_service_name="fraud:v2", join_key_map=KEYS)
    assert spans.spans() == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: one.get_features(feature_service_name=f"service {n}"), range(12)))
    assert sorted(span.name for span in spans.spans()) == sorted(f"feature_read service {n}" for n in range(12))


def test_uninstrument_restores_the_identical_functions(telemetry: Telemetry, url: str) -> None:
    kinds = (tecton.TectonClient, tecton.AsyncTectonClient)
    before = [vars(kind)["get_features"] for kind in kinds]
    TectonInstrumentor().instrument(tracer_provider=telemetry.provider)
    assert all(vars(kind)["get_features"] is not one for kind, one in zip(kinds, before, strict=True))
    TectonInstrumentor().uninstrument()
    assert all(vars(kind)["get_features"] is one for kind, one in zip(kinds, before, strict=True))
    read(url)
    assert telemetry.spans() == []
