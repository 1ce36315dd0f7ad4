"""How old a process is when its first inference begins: once, of this process, and absent where it is not known."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import time
from itertools import count
from typing import Any

import pytest

from tollspan.instrumentation import guard, process_start
from tollspan.pricing import attributes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the age of a process is not known")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing had run in this process."""
    monkeypatch.setattr(process_start, "_asked", count())


def marked() -> dict[str, Any]:
    about: dict[str, Any] = {}
    process_start.mark_cold(about)
    return about


def test_the_age_is_that_of_the_process_and_not_of_python() -> None:
    program = "import time; time.sleep(0.3); from tollspan.instrumentation import process_start as p; print(p.age())"
    before = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0.29 <= float(done.stdout) <= time.monotonic() - before + 0.02


@pytest.mark.usefixtures("fresh")
def test_only_the_first_of_a_process_says_it() -> None:
    first, second = marked(), marked()
    assert first[attributes.COLD_START] is second[attributes.COLD_START] is True
    assert first[attributes.COLD_START_SECONDS] > 0
    assert attributes.COLD_START_SECONDS not in second


@pytest.mark.usefixtures("fresh")
def test_a_forked_child_has_a_first_inference_of_its_own_and_began_when_it_was_forked() -> None:
    mine = marked()[attributes.COLD_START_SECONDS]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, str(marked().get(attributes.COLD_START_SECONDS)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    said = os.read(read, 100).decode()
    os.close(read)
    assert 0 <= float(said) < mine


@pytest.mark.usefixtures("fresh")
def test_what_is_not_known_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(path: Any, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(path)

    before = guard.faults()
    with monkeypatch.context() as patched:
        patched.setattr(builtins, "open", none)
        about = marked()
    assert about == {attributes.COLD_START: True}
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert process_start.age() is None
    assert guard.faults() == before
