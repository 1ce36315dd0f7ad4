"""Sending on: every kept span at least once to every endpoint, whatever the endpoint does, and nobody waits for it."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tollspan.pricing import attributes as names
from tollspan.processor.config import load, runtime_config
from tollspan.processor.counters import Counters
from tollspan.processor.decode import decode
from tollspan.processor.encode import attribute, encode, together
from tollspan.processor.errors import ConfigError
from tollspan.processor.forward import costs
from tollspan.processor.forward import forwarder as forwarding
from tollspan.processor.forward import sender as sending
from tollspan.processor.forward.client import Outcome
from tollspan.processor.forward.forwarder import Forwarder
from tollspan.processor.forward.settings import Endpoint, Forwarding
from tollspan.processor.forward.spool import Spool, Waiting
from tollspan.processor.sample import ERROR, PROBABILITY, Decision, Fates
from tollspan.processor.summarize import Held, Kept, kept_of

from .otlp_backend import Backend, GrpcBackend, HttpBackend, Reply, kinds, rejecting, replies
from .otlp_factory import request, span

NO_LEDGER = pa.table(
    {
        "cost": pa.array([], pa.decimal128(38, 12)),
        "cost_status": pa.array([], pa.string()).dictionary_encode(),
        "cost_reasons": pa.array([], pa.string()).dictionary_encode(),
        "charges.component": pa.array([], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "charges.cost": pa.array([], pa.list_(pa.decimal128(38, 12))),
        "book_version": pa.array([], pa.string()).dictionary_encode(),
    }
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(sending, "LONGEST_DELAY_S", 0.2)
    monkeypatch.setattr(sending, "LINGER_S", 0.0)


def decision(numbers: list[int], values: dict[str, object] | None = None) -> Decision:
    """Spans of a batch, all kept, none of them billed."""
    decoded = decode([request([span(values or {"n": n}, number=n) for n in numbers], {"service.name": "shop"})])
    held = Held(decoded, None, None, costs.Costs.of(NO_LEDGER, np.zeros(0, np.int64), len(decoded)))
    count = len(decoded)
    return Decision(
        held,
        np.arange(count),
        np.zeros(count, np.int64),
        Fates.alike(1, PROBABILITY, 1 << 55),
        np.zeros(count, np.bool_),
    )


def some(*decisions: Decision) -> list[Kept]:
    return list(kept_of(decisions))


class Line:
    """A forwarder and its counters."""

    def __init__(self, folder: Path, *endpoints: Endpoint, drain_s: float = 5.0) -> None:
        self.counters = Counters()
        self.forwarder = Forwarder(endpoints, folder, self.counters, drain_s)
        self.forwarder.start()

    def keep(self, *numbers: int, **values: object) -> None:
        self.forwarder.keep(some(decision(list(numbers), values or None))).wait()

    def count(self, name: str) -> int:
        return self.counters.get(f"forward.{name}")

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.forwarder.stop()


def came(*numbers: int) -> Callable[[Backend], bool]:
    return lambda backend: {n + 1 for n in numbers} <= set(backend.ids())


@pytest.fixture(params=kinds(), ids=["grpc", "http"])
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    kind, protocol = request.param
    with kind() as made:
        made.endpoint = lambda **more: Endpoint(made.url, protocol=protocol, **more)
        yield made


# -- what an endpoint answers ------------------------------------------------------------------------------------------


def test_kept_spans_arrive_with_their_resource_and_headers(backend: Any, tmp_path: Path) -> None:
    with Line(tmp_path, backend.endpoint(headers={"Authorization": "Bearer t", "x-scope": "a"})) as line:
        line.keep(1, 2, 3)
        backend.wait(came(1, 2, 3))
    (got,) = backend.requests()
    assert got.resource_spans[0].resource.attributes[0].value.string_value == "shop"
    first = got.resource_spans[0].scope_spans[0].spans[0]
    assert first.trace_state == "ot=th:8"
    said = {pair.key: pair.value for pair in first.attributes}
    assert said[names.SAMPLING_ADJUSTED_COUNT].double_value == 2.0
    assert said[names.SAMPLING_REASON].string_value == "probability"
    assert names.COST_STATUS not in said
    assert backend.heads[0]["authorization"] == "Bearer t"
    assert backend.heads[0]["x-scope"] == "a"
    assert (line.count("spans"), line.count("spooled_spans")) == (3, 3)


def test_an_endpoint_that_is_busy_is_asked_again_when_it_says(backend: Any, tmp_path: Path) -> None:
    busy = [("UNAVAILABLE", 503), ("RESOURCE_EXHAUSTED", 429)]
    which = isinstance(backend, HttpBackend)
    backend.decide = replies(*(Reply(codes[which], "busy", retry_s=0.4) for codes in busy))
    began = time.monotonic()
    with Line(tmp_path, backend.endpoint()) as line:
        line.keep(1)
        backend.wait(came(1))
        assert time.monotonic() - began > 0.75
        assert len(backend.seen) == 3
    assert sum(v for k, v in line.counters.snapshot().items() if k.startswith("forward.retries.")) == 2
    assert line.forwarder.troubles == []


@pytest.mark.parametrize(("code", "status"), [("INVALID_ARGUMENT", 400), ("UNIMPLEMENTED", 404), ("INTERNAL", 500)])
def test_what_is_refused_for_good_is_counted_and_holds_up_nothing(
    backend: Any, tmp_path: Path, code: str, status: int
) -> None:
    backend.decide = replies(Reply(status if isinstance(backend, HttpBackend) else code, "no"))
    with Line(tmp_path, backend.endpoint()) as line:
        line.keep(1)
        backend.wait(lambda b: len(b.seen) == 1)
        line.keep(2)
        backend.wait(came(2))
    assert backend.ids() == [3]
    refused = {k: v for k, v in line.counters.snapshot().items() if k.startswith("forward.refused_spans.")}
    assert sum(refused.values()) == 1


def test_one_span_that_an_endpoint_cannot_bear_goes_alone(backend: Any, tmp_path: Path) -> None:
    bad = Reply(400 if isinstance(backend, HttpBackend) else "INVALID_ARGUMENT", "poison")
    backend.decide = lambda payload: bad if b"span 5" in payload else Reply()
    with Line(tmp_path, backend.endpoint()) as line:
        line.keep(*range(8))
        backend.wait(lambda b: len(b.ids()) == 7)
    assert sorted(backend.ids()) == [n + 1 for n in range(8) if n != 5]
    assert line.count("spans") == 7
    assert sum(v for k, v in line.counters.snapshot().items() if k.startswith("forward.refused_spans.")) == 1


def test_an_endpoint_that_refuses_everything_is_not_asked_for_every_span(backend: Any, tmp_path: Path) -> None:
    backend.decide = lambda payload: Reply(400 if isinstance(backend, HttpBackend) else "INVALID_ARGUMENT")
    with Line(tmp_path, backend.endpoint()) as line:
        line.keep(*range(1000))
    assert sum(v for k, v in line.counters.snapshot().items() if k.startswith("forward.refused_spans.")) == 1000
    assert len(backend.seen) < 3 * sending.TRIALS[Outcome.REFUSED]


def test_requests_that_are_too_large_are_divided(tmp_path: Path) -> None:
    with (
        GrpcBackend().start(max_receive_message_length=20_000) as backend,
        Line(tmp_path, Endpoint(backend.url)) as line,
    ):
        line.keep(*range(1000), text="x" * 1000)
        backend.wait(lambda b: len(b.ids()) == 1000)
        assert line.count("refused_spans.resource_exhausted") == 0
    with HttpBackend() as http:
        http.decide = lambda payload: Reply(413) if len(payload) > 20_000 else Reply()
        with Line(tmp_path, Endpoint(http.url, protocol="http/protobuf")) as line:
            line.keep(*range(100), text="x" * 1000)
            http.wait(lambda b: len(b.ids()) == 100)


def test_partial_success_is_counted_and_not_sent_again(backend: Any, tmp_path: Path) -> None:
    backend.decide = replies(rejecting(2, "two are too old"))
    with Line(tmp_path, backend.endpoint()) as line:
        line.keep(1, 2, 3)
        backend.wait(came(1))
    assert len(backend.seen) == 1
    assert (line.count("spans"), line.count("rejected.traces")) == (1, 2)


def test_spans_wait_for_a_login_to_be_mended(backend: Any, tmp_path: Path) -> None:
    wrong = [("UNAUTHENTICATED", 401), ("PERMISSION_DENIED", 403)]
    which = isinstance(backend, HttpBackend)
    backend.decide = replies(*(Reply(codes[which], "who are you") for codes in wrong * 2))
    with Line(tmp_path, backend.endpoint()) as line:
        line.keep(1)
        backend.wait(lambda b: len(b.seen) >= 2)
        backend.wait(came(1))
    assert line.count("spans") == 1


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_bodies_are_compressed(tmp_path: Path, compression: Any) -> None:
    with HttpBackend() as backend:
        endpoint = Endpoint(f"{backend.url}/otlp/", protocol="http/protobuf", compression=compression)
        with Line(tmp_path, endpoint) as line:
            line.keep(*range(50))
            backend.wait(lambda b: len(b.ids()) == 50)
        assert backend.heads[0].get("content-encoding", "none") == compression
        assert backend.heads[0]["path"] == "/otlp/v1/traces"
    if compression == "zstd":
        return
    with GrpcBackend() as grpc_backend, Line(tmp_path, Endpoint(grpc_backend.url, compression=compression)) as line:
        line.keep(1)
        grpc_backend.wait(came(1))


def test_http_goes_through_the_proxy_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpBackend() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        with Line(tmp_path, Endpoint("http://far.invalid:4318", protocol="http/protobuf")) as line:
            line.keep(1)
            proxy.wait(came(1))
    assert proxy.heads[0]["path"] == "http://far.invalid:4318/v1/traces"


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ca")
    ca = trustme.CA()
    files = {"ca": folder / "ca.pem"}
    ca.cert_pem.write_to_path(files["ca"])
    for name, issued in (("server", ca.issue_cert("localhost")), ("client", ca.issue_cert("forwarder"))):
        files[f"{name}_cert"], files[f"{name}_key"] = folder / f"{name}.pem", folder / f"{name}.key"
        issued.private_key_pem.write_to_path(files[f"{name}_key"])
        files[f"{name}_cert"].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return files


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_mutual_tls(tmp_path: Path, authority: dict[str, Path], protocol: Any) -> None:
    backend: Any
    if protocol == "grpc":
        pair = [(authority["server_key"].read_bytes(), authority["server_cert"].read_bytes())]
        credentials = grpc.ssl_server_credentials(pair, authority["ca"].read_bytes(), require_client_auth=True)
        backend = GrpcBackend().start(credentials=credentials)
    else:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority["ca"])
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(authority["server_cert"], authority["server_key"])
        backend = HttpBackend().start(context=context)
    with backend:
        stranger = Endpoint(backend.url, protocol=protocol, ca=authority["ca"], name="stranger", timeout_s=1.0)
        known = Endpoint(
            backend.url,
            protocol=protocol,
            ca=authority["ca"],
            cert=authority["client_cert"],
            key=authority["client_key"],
            name="known",
        )
        with Line(tmp_path, stranger, known, drain_s=0.0) as line:
            line.keep(1)
            backend.wait(came(1))
            state = {each.name: each for each in line.forwarder.states}
            assert state["known"].trouble == ""
            assert state["stranger"].waiting_bytes > 0
    assert backend.ids() == [2]


def test_a_key_that_belongs_to_another_certificate_is_said_at_the_start(
    tmp_path: Path, authority: dict[str, Path]
) -> None:
    for protocol in ("grpc", "http/protobuf"):
        endpoint = Endpoint(
            "https://localhost:1",
            protocol=protocol,  # type: ignore[arg-type]
            cert=authority["client_cert"],
            key=authority["server_key"],
        )
        with pytest.raises(ConfigError, match="default cannot be used"):
            Forwarder([endpoint], tmp_path, Counters())


# -- endpoints that are away -------------------------------------------------------------------------------------------


def test_an_endpoint_that_is_away_holds_up_nobody_and_gets_everything_when_it_is_back(
    backend: Any, tmp_path: Path
) -> None:
    port = backend.port
    backend.stop()
    with Line(tmp_path, backend.endpoint(), drain_s=0.2) as line:
        began = time.monotonic()
        for number in range(20):
            line.keep(number)
        assert time.monotonic() - began < 5.0
        deadline = time.monotonic() + 10
        while not line.forwarder.troubles and time.monotonic() < deadline:
            time.sleep(0.02)
        (said,) = line.forwarder.troubles
        assert "forwarding to default fails" in said
        assert "of 2048 MiB wait" in said
        backend.start(port)
        backend.wait(came(*range(20)))
    assert line.count("spans") == 20
    assert line.forwarder.states[0].waiting_bytes == 0


def test_what_was_not_sent_goes_after_the_next_start(backend: Any, tmp_path: Path) -> None:
    port = backend.port
    backend.stop()
    with Line(tmp_path, backend.endpoint(), drain_s=0.1) as line:
        line.keep(*range(10))
    assert line.count("spans") == 0
    backend.start(port)
    with Line(tmp_path, backend.endpoint()):
        backend.wait(came(*range(10)))
    with Line(tmp_path, backend.endpoint()) as third:
        third.keep(99)
        backend.wait(came(99))
    assert sorted(backend.ids()) == [*range(1, 11), 100]


def test_one_endpoint_that_is_away_is_not_the_others_business(tmp_path: Path) -> None:
    with GrpcBackend() as good:
        away = Endpoint("http://127.0.0.1:9", name="away")
        with Line(tmp_path, Endpoint(good.url, name="good"), away, drain_s=0.1) as line:
            for number in range(5):
                line.keep(number)
            good.wait(came(*range(5)))
            assert {each.name: bool(each.trouble) for each in line.forwarder.states}["good"] is False
    with GrpcBackend() as late, Line(tmp_path, Endpoint(late.url, name="away")):
        late.wait(came(*range(5)))


def test_at_the_cap_the_newest_are_dropped_and_counted_and_the_others_arrive(tmp_path: Path) -> None:
    endpoint = Endpoint("http://127.0.0.1:9", max_bytes=1 << 17)
    with Line(tmp_path, endpoint, drain_s=0.1) as line:
        for number in range(100):
            line.keep(number, text="x" * 4000)
        dropped = line.count("dropped_spans.full")
        assert 50 < dropped < 100
        assert any("no room" in said for said in line.forwarder.troubles)
    with GrpcBackend() as backend, Line(tmp_path, Endpoint(backend.url, max_bytes=1 << 17)) as line:
        backend.wait(came(*range(100 - dropped)))
        line.keep(500)
        backend.wait(came(500))
    assert sorted(backend.ids()) == [*range(1, 101 - dropped), 501]


def test_a_disk_that_fails_and_a_fault_of_ours_lose_nothing_but_the_sending_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GrpcBackend() as backend, Line(tmp_path, Endpoint(backend.url)) as line:
        with monkeypatch.context() as broken:
            broken.setattr(forwarding, "encode", lambda *_, **__: 1 / 0)
            line.keep(1, 2)
        line.keep(3)
        backend.wait(came(3))
        assert line.count("dropped_spans.fault") == 2
        line.forwarder.stop()
        line.keep(4)
        assert line.count("dropped_spans.disk") == 1
    assert backend.ids() == [4]


def test_a_stop_ends_in_time_although_an_endpoint_is_silent(tmp_path: Path) -> None:
    with GrpcBackend() as backend:
        on_its_way = threading.Event()
        backend.decide = lambda payload: on_its_way.set() or time.sleep(8) or Reply()  # type: ignore[func-returns-value]
        line = Line(tmp_path, Endpoint(backend.url, timeout_s=10.0), drain_s=0.5)
        line.keep(1)
        assert on_its_way.wait(10)
        backend_began = time.monotonic()
        line.forwarder.stop()
        assert time.monotonic() - backend_began < 3.0
    with GrpcBackend() as second, Line(tmp_path, Endpoint(second.url)):
        second.wait(came(1))


# -- logs and metrics --------------------------------------------------------------------------------------------------


def test_logs_pass_through_as_they_are_once_they_are_durable(backend: Any, tmp_path: Path) -> None:
    with Line(tmp_path, backend.endpoint(signals=("traces", "logs"))) as line:
        assert set(line.forwarder.signals) == {"logs"}
        assert line.forwarder.signals["logs"](logged("said")) is None
        line.keep(1)
        backend.wait(lambda b: len(b.taken) == 2)
    assert backend.taken[0] == ("logs", logged("said"))
    assert line.count("passed.logs") == 1


def logged(*bodies: str) -> bytes:
    raw = ExportLogsServiceRequest()
    scope = raw.resource_logs.add().scope_logs.add()
    for body in bodies:
        scope.log_records.add().body.string_value = body
    return raw.SerializeToString()


def test_logs_that_are_too_large_for_an_endpoint_are_divided_too(tmp_path: Path) -> None:
    bodies = [f"{number:04d}" + "x" * 500 for number in range(100)]
    with (
        GrpcBackend().start(max_receive_message_length=20_000) as backend,
        Line(tmp_path, Endpoint(backend.url, signals=("logs",))) as line,
    ):
        assert line.forwarder.signals["logs"](logged(*bodies)) is None
        backend.wait(lambda b: len(b.taken) == 4)
    requests = [ExportLogsServiceRequest.FromString(payload) for _, payload in backend.taken]
    assert [r.body.string_value for q in requests for r in q.resource_logs[0].scope_logs[0].log_records] == bodies


def test_logs_that_are_none_are_refused_before_they_can_spoil_others(tmp_path: Path) -> None:
    with GrpcBackend() as backend, Line(tmp_path, Endpoint(backend.url, signals=("logs",))) as line:
        refusal = line.forwarder.signals["logs"](b"\x0a\x05abc")
        assert refusal is not None
        assert (refusal.reason, refusal.delay_s) == ("malformed", None)


def test_logs_are_refused_before_they_take_the_room_of_spans(tmp_path: Path) -> None:
    endpoint = Endpoint("http://127.0.0.1:9", max_bytes=1 << 18, signals=("traces", "logs"))
    with Line(tmp_path, endpoint, drain_s=0.1) as line:
        take = line.forwarder.signals["logs"]
        said = logged("x" * 8000)
        answers = [take(said) for _ in range(40)]
        assert answers[0] is None
        refusal = answers[-1]
        assert refusal is not None
        assert refusal.delay_s is not None
        line.keep(1)
        assert line.count("dropped_spans.full") == 0


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"endpoint": "collector:4317"}, "say whether collector:4317 is under TLS"),
        ({"endpoint": "ftp://collector:1"}, "no endpoint"),
        ({"endpoint": "http://collector"}, "no endpoint"),
        ({"endpoint": "http://collector:4317/v1/traces"}, "has no path"),
        ({"endpoint": "http://c:4317", "compression": "zstd"}, "zstd"),
        ({"endpoint": "http://c:4317", "ca": Path("x")}, "https://"),
        ({"endpoint": "https://c:4317", "cert": Path("x")}, "belong together"),
        ({"endpoint": "http://c:4317", "name": "../x"}, "folder"),
        ({"endpoint": "http://c:4317", "signals": ()}, "signals"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_a_reason(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Endpoint(**given)


def test_names_are_there_once_and_no_endpoint_is_the_service_itself(tmp_path: Path) -> None:
    two = [Endpoint("http://127.0.0.1:9"), Endpoint("http://127.0.0.1:10")]
    with pytest.raises(ConfigError, match="share a name"):
        Forwarder(two, tmp_path, Counters())
    line = Forwarder([Endpoint("http://localhost:4317")], tmp_path, Counters(), 0.0)
    with pytest.raises(ConfigError, match="itself"):
        line.not_to(["127.0.0.1:4317"])
    line.not_to(["127.0.0.1:4318"])
    line.stop()
    assert Forwarder.of(Endpoint(), Forwarding(), tmp_path, Counters()) is None


def test_the_configuration_names_one_endpoint_or_several(tmp_path: Path) -> None:
    file = tmp_path / "tollspan.yaml"
    file.write_text(
        """
