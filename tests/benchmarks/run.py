"""Every benchmark in turn: ``make bench``. Each prints a ratio against something measured in the same run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHMARKS = (
    "processor.py",
    "sampling.py",
    "latency.py",
    "memory.py --minutes 1",
    "receive_journal.py",
    "decode.py",
    "openai_overhead.py",
    "head_sampling.py",
    "torch_overhead.py",
    "ledger_bytes.py",
    "pricing.py",
)


def main() -> None:
    failed = []
    for name in BENCHMARKS:
        print(f"\n== {name}", flush=True)
        script, *arguments = name.split()
        if subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
