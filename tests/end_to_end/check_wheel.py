"""Build the wheel, install it into an empty environment, and run its demo away from the source tree.

    python tests/end_to_end/check_wheel.py

Run by ``make wheel``. Prints one line; exits non-zero when the demo's ledger and tally differ.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from decimal import Decimal
from pathlib import Path
from typing import Any

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
        # Of what is installed little is imported, so only that is compiled.
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        subprocess.run([*install, f"{wheel}[demo]"], check=True)
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
        if wrong := look(folder / "env" / "bin" / "tollspan", result, elsewhere, environment):
            sys.exit(f"the wheel's page: {wrong}")
    if result["total_cost"] != result["tally_cost"] or not result["inferences"]:
        sys.exit(f"the wheel's demo does not add up: {result['total_cost']} != {result['tally_cost']}")
    seconds = time.monotonic() - began
    print(
        f"wheel: installed away from the source tree, its demo priced {result['inferences']} inferences at "
        f"${result['total_cost']}, equal to its tally ({seconds:.0f} s)"
    )


def look(command: Path, result: dict[str, Any], folder: Path, environment: dict[str, str]) -> str:
    """Open the installed page over the demo's store: its files are there, and its headline is the demo's total."""
    serving = subprocess.Popen(
        [command, "page", "--store", result["store"], "--listen", "127.0.0.1:0"],
        cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert serving.stderr is not None
        url = serving.stderr.readline().split()[-1]
        shell = fetched(url)
        for name in re.findall(r'(?:href|src)="([^"]+)"', shell):
            if not fetched(url + name):
                return f"{name} is empty"
        told = json.loads(fetched(f"{url}api/executive?since=all"))["spend"]["cost"]
        return "" if Decimal(told) == Decimal(result["total_cost"]) else f"{told} != {result['total_cost']}"
    finally:
        serving.terminate()
        serving.wait(60)


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return str(answer.read().decode())


if __name__ == "__main__":
    main()
