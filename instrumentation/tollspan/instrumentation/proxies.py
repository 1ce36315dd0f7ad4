"""Stand-ins for a library's objects that a program cannot tell from them.

In: an object, and a class with the few methods that are to be other than the object's. Out: an instance of a class made
for this purpose, once for each class of objects: it has those of the special methods that the object's class has, and
passes everything else on. A general proxy has all special methods that there are: a generator would look like a context
manager, an asynchronous stream like an iterable, and programs that ask before they act would act wrongly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

__all__ = ["Proxy", "stand_in"]

_ITSELF: Final = frozenset((*dir(object), "__class_getitem__", "__del__", "__getattr__"))
"""Special methods that `Proxy` answers by itself, or that are nobody's to pass on."""


class Proxy:
    """Base of stand-ins; everything that a subclass does not define is the object's own. Made by `stand_in`.

    A subclass' slots have names that no library has.

    Attributes:
        special: special methods that are other than the object's, by name, where the object has them at all.
    """

    __slots__ = ("__weakref__", "_tollspan_subject")

    special: ClassVar[Mapping[str, Callable[..., Any]]] = MappingProxyType({})

    def __init__(self, subject: Any) -> None:
        _set(self, "_tollspan_subject", subject)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._tollspan_subject.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tollspan_subject, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._tollspan_subject, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._tollspan_subject, name)

    def __dir__(self) -> list[str]:
        return dir(self._tollspan_subject)

    def __repr__(self) -> str:
        return repr(self._tollspan_subject)

    def __str__(self) -> str:
        return str(self._tollspan_subject)

    def __format__(self, how: str) -> str:
        return format(self._tollspan_subject, how)

    def __hash__(self) -> int:
        return hash(self._tollspan_subject)

    def __eq__(self, other: object) -> Any:
        return self is other or self._tollspan_subject == _subject(other)

    def __ne__(self, other: object) -> Any:
        return self is not other and self._tollspan_subject != _subject(other)

    def __sizeof__(self) -> int:
        return self._tollspan_subject.__sizeof__()  # type: ignore[no-any-return]

    # What is copied or pickled is the object; where that cannot be, the program gets the error that it knows.
    def __copy__(self) -> Any:
        return copy.copy(self._tollspan_subject)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._tollspan_subject, memo)

    def __reduce__(self) -> Any:
        return self._tollspan_subject.__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._tollspan_subject.__reduce_ex__(protocol)


_set: Final = object.__setattr__


def _subject(value: Any) -> Any:
    return value._tollspan_subject if issubclass(type(value), Proxy) else value


def stand_in(kind: type[Proxy], subject: Any) -> Any:
    """A stand-in of ``kind`` for ``subject``."""
    made = _classes.get(kind)
    if made is None:
        made = _classes[kind] = WeakKeyDictionary()
    of = type(subject)
    found = made.get(of)
    if found is None:
        found = made[of] = _make(kind, of)
    return found(subject)


_classes: Final[dict[type[Proxy], WeakKeyDictionary[type, type[Proxy]]]] = {}


def _make(kind: type[Proxy], of: type) -> type[Proxy]:
    """The class of stand-ins of ``kind`` for objects of the class ``of``."""
    methods = {name: method for name, method in kind.special.items() if hasattr(of, name)}
    for name in dir(of):
        special = name.startswith("__") and name.endswith("__")
        if special and name not in _ITSELF and name not in methods and callable(getattr(of, name, None)):
            methods[name] = _passed_on(name)
    looks = {"__doc__": of.__doc__, "__module__": of.__module__, "__qualname__": of.__qualname__, "__slots__": ()}
    return type(of.__name__, (kind,), {**methods, **looks})


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._tollspan_subject, name)(*args, **kwargs)

    return method
