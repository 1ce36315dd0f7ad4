"""Places in a journal and the small durable files beside its segments: lock, cursor, atomic replacement."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from tollspan.processor.errors import ConfigError, JournalError, JournalFull

VERSION: Final = 1
"""Format of all files of a journal. A reader refuses versions that it does not know."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_IOV_MAX: Final = 1024
"""Buffers that Linux takes in one vectored write."""


class Position(NamedTuple):
    """A byte in the journal: segment number and offset in its file."""

    segment: int
    offset: int


class Range(NamedTuple):
    """Bytes ``[start, end)`` of one segment file."""

    segment: int
    start: int
    end: int


class Cursor(NamedTuple):
    """What ``cursor.json`` holds: the journal's id and the place before which everything is released."""

    journal: bytes
    position: Position


def translate(error: OSError, doing: str) -> JournalError:
    """The retryable error for what the operating system refused while ``doing`` something (``writing x.log``)."""
    reason = f"The journal failed {doing}: {error.strerror or error}."
    if error.errno in _NO_ROOM:
        return JournalFull(reason, "Free space on its disk; nothing was acknowledged, so senders try again.")
    return JournalError(reason, "Check the disk; nothing was acknowledged, so senders try again.")


def sync_directory(directory: Path) -> None:
    """Make created, renamed and removed names in ``directory`` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace_file(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path`` so that a crash leaves either the old file or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(fd, [content], 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    sync_directory(path.parent)


def write_all(fd: int, buffers: list[bytes], offset: int) -> int:
    """Write ``buffers`` one after the other from ``offset`` on and return the offset behind them.

    The system call may take fewer buffers and fewer bytes than offered; this goes on until all is written.
    """
    first = 0
    while first < len(buffers):
        some = buffers[first : first + _IOV_MAX]
        written = os.pwritev(fd, some, offset)
        offset += written
        whole = sum(map(len, some))
        if written == whole:
            first += len(some)
            continue
        if written == 0 and whole:
            raise OSError(errno.EIO, "the file takes no more bytes")
        while written >= len(buffers[first]):
            written -= len(buffers[first])
            first += 1
        if written:
            buffers[first] = buffers[first][written:]
    return offset


def lock_directory(directory: Path) -> int:
    """Take the journal for this process; returns the descriptor that holds the lock until it is closed.

    Raises:
        ConfigError: another process (or another `Journal` of this one) has it, or the directory cannot be written.
    """
    path = directory / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise unusable(directory, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise ConfigError(
            f"Journal {directory} is in use by the process with pid {owner}.",
            "Stop that process, or give this one another journal directory.",
        ) from error
    except OSError as error:
        os.close(fd)
        raise unusable(directory, error) from error
    with contextlib.suppress(OSError):
        # The pid is for messages only; a full disk must not keep a journal from being opened and emptied.
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def unusable(directory: Path, error: OSError) -> ConfigError:
    """The error for a journal directory that cannot be opened."""
    return ConfigError(
        f"Journal directory {directory} cannot be used: {error.strerror or error}.",
        "Give a directory on a local disk that this user may write.",
    )


def save_cursor(directory: Path, cursor: Cursor) -> None:
    """Replace ``cursor.json``."""
    body = {"format": VERSION, "journal": cursor.journal.hex(), **cursor.position._asdict()}
    replace_file(directory / "cursor.json", json.dumps({**body, "crc": _crc(body)}).encode() + b"\n")


def load_cursor(directory: Path) -> Cursor | None:
    """The saved cursor, or None if there is none.

    Raises:
        ConfigError: the file was written by a newer Tollspan.
        ValueError: the file is damaged.
    """
    try:
        text = (directory / "cursor.json").read_bytes()
    except FileNotFoundError:
        return None
    body = json.loads(text)
    if not isinstance(body, dict) or body.pop("crc", None) != _crc(body):
        raise ValueError("checksum does not match")
    check_version(directory, body["format"])
    return Cursor(bytes.fromhex(body["journal"]), Position(body["segment"], body["offset"]))


def check_version(directory: Path, version: int) -> None:
    """Refuse a format that this version does not know."""
    if version != VERSION:
        raise ConfigError(
            f"Journal {directory} has format {version}; this version of Tollspan reads format {VERSION}.",
            "Run the version that wrote it until the journal is drained, or upgrade.",
        )


def _crc(body: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
