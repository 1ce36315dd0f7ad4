"""Attributes that are put together when somebody looks at them.

A span that is not sampled is mostly not looked at: most samplers decide by the trace id or by the parent, and then what
a call begins with is never read from its arguments. A sampler that does look at attributes finds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any


class LaterAttributes(MutableMapping[str, Any]):
    """``read(*args)`` as a mapping, called once and not before it is needed.

    Args:
        read: ``(*args) -> dict``, may raise; nobody else is to hold the dict.
        args: what it is called with.
    """

    __slots__ = ("_args", "_made", "_read")

    def __init__(self, read: Callable[..., dict[str, Any]], *args: Any) -> None:
        self._read = read
        self._args = args
        self._made: dict[str, Any] | None = None

    def now(self) -> dict[str, Any]:
        """The dict itself."""
        made = self._made
        if made is None:
            made = self._made = self._read(*self._args)
            # What it was read from may be large, and is the program's.
            self._args = ()
        return made

    def __getitem__(self, key: str) -> Any:
        return self.now()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.now()[key] = value

    def __delitem__(self, key: str) -> None:
        del self.now()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.now())

    def __len__(self) -> int:
        return len(self.now())

    def __repr__(self) -> str:
        return repr(self.now())

    # As a dict has them: samplers hand attributes on behind a read-only view, which passes these on.
    def items(self) -> Any:
        return self.now().items()

    def copy(self) -> dict[str, Any]:
        return self.now().copy()

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**self.now(), **other}

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return {**other, **self.now()}


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes as a dict that is to be read, or added to by who made them."""
    if type(attributes) is dict:
        return attributes
    return attributes.now() if isinstance(attributes, LaterAttributes) else dict(attributes)
