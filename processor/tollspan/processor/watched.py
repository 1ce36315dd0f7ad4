"""A file that is in use and may change: a good new version takes the place of the old one, a broken one does nothing.

In: a path, looked at every few seconds and whenever `Watched.reload` asks. Out: what `Watched.load` makes of it, for
whoever follows. Of a broken version the last good one stays, and the error is logged once for each content of the file,
counted, and told to whoever watches the health. Only at the start is a broken file an error.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

from tollspan.pricing import BookError
from tollspan.processor.counters import Counters
from tollspan.processor.errors import TollspanError

log = logging.getLogger(__name__)

CHECK_S: Final = 2.0
"""Seconds between two looks at the file. A change is read when it has stood for one look, so that a file which an
editor is still writing is not taken for a broken one."""

T = TypeVar("T")
_Signature = tuple[int, int, int] | None


class Watched(Generic[T]):
    """What a file says, and the thread that renews it.

    Args:
        path: the file; None for none, and then nothing ever changes.
        counters: gets ``<area>.reloaded`` and ``<area>.reload_failed``.
        check_s: seconds between two looks at the file.

    Raises:
        What `load` raises: the file is broken now.
    """

    area: str
    """What counters and the thread are called by."""
    what: str
    """What the file is, in messages."""

    def __init__(self, path: Path | None, counters: Counters, check_s: float = CHECK_S) -> None:
        self.path, self.counters, self.check_s = path, counters, check_s
        self._guard = threading.Lock()
        self._followers: list[Callable[[T], None]] = []
        self._watchers: list[Callable[[bool], None]] = []
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.error = ""
        """Why the file as it stands is not in use; empty while it is."""
        self._read = self._seen = self._signature()
        self._good = self._digest()
        self._bad: str | None = None
        self.current: T = self.load()
        """What is in use."""
        if path is not None:
            counters.add_all({f"{self.area}.reloaded": 0, f"{self.area}.reload_failed": 0})

    def load(self) -> T:
        """Read the file, or make what holds without one."""
        raise NotImplementedError

    def version(self, of: T) -> str:
        """What a version is called in the log."""
        raise NotImplementedError

    def follow(self, use: Callable[[T], None]) -> None:
        """Call ``use`` with what is in use, now and whenever another takes its place (on the watching thread)."""
        with self._guard:
            self._followers.append(use)
            use(self.current)

    def watch_health(self, tell: Callable[[bool], None]) -> None:
        """Call ``tell`` with whether the file is in use as it stands, now and whenever that changes."""
        with self._guard:
            self._watchers.append(tell)
            tell(not self.error)

    def start(self) -> None:
        """Watch the file, if there is one."""
        if self.path is not None and self._thread is None:
            self._thread = threading.Thread(target=self._watch, name=f"tollspan-{self.area}", daemon=True)
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

    def replace(self, new: T) -> None:
        """Put another in use; may be called from any thread."""
        with self._guard:
            self.current = new
            for use in self._followers:
                use(new)

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
                log.info("%s %s is as it was: %s stays", self.what, self.path, self.version(self.current))
            self._tell("")
            return
        if content == self._bad:
            return
        try:
            new = self.load()
        except Exception as error:  # noqa: BLE001  (whatever is wrong with a file must not stop the line)
            self._bad = content
            self.counters.add(f"{self.area}.reload_failed")
            known = isinstance(error, (BookError, TollspanError))
            why = str(error) if known else f"{type(error).__name__}: {error}"
            log.error("%s not reloaded, %s stays in use: %s", self.what, self.version(self.current), why)
            self._tell(why)
            return
        self._good, self._bad = content, None
        log.info("%s reloaded: %s → %s", self.area.replace("_", " "), self.version(self.current), self.version(new))
        self.counters.add(f"{self.area}.reloaded")
        self.replace(new)
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
