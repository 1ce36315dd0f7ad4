"""Freed memory is kept for the next batch, and given back after what is unusually large."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tollspan.processor import intake, memory

FILL = """
import re, threading
from tollspan.processor.memory import give_back, keep_freed_memory

keep_freed_memory()
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) // 1024

together, pins = threading.Barrier(6), []
def work():
    large = bytearray(b"x" * 1024) * (20 << 10)
    pins.append(bytearray(1 << 20))  # a heap's last is not given back
    together.wait()
    del large

threads = [threading.Thread(target=work) for _ in range(6)]
before = resident()
for thread in threads: thread.start()
for thread in threads: thread.join()
kept = resident()
for _ in range(100):
    give_back()
timers = [thread for thread in threading.enumerate() if thread.name == "tollspan-memory"]
assert len(timers) == 1, timers
timers[0].join()
print(before, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators decide for themselves")
def test_what_threads_freed_goes_back_to_the_kernel() -> None:
    done = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    before, kept, left = map(int, done.stdout.split())
    assert kept > before + 100, "or there is nothing to give back"
    assert left < before + 60


SPARE = """
import sys
from tollspan.processor.memory import spare_pandas

spare_pandas()
from tollspan.processor.service import Service
from tollspan.processor.store import open_store

with open_store(sys.argv[1]) as store:
    store.rows("SELECT 1 AS one")
assert "pandas" not in sys.modules, "that is what it is for"
import pandas, pyarrow
assert pyarrow.table({"a": [1]}).to_pandas().equals(pandas.DataFrame({"a": [1]})), "who wants it has it"
"""


def test_a_service_does_without_pandas_where_it_is_installed(store_url: str) -> None:
    pytest.importorskip("pandas")
    done = subprocess.run([sys.executable, "-c", SPARE, store_url], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_large_bodies_are_followed_by_giving_back_and_small_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(intake, "give_back", lambda: asked.append(1))
    bodies = intake.Bodies(64 << 20)
    for size in (1000, memory.LARGE_BYTES - 1, memory.LARGE_BYTES):
        bodies.hold(size)
        bodies.free(size)
    assert len(asked) == 1
