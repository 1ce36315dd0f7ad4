"""How long a sender waits for its ack at half of the load that the service can take, both on the same cores.

    python tests/benchmarks/latency.py [--seconds 30] [--spans 512] [--rate SPANS_PER_SECOND]

First the load that can be sustained: requests as fast as they are acknowledged until so many seconds are over, and the
time until the last of their spans is written. Then half of that rate, at fixed times whatever the answers do (an open
loop): a request's time counts from when it was to be sent, so that one slow ack is not hidden by what waits behind it.
Beside it, in the same minute, a server that throws the same requests away, which is what gRPC and the client take.
The goal is a p99 of 50 ms.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from load import requests  # noqa: E402  (a script's neighbour)

from processor import METHOD, cpu_seconds, free_port, wait_for  # noqa: E402

IN_FLIGHT = 512
"""Requests on the wire at the most; one that has to wait for this is late, and its waiting counts."""


@dataclass
class Paced:
    """What became of requests at a fixed rate.

    Attributes:
        seconds: from when each was to be sent until its answer.
        refused: how many were not acknowledged.
        wall: seconds that all took.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    wall: float = 0.0

    def __str__(self) -> str:
        p50, p99, most = np.percentile(self.seconds, [50, 99, 100]) * 1000
        return f"p50 {p50:6.1f} ms   p99 {p99:6.1f} ms   max {most:6.1f} ms   ({self.refused} refused)"


def paced(port: int, payloads: Iterator[bytes], per_second: float, seconds: float) -> Paced:
    """Send requests at fixed times.

    Args:
        port: of an OTLP/gRPC server on this machine.
        payloads: as many as are taken.
        per_second: requests.
        seconds: for how long.
    """
    done = Paced()
    room = threading.Semaphore(IN_FLIGHT)
    guard = threading.Lock()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)]) as channel:
        export = channel.unary_unary(METHOD)

        def answered(call: grpc.Future, due: float) -> None:
            took = time.perf_counter() - due
            with guard:
                if call.exception() is None:
                    done.seconds.append(took)
                else:
                    done.refused += 1
            room.release()

        began = time.perf_counter()
        for number in range(int(per_second * seconds)):
            due = began + number / per_second
            payload = next(payloads)
            pause = due - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            room.acquire()
            export.future(payload, timeout=60).add_done_callback(lambda call, due=due: answered(call, due))
        for _ in range(IN_FLIGHT):
            room.acquire()
        done.wall = time.perf_counter() - began
    return done


def hurried(port: int, payloads: Iterator[bytes], seconds: float, lanes: int = 4) -> int:
    """Requests that are acknowledged in so many seconds when each lane sends its next one at once."""
    end = time.perf_counter() + seconds
    guard = threading.Lock()
    taken = 0

    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)]) as channel:
        export = channel.unary_unary(METHOD)

        def lane() -> None:
            nonlocal taken
            while time.perf_counter() < end:
                with guard:
                    payload = next(payloads)
                try:
                    export(payload, timeout=60)
                except grpc.RpcError:
                    time.sleep(0.05)
                    continue
                with guard:
                    taken += 1

        with futures.ThreadPoolExecutor(lanes) as pool:
            for each in [pool.submit(lane) for _ in range(lanes)]:
                each.result()
    return taken


def endless(spans: int) -> Iterator[bytes]:
    """Requests with trace ids of their own, without end."""
    while True:
        yield from requests(64, spans)


