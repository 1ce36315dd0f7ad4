"""The quarantine: acknowledged spans that the line can do nothing with, where a person can read and replay them.

In: OTLP requests, cut down to the spans that are at fault, with the reason (`Quarantine.put`); from the pipeline, which
halves a batch that fails until what is at fault stands alone, and from receivers, for spans that they refuse inside a
request. Out: entries for `tollspan quarantine list | show | replay | drop`; a replayed one goes by the inbox back into
the line.

An entry is two files in the folder ``quarantine`` of the journal: ``<id>.otlp``, an ``ExportTraceServiceRequest`` as it
came (any OTLP tool can send it), and ``<id>.json``, what is known about it; an entry without the latter is not
finished. The id is made from the payload: the same spans refused twice are one entry. The folder is bounded by size.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tollspan.pricing import attributes as attr
from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError
from tollspan.processor.inbox import FOLDER as INBOX
from tollspan.processor.inbox import Inbox
from tollspan.processor.journal.files import replace_file

log = logging.getLogger(__name__)

FOLDER: Final = "quarantine"
"""Name of the folder inside a journal's directory."""

SET_ASIDE: Final = "set-aside"
"""Folder in which versions before the quarantine kept requests; what lies there is taken up as before."""

MAX_BYTES: Final = 1 << 30
"""Bytes of all entries at the most."""

VERSION: Final = 1
"""Format of an entry's JSON file."""

