"""Memory of a process that works on large columns all day: keep what was freed for a while instead of giving it back.

Batches come and go by tens of megabytes. By default each goes back to the kernel and the next is cleared page by page,
which took a tenth of the service's CPU time. For `tollspan serve` only: a user's process is not ours to tune.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> None:
    """Tune the allocators of this process; call it before NumPy and pyarrow are imported.

    What the environment sets already stays. Without glibc only Arrow's own pool is tuned.
    """
    # Milliseconds until Arrow's pool returns unused pages; read when the library is loaded.
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "10000")
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    # 32 MiB is the most that glibc takes for the first. One arena for all threads, because only the main one heeds the
    # second: others, the worker's too, are made of stretches of 64 MiB, and each that is free goes back to the kernel,
    # to be cleared anew for the next batch. Hardly anybody waits for it: threads keep small blocks for themselves.
    for name, parameter, value in (
        ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD, 32 << 20),
        ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD, 256 << 20),
        ("MALLOC_TOP_PAD_", _M_TOP_PAD, 16 << 20),
        ("MALLOC_ARENA_MAX", _M_ARENA_MAX, 1),
    ):
        if name not in os.environ:
            mallopt(parameter, value)


def spare_pandas() -> None:
    """Have pyarrow do without pandas; call it before anything of ours is imported that makes arrays.

    Where pandas is installed, pyarrow imports it with the first list that it makes an array of: .2 s of CPU and 55
    MiB for nothing, as only lists of pandas' own types would need it. Whoever imports pandas later gets it.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    missing = _Missing()
    sys.meta_path.insert(0, missing)
    try:
        pa.array([], pa.null())
    finally:
        sys.meta_path.remove(missing)


class _Missing:
    """Finds that there is no pandas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)


def settle_objects() -> None:
    """Take what lives as long as the process out of the garbage collector's sight; call it when all is started.

    Modules, price book and tables are hundreds of thousands of objects that each full collection, and the exit, would
    walk through to free nothing.
    """
    gc.collect()
    gc.freeze()


LARGE_BYTES: Final = 8 << 20
"""What is freed at once and is more than this is seldom: `give_back` is worth its few milliseconds."""
_GIVE_BACK_S: Final = 1.0
_waiting = threading.Lock()


def give_back() -> None:
    """Have what is free go back to the kernel within a second, at most once a second; returns at once.

    What threads freed stays behind what others still hold. After large requests on many threads, or decompressed bombs,
    that is as much again as the service holds, for good.
    """
    if _waiting.acquire(blocking=False):
        timer = threading.Timer(_GIVE_BACK_S, _trim)
        timer.name, timer.daemon = "tollspan-memory", True
        try:
            timer.start()
        except RuntimeError:  # not one thread is to be had
            _waiting.release()


def _trim() -> None:
    _waiting.release()
    with contextlib.suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
