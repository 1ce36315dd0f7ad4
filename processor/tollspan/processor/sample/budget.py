"""The budget: what telemetry may take, and the rates that hold it to that.

In: a setting such as ``2%`` (of what the ledger says everything else costs), ``5 USD/day`` or ``10 GB/day``, and the
minutes of the tables ``telemetry`` and ``ledger``. Out: the levels ``base_rate`` and ``content_rate``, for all and for
each tenant with a budget of its own, published once a minute for a minute to come; and what is wrong, where the budget
cannot be held. The law is in `steer`; `levels` asks, publishes, and has everybody read the same.

    2% of cost      received + stored, in USD      a price book with both meters of telemetry
    5 USD/day       received + stored, in USD      the same
    10 GB/day       stored bytes alone             nothing

What is received is paid for whatever is kept, so it is part of a budget in money and cannot be steered; nor can what
rules keep that are not the base. Where these alone are too much, the base rate is as good as 0, and `Budget.trouble`
names them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Final, Literal

import numpy as np
import pyarrow as pa

from tollspan.pricing import PriceEngine
from tollspan.processor.counters import Counters
from tollspan.processor.sample.levels import Figure
from tollspan.processor.sample.policy import BASE_RATE, CONTENT_RATE
from tollspan.processor.sample.steer import LEAST, WINDOW, Hour, Plan, Rates, Series, steer
from tollspan.processor.sample.telemetry_cost import MINUTE_NS, RECEIVED, RETENTION_S, STORED
from tollspan.processor.values import SIZES, Between

if TYPE_CHECKING:
    from tollspan.processor.sample.levels import Levels
    from tollspan.processor.store import Reader

log = logging.getLogger(__name__)

AHEAD: Final = 2
"""Minutes from the newest one that is looked at to the first that its rates are for."""
UNUSUAL_GROWTH: Final = 2.0
"""Stored bytes for each received one, as long as nothing was kept."""
NAMED: Final = 5
"""Rules that a warning names."""
EVERYBODY: Final = ""

_NUMBER: Final = r"(?P<amount>[0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)"
_SHARE: Final = re.compile(_NUMBER + r"\s*%(?:\s*of\s+(?:the\s+)?(?:inference\s+)?cost)?")
_RATE: Final = re.compile(_NUMBER + r"\s*(?P<unit>[A-Za-z]+)\s*/\s*(?P<per>hour|h|day|d|month)")
_DOLLARS: Final = re.compile(r"\$\s*" + _NUMBER + r"\s*/\s*(?P<per>hour|h|day|d|month)")
_MINUTES: Final = {"hour": 60, "h": 60, "day": 1440, "d": 1440, "month": 730 * 60}
_LIKE: Final = "Write it as 2%, 5 USD/day or 10 GB/day."


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget that was read.

    Attributes:
        kind: ``share`` of what the ledger's calls cost, ``money``, or ``bytes`` that are stored.
        amount: the share; or 10⁻¹² USD or bytes a minute.
        text: as it was written.
    """

    kind: Literal["share", "money", "bytes"]
    amount: Fraction
    text: str


def read_limit(text: str) -> Limit:
    """Read a budget.

    Raises:
        ValueError: it is none; says what one looks like.
    """
    given = text.strip()
    share = _SHARE.fullmatch(given)
    if share:
        amount = Fraction(share["amount"].replace("_", "")) / 100
        if amount > 1:
            raise ValueError(f"{text!r} is more than everything else costs. {_LIKE}")
        return Limit("share", amount, given)
    rate = _DOLLARS.fullmatch(given) or _RATE.fullmatch(given)
    if rate is None:
        raise ValueError(f"{text!r} is no budget. {_LIKE}")
    amount = Fraction(rate["amount"].replace("_", "")) / _MINUTES[rate["per"]]
    unit = rate.groupdict().get("unit", "USD")
    if unit.upper() == "USD":
        return Limit("money", amount * 10**12, given)
    size = SIZES.get(unit.lower())
    if size is None or not unit:
        raise ValueError(f"{text!r}: {unit} is neither USD nor a size. {_LIKE}")
    return Limit("bytes", amount * size, given)


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """What telemetry may take.

    Attributes:
        budget: 2% (of what the ledger says), 5 USD/day or 10 GB/day (stored), held in every hour; off by default.
        tenants: budgets of single tenants, name=budget,…; each is held by itself and is no part of the one for all.
        surge: how many times as much telemetry may come from one minute to the next without breaking the hour; the
            higher, the smaller the part of the budget that is used while nothing happens.
        retention_s: how long kept spans are stored, which is what storing them costs; deletes nothing by itself.
    """

    budget: str | None = None
    tenants: dict[str, str] = field(default_factory=dict)
    surge: Annotated[float, Between(1, 100)] = 10.0
    retention_s: float = float(RETENTION_S)

    def __post_init__(self) -> None:
        self.limits  # noqa: B018  (raises)
        if self.retention_s < 0:
            raise ValueError("retention has to be 0 or more")

    @property
    def limits(self) -> dict[str, Limit]:
        """Limit by tenant, `EVERYBODY` for all without one of their own."""
        found = {EVERYBODY: read_limit(self.budget)} if self.budget is not None else {}
        for tenant, text in self.tenants.items():
            if not tenant:
                raise ValueError("a budget of a tenant needs the tenant's name; the one for all is sampling.budget")
            try:
                found[tenant] = read_limit(text)
            except ValueError as error:
                raise ValueError(f"tenant {tenant}: {error}") from None
        return found


