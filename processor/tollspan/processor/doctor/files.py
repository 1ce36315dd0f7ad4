"""Files: certificates, senders, the price book, sampling rules, and the journal with its disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tollspan.pricing import BookError, PriceEngine, load_book, shipped_book
from tollspan.processor.config import Config, JournalLimits, Places, TlsSettings
from tollspan.processor.counters import Counters
from tollspan.processor.doctor.finding import FAIL, WARN, Finding, fail, ok, skip, warn
from tollspan.processor.doctor.live import Live, reachable
from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.journal.inspection import inspect
from tollspan.processor.runtime import journal_directory
from tollspan.processor.sample.file import SamplingSettings
from tollspan.processor.sample.rules import SamplingError, read_sampling
from tollspan.processor.senders import Readers, Senders
from tollspan.processor.store import Embedded, locate
from tollspan.processor.tls import Tls, TlsFiles
from tollspan.processor.values import show_size

if TYPE_CHECKING:
    from tollspan.processor.doctor import Asked

SOON_S: Final = 14 * 86400
"""A certificate that ends within this time is worth a warning."""
SLOW_SYNC_S: Final = 0.05
READ_WHOLE: Final = 512 << 20
"""Size up to which a journal is read in full, every checksum included."""
LAG_S: Final = 120.0
NOT_DURABLE: Final = frozenset({"tmpfs", "ramfs"})
REMOTE: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "glusterfs", "ceph"})


# -- TLS ---------------------------------------------------------------------------------------------------------------


def tls(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """Certificates: readable, matching, in date, and the ones that are served."""
    files = config.get(TlsSettings)
    if files.cert is None or files.key is None:
        yield ok("tls.files", "No TLS.")
        return
    try:
        Tls(TlsFiles(files.cert, files.key, files.client_ca))
    except ConfigError as error:
        yield fail("tls.files", error.message, error.hint)
        return
    yield ok("tls.files", f"{files.cert} and its key belong together.")
    with contextlib.suppress(OSError):
        if files.key.stat().st_mode & 0o004:
            yield warn("tls.key", f"Everybody on this machine can read {files.key}.", f"chmod 600 {files.key}")
    for what, path in (("certificate", files.cert), ("client_ca", files.client_ca)):
        if path is not None:
            yield from _dates(f"tls.{what}", path)
    if live.running and live.http:
        try:
            served = ssl.get_server_certificate(reachable(live.http), timeout=5.0)
        except (OSError, ssl.SSLError) as error:
            # With client certificates asked for, a handshake without one ends here, as it should.
            if files.client_ca is None:
                yield fail("tls.served", f"No TLS handshake with {live.http}: {error}.", "Restart the service.")
            return
        if _first(files.cert.read_text()) != _first(served):
            yield warn(
                "tls.served",
                "The service has another certificate than the file.",
                "It takes a new one within seconds, or at SIGHUP; its log says why it did not.",
            )
        else:
            yield ok("tls.served", "The service has the certificate of the file.")


def _first(pem: str) -> str:
    """The first certificate of a file, without white space."""
    return "".join(pem.partition("-----BEGIN CERTIFICATE-----")[2].partition("-----END")[0].split())


def certificate(path: Path) -> dict[str, Any]:
    """What the first certificate of a file says, as ``SSLSocket.getpeercert`` has it.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    try:
        # `ssl` tells of a certificate on a live connection, or by this; no other library is installed for it.
        decode: Any = ssl._ssl._test_decode_cert  # type: ignore[attr-defined]
    except AttributeError as error:
        raise ValueError("this Python does not read certificates") from error
    return dict(decode(str(path)))


def _dates(check: str, path: Path) -> Iterator[Finding]:
    try:
        facts = certificate(path)
        begins, ends = (ssl.cert_time_to_seconds(facts[each]) for each in ("notBefore", "notAfter"))
    except (KeyError, OSError, ValueError) as error:
        yield skip(check, f"The dates of {path} cannot be read: {error}.")
        return
    now = time.time()
    names = ", ".join(value for _, value in facts.get("subjectAltName", ())) or "no name"
    day = datetime.fromtimestamp(ends, UTC).date()
    if now < begins:
        first = datetime.fromtimestamp(begins, UTC).isoformat()
        yield fail(check, f"{path} begins only on {first}.", "Check the clock, or take the right certificate.")
    elif now >= ends:
        yield fail(check, f"{path} ({names}) ended on {day}.", "Renew it; it is taken without a restart.")
    elif ends - now < SOON_S:
        yield warn(check, f"{path} ({names}) ends on {day}.", "Renew it; it is taken without a restart.")
    else:
        yield ok(check, f"{path} ({names}) holds until {day}.")


