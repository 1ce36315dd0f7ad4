"""What receiving and journaling cost, beside a bare gRPC server that throws the same bytes away.

    python tests/benchmarks/receive_journal.py [--requests 1500] [--lanes 8]

The server is a process of its own; CPU time is its own, from ready to the last ack. ``bare`` is grpcio's floor: a
handler that returns at once. ``durable`` adds the journal, a sync before every ack, and a worker that takes and
releases batches. ``checked`` adds the check of the compiled decoder, as `tollspan serve` has it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parent))
from load import requests

from tollspan.processor.counters import Counters
from tollspan.processor.decode import Checked, check, fused
from tollspan.processor.intake import Intake
from tollspan.processor.journal import Journal
from tollspan.processor.receive import EXPORT, Receiver

SPANS = 512
VARIANTS = ("bare", "durable", "checked")


class Bare(Intake):
    """An intake that acknowledges without doing anything."""

    def take(self, *arguments: Any, **named: Any) -> Any:
        return None


def serve(variant: str, directory: str) -> None:
    """Serve until stdin ends; then print the journal's syncs."""
    journal, counters = Journal(directory), Counters()
    if variant == "checked":
        fused.prepare(wait=True)
    kind = Bare if variant == "bare" else Intake
    intake = kind(journal, check=check if variant == "checked" else lambda payload: Checked(None), counters=counters)
    receiver = Receiver(intake, address="127.0.0.1:0")

    def work() -> None:
        while True:
            batch = journal.next_batch(24 << 20, timeout=1.0, linger=0.25)
            if batch is not None:
                journal.release(batch)

    threading.Thread(target=work, daemon=True).start()
    print(receiver.start(), flush=True)
    sys.stdin.read()
    receiver.stop()
    print(journal.stats()["syncs"], flush=True)
    # The worker may be inside the journal; this process has nothing to keep.
    os._exit(0)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(variant: str, payloads: list[bytes], lanes: int) -> tuple[float, float, list[float], int]:
    """CPU seconds of the server, wall seconds, seconds from request to ack (sorted), and syncs."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "--serve", variant, "--directory", directory]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdin is not None
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        channels = [grpc.insecure_channel(address, options=options) for _ in range(lanes)]
        calls = [channel.unary_unary(EXPORT) for channel in channels]
        for call in calls:
            call(payloads[0], timeout=60, wait_for_ready=True)

        def lane(number: int) -> list[float]:
            took = []
            for payload in payloads[number::lanes]:
                begun = time.perf_counter()
                calls[number](payload, timeout=60)
                took.append(time.perf_counter() - begun)
            return took

        used, begun = cpu_seconds(server.pid), time.perf_counter()
        with ThreadPoolExecutor(lanes) as pool:
            took = sorted(seconds for each in pool.map(lane, range(lanes)) for seconds in each)
        wall, used = time.perf_counter() - begun, cpu_seconds(server.pid) - used
        for channel in channels:
            channel.close()
        server.stdin.close()
        syncs = int(server.stdout.read())
        server.wait(30)
    return used, wall, took, syncs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--lanes", type=int, default=8, help="clients at once")
    parser.add_argument("--serve", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.directory)
    payloads = requests(50, SPANS) * (given.requests // 50)
    spans = len(payloads) * SPANS
    print(f"{len(payloads)} requests of {SPANS} spans, {len(payloads[0]):,} bytes each, {given.lanes} clients")
    print(
        f"{'':10}{'requests/s':>11}{'spans/s':>11}{'CPU s/100K':>12}{'ratio':>7}{'p50 ms':>8}{'p99 ms':>8}{'syncs':>7}"
    )
    floor = 0.0
    for variant in VARIANTS:
        used, wall, took, syncs = measure(variant, payloads, given.lanes)
        floor = floor or used
        p50, p99 = (took[int(len(took) * share)] * 1e3 for share in (0.5, 0.99))
        print(
            f"{variant:8}{len(payloads) / wall:12,.0f}{spans / wall:12,.0f}{used / spans * 1e5:12.3f}"
            f"{used / floor:12.2f}{p50:12.1f}{p99:12.1f}{syncs:12}"
        )


if __name__ == "__main__":
    main()
