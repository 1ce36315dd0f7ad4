"""What a forked child does about its parent's embedded engine: nothing at all, its end included.

The engine's threads do not live in a child, and its destructors, which the C library runs when a process exits, wait
for them for ever: every child that ended as it should (a gunicorn worker, say) would hang. So a child of a process
that has opened the engine leaves by ``_exit``, as multiprocessing's children do anyway: behind the interpreter's own
end and with its exit status, but without the C exit handlers that were registered before the fork.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

_state: Final = {"opened": False, "parent's": False}
_handlers: Final[list[Any]] = []
"""The C library's ``on_exit``, and what is given to it. Looked up in the parent, where it is safe to load things."""


def opened() -> None:
    """Take note that this process opens the engine; before it does."""
    if _state["opened"]:
        return
    _state["opened"] = True
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        # Others than glibc lack it; of those systems the engine is built for macOS alone, where programs spawn.
        _handlers.extend((libc.on_exit, libc._exit, libc.fcloseall))
    os.register_at_fork(after_in_child=_leave)


def inherited() -> bool:
    """Whether this process was forked from one that had opened the engine, and so can never open it itself."""
    return _state["parent's"]


def _leave() -> None:
    if _state["parent's"]:
        return  # a grandchild has its parent's exit handlers
    _state["parent's"] = True
    if _handlers:
        on_exit, *last_first = _handlers
        # The last that is registered runs first: flush C's streams, then leave, with the status that both are given.
        for handler in last_first:
            on_exit(handler, None)
