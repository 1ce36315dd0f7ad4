"""Forwarding: do the endpoints that kept spans are sent on to answer, and do they take them?"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tollspan.processor.config import Config
from tollspan.processor.doctor.finding import Finding, fail, ok, warn
from tollspan.processor.doctor.live import Live
from tollspan.processor.forward.settings import Endpoint, Forwarding, address

if TYPE_CHECKING:
    from tollspan.processor.doctor import Asked


def forward(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """Each endpoint: reachable, its certificate good, and what waits for it."""
    endpoints = [each for each in (config.get(Endpoint), *config.get(Forwarding).endpoints) if each.endpoint]
    if not endpoints:
        yield ok("forward.endpoints", "Spans are not sent on.")
    for each in endpoints:
        yield _reached(each)
        name = each.name
        up = live.metrics.get(f'tollspan_forward_up{{endpoint="{name}"}}')
        if up == 0:
            yield warn(f"forward.{name}.up", f"The service gets nothing through to {name}.", "Its log says why.")
        waiting = live.metrics.get(f'tollspan_forward_waiting_bytes{{endpoint="{name}"}}', 0)
        if waiting > 0.5 * each.max_bytes:
            share = 100 * waiting / each.max_bytes
            said = f"What waits for {name} fills {share:.0f} % of its cap; at the cap kept spans are not sent on."
            yield warn(f"forward.{name}.spool", said, "Mend the endpoint, or raise forward.max_bytes.")


def _reached(endpoint: Endpoint) -> Finding:
    assert endpoint.endpoint is not None
    where = address(endpoint.endpoint)
    host, _, port = where.netloc.rpartition(":")
    host, check = host.strip("[]"), f"forward.{endpoint.name}"
    try:
        with socket.create_connection((host, int(port)), timeout=5.0) as line:
            if where.secure:
                context = ssl.create_default_context(cafile=endpoint.ca)
                if endpoint.cert is not None:
                    context.load_cert_chain(endpoint.cert, endpoint.key)
                with context.wrap_socket(line, server_hostname=host):
                    pass
    except ssl.SSLError as error:
        return fail(
            check, f"{endpoint.endpoint}: {error.reason or error}.", "Set ca to the authority of its certificate."
        )
    except OSError as error:
        why = error.strerror or str(error)
        return fail(check, f"{endpoint.endpoint} does not answer: {why}.", "Start it, or fix forward.endpoint.")
    return ok(check, f"{endpoint.endpoint} answers.")
