"""Spill: what waits and does not fit into memory lies in files beside the journal, and is mapped back when needed.

In: an object with large arrays in it (NumPy, Arrow; span bodies, in practice). Out: `Spilled`, a few kilobytes, from
which the same object is made again, its arrays being views on the file. Pickle takes the object apart, but nothing is
ever unpickled from disk: only the arrays' bytes are there, the rest stays in memory. What a process spilled is of no
use to another one, whose journal hands the spans out again: `Spill` removes what it finds. An object whose class says
``stays_in_memory = True`` is held as it is.
"""

from __future__ import annotations

import contextlib
import io
import logging
import mmap
import os
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tollspan.processor.counters import Counters
from tollspan.processor.journal.files import write_all

log = logging.getLogger(__name__)

_LEAST: Final = 512
"""Bytes of an array that is worth a place in the file."""
_ALIGN: Final = 64
_SUFFIX: Final = ".spilled"
_OURS: Final = "tollspan."


def _made(kind: Any, state: dict[str, Any]) -> Any:
    """An object of ours, frozen or not, without its constructor."""
    made = object.__new__(kind)
    for name, value in state.items():
        object.__setattr__(made, name, value)
    return made


def _state(each: Any) -> dict[str, Any]:
    """All attributes of an object of ours; not those that a subclass makes when they are asked for."""
    kind = type(each)
    names = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ()) if not name.startswith("__")]
    state = {
        name: getattr(each, name)
        for name in names
        if not isinstance(getattr(kind, name), property) and hasattr(each, name)
    }
    return {**getattr(each, "__dict__", {}), **state}


class _Pickler(pickle.Pickler):
    """Takes data apart; what is no data stays where it is, by reference."""

    def __init__(self, file: io.BytesIO, kept: list[Any], buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(file, protocol=5, buffer_callback=self._buffer)
        self._kept, self._numbers, self._buffers = kept, dict[int, int](), buffers

    def _buffer(self, buffer: pickle.PickleBuffer) -> bool:
        if buffer.raw().nbytes < _LEAST:
            return True
        self._buffers.append(buffer)
        return False

    def persistent_id(self, each: Any) -> int | None:
        if isinstance(each, ModuleType | Path | type) or callable(each) or getattr(each, "stays_in_memory", False):
            number = self._numbers.setdefault(id(each), len(self._kept))
            if number == len(self._kept):
                self._kept.append(each)
            return number
        return None

    def reducer_override(self, each: Any) -> Any:
        if type(each).__module__.startswith(_OURS):
            return _made, (type(each), _state(each))
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, kept: list[Any], buffers: list[memoryview]) -> None:
        super().__init__(file, buffers=buffers)
        self._kept = kept

    def persistent_load(self, number: int) -> Any:
        return self._kept[number]


class Spilled:
    """An object on disk; `load` makes it again, `remove` gives the disk back."""

    __slots__ = ("_kept", "_path", "_places", "_skeleton", "nbytes")

    def __init__(self, path: Path, skeleton: bytes, kept: list[Any], places: list[tuple[int, int, bool]]) -> None:
        self._path, self._skeleton, self._kept, self._places = path, skeleton, kept, places
        self.nbytes = places[-1][0] + places[-1][1] if places else 0
        """Bytes on disk."""

    def load(self) -> Any:
        """The object; its arrays are views on the file, which is mapped for as long as they live.

        Raises:
            OSError: the file is not to be had.
        """
        views: list[memoryview] = []
        if self._places:
            fd = os.open(self._path, os.O_RDONLY)
            try:
                # A private mapping, so that arrays which could be written to still can: compiled code tells the two
                # kinds apart.
                whole = memoryview(mmap.mmap(fd, self.nbytes, access=mmap.ACCESS_COPY))
            finally:
                os.close(fd)
            for start, size, readonly in self._places:
                view = whole[start : start + size]
                views.append(view.toreadonly() if readonly else view)
        return _Unpickler(io.BytesIO(self._skeleton), self._kept, views).load()

    def remove(self) -> None:
        """Forget it."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)


class Spill:
    """The folder; made when it is needed first, and emptied of what an earlier process left.

    Args:
        folder: files go there.
        max_bytes: of all of them together.
        counters: counts ``sampling.spilled``, ``sampling.spilled_bytes`` and ``sampling.spill_failures``.
    """

    def __init__(self, folder: Path, max_bytes: int, counters: Counters) -> None:
        self.folder, self.max_bytes, self.counters = folder, max_bytes, counters
        self.nbytes = 0
        """Bytes on disk now."""
        self._next = 0
        self._told = False
        self.clear()

    def clear(self) -> None:
        """Remove what an earlier process left."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*" + _SUFFIX):
                path.unlink(missing_ok=True)

    def put(self, each: Any) -> Spilled | None:
        """Put an object on disk; None where there is no room for it, or none can be written to."""
        kept: list[Any] = []
        buffers: list[pickle.PickleBuffer] = []
        skeleton = io.BytesIO()
        _Pickler(skeleton, kept, buffers).dump(each)
        places, chunks, end = [], list[memoryview](), 0
        for buffer in buffers:
            raw = buffer.raw()
            gap = -end % _ALIGN
            if gap:
                chunks.append(memoryview(bytes(gap)))
            places.append((end + gap, raw.nbytes, raw.readonly))
            chunks.append(raw)
            end += gap + raw.nbytes
        if self.nbytes + end > self.max_bytes:
            return None
        path = self.folder / f"{self._next:08d}{_SUFFIX}"
        self._next += 1
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Left by a process that died while we began, if it is there at all.
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                # A file that is cut short could not be mapped: it is there whole, or not at all.
                write_all(fd, chunks, 0)  # type: ignore[arg-type]
            finally:
                os.close(fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            self.counters.add("sampling.spill_failures")
            if not self._told:
                self._told = True
                log.warning("spans that wait for their sampling decision cannot be put on disk: %s", error)
            return None
        self._told = False
        self.nbytes += end
        self.counters.add("sampling.spilled")
        self.counters.add("sampling.spilled_bytes", end)
        return Spilled(path, skeleton.getvalue(), kept, places)

    def remove(self, spilled: Spilled) -> None:
        """Give its disk back."""
        spilled.remove()
        self.nbytes -= spilled.nbytes
