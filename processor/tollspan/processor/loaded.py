"""Fully loaded cost: direct cost, and shares of idle time and overhead by named policies.

In: a read-only handle, a window, policies. Out: rows of the query ``fully-loaded``, which with no choice made is what
`tollspan query fully-loaded` shows. What the policies mean stands in ``queries/fully-loaded-cost.sql``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, Literal, get_args

import yaml

from tollspan.processor.errors import ConfigError
from tollspan.processor.queries import Rows, find
from tollspan.processor.queries.named import NO_LIMIT
from tollspan.processor.queries.window import EARLIEST, LATEST, bound

Policy = Literal["proportional", "reservation", "platform"]
Payer = Literal["tenant", "team", "feature", "workflow", "agent", "service"]
Bills = Literal["no", "extras", "all"]

_PLACES: Final = 9
"""Decimals that a reservation may have."""
_LARGEST: Final = Decimal(10**9)


def fully_loaded(
    reader: Rows,
    since: datetime | None = None,
    until: datetime | None = None,
    payer: Payer = "tenant",
    idle: Policy = "proportional",
    overhead: Policy = "proportional",
    reserved: Mapping[str, int] | None = None,
    bills: Bills = "no",
) -> list[dict[str, Any]]:
    """What each payer costs; the loaded costs add up to the whole, to the last digit.

    Args:
        reader: a `tollspan.processor.store.Reader` or `Store`.
        since, until: start times taken; None for an open end.
        payer: the tag that says who pays.
        idle, overhead: policies for idle time, and for what has no tag and what bills add.
        reserved: payer → weight above 0, for the policy ``reservation``; '' is the platform.
        bills: what of imported bills is shared out: ``extras`` are taxes, credits and adjustments, ``all`` purchases
            too.

    Raises:
        ConfigError: there is no such payer or policy, or nothing is reserved where a policy goes by it.
        StoreError: see `Reader.query`.
    """
    for value, known in ((payer, Payer), (idle, Policy), (overhead, Policy), (bills, Bills)):
        if value not in get_args(known):
            raise ConfigError(f"{value!r} is not known here.", f"One of: {', '.join(get_args(known))}.")
    if "reservation" in (idle, overhead) and not reserved:
        raise ConfigError("The policy reservation needs to know what is reserved.", "Give --reservations FILE.")
    sql, values = find("fully-loaded").text()
    chosen = {"payer": payer, "idle_policy": idle, "overhead_policy": overhead, "bills": bills}
    parameters = {"since": bound(since, EARLIEST), "until": bound(until, LATEST), "limit": NO_LIMIT}
    return reader.rows(sql, {**values, **parameters, **chosen, "reserved": json.dumps(dict(reserved or {}))})


def read_reservations(path: Path) -> dict[str, int]:
    """Weights of payers, from YAML, as whole numbers of 10⁻⁹.

    Raises:
        ConfigError: the file cannot be read, or has something else in it than names with weights above 0.
    """
    try:
        # As texts: a weight such as 0.1 is to be exact.
        said = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}.") from None
    if not isinstance(said, Mapping) or not said:
        raise ConfigError(f"{path}: it has to be a mapping of payers to weights.", "For example `acme: 2.5`.")
    return {name: _weight(path, name, value) for name, value in said.items()}


def _weight(path: Path, name: str, value: Any) -> int:
    try:
        weight = Decimal(value)
        if weight.is_finite() and 0 < weight <= _LARGEST and weight == round(weight, _PLACES):
            return int(weight.scaleb(_PLACES))
    except (InvalidOperation, TypeError, ValueError):
        pass
    raise ConfigError(
        f"{path}: the weight of {name!r} is {value!r}.",
        f"A weight is a number above 0 with {_PLACES} decimals at most.",
    )
