"""Price rows and what stands beside them in a book: factors, terms, aliases, as plain data.

In: fields that `yamlrows` and `catalogue` have checked. Out: rows with exact rates. Which of them applies to a span is
for `book` (by name) and `resolve` (by time and conditions) to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Final, Literal

from tollspan.pricing.meters import METERS, Axis
from tollspan.pricing.money import Rate, rate, steps_of
from tollspan.pricing.patterns import ANY, literal_length, matches
from tollspan.pricing.schedule import Schedule
from tollspan.pricing.selectors import owner_of

Status = Literal["active", "announced", "cancelled", "withdrawn"]
Kind = Literal["list", "estimate", "contract", "amortised", "included"]

LEVELS: Final[dict[Kind, int]] = {"list": 0, "estimate": 0, "contract": 1, "amortised": 2, "included": 2}
"""Kind of a price → its level: what anybody pays (0), what this customer agreed to pay (1), what is paid in effect,
commitments spread and prepaid things at nothing (2). The higher level is taken first."""
LIST_LEVEL: Final = 0
CONTRACT_LEVEL: Final = 1
EFFECTIVE_LEVEL: Final = 2

WHOLE: Final = Fraction(1)


@dataclass(frozen=True, slots=True)
class Interval:
    """Half-open interval of instants, ns since the epoch; None = open on that side."""

    start: int | None = None
    end: int | None = None

    def holds(self, at: int) -> bool:
        return (self.start is None or at >= self.start) and (self.end is None or at < self.end)

    def meets(self, other: Interval) -> bool:
        """Whether the two have an instant in common."""
        return (self.end is None or other.start is None or other.start < self.end) and (
            other.end is None or self.start is None or self.start < other.end
        )

    @property
    def cuts(self) -> set[int]:
        return {instant for instant in (self.start, self.end) if instant is not None}


ALWAYS: Final = Interval()


@dataclass(frozen=True, slots=True)
class Step:
    """A tier of a price.

    A cliff: above ``above`` input tokens in the request, all of the meter's quantity costs ``amount``. A graduated one:
    what is above ``above`` of the meter's own quantity in the call costs ``amount``, what is below the steps before.
    """

    above: int
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Source:
    """Where a price was read.

    Attributes:
        url: the page that decides.
        retrieved_at: the day on which it was read.
        via: what was read in its place, where it was not read itself.
        note: what the price leaves out, or how it was made.
        sha256: of the document read.
    """

    url: str = ""
    retrieved_at: str = ""
    via: str = ""
    note: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class PriceRow:
    """One price: what a quantity of one meter of one SKU costs, when and under which conditions.

    Attributes:
        id: unique in its book; kept on every charge.
        meter: a name from `METERS`.
        sku: SKU name in lower case, exact or with ``*`` and ``?``; what it names depends on the meter's axis.
        provider: model provider under its one name (`selectors.provider_of`) or, where the axis is not ``model``,
            cloud provider, in lower case; None = any, or none given.
        amount: USD for ``per`` ``unit``, exact.
        per: how many units the amount buys.
        unit: pricing unit, one of `money.units_of` the meter.
        effective: instants in which the price holds.
        schedule: hours in which it holds; None = always.
        when: selector → value that the span must have; ``service_tier``, ``processing`` and ``purchase`` are compared
            with ``standard``, ``online`` and ``on_demand`` where the span names none.
        steps: tiers, ascending.
        graduated: the steps are graduated, by the meter's own quantity in the call; else they are cliffs by the
            request's input tokens.
        minimum: least quantity charged when any was used, in the meter's unit.
        kind: ``list`` | ``estimate`` | ``contract`` | ``amortised`` | ``included`` (costs nothing: paid for elsewhere).
        status: ``active``; ``announced`` (not yet in force when the book was written, and said on the charge);
            ``cancelled`` (kept for the record, never charged); ``withdrawn`` (no longer sold: neither this price nor
            one of a layer behind it is charged).
        source: where it was read.
        stated: the price as the book states it, where that is in another currency: ``1.20 EUR``.
    """

    id: str
    meter: str
    sku: str
    amount: Decimal
    provider: str | None = None
    per: int = 1
    unit: str = ""
    effective: Interval = ALWAYS
    schedule: Schedule | None = None
    when: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    graduated: bool = False
    minimum: Decimal | None = None
    kind: Kind = "list"
    status: Status = "active"
    source: Source = Source()
    stated: str = ""

    @property
    def level(self) -> int:
        return LEVELS[self.kind]

    @property
    def axis(self) -> Axis:
        return METERS[self.meter].axis

    @property
    def per_unit(self) -> str:
        """Pricing unit as the ledger shows it: ``1000000 token``, ``1 hour``."""
        return f"{self.per} {self.unit}"

    @cached_property
    def rates(self) -> tuple[tuple[Decimal, Rate], ...]:
        """Amount and rate below the first step, then of each step."""
        amounts = (self.amount, *(step.amount for step in self.steps))
        return tuple((amount, rate(self.meter, amount, self.per, self.unit)) for amount in amounts)

    @cached_property
    def minimum_steps(self) -> int:
        """Least quantity charged, in base steps; 0 = none."""
        return 0 if self.minimum is None else steps_of(self.meter, self.minimum)

    def in_hours(self, at: int) -> bool:
        return self.schedule is None or self.schedule.holds(at)


@dataclass(frozen=True, slots=True)
class Factor:
    """What a list price is multiplied by under some condition: a region's or data residency's uplift, or a contract's
    percentage.

    Attributes:
        id: unique in its book; named on the charge.
        factor: exact.
        provider: as in a row; None = any.
        sku: name of the SKU as its row spells it, with ``*`` and ``?``.
        meter: name of a meter, with ``*`` and ``?``.
        when: as in a row.
        effective: instants in which it holds.
        source: where it was read.
    """

    id: str
    factor: Fraction
    provider: str | None = None
    sku: str = ANY
    meter: str = ANY
    when: Mapping[str, str] = field(default_factory=dict)
    effective: Interval = ALWAYS
    source: Source = Source()

    def sold_by(self, axis: Axis, owner: str | None) -> bool:
        """Whether it is about what the span's provider (cloud provider, by the axis) sells."""
        return self.provider is None or owner_of(axis, self.provider) == owner

    def covers(self, row: PriceRow, meter: str, names: Iterable[str]) -> bool:
        """Whether it is about this price; seller and conditions aside.

        Args:
            row: the price.
            meter: what it is charged for, which may be another meter than the row's.
            names: what the span calls the thing, and what else that is called.
        """
        return (self.meter == ANY or matches(self.meter, row.meter) or matches(self.meter, meter)) and (
            self.sku == ANY or matches(self.sku, row.sku) or any(matches(self.sku, name) for name in names)
        )

    @property
    def specificity(self) -> tuple[int, int, bool, int]:
        """The more, the more specific: literal characters of SKU and of meter, a provider, conditions."""
        return literal_length(self.sku), literal_length(self.meter), self.provider is not None, len(self.when)