_ID_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class QuarantineLimits:
    """How much the quarantine may hold.

    Attributes:
        max_bytes: of all entries; what does not fit stays in the journal.
        retry_at_start: entries that a start brings into the line again by itself, oldest first.
    """

    max_bytes: int = MAX_BYTES
    retry_at_start: int = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known about spans in quarantine.

    Attributes:
        id: 16 hexadecimal digits, made from the payload.
        time: when they were put here, ISO 8601, UTC.
        reason: a word for counters, e.g. ``store_refused``.
        detail: what the store or the parser said.
        tenant, service: of the first span that says so; None where none does.
        spans: how many, None where they cannot be read.
        bytes: of the payload.
        token: the batch that they were in, empty where they came in none.
        retry: whether a start brings them into the line again by itself.
        version: of the Tollspan that put them here.
    """

    id: str
    time: str
    reason: str
    detail: str
    tenant: str | None
    service: str | None
    spans: int | None
    bytes: int
    token: str = ""
    retry: bool = True
    version: str = ""


class Quarantine:
    """A folder of entries; several processes may use it at once.

    Args:
        directory: made when something is put there.
        counters: counts ``quarantine.entries``, ``quarantine.spans``, ``quarantine.reason.<reason>`` and
            ``quarantine.full`` (not taken for want of room).
        limits: see `QuarantineLimits`.
    """

    def __init__(
        self, directory: Path, counters: Counters | None = None, limits: QuarantineLimits | None = None
    ) -> None:
        self.directory = directory
        self.limits = limits or QuarantineLimits()
        self._counters = counters or Counters()
        self._lock = threading.Lock()

    def put(
        self,
        payload: bytes,
        reason: str,
        *,
        detail: str = "",
        tenant: str | None = None,
        token: str = "",
        retry: bool = True,
    ) -> Entry | None:
        """Keep spans; durable on return.

        Args:
            payload: an ``ExportTraceServiceRequest`` of only the spans in question.
            reason: a word for counters.
            detail: one line for people.
            tenant: whose they are; read from the spans when None.
            token: of the batch that they were in.
            retry: whether the next start is to try them again.

        Returns:
            The entry; None when there is no room or the disk refuses (counted and logged, nothing is raised).
        """
        name = identify(payload)
        found = describe(payload)
        entry = Entry(
            id=name,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            reason=reason,
            detail=" ".join(detail.split())[:1000],
            tenant=tenant if tenant is not None else found["tenant"],
            service=found["service"],
            spans=found["spans"],
            bytes=len(payload),
            token=token,
            retry=retry,
            version=_version(),
        )
        body = json.dumps({"format": VERSION, **asdict(entry)}, ensure_ascii=False, indent=2).encode() + b"\n"
        with self._lock:
            # The count of bytes is made anew: entries are rare, and other processes drop and replay them.
            size = self.size()
            there = self._path(name, ".json").exists()
            if not there and size + len(payload) + len(body) > self.limits.max_bytes:
                self._counters.add("quarantine.full")
                log.error("quarantine %s is full (%d bytes): see `tollspan quarantine list`", self.directory, size)
                return None
            try:
                self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                replace_file(self._path(name, ".otlp"), payload)
                replace_file(self._path(name, ".json"), body)
            except OSError as error:
                self._counters.add("quarantine.failures")
                log.error("quarantine %s cannot be written: %s", self.directory, error)
                return None
        if not there:
            self._counters.add_all(
                {"quarantine.entries": 1, "quarantine.spans": entry.spans or 0, f"quarantine.reason.{reason}": 1}
            )
        return entry

    def entries(self) -> list[Entry]:
        """All entries, oldest first; what cannot be read is left out and logged."""
        found = []
        for path in self.directory.glob("*.json"):
            try:
                found.append(_entry(path.read_bytes()))
            except FileNotFoundError:
                continue  # dropped or replayed in the meantime
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("%s is no entry that this version reads: %s", path, error)
        return sorted(found, key=lambda entry: (entry.time, entry.id))

    def entry(self, name: str) -> Entry:
        """The entry whose id is, or begins with, ``name``.

        Raises:
            ConfigError: there is none, or several.
        """
        found = [entry for entry in self.entries() if entry.id.startswith(name)] if name else []
        if not found:
            raise ConfigError(f"Nothing in quarantine has the id {name!r}.", "`tollspan quarantine list` shows all.")
        if len(found) > 1:
            raise ConfigError(f"{len(found)} ids in quarantine begin with {name!r}.", "Give more of it.")
        return found[0]

    def payload(self, entry: Entry) -> bytes:
        """The request of an entry.

        Raises:
            ConfigError: it cannot be read, or is not what was put there.
        """
        path = self._path(entry.id, ".otlp")
        try:
            payload = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror or error}.", "Its spans are lost.") from error
        if identify(payload) != entry.id:
            raise ConfigError(f"{path} is damaged: its bytes are not those that were put there.", "Drop the entry.")
        return payload

    def replay(self, entry: Entry) -> Path:
        """Bring an entry into the inbox of its journal, and out of here; where it lies then.

        Raises:
            ConfigError: its payload cannot be read.
            JournalError: the inbox takes nothing now; the entry stays.
        """
        path = Inbox(self.directory.parent / INBOX).put(self.payload(entry))
        self.drop(entry)
        return path

    def drop(self, entry: Entry) -> None:
        """Forget an entry for good."""
        for suffix in (".json", ".otlp"):
            with contextlib.suppress(FileNotFoundError):
                self._path(entry.id, suffix).unlink()

    def size(self) -> int:
        """Bytes of all entries."""
        total = 0
        with contextlib.suppress(OSError), os.scandir(self.directory) as files:
            for file in files:
                with contextlib.suppress(OSError):
                    total += file.stat().st_size
        return total

    def _path(self, name: str, suffix: str) -> Path:
        return self.directory / f"{name}{suffix}"


def identify(payload: bytes) -> str:
    """The id of spans in quarantine."""
    return hashlib.sha256(payload).hexdigest()[:_ID_LENGTH]


def describe(payload: bytes) -> dict[str, Any]:
    """What an entry says about its payload: ``spans``, ``tenant`` and ``service``, each None where it is not known."""
    known: dict[str, Any] = {"spans": None, "tenant": None, "service": None}
    try:
        request = ExportTraceServiceRequest.FromString(payload)
    except DecodeError:
        return known
    known["spans"] = 0
    for group in request.resource_spans:
        said = {pair.key: pair.value.string_value for pair in group.resource.attributes}
        known["service"] = known["service"] or said.get(attr.SERVICE_NAME) or None
        known["tenant"] = known["tenant"] or said.get(attr.SENDER_TENANT) or None
        for scope in group.scope_spans:
            known["spans"] += len(scope.spans)
            if known["tenant"] is None:
                known["tenant"] = next(filter(None, map(_tenant, scope.spans)), None) or said.get(attr.TENANT) or None
    return known


def _tenant(span: Span) -> str:
    return next((pair.value.string_value for pair in span.attributes if pair.key == attr.TENANT), "")


def halves(payload: bytes) -> tuple[bytes, bytes] | None:
    """A request as two, each with half of its spans in order and all that belongs to them.

    None where it has one span, or cannot be read. For requests that have failed: the way of all others is in columns.
    """
    try:
        first = ExportTraceServiceRequest.FromString(payload)
    except DecodeError:
        return None
    total = sum(len(scope.spans) for group in first.resource_spans for scope in group.scope_spans)
    if total < 2:
        return None
    second = ExportTraceServiceRequest()
    second.CopyFrom(first)
    _keep(first, 0, total // 2)
    _keep(second, total // 2, total)
    return bytes(first.SerializeToString()), bytes(second.SerializeToString())


def _keep(request: ExportTraceServiceRequest, start: int, end: int) -> None:
    """Leave in a request its spans from ``start`` to ``end``, and no resource or scope without any."""
    at = 0
    for group in request.resource_spans:
        for scope in group.scope_spans:
            count = len(scope.spans)
            low, high = max(0, min(count, start - at)), max(0, min(count, end - at))
            del scope.spans[high:]
            del scope.spans[:low]
            at += count
        kept = [scope for scope in group.scope_spans if scope.spans]
        if len(kept) < len(group.scope_spans):
            copies = [type(scope).FromString(scope.SerializeToString()) for scope in kept]
            del group.scope_spans[:]
            group.scope_spans.extend(copies)
    groups = [group for group in request.resource_spans if group.scope_spans]
    if len(groups) < len(request.resource_spans):
        copied = [type(group).FromString(group.SerializeToString()) for group in groups]
        del request.resource_spans[:]
        request.resource_spans.extend(copied)


def _entry(text: bytes) -> Entry:
    body = json.loads(text)
    if body.pop("format") != VERSION:
        raise ValueError("another version's format")
    known = {field.name for field in fields(Entry)}
    return Entry(**{name: value for name, value in body.items() if name in known})


def _version() -> str:
    try:
        return metadata.version("tollspan")
    except metadata.PackageNotFoundError:
        return ""
