"""Addresses that the service listens on: read, tried, and kept from being open by accident.

In: ``host:port`` as a person typed it. Out: host and port, or a `ConfigError` that says what to do. All ports ask here
(OTLP/gRPC, OTLP/HTTP, SQL), so that all of them are as careful.
"""

from __future__ import annotations

import ipaddress
import resource
import socket

from tollspan.processor.errors import ConfigError


def parse_address(address: str, example: str = "127.0.0.1:4317") -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as host (without brackets) and port.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"{address!r} is no address to listen on.", f"Give host:port, e.g. {example}.")
    return host, int(port)


def shown(host: str, port: int) -> str:
    """Host and port as one address again."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_name(host: str) -> str:
    """The name in a ``Host`` header, in lower case and without its port; an IPv6 address with its brackets."""
    name = host.lower()
    if name.startswith("["):
        return name[: name.find("]") + 1]
    return name.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``: every address that it resolves to is a loopback address.

    Raises:
        ConfigError: the name does not resolve.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"{host!r} does not resolve: {error.strerror}.", "Listen on 127.0.0.1, or fix the name."
        ) from error
    return all(ipaddress.ip_address(str(where[0]).partition("%")[0]).is_loopback for *_, where in found)


def require_loopback(address: str, host: str, *, lacks: str = "connections are not encrypted", needs: str = "") -> None:
    """Refuse an open address where nobody and nothing guards it.

    Args:
        lacks: what is missing there.
        needs: what to give for it.

    Raises:
        ConfigError: other machines can reach it.
    """
    if not is_loopback(host):
        needs = needs or "give --tls-cert and --tls-key"
        raise ConfigError(
            f"{address} is open to other machines, and {lacks}.",
            f"Listen on 127.0.0.1, {needs}, or pass --insecure-listen if the network around it is trusted.",
        )


def try_to_bind(host: str, port: int) -> None:
    """Find out why an address cannot be used: gRPC does not tell its caller, and writes lines of its own to stderr.

    Raises:
        ConfigError: it cannot.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC binds: connections of an earlier server that still linger do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise cannot_listen(host, port, (error.strerror or str(error)).lower()) from error


def cannot_listen(host: str, port: int, reason: str) -> ConfigError:
    """The error for an address that is taken, or not ours."""
    return ConfigError(
        f"Cannot listen on {shown(host, port)}: {reason}.",
        "Stop the program that has the port, or choose another with --listen, --http, --sql or --page (0: a free one).",
    )


def allow_connections() -> int:
    """Let this process have as many connections as the system lets it; how many files it may open now.

    Systems begin with a limit of 1,024 for the sake of programs that use ``select``, which none of ours is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft  # macOS has a second limit, which it does not tell
    return hard


def same_address(host: str, port: int, own: str) -> bool:
    """Whether ``host:port`` leads to the address ``own`` that this process listens on."""
    mine, _, my_port = own.rpartition(":")
    if str(port) != my_port:
        return False
    mine = mine.strip("[]")
    try:
        theirs = {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
        ours = {str(found[4][0]) for found in socket.getaddrinfo(mine, None)}
    except OSError:
        return False
    everywhere = ours & {"0.0.0.0", "::"}
    local = {"127.0.0.1", "::1"} | (_own_addresses() if everywhere else set())
    return bool(theirs & ours) or (bool(everywhere) and bool(theirs & local))


def _own_addresses() -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return set()
