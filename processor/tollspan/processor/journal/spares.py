"""Files of released segments that the next segments are written into.

Their blocks are allocated and their pages are in the page cache. A new file's are not: each of its pages is cleared,
found a block, and on a virtual machine whose host takes free memory back it is a fault in the host too, which was
a third of all CPU time of a busy processor. What an earlier segment left behind a segment's end mark has that one's
marker, and is no record.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

SPARE_BYTES: Final = 1 << 30
"""What spare files take together at the most: more than five seconds' spans at full speed on two cores."""
SPARE_S: Final = 60.0
"""A spare file that is not needed for so long is removed."""
_NAME: Final = re.compile(r"segment-\d{10,}\.spare")


class _Spare(NamedTuple):
    path: Path
    size: int
    since: float


class Spares:
    """The spare files of one journal directory; every method may be called by any thread.

    Args:
        directory: of the journal, which is locked. Files that an earlier process left are taken over.
        limit: bytes that they take together at the most, 0 for none. A disk with less than twice that room has none.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory, self._limit = directory, limit
        self._lock = threading.Lock()
        # The one that was used last is taken first: its pages are the likeliest to be in memory.
        self._spares: deque[_Spare] = deque()
        self._bytes = 0
        for name in sorted(os.listdir(directory)):
            if _NAME.fullmatch(name):
                path = directory / name
                with contextlib.suppress(OSError):
                    self._put(path, path.stat().st_size)
        while self._bytes > limit:
            self._drop()

    @property
    def bytes(self) -> int:
        """What they take on disk."""
        with self._lock:
            return self._bytes

    def keep(self, path: Path, size: int, room: int) -> bool:
        """Keep a segment's file instead of removing it; False: it is not wanted.

        Args:
            path: of the segment, which nobody reads or writes any more.
            size: of the file.
            room: bytes that all spare files may take now.

        Raises:
            OSError: it cannot be renamed.
        """
        if not size or self.bytes + size > min(self._limit, room) or self._scarce():
            return False
        spare = path.with_suffix(".spare")
        os.rename(path, spare)
        self._put(spare, size)
        return True

    def take(self) -> tuple[Path, int] | None:
        """A file to write over that is nobody else's, and a descriptor of it; None: there is none."""
        while True:
            with self._lock:
                if not self._spares:
                    return None
                spare = self._spares.pop()
                self._bytes -= spare.size
            with contextlib.suppress(OSError):
                fd = os.open(spare.path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    status = os.fstat(fd)
                    # Under a second name it may be somebody's backup.
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                        return spare.path, fd
                except OSError:
                    pass
                os.close(fd)
            _unlink(spare.path)

    def age(self) -> None:
        """Remove what was not needed lately, and everything where the disk has become scarce."""
        if self.bytes and self._scarce():
            self.clear()
        while self._drop(time.monotonic() - SPARE_S):
            pass

    def clear(self) -> bool:
        """Remove all of them; True if there was one."""
        found = self._drop()
        while self._drop():
            pass
        return found

    def _drop(self, oldest: float = math.inf) -> bool:
        """Remove the one that was kept first, if that was before ``oldest``; False: there is none."""
        with self._lock:
            if not self._spares or self._spares[0].since > oldest:
                return False
            spare = self._spares.popleft()
            self._bytes -= spare.size
        _unlink(spare.path)
        return True

    def _put(self, path: Path, size: int) -> None:
        with self._lock:
            self._spares.append(_Spare(path, size, time.monotonic()))
            self._bytes += size

    def _scarce(self) -> bool:
        """Whether the disk has so little room that others need it more."""
        try:
            status = os.statvfs(self._directory)
        except OSError:
            return True
        return status.f_bavail * status.f_frsize < 2 * self._limit


def _unlink(path: Path) -> None:
    # What cannot be removed is only room; the next start tries again.
    with contextlib.suppress(OSError):
        path.unlink()
