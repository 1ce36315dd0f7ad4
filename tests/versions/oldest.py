"""The clients' tests with the oldest version of everything that is supported: `make oldest`.

In: the files of pins beside this one, one for each environment, since not all that is oldest can be installed together.
Out: an environment for each below the folder that is given, made anew when its pins change, and a run of its tests;
at the end a line for each with what passed, failed and was skipped.

The pins are complete, so that nothing is resolved and a run is the same tomorrow. They are made from the first lines of
their file, and from pyproject.toml, by the lowest versions that these allow::

    uv pip compile --resolution lowest-direct --python-version 3.11 --extra processor [--extra embedded] \\
        <the lines that begin with "#: "> pyproject.toml

The oldest torch is not among them: its wheel for Linux on PyPI is 767 MB, and would load 2.5 GB of CUDA. It is run by
hand, 2.4 GB in all, last with torch 2.6.0, transformers 4.57.1 and Python 3.11::

    python -m venv E
    E/bin/pip install -e .[processor] openai onnx onnxruntime transformers==4.57.1 sympy==1.13.1 networkx jinja2 \\
        pytest pytest-timeout pytest-asyncio hypothesis
    E/bin/pip install --no-deps torch==2.6.0 nvidia-cuda-runtime-cu12==12.4.127 nvidia-cuda-cupti-cu12==12.4.127
    python tests/versions/cuda_stubs.py E/lib/python3.11/site-packages/torch/lib
    E/bin/python -m pytest tests/instrumentation/test_torch*.py tests/instrumentation/test_later_spans.py
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TESTS = Path("tests/instrumentation")


class Environment(NamedTuple):
    """What is installed together.

    Attributes:
        pins: file beside this one.
        tests: files of tests, as patterns.
        chosen: expression for pytest's ``-k``; "" for all.
    """

    pins: str
    tests: tuple[str, ...]
    chosen: str = ""


ENVIRONMENTS = {
    "clients": Environment(
        "oldest-clients.txt",
        (
            *("test_anthropic*.py", "test_bedrock*.py", "test_cohere*.py", "test_google_genai*.py"),
            *("test_groq_and_together.py", "test_huggingface.py", "test_mistral*.py", "test_openai*.py"),
            *("test_content_*.py", "test_fingerprint*.py", "test_providers.py", "test_truth_table.py"),
        ),
    ),
    # Older than the httpx that all the others want.
    "ollama": Environment(
        "oldest-ollama.txt",
        ("test_ollama.py", "test_mistral_and_other_clients.py", "test_content_clients.py", "test_providers.py"),
        "ollama",
    ),
    # Wants a newer openai than the oldest.
    "litellm": Environment("oldest-litellm.txt", ("test_litellm.py", "test_truth_table.py"), "litellm or by_hand"),
}

NEWEST_PYTHON = (3, 12)
"""Of the interpreters that the oldest versions have wheels for."""

SECONDS = 600
"""An environment's tests that take longer are stopped."""

COUNTS = re.compile(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s", re.MULTILINE)


def made(folder: Path, pins: Path) -> Path:
    """The interpreter of an environment with these pins and this source tree."""
    python = folder / "bin" / "python"
    stamp = folder / ".pins"
    digest = hashlib.sha256(pins.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--requirement", str(pins)], check=True)
    subprocess.run([*install, "--editable", str(ROOT)], check=True)
    stamp.write_text(digest)
    return python


def run(name: str, folder: Path) -> tuple[bool, str]:
    """Run an environment's tests. Returns whether all is well, and a line about it."""
    environment, began = ENVIRONMENTS[name], time.monotonic()
    python = made(folder / name, HERE / environment.pins)
    installed = time.monotonic()
    files = sorted({str(path.relative_to(ROOT)) for glob in environment.tests for path in (ROOT / TESTS).glob(glob)})
    command = [str(python), "-m", "pytest", "-q", "-p", "features", "-p", "no:cacheprovider", "--tb=short", *files]
    command += ["-k", environment.chosen] if environment.chosen else []
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env={**_environment(), "PYTHONPATH": str(HERE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return False, f"{name}: stopped after {SECONDS} s\n{late.stdout or ''}"
    counts = COUNTS.findall(ran.stdout)
    spent = f"{installed - began:.0f} s to install, {time.monotonic() - installed:.0f} s to run"
    line = f"{name}: {counts[-1] if counts else 'nothing ran'} ({spent})"
    print(ran.stdout if ran.returncode else _skips(ran.stdout), flush=True)
    return ran.returncode == 0, line


def _environment() -> dict[str, str]:
    """Ours, without what would lead the tests elsewhere."""
    leading = ("OTEL_", "TOLLSPAN_", "VIRTUAL_")
    return {name: value for name, value in os.environ.items() if not name.startswith(leading)}


def _skips(output: str) -> str:
    """What did not run, but for the clients that stand in another environment."""
    skipped = (line for line in output.splitlines() if line.startswith("SKIPPED"))
    return "\n".join(line for line in skipped if "could not import" not in line)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the environments are kept")
    parser.add_argument("names", nargs="*", help=f"which of them ({', '.join(ENVIRONMENTS)}); all when none is named")
    given = parser.parse_args()
    if sys.version_info[:2] > NEWEST_PYTHON:
        print("oldest versions: skipped, since not all of them have wheels for this Python")
        return 0
    outcomes = [run(name, given.folder.absolute()) for name in given.names or ENVIRONMENTS]
    print("\n".join(line for _, line in outcomes))
    return 0 if all(well for well, _ in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
