"""OTLP receivers for tests that answer what they are told to: real gRPC and HTTP servers, nothing of ours in them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pyarrow as pa
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Reply:
    """What a backend answers.

    Attributes:
        code: name of a gRPC status code, or an HTTP status.
        retry_s: RetryInfo, or Retry-After.
        body: response message.
    """

    code: str | int = "OK"
    message: str = ""
    retry_s: float | None = None
    body: bytes = b""


def rejecting(spans: int, message: str) -> Reply:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = spans
    response.partial_success.error_message = message
    return Reply(body=response.SerializeToString())


@dataclass
class Backend:
    """Remembers what came; ``decide`` answers each request, the default takes all.

    Attributes:
        seen: (signal, payload) of every attempt; taken: of those that were answered OK.
        heads: metadata or headers of every attempt.
    """

    decide: Callable[[bytes], Reply] = field(default=lambda payload: Reply())
    seen: list[tuple[str, bytes]] = field(default_factory=list)
    taken: list[tuple[str, bytes]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def answer(self, signal: str, payload: bytes, heads: dict[str, str]) -> Reply:
        reply = self.decide(payload)
        with self.changed:
            self.seen.append((signal, payload))
            self.heads.append(heads)
            if reply.code in ("OK", 200):
                self.taken.append((signal, payload))
            self.changed.notify_all()
        return reply

    def wait(self, ready: Callable[[Backend], bool], seconds: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: ready(self), seconds), (
                f"{len(self.seen)} seen, {len(self.taken)} taken"
            )

    def requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(payload) for signal, payload in self.taken if signal == "traces"]

    def spans(self) -> list[Span]:
        return [s for r in self.requests() for g in r.resource_spans for c in g.scope_spans for s in c.spans]

    def ids(self) -> list[int]:
        return [int.from_bytes(s.span_id, "big") for s in self.spans()]


def replies(*several: Reply) -> Callable[[bytes], Reply]:
    """Each once, then OK."""
    left = list(several)
    return lambda payload: left.pop(0) if left else Reply()


class GrpcBackend(Backend):
    """``with GrpcBackend() as b: b.url``."""

    def start(self, port: int = 0, credentials: grpc.ServerCredentials | None = None, **options: Any) -> GrpcBackend:
        self._server = grpc.server(
            ThreadPoolExecutor(4),
            options=[("grpc.so_reuseport", 0), *((f"grpc.{name}", value) for name, value in options.items())],
        )
        self._server.add_generic_rpc_handlers((_Handler(self),))
        where = f"127.0.0.1:{port}"
        add = self._server.add_insecure_port
        self.port = self._server.add_secure_port(where, credentials) if credentials else add(where)
        self.url = f"{'https' if credentials else 'http'}://localhost:{self.port}"
        self._server.start()
        return self

    def stop(self) -> None:
        self._server.stop(None).wait()

    def __enter__(self) -> GrpcBackend:
        return self if hasattr(self, "_server") else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def service(self, details: Any) -> Any:
        signal = {"Trace": "traces", "Logs": "logs", "Metri": "metrics"}[
            details.method.split(".")[-1].split("Serv")[0][:5]
        ]

        def export(payload: bytes, context: grpc.ServicerContext) -> bytes:
            reply = self._backend.answer(signal, payload, dict(context.invocation_metadata()))
            if reply.code == "OK":
                return reply.body
            if reply.retry_s is not None:
                detail = AnyMessage()
                info = error_details_pb2.RetryInfo(retry_delay=Duration(nanos=int(reply.retry_s * 1e9)))
                detail.Pack(info)
                status = status_pb2.Status(code=1, message=reply.message, details=[detail])
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
            context.abort(grpc.StatusCode[str(reply.code)], reply.message)

        return grpc.unary_unary_rpc_method_handler(export)


class HttpBackend(Backend):
    """``with HttpBackend() as b: b.url``."""

    def start(self, port: int = 0, context: Any = None) -> HttpBackend:
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                encoding = self.headers.get("Content-Encoding")
                if encoding == "gzip":
                    body = gzip.decompress(body)
                elif encoding == "zstd":
                    body = pa.input_stream(pa.BufferReader(body), compression="zstd").read()
                signal = self.path.rpartition("/")[2]
                reply = backend.answer(
                    signal, body, {k.lower(): v for k, v in self.headers.items()} | {"path": self.path}
                )
                code = 200 if reply.code == "OK" else int(reply.code)
                self.send_response(code)
                said = reply.body or reply.message.encode()
                self.send_header("Content-Type", "application/x-protobuf" if reply.body else "text/plain")
                self.send_header("Content-Length", str(len(said)))
                if reply.retry_s is not None:
                    self.send_header("Retry-After", str(reply.retry_s))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'http' if context is None else 'https'}://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> HttpBackend:
        return self if hasattr(self, "_server") else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def kinds() -> Sequence[tuple[type[Any], str]]:
    """Each kind of backend with the protocol that reaches it."""
    return [(GrpcBackend, "grpc"), (HttpBackend, "http/protobuf")]
