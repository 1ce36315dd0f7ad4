"""Putting wrappers in the place of a library's functions, and the originals back.

In: targets (``"package.module:Class.method"``), each with a function that makes the wrapper of an original. Out:
classes and modules whose attribute is the wrapper for as long as the `Patches` are applied. A library is patched when
the program imports it and not before, so that switching us on imports nothing. Taking off restores the very object that
was there; where somebody else has wrapped ours meanwhile, it stays underneath and passes calls through
(`Patches.active`).
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import wrapt

from tollspan.instrumentation.guard import guard

_log: Final = logging.getLogger(__name__)
_ABSENT: Final = object()
_APPLY: Final = guard("wrapping.apply")
_REMOVE: Final = guard("wrapping.remove")

Make = Callable[[Any], Any]
"""Original function → its wrapper."""


class Patches:
    """A set of attributes that are replaced together and restored together.

    Attributes:
        active: False once removed. Wrappers look at it first and, when it is False, only call the original: bound
            methods that the program took while we were there outlive the patch.
    """

    __slots__ = ("_lock", "_pending", "_placed", "active")

    def __init__(self) -> None:
        self.active = False
        self._lock = threading.Lock()
        self._pending: dict[object, Make] = {}
        self._placed: list[tuple[Any, str, Any, Any]] = []  # owner, name, what stood there, wrapper

    def add(self, target: str, make: Make, after: str | None = None) -> None:
        """Replace ``target`` by ``make(original)``, now if its module is imported, else when it is.

        Args:
            target: ``"package.module:Class.method"`` or ``"package.module:function"``. One that the installed version
                of the library lacks is left out, with a line in the log at DEBUG.
            make: called once, with the original as found on its owner. Must not raise.
            after: module whose import is waited for in place of the target's own, and which imports that one.
        """
        self.active = True
        patch = object()  # a target may be patched for more than one reason
        self._pending[patch] = make
        home = target.partition(":")[0]

        def imported(module: ModuleType) -> None:
            with _APPLY:
                if after is not None:
                    module = sys.modules.get(home, module)
                self._place(module, target, patch)

        with _APPLY:
            wrapt.register_post_import_hook(imported, after or home)

    def _place(self, module: ModuleType, target: str, patch: object) -> None:
        with self._lock:
            make = self._pending.pop(patch, None)
            if make is None or not self.active:
                return  # removed before the library came, or placed already
            *path, name = target.partition(":")[2].split(".")
            owner: Any = module
            for part in path:
                owner = getattr(owner, part, None)
            original = getattr(owner, name, None)
            if original is None:
                _log.debug("%s is not there in this version of the library; its calls are not seen", target)
                return
            # What stands in the owner's own namespace, which for an inherited method is nothing.
            stood = vars(owner).get(name, _ABSENT)
            wrapper = make(original)
            setattr(owner, name, wrapper)
            self._placed.append((owner, name, stood, wrapper))

    def remove(self) -> None:
        """Restore every original. Afterwards wrappers that are still referenced pass their calls through."""
        with self._lock:
            self.active = False
            self._pending.clear()
            for owner, name, stood, wrapper in reversed(self._placed):
                with _REMOVE:
                    if vars(owner).get(name) is not wrapper:
                        continue
                    if stood is _ABSENT:
                        delattr(owner, name)
                    else:
                        setattr(owner, name, stood)
            self._placed.clear()
