"""A ``tollspan serve`` of its own process, and clients that know exactly what it acknowledged."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import grpc
from database import free_port
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from oracle import Account, Call, encode, encode_json

from tollspan.processor.journal.segment import End, Segment, segment_numbers

METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PATIENCE_S: Final = float(os.environ.get("TOLLSPAN_TEST_PATIENCE_S", "120"))
"""How long anything here is waited for before a scenario has failed; more where others use the machine too."""


@dataclass
class Line:
    """The service.

    Attributes:
        folder: for its journal, its log and its price book.
        store: URL.
        options: of ``tollspan serve``, beside addresses, store and book.
        python: code path in front of the installed one, for a service of another version.
        peak_mib: most resident memory that any of its processes had.
    """

    folder: Path
    store: str
    options: Sequence[str] = ()
    python: Path | None = None
    journal: Path | None = None
    grpc: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    http: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    sql: str = "off"
    process: subprocess.Popen[bytes] | None = None
    peak_mib: float = 0.0

    @property
    def book(self) -> Path:
        """Of its prices."""
        return self.folder / "prices.yaml"

    @property
    def log(self) -> Path:
        """What it said."""
        return self.folder / "serve.log"

    @property
    def journal_directory(self) -> Path:
        """Of its journal."""
        if self.embedded:
            return Path(self.store.removeprefix("chdb://")) / "journal"
        return self.journal or self.folder / "journal"

    @property
    def embedded(self) -> bool:
        """It runs the engine itself."""
        return self.store.startswith("chdb")

    def start(self) -> Line:
        """Start, and return when it takes spans."""
        command = [sys.executable, "-X", "faulthandler", "-m", "tollspan.processor.main", "serve"]
        command += ["--store", self.store, "--sql", self.sql]
        command += ["--prices", str(self.book), "--listen", self.grpc, "--http", self.http]
        if not self.embedded:
            command += ["--journal", str(self.journal_directory)]
        environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
        # The compiled decoder, however small the batches are.
        environment["TOLLSPAN_PIPELINE_COMPILE_BYTES"] = "0"
        if self.python is not None:
            environment["PYTHONPATH"] = os.pathsep.join([str(self.python), environment.get("PYTHONPATH", "")])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + PATIENCE_S
        while not (self.ready() and self._minds_sigterm()):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, f"not ready: {self.said()}"
            time.sleep(0.02)
        return self

    def ready(self) -> bool:
        """Whether it takes spans now."""
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def _minds_sigterm(self) -> bool:
        """Whether SIGTERM would make it drain; before that it would be gone at once."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = re.search(r"SigCgt:\s+(\w+)", status)
        return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

    def released(self) -> bool:
        """Whether its journal has forgotten everything, so that the next process would read nothing again."""
        cursor = json.loads((self.journal_directory / "cursor.json").read_text())
        newest = segment_numbers(self.journal_directory)[-1]
        opened = Segment.open(self.journal_directory, newest)
        assert opened is not None
        segment, _ = opened
        try:
            # Behind the end mark may stand what the file held before.
            return newest == cursor["segment"] and isinstance(segment.read(cursor["offset"], segment.end), End)
        finally:
            segment.close()

    def get(self, path: str) -> tuple[int, str]:
        """A page of its HTTP port."""
        connection = http.client.HTTPConnection(self.http, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Counters by Prometheus name, labels and all."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def memory(self) -> float:
        """Most resident memory so far, MiB."""
        assert self.process is not None
        try:
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        except FileNotFoundError:
            found = None
        self.peak_mib = max(self.peak_mib, int(found[1]) / 1024 if found else 0.0)
        return self.peak_mib

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.memory()
        self.process.kill()
        self.process.wait()

    def stop(self) -> dict[str, int]:
        """SIGTERM; the counters that it leaves.

        Raises:
            AssertionError: it did not end well.
        """
        assert self.process is not None
        self.memory()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            # What each of its threads does goes to its log.
            self.process.send_signal(signal.SIGABRT)
            self.process.wait(PATIENCE_S)
            raise AssertionError(f"it did not stop within {PATIENCE_S:g} s: {self.said(20_000)}") from None
        assert code == 0, f"it ended with {code}: {self.said()}"
        home = self.journal_directory.parent if self.embedded else self.journal_directory
        stats: dict[str, int] = json.loads((home / "stats.json").read_text())
        return stats

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self, characters: int = 3000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


class Reply(NamedTuple):
    """What a client was told.

    Attributes:
        code: '' for an acknowledgement, else gRPC's or HTTP's word for the refusal; ``lost`` without any answer.
        left_out: spans that an acknowledged request lost.
        again_s: seconds after which it is to be sent again; None where it says nothing of that.
        final: sending again will not help.
    """

    code: str = ""
    left_out: int = 0
    again_s: float | None = None
    final: bool = False


_FINAL: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
    }
)


