"""Hopsworks: a read of feature vectors is one span.

The real client asks a server here that speaks the HTTP interface of RonDB's REST server. What a login and
``init_serving`` fetch from a cluster (who we are, where that server is, what the view looks like) is given by hand.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tollspan.instrumentation import feature_read
from tollspan.instrumentation.hopsworks import HopsworksInstrumentor
from tollspan.pricing import attributes as names

from .conftest import Telemetry

pytest.importorskip("hopsworks")
pytestmark = pytest.mark.filterwarnings("ignore")

READS = names.usage("feature.reads")
BYTES = names.usage("storage.read.bytes")
ROW = [1, 2.5, None]
SINGLE = json.dumps({"status": "COMPLETE", "features": ROW, "metadata": None}).encode()


class Server(BaseHTTPRequestHandler):
    """Answers every key with the same row; refuses user 404."""

    def do_GET(self) -> None:
        self.answer(b"{}")

    def do_POST(self) -> None:
        entries = json.loads(self.rfile.read(int(self.headers["content-length"])))["entries"]
        if isinstance(entries, list):
            number = len(entries)
            body = {"status": ["COMPLETE"] * number, "features": [ROW] * number, "metadata": None}
            self.answer(json.dumps(body).encode())
        elif entries["user_id"] == 404:
            self.answer(b"{}", 400)
        else:
            self.answer(SINGLE)

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def view(port: int) -> Iterator[Any]:
    """A feature view that is ready to serve."""

    def of(module: str, name: str) -> Any:
        return getattr(importlib.import_module(module), name)

    client = importlib.import_module("hopsworks_common.client")
    rest = importlib.import_module("hopsworks_common.client.online_store_rest_client")
    importlib.import_module("hsfs.engine")._init("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "_client", types.SimpleNamespace(_is_external=lambda: False, _connected=True))
        patch.setattr(rest.OnlineStoreRestClientSingleton, "_get_default_dynamic_parameters_config", lambda self: {})
        where = {"host": "127.0.0.1", "port": port, "ca_certs": None, "timeout": 20}
        options = {"use_ssl": False, "verify_certs": False, "api_key": "none", **where}
        rest._init_or_reset_online_store_rest_client(optional_config=options)
        columns = (("user_id", "bigint", True), ("spent", "double", False), ("visits", "bigint", False))
        features = [of("hsfs.feature", "Feature")(name, kind, primary=key) for name, kind, key in columns]
        group = of("hsfs.feature_group", "FeatureGroup")(
            "profile", 1, 1, id=1, online_enabled=True, features=features, primary_key=["user_id"]
        )
        key = of("hsfs.serving_key", "ServingKey")("user_id", 0, group)
        one = of("hsfs.feature_view", "FeatureView")(
            "ranking", group.select_all(), 1, version=2, featurestore_name="shop_featurestore", serving_keys=[key]
        )
        made = of("hsfs.training_dataset_feature", "TrainingDatasetFeature")
        one._features = [
            made(feature.name, feature.type, index=number, featuregroup=group)
            for number, feature in enumerate(features)
        ]
        server = one._vector_server
        server._parent_feature_groups, server._root_feature_group = [group], group
        server._set_default_client(init_rest_client=True, init_sql_client=False)
        server._rest_client_engine = of("hsfs.core.online_store_rest_client_engine", "OnlineStoreRestClientEngine")(
            feature_store_name="shop_featurestore",
            feature_view_name="ranking",
            feature_view_version=2,
            features=one.features,
        )
        server._set_return_feature_value_handlers(features=one.features)
        server._serving_initialized = True
        yield one


@pytest.fixture
def spans(telemetry: Telemetry) -> Iterator[Telemetry]:
    HopsworksInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    HopsworksInstrumentor().uninstrument()


def vector(view: Any, user: int, asynchronous: bool = False, **options: Any) -> Any:
    asked = {"entry": {"user_id": user}, "allow_missing": True, "return_type": "list", **options}
    if asynchronous:
        return asyncio.run(view.get_feature_vector_async(**asked))
    return view.get_feature_vector(**asked)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_vector(spans: Telemetry, view: Any, asynchronous: bool) -> None:
    assert vector(view, 1, asynchronous) == ROW
    assert spans.only().name == "feature_read ranking"
    assert spans.attributes() == {
        names.OPERATION: "feature_read",
        names.PROVIDER: "hopsworks",
        names.MODEL: "ranking",
        names.MODEL_VERSION: "2",
        names.FEATURE_STORE: "rondb",
        names.FEATURE_ACCESS: "online",
        names.FEATURE_VIEWS: ("ranking",),
        names.FEATURE_ENTITIES: ("user_id",),
        names.FEATURE_ROWS: 1,
        names.FEATURE_COUNT: 2,
        names.FEATURE_HITS: 1,
        READS: 2,
        BYTES: len(SINGLE),
    }


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("form", ["list", "pandas", "numpy"])
def test_vectors(spans: Telemetry, view: Any, asynchronous: bool, form: str) -> None:
    asked = {"entry": [{"user_id": 1}, {"user_id": 2}], "allow_missing": True, "return_type": form}
    found = asyncio.run(view.get_feature_vectors_async(**asked)) if asynchronous else view.get_feature_vectors(**asked)
    assert len(found) == 2
    told = spans.attributes()
    assert (told[names.FEATURE_ROWS], told[names.FEATURE_COUNT], told[READS]) == (2, 2, 4)
    assert told.get(names.FEATURE_HITS) == (2 if form == "list" else None)
    assert told[BYTES] > len(SINGLE)


@pytest.mark.parametrize("form", ["pandas", "numpy"])
def test_a_vector_as_a_frame_or_an_array(spans: Telemetry, view: Any, form: str) -> None:
    vector(view, 1, return_type=form)
    told = spans.attributes()
    assert (told[names.FEATURE_ROWS], told[names.FEATURE_COUNT], told[READS]) == (1, 2, 2)


def test_keys_are_told_hashed(spans: Telemetry, view: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "a secret of the test")
    view.get_feature_vectors(entry=[{"user_id": 1}, {"user_id": 2}], allow_missing=True)
    vector(view, 2)
    both, one = ((span.attributes or {})[names.READ_KEYS] for span in spans.spans())
    assert (len(both), one) == (2, both[1:])


def test_errors_are_the_clients_own(spans: Telemetry, view: Any) -> None:
    with pytest.raises(Exception, match="400") as raised:
        vector(view, 404)
    with pytest.raises(Exception, match="not a serving key"):
        view.get_feature_vector(entry={"other": 1}, allow_missing=True)
    first, second = (dict(span.attributes or {}) for span in spans.spans())
    assert first[names.ERROR_TYPE] == f"{type(raised.value).__module__}.{type(raised.value).__qualname__}"
    assert READS not in first
    assert READS not in second


def test_a_read_inside_one_of_the_programs_own_is_part_of_it(
    spans: Telemetry, view: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", spans.provider)
    with feature_read(store="rondb", view="ranking"):
        vector(view, 1)
    assert spans.only().name == "feature_read ranking"
    assert names.FEATURE_ROWS not in spans.attributes()


def test_suppressed_and_concurrent_reads(spans: Telemetry, view: Any) -> None:
    with suppress_instrumentation():
        vector(view, 1)
    assert spans.spans() == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: vector(view, n), range(1, 13)))
    assert [(span.attributes or {})[BYTES] for span in spans.spans()] == [len(SINGLE)] * 12


def test_uninstrument_restores_the_identical_functions(telemetry: Telemetry, view: Any) -> None:
    def stand() -> list[Any]:
        api = importlib.import_module("hsfs.core.online_store_rest_client_api").OnlineStoreRestClientApi
        methods = [vars(type(view))[point.target.rpartition(".")[2]] for point in HopsworksInstrumentor.points]
        return [*methods, vars(api)["_handle_rdrs_feature_store_response"]]

    before = stand()
    HopsworksInstrumentor().instrument(tracer_provider=telemetry.provider)
    assert all(one is not other for one, other in zip(stand(), before, strict=True))
    HopsworksInstrumentor().uninstrument()
    assert all(one is other for one, other in zip(stand(), before, strict=True))
    vector(view, 1)
    assert telemetry.spans() == []
