"""Who owns an embedded store: a lock file for the process, ``serve.json`` for the way in while it is owned.

chdb opens a directory in one process at a time, and one directory in a process at a time; its own errors for both name
neither the owner nor the way out. So the lock ``D/lock`` (flock) is taken before the engine is touched. Several stores
of one process on the same directory share the lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tollspan.processor.errors import ConfigError, StoreError

_held: dict[Path, _Held] = {}
_guard = threading.Lock()


@dataclass(slots=True)
class _Held:
    descriptor: int
    users: int


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that holds a store.

    Attributes:
        pid: its process id; 0 when the lock file does not say.
        command: what it runs, e.g. ``tollspan serve``.
    """

    pid: int
    command: str

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "another process"
        return f"{who} ({self.command})" if self.command else who


class StoreInUse(StoreError):
    """An embedded store that another process holds; `owner` says which."""

    def __init__(self, message: str, hint: str, owner: Owner) -> None:
        super().__init__(message, hint)
        self.owner = owner


def acquire(directory: Path) -> None:
    """Take the store at ``directory`` for this process, or join the process's own earlier hold on it.

    Raises:
        StoreInUse: another process has it.
        StoreError: this process has another embedded store open.
        ConfigError: the directory cannot be written.
    """
    with _guard:
        held = _held.get(directory)
        if held is not None:
            held.users += 1
            return
        if _held:
            other = next(iter(_held))
            raise StoreError(
                f"Store {directory} cannot be opened beside {other}: the embedded engine has one directory a process.",
                "Close the other store first, or use another database of the same one (?database=NAME).",
            )
        descriptor = _open(directory)
        if not _lock(descriptor):
            owner = _owner(descriptor)
            os.close(descriptor)
            raise StoreInUse(
                f"Store {directory} is in use by {owner}.",
                "Stop it first, or ask it: `tollspan query` and `report` go through a running `tollspan serve`.",
                owner,
            )
        # What a killed service left behind leads to a port that is gone, or to somebody else's.
        remove_service(directory)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "command": _command()}).encode())
        _held[directory] = _Held(descriptor, 1)


def release(directory: Path) -> None:
    """Give up one hold on ``directory``; the last one frees it for other processes."""
    with _guard:
        held = _held.get(directory)
        if held is None:
            return
        held.users -= 1
        if held.users == 0:
            os.ftruncate(held.descriptor, 0)
            os.close(held.descriptor)
            del _held[directory]


def holder(directory: Path) -> Owner | None:
    """The other process that holds ``directory``, or None: it is free, not there, or this process's own."""
    with _guard:
        if directory in _held:
            return None
        try:
            descriptor = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            # A shared request: two readers that ask at once do not take each other for an owner.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _owner(descriptor)
        else:
            return None
        finally:
            os.close(descriptor)


def write_service(directory: Path, info: Mapping[str, object]) -> None:
    """Write ``serve.json``, whole or not at all.

    Args:
        directory: the store's directory, held by this process.
        info: ``{"pid": …, "grpc": "host:port", "sql": "host:port" or None}``; with ``"sql_tls": True`` and
            ``"sql_key"``, a password, where the SQL port asks for these.
    """
    path = directory / "serve.json"
    draft = path.with_suffix(".json.new")
    draft.unlink(missing_ok=True)
    # The key of the SQL port is in it where that needs a login: for the store's owner alone.
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(json.dumps(dict(info)) + "\n")
    draft.replace(path)


def remove_service(directory: Path) -> None:
    """Remove ``serve.json`` if it is there."""
    (directory / "serve.json").unlink(missing_ok=True)


def read_service(directory: Path, owner: Owner) -> dict[str, Any]:
    """What the owner of a store says about itself in ``serve.json``; empty when it is not a service.

    Args:
        directory: the store's directory.
        owner: from `holder`; a file that another process wrote does not count.
    """
    try:
        info = json.loads((directory / "serve.json").read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) and info.get("pid") == owner.pid else {}


def _lock(descriptor: int) -> bool:
    # `holder` takes the lock for an instant, and a process that is about to exit frees it in the next one.
    for pause in (0.02, 0.05, 0.1, None):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if pause is not None:
                time.sleep(pause)
        else:
            return True
    return False


def _open(directory: Path) -> int:
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"Store directory {directory} cannot be used: {error.strerror or error}.",
            "Name another one (--store chdb:///DIR) or set TOLLSPAN_DATA_DIR.",
        ) from None


def _owner(descriptor: int) -> Owner:
    try:
        info = json.loads(os.pread(descriptor, 4096, 0))
        return Owner(int(info["pid"]), str(info["command"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Owner(0, "")


def _command() -> str:
    """Program and first argument when that is a subcommand: ``tollspan serve``. Never a whole command line."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    first = sys.argv[1] if len(sys.argv) > 1 and program == "tollspan" else ""
    return f"{program} {first}" if first.isalpha() else program


def _forget() -> None:
    """In a forked child: the parent's hold is not the child's, and closing the copy does not free it."""
    global _guard
    _guard = threading.Lock()
    for held in _held.values():
        os.close(held.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
