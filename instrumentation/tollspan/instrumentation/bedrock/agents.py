"""Agents that Bedrock runs: a span for the call, and beneath it one for each model that was asked, which is billed.

In: events of ``InvokeAgent`` and ``InvokeInlineAgent``. Out: spans ``chat {model}`` with the tokens of each model
invocation, those of collaborating agents too. Only the trace tells them, and it comes where the program asks for it
(``enableTrace``); without it the log says once that agents' tokens are not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.bedrock.requests import PROVIDER, State, fields
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

_log: Final = logging.getLogger(__name__)

ONCE: Final = once.of("bedrock")

STEPS: Final = ("preProcessingTrace", "orchestrationTrace", "routingClassifierTrace", "postProcessingTrace")
"""Parts of a trace in which models are asked."""

_SHARED: Final = (names.PROVIDER_NAME, names.SERVER_ADDRESS, names.SERVER_PORT, names.CLOUD_REGION)
_said: Final[list[bool]] = []


def read_event(call: Call, event: Any) -> bool:
    """Read an event of an agent's stream."""
    trace = fields(fields(fields(event).get("trace")).get("trace"))
    state: State = call.state
    for step in STEPS:
        told = fields(trace.get(step))
        asked = fields(told.get("modelInvocationInput"))
        if isinstance(identity := asked.get("traceId"), str):
            state.models[identity] = asked.get("foundationModel")
        answered = fields(told.get("modelInvocationOutput"))
        if answered:
            _record(call, answered)
    if "chunk" in event and not state.models and not _said:
        _said.append(True)
        _log.warning(
            "tollspan: what a Bedrock agent's models used is told by its trace alone. Calls without enableTrace=True "
            "are on no bill."
        )
    return False


def _record(call: Call, answered: Mapping[str, Any]) -> None:
    metadata = fields(answered.get("metadata"))
    usage = fields(metadata.get("usage"))
    model = call.state.models.get(answered.get("traceId"))
    attributes = {name: call.opened[name] for name in _SHARED if name in call.opened}
    attributes[names.OPERATION_NAME] = "chat"
    if isinstance(request := metadata.get("clientRequestId"), str):
        attributes[names.RESPONSE_ID] = request
    if isinstance(model, str):
        attributes[names.REQUEST_MODEL] = model

    def fill(made: Call) -> None:
        put_usage(made, PROVIDER, usage or None)

    before = call.enter()
    try:
        ONCE.record(
            f"chat {model}" if isinstance(model, str) else "chat",
            attributes,
            fill,
            start_ns=once.instant(metadata.get("startTime")),
        )
    finally:
        call.leave(before)
