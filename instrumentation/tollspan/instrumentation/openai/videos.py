"""Videos: asked for by one call, made meanwhile, told by whoever asks for their state; billed once, when they are done.

A video that fails costs nothing, so what it is billed by, its seconds, counts when it is completed and not when it is
asked for. It stands on a span of derived identity (`once`): polling makes it once, in every process. The call that asks
says that its usage comes later. In: ``Video`` objects. Out: ``video.seconds`` of the completed ones.

An extension reports the length of the whole clip and is billed by what was added, which only the process that asked
for it knows: another one counts the whole clip.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.openai.media import Api, request_reader
from tollspan.instrumentation.openai.providers import client_attributes
from tollspan.instrumentation.openai.readers import _fields
from tollspan.instrumentation.openai.results import outliving
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("openai")
OPERATION: Final = "video_generation"
_SECONDS: Final = names.usage("video.seconds")
_VIDEOS: Final = "openai.resources.videos:%sVideos."


def read_asked(call: Call, video: Any) -> None:
    """Read the ``Video`` that a call asked for."""
    fields = _fields(video)
    attributes = call.attributes
    video_id, model = fields.get("id"), fields.get("model")
    if isinstance(model, str):
        attributes[names.RESPONSE_MODEL] = model
    if not isinstance(video_id, str):
        return
    attributes[names.RESPONSE_ID] = video_id
    attributes[names.USAGE_DEFERRED] = True
    ONCE.asked.add(video_id, once.here(call.state.seconds, call.span))
    bill(call.state.client, fields)


def bill(client: Any, fields: Mapping[str, Any], processing: str | None = None) -> bool:
    """Make the span of a video if it is completed; returns whether it was."""
    video_id = fields.get("id")
    if fields.get("status") != "completed" or not isinstance(video_id, str):
        return False
    origin: once.Origin | None = ONCE.asked.get(video_id)
    seconds = _number(fields.get("seconds"))
    if origin is not None and origin.told is not None:
        seconds = origin.told
    attributes = client_attributes(client).copy()
    attributes[names.OPERATION_NAME] = OPERATION
    attributes[names.RESPONSE_ID] = video_id
    if processing is not None:
        attributes[names.PROCESSING] = processing
    model = fields.get("model")
    name = OPERATION
    if isinstance(model, str):
        attributes[names.RESPONSE_MODEL] = model
        name = f"{OPERATION} {model}"

    def fill(call: Call) -> None:
        if seconds is not None:
            call.attributes[_SECONDS] = seconds

    return ONCE.emit(
        video_id,
        name,
        attributes,
        fill,
        start_ns=once.instant(fields.get("created_at")),
        end_ns=once.instant(fields.get("completed_at")),
        origin=origin,
        repeat=processing is not None,
    )


def _number(value: Any) -> float | None:
    # The provider writes seconds as text.
    if isinstance(value, str) and value.strip().isdigit():
        return float(value)
    return float(value) if type(value) in (int, float) else None


def _extending(request: Callable[[tuple[Any, ...], dict[str, Any]], Opening]) -> Callable[..., Opening]:
    def extending(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
        opening = request(args, kwargs)
        opening.state.seconds = _number(kwargs.get("seconds"))  # what is added is what is billed
        return opening

    return extending


def _looked(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    bill(instance._client, _fields(parsed(result)))


def parsed(result: Any) -> Any:
    """A result, or the body of a raw response; None where it has not been read."""
    http = getattr(result, "http_response", None)
    if http is None:
        return result
    try:
        return json.loads(http.content)
    except Exception:  # noqa: BLE001 (unread or not JSON: there is nothing to read, and nothing wrong)
        return None


_REQUEST: Final = request_reader(OPERATION)

APIS: Final[tuple[Api, ...]] = tuple(
    Api(_VIDEOS + method, request, read_asked, outliving(lambda call, chunk: False))
    for method, request in (
        ("create", _REQUEST),
        ("remix", _REQUEST),
        ("edit", _REQUEST),
        ("extend", _extending(_REQUEST)),
    )
)
"""Calls that ask for a video."""


def patch(patches: Patches) -> None:
    """Look at the videos that the program asks after."""
    for prefix in ("", "Async"):
        ONCE.after(patches, f"{_VIDEOS % prefix}retrieve", _looked, bool(prefix))
