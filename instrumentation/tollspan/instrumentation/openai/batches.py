"""Batches: results that arrive as a file, hours later, mostly in another process; each is billed once.

In: the content of a file that the program fetches. Out: where it holds results of a batch, one span for each answer,
processed as a batch, of derived identity (`once`), made as `batch_files` says. Where this process submitted the batch,
the spans are linked to the submission and bear its tags.

Mistral's lines have the same form (`mistral_batches`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.batch_files import BatchFiles, Fetch, Line
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.openai import videos
from tollspan.instrumentation.openai.providers import client_attributes
from tollspan.instrumentation.openai.readers import _fields
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("openai")
BATCH: Final = "batch"

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
        ONCE.after(patches, of_batches + "create", _submitted, bool(prefix))
        ONCE.after(patches, of_batches + "retrieve", _asked_after, bool(prefix))
        ONCE.after(patches, of_files + "content", _fetched, bool(prefix))


def _submitted(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    fields = _fields(videos.parsed(result))
    if isinstance(batch_id := fields.get("id"), str):
        ONCE.asked.add(batch_id, once.here(fields.get("created_at")))


def _asked_after(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    fields = _fields(videos.parsed(result))
    batch_id, file_id = fields.get("id"), fields.get("output_file_id")
    if isinstance(batch_id, str) and isinstance(file_id, str):
        origin = ONCE.asked.get(batch_id)
        ONCE.asked.add(file_id, origin or once.Origin(None, {}, fields.get("created_at")))


def _fetched(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    http = getattr(result, "http_response", None) or getattr(result, "response", None)
    if http is None:
        return
    file_id = args[0] if args else kwargs.get("file_id")
    fetch = Fetch(instance._client, str(file_id), ONCE.asked.get(file_id))
    try:
        body = http.content
    except Exception:  # noqa: BLE001 (not read yet: the program reads it as it comes)
        FILES.tap(fetch, http)
        return
    if isinstance(body, bytes):
        FILES.whole(fetch, body)


def is_result(line: Line) -> bool:
    """Whether a line of a file is a result."""
    return "custom_id" in line and isinstance(line.get("response"), dict)


def _read_line(fetch: Fetch, number: int, line: Line) -> None:
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    if not isinstance(body, dict) or not isinstance(response, dict):
        return
    if body.get("object") == "video":
        videos.bill(fetch.client, body, BATCH)
        return
    usage = body.get("usage")
    if usage is None and not isinstance(body.get("data"), list):
        return
    kind = body.get("object")
    # Images say not what they are, and neither do all who speak as this provider does.
    operation = OPERATIONS.get(str(kind), "chat" if kind or "choices" in body else "image_generation")
    attributes = {**client_attributes(fetch.client), names.PROCESSING: BATCH, names.OPERATION_NAME: operation}
    if isinstance(kind, str) and kind in _API_TYPES:
        attributes[names.OPENAI_API_TYPE] = _API_TYPES[kind]
    for field, attribute in (("id", names.RESPONSE_ID), ("model", names.RESPONSE_MODEL)):
        if isinstance(body.get(field), str):
            attributes[attribute] = body[field]
    model = attributes.get(names.RESPONSE_MODEL)
    provider = attributes[names.PROVIDER_NAME]
    told = next((given for given in (line.get("id"), body.get("id"), response.get("request_id")) if given), None)

    def fill(call: Call) -> None:
        put_usage(call, provider, usage, model=model, response=body, form="openai")
        # A file can be fetched long after; that it was a batch is known, whatever tier the answer names.
        if call.attributes.get(names.OPENAI_RESPONSE_SERVICE_TIER) == BATCH:
            del call.attributes[names.OPENAI_RESPONSE_SERVICE_TIER]

    ONCE.emit(
        # Not every provider that speaks so gives each line an id of its own.
        f"{told}:{line.get('custom_id')}" if told else f"{fetch.name}:{number}",
        f"{operation} {model}" if model else operation,
        attributes,
        fill,
        start_ns=_start(fetch, line, body),
        origin=fetch.origin,
        tags=fetch.tags,
        repeat=True,
    )


def _start(fetch: Fetch, line: Line, body: Mapping[str, Any]) -> int | None:
    for seconds in (body.get("created"), body.get("created_at"), _time_of(line.get("id"))):
        if (start := once.instant(seconds)) is not None:
            return start
    return once.instant(fetch.origin.told) if fetch.origin else None


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


FILES: Final = BatchFiles(
    "openai", ONCE, again="files.content(%s)", mark=b'"response"', is_result=is_result, read=_read_line
)
"""Who reads the files."""
