"""The prices in use: an engine on the user's book, renewed when the file changes.

In: the path of a YAML price book, looked at every few seconds and whenever `Prices.reload` asks. Out: a `PriceEngine`
for whoever follows. A good new version takes the place of the old one; a broken one changes nothing: the last good one
stays, and the error is logged once for each content of the file, counted, and told to whoever watches the health. Only
at the start is a broken book an error.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tollspan.pricing import BookError, PriceEngine, load_book, shipped_book
from tollspan.processor.counters import Counters

log = logging.getLogger(__name__)

CHECK_S: Final = 2.0
"""Seconds between two looks at the file. A change is read when it has stood for one look, so that a file which an
editor is still writing is not taken for a broken book."""

_Signature = tuple[int, int, int] | None


class Prices:
    """The engine in use, and the thread that renews it.

    Args:
        path: the user's price book, in front of the shipped one; None for the shipped one alone, which never changes.
        counters: gets ``prices.reloaded`` and ``prices.reload_failed``.
        check_s: seconds between two looks at the file.

    Raises:
        BookError: the book is broken now.
    """

    def __init__(self, path: Path | None, counters: Counters, check_s: float = CHECK_S) -> None:
        self.path, self.counters, self.check_s = path, counters, check_s
        self._guard = threading.Lock()
        self._followers: list[Callable[[PriceEngine], None]] = []
        self._watchers: list[Callable[[bool], None]] = []
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.error = ""
        """Why the file as it stands is not in use; empty while it is."""
        self._read = self._seen = self._signature()
        self._good = self._digest()
        self._bad: str | None = None
        self.engine = PriceEngine(shipped_book() if path is None else load_book(path))
        if path is not None:
            counters.add_all({"prices.reloaded": 0, "prices.reload_failed": 0})

    def follow(self, use: Callable[[PriceEngine], None]) -> None:
        """Call ``use`` with the engine, now and whenever another takes its place (on the watching thread)."""
        with self._guard:
            self._followers.append(use)
            use(self.engine)

    def watch_health(self, tell: Callable[[bool], None]) -> None:
        """Call ``tell`` with whether the file is in use as it stands, now and whenever that changes."""
        with self._guard:
            self._watchers.append(tell)
            tell(not self.error)

    def start(self) -> None:
        """Watch the file, if there is one."""
        if self.path is not None and self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="tollspan-prices", daemon=True)
            self._thread.start()

    def reload(self) -> None:
        """Have the file read now, changed or not; returns at once. May be called by a signal handler."""
        self._wake.set()

    def stop(self) -> None:
        """Watch no more; again is harmless."""
        self._stopping = True
        self._wake.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(5.0)

    def check(self, now: bool = False) -> None:
        """One look at the file.

        Args:
            now: read it even if it seems unchanged or still being written.
        """
        found = self._signature()
        settled = found == self._seen
        self._seen = found
        if now or (settled and found != self._read):
            self._read = found
            self._renew()

    def _watch(self) -> None:
        while not self._stopping:
            asked = self._wake.wait(self.check_s)
            self._wake.clear()
            if not self._stopping:
                self.check(now=asked)

    def _renew(self) -> None:
        assert self.path is not None
        content = self._digest()
        if content == self._good:
            self._bad = None  # the same mistake again is a new one
            if self.error:
                log.info("price book %s is as it was: book version %s stays", self.path, self.engine.book_version)
            self._tell("")
            return
        if content == self._bad:
            return
        try:
            engine = PriceEngine(load_book(self.path))
        except Exception as error:  # noqa: BLE001  (whatever is wrong with a file must not stop the pricing)
            self._bad = content
            self.counters.add("prices.reload_failed")
            why = str(error) if isinstance(error, BookError) else f"{type(error).__name__}: {error}"
            log.error("price book not reloaded, book version %s stays in use: %s", self.engine.book_version, why)
            self._tell(why)
            return
        self._good, self._bad = content, None
        log.info("prices reloaded: book version %s → %s", self.engine.book_version, engine.book_version)
        self.counters.add("prices.reloaded")
        with self._guard:
            self.engine = engine
            for use in self._followers:
                use(engine)
        self._tell("")

    def _tell(self, error: str) -> None:
        with self._guard:
            changed = bool(error) != bool(self.error)
            self.error = error
            for tell in self._watchers if changed else ():
                tell(not error)

    def _signature(self) -> _Signature:
        """What changes when the file does, as far as a look from outside shows; None when it is not there."""
        try:
            found = self.path.stat() if self.path is not None else None
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino) if found is not None else None

    def _digest(self) -> str:
        """SHA-256 of the content; empty when it cannot be read."""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest() if self.path is not None else ""
        except OSError:
            return ""
