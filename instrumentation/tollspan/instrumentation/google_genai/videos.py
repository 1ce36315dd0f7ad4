"""Videos of the ``google-genai`` client: asked for in one request, made later, billed by the second when they are made.

In: the request that asks, and the operation as whoever polls it finds it. Out: a span of the request that says that its
usage comes later, and when the videos are made one of derived identity (`once`), whoever finds them, with
``tollspan.usage.video.seconds``: those asked for, times the videos that came. Polls have no spans.

The service tells neither a length nor a time. Where the request left the length open, or another process made it, it is
not known and the videos are unpriced; and processes that find them on different days (UTC) make two spans of them.
"""

from __future__ import annotations

import re
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.google_genai import attempts
from tollspan.instrumentation.google_genai.providers import client_attributes
from tollspan.instrumentation.google_genai.readers import State, fields, request_reader
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("google_genai")
SUBMIT: Final = "video_generation"

_SECONDS: Final = names.usage("video.seconds")
_OPERATIONS: Final = "google.genai.operations:%sOperations.get"
_MODEL: Final = re.compile(r"(?:^|/)models/([^/]+)/operations/")
_submit: Final = request_reader(SUBMIT)


class _Ask(State):
    """State of the request; ``seconds`` is the length of each video that was asked for, where it was."""

    __slots__ = ("seconds",)

    seconds: int | float | None


def patch(patches: Patches) -> None:
    """Look at the operations that the program asks after."""
    for prefix in ("", "Async"):
        ONCE.after(patches, _OPERATIONS % prefix, _looked, bool(prefix))


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """Reader of the request for videos."""
    opening = _submit(args, kwargs)
    seconds = fields(kwargs.get("config")).get("duration_seconds")
    state = _Ask(opening.state.client, opening.state.provider, opening.state.model, wanted=0)
    state.seconds = seconds if type(seconds) in (int, float) else None
    return opening._replace(state=state)


def submitted(call: Call, operation: Any) -> None:
    """Remember the operation that was started."""
    name = fields(operation).get("name")
    if not isinstance(name, str) or not name:
        return
    call.attributes[names.RESPONSE_ID] = name
    call.attributes[names.USAGE_DEFERRED] = True
    ONCE.asked.add(name, once.here(call.state.seconds, call.span))
    bill(call.state.client, operation)


def bill(client: Any, operation: Any) -> None:
    """Make the span of an operation, if it is one of videos and they are made."""
    operation = fields(operation)
    name = operation.get("name")
    answer = fields(operation.get("response") or operation.get("result"))
    made = sum(1 for item in answer.get("generated_videos") or () if fields(item).get("video"))
    if operation.get("done") is not True or not isinstance(name, str) or not made:
        return
    origin: once.Origin | None = ONCE.asked.get(name)
    seconds = origin.told if origin is not None else None
    found = _MODEL.search(name)
    model = found[1] if found else None
    attributes = {**client_attributes(client), names.RESPONSE_ID: name}
    # Without any usage it is no call that was free, but one that nobody can price.
    attributes[names.OPERATION_NAME] = names.OPERATION_INFERENCE if seconds is None else SUBMIT
    if model is not None:
        attributes[names.REQUEST_MODEL] = model

    def fill(call: Call) -> None:
        if seconds is not None:
            call.attributes[_SECONDS] = float(made * seconds)

    ONCE.emit(
        name,
        SUBMIT if model is None else f"{SUBMIT} {model}",
        attributes,
        fill,
        start_ns=None,
        origin=origin,
        namespace=attributes[names.PROVIDER_NAME],
    )


def _looked(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    bill(instance._api_client, result)


def finish(call: Call) -> None:
    """Say how often it was tried."""
    attempts.known(call)
