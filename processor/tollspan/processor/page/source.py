"""What the page reads from: a few read-only handles of a store, under limits, and what was read a moment ago.

In: a key, and a function that makes an answer from a handle. Out: an `Answer`, shared by all who ask the same at once
and by those who ask within `REUSE_S` seconds. A handle serves one question at a time and there are `AT_ONCE`, so that
the page takes only so much of a machine that spans need too; questions wait in a short queue, and behind that `Busy` is
raised. A question whose last asker has gone away is given up, and its query stopped where the engine lets us.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

import pyarrow as pa

from tollspan.processor.counters import Counters
from tollspan.processor.errors import StoreError, StoreUnavailable, TollspanError

log = logging.getLogger(__name__)

AT_ONCE: Final = 2
"""Questions that are asked of the store at once."""
QUEUE: Final = 24
"""Questions that wait; one more is refused."""
REUSE_S: Final = 5.0
"""Seconds for which an answer is given again."""
KEPT: Final = 64
"""Answers that are remembered."""
LONGEST_S: Final = 20
"""Seconds that one query may take."""

LIMITS: Final[Mapping[str, str]] = {
    "max_execution_time": str(LONGEST_S),
    # Where it is over, and not where the engine thinks that it will be.
    "timeout_before_checking_execution_speed": "0",
    "max_memory_usage": str(2 * 2**30),
    "max_result_bytes": str(64 * 2**20),
    "result_overflow_mode": "throw",
    "max_threads": str(min(os.cpu_count() or 1, 4)),
    # Where the process may change it at all: threads that price spans come first.
    "os_threads_nice_value_query": "10",
    # A month is whole in its partition, so FINAL need not look for a row's other versions in other months.
    "do_not_merge_across_partitions_select_final": "1",
}
"""Settings of every handle, where the account may set them."""


class Handle(Protocol):
    """A `tollspan.processor.store.Reader`."""

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Rows of a SELECT as Arrow."""

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a SELECT."""

    def close(self) -> None:
        """Free it."""


Make = Callable[["Checked"], dict[str, Any]]


class Busy(TollspanError):
    """More is asked at once than the page answers."""


class GivenUp(TollspanError):
    """Nobody waits for this answer any more."""


class Answer(NamedTuple):
    """What was made, when, and how long it took in milliseconds."""

    content: dict[str, Any]
    at: datetime
    took_ms: int


class Question:
    """Something that is being asked, by one or several.

    Attributes:
        future: resolves to an `Answer`.
        waiting: how many wait for it.
    """

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.future: Future[Answer] = Future()
        self.waiting = 1
        self._lock = threading.Lock()
        self._tag = ""
        self._given_up = False

    def hold(self, tag: str) -> None:
        """A handle of that tag works for this from now on ('' for none any more).

        Raises:
            GivenUp: nobody waits for it.
        """
        with self._lock:
            self._tag = tag
            if tag and self._given_up:
                raise GivenUp("Nobody waits for this answer any more.")

    def check(self) -> None:
        """Raises `GivenUp` when nobody waits for it."""
        if self._given_up:
            raise GivenUp("Nobody waits for this answer any more.")

    def give_up(self, kill: Callable[[str], None] | None) -> None:
        """Ask nothing more, and stop what runs. The handle is ours while the lock is, so no other query is hit."""
        with self._lock:
            self._given_up = True
            if self._tag and kill is not None:
                kill(self._tag)


class Checked:
    """A handle that works for one question; asks nothing more once nobody waits for the answer."""

    def __init__(self, handle: Handle, question: Question) -> None:
        self._handle, self._question = handle, question

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> pa.Table:
        """Rows of a SELECT as Arrow; see `Reader.query`."""
        self._question.check()
        return self._handle.query(sql, parameters)

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a SELECT; see `Reader.rows`."""
        self._question.check()
        return self._handle.rows(sql, parameters)


