"""Stores: where ledger, traces and spans are kept.

    store = open_store("chdb:///var/lib/tollspan/store")
    store.migrate()
    store.insert("ledger", rows, token)
    with connect_for_query(url) as reader:
        table = reader.query("SELECT …")

`location` reads URLs, `lock` knows who owns an embedded directory, `faults` sorts errors, `clickhouse` is the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tollspan.processor.store import lock
from tollspan.processor.store.clickhouse import Reader, Store, as_rows, open_embedded, open_server
from tollspan.processor.store.location import Embedded, Location, Server, locate
from tollspan.processor.store.lock import StoreInUse

__all__ = [
    "LOCAL_USER",
    "Embedded",
    "Location",
    "Reader",
    "Server",
    "Store",
    "StoreInUse",
    "as_rows",
    "connect_for_query",
    "locate",
    "open_store",
    "remove_service_file",
    "write_service_file",
]


LOCAL_USER: Final = "tollspan-local"
"""User of the SQL port for who can read the store's ``serve.json``, where its key stands."""


def open_store(url: str | None = None, create: bool = True) -> Store:
    """Open a store.

    Args:
        url: ``chdb:///dir[?database=x]`` or ``clickhouse://user:pass@host:8123/db?secure=true``; None or empty for
            ``TOLLSPAN_STORE``, else the embedded store in the user's data directory.
        create: make directory and database where they are missing (not the tables: `Store.migrate`).

    Raises:
        ConfigError: the URL cannot be read, the directory not be written, or chdb is not installed.
        StoreInUse: another process owns the embedded store.
        StoreUnavailable: the server does not answer.
        StoreError: it answers and refuses, or there is no such store and ``create`` is False.
    """
    location = locate(url)
    if isinstance(location, Embedded):
        return open_embedded(location, create)
    return open_server(location, create)


def connect_for_query(url: str | None = None, settings: Mapping[str, str] | None = None) -> Reader:
    """A read-only handle on a store, whoever owns it.

    An embedded store that a running service owns is read through the service's SQL port; any other is opened here.

    Args:
        url: see `open_store`.
        settings: see `Store.reader`.

    Raises:
        As `open_store`; StoreInUse also when the owner has no SQL port.
    """
    location = locate(url)
    if isinstance(location, Embedded):
        owner = lock.holder(location.directory)
        if owner is not None:
            service = lock.read_service(location.directory, owner)
            address = service.get("sql")
            if not isinstance(address, str) or not address:
                raise StoreInUse(
                    f"Store {location.directory} is in use by {owner}, which has no SQL port.",
                    "Stop it first, or run `tollspan serve` with --sql HOST:PORT.",
                    owner,
                )
            return open_server(_through(address, location.database, service), create=False).detached_reader(settings)
    return open_store(url, create=False).detached_reader(settings)


def write_service_file(store: Store, info: Mapping[str, object]) -> None:
    """Say in ``serve.json`` how an embedded store is reached while this process owns it.

    Args:
        store: an embedded store; for a server nothing is written.
        info: see `lock.write_service`.
    """
    if store.directory is not None:
        lock.write_service(store.directory, info)


def remove_service_file(store: Store) -> None:
    """Undo `write_service_file`."""
    if store.directory is not None:
        lock.remove_service(store.directory)


def _through(address: str, database: str, service: Mapping[str, object]) -> Server:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    # A port that listens everywhere is reached here.
    if host in ("", "0.0.0.0", "::"):
        host = "127.0.0.1"
    key = service.get("sql_key")
    secure = service.get("sql_tls") is True
    # Its certificate has the name that others know it by. Nobody else can have the port: its process holds the lock.
    options = {"verify": "false"} if secure else {}
    return Server(host, int(port), LOCAL_USER if key else None, str(key) if key else None, database, secure, options)
