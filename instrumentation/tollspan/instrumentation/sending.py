"""Sends the spans of batch results at the pace of who takes them.

In: `Results`, each of which can make up to 50,000 spans at once. Out: the same spans, exported as they are made, so
that the exporter's queue does not overflow; it drops the oldest, which are the program's own. One thread does it, file
after file, and never the program's.

A slow collector is waited for, up to `PATIENCE_S` in all; what is then left is not made, and a warning tells how many
answers that is and how to have them told. The thread is a daemon: at exit it has `EXIT_S` more, in a hook of `atexit`
that is registered later than the provider's, as those of `exits` are.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from tollspan.instrumentation.guard import guard

FEW: Final = 256
"""Answers after which spans are exported: an eighth of the exporter's queue, as it comes."""
PATIENCE_S: Final = 60.0
"""Seconds that slow and failing exports may take in all, until the thread has nothing to do."""
EXIT_S: Final = 5.0
"""Seconds that the end of the program is put off at most."""
MOST_BYTES: Final = 256 << 20
"""Bytes of results that may wait for the thread."""
_SLOW_S: Final = 5.0
_PAUSE_S: Final = 1.0

_SEND: Final = guard("batches.send")
_FLUSH: Final = guard("batches.flush")
_log: Final = logging.getLogger(__name__)


class Results(Protocol):
    """Answers of a batch whose spans are to be made."""

    name: str
    """What is fetched to have them again."""
    size: int
    """Bytes that are held."""

    def steps(self) -> Iterator[None]:
        """Make the span of one answer a step."""

    def left(self) -> int:
        """Answers that no step has come to."""


class Sender:
    """The thread that makes spans of a library's results and has them exported. Safe in threads.

    Args:
        flush: has what was made exported, in so many milliseconds; whether that went well, None where nobody can say.
        again: how results are fetched again, with a place for the name.
    """

    def __init__(self, flush: Callable[[int], bool | None], again: str) -> None:
        self._flush = flush
        self._again = again
        self._reset()
        if hasattr(os, "register_at_fork"):
            # What waits is the parent's to send.
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        # One that the same thread can take twice: a stream that the garbage collector closes may be sent by that.
        self._lock = threading.RLock()
        self._waiting: deque[Results | None] = deque()
        self._bytes = 0
        self._current: Results | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._unflushed = 0
        self._patience = PATIENCE_S
        self._lost: dict[str, int] = {}

    def has_room(self, answers: int) -> bool:
        """Whether so many spans may be made at once, without a thread."""
        return self._unflushed + answers <= 4 * FEW and self._current is None

    def made(self, answers: int) -> None:
        """So many spans were made at once: have them exported."""
        with self._lock:
            self._unflushed += answers
            if None not in self._waiting:
                self._waiting.append(None)
            self._start()

    def send(self, results: Results) -> None:
        """Make the spans of ``results`` and have them exported."""
        with self._lock:
            if self._bytes + results.size > MOST_BYTES and self._waiting:
                self._lose(results, results.left())
                return
            self._bytes += results.size
            self._waiting.append(results)
            self._start()

    def join(self) -> None:
        """Wait until there is nothing to do."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._patience = PATIENCE_S
            self._stop.clear()
            thread = threading.Thread(target=self._run, name="tollspan-batch-results", daemon=True)
            # Last registered, first called: before the provider shuts down, whenever that was made.
            atexit.unregister(self.finish)
            atexit.register(self.finish)
            thread.start()  # raises where no more threads are to be had; the next results try again
            self._thread = thread

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self._stop.is_set():
                    self._thread = None
                    break
                self._current = results = self._waiting.popleft()
            with _SEND:
                if results is None:
                    self._flushed()
                else:
                    self._send(results)
            with self._lock:
                self._current = None
                self._bytes -= results.size if results is not None else 0
        if not self._stop.is_set():
            self._warn("they came faster than they could be sent")

    def _send(self, results: Results) -> None:
        since = 0
        # A step is taken only when there is patience left for its span.
        steps = results.steps()
        while not self._stop.is_set():
            if self._patience <= 0:
                self._lose(results, since + results.left())
                return
            try:
                next(steps)
            except StopIteration:
                if since and not self._flushed():
                    self._lose(results, since)
                return
            since += 1
            if since >= FEW and self._flushed():
                since = 0

    def _flushed(self) -> bool:
        """Have everything exported; tries until it is, or patience has run out."""
        while not self._stop.is_set():
            unflushed, began = self._unflushed, time.monotonic()
            done: bool | None = False
            with _FLUSH:
                done = self._flush(int(_SLOW_S * 1000))
            took = time.monotonic() - began
            if done is not False:
                with self._lock:
                    self._unflushed -= unflushed
                if took >= _SLOW_S:
                    self._patience -= took
                return True
            self._patience -= max(took, _PAUSE_S)
            if self._patience <= 0:
                return False
            self._stop.wait(_PAUSE_S)
        return False

    def finish(self) -> None:
        """The program ends: wait a little for what is being sent, then tell what is not."""
        thread = self._thread
        if thread is None:
            return
        deadline = time.monotonic() + EXIT_S
        # What is only to be exported the provider exports itself when it shuts down.
        while thread.is_alive() and self._busy() and (remaining := deadline - time.monotonic()) > 0:
            thread.join(min(remaining, 0.05))
        self._stop.set()
        with self._lock:
            for results in (self._current, *self._waiting):
                if results is not None:
                    self._lose(results, results.left())
            self._waiting.clear()
        self._warn("the program ended first")

    def _busy(self) -> bool:
        with self._lock:
            return self._current is not None or any(self._waiting)

    def _lose(self, results: Results, answers: int) -> None:
        if answers:
            self._lost[results.name] = self._lost.get(results.name, 0) + answers

    def _warn(self, why: str) -> None:
        lost, self._lost = self._lost, {}
        if lost:
            _log.warning(
                "tollspan: the usage of up to %d results of batches may not have been sent: %s. Fetch the results "
                "again, here or elsewhere, to send it: %s. Nothing is billed twice by that.",
                sum(lost.values()),
                why,
                ", ".join(self._again % repr(name) for name in lost),
            )