# -- senders and prices ------------------------------------------------------------------------------------------------


def senders(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """The files of who may send, and of who may ask the SQL port."""
    places = config.get(Places)
    yield from _logins("senders", places.senders, Senders, live)
    if places.readers is not None:
        yield from _logins("readers", places.readers, Readers, live)


def _logins(kind: str, path: Path | None, of: type[Senders], live: Live) -> Iterator[Finding]:
    check = f"senders.{'file' if kind == 'senders' else kind}"
    if path is None:
        yield ok(check, "No senders' file: everybody who can connect may send.")
        return
    try:
        known = of(path, Counters())
    except TollspanError as error:
        yield fail(check, error.message, error.hint)
        return
    if not len(known):
        yield warn(check, f"{path} names nobody: nobody gets in.", "tollspan token NAME")
    else:
        yield ok(check, f"{path} has {len(known)} token{'s' if len(known) > 1 else ''}.")
    if live.metrics.get(f"tollspan_{kind}_reload_failed_total", 0) > 0:
        yield warn(f"{check}_reload", "The service met a broken version of it.", "Its log says what was wrong.")


def prices(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """The price book."""
    path = config.get(Places).prices
    try:
        engine = PriceEngine(shipped_book() if path is None else load_book(path))
    except BookError as error:
        yield fail("prices.book", f"{error}".rstrip(".") + ".", "Fix the file; the service keeps the last good one.")
        return
    except OSError as error:
        yield fail("prices.book", f"{path} cannot be read: {error}.", "Give the path of your price book.")
        return
    which = f"{path}, in front of the shipped one" if path is not None else "the shipped one"
    yield ok("prices.book", f"Book version {engine.book_version}: {which}.")
    if live.metrics.get("tollspan_prices_reload_error"):
        yield fail(
            "prices.live",
            "The service could not take the file as it stands and uses an earlier one.",
            "Its log says what is wrong with it.",
        )
    unpriced = live.metrics.get('tollspan_priced_total{status="unpriced"}', 0)
    rows = sum(value for name, value in live.metrics.items() if name.startswith("tollspan_priced_total"))
    if rows and unpriced / rows > 0.01:
        yield warn(
            "prices.unpriced",
            f"{unpriced:,.0f} of {rows:,.0f} rows since its start have no price.",
            "`tollspan query unpriced` lists them; give your book rows for them.",
        )


def sampling(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """The sampling file."""
    path = config.get(SamplingSettings).file
    if path is None:
        yield skip("sampling.file", "There is none: errors are kept, and a share (sampling.keep) of the rest.")
    else:
        try:
            found = read_sampling(path)
        except SamplingError as error:
            yield fail("sampling.file", str(error), "Fix the file; the service keeps the last good rules.")
            return
        yield ok("sampling.file", f"{path} has {len(found.rules)} rules and a base share of {found.base.share:g}.")
        for warning in found.warnings:
            yield warn("sampling.rules", warning, "`tollspan sample --check` says it too.")
    for metric, check, what in (
        ("tollspan_sampling_file_reload_error", "sampling.live", "could not take the file as it stands"),
        ("tollspan_sampling_levels_stale", "sampling.levels", "cannot renew the figures that rules compare with"),
    ):
        if live.metrics.get(metric):
            yield fail(check, f"The service {what} and uses the last good ones.", "Its log says what is wrong.")


# -- the journal -------------------------------------------------------------------------------------------------------


def journal(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """Its directory, its disk, and what waits in it."""
    places, limits = config.get(Places), config.get(JournalLimits)
    try:
        where = locate(places.store)
    except ConfigError:
        yield skip("journal.directory", "The store's URL cannot be read, so nobody knows where its journal is.")
        return
    folder = places.journal or journal_directory(places.store, where.directory if isinstance(where, Embedded) else None)
    home = folder
    while not home.exists() and home != home.parent:
        home = home.parent
    try:
        with tempfile.NamedTemporaryFile(dir=home, prefix=".tollspan-doctor-") as file:
            took = _sync_times(file.fileno())
    except OSError as error:
        yield fail(
            "journal.directory",
            f"{home} cannot be written: {(error.strerror or str(error)).lower()}.",
            "Give the service's user the right to write there, or set journal.directory.",
        )
        return
    made = "" if home == folder else " (made when the service starts)"
    yield ok("journal.directory", f"{folder} can be written{made}.")
    kind = file_system(home)
    if kind in NOT_DURABLE:
        yield fail("journal.disk", f"{home} is on {kind}: a restart loses what is acknowledged.", "Use a disk.")
    elif kind in REMOTE:
        yield warn("journal.disk", f"{home} is on {kind}.", "Use a local disk: its sync is faster and true.")
    median, worst = statistics.median(took), max(took)
    said = f"A sync takes {1000 * median:.1f} ms, at worst {1000 * worst:.1f} ms of {len(took)}."
    if median > SLOW_SYNC_S:
        yield warn("journal.sync", said, "Every acknowledgement waits for one: use a faster disk.")
    else:
        yield ok("journal.sync", said)
    used = sum(file.stat().st_size for file in folder.glob("segment-*.log")) if folder.is_dir() else 0
    free = shutil.disk_usage(home).free
    if free < limits.max_bytes - used:
        yield Finding(
            "journal.space",
            FAIL if free < 4 * limits.segment_bytes else WARN,
            f"{_size(free)} are free, and the journal may grow by {_size(limits.max_bytes - used)}.",
            "Make room, or lower journal.max_bytes: full, it refuses spans and senders try again.",
        )
    else:
        yield ok("journal.space", f"{_size(used)} in use of {show_size(limits.max_bytes)}; {_size(free)} are free.")
    yield from _waiting(folder, live, used, limits.max_bytes)
    yield from _quarantined(folder)


def _size(count: float) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"


def _sync_times(descriptor: int) -> list[float]:
    took = []
    for _ in range(16):
        os.write(descriptor, os.urandom(16384))
        began = time.perf_counter()
        os.fdatasync(descriptor)
        took.append(time.perf_counter() - began)
    return took


def _waiting(folder: Path, live: Live, used: int, cap: int) -> Iterator[Finding]:
    if live.running:
        lag, waiting = live.metrics.get("tollspan_lag_seconds", 0.0), live.metrics.get("tollspan_lag_bytes", 0)
        said = f"The oldest batch that is not all written is {lag:.0f} s old; {_size(waiting)} wait."
        if used > 0.8 * cap:
            yield fail("journal.lag", f"{said} It is nearly full.", "See the store: nothing is taken when it is full.")
        elif lag > LAG_S:
            yield warn("journal.lag", said, "See the store, and the service's log.")
        else:
            yield ok("journal.lag", said)
        return
    if not folder.is_dir() or not used:
        yield ok("journal.lag", "Nothing waits.")
        return
    if used > READ_WHOLE:
        yield skip("journal.lag", f"{_size(used)}: `tollspan journal inspect` reads it all.")
        return
    try:
        seen = inspect(folder)
    except (TollspanError, OSError) as error:
        yield fail("journal.format", f"{error}", "Move the folder away only if nothing in it is needed.")
        return
    damaged = [each for each in seen.wrong if each.kind != "torn"]
    if damaged:
        yield fail(
            "journal.damage",
            f"{len(damaged)} places in it are damaged, first in {damaged[0].file}.",
            "`tollspan journal inspect` shows them; what is whole is read all the same. Check the disk.",
        )
    if seen.waiting_records:
        yield warn("journal.lag", f"{seen.waiting_records:,} requests wait for the service to run.", "tollspan serve")
    else:
        yield ok("journal.lag", "Nothing waits.")


def _quarantined(folder: Path) -> Iterator[Finding]:
    """Requests and spans that were set aside."""
    from tollspan.processor.quarantine import FOLDER

    aside = list((folder / FOLDER).glob("*.otlp")) if (folder / FOLDER).is_dir() else []
    if aside:
        yield warn(
            "journal.quarantine",
            f"{len(aside)} entries are set aside, and their spans are in no bill.",
            "`tollspan quarantine list` says why; `tollspan quarantine replay` tries them again.",
        )


def file_system(path: Path) -> str:
    """Type of the file system that a path is on, '' where the system does not tell."""
    best, kind = "", ""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    for line in lines:
        _, mount, found, *_ = line.split()
        mount = mount.replace("\\040", " ")
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, found
    return kind
