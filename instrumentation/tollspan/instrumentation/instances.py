"""What we remember of one object of the user's, for as long as it lives, without touching it.

In: an object (a model, a session). Out: the one note kept for it. Where it stands: below the modules that tell a first
call from later ones. Nothing is stored on the object, where it would be pickled and copied with it; nothing here keeps
it alive; and its own idea of equality and hashing is not asked.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerInstance(Generic[T]):
    """Notes by object identity.

    Args:
        make: object → its note; called the first time that the object is seen. The note must not refer to the object
            strongly, or neither is ever freed.
    """

    __slots__ = ("_make", "_notes")

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._notes: dict[int, tuple[weakref.ref[Any], T]] = {}

    def __len__(self) -> int:
        return len(self._notes)

    def of(self, instance: Any) -> T:
        """The note of ``instance``, made now if there is none.

        Raises:
            TypeError: objects of this class cannot be referred to weakly.
        """
        key = id(instance)
        entry = self._notes.get(key)
        if entry is not None and entry[0]() is instance:
            return entry[1]
        notes = self._notes

        def forget(gone: weakref.ref[Any]) -> None:
            entry = notes.get(key)
            if entry is not None and entry[0] is gone:
                del notes[key]

        made = (weakref.ref(instance, forget), self._make(instance))
        # Of two threads that see an object first at the same moment, both get the note of one.
        kept = notes.setdefault(key, made)
        if kept[0]() is instance:
            return kept[1]
        notes[key] = made
        return made[1]
