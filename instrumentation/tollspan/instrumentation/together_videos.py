"""Together's videos: asked for by one call, made meanwhile, told by whoever asks for their state; billed once.

In: ``VideoJob`` objects, of ``create`` and ``retrieve``. Out: ``video.seconds`` of the completed ones, on a span of
derived identity (`once`), which every process that sees the job makes alike; the call that asks says that its usage
comes later. What the job says it cost (``outputs.cost``) is not taken over: in which unit is said nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.tables import given
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("together")
OPERATION: Final = "video_generation"
_SECONDS: Final = names.usage("video.seconds")
_RETRIEVE: Final = "together.resources.videos:%sVideosResource.retrieve"
_SHARED: Final = (names.PROVIDER_NAME, names.SERVER_ADDRESS, names.SERVER_PORT)


def read_asked(call: Call, job: Any) -> None:
    """Read the job that a call asked for."""
    fields = given(job)
    identity = fields.get("id")
    if not isinstance(identity, str):
        return
    call.attributes[names.RESPONSE_ID] = identity
    call.attributes[names.USAGE_DEFERRED] = True
    ONCE.asked.add(identity, once.here(span=call.span))
    bill(call.opened, fields)


def bill(client: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Make the span of a video if it is completed. One that failed costs nothing.

    Args:
        client: attributes of the client that saw it.
        fields: the job.
    """
    identity, model = fields.get("id"), fields.get("model")
    if fields.get("status") != "completed" or not isinstance(identity, str):
        return
    attributes = {key: client[key] for key in _SHARED if key in client}
    attributes |= {names.OPERATION_NAME: OPERATION, names.RESPONSE_ID: identity}
    if isinstance(model, str):
        attributes[names.RESPONSE_MODEL] = model
    seconds = _number(fields.get("seconds"))

    def fill(call: Call) -> None:
        if seconds is not None:
            call.attributes[_SECONDS] = seconds

    ONCE.emit(
        identity,
        f"{OPERATION} {model}" if isinstance(model, str) else OPERATION,
        attributes,
        fill,
        start_ns=once.instant(fields.get("created_at")),
        end_ns=once.instant(fields.get("completed_at")),
        origin=ONCE.asked.get(identity),
        namespace="together",
    )


def patch(patches: Patches, attributes_of: Any) -> None:
    """Look at the jobs that the program asks after.

    Args:
        attributes_of: attributes of a client.
    """

    def looked(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
        bill(attributes_of(instance._client), given(_parsed(result)))

    for prefix in ("", "Async"):
        ONCE.after(patches, _RETRIEVE % prefix, looked, bool(prefix))


def _parsed(result: Any) -> Any:
    """A result, or the body of a raw response; None where it has not been read."""
    http = getattr(result, "http_response", None)
    if http is None:
        return result
    try:
        return json.loads(http.content)
    except Exception:  # noqa: BLE001 (unread or not JSON: there is nothing to read, and nothing wrong)
        return None


def _number(value: Any) -> float | None:
    # Seconds are written as text.
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None
