"""One load of a model in flight: what it has read and what has come for it so far.

In: files and bytes, from whichever of the functions inside it reads or fetches them, on any thread. Out: the attributes
of its span. Where it stands: between the functions that a program calls (`asked`), whose outermost is the span, and the
functions that do the work (`files`, `transfers`), which add to the one that they run inside of.
"""

from __future__ import annotations

import threading
from threading import get_ident
from typing import Any, Final, NamedTuple

from tollspan.instrumentation.calls import Call, open_call
from tollspan.instrumentation.cpu_clock import CPU, CpuMark, seconds
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.model_loads.ingress import ingress
from tollspan.pricing import attributes

LAYER: Final = "model_load"
"""A load inside a load is part of it."""

FILE: Final = "file"
BUFFER: Final = "buffer"

_TRANSFERRED: Final = guard("model_loads.transferred")
_CPU_SECONDS: Final = attributes.usage("cpu.seconds")
_STORAGE_BYTES: Final = attributes.usage("storage.read.bytes")


class File(NamedTuple):
    """What a load reads of a model.

    Attributes:
        key: the same for the same file.
        size: bytes.
        format: as `attributes.MODEL_FORMAT` has it; None: not known.
        mapped: it is mapped into memory, and read as it is touched.
        stored: it lies in a file, and not in the program's own memory.
        version: commit of the hub's repository whose cache it lies in.
    """

    key: str | int
    size: int
    format: str | None = None
    mapped: bool = False
    stored: bool = True
    version: str | None = None


class Load:
    """What is known of a load. All methods may be called on any thread.

    Attributes:
        subject: the object that is loaded, where it is not what the call returns.
        remote: what is loaded comes over the network where it is not on this machine already.
        named: the name that it was asked for by says more of it than its class.
        cpu: the CPU's clock.
    """

    __slots__ = (
        "_cached",
        "_came",
        "_fetched",
        "_files",
        "_here",
        "_lock",
        "_reading",
        "_untold",
        "_versions",
        "cpu",
        "named",
        "remote",
        "subject",
    )

    def __init__(self, subject: Any = None, *, named: bool = False) -> None:
        self.subject = subject
        self.named = named
        self.remote = False
        self.cpu: CpuMark | None = None
        self._lock = threading.Lock()
        self._files: dict[str | int, File] = {}
        self._fetched: dict[str | int, File] = {}
        self._came: dict[str, int] = {}
        self._here: dict[int, int] = {}
        self._cached: int | None = None
        self._untold = False
        self._reading: dict[int, int] = {}
        self._versions: set[str] = set()

    def read(self, file: File) -> None:
        """A file was read. A function that reads may call another that does: the inner one, which is told first, knows
        the format, and the file is only mapped where both of them say so."""
        with self._lock:
            known = self._files.get(file.key)
            if known is not None:
                file = known._replace(mapped=known.mapped and file.mapped)
            self._files[file.key] = file
            if file.version is not None:
                self._versions.add(file.version)

    def reading(self, step: int) -> int:
        """How many functions that read were under way on this thread, when one more begins (1) or one ends (-1)."""
        thread = get_ident()
        with self._lock:
            depth = self._reading.pop(thread, 0)
            if depth + step:
                self._reading[thread] = depth + step
        return depth

    def fetched(self, file: File, came: bool) -> None:
        """A file of a hub is there: it came over the network, or it was there before."""
        with self._lock:
            if file.key in self._fetched:
                return  # asked for again by the same load
            self._fetched[file.key] = file
            self._cached = (self._cached or 0) + (0 if came else file.size)
            if file.version is not None:
                self._versions.add(file.version)

    def came(self, host: str, count: int) -> None:
        """Bytes came over the network from there, on this thread."""
        with self._lock:
            self._came[host] = self._came.get(host, 0) + count
            self._here[get_ident()] = self._here.get(get_ident(), 0) + 1

    def untold(self) -> None:
        """Bytes came over the network, on this thread, and nobody knows how many."""
        with self._lock:
            self._untold = True
            self._here[get_ident()] = self._here.get(get_ident(), 0) + 1

    @property
    def transfers(self) -> int:
        """How often something came on this thread."""
        return self._here.get(get_ident(), 0)

    def told(self, on: str | None) -> dict[str, Any]:
        """Attributes of what was read and what came.

        Args:
            on: type of the device that the model is on, where that is known. What is on another one than the host was
                copied there, and so all of it was read, mapped or not.
        """
        files = self._files or {key: file for key, file in self._fetched.items() if file.format is not None}
        about: dict[str, Any] = {}
        if files:
            about[attributes.MODEL_SIZE] = sum(file.size for file in files.values())
        sizes: dict[str, int] = {}
        read = mapped = 0
        for file in files.values():
            if file.format is not None:
                sizes[file.format] = sizes.get(file.format, 0) + file.size
        for file in self._files.values():
            if file.mapped and on in (None, "cpu", "meta"):
                mapped += file.size
            elif file.stored:
                read += file.size
        if sizes:
            about[attributes.MODEL_FORMAT] = max(sizes, key=lambda name: sizes[name])
        if read:
            about[_STORAGE_BYTES] = read
        if mapped:
            about[attributes.MODEL_MAPPED] = mapped
        if len(self._versions) == 1:
            (about[attributes.MODEL_VERSION],) = self._versions
        return about

    def transferred(self, resource: Any) -> dict[str, Any]:
        """Attributes of what came: also of a load that failed, since it came all the same.

        Args:
            resource: of the span.
        """
        about: dict[str, Any] = {}
        # A library may find a file in a hub's cache without asking the hub's client.
        found = [file.size for key, file in self._files.items() if file.version and key not in self._fetched]
        cached = self._cached
        if found:
            cached = (cached or 0) + sum(found)
        if (self._came or cached is not None or self.remote) and not self._untold:
            about[attributes.MODEL_DOWNLOADED] = sum(self._came.values())
            about.update(ingress(self._came, resource))
        if cached is not None:
            about[attributes.MODEL_CACHED] = cached
        return about


def open_load() -> Load | None:
    """The load that the current context is inside of, where somebody wants to know of it."""
    call = open_call(LAYER)
    return call.state if call is not None and call.recording else None


def began(call: Call, _: dict[str, Any]) -> None:
    """`WrapPoint.prepare`: its last thing is to start the clock."""
    call.state.cpu = CPU.begin()


def finished(call: Call) -> None:
    """`WrapPoint.finish`: on the thread that began."""
    load: Load = call.state
    if load.cpu is not None:
        cpu_ns, source = CPU.end(load.cpu)
        if not call.span.is_recording():
            return
        call.attributes[_CPU_SECONDS] = seconds(cpu_ns)
        call.attributes[attributes.CPU_TIME_SOURCE] = source
    with _TRANSFERRED:
        call.attributes.update(load.transferred(getattr(call.span, "resource", None)))
