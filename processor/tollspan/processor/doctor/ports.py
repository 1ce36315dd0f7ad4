"""Ports: is the service there, is it ready, and whose are the ports it wants."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tollspan.processor.addresses import is_loopback, parse_address, require_loopback, try_to_bind
from tollspan.processor.config import Config, Places, TlsSettings
from tollspan.processor.doctor.finding import Finding, fail, ok, skip, warn
from tollspan.processor.doctor.live import Live, reachable
from tollspan.processor.errors import ConfigError
from tollspan.processor.store import Embedded, locate

if TYPE_CHECKING:
    from tollspan.processor.doctor import Asked


def ready(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """Whether spans are taken now."""
    if not live.running:
        yield fail("ready.service", f"No service: {live.trouble or 'it has no HTTP port'}.", "tollspan serve")
        return
    if live.ready is None:
        yield ok("ready.service", f"The service answers at {live.sql}; it has no OTLP/HTTP port.")
        return
    status, text = live.ready
    lines = text.strip().splitlines()
    if status == 200:
        yield ok("ready.service", f"Spans are taken at {live.grpc} and {live.http}.")
    else:
        yield fail("ready.service", f"No spans are taken: {lines[0]}.", _help_for(lines[0]))
    for line in lines[1:]:
        area = line.partition(":")[0]
        yield warn(f"ready.{area}", line, "See the findings on it below.")
    if live.metrics.get("tollspan_pipeline_up") == 0:
        yield fail("ready.pipeline", "The worker has died: spans are taken and not priced.", "Restart it.")


def _help_for(trouble: str) -> str:
    if "drain" in trouble:
        return "It is shutting down; start it again."
    return "Make room on the journal's disk, or raise journal.max_bytes; senders try again by themselves."


def ports(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """Whether each port is ours or free."""
    places = config.get(Places)
    plain = config.get(TlsSettings).cert is None
    wanted = {"grpc": (places.listen, live.grpc), "http": (places.http, live.http)}
    embedded = False
    try:
        embedded = isinstance(locate(places.store), Embedded)
    except ConfigError:
        pass  # the store's own check says it
    if embedded:
        wanted["sql"] = (places.sql, live.sql)
    for name, (address, now) in wanted.items():
        check = f"ports.{name}"
        if address is None:
            yield ok(check, "Switched off.")
            continue
        try:
            host, port = parse_address(address)
            loopback = is_loopback(host)
            if plain and not places.insecure_listen:
                require_loopback(address, host)
        except ConfigError as error:
            yield fail(check, error.message, error.hint)
            continue
        if live.running and not now and port == 0:
            yield skip(check, "Port 0: the system chose one; the service's log says which.")
        elif live.running and now and _listens(now):
            yield ok(check, f"The service has {now}.")
        elif live.running:
            yield fail(check, f"The service runs and does not have {address}.", "Restart it with this setting.")
        else:
            yield from _free(check, host, port)
        if not loopback and plain:
            yield warn(
                f"{check}.open",
                f"{address} is open to other machines, and nothing on it is encrypted.",
                "Set tls.cert and tls.key, or keep the network around it closed.",
            )
        if not loopback and places.senders is None and config.get(TlsSettings).client_ca is None and name != "sql":
            yield warn(
                f"{check}.anybody",
                f"Whoever reaches {address} may send spans for any tenant.",
                "Set senders (tollspan token) or tls.client_ca.",
            )


def _free(check: str, host: str, port: int) -> Iterator[Finding]:
    if port == 0:
        yield skip(check, "Port 0: the system chooses when the service starts.")
        return
    try:
        try_to_bind(host, port)
    except ConfigError as error:
        by = owner_of(port)
        do = f"Stop it, or choose another port{'' if by else ' (run this as root to see whose it is)'}."
        yield fail(check, f"{error.message.rstrip('.')}{f' by {by}' if by else ''}.", do)
    except OSError as error:
        yield fail(check, f"{host}:{port} cannot be used: {error}.", "Fix the address.")
    else:
        yield ok(check, f"{host}:{port} is free.")


def _listens(address: str) -> bool:
    try:
        with socket.create_connection(reachable(address), timeout=3.0):
            return True
    except (OSError, ConfigError):
        return False


def owner_of(port: int) -> str:
    """``pid 42 (nginx)`` of the process that listens on a TCP port, as far as this user may see; else ''."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            # State 0A is LISTEN.
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        try:
            if any(os.readlink(each) in inodes for each in (process / "fd").iterdir()):
                return f"pid {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:
            continue
    return ""
