"""The service as it runs now, if it does: where it listens and what it says of itself."""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
from dataclasses import dataclass, field
from typing import Final

from tollspan.processor.addresses import parse_address
from tollspan.processor.config import Config, Places, TlsSettings
from tollspan.processor.errors import ConfigError
from tollspan.processor.store import Embedded, locate
from tollspan.processor.store import lock as store_lock

TIMEOUT_S: Final = 5.0
_SAMPLE: Final = re.compile(r"([a-zA-Z_:][\w:]*(?:\{[^}]*\})?) ([-+0-9.eEinfNa]+)")


@dataclass(slots=True)
class Live:
    """What was found.

    Attributes:
        grpc, http, sql: addresses to ask; '' where the service has no such port.
        ready: status and text of ``/readyz``; None: nobody answers there as Tollspan does.
        metrics: sample of ``/metrics`` → value.
        trouble: why nobody answered.
        tls: connections are encrypted.
    """

    grpc: str = ""
    http: str = ""
    sql: str = ""
    ready: tuple[int, str] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    trouble: str = ""
    tls: bool = False

    @classmethod
    def found(cls, config: Config) -> Live:
        """The service that this configuration leads to. Never fails: what cannot be asked stays empty."""
        places = config.get(Places)
        live = cls(places.listen, places.http or "", places.sql or "", tls=config.get(TlsSettings).cert is not None)
        with contextlib.suppress(ConfigError, OSError):
            where = locate(places.store)
            if isinstance(where, Embedded):
                # It says where it listens, which port 0 does not tell.
                owner = store_lock.holder(where.directory)
                told = store_lock.read_service(where.directory, owner) if owner is not None else {}
                live.grpc = str(told.get("grpc") or live.grpc)
                live.http = str(told.get("http") or live.http) if told.get("http") != "" else ""
                live.sql = str(told.get("sql") or live.sql) if told.get("sql") != "" else ""
            else:
                live.sql = ""
            for name in ("grpc", "http", "sql"):
                if getattr(live, name) and reachable(getattr(live, name))[1] == 0:
                    setattr(live, name, "")  # only the service knows which one it got
        live._ask()
        return live

    @property
    def running(self) -> bool:
        """Whether a service of ours answers."""
        return bool(self.metrics)

    def _ask(self) -> None:
        """Its state, from the OTLP/HTTP port, or else from the SQL port."""
        for address, tls in ((self.http, self.tls), (self.sql, False)):
            if not address:
                continue
            try:
                status, text = get(address, "/metrics", tls)
                if status != 200 or "tollspan_" not in text:
                    self.trouble = f"what answers at {address} is not Tollspan"
                    continue
                self.metrics = {m[1]: float(m[2]) for line in text.splitlines() if (m := _SAMPLE.fullmatch(line))}
                if address == self.http:
                    self.ready = get(address, "/readyz", tls)
                self.trouble = ""
                return
            except (OSError, http.client.HTTPException, ConfigError) as error:
                self.trouble = f"nothing answers at {address}: {getattr(error, 'strerror', None) or error}"


def get(address: str, path: str, tls: bool) -> tuple[int, str]:
    """A page of a service of ours. Its certificate is not checked here: nothing secret is sent.

    Raises:
        OSError, HTTPException: it does not answer. ConfigError: no address.
    """
    host, port = reachable(address)
    connection: http.client.HTTPConnection
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def reachable(address: str) -> tuple[str, int]:
    """Host and port to connect to for an address that is listened on: ``0.0.0.0`` is this machine.

    Raises:
        ConfigError: it is no address.
    """
    host, port = parse_address(address)
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port