class Source:
    """Answers questions.

    Args:
        open_handle: opens a read-only handle with settings of its own.
        kill: stops what runs under a tag (the setting ``log_comment``); None where that cannot be done.
        counters: gets ``page.*``.
        clock: seconds.
    """

    def __init__(
        self,
        open_handle: Callable[[Mapping[str, str]], Handle],
        kill: Callable[[str], None] | None = None,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open, self._kill, self._clock = open_handle, kill, clock
        self.counters = counters or Counters()
        self.counters.add_all({f"page.{what}": 0 for what in ("questions", "reused", "refused", "given_up", "failed")})
        self._lock = threading.Lock()
        self._asked: dict[Hashable, Question] = {}
        self._known: dict[Hashable, tuple[float, Answer]] = {}
        self._idle: list[tuple[str, Handle]] = []
        self._tags = itertools.count(1)
        self._stopped = False
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tollspan-page")

    def ask(self, key: Hashable, make: Make, reuse_s: float = REUSE_S) -> Question | Answer:
        """Ask: what is known, what is being asked already, or something new. Whoever gets a `Question` has to `leave`.

        Raises:
            Busy: too much is being asked.
        """
        now = self._clock()
        with self._lock:
            found = self._known.get(key)
            if found is not None and now - found[0] < reuse_s:
                self.counters.add("page.reused")
                return found[1]
            running = self._asked.get(key)
            if running is not None:
                running.waiting += 1
                self.counters.add("page.reused")
                return running
            if self._stopped:
                raise StoreUnavailable("The service is shutting down.", "Try again when it is up again.")
            if len(self._asked) >= AT_ONCE + QUEUE:
                self.counters.add("page.refused")
                raise Busy(
                    f"{len(self._asked)} questions are being answered; this one is not taken.",
                    "Try again in a moment, with a narrower window if they are slow.",
                )
            question = self._asked[key] = Question(key)
        self.counters.add("page.questions")
        self._pool.submit(self._work, question, make)
        return question

    def leave(self, question: Question) -> None:
        """Wait for it no more; the last one to leave ends it."""
        with self._lock:
            question.waiting -= 1
            if question.waiting or question.future.done():
                return
            if self._asked.get(question.key) is question:
                del self._asked[question.key]
        self.counters.add("page.given_up")
        question.give_up(self._kill)

    def stop(self, patience_s: float = 3.0) -> None:
        """Stop what runs, and close the handles; again is harmless."""
        with self._lock:
            self._stopped = True
            running = list(self._asked.values())
        for each in running:
            each.give_up(self._kill)
        until = time.monotonic() + patience_s
        for each in running:
            # What cannot be stopped ends by its time limit, on a handle that nobody else has.
            _wait(each.future, until - time.monotonic())
        self._pool.shutdown(wait=False)
        with self._lock:
            idle, self._idle = self._idle, []
        for _, handle in idle:
            handle.close()

    def _work(self, question: Question, make: Make) -> None:
        began = time.perf_counter()
        tag, handle = "", None
        try:
            question.check()
            tag, handle = self._take()
            question.hold(tag)
            try:
                content = make(Checked(handle, question))
            finally:
                question.hold("")
            answer = Answer(content, datetime.now(UTC), round(1000 * (time.perf_counter() - began)))
        except BaseException as error:  # noqa: BLE001  (whoever waits is told)
            if not isinstance(error, GivenUp):
                self.counters.add("page.failed")
            if isinstance(error, StoreError) and handle is not None and not isinstance(error, GivenUp):
                # It may be what is broken; another is opened when one is needed.
                handle.close()
                handle = None
            self._done(question, tag, handle)
            question.future.set_exception(error)
        else:
            self._done(question, tag, handle, answer)
            question.future.set_result(answer)

    def _take(self) -> tuple[str, Handle]:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        tag = f"tollspan-page-{os.getpid()}-{next(self._tags)}"
        return tag, self._open({**LIMITS, "log_comment": tag})

    def _done(self, question: Question, tag: str, handle: Handle | None, answer: Answer | None = None) -> None:
        """Put the handle back and remember the answer."""
        with self._lock:
            if self._asked.get(question.key) is question:
                del self._asked[question.key]
            if handle is not None and not self._stopped:
                self._idle.append((tag, handle))
                handle = None
            if answer is not None:
                self._known.pop(question.key, None)
                self._known[question.key] = (self._clock(), answer)
                while len(self._known) > KEPT:
                    del self._known[next(iter(self._known))]
        if handle is not None:
            handle.close()


def _wait(future: Future[Answer], seconds: float) -> None:
    try:
        future.exception(max(0.0, seconds))
    except TimeoutError:
        log.warning("a query of the page goes on; it ends by its time limit")
