"""OTLP/HTTP tells senders the same truth as gRPC: OK means durable, a refusal says what to do; nobody starves it."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pyarrow as pa
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from google.rpc.code_pb2 import UNAVAILABLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError, JournalFull
from tollspan.processor.intake import Intake, Refusal
from tollspan.processor.journal import Journal
from tollspan.processor.otlp_json import other_to_protobuf, to_protobuf
from tollspan.processor.receive_http import JSON, PROTOBUF, HttpReceiver, HttpSettings

from .test_receive import request, span_names

LIMIT = 1 << 20
TRACES = "/v1/traces"


class Line:
    """A journal with an HTTP receiver in front."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.counters = Counters()
        self.journal = Journal(directory, counters=self.counters)
        self.intake = Intake(
            self.journal,
            counters=self.counters,
            signals=options.pop("signals", None),
            max_held_bytes=options.pop("max_held_bytes", 512 << 20),
        )
        metrics = options.pop("metrics", None)
        settings = HttpSettings(max_request_bytes=LIMIT, **options)
        self.receiver = HttpReceiver(self.intake, address="127.0.0.1:0", settings=settings, metrics=metrics)
        self.address = self.receiver.start()
        self.port = int(self.address.rpartition(":")[2])

    def ask(
        self, body: Any = b"", path: str = TRACES, method: str = "POST", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {"content-type": PROTOBUF, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def journaled(self) -> list[bytes]:
        found: list[bytes] = []
        while (batch := self.journal.next_batch(1 << 30, timeout=0)) is not None:
            found += batch.payloads
        return found

    def close(self) -> None:
        self.receiver.stop()
        self.journal.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    opened = Line(tmp_path / "journal")
    yield opened
    opened.close()


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Line]:
    """One that gives up after 0.2 s."""
    opened = Line(tmp_path / "journal", stalled_s=0.2)
    yield opened
    opened.close()


def status(body: bytes) -> Any:
    return status_pb2.Status.FromString(body)


def compressed(payload: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as out:
        out.write(payload)
    return bytes(sink.getvalue())


def as_json(payload: bytes) -> dict[str, Any]:
    """A request as the OTLP specification's JSON has it."""
    document = json_format.MessageToDict(ExportTraceServiceRequest.FromString(payload), use_integers_for_enums=True)
    for resource in document["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in span:
                        span[name] = base64.b64decode(span[name]).hex()
    return document


# -- accepted ----------------------------------------------------------------------------------------------------------


def test_ok_means_that_exactly_these_bytes_are_in_the_journal(line: Line) -> None:
    payload = request(3)
    code, headers, body = line.ask(payload)
    assert (code, headers["content-type"], body) == (200, PROTOBUF, b"")
    assert line.journaled() == [payload]
    assert line.counters.get("receive.accepted") == 1
    assert line.counters.get("receive.http.calls") == 1


def test_ok_comes_after_the_sync_and_not_before(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release, original = threading.Event(), threading.Event(), os.fdatasync

    def fdatasync(fd: int) -> None:
        entered.set()
        assert release.wait(10)
        original(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    answers: list[int] = []
    sender = threading.Thread(target=lambda: answers.append(line.ask(request())[0]))
    sender.start()
    assert entered.wait(10)
    time.sleep(0.05)
    assert answers == []
    release.set()
    sender.join(10)
    assert answers == [200]


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_the_stock_exporter_delivers(line: Line, compression: Compression) -> None:
    exporter = OTLPSpanExporter(endpoint=f"http://{line.address}{TRACES}", compression=compression)
    provider = TracerProvider(resource=Resource({"service.name": "test"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    for i in range(700):
        provider.get_tracer("t").start_span(f"span {i}", attributes={"gen_ai.provider.name": "openai"}).end()
    assert provider.force_flush(20_000)
    provider.shutdown()
    assert span_names(line.journaled()) == [f"span {i}" for i in range(700)]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_compressed_body_is_taken(line: Line, encoding: str) -> None:
    payload = request(3)
    assert line.ask(compressed(payload, encoding), content_encoding=encoding)[0] == 200
    assert line.journaled() == [payload]


def test_a_chunked_body_is_taken(line: Line) -> None:
    payload = request(3)
    assert line.ask(iter([payload[:10], payload[10:]]))[0] == 200
    assert line.journaled() == [payload]


def test_json_is_taken_and_answered_in_json(line: Line) -> None:
    payload = request(3)
    code, headers, body = line.ask(json.dumps(as_json(payload)), content_type=f"{JSON}; charset=utf-8")
    assert (code, headers["content-type"], body) == (200, JSON, b"{}")
    (journaled,) = line.journaled()
    assert ExportTraceServiceRequest.FromString(journaled) == ExportTraceServiceRequest.FromString(payload)


def test_an_empty_request_is_ok_and_takes_no_room(line: Line) -> None:
    assert line.ask(b"")[0] == 200
    assert line.journaled() == []
    assert line.counters.get("receive.empty") == 1


def test_one_connection_serves_many_requests(line: Line) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", line.port, timeout=20)
    for _ in range(20):
        connection.request("POST", TRACES, request(), {"content-type": PROTOBUF})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    connection.close()
    assert line.counters.get("receive.accepted") == 20


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers", "code", "says"),
    [
        (b"\xff\xff", {}, 400, "not an OTLP"),
        (b"not gzip", {"content_encoding": "gzip"}, 400, "not gzip"),
        (gzip.compress(request())[:-12], {"content_encoding": "gzip"}, 400, "gzip"),
        (request(), {"content_encoding": "br"}, 415, "gzip, zstd"),
        (request(), {"content_type": "text/plain"}, 415, PROTOBUF),
    ],
)
def test_what_cannot_be_taken_is_refused_for_good(
    line: Line, body: bytes, headers: dict[str, str], code: int, says: str
) -> None:
    got, answered, said = line.ask(body, **headers)
    assert got == code
    assert says in status(said).message
    assert "retry-after" not in answered
    assert line.journaled() == []
    assert line.ask(request())[0] == 200


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("{", "not OTLP/JSON"),
        ("[]", "resourceSpans"),
        ('{"resourceSpans": {}}', "resourceSpans is not a list"),
        ('{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "zz"}]}]}]}', "scopeSpans[0].spans[0].traceId"),
        ('{"resourceSpans": [{"scopeSpans": [{"spans": [7]}]}]}', "spans[0] is not an object"),
        ('{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "x"}]}]}]}', "startTimeUnixNano"),
        ("[" * 100_000, "nested"),
        ('{"resourceSpans": NaN}', "NaN"),
    ],
)
def test_what_is_no_otlp_json_is_refused_with_its_place(line: Line, document: str, says: str) -> None:
    code, headers, body = line.ask(document, content_type=JSON)
    assert (code, headers["content-type"]) == (400, JSON)
    told = json.loads(body)
    assert told["code"] == 3
    assert says in told["message"]
    assert line.counters.get("receive.refused.malformed") + line.counters.get("receive.refused.no_good_span") == 1


@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd"])
def test_too_large_a_request_is_refused_also_when_it_is_small_on_the_wire(line: Line, encoding: str) -> None:
    large = b"\0" * (LIMIT + 1)
    body = large if encoding == "identity" else compressed(large, encoding)
    code, _, said = line.ask(body, content_encoding=encoding)
    assert (code, status(said).code) == (413, 8)
    assert str(LIMIT) in status(said).message
    assert line.ask(request())[0] == 200


def test_a_body_without_an_end_is_cut_off_at_the_limit(line: Line) -> None:
    sent = 0

    def for_ever() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b"\0" * (1 << 16)

    try:
        assert line.ask(for_ever())[0] == 413
    except OSError:
        pass  # hung up on while it still sent
    assert sent < 64 * LIMIT
    assert line.counters.get("receive.refused.too_large") == 1


def test_a_full_disk_asks_to_try_again_and_then_takes_it(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    append = line.journal.append

    def full(payload: bytes) -> Any:
        raise JournalFull("The journal is full.", "")

    monkeypatch.setattr(line.journal, "append", full)
    code, headers, body = line.ask(request())
    assert (code, headers["retry-after"]) == (503, "1")
    told = status(body)
    info = error_details_pb2.RetryInfo()
    assert told.code == 14
    assert told.details[0].Unpack(info)
    assert info.retry_delay.seconds == 1
    assert line.counters.get("receive.refused.journal_full") == 1
    monkeypatch.setattr(line.journal, "append", append)
    assert line.ask(request())[0] == 200


def test_more_than_memory_allows_is_asked_to_come_again(tmp_path: Path) -> None:
    line = Line(tmp_path, max_held_bytes=1000)
    code, headers, body = line.ask(request(100))
    assert (code, headers["retry-after"], status(body).code) == (503, "1", 14)
    assert line.ask(request())[0] == 200
    line.close()


def test_draining_refuses_new_requests(line: Line) -> None:
    assert line.ask(path="/readyz", method="GET")[0] == 200
    assert line.intake.drain(1)
    assert line.ask(request())[0] == 503
    assert line.ask(path="/readyz", method="GET")[0] == 503
    assert line.ask(path="/healthz", method="GET")[0] == 200


@pytest.mark.parametrize("kind", ["logs", "metrics"])
def test_other_signals_are_told_where_not_to_go(line: Line, kind: str) -> None:
    code, _, body = line.ask(b"", path=f"/v1/{kind}")
    assert (code, status(body).code) == (404, 12)
    assert f"OTEL_{kind.upper()}_EXPORTER=none" in status(body).message


def test_another_method_is_told_which(line: Line) -> None:
    code, headers, _ = line.ask(method="GET")
    assert (code, headers["allow"]) == (405, "POST")
    code, headers, _ = line.ask(path="/healthz", method="DELETE")
    assert (code, headers["allow"]) == (405, "GET, HEAD")


def test_metrics_are_there_where_there_are_any(tmp_path: Path) -> None:
    line = Line(tmp_path, metrics=lambda: "tollspan_x 1\n")
    code, headers, body = line.ask(path="/metrics", method="GET")
    assert (code, headers["content-type"], body) == (200, "text/plain; charset=utf-8", b"tollspan_x 1\n")
    line.close()


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_other_signals_go_to_whom_takes_them(tmp_path: Path, content_type: str) -> None:
    taken: list[bytes] = []
    answers = [None, Refusal("spool_full", UNAVAILABLE, "Later.")]

    def take(payload: bytes) -> Refusal | None:
        taken.append(payload)
        return answers.pop(0)

    line = Line(tmp_path, signals={"logs": take})
    message = ExportLogsServiceRequest()
    record = message.resource_logs.add().scope_logs.add().log_records.add(trace_id=b"\1" * 16, span_id=b"\2" * 8)
    record.body.string_value = "hello"
    body: Any = message.SerializeToString()
    if content_type == JSON:
        document = json_format.MessageToDict(message)
        ids = document["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
        ids |= {"traceId": "01" * 16, "spanId": "02" * 8}
        body = json.dumps(document)
    code, _, said = line.ask(body, path="/v1/logs", content_type=content_type)
    assert (code, said) == (200, b"{}" if content_type == JSON else b"")
    code, headers, _ = line.ask(body, path="/v1/logs", content_type=content_type)
    assert (code, headers["retry-after"]) == (503, "1")
    assert [ExportLogsServiceRequest.FromString(payload) for payload in taken] == [message] * 2
    assert line.ask(body, path="/v1/metrics", content_type=content_type)[0] == 404
    assert line.journaled() == []
    line.close()


def test_exemplars_of_metrics_have_their_ids_in_hex_too() -> None:
    document = {
        "resourceMetrics": [
            {
                "scopeMetrics": [
                    {
                        "metrics": [
                            {
                                "name": "traceId",
                                "sum": {"dataPoints": [{"asInt": "1", "exemplars": [{"traceId": "0a" * 16}]}]},
                            }
                        ]
                    }
                ]
            }
        ]
    }
    message = ExportMetricsServiceRequest.FromString(other_to_protobuf("metrics", json.dumps(document).encode()))
    metric = message.resource_metrics[0].scope_metrics[0].metrics[0]
    assert metric.name == "traceId"
    assert metric.sum.data_points[0].exemplars[0].trace_id == b"\x0a" * 16


def test_the_disk_being_full_is_told_to_readiness_checks(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollspan.processor.intake.PROBE_S", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(line.journal, "_refusal", lambda size: JournalFull("The disk is full."))
        assert line.ask(request())[0] == 503
        until = time.monotonic() + 5
        while (answer := line.ask(path="/readyz", method="GET"))[0] == 200 and time.monotonic() < until:
            time.sleep(0.02)
        assert (answer[0], answer[2]) == (503, b"The disk is full.\n")
        assert line.ask(path="/healthz", method="GET")[0] == 200
    until = time.monotonic() + 5
    while line.ask(path="/readyz", method="GET")[0] != 200 and time.monotonic() < until:
        time.sleep(0.02)
    assert line.ask(path="/readyz", method="GET")[0] == 200


# -- compression -------------------------------------------------------------------------------------------------------


def resident() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_bombs_are_refused_while_they_unfold(tmp_path: Path, encoding: str) -> None:
    """Forty at once of a gibibyte each."""
    line = Line(tmp_path / "journal", max_held_bytes=8 * LIMIT)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, encoding) as out:
        for _ in range(1024):
            out.write(bytes(1 << 20))
    bomb = bytes(sink.getvalue())
    before = resident()
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(line.ask(bomb, content_encoding=encoding)[0])) for _ in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(codes) == 40
    assert set(codes) <= {413, 503}
    # 40 clients are in this process too, each with the bomb as it is sent.
    assert resident() - before < 200 << 20
    assert line.intake.bodies.held == 0
    assert line.ask(request())[0] == 200
    line.close()


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_body_in_several_pieces_of_compression_is_one_request(line: Line, encoding: str) -> None:
    body = compressed(request(2, "first"), encoding) + compressed(request(3, "second"), encoding)
    assert line.ask(body, content_encoding=encoding)[0] == 200
    assert span_names(line.journaled()) == ["first"] * 2 + ["second"] * 3


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("spoil", [lambda body: body[:-3], lambda body: body + b"rubbish", lambda body: body[:6]])
def test_compression_that_is_broken_is_refused_for_good(line: Line, encoding: str, spoil: Any) -> None:
    code, _, said = line.ask(spoil(compressed(request(5), encoding)), content_encoding=encoding)
    assert code == 400
    assert encoding in status(said).message
    assert line.intake.bodies.held == 0
    assert line.journaled() == []


def test_a_frame_that_asks_for_very_much_memory_is_refused(line: Line) -> None:
    # A zstd frame header: magic number, no single segment, window of 2 GiB; then one empty last block.
    frame = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00"
    code, _, said = line.ask(frame, content_encoding="zstd")
    assert (code, "zstd" in status(said).message) == (400, True)


def test_json_counts_for_what_it_takes_in_memory(tmp_path: Path) -> None:
    line = Line(tmp_path, max_held_bytes=1 << 20)
    document = json.dumps(as_json(request(1000)))
    assert len(document) * 16 > 1 << 20
    code, _, said = line.ask(document, content_type=JSON)
    assert (code, json.loads(said)["code"]) == (413, 8)
    assert line.ask(json.dumps(as_json(request(5))), content_type=JSON)[0] == 200
    assert line.intake.bodies.held == 0
    line.close()


# -- slow, many, hostile -----------------------------------------------------------------------------------------------


def connected(line: Line) -> socket.socket:
    return socket.create_connection(("127.0.0.1", line.port), timeout=20)


def hung_up(client: socket.socket) -> bool:
    """Whether the server ends the connection, after whatever it still says."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/tra", b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"],
)
def test_a_head_that_does_not_come_is_not_waited_for(hasty: Line, sent: bytes) -> None:
    with connected(hasty) as client:
        client.sendall(sent)
        assert hung_up(client)


def test_a_second_head_that_does_not_come_is_not_waited_for_either(hasty: Line) -> None:
    payload = request()
    head = f"POST {TRACES} HTTP/1.1\r\nhost: x\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {len(payload)}\r\n\r\n"
    with connected(hasty) as client:
        client.sendall(head.encode() + payload)
        assert b"200 OK" in client.recv(1 << 16)
        client.sendall(b"POST /v1/tr")
        assert hung_up(client)


def test_a_body_that_stalls_is_told_so(hasty: Line) -> None:
    with connected(hasty) as client:
        head = f"POST {TRACES} HTTP/1.1\r\nhost: x\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 100\r\n\r\nhalf"
        client.sendall(head.encode())
        said = client.recv(1 << 16)
        assert b" 408 " in said
        assert b"retry-after: 1" in said
        assert hung_up(client)
    assert hasty.intake.bodies.held == 0


@pytest.mark.parametrize("whole", [False, True])
def test_a_stop_never_tells_a_sender_to_give_up(line: Line, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """What is in flight when the time is up was not stored: 500 would mean that it is not to be sent again."""
    held = threading.Event()
    monkeypatch.setattr(line.journal, "append", lambda payload: held.wait(20) and None)
    body = request(1)
    with connected(line) as client:
        head = f"POST {TRACES} HTTP/1.1\r\nhost: a\r\ncontent-type: {PROTOBUF}\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body[: None if whole else 10])
        time.sleep(0.5)
        line.receiver.stop(0.2)
        client.settimeout(10)
        answer = client.recv(4096)
        held.set()
    assert not answer or answer.startswith(b"HTTP/1.1 503"), answer


def test_a_sender_that_hangs_up_leaves_nothing(line: Line) -> None:
    with connected(line) as client:
        head = f"POST {TRACES} HTTP/1.1\r\nhost: x\r\ncontent-type: {PROTOBUF}\r\ncontent-length: 100\r\n\r\nhalf"
        client.sendall(head.encode())
        time.sleep(0.1)
    until = time.monotonic() + 5
    while line.intake.bodies.held and time.monotonic() < until:
        time.sleep(0.01)
    assert line.intake.bodies.held == 0
    assert line.ask(request())[0] == 200


def test_idle_connections_hold_up_nobody(line: Line) -> None:
    clients = [connected(line) for _ in range(300)]
    try:
        for client in clients:
            client.sendall(b"POST /v1/traces HTTP/1.1\r\nhost: x\r\n")
        began = time.monotonic()
        assert line.ask(request())[0] == 200
        assert time.monotonic() - began < 5
    finally:
        for client in clients:
            client.close()


def test_one_connection_more_than_there_may_be_is_hung_up_on(tmp_path: Path) -> None:
    line = Line(tmp_path, max_connections=3)
    clients = [connected(line) for _ in range(3)]
    time.sleep(0.2)
    with connected(line) as fourth:
        assert hung_up(fourth)
    for client in clients:
        client.close()
    line.close()


def test_many_senders_at_once_lose_nothing(line: Line) -> None:
    def send(number: int) -> None:
        for _ in range(10):
            assert line.ask(request(name=f"from {number}"))[0] == 200

    threads = [threading.Thread(target=send, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    names = span_names(line.journaled())
    assert sorted(names) == sorted(f"from {number}" for number in range(20) for _ in range(10))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(st.binary(max_size=200), st.builds(request, st.integers(0, 3))),
    content_type=st.sampled_from([PROTOBUF, JSON, "text/plain", ""]),
    encoding=st.sampled_from(["", "identity", "gzip", "zstd", "deflate"]),
)
def test_law_whatever_comes_is_answered(line: Line, body: bytes, content_type: str, encoding: str) -> None:
    code, headers, _ = line.ask(body, content_type=content_type, content_encoding=encoding)
    assert code in (200, 400, 415)
    assert headers["content-type"] == (JSON if content_type == JSON else PROTOBUF)
    assert line.counters.get("receive.refused.fault") == 0


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_a_taken_port_is_one_line_with_what_to_do(line: Line) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpReceiver(line.intake, address=line.address).start()
    assert line.address in str(caught.value)


def test_a_server_that_does_not_start_is_said_and_replaces_none_that_does(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvicorn.Server.serve", AsyncMock())
    with pytest.raises(ConfigError, match="did not start"):
        HttpReceiver(line.intake, address="127.0.0.1:0").start()
    with pytest.raises(OSError, match="did not start"):
        line.receiver._server._serve()
    assert line.ask(request())[0] == 200


def test_an_open_address_needs_tls_or_the_flag(line: Line) -> None:
    with pytest.raises(ConfigError, match="not encrypted"):
        HttpReceiver(line.intake, address="0.0.0.0:0").start()
    receiver = HttpReceiver(line.intake, address="0.0.0.0:0", insecure_listen=True)
    receiver.start()
    receiver.stop()
    receiver.stop()


# -- OTLP/JSON ---------------------------------------------------------------------------------------------------------


def test_the_specifications_own_example_is_understood() -> None:
    # The form of opentelemetry-proto's examples/trace.json: ids in hex, times as strings, numbers as either.
    document = {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "my.service"}}]},
                "scopeSpans": [
                    {
                        "scope": {"name": "my.library", "version": "1.0.0"},
                        "spans": [
                            {
                                "traceId": "5B8EFFF798038103D269B633813FC60C",
                                "spanId": "EEE19B7EC3C1B174",
                                "parentSpanId": "EEE19B7EC3C1B173",
                                "name": "I'm a server span",
                                "startTimeUnixNano": "1544712660000000000",
                                "endTimeUnixNano": 1544712661000000000,
                                "kind": 2,
                                "attributes": [
                                    {"key": "a", "value": {"intValue": "7"}},
                                    {"key": "b", "value": {"arrayValue": {"values": [{"boolValue": True}]}}},
                                    {"key": "c", "value": {"doubleValue": "NaN"}},
                                    {"key": "d", "value": {"bytesValue": "AAE="}},
                                ],
                                "links": [
                                    {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174"}
                                ],
                                "status": {"code": 1},
                                "somethingNew": {"x": 1},
                            }
                        ],
                    }
                ],
            }
        ]
    }
    message = ExportTraceServiceRequest.FromString(to_protobuf(json.dumps(document).encode()).payload)
    span = message.resource_spans[0].scope_spans[0].spans[0]
    assert span.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert (span.span_id.hex(), span.parent_span_id.hex()) == ("eee19b7ec3c1b174", "eee19b7ec3c1b173")
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (1544712660000000000, 1544712661000000000)
    assert (span.kind, span.status.code, span.links[0].span_id.hex()) == (2, 1, "eee19b7ec3c1b174")
    assert span.attributes[0].value.int_value == 7
    assert span.attributes[1].value.array_value.values[0].bool_value
    assert span.attributes[3].value.bytes_value == b"\0\1"


@settings(deadline=None)
@given(st.integers(0, 4), st.text(max_size=20))
def test_law_json_and_protobuf_are_the_same_request(spans: int, name: str) -> None:
    payload = request(spans, name)
    document = json.dumps(as_json(payload) if spans else {}).encode()
    back = ExportTraceServiceRequest.FromString(to_protobuf(document).payload)
    assert span_names([back.SerializeToString()]) == span_names([payload])
