"""Senders: who may send spans, for which tenant, and how much.

In: a YAML file of senders with the SHA-256 of their bearer tokens, and the ``Authorization`` of each request. Out: the
`Sender`, or a refusal. Both receivers ask here before the journal, so that what is in the journal needs no login any
more: the sender's tenant stands in it, as an attribute of the request's resources that no sender can set.

    senders:
      - {id: acme-prod, sha256: 9f86d081…, tenant: acme}
      - {id: batch, sha256: 60303ae2…, max_requests_per_s: 50, max_bytes_per_s: 20000000}

``tollspan token acme-prod --tenant acme`` makes a token and its line. A token is 256 bits of randomness, so its plain
hash tells nothing of it. A changed file is taken while the service runs; a broken one changes nothing.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import RESOURCE_EXHAUSTED, UNAUTHENTICATED

from tollspan.pricing import attributes as names
from tollspan.processor.counters import Counters
from tollspan.processor.decode.otlp_slim import resources
from tollspan.processor.errors import ConfigError
from tollspan.processor.intake import Refusal

log = logging.getLogger(__name__)

CHECK_S: Final = 2.0
"""Seconds between two looks at the file."""
BURST_S: Final = 2.0
"""Seconds' worth of requests and bytes that a sender who was quiet may send at once."""

PREFIX: Final = "tsp_"
"""How our tokens begin, so that scanners for leaked secrets can know them."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_KEY: Final = names.SENDER_TENANT.encode()


class _Bucket:
    """A token bucket; filled by time, never above `BURST_S` of its rate."""

    __slots__ = ("_at", "_clock", "_level", "_lock", "_rate")

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._level = rate * BURST_S
        self._at = clock()
        self._lock = threading.Lock()

    def wait(self, amount: float) -> float:
        """Take ``amount``; 0 when it was there, else the seconds until it will be, and nothing is taken.

        What is more than the whole bucket holds is taken from a full one, and paid for by a longer wait afterwards.
        """
        with self._lock:
            now = self._clock()
            self._level = min(self._rate * BURST_S, self._level + (now - self._at) * self._rate)
            self._at = now
            needed = min(amount, self._rate * BURST_S)
            if self._level < needed - 1e-9:
                return (needed - self._level) / self._rate
            self._level -= amount
            return 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Sender:
    """Who sends.

    Attributes:
        id: name in counters and logs.
        tenant: whose spans they all are, whatever they say themselves; '' leaves that to the spans.
        limits: what is asked of each request: (bucket, whether it counts bytes).
    """

    id: str
    tenant: str = ""
    limits: tuple[tuple[_Bucket, bool], ...] = ()

    def over(self, size: int) -> Refusal | None:
        """The refusal for a request of so many bytes, where it is above the sender's limits."""
        for bucket, of_bytes in self.limits:
            wait_s = bucket.wait(size if of_bytes else 1)
            if wait_s > 0:
                what = "bytes" if of_bytes else "requests"
                said = f"{self.id} sends more {what} a second than it may; send it again later."
                return Refusal("rate", RESOURCE_EXHAUSTED, said, max(0.1, wait_s))
        return None

    def stamped(self, payload: bytes) -> bytes:
        """A request with the sender's tenant on each of its resources, in place of any that was sent along.

        A payload that is no request is returned as it is: to say so is the intake's.
        """
        return stamped(payload, self.tenant)


