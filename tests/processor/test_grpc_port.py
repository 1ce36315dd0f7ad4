"""What stands on the OTLP/gRPC port beside traces, and how it treats connections: health, reflection, other signals,
keepalive, age; stalled and overwhelming senders."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.rpc.code_pb2 import UNAVAILABLE
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tollspan.processor.addresses import allow_connections
from tollspan.processor.errors import ConfigError, JournalFull
from tollspan.processor.intake import ReceiveSettings, Refusal
from tollspan.processor.receive import EXPORT, SERVICE, GrpcSettings, _Threads
from tollspan.processor.service import Service, ServiceConfig

from .test_crowds import HEAD, HELLO, frame, literal
from .test_receive import Line, refuse_first, request, retry_delay, span_names, way  # noqa: F401  (a fixture)

LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    opened = Line(tmp_path / "journal")
    yield opened
    opened.close()


def until(condition: Any, seconds: float = 10.0) -> bool:
    """Whether it holds within so long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


# -- reflection --------------------------------------------------------------------------------------------------------


def test_reflection_lists_what_there_is(line: Line) -> None:
    """``grpcurl list``."""
    found = set(ProtoReflectionDescriptorDatabase(line.channel).get_services())
    assert found == {
        SERVICE,
        "opentelemetry.proto.collector.logs.v1.LogsService",
        "opentelemetry.proto.collector.metrics.v1.MetricsService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }


def test_reflection_describes_and_a_call_can_be_made_from_that_alone(line: Line) -> None:
    """``grpcurl describe``, and a call as ``grpcurl -d`` makes it: without any generated code."""
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(line.channel))
    service = pool.FindServiceByName(SERVICE)
    method = service.FindMethodByName("Export")
    assert method.input_type.full_name.endswith("ExportTraceServiceRequest")
    span = pool.FindMessageTypeByName("opentelemetry.proto.trace.v1.Span")
    assert span.fields_by_name["trace_id"].number == 1
    line.send(request(), f"/{service.full_name}/{method.name}")
    assert line.counters.get("receive.accepted") == 1


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_of_reflection_answer(line: Line, version: str) -> None:
    ask = line.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.such.Thing"),
    ]
    known, unknown = ask(iter(requests), timeout=20)
    names = [
        descriptor_pb2.FileDescriptorProto.FromString(each).name
        for each in known.file_descriptor_response.file_descriptor_proto
    ]
    assert "opentelemetry/proto/collector/trace/v1/trace_service.proto" in names
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_open_reflection_streams_hold_up_nobody(line: Line) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(line.channel)
    gate = threading.Event()

    def silent() -> Iterator[Any]:
        gate.wait(20)
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    calls = [stub.ServerReflectionInfo(silent()) for _ in range(20)]
    assert line.health() == "SERVING"
    line.send(request())
    gate.set()
    for call in calls:
        call.cancel()


# -- health ------------------------------------------------------------------------------------------------------------


def test_health_is_asked_for_by_name_and_for_all(line: Line) -> None:
    stub = health_pb2_grpc.HealthStub(line.channel)
    for service in ("", SERVICE):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert SERVICE in caught.value.details()


