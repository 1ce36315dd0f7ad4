"""Calls that are still open when the interpreter exits: their spans are ended while there is somewhere to send them.

In: whoever holds a call open beyond its return (the reading of a stream, a raw response that waits to be parsed). Out:
its ``abandon()`` before the tracer provider shuts down, which drops every span that ends later. Where it stands: below
`streams` and the raw responses, which otherwise learn of their end from being dropped; at exit that is too late.

The hook is `atexit`'s, not threading's: `atexit` runs when the threads that the interpreter waits for have finished,
so that a stream that one of them is still reading comes to its own end. `atexit` runs the last registered first, so
each provider's first open call registers the hook again, later than the provider registered itself.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Any, Final, Protocol

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.guard import guard

_REMEMBER: Final = guard("exits.remember")
_ABANDON: Final = guard("exits.abandon")


class Open(Protocol):
    """Something that holds a call open. Has to allow weak references."""

    def abandon(self) -> None:
        """Nobody will go on: end the call, unless it has ended."""


_open: Final[set[weakref.ref[Any]]] = set()
"""What may hold a call open. Weak: being here must not keep an abandoned stream from being told by its going."""

_providers: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
"""The span processors, one a provider, whose shutdown the hook is known to come before."""


def remember(call: Call, holder: Open) -> None:
    """See to it that ``holder.abandon()`` is called before the process ends, if ``holder`` is still there then.

    Costs a microsecond a call, and nothing while a stream is read. Never raises.
    """
    with _REMEMBER:
        # The provider of a span is not public, nor is its processor; without it one registration has to do for all.
        provider = getattr(call.span, "_span_processor", remember)
        if provider not in _providers:
            _providers.add(provider)
            atexit.register(abandon_all)
        _open.add(weakref.ref(holder, _open.discard))


class _Thread(threading.local):
    dropping = False


_thread: Final = _Thread()


def drop(holder: Open) -> None:
    """`abandon` for destructors.

    The garbage collector runs them wherever it happens to be, also inside a lock of the SDK that the same thread holds
    and that cannot be taken twice. What takes such locks asks `dropping` and waits for a better time.
    """
    _thread.dropping = True
    try:
        holder.abandon()
    finally:
        _thread.dropping = False


def dropping() -> bool:
    """Whether this thread is ending a call from a destructor."""
    return _thread.dropping


def abandon_all() -> None:
    """End every call that is still held open. May be called any number of times."""
    # A copy: daemon threads go on opening and dropping streams meanwhile.
    for reference in tuple(_open):
        holder = reference()
        if holder is not None:
            with _ABANDON:
                holder.abandon()


if hasattr(os, "register_at_fork"):
    # The parent ends its own spans; were the child to do so too, its half-read copy would stand beside the parent's.
    os.register_at_fork(after_in_child=_open.clear)
