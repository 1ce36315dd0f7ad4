"""A request that is partly good is taken partly: its good spans are durable, the sender is told of the others."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tollspan.processor.counters import Counters
from tollspan.processor.decode import check, decode
from tollspan.processor.intake import Intake, Partial, Refusal
from tollspan.processor.journal import Journal
from tollspan.processor.quarantine import Quarantine, QuarantineLimits
from tollspan.processor.receive import EXPORT, Receiver
from tollspan.processor.receive_http import JSON, PROTOBUF, HttpReceiver
from tollspan.processor.rejects import MAX_SPANS, Keeper, split

from .test_receive import span_names
from .test_receive_http import as_json

GOOD = (b"\1" * 16, b"\2" * 8, b"")
BAD = {
    "no trace id": (b"", b"\2" * 8, b""),
    "zero trace id": (bytes(16), b"\2" * 8, b""),
    "long trace id": (b"\1" * 17, b"\2" * 8, b""),
    "no span id": (b"\1" * 16, b"", b""),
    "zero span id": (b"\1" * 16, bytes(8), b""),
    "short parent": (b"\1" * 16, b"\2" * 8, b"\3"),
}


def mixed(*ids: tuple[bytes, bytes, bytes], scopes: int = 1) -> bytes:
    """A request whose spans have these ids (trace, span, parent), and their number as name, dealt out to scopes."""
    message = ExportTraceServiceRequest()
    message.resource_spans.add().resource.attributes.add(key="service.name").value.string_value = "s"
    message.resource_spans[0].schema_url = "https://example.org/1"
    parts = [message.resource_spans[0].scope_spans.add() for _ in range(scopes)]
    for number, (trace, span, parent) in enumerate(ids):
        parts[number % scopes].spans.add(
            trace_id=trace, span_id=span, parent_span_id=parent, name=str(number), flags=257, dropped_events_count=3
        )
    return message.SerializeToString()


class Line:
    """Both receivers in front of one journal."""

    def __init__(self, folder: Path) -> None:
        self.counters = Counters()
        self.journal = Journal(folder / "journal", counters=self.counters)
        self.quarantine = Quarantine(folder / "quarantine", self.counters)
        self.intake = Intake(
            self.journal, counters=self.counters, keep=Keeper(self.quarantine, self.counters, every_s=0)
        )
        self.receivers = {
            "grpc": Receiver(self.intake, address="127.0.0.1:0"),
            "http": HttpReceiver(self.intake, address="127.0.0.1:0"),
        }
        self.addresses = {name: each.start() for name, each in self.receivers.items()}

    def send(self, protocol: str, payload: bytes) -> tuple[int, str]:
        """How many spans the answer says are rejected (-1: all of the request), and why."""
        if protocol == "grpc":
            with grpc.insecure_channel(self.addresses["grpc"]) as channel:
                call = channel.unary_unary(EXPORT).future(payload, timeout=20)
                if call.exception() is not None:
                    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
                    assert not dict(call.trailing_metadata()).get("grpc-status-details-bin")
                    return -1, call.details()
                return of(ExportTraceServiceResponse.FromString(call.result()))
        in_json = protocol == "json"
        body = json.dumps(as_json(payload)).encode() if in_json else payload
        connection = http.client.HTTPConnection(self.addresses["http"], timeout=20)
        connection.request("POST", "/v1/traces", body, {"content-type": JSON if in_json else PROTOBUF})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if response.status != 200:
            assert response.status == 400
            assert response.getheader("retry-after") is None
            return -1, answer.decode("utf-8", "replace")
        if not in_json:
            return of(ExportTraceServiceResponse.FromString(answer))
        partial = json.loads(answer).get("partialSuccess", {})
        return int(partial.get("rejectedSpans", "0")), partial.get("errorMessage", "")

    def journaled(self) -> list[bytes]:
        found: list[bytes] = []
        while (batch := self.journal.next_batch(1 << 30, timeout=0)) is not None:
            found += batch.payloads
        return found

    def close(self) -> None:
        for each in self.receivers.values():
            each.stop()
        self.journal.close()


def of(response: ExportTraceServiceResponse) -> tuple[int, str]:
    return response.partial_success.rejected_spans, response.partial_success.error_message


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    opened = Line(tmp_path)
    yield opened
    opened.close()


every = pytest.mark.parametrize("protocol", ["grpc", "http", "json"])


@every
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_good_spans_are_taken_and_the_others_told(line: Line, protocol: str, bad: tuple[bytes, bytes, bytes]) -> None:
    rejected, why = line.send(protocol, mixed(GOOD, bad, GOOD))
    assert rejected == 1
    assert "1 bad_" in why
    assert "bytes" in why, "what an id has to be"
    (payload,) = line.journaled()
    assert span_names([payload]) == ["0", "2"]
    counters = line.counters
    assert [counters.get(f"receive.{name}") for name in ("spans", "partial", "accepted")] == [2, 1, 1]
    assert sum(count for name, count in counters.snapshot().items() if name.startswith("receive.rejected.")) == 1
    (entry,) = line.quarantine.entries()
    assert (entry.reason, entry.spans, entry.retry) == ("rejected", 1, False)
    assert span_names([line.quarantine.payload(entry)]) == ["1"]


@every
def test_a_request_without_a_good_span_is_refused_for_good(line: Line, protocol: str) -> None:
    rejected, why = line.send(protocol, mixed(*BAD.values()))
    assert rejected == -1
    assert "No span" in why
    assert line.journaled() == []
    assert line.counters.get("receive.refused.no_good_span") == 1
    assert sum(entry.spans or 0 for entry in line.quarantine.entries()) == len(BAD)


@every
def test_a_request_of_good_spans_alone_says_nothing(line: Line, protocol: str) -> None:
    assert line.send(protocol, mixed(GOOD, GOOD)) == (0, "")
    assert line.counters.get("receive.partial") == 0
    assert line.quarantine.entries() == []


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (lambda span: span.update(traceId="xyz"), "scopeSpans[0].spans[1].traceId is not hexadecimal"),
        (lambda span: span.update(startTimeUnixNano="soon"), "scopeSpans[0].spans[1]"),
        (lambda span: span.update(attributes=7), "scopeSpans[0].spans[1]"),
        (lambda span: span.update(links=[{"spanId": "q"}]), "scopeSpans[0].spans[1].links[0].spanId"),
    ],
)
def test_one_wrong_span_in_json_does_not_take_the_others_with_it(line: Line, spoil: Any, place: str) -> None:
    document = as_json(mixed(GOOD, GOOD, GOOD))
    spoil(document["resourceSpans"][0]["scopeSpans"][0]["spans"][1])
    connection = http.client.HTTPConnection(line.addresses["http"], timeout=20)
    connection.request("POST", "/v1/traces", json.dumps(document), {"content-type": JSON})
    response = connection.getresponse()
    told = json.loads(response.read())["partialSuccess"]
    connection.close()
    assert (response.status, told["rejectedSpans"]) == (200, "1")
    assert place in told["errorMessage"]
    assert span_names(line.journaled()) == ["0", "2"]
    assert line.counters.get("receive.rejected.bad_json") == 1


def test_what_the_journal_refuses_is_counted_when_it_comes_again(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(line.intake, "_store", full)
        assert isinstance(line.intake.take(mixed(GOOD, BAD["no span id"])), Refusal)
    assert line.counters.get("receive.rejected.bad_span_id") == 0
    assert isinstance(line.intake.take(mixed(GOOD, BAD["no span id"])), Partial)
    assert line.counters.get("receive.rejected.bad_span_id") == 1


def test_rubbish_does_not_fill_the_quarantine(tmp_path: Path) -> None:
    counters = Counters()
    quarantine = Quarantine(tmp_path, counters, QuarantineLimits(max_bytes=8000))
    payload = mixed(*[BAD["no span id"]] * 5)
    keep = Keeper(quarantine, counters, every_s=0)
    for number in range(50):
        keep(mixed(*[BAD["no span id"]] * (number + 1)), "why")
    assert 0 < quarantine.size() < 4000
    assert counters.get("receive.rejected_not_kept") > 40
    rare = Keeper(Quarantine(tmp_path / "other", counters), counters, every_s=3600)
    for _ in range(3):
        rare(payload, "why")
    assert len(list((tmp_path / "other").glob("*.otlp"))) == 1


def test_a_quarantine_that_fails_costs_no_good_span(tmp_path: Path) -> None:
    def broken(payload: bytes, why: str) -> None:
        raise OSError("no")

    journal = Journal(tmp_path)
    intake = Intake(journal, keep=broken)
    assert isinstance(intake.take(mixed(GOOD, BAD["no span id"])), Partial)
    assert intake.counters.get("receive.spans") == 1
    journal.close()


def test_a_very_long_request_is_not_parted_but_counted_all_the_same(line: Line) -> None:
    rejected, _ = line.send("http", mixed(*[GOOD] * MAX_SPANS, BAD["no span id"]))
    assert rejected == 1
    (payload,) = line.journaled()
    assert len(decode([payload])) == MAX_SPANS
    assert line.quarantine.entries() == []


identifiers = st.one_of(st.just(GOOD), st.sampled_from(list(BAD.values())), st.tuples(*[st.binary(max_size=18)] * 3))


@settings(max_examples=100, deadline=None)
@given(st.lists(identifiers, max_size=12), st.integers(1, 3))
def test_law_good_and_bad_together_are_all(ids: list[tuple[bytes, bytes, bytes]], scopes: int) -> None:
    payload = mixed(*ids, scopes=scopes)
    good, bad = split(payload)
    assert sorted(span_names([good]) + span_names([bad])) == sorted(span_names([payload]))
    found = check(payload)
    assert check(good).rejected == {}
    assert check(good).spans == found.spans - sum(found.rejected.values())
    assert check(bad).rejected == found.rejected
    assert len(decode([good])) == check(good).spans
    for part in (good, bad):
        for each in ExportTraceServiceRequest.FromString(part).resource_spans:
            assert each.schema_url == "https://example.org/1"
            assert each.resource.attributes[0].value.string_value == "s"
            assert all(s.flags == 257 and s.dropped_events_count == 3 for ss in each.scope_spans for s in ss.spans)


def test_text_that_is_not_utf_8_is_parted_too() -> None:
    payload = mixed(GOOD, BAD["no span id"]).replace(b"service.name", b"service.n\xff\xfee")
    for part in split(payload):
        assert b"\xff\xfe" in part