class Clients:
    """Senders on several lanes at once, over gRPC and HTTP, protobuf and JSON, that send again until they are told OK.

    Args:
        line: where to.
        account: is told what was sent, acknowledged and refused.
        lanes: requests in flight.
        patience_s: how long one request is tried.
    """

    def __init__(self, line: Line, account: Account, lanes: int = 6, patience_s: float = PATIENCE_S) -> None:
        self.line, self.account, self.patience_s = line, account, patience_s
        self._pool = ThreadPoolExecutor(lanes)
        self._stop = threading.Event()
        self._own = threading.local()
        options = [
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 100),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),
        ]
        self._channel = grpc.insecure_channel(line.grpc, options=options)
        self._export = self._channel.unary_unary(METHOD)
        self._ways: tuple[Callable[[Sequence[Call]], Reply], ...] = (
            self.by_grpc, self.by_grpc, self.by_grpc, self.by_http, self.by_json
        )  # fmt: skip
        self._turn = 0
        self.times: list[float] = []
        """Seconds that each acknowledgement took, by gRPC."""

    def offer(self, batch: Sequence[Call]) -> Future[bool]:
        """Send a request from a lane of its own; whether it was acknowledged in the end."""
        self._turn += 1
        return self._pool.submit(self.deliver, batch, self._ways[self._turn % len(self._ways)])

    def all(self, batches: Iterable[Sequence[Call]]) -> None:
        """Send these and wait until every one is answered for good.

        Raises:
            AssertionError: one was not acknowledged.
        """
        flights = [self.offer(batch) for batch in batches]
        missed = sum(not flight.result() for flight in flights)
        assert not missed, f"{missed} requests were not acknowledged: {self.account.refusals}"

    def deliver(self, batch: Sequence[Call], way: Callable[[Sequence[Call]], Reply] | None = None) -> bool:
        """Send one request until it is acknowledged, refused for good, or patience ends."""
        way = way or self.by_grpc
        self.account.send(batch)
        deadline = time.monotonic() + self.patience_s
        while not self._stop.is_set():
            reply = way(batch)
            if not reply.code:
                self.account.ack(batch, reply.left_out)
                return True
            self.account.refuse(reply.code)
            if reply.final or time.monotonic() > deadline:
                return False
            self._stop.wait(min(reply.again_s or 0.05, 1.0))
        return False

    def by_grpc(self, batch: Sequence[Call], body: bytes | None = None) -> Reply:
        """One try over OTLP/gRPC."""
        began = time.monotonic()
        try:
            answer = self._export(encode(batch) if body is None else body, timeout=30)
        except grpc.RpcError as error:
            code = error.code()
            told = told_delay(error.trailing_metadata() or ())
            lost = code is grpc.StatusCode.UNAVAILABLE and told is None
            return Reply("lost" if lost else code.name, again_s=told, final=code in _FINAL)
        self.times.append(time.monotonic() - began)
        return Reply(left_out=ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)

    def by_http(self, batch: Sequence[Call]) -> Reply:
        """One try over OTLP/HTTP with protobuf, gzipped."""
        body = gzip.compress(encode(batch), 1)
        return self.post(body, {"content-type": "application/x-protobuf", "content-encoding": "gzip"})

    def by_json(self, batch: Sequence[Call]) -> Reply:
        """One try over OTLP/HTTP with JSON."""
        return self.post(json.dumps(encode_json(batch)).encode(), {"content-type": "application/json"})

    def post(self, body: bytes, headers: dict[str, str]) -> Reply:
        """One try of any body over OTLP/HTTP."""
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = http.client.HTTPConnection(self.line.http, timeout=30)
        try:
            connection.request("POST", "/v1/traces", body, headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return Reply("lost")
        if answer.status == 200:
            return Reply(left_out=_left_out(text, answer.headers.get("content-type", "")))
        again = answer.headers.get("retry-after")
        return Reply(
            f"HTTP {answer.status}",
            again_s=float(again) if again else None,
            final=answer.status not in (429, 502, 503, 504),
        )

    def close(self) -> None:
        """Give up on what is still being sent, and hang up."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        self._channel.close()


def _left_out(body: bytes, kind: str) -> int:
    if "json" in kind:
        return int(json.loads(body or b"{}").get("partialSuccess", {}).get("rejectedSpans", 0))
    return ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans


def told_delay(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    """Seconds of a RetryInfo in a call's trailing metadata, if there is one."""
    for key, value in metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.RetryInfo()
                if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                    return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None
