"""Senders log in by token, are held to their limits, and cannot send for another tenant; over both protocols."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from typer.testing import CliRunner

from tollspan.pricing import attributes as names
from tollspan.processor.cli.app import app
from tollspan.processor.counters import Counters
from tollspan.processor.decode import decode
from tollspan.processor.errors import ConfigError
from tollspan.processor.intake import Intake, Refusal
from tollspan.processor.journal import Journal
from tollspan.processor.normalize import normalize
from tollspan.processor.receive import EXPORT, Receiver
from tollspan.processor.receive_http import PROTOBUF, HttpReceiver
from tollspan.processor.senders import Sender, Senders, new_token, stamped

from .test_receive import request

TRACES = "/v1/traces"
TOKENS = {"acme": "tsp_acme", "anyone": "tsp_anyone", "slow": "tsp_slow"}


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


ROWS: list[dict[str, Any]] = [
    {"id": "acme", "sha256": digest(TOKENS["acme"]), "tenant": "acme"},
    {"id": "anyone", "sha256": digest(TOKENS["anyone"])},
    {"id": "slow", "sha256": digest(TOKENS["slow"]), "max_requests_per_s": 0.5},
]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Line:
    """Both receivers in front of one journal, with senders."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "senders.yaml"
        self.file.write_text(yaml.safe_dump({"senders": ROWS}))
        self.clock, self.counters = Clock(), Counters()
        self.journal = Journal(folder / "journal", counters=self.counters)
        self.senders = Senders(self.file, self.counters, clock=self.clock)
        intake = Intake(self.journal, counters=self.counters)
        self.grpc = Receiver(intake, address="127.0.0.1:0", senders=self.senders)
        self.http = HttpReceiver(intake, address="127.0.0.1:0", senders=self.senders)
        self.addresses = {"grpc": self.grpc.start(), "http": self.http.start()}

    def send(self, protocol: str, payload: bytes, token: str | None = None) -> tuple[str, float | None]:
        """What became of a request, and after how many seconds to send it again."""
        authorization = f"Bearer {token}" if token is not None else None
        if protocol == "grpc":
            metadata = (("authorization", authorization),) if authorization else ()
            with grpc.insecure_channel(self.addresses["grpc"]) as channel:
                try:
                    channel.unary_unary(EXPORT)(payload, timeout=20, metadata=metadata)
                except grpc.RpcError as error:
                    details = dict(error.trailing_metadata()).get("grpc-status-details-bin")
                    return error.code().name, retry_s(details) if details else None
            return "OK", None
        connection = http.client.HTTPConnection(self.addresses["http"], timeout=20)
        headers = {"content-type": PROTOBUF, **({"authorization": authorization} if authorization else {})}
        connection.request("POST", TRACES, payload, headers)
        answer = connection.getresponse()
        after = answer.getheader("retry-after")
        words = {200: "OK", 401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED"}
        if answer.status == 401:
            assert answer.getheader("www-authenticate") == "Bearer"
        connection.close()
        return words[answer.status], float(after) if after else None

    def tenants(self) -> list[str | None]:
        """Tenants of the spans that were taken, as the ledger will have them."""
        found: list[str | None] = []
        while (batch := self.journal.next_batch(1 << 30, timeout=0)) is not None:
            found += normalize(decode(batch.payloads), received_ns=0).table["tenant"].to_pylist()
        return found

    def close(self) -> None:
        self.grpc.stop()
        self.http.stop()
        self.senders.stop()
        self.journal.close()


def retry_s(details: bytes) -> float:
    info = error_details_pb2.RetryInfo()
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    opened = Line(tmp_path)
    yield opened
    opened.close()


def tagged(span: str | None = None, resource: str | None = None, key: str = names.TENANT) -> bytes:
    """A request of one span; it and its resource say whose they are."""
    message = ExportTraceServiceRequest.FromString(request())
    (each,) = message.resource_spans
    if resource is not None:
        each.resource.attributes.add(key=key).value.string_value = resource
    if span is not None:
        each.scope_spans[0].spans[0].attributes.add(key=key).value.string_value = span
    return bytes(message.SerializeToString())


both = pytest.mark.parametrize("protocol", ["grpc", "http"])


@both
@pytest.mark.parametrize("token", [None, "", "tsp_unknown"])
def test_who_is_not_known_sends_nothing(line: Line, protocol: str, token: str | None) -> None:
    assert line.send(protocol, request(), token) == ("UNAUTHENTICATED", None)
    assert line.tenants() == []
    refused = "unknown_token" if token else "no_token"
    assert line.counters.get(f"receive.refused.{refused}") == 1


@both
def test_a_senders_spans_are_its_tenants_whatever_they_say(line: Line, protocol: str) -> None:
    for payload in (request(), tagged(span="rival"), tagged(resource="rival")):
        assert line.send(protocol, payload, TOKENS["acme"])[0] == "OK"
    assert line.tenants() == ["acme", "acme", "acme"]


@both
def test_a_sender_without_a_tenant_leaves_it_to_the_spans(line: Line, protocol: str) -> None:
    for payload in (request(), tagged(span="one"), tagged(resource="two")):
        assert line.send(protocol, payload, TOKENS["anyone"])[0] == "OK"
    assert line.tenants() == [None, "one", "two"]


@both
@pytest.mark.parametrize("where", ["span", "resource"])
@pytest.mark.parametrize("sender", ["acme", "anyone"])
def test_the_mark_of_a_login_cannot_be_forged(line: Line, protocol: str, where: str, sender: str) -> None:
    forged = tagged(**{where: "rival"}, key=names.SENDER_TENANT)
    assert line.send(protocol, forged, TOKENS[sender])[0] == "OK"
    assert line.tenants() == ["acme" if sender == "acme" else None]


@both
def test_a_sender_above_its_limit_is_told_when_to_come_again(line: Line, protocol: str) -> None:
    assert line.send(protocol, request(), TOKENS["slow"])[0] == "OK"  # half a request a second, a burst of one
    word, after = line.send(protocol, request(), TOKENS["slow"])
    assert word == "RESOURCE_EXHAUSTED"
    assert after == pytest.approx(2.0)
    assert line.send(protocol, request(), TOKENS["anyone"])[0] == "OK"
    line.clock.now += 2.0
    assert line.send(protocol, request(), TOKENS["slow"])[0] == "OK"
    assert line.counters.get("receive.refused.rate") == 1


@both
def test_the_stock_exporter_logs_in_by_its_environment(
    line: Line, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{TOKENS['acme']}")
    address = line.addresses[protocol]
    exporter = (
        GrpcExporter(endpoint=f"http://{address}", insecure=True)
        if protocol == "grpc"
        else HttpExporter(endpoint=f"http://{address}{TRACES}")
    )
    provider = TracerProvider(resource=Resource({"service.name": "s"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("t").start_span("call").end()
    provider.shutdown()
    assert line.tenants() == ["acme"]


def test_what_is_no_request_is_refused_as_ever(line: Line) -> None:
    with grpc.insecure_channel(line.addresses["grpc"]) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(EXPORT)(b"\xff\xff", timeout=20, metadata=(("authorization", f"Bearer {TOKENS['acme']}"),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


# -- the file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("senders: [", "YAML"),
        ("- a", "list under 'senders'"),
        ("senders: [7]", "number 1"),
        ("senders: [{id: a, sha256: '12'}]", "64 hexadecimal digits"),
        (f"senders: [{{id: 'a b', sha256: '{'0' * 64}'}}]", "id has to be"),
        (f"senders: [{{id: a, sha256: '{'0' * 64}', tennant: x}}]", "tennant"),
        (f"senders: [{{id: a, sha256: '{'0' * 64}', max_bytes_per_s: -1}}]", "above zero"),
        (f"senders: [{{id: a, sha256: '{'0' * 64}', tenant: 7}}]", "tenant has to be text"),
        (f"senders: [{{id: a, sha256: '{'0' * 64}'}}, {{id: a, sha256: '{'1' * 64}'}}]", "there twice"),
        (f"senders: [{{id: a, sha256: '{'0' * 64}'}}, {{id: b, sha256: '{'0' * 64}'}}]", "there twice"),
    ],
)
def test_a_wrong_file_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "senders.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Senders(path, Counters())
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Senders(tmp_path / "none.yaml", Counters())


def test_a_changed_file_is_taken_and_a_broken_one_is_not(line: Line) -> None:
    assert not line.senders.reload()
    assert isinstance(line.senders.who(f"Bearer {TOKENS['slow']}"), Sender)
    line.file.write_text(yaml.safe_dump({"senders": ROWS[:1]}))
    assert line.senders.reload()
    assert isinstance(line.senders.who(f"Bearer {TOKENS['slow']}"), Refusal)
    line.file.write_text("senders: [")
    assert not line.senders.reload()
    assert isinstance(line.senders.who(f"Bearer {TOKENS['acme']}"), Sender)
    assert line.counters.get("senders.reload_failed") == 1
    line.file.unlink()
    assert not line.senders.reload()
    assert isinstance(line.senders.who(f"Bearer {TOKENS['acme']}"), Sender)


def test_who_has_used_up_a_limit_does_not_get_it_back_by_a_reload(line: Line) -> None:
    slow = line.senders.who(f"Bearer {TOKENS['slow']}")
    assert isinstance(slow, Sender)
    assert slow.over(10) is None
    line.file.write_text(yaml.safe_dump({"senders": [*ROWS, {"id": "more", "sha256": "0" * 64}]}))
    assert line.senders.reload()
    again = line.senders.who(f"Bearer {TOKENS['slow']}")
    assert isinstance(again, Sender)
    assert again.over(10) is not None


def test_a_request_larger_than_the_bucket_goes_through_and_is_paid_for(tmp_path: Path) -> None:
    path = tmp_path / "senders.yaml"
    path.write_text(yaml.safe_dump({"senders": [{"id": "a", "sha256": digest("t"), "max_bytes_per_s": 100}]}))
    clock = Clock()
    sender = Senders(path, Counters(), clock=clock).who("Bearer t")
    assert isinstance(sender, Sender)
    assert sender.over(1000) is None  # ten seconds' worth
    clock.now += 7
    refusal = sender.over(1)
    assert refusal is not None
    clock.now += refusal.delay_s or 0
    assert sender.over(1) is None


def test_the_command_makes_what_the_file_needs(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["token", "acme-prod", "--tenant", "Ämter & Co"])
    assert result.exit_code == 0
    token = result.output.partition("Bearer%20")[2].partition("'")[0]
    path = tmp_path / "senders.yaml"
    path.write_text("senders:\n" + result.output.splitlines()[-1] + "\n", encoding="utf-8")
    sender = Senders(path, Counters()).who(f"bearer {token}")
    assert isinstance(sender, Sender)
    assert (sender.id, sender.tenant) == ("acme-prod", "Ämter & Co")
    assert token not in path.read_text(encoding="utf-8")


def test_tokens_are_not_the_same_twice() -> None:
    assert new_token()[0] != new_token()[0]


@given(st.text(), st.integers(0, 3))
def test_law_a_stamp_changes_nothing_but_resources(tenant: str, spans: int) -> None:
    payload = request(spans)
    before = ExportTraceServiceRequest.FromString(payload)
    try:
        tenant.encode()
    except UnicodeEncodeError:
        return
    after = ExportTraceServiceRequest.FromString(stamped(payload, tenant))
    assert [each.scope_spans for each in after.resource_spans] == [each.scope_spans for each in before.resource_spans]
    values = [[a.value.string_value for a in each.resource.attributes] for each in after.resource_spans]
    assert values == [[tenant] if tenant else []] * len(before.resource_spans)
    again = ExportTraceServiceRequest.FromString(stamped(stamped(payload, "other"), tenant))
    assert [[a.value.string_value for a in each.resource.attributes] for each in again.resource_spans] == values


def test_a_stamp_keeps_what_it_does_not_know() -> None:
    message = ExportTraceServiceRequest.FromString(request())
    message.resource_spans[0].resource.dropped_attributes_count = 7
    message.resource_spans[0].schema_url = "https://example.org"
    after = ExportTraceServiceRequest.FromString(stamped(message.SerializeToString(), "acme"))
    assert after.resource_spans[0].resource.dropped_attributes_count == 7
    assert after.resource_spans[0].schema_url == "https://example.org"