def test_a_full_disk_is_told_to_health_checks_and_watchers_and_so_is_its_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollspan.processor.intake.PROBE_S", 0.05)
    seen: list[int] = []
    watch = health_pb2_grpc.HealthStub(line.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    reading = threading.Thread(target=lambda: [seen.append(each.status) for each in _quietly(watch)])
    reading.start()
    assert until(lambda: seen == [1])
    with monkeypatch.context() as patch:
        patch.setattr(line.journal, "_refusal", lambda size: JournalFull("The disk is full."))
        assert line.refused(request()).code() is grpc.StatusCode.UNAVAILABLE
        assert until(lambda: line.health() == "NOT_SERVING")
        assert line.intake.trouble == "The disk is full."
    # Nobody sends: it finds out by itself.
    assert until(lambda: line.health() == "SERVING")
    assert line.intake.trouble == ""
    assert until(lambda: seen == [1, 2, 1])
    line.send(request(name="after"))
    assert span_names(line.journaled()) == ["after"], "the probe's record holds no span"
    watch.cancel()
    reading.join(10)


def _quietly(watch: Any) -> Iterator[Any]:
    try:
        yield from watch
    except grpc.RpcError:
        pass


def test_watchers_who_read_nothing_hold_up_no_health_check(line: Line) -> None:
    """They let nothing be sent to them; the library's own Watch came to a stop by it, and gRPC's polling with it."""
    no_window = frame(4, 0, 0, (4).to_bytes(2, "big") + bytes(4))
    head = HEAD.replace(literal(b":path", EXPORT.encode()), literal(b":path", b"/grpc.health.v1.Health/Watch"))
    preface = HELLO[: -len(frame(4, 0, 0))]
    address = ("127.0.0.1", int(line.address.rpartition(":")[2]))
    clients = [socket.create_connection(address, timeout=20) for _ in range(10)]
    for client in clients:
        client.sendall(preface + no_window + frame(1, 4, 1, head) + frame(0, 1, 1, bytes(5)))
    assert until(lambda: line.receiver._watchers == 10)
    for trouble in ("The disk is full.", ""):
        line.intake._say(trouble)
        assert line.health() == ("NOT_SERVING" if trouble else "SERVING")
    line.send(request())
    for client in clients:
        client.close()
    assert until(lambda: line.receiver._watchers == 0)
    line.send(request())


def test_there_are_only_so_many_watchers(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tollspan.processor.receive.MAX_WATCHERS", 2)
    stub = health_pb2_grpc.HealthStub(line.channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in (SERVICE, "nobody")]
    assert [next(watch).status for watch in watches] == [1, 3]
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Watch(health_pb2.HealthCheckRequest()))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    for watch in watches:
        watch.cancel()
    assert until(lambda: line.receiver._watchers == 0)
    assert next(stub.Watch(health_pb2.HealthCheckRequest())).status == 1


def test_a_refusal_of_a_moment_is_not_told_to_health_checks(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    line.intake.tell(told.append)
    refuse_first(line.journal, monkeypatch, JournalFull("Too much waits."))
    line.refused(request())
    assert until(lambda: not line.intake._probing)
    assert told == [""]


# -- other signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "signal"), [(LOGS, "logs"), (METRICS, "metrics")])
def test_other_signals_are_refused_politely_and_said_once(
    line: Line, method: str, signal: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        error: Any = line.refused(b"anything", method)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert f"OTEL_{signal.upper()}_EXPORTER=none" in error.details()
    assert caplog.text.count(f"{signal} are sent here") == 1
    assert line.counters.get(f"receive.refused.{signal}") == 3
    assert line.counters.get("receive.accepted") == 0


def test_other_signals_go_to_whom_takes_them(tmp_path: Path) -> None:
    taken: list[bytes] = []
    answers = [None, Refusal("spool_full", UNAVAILABLE, "Later.")]

    def take(payload: bytes) -> Refusal | None:
        taken.append(payload)
        return answers.pop(0)

    line = Line(tmp_path, signals={"logs": take})
    assert line.send(b"\x0a\x00", LOGS) == b""
    error = line.refused(b"\x0a\x00", LOGS)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert retry_delay(error) > 0
    assert taken == [b"\x0a\x00"] * 2
    assert line.refused(b"", METRICS).code() is grpc.StatusCode.UNIMPLEMENTED
    assert line.counters.get("receive.logs") == 1
    assert line.journaled() == []
    line.close()


def test_another_method_is_unimplemented(line: Line) -> None:
    assert line.refused(b"", f"/{SERVICE}/Import").code() is grpc.StatusCode.UNIMPLEMENTED


# -- compression -------------------------------------------------------------------------------------------------------


def test_deflate_is_taken_too(line: Line) -> None:
    payload = request(50)
    line.send(payload, compression=grpc.Compression.Deflate)
    assert line.journaled() == [payload]


def test_a_gzip_bomb_takes_no_memory_to_speak_of(tmp_path: Path) -> None:
    """200 MiB of zeros are refused while they unfold."""
    line = Line(tmp_path)
    before = resident()
    with pytest.raises(grpc.RpcError) as caught:
        line.send(bytes(200 << 20), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # The client is in this process too, with the bomb and what it made of it; the server's part is its limit.
    assert resident() - before < 300 << 20
    assert until(lambda: line.counters.get("receive.broken") == 1)
    line.send(request())
    line.close()


def resident() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


# -- senders who stall -------------------------------------------------------------------------------------------------


def stalled(channel: Any, gate: threading.Event) -> Any:
    """A call whose head has been sent, and whose body waits."""

    def body() -> Iterator[bytes]:
        gate.wait(30)
        yield request()

    return channel.stream_unary(EXPORT).future(body(), timeout=30)


def test_a_body_that_does_not_come_is_given_up_and_may_be_sent_again(tmp_path: Path) -> None:
    line = Line(tmp_path, stalled_s=0.3, hurried_s=0.3)
    gate = threading.Event()
    call = stalled(line.channel, gate)
    assert call.exception(10).code() is grpc.StatusCode.CANCELLED  # which exporters try again
    assert line.counters.get("receive.stalled") == 1
    assert line.counters.get("receive.requests") == 0
    gate.set()
    line.send(request())
    line.close()


def test_stalled_senders_hold_up_nobody_for_long(tmp_path: Path) -> None:
    """More of them than there are threads."""
    line = Line(tmp_path, threads=8, stalled_s=5.0, hurried_s=0.2)
    line.receiver._patience._few = 4
    gate = threading.Event()
    calls = [stalled(line.channel, gate) for _ in range(40)]
    assert until(lambda: line.receiver._patience.waiting == 8)
    began = time.monotonic()
    line.send(request(name="good"))
    assert time.monotonic() - began < 5.0
    assert line.health() == "SERVING"
    gate.set()
    for call in calls:
        call.cancel()
    assert "good" in span_names(line.journaled())
    line.close()


def test_a_slow_sender_is_waited_for_while_there_is_room(line: Line) -> None:
    gate = threading.Event()
    call = stalled(line.channel, gate)
    time.sleep(1.0)
    gate.set()
    assert call.result(10) == b""
    assert line.counters.get("receive.stalled") == 0


def test_one_call_too_many_is_asked_to_come_again(tmp_path: Path) -> None:
    line = Line(tmp_path, max_calls=3)
    gate = threading.Event()
    calls = [stalled(line.channel, gate) for _ in range(3)]
    assert until(lambda: line.receiver._patience.waiting == 3)
    error = line.refused(request())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert retry_delay(error) > 0
    assert line.counters.get("receive.refused.memory") == 1
    gate.set()
    for call in calls:
        assert call.result(10) == b""
    line.send(request())
    assert line.receiver._calls == 0
    line.close()


def test_bodies_in_memory_are_bounded_together(line: Line) -> None:
    line.intake.bodies.hold(line.intake.bodies.most)
    error = line.refused(request())
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert retry_delay(error) > 0
    line.intake.bodies.free(line.intake.bodies.most)
    line.send(request())
    assert line.intake.bodies.held == 0


def test_who_may_not_send_is_told_before_the_body(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.intake.drain(0)
    gate = threading.Event()
    error = stalled(line.channel, gate).exception(10)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert retry_delay(error) > 0
    gate.set()
    line.close()


def test_a_system_without_threads_to_spare_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    gate = threading.Event()
    pool = _Threads(8, "few")
    pool.submit(gate.wait)
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start")))
    for number in range(3):
        pool.submit(done.append, number)
    monkeypatch.setattr(threading.Thread, "start", start)
    gate.set()
    pool.shutdown(wait=True)
    assert done == [0, 1, 2]


# -- connections -------------------------------------------------------------------------------------------------------


def test_the_defaults_reach_grpc() -> None:
    options = dict(GrpcSettings().options())
    assert options["grpc.max_receive_message_length"] == 64 << 20
    assert options["grpc.max_connection_age_ms"] == 180_000
    assert options["grpc.max_connection_age_grace_ms"] == 60_000
    assert options["grpc.max_connection_idle_ms"] == 150_000
    assert options["grpc.keepalive_time_ms"] == 60_000
    assert options["grpc.max_concurrent_streams"] == 1000
    assert options["grpc.server_handshake_timeout_ms"] == 15_000


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"max_calls": 0}, {"hurried_s": 0.0}, {"hurried_s": 60.0}, {"max_request_bytes": -1}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|hurried"):
        GrpcSettings(**wrong)


def test_a_request_that_never_finds_room_is_said_at_the_start() -> None:
    with pytest.raises(ConfigError, match="max_held_bytes"):
        Service(ServiceConfig(receive=ReceiveSettings(max_held_bytes=100 << 20))).start()


def test_a_process_may_have_as_many_connections_as_the_system_lets_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard, 512), hard))
        assert allow_connections() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_that_says_nothing_is_closed(tmp_path: Path) -> None:
    line = Line(tmp_path, handshake_s=0.5)
    with socket.create_connection(("127.0.0.1", int(line.address.rpartition(":")[2])), timeout=20) as client:
        while client.recv(4096):
            pass
    line.close()


@pytest.mark.parametrize("limit", [{"max_connection_age_s": 0.3}, {"max_connection_idle_s": 0.3}])
def test_a_connection_that_is_old_or_idle_ends_and_its_sender_does_not_notice(
    tmp_path: Path, limit: dict[str, float]
) -> None:
    line = Line(tmp_path, **limit)
    states: list[grpc.ChannelConnectivity] = []
    line.channel.subscribe(states.append)
    line.send(request())
    assert until(lambda: grpc.ChannelConnectivity.IDLE in states[1:]), states
    for _ in range(5):
        line.send(request())
        time.sleep(0.15)
    assert line.counters.get("receive.accepted") == 6
    line.close()


def test_calls_in_flight_outlive_their_connection(tmp_path: Path) -> None:
    line = Line(tmp_path, max_connection_age_s=0.2, max_connection_age_grace_s=10)
    gate = threading.Event()
    call = stalled(line.channel, gate)
    time.sleep(0.8)
    gate.set()
    assert call.result(10) == b""
    line.close()


def test_a_connection_takes_only_so_many_calls_at_once_and_the_others_may_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(tmp_path, max_concurrent_streams=5)
    line.send(b"")  # so that the client knows the limit
    gate, append, sync, most = threading.Event(), line.journal.append, os.fdatasync, []

    def counted(*given: Any) -> Any:
        most.append(line.receiver._calls)
        return append(*given)

    monkeypatch.setattr(line.journal, "append", counted)
    monkeypatch.setattr(os, "fdatasync", lambda fd: (gate.wait(20), sync(fd)))
    calls = [line.channel.unary_unary(EXPORT).future(request(), timeout=30) for _ in range(20)]
    assert until(lambda: len(most) == 5)
    time.sleep(0.2)
    gate.set()
    for call in calls:
        assert call.exception(20) is None or call.code() is grpc.StatusCode.UNAVAILABLE
    assert max(most) == 5
    assert line.counters.get("receive.accepted") >= 5
    line.close()


def test_who_pings_without_end_is_hung_up_on(tmp_path: Path) -> None:
    line = Line(tmp_path, min_ping_interval_s=60.0)
    options = [
        ("grpc.keepalive_time_ms", 50),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    states: list[grpc.ChannelConnectivity] = []
    with grpc.insecure_channel(line.address, options=options) as channel:
        channel.subscribe(states.append)
        channel.unary_unary(EXPORT)(request(), timeout=20)
        assert until(lambda: len(states) > 2 and states[-1] is not grpc.ChannelConnectivity.READY, 20), states
    line.send(request())
    line.close()


def test_many_senders_on_one_connection_lose_nothing(line: Line) -> None:
    with ThreadPoolExecutor(50) as pool:
        list(pool.map(lambda number: line.send(request(name=str(number))), range(500)))
    assert sorted(span_names(line.journaled())) == sorted(map(str, range(500)))
    assert line.receiver._calls == 0