@dataclass(slots=True)
class _Taken:
    """What one tenant's minutes, or everybody's, say: shape (60,) each; money in 10⁻¹² USD."""

    cost: Series = field(default_factory=lambda: np.zeros(WINDOW))
    received: Series = field(default_factory=lambda: np.zeros(WINDOW))
    stored: dict[bool, Series] = field(default_factory=lambda: {False: np.zeros(WINDOW), True: np.zeros(WINDOW)})
    bytes: dict[bool, Series] = field(default_factory=lambda: {False: np.zeros(WINDOW), True: np.zeros(WINDOW)})
    wanted: Series = field(default_factory=lambda: np.zeros(WINDOW))
    kept: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    content: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    whole: dict[bool, float] = field(default_factory=lambda: {False: 0.0, True: 0.0})
    unpriced: set[str] = field(default_factory=set)
    since: int = WINDOW


class Budget:
    """Publishes rates; a `levels.Source`.

    Args:
        settings: what may be taken.
        engine: gives the prices in use.
        counters: gets ``sampling.budget.*``.
        decision_timeout_s: after which traces are decided in any case, and the newest minutes complete.
    """

    metrics: tuple[str, ...] = (BASE_RATE, CONTENT_RATE, "budget_used")
    ahead = AHEAD

    def __init__(
        self,
        settings: BudgetSettings,
        engine: Callable[[], PriceEngine],
        counters: Counters | None = None,
        decision_timeout_s: float = 30.0,
    ) -> None:
        self.settings, self.limits, self._engine = settings, settings.limits, engine
        self.counters = counters or Counters()
        self.plan = Plan(settings.surge, AHEAD, settle=1 + max(1, round(decision_timeout_s / 60)))
        self.trouble = ""
        """Why a budget is not held; empty while all are."""
        self._watchers: list[Callable[[bool], None]] = []
        self._costs: dict[int, dict[str, Decimal]] = {}
        self.counters.gauge("sampling.budget.trouble", lambda: int(bool(self.trouble)))

    def watch_health(self, tell: Callable[[bool], None]) -> None:
        """Call ``tell`` with whether all budgets are held, now and whenever that changes."""
        self._watchers.append(tell)
        tell(not self.trouble)

    def figures(self, reader: Reader, minute: int, levels: Levels) -> list[Figure]:
        """Rates for the minute that is `AHEAD` minutes after one that has ended."""
        if not self.limits:
            return []
        taken = self._read(reader, minute)
        found, troubles = [], []
        for tenant, limit in self.limits.items():
            hour, why = self._hour(limit, taken.get(tenant) or _Taken(), tenant, minute, levels)
            rates = steer(hour, self.plan) if hour is not None else None
            of = ("tenant", tenant) if tenant else ("", "")
            values: dict[str, float] = {}
            if rates is None:
                # What holds is published again, so that it does not grow old.
                found_now = {m: levels.value(m, *of, minute + AHEAD) for m in (BASE_RATE, CONTENT_RATE)}
                values = {metric: value for metric, value in found_now.items() if value is not None}
            else:
                values = {BASE_RATE: rates.base, CONTENT_RATE: rates.content}
                if np.isfinite(rates.spent):
                    values["budget_used"] = rates.spent
                if rates.unmet > 0 and rates.base <= LEAST:
                    why = self._unmet(reader, limit, tenant, minute, rates)
            if why:
                troubles.append(f"sampling budget {limit.text}{f' of tenant {tenant}' if tenant else ''} {why}")
            found += [Figure(minute + AHEAD, metric, *of, value) for metric, value in values.items()]
        self.counters.add("sampling.budget.steered")
        self._tell(" ".join(troubles))
        return found

    def _tell(self, trouble: str) -> None:
        before, self.trouble = self.trouble, trouble
        if bool(before) == bool(trouble):
            return
        if trouble:
            self.counters.add("sampling.budget.unmet")
            log.warning("%s", trouble)
        else:
            log.info("sampling budgets are held again")
        for tell in self._watchers:
            tell(not trouble)

    # -- figures of the store ------------------------------------------------------------------------------------------

    def _read(self, reader: Reader, minute: int) -> dict[str, _Taken]:
        """What the minutes up to one say, by tenant with a budget of its own, and of everybody else."""
        first = minute - WINDOW + 1
        out: dict[str, _Taken] = {}
        window = {"since": _instant(first), "until": _instant(minute + 1)}
        for row in reader.rows(_RECEIVED, window):
            of, at = self._of(out, row["tenant"]), row["at"] - first
            of.received[at] += _pico(row["cost"])
            of.since = min(of.since, at)
            if row["unpriced"]:
                of.unpriced.add(RECEIVED)
        for row in reader.rows(_STORED, window):
            of, at, steered = self._of(out, row["tenant"]), row["at"] - first, bool(row["steered"])
            of.stored[steered][at] += _pico(row["cost"])
            of.bytes[steered][at] += row["stored"]
            of.kept[steered] += row["kept"]
            of.content[steered] += row["content"] + row["removed"]
            of.whole[steered] += row["stored"] + row["removed"]
            if steered:
                of.wanted[at] += row["wanted"]
        if any(limit.kind == "share" for limit in self.limits.values()):
            self._read_costs(reader, first, minute)
            for at_minute, costs in self._costs.items():
                for tenant, cost in costs.items():
                    self._of(out, tenant).cost[at_minute - first] += _pico(cost)
        for of in out.values():
            # Silence before the first trace is as well known as what comes after it.
            of.since = min(of.since, int(np.flatnonzero(of.cost)[0]) if of.cost.any() else WINDOW)
        return out

    def _of(self, out: dict[str, _Taken], tenant: str) -> _Taken:
        return out.setdefault(tenant if tenant in self.limits else EVERYBODY, _Taken())

    def _read_costs(self, reader: Reader, first: int, minute: int) -> None:
        """Costs of the ledger by minute; those that have settled are read once."""
        self._costs = {at: costs for at, costs in self._costs.items() if first <= at <= minute - _SETTLED}
        missing = next((at for at in range(first, minute + 1) if at not in self._costs), minute)
        for at in range(missing, minute + 1):
            self._costs[at] = {}
        rows = reader.rows(_COSTS, {"since": _instant(missing), "until": _instant(minute + 1)})
        for row in rows:
            of = self._costs[row["at"]]
            tenant = row["tenant"] if row["tenant"] in self.limits else EVERYBODY
            of[tenant] = of.get(tenant, Decimal(0)) + (row["cost"] or Decimal(0))

    def _hour(self, limit: Limit, taken: _Taken, tenant: str, minute: int, levels: Levels) -> tuple[Hour | None, str]:
        """The hour as `steer` takes it; None and why, where something is missing."""
        # Of what was kept, how much larger it is than what came, and how much of it is content.
        basis = taken.kept[True] > 0
        growth = taken.whole[basis] / taken.kept[basis] if taken.kept[basis] > 0 else UNUSUAL_GROWTH
        content = taken.content[basis] / taken.whole[basis] if taken.whole[basis] > 0 else 0.0
        full = taken.wanted * growth
        if limit.kind == "bytes":
            income = np.full(WINDOW, float(limit.amount))
            received, stored, price = np.zeros(WINDOW), taken.bytes, 1.0
        else:
            if taken.since == WINDOW:
                return None, ""
            found = self._price(minute)
            missing = sorted(taken.unpriced | (set() if found is not None else {STORED}))
            if missing or found is None:
                return None, unpriced(missing)
            received, stored, price = taken.received, taken.stored, found
            income = taken.cost * float(limit.amount) if limit.kind == "share" else np.full(WINDOW, float(limit.amount))
        of = ("tenant", tenant) if tenant else ("", "")
        minutes = range(minute - WINDOW + 1, minute + AHEAD)
        base, contents = (
            np.array([1.0 if (v := levels.value(metric, *of, at)) is None else v for at in minutes])
            for metric in (BASE_RATE, CONTENT_RATE)
        )
        held = min(levels.published(BASE_RATE, *of, minutes.start), default=minutes.stop)
        return (
            Hour(
                income,
                received,
                stored[False],
                stored[True],
                full * price,
                full * price * content,
                base,
                contents,
                min(taken.since, WINDOW),
                min(max(held - minutes.start, 0), len(minutes)),
            ),
            "",
        )

    def _price(self, minute: int) -> float | None:
        """What storing a byte costs just now, 10⁻¹² USD; None without a price."""
        # So many at once that rounding to 10⁻¹² USD does not show.
        many, retention_s = 10**6, int(self.settings.retention_s)
        at = np.array([minute * MINUTE_NS])
        cost = self._engine().price_columns(at, {}, {STORED: pa.array([many * retention_s])})["cost"][0].as_py()
        return None if cost is None else _pico(cost) / many

    def _unmet(self, reader: Reader, limit: Limit, tenant: str, minute: int, rates: Rates) -> str:
        """What is in the way of a budget, the largest first."""
        window = {"since": _instant(minute - WINDOW + 1), "until": _instant(minute + 1)}
        by: dict[str, Decimal] = {}
        for row in reader.rows(_BY_RULE, window):
            if (row["tenant"] if row["tenant"] in self.limits else EVERYBODY) == tenant:
                name = f"rule {row['rule']}" if row["rule"] else "no rule"
                value = Decimal(row["stored"]) if limit.kind == "bytes" else row["cost"] or Decimal(0)
                by[name] = by.get(name, Decimal(0)) + value
        if limit.kind != "bytes":
            by["receiving"] = sum(
                (
                    row["cost"] or Decimal(0)
                    for row in reader.rows(_RECEIVED, window)
                    if (row["tenant"] if row["tenant"] in self.limits else EVERYBODY) == tenant
                ),
                Decimal(0),
            )
        unit = "bytes" if limit.kind == "bytes" else "USD"
        ranked = sorted((item for item in by.items() if item[1]), key=lambda item: -item[1])[:NAMED]
        named = ", ".join(f"{name} ({_short(value)} {unit})" for name, value in ranked)
        over = _short(Decimal(rates.unmet) if limit.kind == "bytes" else Decimal(rates.unmet).scaleb(-12))
        return (
            f"cannot be met: the base rate is at its least, and the last hour took {over} {unit} more than it allows,"
            f" by what no budget steers: {named}. Give the first of these a rate, or a lower one, or raise the budget."
        )


