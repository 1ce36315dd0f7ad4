"""Dimensions: by what a measure can be broken down, and what rows can be filtered by. A closed table.

In: names that people type (``tenant``, ``tenant=acme``). Out: fragments of SQL over the table ``ledger`` and values to
bind. No text of a user's ever becomes SQL: names are looked up here, values are parameters.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tollspan.processor.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing to break down by.

    Attributes:
        name: as in ``--by`` and as the column is called.
        about: what it is.
        sql: a text over the columns of ``ledger``, '' where the span did not say; or an instant.
        time: whether it is one: rows then come in its order, and it is no filter (a window is).
        telemetry: the same over the table ``telemetry``; '' = not told there.
        number: of an instant, a number over ``ledger`` that differs where it does, and takes less to make.
    """

    name: str
    about: str
    sql: str
    time: bool = False
    telemetry: str = ""
    number: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of ``ledger`` that it is made of, in the order in which they are named."""
        return tuple(dict.fromkeys(re.findall(r"ledger\.\w+", self.sql)))


def _column(name: str, about: str, column: str = "") -> Dimension:
    return Dimension(name, about, f"ledger.{column or name}")


_DIMENSIONS: Final = (
    Dimension("tenant", "who pays", "ledger.tenant", telemetry="telemetry.tenant"),
    _column("team", "team of the caller"),
    _column("feature", "feature of the product"),
    _column("workflow", "workflow of which the call is a part"),
    _column("agent", "agent that asked: tag, or gen_ai.agent.name"),
    Dimension("service", "service.name", "ledger.service", telemetry="telemetry.service"),
    _column("route", "route of the server on which it was asked: tag, or http.route"),
    _column("provider", "who bills, or the runtime on own hardware"),
    Dimension(
        "model",
        "model as served, or as asked for where the answer named none",
        "if(ledger.model != '', ledger.model, ledger.request_model)",
    ),
    _column("version", "service.version"),
    _column("variant", "variant of an experiment"),
    _column("region", "cloud.region of the caller"),
    _column("environment", "deployment.environment.name"),
    _column("operation", "chat, embeddings, feature_read …"),
    _column("kind", "inference, model_load, feature_read, capacity or other"),
    _column("device", "device that executed the call"),
    _column("host_type", "type of the machine"),
    _column("cloud_provider", "cloud.provider"),
    _column("purchase", "how the machine is paid for: on_demand, spot …"),
    _column("processing", "online or batch"),
    _column("service_tier", "service tier of the provider"),
    _column("residency", "where the provider was told to process"),
    _column("cost_status", "priced, partial, unpriced …"),
    _column("error_type", "error.type"),
    _column("book_version", "version of the price book"),
    *(
        Dimension(
            name,
            f"{name} (UTC) in which the span started",
            start.format("ledger.start_time"),
            True,
            start.format("telemetry.minute"),
            number,
        )
        for name, start, number in (
            # Not DateTime, which Arrow hands over as a number.
            ("minute", "toDateTime64(toStartOfMinute({}), 0, 'UTC')", "toUInt32(toStartOfMinute(ledger.start_time))"),
            ("hour", "toDateTime64(toStartOfHour({}), 0, 'UTC')", "ledger.start_hour"),
            ("day", "toDate({})", "intDiv(ledger.start_hour, 24)"),
            ("week", "toMonday({})", "toUInt16(toMonday(ledger.start_time))"),
            ("month", "toStartOfMonth({})", "toUInt16(toStartOfMonth(ledger.start_time))"),
        )
    ),
)

DIMENSIONS: Final[dict[str, Dimension]] = {dimension.name: dimension for dimension in _DIMENSIONS}
"""Every dimension by name."""


def dimensions(names: Iterable[str], allowed: Sequence[str] = ()) -> tuple[Dimension, ...]:
    """Look dimensions up.

    Args:
        names: each one name, or several with commas between them.
        allowed: those that the query knows; empty = all.

    Raises:
        ConfigError: there is none of that name (names the nearest), it comes twice, or the query does not know it.
    """
    found: dict[str, Dimension] = {}
    for name in (part.strip() for each in names for part in each.split(",")):
        dimension = _known(name)
        if name in found:
            raise ConfigError(f"--by names {name} twice.")
        if allowed and name not in allowed:
            raise ConfigError(f"This is not told by {name}.", f"Only by {', '.join(allowed)}.")
        found[name] = dimension
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on rows.

    Attributes:
        dimension: on what.
        value: which it has to have; '' is not given.
        unlike: it must not have it.
    """

    dimension: Dimension
    value: str
    unlike: bool


def filters(texts: Iterable[str], allowed: Sequence[str] = ()) -> tuple[Filter, ...]:
    """Read filters: ``tenant=acme``, ``tenant!=acme``, ``tenant=`` (not given).

    Several on one dimension with ``=`` let any of their values pass, everything else has to hold together.

    Raises:
        ConfigError: one cannot be read, or has no such dimension.
    """
    made = []
    for text in texts:
        name, equals, value = text.partition("=")
        unlike = name.endswith("!")
        if not equals:
            raise ConfigError(f"--where {text!r} is no filter.", "Write it like tenant=acme, tenant!=acme or tenant= .")
        dimension = _known(name.removesuffix("!").strip())
        if dimension.time:
            raise ConfigError(f"--where does not filter by {dimension.name}.", "Use --since and --until.")
        if allowed and dimension.name not in allowed:
            raise ConfigError(f"This is not told by {dimension.name}.", f"Only by {', '.join(allowed)}.")
        made.append(Filter(dimension, value, unlike))
    return tuple(made)


def condition(chosen: Sequence[Filter], table: str = "ledger") -> tuple[str, dict[str, str]]:
    """SQL that begins with `` AND`` (or is empty) and holds for rows that pass, and the values it needs bound."""
    alike: dict[tuple[str, bool], list[str]] = {}
    values = {}
    for number, each in enumerate(chosen):
        values[f"where_{number}"] = each.value
        told = each.dimension.sql if table == "ledger" else each.dimension.telemetry
        sign = "!=" if each.unlike else "="
        alike.setdefault((each.dimension.name, each.unlike), []).append(f"{told} {sign} {{where_{number}:String}}")
    return "".join(
        f" AND ({(' AND ' if unlike else ' OR ').join(parts)})" for (_, unlike), parts in alike.items()
    ), values


def _known(name: str) -> Dimension:
    if name in DIMENSIONS:
        return DIMENSIONS[name]
    near = difflib.get_close_matches(name, DIMENSIONS, n=3, cutoff=0.5)
    raise ConfigError(
        f"There is no dimension {name!r}.",
        f"Did you mean {' or '.join(near)}?" if near else f"One of: {', '.join(DIMENSIONS)}.",
    )
