"""Places in a journal and the small durable files beside its segments: lock, cursor, atomic replacement."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from tollspan.processor.errors import ConfigError, JournalError, JournalFull, JournalInUse

VERSION: Final = 1
"""Format of all files of a journal. A reader refuses versions that it does not know."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_TRIES_S: Final = (0.02, 0.05, 0.1)
_locks: Final[set[int]] = set()
"""Descriptors that hold journals for this process."""
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


def no_room(error: OSError) -> bool:
    """Whether it is for want of room: a full disk, a quota, a limit on the size of files."""
    return error.errno in _NO_ROOM


def translate(error: OSError, doing: str) -> JournalError:
    """The retryable error for what the operating system refused while ``doing`` something (``writing x.log``)."""
    reason = f"The journal failed {doing}: {error.strerror or error}."
    if no_room(error):
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


def replace_in_place(path: Path, content: bytes) -> None:
    """As `replace_file`, on a full disk too: two files take turns, and the one that is not at ``path`` keeps its room.

    It lies beside ``path`` with the ending ``.tmp``. The one that was replaced gets there by way of a second name
    (``.old``), so that its blocks are never free for anybody else to take.
    """
    spare, replaced = path.with_name(path.name + ".tmp"), path.with_name(path.name + ".old")
    if not spare.exists():
        # A crash between the renames below left it under its second name.
        with contextlib.suppress(OSError):
            os.rename(replaced, spare)
    with contextlib.suppress(FileNotFoundError):
        if os.stat(spare).st_nlink != 1:
            # Somebody's backup, or the file at the path itself, is the same file: it must not be written over.
            os.unlink(spare)
    fd = os.open(spare, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        write_all(fd, [content], 0)
        os.ftruncate(fd, len(content))
        os.fsync(fd)
    finally:
        os.close(fd)
    with contextlib.suppress(OSError):
        os.link(path, replaced)
    os.rename(spare, path)
    with contextlib.suppress(OSError):
        os.rename(replaced, spare)
    reserve(path)
    sync_directory(path.parent)


def reserve(path: Path) -> None:
    """Keep room for the next `replace_in_place` of ``path``; where there is none now, the next call tries again."""
    spare = path.with_name(path.name + ".tmp")
    with contextlib.suppress(OSError):
        size = path.stat().st_size
        if spare.exists() and spare.stat().st_size >= size:
            return
        fd = os.open(spare, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            write_all(fd, [bytes(size)], 0)
        finally:
            os.close(fd)


def check_room(directory: Path, size: int) -> None:
    """Make sure that ``directory`` has room for ``size`` more bytes, by taking it for an instant.

    Raises:
        OSError: it has not, or nobody can tell.
    """
    path = directory / "room.tmp"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.unlink(path)
        os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


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
    for pause in (*_TRIES_S, None):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if pause is not None:
                # `owner_of` takes the lock for an instant, and a process that is about to exit frees it in the next.
                time.sleep(pause)
                continue
            owner = _pid(fd)
            os.close(fd)
            raise JournalInUse(
                f"Journal {directory} is in use by the process with pid {owner or 'unknown'}.",
                "Stop that process, or give this one another journal directory.",
            ) from error
        except OSError as error:
            os.close(fd)
            raise unusable(directory, error) from error
    _locks.add(fd)
    with contextlib.suppress(OSError):
        # The pid is for messages only; a full disk must not keep a journal from being opened and emptied.
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def owner_of(directory: Path) -> int | None:
    """The pid of the process that has a journal open (0 where the lock does not say); None: nobody has."""
    try:
        fd = os.open(directory / "lock", os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _pid(fd)
    else:
        return None
    finally:
        os.close(fd)


def _pid(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0


def format_of(path: Path) -> int | None:
    """The format that a segment or batch log states; None where its header is damaged or it is neither.

    Every format, also later ones, begins like this one: magic (8 bytes), version u32, and the CRC of all before it as
    the last four bytes of the header: 48 bytes of a segment, 32 of ``batches.log``.
    """
    with path.open("rb") as file:
        head = file.read(48)
    size = {b"TOLLSPAN": 48, b"TOLLBTCH": 32}.get(head[:8], 0)
    if not 0 < size <= len(head) or zlib.crc32(head[: size - 4]) != int.from_bytes(head[size - 4 : size], "little"):
        return None
    return int.from_bytes(head[8:12], "little")


def check_place(directory: Path, lock_fd: int) -> None:
    """Make sure that the directory of the lock is still the one at its path.

    Raises:
        OSError: it was removed or replaced; what is written there would be another journal, or nobody's.
    """
    held, there = os.fstat(lock_fd), os.stat(directory / "lock")
    if (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino):
        raise OSError(errno.ESTALE, "the directory was replaced by another one; restart")


def unlock(fd: int) -> None:
    """Let go of a journal; in a forked child, which never held it, nothing."""
    if fd in _locks:
        _locks.remove(fd)
        os.close(fd)


def _forget() -> None:
    """In a forked child: its copies of the parent's locks would hold them when the parent is gone."""
    for fd in _locks:
        os.close(fd)
    _locks.clear()


os.register_at_fork(after_in_child=_forget)


def unusable(directory: Path, error: OSError) -> ConfigError:
    """The error for a journal directory that cannot be opened."""
    return ConfigError(
        f"Journal directory {directory} cannot be used: {error.strerror or error}.",
        "Give a directory on a local disk that this user may write.",
    )


def save_cursor(directory: Path, cursor: Cursor) -> None:
    """Replace ``cursor.json``, on a full disk too."""
    body = {"format": VERSION, "journal": cursor.journal.hex(), **cursor.position._asdict()}
    replace_in_place(directory / "cursor.json", json.dumps({**body, "crc": _crc(body)}).encode() + b"\n")


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
    """Refuse a format that this version does not know.

    Raises:
        ConfigError: it does not.
    """
    if version > VERSION:
        raise ConfigError(
            f"Journal {directory} has format {version}, a newer Tollspan's; this one reads formats up to {VERSION}.",
            "Run the version that wrote it, at least until the journal is drained. Nothing in it was changed.",
        )
    if version != VERSION:
        raise ConfigError(
            f"Journal {directory} has format {version}, which no Tollspan writes; this one reads format {VERSION}.",
            "Check that the directory is a journal. Nothing in it was changed.",
        )


def _crc(body: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
