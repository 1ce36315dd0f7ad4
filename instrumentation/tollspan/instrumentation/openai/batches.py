"""Batches: results that arrive as a file, hours later, mostly in another process; each is billed once.

In: the content of a file that the program fetches. Out: where it holds results of a batch, one span for each answer,
processed as a batch, of derived identity (`once`): fetching the file again, here or elsewhere, makes the same spans. A
file is known by its first line, so that it does not matter who submitted the batch; where this process did, the spans
are linked to the submission and bear its tags.

A batch has as many lines as 50,000. A few are read where the file is fetched; many are read by `sending`'s thread. What
the program reads as it comes is looked at as it goes by, and read by the megabyte.
"""

from __future__ import annotations

import io
import json
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

from opentelemetry.context import get_current
from opentelemetry.trace import get_current_span

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.openai import once, videos
from tollspan.instrumentation.openai.providers import client_attributes
from tollspan.instrumentation.openai.readers import _fields
from tollspan.instrumentation.openai.sending import FEW, sender
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

LITTLE: Final = 1 << 20
"""Bytes up to which lines are read in the program's own thread, if they are no more than `FEW`."""
LONGEST_LINE: Final = 32 << 20
"""Bytes of a line that are kept while the program reads it. A longer one is not read."""

_LINE: Final = guard("openai.batches.line")
_TAP: Final = guard("openai.batches.tap")
_BATCH: Final = "batch"

OPERATIONS: Final[dict[str, str]] = {
    "chat.completion": "chat",
    "response": "chat",
    "text_completion": "text_completion",
    "list": "embeddings",
}
"""``object`` of an answer → operation. Images have none."""
_API_TYPES: Final[dict[str, str]] = {"chat.completion": "chat_completions", "response": "responses"}

_EPOCH: Final = (1_577_836_800, 4_102_444_800)
"""2020 and 2100: what is outside is not the time in an id."""


def patch(patches: Patches) -> None:
    """Look at batches as they are submitted and asked after, and at the files that are fetched."""
    for prefix in ("", "Async"):
        of_batches, of_files = f"openai.resources.batches:{prefix}Batches.", f"openai.resources.files:{prefix}Files."
        once.after(patches, of_batches + "create", _submitted, bool(prefix))
        once.after(patches, of_batches + "retrieve", _asked_after, bool(prefix))
        once.after(patches, of_files + "content", _fetched, bool(prefix))


