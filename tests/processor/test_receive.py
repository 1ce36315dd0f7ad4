"""What a sender is told is true: OK means durable, every refusal says what to do; all of it over a real socket."""

from __future__ import annotations

import errno
import gzip
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from tollspan.processor import receive
from tollspan.processor.counters import Counters
from tollspan.processor.decode import Checked
from tollspan.processor.errors import ConfigError, JournalError, JournalFull
from tollspan.processor.intake import Intake
from tollspan.processor.journal import Journal, Ticket
from tollspan.processor.journal.ticket import OnDone
from tollspan.processor.receive import EXPORT, SERVICE, GrpcSettings, Receiver, is_loopback, parse_address

LIMIT = 1 << 20


class Line:
    """A journal with a receiver in front, and a client of it.

    Attributes:
        direct: no thread waits for a call; else each has one.
    """

    direct = True

    def __init__(self, directory: Path, **options: Any) -> None:
        self.counters = Counters()
        self.journal = Journal(directory, counters=self.counters)
        self.kept: list[tuple[bytes, str]] = []
        self.intake = Intake(
            self.journal,
            check=options.pop("check", None),
            signals=options.pop("signals", None),
            counters=self.counters,
            keep=lambda payload, said: self.kept.append((payload, said)),
        )
        settings = GrpcSettings(max_request_bytes=LIMIT, **{"direct": self.direct, **options})
        self.receiver = Receiver(self.intake, address="127.0.0.1:0", settings=settings)
        self.address = self.receiver.start()
        self.channel = grpc.insecure_channel(self.address)

    def send(self, payload: bytes, method: str = EXPORT, **options: Any) -> bytes:
        answer: bytes = self.channel.unary_unary(method)(payload, timeout=20, **options)
        return answer

    def refused(self, payload: bytes, method: str = EXPORT) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            self.send(payload, method)
        return caught.value

    def health(self) -> str:
        answer = health_pb2_grpc.HealthStub(self.channel).Check(
            health_pb2.HealthCheckRequest(service=SERVICE), timeout=20
        )
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def journaled(self) -> list[bytes]:
        found: list[bytes] = []
        while (batch := self.journal.next_batch(1 << 30, timeout=0)) is not None:
            found += batch.payloads
        return found

    def close(self) -> None:
        self.channel.close()
        self.receiver.stop()
        self.journal.close()


