"""Results of a batch, as a file that the program fetches or as items of an answer: one span for each.

In: what the program fetched, whole or as it reads it, and what a library says of its lines (`BatchFiles`). Out: one
span for each answer, of derived identity (`once`): fetching again, here or elsewhere, makes the same spans. A file is
known by its first line, so that it does not matter who submitted the batch.

A batch has as many lines as 50,000. A few are read where the file is fetched; many are read by `sending`'s thread. What
the program reads as it comes is looked at as it goes by, and read by the megabyte.
"""

from __future__ import annotations

import io
import json
import os
import sys
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, Final

from opentelemetry.context import get_current

from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.once import Once, Origin
from tollspan.instrumentation.proxies import Proxy, stand_in
from tollspan.instrumentation.sending import FEW, Sender
from tollspan.instrumentation.tags import current_tags

LITTLE: Final = 1 << 20
"""Bytes up to which lines are read in the program's own thread, if they are no more than `FEW`."""
LONGEST_LINE: Final = 32 << 20
"""Bytes of a line that are kept while the program reads it. A longer one is not read."""
ITEM_BYTES: Final = 4096
"""Bytes that an answer is taken to have which came as an object."""

_TAP: Final = guard("batch_files.tap")

Line = Mapping[str, Any]


class Fetch:
    """The fetching of one batch's results: who fetches, and whose they are.

    Args:
        client: whatever the reader of its lines wants of the client.
        name: of the file, or of the batch; what to fetch again when results were lost.
        origin: where the batch was submitted, and what is known of it.
        repeat: whether spans that this process has made are made again.

    Attributes:
        tags: tags of who fetches, for a batch that another process submitted.
    """

    __slots__ = ("_lines", "client", "name", "origin", "repeat", "tags")

    def __init__(self, client: Any, name: str, origin: Origin | None, repeat: bool = True) -> None:
        self.client = client
        self.name = name
        self.origin = origin
        self.repeat = repeat
        self.tags = dict(current_tags(get_current()))
        self._lines = 0

    def numbers(self, lines: int) -> int:
        """Number of the first of so many lines that come next."""
        first = self._lines
        self._lines += lines
        return first


class BatchFiles:
    """What a library's results look like, and who reads them.

    Args:
        library: last part of the instrumentation's scope.
        once: makes the spans.
        again: how results are fetched again, with a place for the name.
        mark: bytes that the first line of a file of results has.
        is_result: whether a line is one of results.
        read: makes the span of one line; its arguments are the fetch, the line's number and the line.
    """

    def __init__(
        self,
        library: str,
        once: Once,
        *,
        again: str,
        mark: bytes,
        is_result: Callable[[Line], bool],
        read: Callable[[Fetch, int, Line], None],
    ) -> None:
        self.sender = Sender(once.flush, again)
        self._fence = guard(f"{library}.batches.line")
        self._mark = mark
        self._is_result = is_result
        self._read = read

    def whole(self, fetch: Fetch, body: bytes) -> None:
        """Make the spans of a file, if it has results."""
        if self.are_results(body):
            self.part(fetch, body)

    def stored(self, fetch: Fetch, path: Any) -> None:
        """Make the spans of a file that was written to ``path``, if it has results."""
        file = open(path, "rb")  # noqa: SIM115 (a large one is closed where it has been read)
        head = file.read(LITTLE + 1)
        if head[:1] == b"{" and b"\n" not in head:
            head += file.readline(LONGEST_LINE)
        # Where an open file cannot be deleted, the program is to find it closed.
        if len(head) <= LITTLE or os.name == "nt":
            with file:
                self.whole(fetch, head + file.read())
        elif self.are_results(head):
            about = os.fstat(file.fileno()).st_size * (head.count(b"\n") + 1) // len(head)
            self.sender.send(_Results(self, fetch, lambda: _lines_of(file), about, LITTLE))
        else:
            file.close()

    def part(self, fetch: Fetch, body: bytes) -> None:
        """Make the spans of whole lines of a file that has results."""
        lines = body.count(b"\n") + (not body.endswith(b"\n"))
        self._make(_Results(self, fetch, lambda: _lines(body), lines, len(body)))

    def items(self, fetch: Fetch, items: Sequence[Line]) -> None:
        """Make the spans of results that came as objects."""
        self._make(_Results(self, fetch, lambda: enumerate(items), len(items), ITEM_BYTES * len(items)))

    def tap(self, fetch: Fetch, http: Any) -> None:
        """Make the spans of a file as the program reads it, of an httpx response that it has not read."""
        tap = _Tap(self, fetch)
        if http.headers.get("content-encoding", "identity") == "identity":
            # What is sent is what is read, and all reading goes through it.
            http.stream = _watched(http, tap)
            return
        # All reading but for that of the bytes as sent goes through this one method, which can be called once. It is
        # gone from the instance before its first byte, and keeps no response that nobody reads.
        kept = weakref.ref(http)
        http.iter_bytes = lambda chunk_size=None: _watching(_decoded(kept(), chunk_size), tap)
        http.aiter_bytes = lambda chunk_size=None: _watching_async(_decoded_async(kept(), chunk_size), tap)

    def are_results(self, body: bytes) -> bool:
        """Whether a file is the output of a batch, by its first line."""
        if body[:1] != b"{" or self._mark not in body[: body.find(b"\n", 0, LITTLE) + 1 or LITTLE]:
            return False
        first = next(_lines(body), None)
        return first is not None and self._is_result(first[1])

    def _make(self, results: _Results) -> None:
        if results.size <= LITTLE and results.lines <= FEW and self.sender.has_room(results.lines):
            for _ in results.steps():
                pass
            self.sender.made(results.lines)
        else:
            self.sender.send(results)

    def read_line(self, fetch: Fetch, number: int, line: Line) -> None:
        """Make the span of one line, guarded."""
        with self._fence:
            self._read(fetch, number, line)


