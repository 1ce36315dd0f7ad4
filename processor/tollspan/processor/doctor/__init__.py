"""``tollspan doctor``: checks the whole path of a span, from the program to the ledger, and says what to do.

In: a configuration, and the environment it is run in. Out: `Finding`s, one for each thing looked at. Nothing is changed
but for one span that is sent (`span`), and a file of a few KiB that is written and removed to time the disk.

Areas are looked at in the order of a span's way backwards: what is wrong further down explains what is wrong above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from tollspan.processor.config import Config
from tollspan.processor.doctor.finding import FAIL, OK, SKIP, WARN, Finding, fail, ok, warn
from tollspan.processor.doctor.live import Live
from tollspan.processor.logs import hidden

__all__ = ["AREAS", "FAIL", "OK", "SKIP", "WARN", "Asked", "Finding", "examine"]


@dataclass(frozen=True, slots=True)
class Asked:
    """How to look.

    Attributes:
        token: bearer token to send the test span with.
        ca: PEM file of the authority that the service's certificate is checked by; the system's when None.
        send: send a test span.
        wait_s: how long it may take until it is in the ledger.
        environment: of the program that is instrumented.
    """

    token: str = ""
    ca: str | None = None
    send: bool = True
    wait_s: float = 30.0
    environment: Mapping[str, str] = field(default_factory=dict)


def examine(config: Config, asked: Asked, areas: Iterable[str] | None = None) -> Iterator[Finding]:
    """Look at some areas, or at all.

    A check that fails with a fault of its own is a finding too, and the others go on.
    """
    chosen = set(AREAS if areas is None else areas)
    live = Live.found(config)
    for area, look in AREAS.items():
        if area not in chosen:
            continue
        try:
            for finding in look(config, live, asked):
                yield finding.masked()
        except Exception as error:  # noqa: BLE001  (one check that cannot be done must not hide what the others say)
            said = hidden(f"{type(error).__name__}: {error}")
            yield fail(f"{area}.fault", f"The check itself failed: {said}.", "Report this as a bug.")


def _config(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    given = sum(value.where != "default" for value in config.values.values())
    where = config.file or "no file"
    yield ok("config.settings", f"{len(config.values)} settings, {given} of them given ({where}).")
    for warning in config.warnings:
        yield warn("config.environment", warning, "If it is meant for Tollspan, check its name.")


def _areas() -> dict[str, Callable[[Config, Live, Asked], Iterator[Finding]]]:
    from tollspan.processor.doctor import files, onward, plugin, ports, span, store

    return {
        "config": _config,
        "ready": ports.ready,
        "ports": ports.ports,
        "tls": files.tls,
        "senders": files.senders,
        "prices": files.prices,
        "sampling": files.sampling,
        "journal": files.journal,
        "store": store.store,
        "clock": store.clock,
        "forward": onward.forward,
        "span": span.span,
        "plugin": plugin.plugin,
    }


AREAS: Final[Mapping[str, Callable[[Config, Live, Asked], Iterator[Finding]]]] = _areas()
"""Area → its checks, in their order."""
