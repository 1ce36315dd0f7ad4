"""What our plugin adds to the start of a program under ``opentelemetry-instrument``.

    python tests/benchmarks/import_cost.py [--rounds 15] [--json]

Starts an empty program under the launcher again and again: with all of our entry points switched off by name, with them
on, and with one client imported either way. The variants take turns, so that the machine's moods fall on all of them
alike; figures are the best of the rounds, wall and CPU time in milliseconds, because other work on the machine only
ever adds.

Not a test: prints figures, and exits with 1 when the plugin adds more than 50 ms of CPU to an empty program.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

BUDGET_MS = 50.0
LAUNCHER = Path(sys.executable).with_name("opentelemetry-instrument")
OURS = ",".join(
    entry.name for entry in entry_points(group="opentelemetry_instrumentor") if entry.name.startswith("tollspan_")
)
PEERS = ",".join(
    entry.name for entry in entry_points(group="opentelemetry_instrumentor") if not entry.name.startswith("tollspan_")
)
PROGRAMS = {"empty program": "pass", "program with openai": "import openai; openai.OpenAI(api_key='none').chat"}


def started(program: str, with_ours: bool) -> tuple[float, float]:
    """Wall and CPU milliseconds of one run."""
    disabled = PEERS if with_ours else f"{PEERS},{OURS}"
    environment = {
        **os.environ,
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled,
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(LAUNCHER), sys.executable, "-c", program], check=True, env=environment, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall * 1000, cpu * 1000


def measure(rounds: int) -> dict[str, dict[str, float]]:
    figures = {}
    for name, program in PROGRAMS.items():
        for with_ours in (False, True):
            started(program, with_ours)  # caches of compiled modules
        runs = [(started(program, False), started(program, True)) for _ in range(rounds)]
        alone = [min(without[n] for without, _ in runs) for n in (0, 1)]
        ours = [min(ours[n] for _, ours in runs) for n in (0, 1)]
        figures[name] = {
            "launcher alone, wall": alone[0],
            "launcher alone, CPU": alone[1],
            "added, wall": ours[0] - alone[0],
            "added, CPU": ours[1] - alone[1],
        }
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    options = parser.parse_args()
    figures = measure(options.rounds)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, each in figures.items():
            print(name)
            for figure, value in each.items():
                print(f"  {figure:24}{value:8.1f} ms")
    return 0 if figures["empty program"]["added, CPU"] <= BUDGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
