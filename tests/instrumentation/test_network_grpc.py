"""Bytes of vector stores that are asked over gRPC, against what the service saw."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation import network_grpc
from tollspan.instrumentation.vectors.qdrant import QdrantInstrumentor

from .test_network import HERE, PREFIX, STUB

qdrant_client = pytest.importorskip("qdrant_client")

ZONE = "cross_zone"


class Service:
    """A Qdrant that answers every query with one point, and counts.

    Attributes:
        sent, received: bytes of messages, as its client would count them.
    """

    def __init__(self) -> None:
        from qdrant_client.grpc import points_pb2 as messages
        from qdrant_client.grpc import points_service_pb2_grpc as points

        self.sent = self.received = 0
        self.code: grpc.StatusCode | None = None
        service = self

        class Points(points.PointsServicer):  # type: ignore[misc]
            def Query(self, request: Any, context: grpc.ServicerContext) -> Any:
                service.sent += request.ByteSize()
                if service.code is not None:
                    context.abort(service.code, "no")
                point = messages.ScoredPoint(score=1.0)
                point.id.num = 7
                answer = messages.QueryResponse(result=[point], time=0.1)
                service.received += answer.ByteSize()
                return answer

        self._server = grpc.server(ThreadPoolExecutor(2))
        points.add_PointsServicer_to_server(Points(), self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def options(self) -> dict[str, Any]:
        return {
            "host": "127.0.0.1",
            "grpc_port": self.port,
            "prefer_grpc": True,
            "https": False,
            "check_compatibility": False,
        }

    def close(self) -> None:
        self._server.stop(0).wait(5)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


@pytest.fixture
def spans(telemetry: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    monkeypatch.setenv("TOLLSPAN_PLACES", STUB)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource(dict(HERE)))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    QdrantInstrumentor().instrument(tracer_provider=provider)
    yield exporter
    QdrantInstrumentor().uninstrument()
    assert not network_grpc.HOOKS._users


def told(exporter: InMemorySpanExporter) -> dict[str, Any]:
    (span,) = exporter.get_finished_spans()
    exporter.clear()
    return {name.removeprefix(PREFIX): value for name, value in (span.attributes or {}).items() if PREFIX in name}


def test_a_query_tells_its_messages(spans: InMemorySpanExporter, service: Service) -> None:
    client = qdrant_client.QdrantClient(**service.options())
    found = client.query_points("answers", query=[0.5] * 256, limit=1)
    assert [point.id for point in found.points] == [7]
    assert service.sent > 1000
    assert told(spans) == {f"egress.{ZONE}.bytes": service.sent, f"ingress.{ZONE}.bytes": service.received}
    client.close()


async def test_an_asynchronous_query(spans: InMemorySpanExporter, service: Service) -> None:
    client = qdrant_client.AsyncQdrantClient(**service.options())
    await client.query_points("answers", query=[0.5] * 256, limit=1)
    assert told(spans) == {f"egress.{ZONE}.bytes": service.sent, f"ingress.{ZONE}.bytes": service.received}
    await asyncio.gather(*(client.query_points("answers", query=[0.5], limit=1) for _ in range(4)))
    each = [dict(span.attributes or {}) for span in spans.get_finished_spans()]
    assert len({tuple(sorted((k, v) for k, v in one.items() if PREFIX in k)) for one in each}) == 1, (
        "none has another's"
    )
    await client.close()


def test_a_refused_query_tells_what_it_sent(spans: InMemorySpanExporter, service: Service) -> None:
    service.code = grpc.StatusCode.INVALID_ARGUMENT
    client = qdrant_client.QdrantClient(**service.options())
    with pytest.raises(grpc.RpcError):
        client.query_points("answers", query=[0.5] * 256, limit=1)
    assert told(spans) == {f"egress.{ZONE}.bytes": service.sent}
    client.close()
