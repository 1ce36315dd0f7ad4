"""TLS for everything that listens: certificates from files, read again when they are replaced.

In: paths of PEM files. Out: credentials of gRPC's and contexts of `ssl`'s. Files that a certificate manager replaces
are taken by the next connection, without a restart; files that cannot be read then, or do not belong together yet,
leave the last good ones in use, and are counted and logged once.
"""

from __future__ import annotations

import logging
import ssl
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError

log = logging.getLogger(__name__)

RELOAD_ERRORS: Final = "tls.reload_errors"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files.

    Attributes:
        certificate: our certificate and those that lead to its authority.
        key: its private key, not encrypted.
        client_ca: authorities whose certificates senders must show (mTLS); None: senders need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


class _Loaded(NamedTuple):
    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Tls:
    """Certificates in use.

    Args:
        files: where they are.
        counters: counts ``tls.reloads`` and ``tls.reload_errors``.

    Attributes:
        version: how often the files were taken anew.

    Raises:
        ConfigError: a file is missing, unreadable or no PEM, or key and certificate do not belong together.
    """

    def __init__(self, files: TlsFiles, counters: Counters | None = None) -> None:
        self._files = files
        self._counters = counters or Counters()
        self._lock = threading.Lock()
        self._loaded, self._stamp = _read(files), _stamp(files)
        _check(self._loaded, files)
        self._complained: object = None
        self.version = 0

    def reload(self) -> bool:
        """Take files that were replaced; True if there were any. What is wrong with them changes nothing."""
        with self._lock:
            stamp = _stamp(self._files)
            if stamp == self._stamp:
                return False
            try:
                loaded = _read(self._files)
                _check(loaded, self._files)
            except ConfigError as error:
                if stamp != self._complained:
                    self._complained = stamp
                    self._counters.add(RELOAD_ERRORS)
                    log.error("TLS files not taken, the last good ones stay in use: %s", error)
                return False
            self._stamp = stamp
            if loaded == self._loaded:
                return False
            self._loaded = loaded
            self.version += 1
            self._counters.add("tls.reloads")
            log.info("TLS certificate read again from %s", self._files.certificate)
            return True

    def grpc_credentials(self) -> Any:
        """Server credentials for gRPC that look at the files at each handshake."""
        needs_client = self._files.client_ca is not None

        def configuration() -> Any:
            now = self._loaded
            return grpc.ssl_server_certificate_configuration([(now.key, now.certificate)], now.client_ca)

        told = [self._loaded]

        def changed() -> Any:
            self.reload()
            if told[0] is self._loaded:
                return None
            told[0] = self._loaded
            return configuration()

        return grpc.dynamic_ssl_server_credentials(configuration(), changed, needs_client)

    def context(self, *, ask_clients: bool = True) -> ssl.SSLContext:
        """A server's context of `ssl` with the files that are in use now.

        Args:
            ask_clients: clients need certificates where an authority for them is named; False: they never do.
        """
        return _context(self._loaded if ask_clients else self._loaded._replace(client_ca=None))


def _read(files: TlsFiles) -> _Loaded:
    def content(path: Path) -> bytes:
        try:
            found = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"TLS file {path} cannot be read: {(error.strerror or str(error)).lower()}.",
                "Give paths of PEM files that this user may read.",
            ) from error
        if b"-----BEGIN " not in found:
            raise ConfigError(f"TLS file {path} is not in PEM form.", "It has to begin with -----BEGIN …-----.")
        return found

    ca = files.client_ca
    return _Loaded(content(files.certificate), content(files.key), None if ca is None else content(ca))


def _stamp(files: TlsFiles) -> object:
    """What changes when a file is replaced, also by a link to elsewhere as Kubernetes does."""
    found = []
    for path in (files.certificate, files.key, files.client_ca):
        try:
            state = path.stat() if path is not None else None
        except OSError:
            state = None
        found.append(state and (state.st_ino, state.st_dev, state.st_mtime_ns, state.st_size))
    return found


def _check(loaded: _Loaded, files: TlsFiles) -> None:
    try:
        _context(loaded)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"TLS files {files.certificate} and {files.key} cannot be used: {error}.",
            "The key has to be the certificate's, without a password, and every file whole.",
        ) from error


def _context(loaded: _Loaded) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # `ssl` reads certificates and keys from files only; these have the very bytes that were checked.
    with tempfile.TemporaryDirectory(prefix="tollspan-tls-") as folder:
        certificate, key = Path(folder, "certificate.pem"), Path(folder, "key.pem")
        certificate.write_bytes(loaded.certificate)
        key.touch(mode=0o600)
        key.write_bytes(loaded.key)
        context.load_cert_chain(certificate, key, password=_no_password)
    if loaded.client_ca is not None:
        context.load_verify_locations(cadata=loaded.client_ca.decode("ascii", "replace"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")
