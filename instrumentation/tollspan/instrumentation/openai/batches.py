"""Batches: results that arrive as a file, hours later, mostly in another process; each is billed once.

In: the content of a file that the program fetches. Out: where it holds results of a batch, one span for each answer,
processed as a batch, of derived identity (`once`): fetching the file again, here or elsewhere, makes the same spans. A
file is known by its first line, so that it does not matter who submitted the batch; where this process did, the spans
are linked to the submission and bear its tags.

A batch has as many lines as 50,000. A few are read where the file is fetched; many are read by a thread that has them
exported as it goes, so that the exporter's queue does not overflow, and that the interpreter waits for when it exits.
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from opentelemetry.context import get_current
from opentelemetry.trace import get_current_span

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.openai import once, videos
from tollspan.instrumentation.openai.providers import client_attributes
from tollspan.instrumentation.openai.readers import _fields
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

FEW: Final = 256
"""Lines that are read in the program's own thread, and after which the thread that reads more has spans exported."""
LITTLE: Final = 1 << 20
"""Bytes up to which they are."""
_LONGEST_FLUSH_MS: Final = 5_000

_LINE: Final = guard("openai.batches.line")
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
    try:
        body = http.content if http is not None else b""
    except Exception:  # noqa: BLE001 (not read yet: the program reads it as it comes)
        return
    if not isinstance(body, bytes) or not _are_results(body):
        return
    file_id = args[0] if args else kwargs.get("file_id")
    origin: once.Origin | None = once.asked.get(file_id) if isinstance(file_id, str) else None
    results = _Results(instance._client, str(file_id), body, origin, dict(current_tags(get_current())))
    if len(body) <= LITTLE and body.count(b"\n") <= FEW:
        results.read()
    else:
        # Not a daemon: what has been billed is told before the interpreter goes.
        threading.Thread(target=results.read, args=(True,), name="tollspan-batch-results").start()


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
    """The results in one file."""

    def __init__(
        self, client: Any, file_id: str, body: bytes, origin: once.Origin | None, tags: dict[str, Any]
    ) -> None:
        self._client = client
        self._file_id = file_id
        self._body = body
        self._origin = origin
        # A batch that another process submitted bears the tags of who fetched it.
        self._tags = tags
        self._attributes = {**client_attributes(client), names.PROCESSING: _BATCH}

    def read(self, flushing: bool = False) -> None:
        """Make the span of every answer; with ``flushing`` have them exported on the way."""
        for number, line in enumerate(_lines(self._body)):
            with _LINE:
                self._read_line(number, line)
            if flushing and number % FEW == FEW - 1:
                began = time.monotonic()
                with _LINE:
                    flushing = once.flush(_LONGEST_FLUSH_MS)
                flushing = flushing and time.monotonic() - began < _LONGEST_FLUSH_MS / 1000

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
            str(told) if told else f"{self._file_id}:{number}",
            f"{operation} {model}" if model else operation,
            attributes,
            fill,
            start_ns=self._start(line, body),
            origin=self._origin if self._origin and self._origin.span else None,
            tags=self._tags,
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
