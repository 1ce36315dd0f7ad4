"""Build the wheel, install it into an empty environment, and run its demo away from the source tree.

    python tests/end_to_end/check_wheel.py

Run by ``make wheel``. Prints one line; exits non-zero when the demo's ledger and tally differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tollspan-wheel-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        wheel = next(folder.glob("tollspan-*.whl"))
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[demo]"],
                       check=True)  # fmt: skip
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        demo = subprocess.run(
            [folder / "env" / "bin" / "tollspan", "demo", "--requests", "60", "--format", "json"],
            cwd=elsewhere, env=environment, stdout=subprocess.PIPE, check=False, timeout=600,
        )  # fmt: skip
        if demo.returncode:
            sys.exit(f"the wheel's demo failed with exit code {demo.returncode}")
        result = json.loads(demo.stdout)
        page = elsewhere / "report.html"
        report = subprocess.run(
            [folder / "env" / "bin" / "tollspan", "report", "--store", result["store"], "--output", str(page)],
            cwd=elsewhere, env=environment, check=False, timeout=300,
        )  # fmt: skip
        if report.returncode or "What inference cost" not in page.read_text(encoding="utf-8"):
            sys.exit("the wheel's report is not made")
    if result["total_cost"] != result["tally_cost"] or not result["inferences"]:
        sys.exit(f"the wheel's demo does not add up: {result['total_cost']} != {result['tally_cost']}")
    seconds = time.monotonic() - began
    print(
        f"wheel: installed away from the source tree, its demo priced {result['inferences']} inferences at "
        f"${result['total_cost']}, equal to its tally ({seconds:.0f} s)"
    )


if __name__ == "__main__":
    main()
