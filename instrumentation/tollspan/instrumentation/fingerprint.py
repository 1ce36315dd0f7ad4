"""Fingerprints of requests: equal requests can be counted, and nobody can tell what they were.

In: the arguments of a call. Out: ``tollspan.request.fingerprint``, a keyed BLAKE2b hash (128 bits) of the request's
canonical form: provider, operation, and every argument but those in `NOT_THE_REQUEST` and credentials at any depth, as
JSON with sorted keys. What is null or left out is the same, and so are a model and the dict that says what it says.

The key is a secret of the deployment, `FINGERPRINT_KEY` in the environment; equal requests of all its processes then
have equal fingerprints, and without the key nobody can try out prompts against them. Without a key there are no
fingerprints: a random key for each process would make the same request look different in every replica, and the count
of duplicates quietly too low.

A request that has no canonical form (an open file, an iterator, which must not be read here) has no fingerprint.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from enum import Enum
from json import JSONEncoder
from typing import Any, Final, Literal, get_args, get_origin

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.credentials import is_credential
from tollspan.pricing import attributes as names

NOT_THE_REQUEST: Final = frozenset(
    {
        # how it is sent
        *("timeout", "extra_headers", "extra_query", "headers", "http_headers", "idempotency_key", "max_retries"),
        *("request_options", "retries", "retry_config", "server_url", "timeout_ms", "base_url", "accepts"),
        *("keep_alive",),
        # how the answer comes
        *("stream", "stream_options"),
        # who asks and why, which differs between requests that are otherwise the same
        *("metadata", "user", "safety_identifier", "prompt_cache_key", "litellm_params", "litellm_call_id"),
        *("user_profile_id", "diagnostics", "requestMetadata", "clientRequestToken"),
    }
)
"""Arguments that do not change what is asked for."""

_UNSET: Final = frozenset({"NotGiven", "Omit", "Unset", "UnsetType", "ellipsis"})
"""Classes of the sentinels by which client libraries know what was not given."""

_FETCH: Final = "fetch_response"
"""Operation that asks a model nothing: whoever waits for an answer fetches it again and again."""

_LARGEST: Final = 1 << 20
"""Bytes of a binary argument that are hashed; a request with a larger one has no fingerprint."""


class _NoForm(Exception):
    """A value that has no canonical form."""


_SIMPLE: Final = frozenset({str, int, float, bool, type(None)})


def _form(value: Any) -> Any:
    """What stands in the canonical form for a value."""
    kind = type(value)
    if kind in _SIMPLE:
        return value
    if kind is not dict and isinstance(value, Enum):
        return value.value
    if kind is dict or isinstance(value, Mapping):
        return {name: _form(each) for name, each in value.items() if _counts(name, each)}
    if isinstance(value, (list, tuple)):
        return [_form(each) for each in value]
    if isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        if len(value) > _LARGEST:
            raise _NoForm
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    if isinstance(value, type):
        # A schema given as a class: what its fields are is in its code, and so in its name.
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(type(value), "model_dump"):
        # What a server sent may be of other types than its model says; the program is not to be warned by us.
        dumped = type(value).model_dump(value, mode="json", exclude_unset=True, warnings=False)
        return _form(_tagged(value, dumped))
    if type(value).__name__ in _UNSET:
        return None
    raise _NoForm


def _counts(name: Any, value: Any) -> bool:
    """Whether a field of a request, at any depth, is part of what is asked for."""
    kind = type(value)
    if kind is str:
        return not (isinstance(name, str) and is_credential(name))
    if value is None or kind.__name__ in _UNSET:
        return False
    if name == "headers":  # of a remote tool: whatever they are called, they may be what it is trusted with
        return not isinstance(value, Mapping)
    return not (isinstance(value, str) and isinstance(name, str) and is_credential(name))


def _tagged(model: Any, dumped: Any) -> Any:
    """A dump with the fields that tell a model's kind, as ``role`` and ``type`` do, which nobody has to set."""
    if isinstance(model, (list, tuple)) and isinstance(dumped, list):
        for one, other in zip(model, dumped, strict=False):
            _tagged(one, other)
    elif isinstance(model, Mapping) and isinstance(dumped, dict):
        for name, each in model.items():
            _tagged(each, dumped.get(name))
    elif hasattr(type(model), "model_dump") and isinstance(dumped, dict):
        kind: Any = type(model)
        for name, tag in _tags(kind):
            if dumped.get(name) is None:
                dumped[name] = tag
        for name, each in vars(model).items():
            _tagged(each, dumped.get(name))
    return dumped


@functools.lru_cache(maxsize=1024)
def _tags(kind: Any) -> tuple[tuple[str, str], ...]:
    """Fields of a class of models that can have but one value, and that value."""
    tags = []
    for name, field in getattr(kind, "model_fields", {}).items():
        default = field.default
        for annotation in (field.annotation, *get_args(field.annotation)):
            if get_origin(annotation) is Literal and isinstance(default, str) and get_args(annotation) == (default,):
                tags.append((name, default))
                break
    return tuple(tags)


_encode: Final = JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def canonical(target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], opened: Mapping[str, Any]) -> str | None:
    """Canonical form of a request; None where it has none.

    Args:
        target: of the wrap point; tells whether ``args[0]`` is an instance.
        args, kwargs: of the call.
        opened: attributes that its span began with.
    """
    positional = args[1:] if "." in target.rpartition(":")[2] else args
    try:
        asked = {
            name: _form(value)
            for name, value in kwargs.items()
            if name not in NOT_THE_REQUEST and _counts(name, value) and not is_credential(name)
        }
        return _encode([opened.get(names.PROVIDER_NAME), opened.get(names.OPERATION_NAME), _form(positional), asked])
    except (_NoForm, TypeError, ValueError, RecursionError):
        return None


class Fingerprints:
    """Fingerprints under one key.

    Args:
        key: secret of the deployment, text of any length.
    """

    def __init__(self, key: str) -> None:
        # A key of the hash has at most 64 bytes.
        self._keyed = hashlib.blake2b(key=hashlib.blake2b(key.encode()).digest(), digest_size=16)

    def of(self, form: str) -> str:
        """Fingerprint of a canonical form: 32 hexadecimal digits."""
        keyed = self._keyed.copy()
        keyed.update(form.encode("utf-8", "surrogatepass"))
        return keyed.hexdigest()

    def began(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put a call's fingerprint among its attributes."""
        if call.opened.get(names.OPERATION_NAME) == _FETCH:
            return
        point = call.point
        positional, asked = (args, kwargs) if point.asked is None else ((), point.asked(args, kwargs))
        if not asked and not positional[1:]:
            return
        form = canonical(point.target, positional, asked, call.opened)
        if form is not None:
            call.attributes[names.REQUEST_FINGERPRINT] = self.of(form)
