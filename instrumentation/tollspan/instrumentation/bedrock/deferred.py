"""Invocations that Bedrock answers later, into a bucket: asked for by one call, billed once, when they are completed.

In: ``StartAsyncInvoke`` and ``GetAsyncInvoke``. Out: the call that asks says that its usage comes later; what was used
stands on a span of derived identity (`once`), which every process that sees the invocation completed makes alike. A
video is billed by its seconds, and those only the request tells: a process that did not ask makes a span without usage,
as it is for any other model. One that failed costs nothing, and one that nobody asks after is told by nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tollspan.instrumentation import once
from tollspan.instrumentation.bedrock.requests import client_attributes, fields, operation_of
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("bedrock")
_SECONDS: Final = names.usage("video.seconds")
_SHOT: Final = 6
"""Seconds of a shot, where a request lists its shots (Nova user guide, video generation, read 2026-11-21)."""


class Asked(NamedTuple):
    """What was asked for: the model, and the seconds of video where the request tells them."""

    model: str | None
    seconds: float | None


def seconds_of(asked: Mapping[str, Any]) -> float | None:
    """Seconds of video that the model's own input asks for; None where it does not say.

    Args:
        asked: ``modelInput``: of Nova Reel, or of Luma's models, which write ``"5s"``.
    """
    shots = fields(asked.get("multiShotManualParams")).get("shots")
    if asked.get("taskType") == "MULTI_SHOT_MANUAL" and isinstance(shots, list):
        return float(_SHOT * len(shots))
    told = fields(asked.get("videoGenerationConfig")).get("durationSeconds", asked.get("duration"))
    if isinstance(told, str) and told.endswith("s") and told[:-1].isdecimal():
        return float(told[:-1])
    return float(told) if type(told) in (int, float) else None


def started(call: Call, result: Mapping[str, Any]) -> None:
    """Read the response of ``StartAsyncInvoke``."""
    arn = result.get("invocationArn")
    if isinstance(arn, str):
        call.attributes[names.RESPONSE_ID] = arn
        call.attributes[names.USAGE_DEFERRED] = True
        asked = Asked(call.opened.get(names.REQUEST_MODEL), seconds_of(call.state.input))
        ONCE.asked.add(arn, once.here(asked, call.span))


def bill(client: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Make the span of an invocation if it is completed.

    Args:
        client: attributes of the client that asked after it.
        result: response of ``GetAsyncInvoke``.
    """
    arn = result.get("invocationArn")
    if result.get("status") != "Completed" or not isinstance(arn, str):
        return
    origin: once.Origin | None = ONCE.asked.get(arn)
    model = result.get("modelArn") if origin is None else origin.told.model
    seconds = None if origin is None else origin.told.seconds
    operation = operation_of(model or "")
    attributes = {**client, names.OPERATION_NAME: operation, names.RESPONSE_ID: arn}
    if model:
        attributes[names.REQUEST_MODEL] = model

    def fill(call: Call) -> None:
        if seconds is not None:
            call.attributes[_SECONDS] = seconds

    ONCE.emit(
        arn,
        f"{operation} {model}" if model else operation,
        attributes,
        fill,
        start_ns=once.instant(result.get("submitTime")),
        end_ns=once.instant(result.get("endTime")),
        origin=origin,
        namespace="bedrock",
    )


def _looked(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    operation = args[0] if args else kwargs.get("operation_model")
    if getattr(operation, "name", None) == "GetAsyncInvoke":
        meta = instance.meta
        bill(client_attributes(str(meta.endpoint_url), meta.region_name), fields(result[1]))


def patch(patches: Patches) -> None:
    """Look at the invocations that the program asks after."""
    ONCE.after(patches, "botocore.client:BaseClient._make_request", _looked, False)
    ONCE.after(patches, "aiobotocore.client:AioBaseClient._make_request", _looked, True)
