"""What a call of LiteLLM's asks for, apart from how LiteLLM is to ask it.

In: arguments of its functions, by position or by name. Out: one mapping of the request by OpenAI's names, for
`WrapPoint.asked`: what goes to the model, without credentials, addresses, callbacks, routing and the many other
arguments that LiteLLM keeps to itself. It has a list of those; it is read where it is loaded.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation.credentials import is_credential

Split = Callable[[Any, str | None], tuple[str | None, Any]]
"""``(model, provider)`` as asked for → LiteLLM's provider, and the model as that provider knows it."""

CONTROL: Final = frozenset(
    {
        *("additional_drop_params", "api_type", "arerank", "aresponses", "aspeech", "atranscription", "base_url"),
        *("caching", "client", "custom_llm_provider", "drop_params", "is_async", "logger_fn", "model_group"),
        *("model_list", "organization", "original_function", "project", "shared_session", "specific_deployment"),
    }
)
"""Arguments that are LiteLLM's own and stand on no list of its."""

BEGINNINGS: Final = ("_", "api_", "aws_", "azure_", "litellm_", "vertex_", "watsonx_")
"""Of arguments that say where and as whom LiteLLM is to ask."""

TEMPLATES: Final = frozenset({"prompt_id", "prompt_label", "prompt_variables", "prompt_version"})
"""Arguments on LiteLLM's list that decide what the model is asked all the same."""


def asking(target: str, split: Split) -> Callable[[tuple[Any, ...], dict[str, Any]], Mapping[str, Any]]:
    """`WrapPoint.asked` for one function of LiteLLM's."""

    def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        given = named(target, args, kwargs)
        kept = _kept()
        request = {
            name: value
            for name, value in given.items()
            if name not in kept and not name.startswith(BEGINNINGS) and not is_credential(name)
        }
        provider = given.get("custom_llm_provider")
        _, request["model"] = split(given.get("model"), provider if isinstance(provider, str) else None)
        return request

    return asked


def named(target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """All arguments of a function of LiteLLM's by name."""
    return {**dict(zip(_parameters(target), args, strict=False)), **kwargs} if args else kwargs


@functools.cache
def _parameters(target: str) -> tuple[str, ...]:
    home, _, function = target.partition(":")
    found = inspect.signature(getattr(sys.modules[home], function)).parameters.values()
    return tuple(each.name for each in found if each.kind is each.POSITIONAL_OR_KEYWORD)


@functools.cache
def _kept() -> frozenset[str]:
    """Arguments that LiteLLM keeps to itself."""
    listed = getattr(sys.modules.get("litellm.types.utils"), "all_litellm_params", ())
    return (CONTROL | frozenset(listed)) - TEMPLATES
