"""Fingerprints of requests: equal requests can be counted, and nobody can tell what they were.

In: the arguments of a call. Out: ``tollspan.request.fingerprint``, a keyed BLAKE2b hash (128 bits) of the request's
canonical form: provider, operation, and every argument but those in `NOT_THE_REQUEST`, as JSON with sorted keys.

The key is a secret of the deployment, `FINGERPRINT_KEY` in the environment; equal requests of all its processes then
have equal fingerprints, and without the key nobody can try out prompts against them. Without a key there are no
fingerprints: a random key for each process would make the same request look different in every replica, and the count
of duplicates quietly too low.

A request that has no canonical form (an open file, an iterator, which must not be read here) has no fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from json import JSONEncoder
from typing import Any, Final

from tollspan.instrumentation.calls import Call
from tollspan.pricing import attributes as names

NOT_THE_REQUEST: Final = frozenset(
    {
        # how it is sent
        *("timeout", "extra_headers", "extra_query", "headers", "http_headers", "idempotency_key", "max_retries"),
        *("request_options", "retries", "retry_config", "server_url", "timeout_ms"),
        # how the answer comes
        *("stream", "stream_options"),
        # who asks and why, which differs between requests that are otherwise the same
        *("metadata", "user", "safety_identifier", "prompt_cache_key", "litellm_params", "litellm_call_id"),
    }
)
"""Arguments that do not change what is asked for."""

_UNSET: Final = frozenset({"NotGiven", "Omit", "Unset", "UnsetType"})
"""Classes of the sentinels by which client libraries know what was not given."""

_LARGEST: Final = 1 << 20
"""Bytes of a binary argument that are hashed; a request with a larger one has no fingerprint."""


class _NoForm(Exception):
    """A value that has no canonical form."""


def _plain(value: Any) -> Any:
    """What stands in the canonical form for a value that JSON has no form for."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        if len(value) > _LARGEST:
            raise _NoForm
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    if isinstance(value, type):
        # A schema given as a class: what its fields are is in its code, and so in its name.
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    dump = getattr(type(value), "model_dump", None)
    if dump is not None:
        return dump(value, mode="json", exclude_unset=True)
    if type(value).__name__ in _UNSET:
        return None
    raise _NoForm


_encode: Final = JSONEncoder(sort_keys=True, separators=(",", ":"), default=_plain, check_circular=True).encode


def canonical(target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], opened: Mapping[str, Any]) -> str | None:
    """Canonical form of a request; None where it has none.

    Args:
        target: of the wrap point; tells whether ``args[0]`` is an instance.
        args, kwargs: of the call.
        opened: attributes that its span began with.
    """
    asked = {
        name: value
        for name, value in kwargs.items()
        if value is not None and name not in NOT_THE_REQUEST and type(value).__name__ not in _UNSET
    }
    positional = args[1:] if "." in target.rpartition(":")[2] else args
    try:
        return _encode([opened.get(names.PROVIDER_NAME), opened.get(names.OPERATION_NAME), positional, asked])
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
        point = call.point
        if point.asked is None:
            form = canonical(point.target, args, kwargs, call.opened)
        else:
            form = canonical(point.target, (), point.asked(args, kwargs), call.opened)
        if form is not None:
            call.attributes[names.REQUEST_FINGERPRINT] = self.of(form)
