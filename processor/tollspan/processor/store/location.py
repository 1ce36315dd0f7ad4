"""Where a store is: store URLs read into an embedded directory or a server.

In: the URL that a person typed (``--store``, ``TOLLSPAN_STORE``). Out: an `Embedded` or `Server` location, or a
`ConfigError` that names the part that is wrong. Nothing is opened here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

import platformdirs

from tollspan.processor.errors import ConfigError

DEFAULT_DATABASE: Final = "tollspan"

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_EXAMPLES: Final = "Use chdb:// (embedded, default directory), chdb:///abs/dir or clickhouse://user:pass@host:8123/db."

_SERVER_OPTIONS: Final = (
    "secure",
    "verify",
    "ca_cert",
    "client_cert",
    "client_cert_key",
    "server_host_name",
    "connect_timeout",
    "send_receive_timeout",
    "compress",
    "http_proxy",
    "https_proxy",
    "cluster",
)
"""Query parameters of a ``clickhouse://`` URL; all but ``secure`` and ``cluster`` go to clickhouse_connect."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A directory whose ``engine`` folder one process at a time opens with chdb.

    Attributes:
        directory: absolute path ``D``; holds ``engine``, ``journal``, ``lock`` and, under a service, ``serve.json``.
        database: database inside it.
    """

    directory: Path
    database: str

    @property
    def engine(self) -> Path:
        """ClickHouse's own files."""
        return self.directory / "engine"

    @property
    def url(self) -> str:
        """The URL that names this location, default database left out."""
        suffix = "" if self.database == DEFAULT_DATABASE else f"?database={self.database}"
        return f"chdb://{quote(str(self.directory))}{suffix}"


@dataclass(frozen=True, slots=True)
class Server:
    """A ClickHouse server reached over its HTTP interface.

    Attributes:
        host, port: of the HTTP interface.
        user, password: None when the URL names nobody.
        database: database that holds the tables.
        secure: TLS.
        options: further arguments of clickhouse_connect, as text.
        cluster: on which the tables are spread; empty for a single node.
    """

    host: str
    port: int
    user: str | None
    password: str | None = field(repr=False)
    database: str
    secure: bool
    options: Mapping[str, str]
    cluster: str = ""

    @property
    def address(self) -> str:
        """``host:port`` for messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL without its password: fit for logs and messages."""
        user = f"{quote(self.user)}@" if self.user else ""
        given = [*(["secure=true"] if self.secure else []), *([f"cluster={self.cluster}"] if self.cluster else [])]
        suffix = f"?{'&'.join(given)}" if given else ""
        return f"clickhouse://{user}{self.address}/{self.database}{suffix}"


Location = Embedded | Server


def default_directory() -> Path:
    """Directory behind a bare ``chdb://``: ``store`` in ``TOLLSPAN_DATA_DIR``, else in the user's data directory."""
    root = os.environ.get("TOLLSPAN_DATA_DIR") or platformdirs.user_data_dir("tollspan", appauthor=False)
    return Path(os.path.realpath(Path(root).expanduser())) / "store"


def locate(url: str | None = None) -> Location:
    """Read a store URL.

    Args:
        url: ``chdb://``, ``chdb:///dir[?database=x]`` or ``clickhouse://user:pass@host:8123/db?secure=true``; None or
            empty for ``TOLLSPAN_STORE``, and ``chdb://`` when that is not set either.

    Raises:
        ConfigError: the URL cannot be read.
    """
    text = url or os.environ.get("TOLLSPAN_STORE") or "chdb://"
    parts = urlsplit(text)
    if parts.scheme == "chdb":
        return _embedded(parts)
    if parts.scheme == "clickhouse":
        return _server(parts)
    # The text may hold a password, so only its scheme is repeated.
    what = f"scheme {parts.scheme!r}" if "://" in text else f"{text!r}, which has no scheme"
    raise ConfigError(f"Store URL has unknown {what}." if "://" in text else f"Store is {what}.", _EXAMPLES)


def _embedded(parts: SplitResult) -> Embedded:
    if parts.netloc:
        raise ConfigError(
            f"Store URL chdb://{parts.netloc}{parts.path} does not name an absolute path.",
            f"Three slashes: chdb://{Path(parts.netloc + parts.path).expanduser().absolute()}",
        )
    options = _options(parts, ("database",))
    path = unquote(parts.path)
    directory = Path(os.path.realpath(path)) if path.strip("/") else default_directory()
    return Embedded(directory, _database(options.get("database", DEFAULT_DATABASE)))


def _server(parts: SplitResult) -> Server:
    if not parts.hostname:
        raise ConfigError("Store URL clickhouse:// names no host.", _EXAMPLES)
    try:
        port = parts.port
    except ValueError:
        raise ConfigError("Store URL has a port that is no number from 0 to 65535.", _EXAMPLES) from None
    options = _options(parts, _SERVER_OPTIONS)
    secure = options.pop("secure", "").lower() in ("1", "true", "yes", "on") or port in (443, 8443)
    for name in ("connect_timeout", "send_receive_timeout"):
        if name in options and not options[name].isdecimal():
            raise ConfigError(f"Store URL option {name}={options[name]!r} is not a whole number of seconds.")
    database = unquote(parts.path.strip("/")) or DEFAULT_DATABASE
    if (cluster := options.pop("cluster", "")) and not _NAME.fullmatch(cluster):
        raise ConfigError(f"Store URL option cluster={cluster!r} cannot be a cluster's name.", "See system.clusters.")
    return Server(
        host=parts.hostname,
        port=port or (8443 if secure else 8123),
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        database=_database(database),
        secure=secure,
        options=options,
        cluster=cluster,
    )


def _options(parts: SplitResult, known: tuple[str, ...]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ConfigError(f"Store URL has unknown option {name!r}.", hint)
        options[name] = value
    return options


def _database(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"Database name {name!r} cannot be used.", "Letters, digits and underscores, no digit first.")
    return name