@dataclass
class Served:
    """A running service under test.

    Attributes:
        process: itself.
        port: its OTLP/gRPC port.
        http: its OTLP/HTTP port, which also has the metrics; 0 for none.
    """

    process: subprocess.Popen[bytes]
    port: int
    http: int = 0

    def metric(self, name: str) -> float:
        """One value of its metrics, summed over labels; 0 where it is not there yet."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}(\{{|\s)", line))

    def resident_mib(self) -> float:
        """Resident memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def tollspan_and_sink() -> Iterator[Served]:
    """``tollspan serve`` with journal, prices and sampling on, into a sink that throws inserts away."""
    folder = Path(tempfile.mkdtemp(prefix="tollspan-bench-"))
    sink_port, port, http = free_port(), free_port(), free_port()
    sink = subprocess.Popen([sys.executable, str(HERE / "sink.py"), str(sink_port)])
    process: subprocess.Popen[bytes] | None = None
    try:
        wait_for(sink_port, sink)
        command = [sys.executable, "-m", "tollspan.processor.main", "serve", "--keep", "0.1", "--log-level", "warning"]
        command += ["--store", f"clickhouse://127.0.0.1:{sink_port}/bench", "--journal", str(folder / "journal")]
        command += ["--listen", f"127.0.0.1:{port}", "--http", f"127.0.0.1:{http}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for(http, process)
        served = Served(process, port, http)
        warm_up(served)
        yield served
        process.send_signal(signal.SIGTERM)
        process.wait(120)
    finally:
        for each in (process, sink):
            if each is not None and each.poll() is None:
                each.kill()
                each.wait()
        shutil.rmtree(folder, ignore_errors=True)


def warm_up(served: Served) -> None:
    """Send a little and wait until the service is at its full speed: the decoder is compiled on a thread of its own."""
    hurried(served.port, endless(512), 1.0)
    quiet = 0
    before = cpu_seconds(served.process.pid)
    deadline = time.monotonic() + 60
    while quiet < 3 and time.monotonic() < deadline:
        time.sleep(0.5)
        now = cpu_seconds(served.process.pid)
        quiet = quiet + 1 if now - before < 0.1 else 0
        before = now


def drained(served: Served, spans: float) -> float:
    """Wait until so many spans have been decoded and what is due is written; the seconds that it took."""
    began = time.perf_counter()
    while served.metric("tollspan_decoded_spans_total") < spans:
        time.sleep(0.05)
    return time.perf_counter() - began


@contextmanager
def thrown_away() -> Iterator[int]:
    """A gRPC server that answers at once; its port."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    class Any(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return handler

    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[Any()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def sustained(served: Served, spans: int, seconds: float, say: Callable[[str], None] = print) -> float:
    """Spans a second that are acknowledged, priced and written while senders go as fast as they can."""
    before = served.metric("tollspan_decoded_spans_total")
    began = time.perf_counter()
    taken = hurried(served.port, endless(spans), seconds) * spans
    acked = time.perf_counter() - began
    drained(served, before + taken)
    wall = time.perf_counter() - began
    say(f"as fast as it goes: {taken / acked:10,.0f} spans/s acknowledged, {taken / wall:10,.0f} spans/s written")
    return taken / wall


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0, help="of each part")
    parser.add_argument("--spans", type=int, default=512, help="in a request")
    parser.add_argument("--rate", type=float, default=0.0, help="spans a second; half of what is sustained by default")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores for the service, the sink and the client; requests of {args.spans} spans")
    with tollspan_and_sink() as served:
        rate = args.rate or sustained(served, args.spans, args.seconds / 2) / 2
        before = cpu_seconds(served.process.pid)
        ours = paced(served.port, endless(args.spans), rate / args.spans, args.seconds)
        busy = (cpu_seconds(served.process.pid) - before) / ours.wall
        print(f"at {rate:,.0f} spans/s    tollspan     {ours}   {100 * busy:.0f} % of a core")
    with thrown_away() as port:
        bare = paced(port, endless(args.spans), rate / args.spans, min(args.seconds, 15.0))
        print(f"at {rate:,.0f} spans/s    thrown away  {bare}")
    p99 = np.percentile(ours.seconds, 99) * 1000
    print(f"p99 {p99:.1f} ms, goal 50 ms: {'reached' if p99 <= 50 and not ours.refused else 'not reached'}")


if __name__ == "__main__":
    main()