class _Results:
    """The results in a file, or in a part of one."""

    def __init__(
        self, files: BatchFiles, fetch: Fetch, lines: Callable[[], Iterable[tuple[int, Line]]], count: int, size: int
    ) -> None:
        self.name = fetch.name
        self.size = size
        self.lines = count
        self._files = files
        self._fetch = fetch
        self._read = lines
        self._before = fetch.numbers(count)
        self._come = 0

    def steps(self) -> Iterator[None]:
        """Make the span of one answer a step."""
        for number, line in self._read():
            self._come = number + 1
            self._files.read_line(self._fetch, self._before + number, line)
            yield

    def left(self) -> int:
        """Answers that no step has come to."""
        return max(0, self.lines - self._come)


class _Tap:
    """Looks at the bytes of a file that the program reads as it comes."""

    def __init__(self, files: BatchFiles, fetch: Fetch) -> None:
        self._files = files
        self._fetch: Fetch | None = fetch
        self._first = True
        self._kept = bytearray()
        self._skipping = False

    def saw(self, piece: bytes) -> None:
        """The program gets ``piece``."""
        if self._fetch is None:
            return
        if self._skipping:
            end = piece.find(b"\n") + 1
            if not end:
                return
            self._skipping, piece = False, piece[end:]
        self._kept += piece
        if self._first and self._kept and (b"\n" in piece or self._kept[:1] != b"{" or len(self._kept) > LONGEST_LINE):
            self._first = False
            if not self._files.are_results(bytes(self._kept)):
                self._fetch = None
                self._kept.clear()
                return
        if len(self._kept) >= LITTLE:
            self._bill(self._kept.rfind(b"\n") + 1)
            if len(self._kept) > LONGEST_LINE:
                self._kept.clear()
                self._fetch.numbers(1)
                self._skipping = True

    def end(self, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        """The program gets no more."""
        if _exiting():
            return  # there is nowhere to send a span, and to start a thread would be to wait for ever
        # The last line need not end; half of one is not JSON.
        if self._fetch is not None and (not self._first or self._files.are_results(bytes(self._kept))):
            self._bill(len(self._kept))
        self._fetch = None

    def _bill(self, end: int) -> None:
        if end and self._fetch is not None:
            self._files.part(self._fetch, bytes(self._kept[:end]))
            del self._kept[:end]


def _iter(self: Any) -> Iterator[bytes]:
    return _watching(_gone(self), self._tollspan_tap)


def _aiter(self: Any) -> AsyncIterator[bytes]:
    return _watching_async(_gone(self), self._tollspan_tap)


class _Watched(Proxy):
    """Stands in for the stream of a response until somebody reads it."""

    __slots__ = ("_tollspan_http", "_tollspan_tap")
    special = MappingProxyType({"__iter__": _iter, "__aiter__": _aiter})


def _watched(http: Any, tap: _Tap) -> Any:
    proxy = stand_in(_Watched, http.stream)
    object.__setattr__(proxy, "_tollspan_http", weakref.ref(http))
    object.__setattr__(proxy, "_tollspan_tap", tap)
    return proxy


def _gone(watched: Any) -> Any:
    """The stream itself, which is back in its place."""
    stream, http = watched._tollspan_subject, watched._tollspan_http()
    if http is not None and http.stream is watched:
        http.stream = stream
    return stream


def _decoded(http: Any, chunk_size: int | None) -> Any:
    vars(http).pop("iter_bytes", None)
    return http.iter_bytes(chunk_size)


def _decoded_async(http: Any, chunk_size: int | None) -> Any:
    vars(http).pop("aiter_bytes", None)
    return http.aiter_bytes(chunk_size)


def _watching(stream: Iterable[bytes], tap: _Tap) -> Iterator[bytes]:
    try:
        for piece in stream:
            with _TAP:
                tap.saw(piece)
            yield piece
    finally:
        with _TAP:
            tap.end()


async def _watching_async(stream: AsyncIterable[bytes], tap: _Tap) -> AsyncIterator[bytes]:
    try:
        async for piece in stream:
            with _TAP:
                tap.saw(piece)
            yield piece
    finally:
        with _TAP:
            tap.end()


def _lines_of(file: BinaryIO) -> Iterator[tuple[int, Line]]:
    with file:
        file.seek(0)
        yield from _parsed(file)


def _lines(body: bytes) -> Iterator[tuple[int, Line]]:
    return _parsed(io.BytesIO(body))


def _parsed(lines: Iterable[bytes]) -> Iterator[tuple[int, Line]]:
    for number, line in enumerate(lines):
        try:
            read = json.loads(line)
        except ValueError:
            continue
        if isinstance(read, dict):
            yield number, read