def unpriced(meters: list[str]) -> str:
    """Why a budget in money cannot be held without these prices, and what to do."""
    rows = {
        RECEIVED: "{id: telemetry/received, meter: telemetry.bytes, amount: '0.10', unit: GB}",
        STORED: "{id: telemetry/stored, meter: telemetry.stored.byte_seconds, amount: '0.08', unit: GB-month}",
    }
    asked = "; ".join(rows[meter] for meter in meters)
    return (
        f"is not held: there is no price for {' and '.join(meters)}. Add rows to your price book, with 0 for what costs"
        f" nothing: {asked}"
    )


_SETTLED: Final = 10
"""Minutes after which a minute's costs are not read again."""

_AT: Final = "toInt64(intDiv(toUnixTimestamp64Nano({column}), 60000000000)) AS at"
_IN: Final = "{column} >= {{since:DateTime64(9, 'UTC')}} AND {column} < {{until:DateTime64(9, 'UTC')}}"

_RECEIVED: Final = (
    f"SELECT {_AT.format(column='minute')}, tenant, sum(received_cost) AS cost,"
    " countIf(isNull(received_cost) AND bytes > 0) AS unpriced"
    f" FROM telemetry FINAL WHERE {_IN.format(column='minute')} GROUP BY at, tenant"
)
_STORED: Final = (
    f"SELECT {_AT.format(column='minute')}, tenant, rules.steered AS steered, sum(rules.wanted_bytes) AS wanted,"
    " sum(rules.kept_bytes) AS kept, sum(rules.stored_bytes) AS stored, sum(rules.content_bytes) AS content,"
    " sum(rules.removed_bytes) AS removed, sum(rules.stored_cost) AS cost"
    f" FROM telemetry FINAL ARRAY JOIN rules.steered, rules.wanted_bytes, rules.kept_bytes, rules.stored_bytes,"
    f" rules.content_bytes, rules.removed_bytes, rules.stored_cost WHERE {_IN.format(column='minute')}"
    " GROUP BY at, tenant, steered"
)
_BY_RULE: Final = (
    "SELECT tenant, rules.rule AS rule, sum(rules.stored_bytes) AS stored, sum(rules.stored_cost) AS cost"
    " FROM telemetry FINAL ARRAY JOIN rules.rule, rules.steered, rules.stored_bytes, rules.stored_cost"
    f" WHERE {_IN.format(column='minute')} AND NOT rules.steered GROUP BY tenant, rule"
)
_COSTS: Final = (
    f"SELECT {_AT.format(column='start_time')}, tenant, sum(ledger.cost) AS cost"
    f" FROM ledger FINAL WHERE {_IN.format(column='start_time')} GROUP BY at, tenant"
)


def _instant(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _pico(cost: Decimal | None) -> float:
    return 0.0 if cost is None else float(cost.scaleb(12))


def _short(value: Decimal) -> str:
    """Three digits for people."""
    text = format(value, ".3g")
    return format(Decimal(text), "f")
