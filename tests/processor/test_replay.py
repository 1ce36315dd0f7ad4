"""`tollspan replay`: what is sent, what is counted, what is said when it goes wrong."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import typer
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from typer.testing import CliRunner

from tollspan.processor.cli.replay import replay
from tollspan.processor.errors import ConfigError
from tollspan.processor.otlp_client import Access, OtlpClient, Patience, ReceiverUnreachable, find
from tollspan.processor.replay import SpanMaker, SpanTemplate, batches_in_time, batches_now, send, span_ids
from tollspan.processor.usage_trace import parse_instant, read_usage_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROWS = HEADER + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n2023-11-16 18:18:00,0,173"
OPENAI = SpanTemplate("openai", "gpt-5-mini")

Behaviour = Callable[[ExportTraceServiceRequest, grpc.ServicerContext], ExportTraceServiceResponse]


class Receiver(TraceServiceServicer):
    """A stock OTLP server: keeps what it accepts; ``script`` says how the next requests are answered."""

    def __init__(self) -> None:
        self.accepted: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.script: list[Behaviour] = []
        self.requests = 0
        self._lock = threading.Lock()

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        with self._lock:
            self.requests += 1
            behaviour = self.script.pop(0) if self.script else None
        if behaviour is not None:
            return behaviour(request, context)
        return self.take(request)

    def take(self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        with self._lock:
            for resource in request.resource_spans:
                self.resources.append({a.key: a.value.string_value for a in resource.resource.attributes})
                for scope in resource.scope_spans:
                    self.accepted.extend(scope.spans)
        return ExportTraceServiceResponse()


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    servicer = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None)


def refuse(code: grpc.StatusCode, retry_after_s: float | None = None) -> Behaviour:
    def behaviour(request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        if retry_after_s is not None:
            info = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=int(retry_after_s * 1e9)))
            detail = Any()
            detail.Pack(info)
            status = status_pb2.Status(code=code.value[0], message="busy", details=[detail])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, "busy")
        raise AssertionError("abort raises")

    return behaviour


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_bytes(text.encode())
    return path


def many_rows(count: int) -> str:
    began = datetime(2023, 11, 16, tzinfo=UTC)
    return HEADER + "".join(
        f"{(began + timedelta(seconds=n)).strftime('%Y-%m-%d %H:%M:%S')}.{n:07d},{n},{n % 7}\n" for n in range(count)
    )


def values(span: Span) -> dict[str, object]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def cli(*arguments: str) -> tuple[int, str, BaseException | None]:
    app = typer.Typer()
    app.command()(replay)
    result = CliRunner().invoke(app, [*arguments, "--provider", "openai", "--model", "gpt-5-mini"])
    return result.exit_code, result.stdout, result.exception


def test_every_row_becomes_one_root_client_span_with_its_tokens(receiver: tuple[Receiver, str], tmp_path: Path) -> None:
    server, address = receiver
    code, out, _ = cli(str(write(tmp_path, ROWS)), "--to", address, "--service-name", "coding", "--tenant", "acme")
    assert code == 0
    assert "spans sent 3, accepted 3, refused 0" in out
    assert server.resources == [{"service.name": "coding"}]
    first, second, third = server.accepted
    assert {(s.name, s.kind, s.parent_span_id) for s in server.accepted} == {
        ("chat gpt-5-mini", Span.SPAN_KIND_CLIENT, b"")
    }
    assert values(first) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "gen_ai.response.model": "gpt-5-mini",
        "tollspan.tenant": "acme",
        "gen_ai.usage.input_tokens": 4808,
        "gen_ai.usage.output_tokens": 10,
    }
    assert values(third)["gen_ai.usage.input_tokens"] == 0  # a zero that the trace states is a zero, not an absence
    assert second.start_time_unix_nano == 1_700_158_624_031_960_000
    assert all(s.end_time_unix_nano == s.start_time_unix_nano for s in server.accepted)


def test_the_first_call_lies_exactly_at_start_and_gaps_keep_their_100_ns(tmp_path: Path) -> None:
    trace = read_usage_trace(
        write(tmp_path, HEADER + "2023-11-16 18:17:03.9799601,1,1\n2023-11-16 18:17:04.0000004,1,1")
    )
    start = parse_instant("2026-11-01T00:00:00Z")
    maker = SpanMaker(trace, SpanTemplate("openai", "gpt-5-mini", start_ns=start))
    assert maker.span(0).start_time_unix_nano == start == 1_793_491_200_000_000_000
    assert maker.span(1).start_time_unix_nano - start == 20_040_300


def test_a_file_that_is_not_in_order_starts_at_its_earliest_call(tmp_path: Path) -> None:
    trace = read_usage_trace(write(tmp_path, HEADER + "2023-01-01 00:00:09,1,1\n2023-01-01 00:00:02,1,1"))
    maker = SpanMaker(trace, SpanTemplate("openai", "m", start_ns=10**18))
    assert [maker.start_ns(row) for row in (0, 1)] == [10**18 + 7 * 10**9, 10**18]


def test_a_second_run_sends_the_same_ids_and_another_file_sends_others(
    receiver: tuple[Receiver, str], tmp_path: Path
) -> None:
    server, address = receiver
    path = write(tmp_path, many_rows(1200))
    for _ in range(2):
        assert cli(str(path), "--to", address)[0] == 0
    ids = {(s.trace_id, s.span_id) for s in server.accepted}
    assert (len(server.accepted), len(ids)) == (2400, 1200)
    path.write_text(path.read_text() + "2024-01-01 00:00:00,1,1\n")
    assert cli(str(path), "--to", address)[0] == 0
    assert len({s.trace_id for s in server.accepted}) == 2401


@given(content=st.binary(min_size=32, max_size=32), row=st.integers(0, 2**40))
def test_ids_have_the_sizes_of_the_specification_and_depend_on_the_row(content: bytes, row: int) -> None:
    trace_id, span_id = span_ids(content, row)
    assert (len(trace_id), len(span_id)) == (16, 8)
    assert any(trace_id)
    assert any(span_id)
    assert span_ids(content, row) == (trace_id, span_id) != span_ids(content, row + 1)


@given(ns=st.integers(0, 2**62))
def test_instants_are_read_to_the_last_digit(ns: int) -> None:
    seconds, fraction = divmod(ns, 10**9)
    whole = datetime(1970, 1, 1) + timedelta(seconds=seconds)
    assert parse_instant(f"{whole.isoformat()}.{fraction:09d}Z") == ns


def test_offsets_of_instants_are_taken_into_account() -> None:
    assert parse_instant("2026-11-01T01:30:00+01:30") == parse_instant("2026-11-01 00:00:00")
    assert parse_instant("2026-10-31T23:00:00-01:00") == parse_instant("2026-11-01T00:00:00Z")


@pytest.mark.parametrize(
    ("text", "where", "why"),
    [
        ("", ":1: column TIMESTAMP", "missing"),
        ("TIMESTAMP,ContextTokens\n", ":1: column GeneratedTokens", "missing"),
        (HEADER, ":", "no rows"),
        (ROWS + "\n2023-11-16,1,1", ":5: column TIMESTAMP", "not a time"),
        (ROWS + "\n2023-02-30 00:00:00,1,1", ":5: column TIMESTAMP", "not a time"),
        (ROWS + "\n2400-01-01 00:00:00,1,1", ":5: column TIMESTAMP", "1970 and 2262"),
        (ROWS + "\n2023-11-16 18:18:01,many,1", ":5: column ContextTokens", "'many' is not a whole number"),
        (ROWS + "\n2023-11-16 18:18:01,1,-1", ":5: column GeneratedTokens", "'-1' is not a whole number"),
        (ROWS + "\n2023-11-16 18:18:01,1,", ":5: column GeneratedTokens", "'' is not a whole number"),
        (ROWS + "\n2023-11-16 18:18:01,1.5,1", ":5: column ContextTokens", "'1.5' is not a whole number"),
        (ROWS + "\n2023-11-16 18:18:01,99999999999999999,1", ":5: column ContextTokens", "2^53"),
        (ROWS + "\n2023-11-16 18:18:01,1", ":5: column GeneratedTokens", "2 fields"),
        (ROWS + "\n2023-11-16 18:18:01,1,1,1", ":5:", "4 fields"),
        (ROWS + "\n\n2023-11-16 18:18:01,1,1", ":5:", "empty"),
        (ROWS + '\n"2023-11-16 18:18:01,1,1', ":5:", "end of data"),
    ],
)
def test_a_bad_row_stops_everything_with_its_file_line_column_and_reason(
    receiver: tuple[Receiver, str], tmp_path: Path, text: str, where: str, why: str
) -> None:
    server, address = receiver
    path = write(tmp_path, text)
    code, _, error = cli(str(path), "--to", address)
    assert code == 1
    assert isinstance(error, ConfigError)
    assert str(error).startswith(f"{path}{where}")
    assert why in str(error)
    assert "\n" not in str(error)
    assert server.requests == 0


def test_carriage_returns_a_byte_order_mark_and_other_columns_are_read_as_they_are_meant(tmp_path: Path) -> None:
    text = "\ufeffid,GeneratedTokens,TIMESTAMP,ContextTokens\r\n7,2,2023-11-16 18:18:01,1\r\n\r\n"
    trace = read_usage_trace(write(tmp_path, text))
    assert (list(trace.input_tokens), list(trace.output_tokens)) == ([1], [2])


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    _, _, error = cli(str(tmp_path / "none.csv"))
    assert isinstance(error, ConfigError)
    assert "none.csv: No such file or directory" in str(error)


def test_a_bad_start_is_one_line(tmp_path: Path) -> None:
    _, _, error = cli(str(write(tmp_path, ROWS)), "--start", "tomorrow")
    assert isinstance(error, ConfigError)
    assert "--start: 'tomorrow' is not a time" in str(error)


def test_spans_refused_inside_a_batch_are_counted_and_make_the_exit_code(
    receiver: tuple[Receiver, str], tmp_path: Path
) -> None:
    server, address = receiver
    partial = ExportTracePartialSuccess(rejected_spans=2, error_message="two were too old")
    server.script = [lambda *_: ExportTraceServiceResponse(partial_success=partial)]
    code, out, _ = cli(str(write(tmp_path, ROWS)), "--to", address)
    assert code == 1
    assert "spans sent 3, accepted 1, refused 2" in out


def test_a_request_refused_for_good_counts_all_its_spans_and_the_others_go_on(
    receiver: tuple[Receiver, str], tmp_path: Path
) -> None:
    server, address = receiver
    server.script = [refuse(grpc.StatusCode.INVALID_ARGUMENT)]
    code, out, _ = cli(str(write(tmp_path, many_rows(1000))), "--to", address)
    assert code == 1
    accepted = len(server.accepted)
    assert accepted in (1000 - 512, 512)  # either of the two requests may have come first
    assert f"spans sent 1000, accepted {accepted}, refused {1000 - accepted}" in out


@pytest.mark.parametrize(
    "refusal",
    [
        refuse(grpc.StatusCode.UNAVAILABLE),
        refuse(grpc.StatusCode.UNAVAILABLE, retry_after_s=0.02),
        refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=0.02),
    ],
)
def test_a_busy_receiver_gets_the_request_again(
    receiver: tuple[Receiver, str], tmp_path: Path, refusal: Behaviour
) -> None:
    server, address = receiver
    server.script = [refusal, refusal]
    code, out, _ = cli(str(write(tmp_path, ROWS)), "--to", address)
    assert (code, server.requests, len(server.accepted)) == (0, 3, 3)
    assert "accepted 3, refused 0" in out


def test_resource_exhausted_without_a_delay_is_final(receiver: tuple[Receiver, str], tmp_path: Path) -> None:
    server, address = receiver
    server.script = [refuse(grpc.StatusCode.RESOURCE_EXHAUSTED)]
    assert cli(str(write(tmp_path, ROWS)), "--to", address)[0] == 1
    assert server.requests == 1


def test_the_delay_that_the_receiver_names_is_waited(receiver: tuple[Receiver, str], tmp_path: Path) -> None:
    server, address = receiver
    server.script = [refuse(grpc.StatusCode.UNAVAILABLE, retry_after_s=0.123)]
    waits: list[float | None] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    maker = SpanMaker(read_usage_trace(write(tmp_path, ROWS)), OPENAI)
    with OtlpClient(address) as client:
        assert client.export(maker.request(range(3)), Stop()).refused == 0
    assert waits == [0.123]


def test_nobody_at_the_address_is_one_line_that_says_what_to_do() -> None:
    with OtlpClient("127.0.0.1:1", Patience(connect_s=0.3)) as client, pytest.raises(ReceiverUnreachable) as caught:
        client.connect()
    assert "Nobody answers at 127.0.0.1:1" in str(caught.value)
    assert "tollspan serve" in str(caught.value)


def test_a_receiver_that_stays_away_ends_the_replay_with_what_was_taken_until_then(
    receiver: tuple[Receiver, str], tmp_path: Path
) -> None:
    server, address = receiver
    server.script = [server_takes(server), *[refuse(grpc.StatusCode.UNAVAILABLE, retry_after_s=0.02)] * 1000]
    trace = read_usage_trace(write(tmp_path, many_rows(4096)))
    with OtlpClient(address, Patience(outage_s=0.2)) as client:
        outcome = send(SpanMaker(trace, OPENAI), batches_now(len(trace)), client, parallel=2)
    assert isinstance(outcome.failure, ReceiverUnreachable)
    assert outcome.accepted == len(server.accepted) == 512
    assert outcome.refused == 0
    assert outcome.sent < 4096


def server_takes(server: Receiver) -> Behaviour:
    return lambda request, _: server.take(request)


@pytest.mark.parametrize(
    "target", ["", "localhost", "localhost:0", "localhost:x", ":4317", "ftp://localhost:1", "h:70000"]
)
def test_what_is_no_address_is_said_to_be_none(target: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        find(target)


@pytest.mark.parametrize(
    ("target", "access", "endpoint", "protocol"),
    [
        ("127.0.0.1:4317", Access(), "http://127.0.0.1:4317", "grpc"),
        ("http://localhost:4317/", Access(), "http://localhost:4317", "grpc"),
        ("https://otel.example:443", Access(), "https://otel.example:443", "grpc"),
        ("[::1]:4317", Access(), "http://[::1]:4317", "grpc"),
        ("otel.example:4317", Access(), "https://otel.example:4317", "grpc"),
        ("otel.example:4317", Access(insecure=True), "http://otel.example:4317", "grpc"),
        ("localhost:4318", Access(), "http://localhost:4318", "http/protobuf"),
        ("http://localhost:80/otlp/v1/traces", Access(), "http://localhost:80/otlp", "http/protobuf"),
        ("localhost:4319", Access(protocol="http/protobuf"), "http://localhost:4319", "http/protobuf"),
    ],
)
def test_addresses_may_be_written_as_the_sdk_takes_them(
    target: str, access: Access, endpoint: str, protocol: str
) -> None:
    found = find(target, access)
    assert (found.endpoint, found.protocol) == (endpoint, protocol)


@pytest.mark.parametrize(
    ("target", "access", "says"),
    [
        ("http://otel.example:4317", Access(token="t"), "unencrypted"),
        ("https://otel.example:4317", Access(insecure=True), "--insecure"),
        ("localhost:4317", Access(compression="zstd"), "zstd"),
        ("localhost:4317", Access(ca=Path("x")), "https://"),
        ("https://localhost:4317", Access(cert=Path("x")), "belong together"),
    ],
)
def test_what_does_not_go_together_is_said(target: str, access: Access, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        find(target, access)


def test_at_the_traces_own_pace_calls_come_when_they_are_due_and_together_when_they_are_close() -> None:
    second = 10**9
    starts = array("q", [0, second // 10, second, 3 * second, 2 * second, 3 * second])
    now = [5 * second]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += round(seconds * second)

    came = [(rows, now[0] - 5 * second) for rows in batches_in_time(starts, clock=lambda: now[0], sleep=sleep)]
    assert [(list(rows), at) for rows, at in came] == [([0, 1], 0), ([2], second), ([3, 4, 5], 3 * second)]
    assert slept == [1.0, 2.0]


@given(count=st.integers(0, 5000), size=st.integers(1, 700))
def test_batches_cover_every_row_once_in_order(count: int, size: int) -> None:
    assert [row for rows in batches_now(count, size) for row in rows] == list(range(count))
