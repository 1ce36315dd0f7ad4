"""Putting wrappers in the place of a library's functions, and the originals back.

In: targets (``"package.module:Class.method"``), each with a function that makes the wrapper of an original. Out:
classes and modules whose attribute is the wrapper for as long as the `Patches` are applied. A library is patched when
the program imports it and not before, so that switching us on imports nothing. Taking off restores the very object that
was there; where somebody else has wrapped ours meanwhile, it stays underneath and passes calls through
(`Patches.active`).

Hooks for the import of a module cannot be taken back, and a process may be instrumented again and again. So each module
has one hook at most, and whoever waits for the module stands in a list that can be left (`waiting`).
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any, Final, cast

import wrapt

from tollspan.instrumentation.guard import guard

_log: Final = logging.getLogger(__name__)
_ABSENT: Final = object()
_APPLY: Final = guard("wrapping.apply")
_IMPORTED: Final = guard("wrapping.imported")
_REMOVE: Final = guard("wrapping.remove")

Make = Callable[[Any], Any]
"""Original function → its wrapper."""

Imported = Callable[[ModuleType], None]
"""Called with a module when the program has imported it. Must not raise."""

_lock = threading.Lock()
_hooked: Final[set[str]] = set()
"""Modules that have a hook of ours which was not called yet."""
_awaited: Final[dict[str, dict[object, Imported]]] = {}
"""Module → those who wait for it, the longest first."""


def when_imported(module: str, imported: Imported) -> Callable[[], None]:
    """Call ``imported`` with a module: now if it is imported, else once when it is. What it raises is logged.

    Returns:
        What to call to wait no longer.
    """
    mark = object()
    with _lock:
        _awaited.setdefault(module, {})[mark] = imported
        found = sys.modules.get(module)
        hooked = module in _hooked
        if found is None:
            _hooked.add(module)
    if found is None:
        if not hooked:
            wrapt.register_post_import_hook(functools.partial(_hook, module), module)
    else:
        if half := _coming(found):
            # Another thread's import is waited for. In the middle of one of our own we get the half of it.
            with _IMPORTED:
                half = _coming(import_module(module))
        if not (half and hooked):
            _came(module, found)

    def forget() -> None:
        with _lock:
            those = _awaited.get(module, {})
            if those.pop(mark, None) is not None and not those:
                del _awaited[module]

    return forget


def waiting() -> dict[str, int]:
    """How many wait for which module."""
    with _lock:
        return {module: len(those) for module, those in _awaited.items()}


def _coming(module: object) -> bool:
    """Whether a module is in the middle of being imported."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _hook(name: str, module: ModuleType) -> None:
    with _lock:
        _hooked.discard(name)
    _came(name, module)


def _came(name: str, module: ModuleType) -> None:
    with _lock:
        those = _awaited.pop(name, {})
    for imported in those.values():
        with _IMPORTED:
            imported(module)


def _forked() -> None:
    # Another thread of the parent may have held it.
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _find(module: ModuleType, target: str) -> tuple[Any, str, Any]:
    """Owner and name of a target, and what stands there; None where nothing does."""
    *path, name = target.partition(":")[2].split(".")
    owner: Any = module
    for part in path:
        owner = getattr(owner, part, None)
    return owner, name, getattr(owner, name, None)


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
        self._pending: list[Callable[[], None]] = []  # to be called at removal: to wait no longer, and others'
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
        home = target.partition(":")[0]

        def imported(module: ModuleType) -> None:
            if after is not None:
                module = sys.modules.get(home, module)
            with _APPLY:
                self._place(module, target, make)

        self.when_imported(after or home, imported)

    def when_imported(self, module: str, imported: Imported) -> None:
        """As `when_imported`, until the patches are removed."""
        self._pending.append(when_imported(module, imported))

    def place(self, owner: Any, name: str, make: Make) -> None:
        """Replace an attribute of an object in hand: a class that has no path, because a function made it."""
        with _APPLY:
            self._place(cast("ModuleType", SimpleNamespace(owner=owner)), f":owner.{name}", make)

    def at_removal(self, done: Callable[[], None]) -> None:
        """Have ``done`` called when the patches are removed. It must not raise."""
        self._pending.append(done)

    def _place(self, module: ModuleType, target: str, make: Make) -> None:
        # What a library imports when it is asked for is imported now: its hook may want the lock.
        _find(module, target)
        with self._lock:
            if not self.active:
                return  # removed while the library came
            owner, name, original = _find(module, target)
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
            pending, self._pending = self._pending, []
            for owner, name, stood, wrapper in reversed(self._placed):
                with _REMOVE:
                    if vars(owner).get(name) is not wrapper:
                        continue
                    if stood is _ABSENT:
                        delattr(owner, name)
                    else:
                        setattr(owner, name, stood)
            self._placed.clear()
        for forget in pending:
            forget()


class Shared:
    """Functions of a library that several instrumentations look at: replaced once, while any of them is in use.

    Args:
        targets: as `Patches.add` takes them → what makes the stand-in.
    """

    def __init__(self, targets: Mapping[str, Make]) -> None:
        self._targets = targets
        self._lock = threading.RLock()
        self._users: list[Patches] = []
        self._hooks = Patches()

    def use(self, patches: Patches) -> None:
        """Have them replaced until ``patches``, those of an instrumentation, are removed."""
        with self._lock:
            if not patches.active or any(user is patches for user in self._users):
                return
            self._users.append(patches)
            if len(self._users) == 1:
                for target, make in self._targets.items():
                    self._hooks.add(target, make)
            patches.at_removal(functools.partial(self._release, patches))

    def _release(self, patches: Patches) -> None:
        with self._lock:
            self._users[:] = [user for user in self._users if user is not patches]
            if not self._users:
                self._hooks.remove()
