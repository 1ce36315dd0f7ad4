"""Groq's compound systems: several models answer one call, and each is billed at its own price.

In: ``usage_breakdown`` of a response, or of the last chunk of a stream (there in ``x_groq``), and the tools that were
executed. Out: a child span for each model with what that model used, which is what is billed; the span of the call then
says that its usage stands elsewhere, and bears none, so that nothing is counted twice. A breakdown that does not name
every model leaves the call's own usage where it is: without a price, as a compound system has none.

Searches of the web that Groq ran itself are billed beside the tokens: they are counted on the call, also where one
model alone ran them. What Groq asks for its other tools is by time, which it does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.tables import given
from tollspan.instrumentation.usage import put_usage
from tollspan.pricing import attributes as names

ONCE: Final = once.of("groq")

_SEARCHES: Final = names.usage("web_searches")
_USAGE: Final = ("gen_ai.usage.", names.USAGE_PREFIX)
_SHARED: Final = (
    *(names.PROVIDER_NAME, names.SERVER_ADDRESS, names.SERVER_PORT),
    *(names.OPENAI_REQUEST_SERVICE_TIER, names.OPENAI_RESPONSE_SERVICE_TIER),
)
"""Attributes of the call that are each model's too."""


def models_of(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Models and their usage, of a response or of what a stream's chunk has in ``x_groq``; empty where not told."""
    found = []
    for entry in given(fields.get("usage_breakdown")).get("models") or ():
        entry = given(entry)
        model, usage = entry.get("model"), entry.get("usage")
        if not isinstance(model, str) or not model or usage is None:
            return []
        found.append((model, usage))
    return found


def searches_of(said: Mapping[str, Any]) -> set[int]:
    """Numbers of the executed tools that searched the web, of a message or of what a chunk adds to one."""
    tools = [given(tool) for tool in said.get("executed_tools") or ()]
    return {
        tool["index"]
        for tool in tools
        if type(tool.get("index")) is int and given(tool.get("search_results")).get("results") is not None
    }


def tell_searches(call: Call, searches: set[int]) -> None:
    """Count the searches that the call is billed for."""
    if searches:
        call.attributes[_SEARCHES] = len(searches)


def split(call: Call, provider: str, models: list[tuple[str, Any]]) -> None:
    """Put what each model used on a span of its own, below the call's, and take it off the call's."""
    said = {**call.opened, **call.attributes}
    shared: dict[str, Any] = {key: said[key] for key in _SHARED if key in said}
    before = call.enter()
    try:
        for model, usage in models:
            attributes: dict[str, Any] = {**shared, names.OPERATION_NAME: "chat", names.RESPONSE_MODEL: model}
            made = ONCE.record(f"chat {model}", attributes, _filling(provider, model, usage))
            if made is None:
                return
    finally:
        call.leave(before)
    for name in [name for name in call.attributes if name.startswith(_USAGE) and name != _SEARCHES]:
        del call.attributes[name]
    call.attributes.pop(names.USAGE_INVALID, None)
    call.attributes[names.USAGE_DEFERRED] = True


def _filling(provider: str, model: str, usage: Any) -> once.Fill:
    return lambda call: put_usage(call, provider, usage, model=model)