class Senders:
    """The senders of a file, renewed when it changes.

    Args:
        path: the YAML file.
        counters: gets ``senders.reloaded`` and ``senders.reload_failed``.
        clock: seconds, for limits.

    Raises:
        ConfigError: the file cannot be read, or is wrong; says where.
    """

    kind: ClassVar[str] = "senders"
    fields: ClassVar[frozenset[str]] = frozenset({"id", "sha256", "tenant", "max_requests_per_s", "max_bytes_per_s"})

    def __init__(self, path: Path, counters: Counters, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._counters, self._clock = path, counters, clock
        self._name = self.kind.capitalize()
        self._stamp = self._look()
        self._by_hash = self._read()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        counters.add_all({f"{self.kind}.reloaded": 0, f"{self.kind}.reload_failed": 0})

    def __len__(self) -> int:
        return len(self._by_hash)

    def start(self) -> None:
        """Watch the file, until `stop`."""
        self._thread = threading.Thread(target=self._watch, name=f"tollspan-{self.kind}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watching."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def who(self, authorization: str | None) -> Sender | Refusal:
        """The sender of a request with this ``Authorization``.

        Args:
            authorization: value of the header or metadata; None where there is none.
        """
        scheme, _, token = (authorization or "").strip().partition(" ")
        if scheme.lower() == "bearer" and token:
            sender = self._by_hash.get(hashlib.sha256(token.strip().encode()).hexdigest())
            if sender is not None:
                return sender
            return Refusal("unknown_token", UNAUTHENTICATED, "This bearer token is not known here.")
        said = "A bearer token is needed: set OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20<token>'."
        return Refusal("no_token", UNAUTHENTICATED, said)

    def reload(self) -> bool:
        """Take the file if it changed; True if it did and is good. What is wrong with it changes nothing."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._by_hash = self._read(self._by_hash.values())
        except ConfigError as error:
            self._counters.add(f"{self.kind}.reload_failed")
            log.error("%s not taken, the last good ones stay: %s", self.kind, error)
            return False
        self._counters.add(f"{self.kind}.reloaded")
        log.info("%d %s read from %s", len(self._by_hash), self.kind, self._path)
        return True

    def _watch(self) -> None:
        while not self._stopping.wait(CHECK_S):
            self.reload()

    def _look(self) -> object:
        try:
            state = self._path.stat()
        except OSError:
            return None
        return state.st_ino, state.st_mtime_ns, state.st_size

    def _read(self, before: Iterable[Sender] = ()) -> dict[str, Sender]:
        """Senders by hash; one whose line says the same as ``before`` keeps what it has used of its limits."""
        try:
            document = yaml.safe_load(self._path.read_text(encoding="utf-8"))
        except OSError as error:
            said = (error.strerror or str(error)).lower()
            raise ConfigError(
                f"{self._name} {self._path} cannot be read: {said}.", "Give the path of a YAML file."
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._name} {self._path}: no YAML: {' '.join(str(error).split())}.", _FORM) from error
        rows = document.get(self.kind) if isinstance(document, dict) and document.keys() == {self.kind} else None
        if not isinstance(rows, list):
            raise ConfigError(f"{self._name} {self._path}: it has to be a list under '{self.kind}'.", _FORM)
        known = {sender.id: sender for sender in before}
        found: dict[str, Sender] = {}
        for number, row in enumerate(rows, 1):
            where = f"{self._name} {self._path}, number {number}"
            sender = _sender(row, where, self._clock, self.fields)
            if sender.id in {each.id for each in found.values()} or row["sha256"] in found:
                raise ConfigError(
                    f"{where}: {sender.id!r} or its token is there twice.", "Ids and tokens are one sender's."
                )
            old = known.get(sender.id)
            same = old is not None and old.tenant == sender.tenant and _rates(old) == _rates(sender)
            found[row["sha256"]] = old if same and old is not None else sender
        return found


class Readers(Senders):
    """Who may ask the SQL port: a file like that of senders, its list under ``readers``, rows of ``id`` and ``sha256``.

    A reader logs in as ClickHouse has it, with its id as the user (or none, or ``default``) and its token as the
    password, or with a bearer token.
    """

    kind = "readers"
    fields = frozenset({"id", "sha256"})

    def admits(self, user: str, token: str) -> bool:
        """Whether this is a reader."""
        reader = self._by_hash.get(hashlib.sha256(token.encode()).hexdigest())
        return reader is not None and user in ("", "default", reader.id)


def credentials(authorization: str) -> tuple[str, str] | None:
    """User and secret of an ``Authorization`` header, Basic or Bearer (no user); None of any other."""
    scheme, _, given = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return "", given.strip()
    if scheme.lower() != "basic":
        return None
    try:
        user, _, secret = base64.b64decode(given, validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return user, secret


def _rates(sender: Sender) -> list[tuple[float, bool]]:
    return [(bucket._rate, of_bytes) for bucket, of_bytes in sender.limits]


_FORM: Final = "Each entry is {id: …, sha256: …, tenant: …}; `tollspan token ID` writes one."


def _sender(row: Any, where: str, clock: Callable[[], float], fields: frozenset[str]) -> Sender:
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: it is no mapping.", _FORM)
    if unknown := sorted(map(str, row.keys() - fields)):
        raise ConfigError(f"{where}: {', '.join(unknown)} is not known.", f"Known are {', '.join(sorted(fields))}.")
    name, digest, tenant = row.get("id"), row.get("sha256"), row.get("tenant", "")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise ConfigError(f"{where}: id has to be a name of letters, digits, '.', '_' and '-'.", _FORM)
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise ConfigError(f"{where} ({name}): sha256 has to be 64 hexadecimal digits, in quotes.", _FORM)
    if not isinstance(tenant, str):
        raise ConfigError(f"{where} ({name}): tenant has to be text.", "Put it in quotes.")
    limits = []
    for field, of_bytes in (("max_requests_per_s", False), ("max_bytes_per_s", True)):
        rate = row.get(field)
        if rate is None:
            continue
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
            raise ConfigError(f"{where} ({name}): {field} has to be a number above zero.", "Leave it out for no limit.")
        limits.append((_Bucket(float(rate), clock), of_bytes))
    return Sender(name, tenant, tuple(limits))


def stamped(payload: bytes, tenant: str) -> bytes:
    """A request whose resources say that their spans are a sender's, of ``tenant`` ('' = of none)."""
    try:
        request: Any = resources().FromString(payload)
    except DecodeError:
        return payload
    for each in request.resource_spans:
        attributes = each.resource.attributes
        forged = [number for number, attribute in enumerate(attributes) if attribute.key == _KEY]
        for number in reversed(forged):
            del attributes[number]
        if tenant:
            # An AnyValue with a string: field 1, length-delimited.
            attributes.add(key=_KEY, value=_string_value(tenant))
    return bytes(request.SerializeToString())


def _string_value(text: str) -> bytes:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue

    return bytes(AnyValue(string_value=text).SerializeToString())


def new_token() -> tuple[str, str]:
    """A fresh token, and its SHA-256 in hexadecimal."""
    token = PREFIX + secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).hexdigest()
