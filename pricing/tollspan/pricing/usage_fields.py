"""Usage objects by their fields: from JSON or an SDK's object to flat names.

In: mappings, models of SDKs, protobuf messages, however deep. Out: scalars by flat name, as the paths in `usage_shapes`
are written. Nothing here raises, whatever an object does when it is asked, and nothing is changed.

The same object can be walked without making names: `walk` gives its structure, which is equal for objects whose flat
names are, and its scalars in the order of that structure; `placed` gives the positions of those scalars by flat name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

DEEPEST: Final = 6
"""Levels of a usage object that are looked at."""

NO_SCALAR: Final = object()
"""Stands in flat names for what is a list or a mapping: where a count is expected, it is none."""

_TAGS: Final = ("modality", "ttl", "type")
"""Fields by which the items of a list are told apart."""
_SCALARS: Final = (int, float, str, Decimal)
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_GROUP, _LIST, _ITEM, _NUMBER, _END = range(5)
"""Marks in a structure, between the names of fields and the tags of items."""


def flat_of(usage: Any) -> dict[str, Any]:
    """Scalars of an object by flat name (`usage_shapes` says how names are made); what stands under one name several
    times, in a list, is a tuple. Where the object has no scalar, and in lists whose items nothing tells apart, there is
    `NO_SCALAR` before what was found: a count that is read there cannot be right."""
    out: dict[str, Any] = {}
    _flatten(fields_of(usage), "", out, DEEPEST)
    return out


def _flatten(fields: Mapping[Any, Any], prefix: str, out: dict[str, Any], levels: int) -> None:
    for key, value in fields.items():
        if value is None or not isinstance(key, str) or key.startswith("_"):
            continue
        name = prefix + _snake(key)
        if isinstance(value, _SCALARS):
            out.setdefault(name, value)
        elif not levels:
            continue
        elif isinstance(value, (list, tuple)):
            out.setdefault(name, NO_SCALAR)
            for item in value:
                more = _flat_item(item, name, levels - 1)
                for below, found in more.items():
                    out[below] = (*several(out[below]), *several(found)) if below in out else found
        else:
            out.setdefault(name, NO_SCALAR)
            _flatten(fields_of(value), f"{name}.", out, levels - 1)


def _flat_item(item: Any, name: str, levels: int) -> dict[str, Any]:
    """An item of a list under its tag; one without a tag, or without fields, behind `NO_SCALAR`."""
    fields = fields_of(item)
    tag = _tag(fields)
    more: dict[str, Any] = {}
    if tag is not None:
        _flatten(fields, f"{name}.{tag}.", more, levels)
        return more
    _flatten(fields, f"{name}.", more, levels)
    if is_number(item):
        more[name] = item
    return {below: (NO_SCALAR, *several(found)) for below, found in more.items()}


def walk(fields: Mapping[Any, Any], structure: list[Any], scalars: list[Any], levels: int = DEEPEST) -> None:
    """Walk an object as `flat_of` does, without making names.

    Args:
        fields: of the object, `fields_of`.
        structure: what tells the flat names is added to it, hashable.
        scalars: the scalars are added to it.
        levels: how deep to look.
    """
    for name, value in fields.items():
        if value is None or not isinstance(name, str) or name.startswith("_"):
            continue
        structure.append(name)
        if type(value) is int or isinstance(value, _SCALARS):
            scalars.append(value)
        elif not levels:
            structure.pop()
        elif isinstance(value, (list, tuple)):
            structure.append(_LIST)
            for item in value:
                below = fields_of(item)
                tag = _tag(below)
                structure.append(_ITEM)
                structure.append(tag)
                walk(below, structure, scalars, levels - 1)
                if tag is None and is_number(item):
                    structure.append(_NUMBER)
                    scalars.append(item)
            structure.append(_END)
        else:
            structure.append(_GROUP)
            walk(fields_of(value), structure, scalars, levels - 1)
            structure.append(_END)


def placed(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """`flat_of`, with a `Place` for each scalar: its position in what `walk` gives. One for each structure."""
    out: dict[str, Any] = {}
    _flatten(_places(fields, DEEPEST, iter(range(2**62)).__next__), "", out, DEEPEST)
    return out


class Place:
    """Position of a scalar.

    Attributes:
        at: index in the scalars.
    """

    __slots__ = ()
    at: int


class _TextPlace(str, Place):
    """Place of a string, which may be the tag of its item."""


class _NumberPlace(float, Place):
    """Place of anything else; in a list, a number."""


def _places(fields: Mapping[Any, Any], levels: int, count: Any) -> dict[str, Any]:
    """An object of the same structure, with places for scalars."""
    out: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None or not isinstance(name, str) or name.startswith("_"):
            continue
        if isinstance(value, _SCALARS):
            out[name] = _place(value, count())
        elif levels and isinstance(value, (list, tuple)):
            items: list[Any] = []
            for item in value:
                items.append(below := _places(fields_of(item), levels - 1, count))
                if is_number(item) and _tag(below) is None:
                    items.append(_place(item, count()))
            out[name] = items
        elif levels:
            out[name] = _places(fields_of(value), levels - 1, count)
    return out


def _place(value: Any, position: int) -> Any:
    place: Any = _TextPlace(str.__str__(value)) if isinstance(value, str) else _NumberPlace()
    place.at = position
    return place


def _tag(fields: Mapping[Any, Any]) -> str | None:
    """Tag of a list's item, in lower case."""
    for name in _TAGS:
        if isinstance(tag := fields.get(name), str):
            return tag.lower()
    return None


def fields_of(value: Any) -> Mapping[Any, Any]:
    """Fields of a mapping or of an SDK's object, one level deep; what has none, or raises when asked, has no fields."""
    if isinstance(value, dict):
        return value
    if value is None or isinstance(value, (str, bytes, int, float, list, tuple, type)):
        return {}
    try:
        return _fields_of(value)
    except Exception:  # noqa: BLE001  (it is the code of another: whatever it raises must not end the user's call)
        return {}


def _fields_of(value: Any) -> Mapping[Any, Any]:
    if _is_mapping(value.__class__):
        return dict(value)
    # The instance dict is read directly: dumping a whole response would copy its text.
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        more = own.get("__pydantic_extra__") or getattr(value, "__pydantic_extra__", None)
        return own | more if more and isinstance(more, dict) else own
    if callable(dump := getattr(value, "model_dump", None)):
        made = dump()
    else:  # protobuf, as xAI's SDK has it
        made = {known.name: getattr(value, known.name) for known in value.DESCRIPTOR.fields}
    return made if isinstance(made, Mapping) else {}


@lru_cache(maxsize=1024)
def _is_mapping(kind: type) -> bool:
    return issubclass(kind, Mapping)


def several(value: Any) -> tuple[Any, ...]:
    """What stands under a flat name, one or more."""
    return value if isinstance(value, tuple) else (value,)


@lru_cache(maxsize=4096)
def _snake(key: str) -> str:
    return _HUMP.sub("_", key).lower()


def is_number(value: Any) -> bool:
    """Whether a value is a number; a truth value is none."""
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