forward:
  endpoint: https://tempo:4317
  headers: {x-scope-orgid: secret-tenant}
  max_bytes: 512 MiB
  drain: 1m
  endpoints:
  - name: archive
    endpoint: https://archive.example:4318/otlp
    protocol: http/protobuf
    compression: zstd
    signals: [traces, logs]
"""
    )
    environment = {"TOLLSPAN_FORWARD_TIMEOUT": "3s", "TOLLSPAN_FORWARD_SIGNALS": "traces, metrics"}
    config = load(file, environment=environment)
    made = runtime_config(config)
    assert (made.forward.endpoint, made.forward.timeout_s) == ("https://tempo:4317", 3.0)
    assert (made.forward.max_bytes, made.forwarding.drain_s) == (512 << 20, 60.0)
    assert made.forward.signals == ("traces", "metrics")
    assert made.forward.headers == {"x-scope-orgid": "secret-tenant"}
    (archive,) = made.forwarding.endpoints
    assert archive == Endpoint(
        "https://archive.example:4318/otlp",
        name="archive",
        protocol="http/protobuf",
        compression="zstd",
        signals=("traces", "logs"),
    )
    assert "secret-tenant" not in config.as_yaml()
    bearer = load(environment={"TOLLSPAN_FORWARD_HEADERS": "authorization=Bearer abc"}).get(Endpoint)
    assert bearer.headers == {"authorization": "Bearer abc"}
    with pytest.raises(ConfigError, match="zstd is not to be had over gRPC"):
        load(environment={"TOLLSPAN_FORWARD_ENDPOINT": "http://c:1", "TOLLSPAN_FORWARD_COMPRESSION": "zstd"}).get(
            Endpoint
        )


# -- costs on the wire -------------------------------------------------------------------------------------------------

amounts = (
    st.none() | st.decimals(0, 10**4, places=12) | st.sampled_from([Decimal(0), Decimal(10**20) + Decimal("1e-12")])
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["model", "network"]), amounts), max_size=4), min_size=1, max_size=6)
)
def test_costs_on_the_wire_are_those_of_the_ledger_to_the_last_digit(
    charges: list[list[tuple[str, Decimal | None]]],
) -> None:
    known = [[amount for _, amount in row if amount is not None] for row in charges]
    totals = [total(row) if row else None for row in known]
    money = pa.decimal128(38, 12)
    ledger = pa.table(
        {
            "cost": pa.array(totals, money),
            "cost_status": pa.array(["priced" if t is not None else "unpriced" for t in totals]).dictionary_encode(),
            "cost_reasons": pa.array([""] * len(totals)).dictionary_encode(),
            "charges.component": pa.array(
                [[c for c, _ in row] for row in charges], NO_LEDGER["charges.component"].type
            ),
            "charges.cost": pa.array([[a for _, a in row] for row in charges], pa.list_(money)),
            "book_version": pa.array(["v1"] * len(totals)).dictionary_encode(),
        }
    )
    count = len(charges) + 1
    held = costs.Costs.of(ledger, np.arange(1, count), count).select(np.arange(count)[::-1])
    extra = costs.attributes(held, np.full(count, ERROR, np.int8), np.zeros(count, np.uint64))
    decoded = decode([request([span({}, number=n) for n in range(count)])])
    (made,) = encode(decoded, extra=extra)
    (found,) = [c.spans for r in [decode_request(made.payload)] for c in r.resource_spans[0].scope_spans]
    for sent, row, cost in zip(list(found)[:-1], reversed(charges), reversed(totals), strict=True):
        said = {pair.key: pair.value for pair in sent.attributes}
        assert said[names.COST_STATUS].string_value == ("priced" if cost is not None else "unpriced")
        assert (names.COST_AMOUNT in said) is (cost is not None)
        if cost is not None:
            assert Decimal(said[names.COST_AMOUNT].string_value) == cost
            assert "E" not in said[names.COST_AMOUNT].string_value
            assert said[names.COST_APPROXIMATE].double_value == pytest.approx(float(cost))
            assert said[names.COST_CURRENCY].string_value == "USD"
        for component in ("model", "network"):
            mine = [a for c, a in row if c == component and a is not None]
            key = names.COST_COMPONENT_PREFIX + component
            assert (key in said) is bool(mine)
            if mine:
                assert Decimal(said[key].string_value) == total(mine)
    # The span without a row in the ledger says nothing of costs.
    assert [pair.key for pair in found[-1].attributes] == [names.SAMPLING_ADJUSTED_COUNT, names.SAMPLING_REASON]


def total(amounts: list[Decimal]) -> Decimal:
    """A sum without rounding."""
    with localcontext(prec=60):
        return sum(amounts, Decimal(0))


def decode_request(payload: bytes) -> Any:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return ExportTraceServiceRequest.FromString(payload)


def test_another_processors_figures_are_replaced(tmp_path: Path) -> None:
    theirs = {
        names.COST_AMOUNT: "99",
        names.COST_STATUS: "priced",
        f"{names.COST_COMPONENT_PREFIX}model": "99",
        f"{names.COST_COMPONENT_PREFIX}newer": "1",
        names.COST_REPORTED: "0.5",
    }
    with GrpcBackend() as backend, Line(tmp_path, Endpoint(backend.url)) as line:
        line.keep(1, **theirs)
        backend.wait(came(1))
    assert {pair.key for pair in backend.spans()[0].attributes} == {
        names.COST_REPORTED,
        names.SAMPLING_ADJUSTED_COUNT,
        names.SAMPLING_REASON,
    }


def test_errors_say_so(tmp_path: Path) -> None:
    kept = decision([1, 2])
    kept.fates.reason[:] = ERROR
    kept.fates.threshold[:] = 0
    assert kept.duplicate is not None
    kept.duplicate[1] = True
    with GrpcBackend() as backend, Line(tmp_path, Endpoint(backend.url)) as line:
        line.forwarder.keep(some(kept)).wait()
        backend.wait(came(1))
    (sent,) = backend.spans()
    assert sent.trace_state == "ot=th:0"
    assert {p.key: p.value for p in sent.attributes}[names.SAMPLING_REASON].string_value == "error"


def test_a_record_of_another_version_is_passed_over(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "default", 1 << 20)
    spool._journal.append(b"\x09\x00\x00\x00\x00\x00from the future").wait()
    spool.append(Waiting("traces", encode(decode([request([span({}, number=1)])]))[0].payload, 1)).wait()
    spool.close()
    with GrpcBackend() as backend, Line(tmp_path, Endpoint(backend.url)):
        backend.wait(came(1))


def test_fields_of_attributes_stand_side_by_side() -> None:
    column = together(attribute("a", pa.array(["x", None])), attribute("b", pa.array([None, "y"])))
    assert [len(value) for value in column.to_pylist()] == [10, 10]
