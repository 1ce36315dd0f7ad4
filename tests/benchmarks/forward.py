"""What sending kept spans on costs, in microseconds of CPU a received span, with a tenth of the traces kept.

    python tests/benchmarks/forward.py [--spans 400000] [--rounds 3]

Measured is everything that forwarding adds to the processor's process: costs written as attributes, encoding, the spool
with its fsync, compression, and the client. (Kept spans are read for the store's rows anyway.) The endpoint is a bare
server in a process of its own that throws requests away. Beside it stands what decoding the same spans costs.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tollspan.processor.memory import keep_freed_memory

keep_freed_memory()  # as the service does, before what it is for

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402

from tollspan.pricing import PriceEngine, shipped_book  # noqa: E402
from tollspan.processor.charge import Charged, charge  # noqa: E402
from tollspan.processor.counters import Counters  # noqa: E402
from tollspan.processor.decode import Decoded, decode, fused  # noqa: E402
from tollspan.processor.forward.forwarder import Forwarder  # noqa: E402
from tollspan.processor.forward.settings import Endpoint  # noqa: E402
from tollspan.processor.normalize import normalize  # noqa: E402
from tollspan.processor.sample import DROPPED, PROBABILITY, Decision, Fates  # noqa: E402
from tollspan.processor.summarize import Held, kept_of  # noqa: E402

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from load import SPANS_PER_TRACE, requests  # noqa: E402  (a script's neighbour)

SINK = """
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import grpc

class Grpc(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda payload, context: b"")

class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

server = grpc.server(ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Grpc(),))
server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
server.start()
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Http).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def decision_of(forwarder: Forwarder, decoded: Decoded, charged: Charged, kept: npt.NDArray[np.bool_]) -> Decision:
    count = len(decoded)
    costs = forwarder.costs(charged.ledger, charged.rows, count)
    fates = Fates.alike(count // SPANS_PER_TRACE, PROBABILITY, 9 << 52)
    fates.reason[~kept[::SPANS_PER_TRACE]] = DROPPED
    return Decision(
        Held(decoded.waiting(), None, None, costs),
        np.arange(count),
        np.arange(count) // SPANS_PER_TRACE,
        fates,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spans", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    fused.prepare(wait=True)
    payloads = requests(args.spans // 512)
    batches = [payloads[start : start + 48] for start in range(0, len(payloads), 48)]
    engine = PriceEngine(shipped_book())
    rng = np.random.default_rng(1)
    rounds = []
    began = time.process_time()
    for batch in batches:
        decode(batch)
    decoding = time.process_time() - began
    for batch in batches:
        decoded = decode(batch)
        normalized = normalize(decoded, received_ns=time.time_ns())
        charged = charge(normalized, np.zeros(len(decoded), np.bool_), engine)
        kept = np.repeat(rng.random(len(decoded) // SPANS_PER_TRACE) < 0.1, SPANS_PER_TRACE)
        rounds.append((decoded, charged, kept))
    received, kept_spans = len(payloads) * 512, sum(int(kept.sum()) for *_, kept in rounds)
    print(f"{received:,} spans received, {kept_spans:,} kept; decode alone: {decoding / received * 1e6:.2f} µs a span")
    ports = [free_port(), free_port()]
    sink = subprocess.Popen([sys.executable, "-c", SINK, *map(str, ports)])
    folder = Path(tempfile.mkdtemp(prefix="tollspan-bench-"))
    try:
        for port in ports:
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
        for protocol, port, compression in (
            ("grpc", ports[0], "none"),
            ("grpc", ports[0], "gzip"),
            ("http/protobuf", ports[1], "none"),
            ("http/protobuf", ports[1], "gzip"),
            ("http/protobuf", ports[1], "zstd"),
        ):
            best, taking = 1e9, 1e9
            for number in range(args.rounds):
                endpoint = Endpoint(f"http://127.0.0.1:{port}", protocol=protocol, compression=compression)  # type: ignore[arg-type]
                counters = Counters()
                forwarder = Forwarder([endpoint], folder / f"{protocol[:4]}{compression}{number}", counters)
                forwarder.start()
                chosen = [list(kept_of([decision_of(forwarder, *each)])) for each in rounds]
                began, mine = time.process_time(), time.thread_time()
                for some in chosen:
                    forwarder.keep(some).wait()
                taking = min(taking, time.thread_time() - mine)
                while counters.get("forward.spans") < kept_spans:
                    time.sleep(0.005)
                best = min(best, time.process_time() - began)
                forwarder.stop()
            print(
                f"{protocol:14} {compression:5} {best / received * 1e6:6.2f} µs a received span"
                f"   ({taking / received * 1e6:.2f} of it in the pipeline's thread)"
            )
    finally:
        sink.terminate()
        sink.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
