"""Resident memory at a steady load, beside Rotel's at the same one.

    python tests/benchmarks/memory.py [--minutes 10] [--rate 50000] [--spans 512]

The load comes at fixed times whatever the answers do. Memory is that of the processor's process alone, read once a
second. It is flat when a straight line through the second half of the readings rises by less than 1 % of their mean a
minute. The goal is 1 GiB, flat. Rotel runs after it, with its ClickHouse exporter into the same sink, where it is
installed (the ``bench`` extra).
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from latency import Served, endless, paced, tollspan_and_sink  # noqa: E402  (a script's neighbour)

from processor import cpu_seconds, free_port, rotel_agent, wait_for  # noqa: E402


def watched(name: str, served: Served, rate: float, spans: int, minutes: float) -> tuple[float, float]:
    """Peak in MiB and rise in MiB a minute of a service under load."""
    readings: list[tuple[float, float]] = []
    over = threading.Event()
    began = time.perf_counter()

    def read() -> None:
        while not over.wait(1.0):
            readings.append(((time.perf_counter() - began) / 60, served.resident_mib()))

    reader = threading.Thread(target=read)
    reader.start()
    before = cpu_seconds(served.process.pid)
    try:
        done = paced(served.port, endless(spans), rate / spans, minutes * 60)
    finally:
        over.set()
        reader.join()
    at, mib = np.array(readings).T
    half = at >= at[-1] / 2
    rise = float(np.polyfit(at[half], mib[half], 1)[0]) if half.sum() > 2 else 0.0
    got = len(done.seconds) * spans / done.wall
    busy = (cpu_seconds(served.process.pid) - before) / done.wall
    print(f"{name:10} {got:10,.0f} spans/s   {100 * busy:4.0f} % of a core   {done}")
    marks = np.linspace(0, len(mib) - 1, min(len(mib), 11)).astype(int)
    print(f"{'':10} resident MiB over time: {' '.join(f'{value:.0f}' for value in mib[marks])}")
    flat = abs(rise) < mib[half].mean() / 100
    said = "flat" if flat else "not flat"
    print(f"{'':10} peak {mib.max():,.0f} MiB, {rise:+.1f} MiB a minute in the second half: {said}")
    return float(mib.max()), rise


@contextmanager
def rotel_and_sink(agent: str) -> Iterator[Served]:
    """Rotel with its ClickHouse exporter into the sink."""
    sink_port, port, other = free_port(), free_port(), free_port()
    sink = subprocess.Popen([sys.executable, str(HERE / "sink.py"), str(sink_port)])
    process: subprocess.Popen[bytes] | None = None
    try:
        wait_for(sink_port, sink)
        command = [agent, "start", "--otlp-grpc-endpoint", f"127.0.0.1:{port}"]
        command += ["--otlp-http-endpoint", f"127.0.0.1:{other}", "--exporter", "clickhouse"]
        command += ["--clickhouse-exporter-endpoint", f"http://127.0.0.1:{sink_port}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(port, process)
        yield Served(process, port)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        for each in (process, sink):
            if each is not None and each.poll() is None:
                each.kill()
                each.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=50_000, help="spans a second")
    parser.add_argument("--spans", type=int, default=512, help="in a request")
    args = parser.parse_args()
    with tollspan_and_sink() as served:
        ours, rise = watched("tollspan", served, args.rate, args.spans, args.minutes)
    agent = rotel_agent()
    if agent is None:
        print("rotel      not installed: pip install 'tollspan[bench]'")
    else:
        with rotel_and_sink(agent) as served:
            theirs, _ = watched("rotel", served, args.rate, args.spans, args.minutes)
        print(
            f"ratio tollspan : rotel = {ours / theirs:.2f} (peaks; tollspan remembers spans for 15 minutes, rotel none)"
        )
    print(f"peak {ours:,.0f} MiB, goal 1,024: {'reached' if ours <= 1024 else 'not reached'}; {rise:+.1f} MiB a minute")


if __name__ == "__main__":
    main()