def _submitted(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    fields = _fields(videos.parsed(result))
    if isinstance(batch_id := fields.get("id"), str):
        context = get_current()
        submitter = get_current_span(context).get_span_context()
        once.asked.add(batch_id, once.Origin(submitter, dict(current_tags(context)), fields.get("created_at")))


def _asked_after(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    fields = _fields(videos.parsed(result))
    batch_id, file_id = fields.get("id"), fields.get("output_file_id")
    if isinstance(batch_id, str) and isinstance(file_id, str):
        origin = once.asked.get(batch_id)
        once.asked.add(file_id, origin or once.Origin(None, {}, fields.get("created_at")))


def _fetched(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    http = getattr(result, "http_response", None) or getattr(result, "response", None)
    if http is None:
        return
    file_id = args[0] if args else kwargs.get("file_id")
    fetch = _Fetch(instance._client, file_id)
    try:
        body = http.content
    except Exception:  # noqa: BLE001 (not read yet: the program reads it as it comes)
        _tap(http, fetch)
        return
    if isinstance(body, bytes) and _are_results(body):
        fetch.bill(body)


class _Fetch:
    """The fetching of one file: who fetches, and whose the results are."""

    def __init__(self, client: Any, file_id: Any) -> None:
        self.client = client
        self.file_id = str(file_id)
        self.origin: once.Origin | None = once.asked.get(file_id) if isinstance(file_id, str) else None
        # A batch that another process submitted bears the tags of who fetched it.
        self.tags = dict(current_tags(get_current()))
        self._lines = 0

    def bill(self, body: bytes) -> None:
        """Make the spans of whole lines, here if they are few, otherwise elsewhere."""
        results = _Results(self, body, self._lines)
        self._lines += results.lines
        if len(body) <= LITTLE and results.lines <= FEW and sender.has_room(results.lines):
            for _ in results.steps():
                pass
            sender.made(results.lines)
        else:
            sender.send(results)


class _Tap:
    """Looks at the bytes of a file that the program reads as it comes."""

    def __init__(self, fetch: _Fetch) -> None:
        self._fetch: _Fetch | None = fetch
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
            if not _are_results(bytes(self._kept)):
                self._fetch = None
                self._kept.clear()
                return
        if len(self._kept) >= LITTLE:
            self._bill(self._kept.rfind(b"\n") + 1)
            if len(self._kept) > LONGEST_LINE:
                self._kept.clear()
                self._skipping = True

    def end(self) -> None:
        """The program gets no more."""
        # The last line need not end; half of one is not JSON.
        if self._fetch is not None and (not self._first or _are_results(bytes(self._kept))):
            self._bill(len(self._kept))
        self._fetch = None

    def _bill(self, end: int) -> None:
        if end and self._fetch is not None:
            self._fetch.bill(bytes(self._kept[:end]))
            del self._kept[:end]


def _tap(http: Any, fetch: _Fetch) -> None:
    # All reading of a response, but for that of its bytes as sent, goes through this one method, which can be called
    # once. It is gone from the instance before its first byte, and keeps no response that nobody reads.
    tap, kept = _Tap(fetch), weakref.ref(http)
    http.iter_bytes = lambda chunk_size=None: _giving(kept(), tap, chunk_size)
    http.aiter_bytes = lambda chunk_size=None: _giving_async(kept(), tap, chunk_size)


def _untap(http: Any) -> None:
    for name in ("iter_bytes", "aiter_bytes"):
        vars(http).pop(name, None)


def _giving(http: Any, tap: _Tap, chunk_size: int | None) -> Iterator[bytes]:
    _untap(http)
    try:
        for piece in http.iter_bytes(chunk_size):
            with _TAP:
                tap.saw(piece)
            yield piece
    finally:
        with _TAP:
            tap.end()


async def _giving_async(http: Any, tap: _Tap, chunk_size: int | None) -> AsyncIterator[bytes]:
    _untap(http)
    try:
        async for piece in http.aiter_bytes(chunk_size):
            with _TAP:
                tap.saw(piece)
            yield piece
    finally:
        with _TAP:
            tap.end()


def _are_results(body: bytes) -> bool:
    """Whether a file is the output of a batch, by its first line."""
    if b'"response"' not in body[: body.find(b"\n", 0, LITTLE) + 1 or LITTLE] or body[:1] != b"{":
        return False
    first = next(_lines(body), None)
    return first is not None and "custom_id" in first and isinstance(first.get("response"), dict)


def _lines(body: bytes) -> Iterator[Mapping[str, Any]]:
    for line in io.BytesIO(body):
        try:
            read = json.loads(line)
        except ValueError:
            continue
        if isinstance(read, dict):
            yield read


class _Results:
    """The results in a file, or in a part of one.

    Args:
        fetch: of which file.
        body: whole lines.
        before: lines of the file that come before them.
    """

    def __init__(self, fetch: _Fetch, body: bytes, before: int) -> None:
        self.file_id = fetch.file_id
        self.size = len(body)
        self.lines = body.count(b"\n") + (not body.endswith(b"\n"))
        self._client = fetch.client
        self._body = body
        self._before = before
        self._come = 0
        self._origin = fetch.origin
        self._tags = fetch.tags
        self._attributes = {**client_attributes(fetch.client), names.PROCESSING: _BATCH}

    def steps(self) -> Iterator[None]:
        """Make the span of one answer a step."""
        for number, line in enumerate(_lines(self._body)):
            self._come = number + 1
            with _LINE:
                self._read_line(self._before + number, line)
            yield

    def left(self) -> int:
        """Answers that no step has come to."""
        return max(0, self.lines - self._come)

    def _read_line(self, number: int, line: Mapping[str, Any]) -> None:
        response = line.get("response")
        body = response.get("body") if isinstance(response, dict) else None
        if not isinstance(body, dict) or not isinstance(response, dict):
            return
        if body.get("object") == "video":
            videos.bill(self._client, body, _BATCH)
            return
        usage = body.get("usage")
        if usage is None and not isinstance(body.get("data"), list):
            return
        kind = body.get("object")
        operation = OPERATIONS.get(kind, "chat") if isinstance(kind, str) else "image_generation"
        attributes = dict(self._attributes)
        attributes[names.OPERATION_NAME] = operation
        if isinstance(kind, str) and kind in _API_TYPES:
            attributes[names.OPENAI_API_TYPE] = _API_TYPES[kind]
        for field, attribute in (("id", names.RESPONSE_ID), ("model", names.RESPONSE_MODEL)):
            if isinstance(body.get(field), str):
                attributes[attribute] = body[field]
        model = attributes.get(names.RESPONSE_MODEL)
        provider = attributes[names.PROVIDER_NAME]
        told = next((given for given in (line.get("id"), body.get("id"), response.get("request_id")) if given), None)

        def fill(call: Call) -> None:
            put_usage(call, provider, usage, model=model, response=body)
            # A file can be fetched long after; that it was a batch is known, whatever tier the answer names.
            if call.attributes.get(names.OPENAI_RESPONSE_SERVICE_TIER) == _BATCH:
                del call.attributes[names.OPENAI_RESPONSE_SERVICE_TIER]

        once.emit(
            str(told) if told else f"{self.file_id}:{number}",
            f"{operation} {model}" if model else operation,
            attributes,
            fill,
            start_ns=self._start(line, body),
            origin=self._origin if self._origin and self._origin.span else None,
            tags=self._tags,
            repeat=True,
        )

    def _start(self, line: Mapping[str, Any], body: Mapping[str, Any]) -> int | None:
        for seconds in (body.get("created"), body.get("created_at"), _time_of(line.get("id"))):
            if (start := once.instant(seconds)) is not None:
                return start
        return once.instant(self._origin.told) if self._origin else None


def _time_of(identifier: Any) -> int | None:
    """Seconds since the epoch with which the provider begins the ids of its requests (``batch_req_68a1b2c3...``)."""
    if not isinstance(identifier, str):
        return None
    digits = identifier.removeprefix("batch_req_")
    try:
        seconds = int(digits[:8], 16)
    except ValueError:
        return None
    return seconds if len(digits) >= 32 and _EPOCH[0] < seconds < _EPOCH[1] else None