@dataclass(frozen=True, slots=True)
class Term:
    """What a contract grants over a period, settled at its end (`settle`) and never on a span.

    Attributes:
        id: unique in its book.
        kind: ``volume`` (the factor falls as the period's list cost grows), ``commitment`` (``amount`` USD are paid in
            any case), ``allotment`` (so many units of a meter are free).
        provider, sku, meter: what counts towards it, as in `Factor`.
        amount: USD committed, or units allotted.
        steps: volume: (above so many USD or units, factor), ascending; the first is above 0.
        graduated: volume: each step is for what is above it; else the step reached is for everything.
        basis: volume: ``cost`` (USD) or ``quantity`` (units of the meter).
        effective: instants in which it holds.
    """

    id: str
    kind: Literal["volume", "commitment", "allotment"]
    provider: str | None = None
    sku: str = ANY
    meter: str = ANY
    amount: Decimal = Decimal(0)
    steps: tuple[tuple[Decimal, Fraction], ...] = ()
    graduated: bool = True
    basis: Literal["cost", "quantity"] = "cost"
    effective: Interval = ALWAYS


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name for a SKU, for a time: an Azure deployment, a ``-latest`` name, a device as some driver calls it; or
    a part of one, a MIG slice of a device say, which costs that ``share`` of the whole.

    Its providers stand as the book spells them: only the axis on which it is asked for tells whether they are model
    providers or cloud providers.
    """

    ref: str
    target_provider: str | None
    target_sku: str
    provider: str | None = None
    effective: Interval = ALWAYS
    share: Fraction = WHOLE
