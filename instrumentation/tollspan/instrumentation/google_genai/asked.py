"""What a call of the ``google-genai`` client asks for, as one mapping, for `WrapPoint.asked`.

In: keyword arguments, in the many forms that the client takes: strings, lists, dicts in either case, models, functions
in the place of tools. Out: a mapping in which the same request is always the same: contents and instructions as the
client's own models, the configuration by the client's names for its fields, without what only tells the client how to
send it. An empty one where nothing is asked of a model, as by a poll.

Called only where somebody wants the whole request.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation.google_genai.readers import fields, short_model, snake

CLIENTS_OWN: Final = frozenset(
    {
        *("http_options", "should_return_http_response", "automatic_function_calling", "automatic_continuation"),
        *("labels", "webhook_config", "api_version", "stream", "background", "store"),
        *("extra_headers", "extra_query", "extra_body", "timeout", "request"),
    }
)
"""Fields that say how it is sent and answered, and who asks, and not what is asked."""

_CONTINUED: Final = "continuation_token"
"""Field that names what is gone on with; by its name alone it would pass for a credential."""


def nothing(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """Of a call that asks nothing of a model: it polls, fetches, or receives."""
    return {}


def generation(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """Of the methods of ``Models``: ``model``, what the method takes beside, and the fields of ``config``."""
    config = {snake(name): value for name, value in fields(kwargs.get("config")).items()}
    asked = _named({**config, **{name: value for name, value in kwargs.items() if name != "config"}})
    if asked.get("contents") is not None:
        asked["contents"] = _contents(asked["contents"])
    if asked.get("system_instruction") is not None:
        asked["system_instruction"] = _contents(asked["system_instruction"])
    if isinstance(asked.get("tools"), list):
        asked["tools"] = [_tool(tool) for tool in asked["tools"]]
    return asked


def interaction(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """Of ``Interactions.create``, whose arguments are fields of a request, or one request that has them."""
    body = fields(fields(kwargs.get("request")).get("body")) or kwargs
    extra = kwargs.get("extra_body")
    return _named({**body, **extra} if isinstance(extra, Mapping) else body)


def _named(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the fields that were given those that say what is asked."""
    asked = {name: value for name, value in given.items() if value is not None and name not in CLIENTS_OWN}
    if _CONTINUED in asked:
        asked["continued"] = asked.pop(_CONTINUED)
    if "model" in asked:
        asked["model"] = short_model(asked["model"])
    return asked


def _contents(contents: Any) -> Any:
    """Contents as the client would send them; what it would refuse stays as it is."""
    # Loaded: the call could not have been made otherwise.
    from google.genai._transformers import t_contents

    if inspect.isgenerator(contents) or "image" in type(contents).__name__.lower():
        return contents
    if isinstance(contents, list) and any("image" in type(item).__name__.lower() for item in contents):
        return contents  # a picture of PIL's: to encode it would cost more than the whole call
    try:
        return t_contents(contents)
    except Exception:  # noqa: BLE001 (the client will tell the program)
        return contents


def _tool(tool: Any) -> Any:
    """A tool; a function in the place of one is told by its name and by what it says of itself."""
    if not inspect.isroutine(tool):
        return tool
    declaration = {"name": tool.__name__, "description": inspect.getdoc(tool)}
    return {"function_declarations": [declaration]}