@pytest.fixture(params=["direct", "threads"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test holds on both ways to serve a call."""
    monkeypatch.setattr(Line, "direct", request.param == "direct")


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    opened = Line(tmp_path / "journal")
    yield opened
    opened.close()


def request(spans: int = 1, name: str = "call") -> bytes:
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for _ in range(spans):
        scope.spans.add(trace_id=os.urandom(16), span_id=os.urandom(8), name=name)
    return message.SerializeToString()


def refuse_first(journal: Journal, monkeypatch: pytest.MonkeyPatch, *refusals: JournalError) -> None:
    """The journal refuses so many requests, for these reasons; the probe's empty one it takes."""
    left, append = list(refusals), journal.append

    def scarce(payload: bytes, on_done: OnDone | None = None) -> Ticket:
        if not left or not payload:
            return append(payload, on_done)
        ticket = Ticket(payload, 0, on_done)
        ticket.settle(left.pop(0))
        return ticket

    monkeypatch.setattr(journal, "append", scarce)


def span_names(payloads: list[bytes]) -> list[str]:
    requests = [ExportTraceServiceRequest.FromString(payload) for payload in payloads]
    return [s.name for r in requests for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]


def retry_delay(error: Any) -> float:
    """Seconds that the refusal asks to wait, as an exporter reads them."""
    (details,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    info = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)


# -- accepted ---------------------------------------------------------------------------------------------------------


def test_ok_means_that_exactly_these_bytes_are_in_the_journal(line: Line) -> None:
    payload = request(3)
    assert line.send(payload) == b""
    assert line.journaled() == [payload]
    assert line.counters.get("receive.accepted") == 1
    assert line.counters.get("receive.bytes") == len(payload)


def test_ok_comes_after_the_sync_and_not_before(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release, original = threading.Event(), threading.Event(), os.fdatasync

    def fdatasync(fd: int) -> None:
        entered.set()
        assert release.wait(10)
        original(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    call = line.channel.unary_unary(EXPORT).future(request(), timeout=20)
    assert entered.wait(10)
    assert not call.done()
    release.set()
    assert call.result(10) == b""


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_the_stock_exporter_delivers(line: Line, compression: grpc.Compression) -> None:
    exporter = OTLPSpanExporter(endpoint=f"http://{line.address}", insecure=True, compression=compression)
    provider = TracerProvider(resource=Resource({"service.name": "test"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    for i in range(700):
        provider.get_tracer("t").start_span(f"span {i}", attributes={"gen_ai.provider.name": "openai"}).end()
    assert provider.force_flush(20_000)
    provider.shutdown()
    assert span_names(line.journaled()) == [f"span {i}" for i in range(700)]


def test_an_empty_request_is_ok_and_takes_no_room(line: Line) -> None:
    assert line.send(b"") == b""
    assert line.journaled() == []
    assert line.counters.get("receive.empty") == 1


def test_fifty_clients_at_once_share_syncs_and_lose_nothing(line: Line) -> None:
    def client(number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(line.address, options=options) as channel:
            for i in range(4):
                channel.unary_unary(EXPORT)(request(name=f"{number}/{i}"), timeout=30)

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(client, range(50)))
    assert sorted(span_names(line.journaled())) == sorted(f"{n}/{i}" for n in range(50) for i in range(4))
    assert line.counters.get("receive.accepted") == 200
    assert line.counters.get("journal.syncs") <= 200


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"\xff", b"\x0a\x05abc", request()[:-1], b'{"resourceSpans":[]}', b"\x0a\x02\x12\x7f"])
def test_malformed_bytes_are_refused_for_good_and_the_service_goes_on(line: Line, bad: bytes) -> None:
    error: Any = line.refused(bad)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ExportTraceServiceRequest" in error.details()
    good = request()
    line.send(good)
    assert line.journaled() == [good]
    assert line.counters.get("receive.refused.malformed") == 1
    assert line.counters.get("receive.accepted") == 1


def test_the_given_check_decides(tmp_path: Path) -> None:
    line = Line(tmp_path / "journal", check=lambda payload: Checked("no x in it" if b"x" not in payload else None))
    error: Any = line.refused(b"nothing of the kind")
    assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "no x in it")
    line.send(b"x")
    assert line.journaled() == [b"x"]
    line.close()


def test_a_check_that_fails_is_our_fault_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    line = Line(tmp_path / "journal", check=lambda payload: Checked(str(1 // 0)))
    error: Any = line.refused(request())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert line.counters.get("receive.refused.fault") == 1
    assert line.journaled() == []
    line.close()


def test_too_large_a_request_is_refused_also_when_it_is_small_on_the_wire(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(receive, "give_back", lambda: given_back.append(1))
    bomb = request(name="z" * LIMIT)
    assert len(gzip.compress(bomb)) < LIMIT // 50
    for options in ({}, {"compression": grpc.Compression.Gzip}):
        with pytest.raises(grpc.RpcError) as caught:
            line.send(bomb, **options)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    line.send(request())
    assert line.counters.get("receive.calls") == 3
    assert line.counters.get("receive.requests") == 1
    assert len(given_back) == 2, "what gRPC decompressed is free, and to go back to the kernel"


def test_a_full_disk_asks_to_try_again_and_then_takes_it(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    payload = request()
    monkeypatch.setattr(os, "pwritev", full)
    error: Any = line.refused(payload)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "No space left" in error.details()
    assert 0 < retry_delay(error) <= 3, "the SDK gives up after 10 s"
    monkeypatch.undo()
    line.send(payload)
    assert [each for each in line.journaled() if each] == [payload], "beside the probe, which holds nothing"
    assert line.counters.get("receive.refused.journal_full") == 1


def test_the_stock_exporter_tries_again_until_there_is_room(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_first(line.journal, monkeypatch, *[JournalFull("No room.")] * 2)
    exporter: SpanExporter = OTLPSpanExporter(endpoint=f"http://{line.address}", insecure=True)
    provider = TracerProvider(shutdown_on_exit=False)
    span = provider.get_tracer("t").start_span("patient")
    span.end()
    assert exporter.export([span]) is SpanExportResult.SUCCESS  # type: ignore[list-item]
    exporter.shutdown()
    assert span_names(line.journaled()) == ["patient"]
    assert line.counters.get("receive.refused.journal_full") == 2


def test_other_signals_are_unimplemented(line: Line) -> None:
    for name in ("logs.v1.LogsService", "metrics.v1.MetricsService"):
        error: Any = line.refused(b"", f"/opentelemetry.proto.collector.{name}/Export")
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


# -- health and shutdown ----------------------------------------------------------------------------------------------


def test_draining_refuses_new_requests_and_says_so_to_health_checks(line: Line) -> None:
    assert line.health() == "SERVING"
    assert line.receiver.drain(1.0)
    assert line.health() == "NOT_SERVING"
    error: Any = line.refused(request())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert retry_delay(error) > 0
    assert line.counters.get("receive.refused.draining") == 1
    assert line.journaled() == []


def test_draining_lets_requests_in_flight_finish(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release, original = threading.Event(), threading.Event(), os.fdatasync

    def fdatasync(fd: int) -> None:
        entered.set()
        assert release.wait(10)
        original(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    call = line.channel.unary_unary(EXPORT).future(request(name="in flight"), timeout=20)
    assert entered.wait(10)
    assert not line.receiver.drain(0.01)
    release.set()
    assert line.receiver.drain(10)
    line.receiver.stop()
    assert call.result(10) == b""
    assert span_names(line.journaled()) == ["in flight"]


def test_a_disk_that_hangs_is_told_before_the_sender_gives_up(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollspan.processor.intake.COMMIT_LIMIT_S", 0.01)
    release, original = threading.Event(), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (release.wait(10), original(fd)))
    error: Any = line.refused(request())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert retry_delay(error) > 0
    assert line.counters.get("receive.refused.slow_disk") == 1
    release.set()


def test_stop_can_be_called_before_start_and_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    receiver = Receiver(Intake(journal), address="127.0.0.1:0")
    assert receiver.drain(0.1)
    receiver.stop()
    receiver = Receiver(Intake(journal), address="127.0.0.1:0")
    address = receiver.start()
    receiver.stop()
    receiver.stop()
    host, port = parse_address(address)
    with socket.socket() as probe:
        assert probe.connect_ex((host, port)) != 0
    journal.close()


# -- addresses --------------------------------------------------------------------------------------------------------


def test_a_taken_port_is_one_line_with_what_to_do(line: Line) -> None:
    with pytest.raises(ConfigError) as caught:
        Receiver(line.intake, address=line.address).start()
    text = str(caught.value)
    assert f"Cannot listen on {line.address}: address already in use." in text
    assert "--listen" in text
    assert "\n" not in text
    line.send(request())
    assert line.counters.get("receive.accepted") == 1, "the first one still has all of the port"


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_an_open_address_needs_the_flag(line: Line, address: str) -> None:
    with pytest.raises(ConfigError, match="--insecure-listen"):
        Receiver(line.intake, address=address).start()
    receiver = Receiver(line.intake, address=address, insecure_listen=True)
    try:
        bound = receiver.start()
    except ConfigError:
        pytest.skip("no IPv6 on this machine")
    assert bound.rpartition(":")[0] == address.rpartition(":")[0]
    receiver.stop()


@pytest.mark.parametrize("address", ["", "4317", "host:", ":4317", "127.0.0.1:99999", "127.0.0.1:-1", "http://x:y"])
def test_what_is_no_address_is_said(line: Line, address: str) -> None:
    with pytest.raises(ConfigError, match="no address to listen on"):
        Receiver(line.intake, address=address).start()


def test_an_address_of_another_machine_is_said(line: Line) -> None:
    with pytest.raises(ConfigError, match=r"Cannot listen on 192\.0\.2\.1:0: cannot assign requested address"):
        Receiver(line.intake, address="192.0.2.1:0", insecure_listen=True).start()


def test_loopback_is_what_resolves_to_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1")] == [False] * 3
    with pytest.raises(ConfigError, match="does not resolve"):
        is_loopback("no-such-host.invalid")
