"""Spans per CPU-second from OTLP/gRPC to rows written, beside Rotel with its ClickHouse exporter into the same sink.

    python tests/benchmarks/processor.py [--spans 1000000] [--rounds 3]

The sink answers ClickHouse's HTTP handshake and throws inserts away, in a process of its own. CPU time is that of the
processor's process alone (getrusage of the child), from the end of a warm-up to exit after a drain: the warm-up (same
load and half as much again, not counted) is what a service does once, compiling, and touching memory and files that it
then uses again. Tollspan journals with fsync, prices, assembles and samples (keep 0.1); Rotel does none of these.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from load import requests  # noqa: E402  (a script's neighbour)

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with {process.returncode}")
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def most_resident(pid: int) -> int:
    """Bytes; 0 of a process that is gone. (getrusage tells those of this process where they were more at the fork.)"""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def send(port: int, payloads: list[bytes], lanes: int = 4) -> float:
    """Wall seconds to have every payload acknowledged."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", -1)])
    export = channel.unary_unary(METHOD)

    def one(payload: bytes) -> None:
        while True:
            try:
                export(payload, timeout=60)
                return
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
                    raise
                time.sleep(0.1)

    began = time.monotonic()
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(one, payloads))
    channel.close()
    return time.monotonic() - began


def measure(command: list[str], port: int, spans: int, warm: list[bytes], settle: float) -> tuple[float, float, int]:
    """(CPU seconds of the process for so many spans, wall seconds until acknowledged, most resident bytes)."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        send(port, warm[:4])
        time.sleep(5.0)  # the decoder is read from its cache, or compiled
        send(port, warm[4:])
        time.sleep(settle + 7.0)  # what was sampled is written
        # Spans of now: what ended before the process began could have come before, and is written down as late.
        payloads = requests(spans // 512)
        before = cpu_seconds(process.pid)
        wall = send(port, payloads)
        time.sleep(settle)
        process.send_signal(signal.SIGTERM)
        resident = 0
        while True:
            resident = most_resident(process.pid) or resident
            ended, _, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                return usage.ru_utime + usage.ru_stime - before, wall, resident
            time.sleep(0.01)
    finally:
        process.kill()


def tell(name: str, spans: int, cpu: float, wall: float, resident: int) -> None:
    print(
        f"{name:9s} {spans / cpu:12,.0f} spans per CPU-second   ({cpu / spans * 1e6:.2f} us a span; "
        f"{spans / wall:,.0f} per second acknowledged; {resident / 2**20:,.0f} MiB at the most)"
    )


def rotel_agent() -> str | None:
    """The agent's program, which the Python package carries as a file."""
    found = importlib.util.find_spec("rotel")
    if found is None or found.origin is None:
        return None
    return str(Path(found.origin).parent / "rotel-agent")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--spans", type=int, default=1_000_000)
    parser.add_argument("--warm-up", type=int, help="spans sent before; half as many again by default")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    before = args.spans * 3 // 2 if args.warm_up is None else args.warm_up
    spans, warm = args.spans // 512 * 512, requests(before // 512 + 4)
    print(f"{spans:,} spans in requests of 512, {sum(map(len, warm)) / len(warm) / 512:.0f} bytes a span")
    folder = Path(tempfile.mkdtemp(prefix="tollspan-bench-"))
    sink_port = free_port()
    sink = subprocess.Popen([sys.executable, str(HERE / "sink.py"), str(sink_port)])
    figures: dict[str, list[float]] = {"tollspan": [], "rotel": []}
    try:
        wait_for(sink_port, sink)
        for number in range(args.rounds):
            port = free_port()
            journal = folder / f"journal{number}"
            ours = [sys.executable, "-m", "tollspan.processor.main", "serve", "--keep", "0.1", "--log-level", "warning"]
            ours += ["--store", f"clickhouse://127.0.0.1:{sink_port}/bench", "--journal", str(journal)]
            ours += ["--listen", f"127.0.0.1:{port}", "--http", "off"]
            cpu, wall, resident = measure(ours, port, spans, warm, settle=1.0)
            stats = json.loads((journal / "stats.json").read_text())
            everything = spans + len(warm) * 512
            assert stats["spans_acked"] == everything, stats
            assert stats["ledger.rows"] == everything * 6 // 8, stats
            figures["tollspan"].append(spans / cpu)
            tell("tollspan", spans, cpu, wall, resident)
            rotel = rotel_agent()
            if rotel is None:
                print("rotel     not installed: pip install 'tollspan[bench]'")
                continue
            port, other = free_port(), free_port()
            theirs = [rotel, "start", "--otlp-grpc-endpoint", f"127.0.0.1:{port}"]
            theirs += ["--otlp-http-endpoint", f"127.0.0.1:{other}", "--exporter", "clickhouse"]
            theirs += ["--clickhouse-exporter-endpoint", f"http://127.0.0.1:{sink_port}"]
            cpu, wall, resident = measure(theirs, port, spans, warm, settle=3.0)
            figures["rotel"].append(spans / cpu)
            tell("rotel", spans, cpu, wall, resident)
    finally:
        sink.terminate()
        sink.wait()
        shutil.rmtree(folder, ignore_errors=True)
    if figures["rotel"]:
        print(f"ratio tollspan : rotel = {max(figures['tollspan']) / max(figures['rotel']):.2f}")


if __name__ == "__main__":
    main()
