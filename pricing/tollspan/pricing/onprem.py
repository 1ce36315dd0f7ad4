"""Owned GPUs: what an hour of one costs, and when owning one beats renting it.

In: a total cost of ownership in a small YAML file, or as a `Tco`. Out: exact rates (`Tco.hour`), a price-book entry
(`Tco.to_entry`), the break-even against a cloud's price (`breakeven`), and a node's price divided over its resources
(`split_node`). All of it is rationals; what is rounded is rounded once, half to even, where it leaves.

The file::

    tco:
      id: hall-2-h100               # id of the price
      device: NVIDIA H100 80GB HBM3 # as the driver reports it
      provider: hall-2              # the spans' cloud.provider; left out = any, or none
      gpus: 8                       # bought together
      capex: 280000                 # USD for the machines, all GPUs
      infrastructure: "0.4"         # what network, racks and storage add to it, as a part of capex
      residual: 0                   # USD that the machines bring at the end
      months: 48                    # until then
      kw_per_gpu: "0.7"             # kW at work, with its share of the machine
      pue: "1.4"                    # facility power over machine power, 1 or more
      tariff: "0.12"                # USD for a kWh
      staff: 0                      # USD a month, all GPUs
      space: 3000                   # USD a month, all GPUs
      maintenance: 0                # USD a month, all GPUs
      utilisation: "0.55"           # useful part of all hours, above 0, at most 1
      effective: [2026-01-01, null] # instants in which the price holds; left out = always

What costs nothing is written as 0. A cost that is left out is an error: a rate that silently lacks the staff is wrong.

An hour of one GPU costs ``[capex·(1 + infrastructure) - residual] / (months·730·gpus) + kw·pue·tariff +
(staff + space + maintenance) / (730·gpus)``, a month being 730 hours. Power is counted at full load in every hour.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Final

from tollspan.pricing.entries import Entry, amount_text
from tollspan.pricing.errors import BookError
from tollspan.pricing.money import PICO, usd
from tollspan.pricing.yamlfield import Field, compose

MONTH_HOURS: Final = 730

_COSTS: Final = ("capex", "infrastructure", "residual", "kw_per_gpu", "pue", "tariff", "staff", "space", "maintenance")
_REQUIRED: Final = ("id", "device", "gpus", "months", *_COSTS, "utilisation")


@dataclass(frozen=True, slots=True)
class Tco:
    """What a number of GPUs that were bought together cost over their life.

    Attributes:
        id: of the price that is made of it.
        device: name that the driver reports.
        gpus: how many, 1 or more.
        capex: USD for the machines, all GPUs.
        infrastructure: what network, racks and storage add to capex, as a part of it.
        residual: USD that the machines bring at the end.
        months: until the end, 1 or more.
        kw_per_gpu: kW that one GPU draws at work, with its share of the machine.
        pue: power usage effectiveness of the facility, 1 or more.
        tariff: USD for a kWh.
        staff, space, maintenance: USD a month, all GPUs.
        utilisation: useful part of all hours, above 0, at most 1.
        provider: ``cloud.provider`` of the spans that it prices; None = any, or none.
        effective: instants in which the price holds, as a book states them.
    """

    id: str
    device: str
    gpus: int
    capex: Fraction
    infrastructure: Fraction
    residual: Fraction
    months: int
    kw_per_gpu: Fraction
    pue: Fraction
    tariff: Fraction
    staff: Fraction
    space: Fraction
    maintenance: Fraction
    utilisation: Fraction
    provider: str | None = None
    effective: tuple[str | None, str | None] = (None, None)

    @property
    def invested(self) -> Fraction:
        """USD paid at the beginning, infrastructure with it."""
        return self.capex * (1 + self.infrastructure)

    @property
    def power_hour(self) -> Fraction:
        """USD of power for an hour of one GPU at work."""
        return self.kw_per_gpu * self.pue * self.tariff

    @property
    def upkeep_month(self) -> Fraction:
        """USD a month for all GPUs, whether they work or not, capex and power aside."""
        return self.staff + self.space + self.maintenance

    @property
    def fixed_month_per_gpu(self) -> Fraction:
        """USD a month for one GPU, whether it works or not: its part of capex and of upkeep."""
        return ((self.invested - self.residual) / self.months + self.upkeep_month) / self.gpus

    @property
    def hour(self) -> Fraction:
        """USD for an hour of one GPU, used or not."""
        return self.fixed_month_per_gpu / MONTH_HOURS + self.power_hour

    @property
    def useful_hour(self) -> Fraction:
        """USD for a useful hour: the hours that are not useful are paid by those that are."""
        return self.hour / self.utilisation

    def to_entry(self, *, useful: bool = False) -> Entry:
        """An amortised price of ``gpu.seconds``.

        Args:
            useful: the price of a useful hour. Only for books that price idle seconds at 0: an idle second without a
                price of its own costs what a busy one does, and the hours that are not useful would be paid twice.
        """
        entry: Entry = {"id": self.id}
        if self.provider is not None:
            entry["provider"] = self.provider
        entry |= {"sku": self.device, "meter": "gpu.seconds"}
        entry |= {"amount": amount_text(self.useful_hour if useful else self.hour), "unit": "hour"}
        if self.effective != (None, None):
            entry["effective"] = list(self.effective)
        note = f"{self.gpus} GPUs over {self.months} months" + (f", {self.utilisation} of them useful" * useful)
        return entry | {"kind": "amortised", "source": {"note": f"total cost of ownership: {note}"}}

    def to_entries(self, *, useful: bool = False) -> list[Entry]:
        """What a book needs: the price, and with ``useful`` idle seconds at 0, which that price has paid."""
        entry = self.to_entry(useful=useful)
        if not useful:
            return [entry]
        return [entry, entry | {"id": f"{self.id}/idle", "meter": "gpu.idle_seconds", "amount": "0"}]


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Owning against renting, for one price of the cloud.

    Attributes:
        hours: busy hours a month of one GPU from which owning it is cheaper; None: never, the cloud's hour costs no
            more than the power.
        utilisation: the same as a part of all hours; above 1: not within a month's hours.
        payback_months: months until what was invested is earned back at ``used_hours``; None: never.
        used_hours: busy hours a month of one GPU that payback is reckoned with.
        cloud_month: USD a month for renting those hours for all GPUs.
        cash_month: USD a month that owning costs in cash meanwhile: power of those hours and upkeep.
        owned_month: USD a month with capex spread over the months: what accounts show.
    """

    hours: Fraction | None
    utilisation: Fraction | None
    payback_months: Fraction | None
    used_hours: Fraction
    cloud_month: Fraction
    cash_month: Fraction
    owned_month: Fraction


def breakeven(
    tco: Tco, cloud_per_gpu_hour: Fraction | Decimal | int, *, hours: Fraction | Decimal | int | None = None
) -> BreakEven:
    """When owning costs less than renting.

    Break-even compares what owning costs in all, capex spread over its months, with renting the hours that are used.
    Payback divides what was invested by the cash that is saved each month. Cash: the spread capex is the investment
    itself, and to subtract it from what is saved would count it twice.

    Args:
        tco: what is owned.
        cloud_per_gpu_hour: USD for an hour of one GPU.
        hours: busy hours a month of one GPU, 0 to 730; None = what ``tco.utilisation`` makes of 730.

    Raises:
        ValueError: a negative price, or more hours than a month has.
    """
    price = Fraction(cloud_per_gpu_hour)
    used = tco.utilisation * MONTH_HOURS if hours is None else Fraction(hours)
    if price < 0:
        raise ValueError(f"{cloud_per_gpu_hour} USD is not a price of 0 or more")
    if not 0 <= used <= MONTH_HOURS:
        raise ValueError(f"{hours} hours a month are not between 0 and {MONTH_HOURS}")
    margin = price - tco.power_hour
    hours_even = tco.fixed_month_per_gpu / margin if margin > 0 else None
    cloud_month = tco.gpus * used * price
    cash_month = tco.gpus * used * tco.power_hour + tco.upkeep_month
    saved = cloud_month - cash_month
    return BreakEven(
        hours=hours_even,
        utilisation=None if hours_even is None else hours_even / MONTH_HOURS,
        payback_months=tco.invested / saved if saved > 0 else None,
        used_hours=used,
        cloud_month=cloud_month,
        cash_month=cash_month,
        owned_month=tco.gpus * (tco.fixed_month_per_gpu + used * tco.power_hour),
    )


def split_node(price: Decimal, base: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """A node's price divided over its resources in the ratio of their base prices, as OpenCost does.

    A node of 35 USD whose GPU, CPU and memory would cost 30, 30 and 10 alone is 15, 15 and 5 (OpenCost specification
    v01, appendix A). What does not divide evenly goes to the largest remainders, the earlier resource first, so that
    the parts sum to the price exactly.

    Args:
        price: USD, 0 or more, at most twelve decimals.
        base: resource → what all of it on the node costs at base prices, USD, 0 or more.

    Returns:
        Resource → USD with twelve decimals, in the order of ``base``.

    Raises:
        ValueError: a price that is negative or finer than twelve decimals, or no base price above 0.
    """
    pico = Fraction(price) * 10**PICO
    if pico < 0 or pico.denominator != 1:
        raise ValueError(f"{price} USD is not a price of 0 or more with at most {PICO} decimals")
    weights = {name: Fraction(value) for name, value in base.items()}
    total = sum(weights.values())
    if total <= 0 or any(weight < 0 for weight in weights.values()):
        raise ValueError("base prices are 0 or more, and one of them is above 0")
    exact = {name: pico * weight / total for name, weight in weights.items()}
    parts = {name: int(value) for name, value in exact.items()}
    left = int(pico) - sum(parts.values())
    for name in sorted(exact, key=lambda name: parts[name] - exact[name])[:left]:
        parts[name] += 1
    return {name: usd(part) for name, part in parts.items()}


def read_tco(path: str | os.PathLike[str]) -> Tco:
    """The total cost of ownership in a YAML file.

    Raises:
        BookError: it cannot be read, or something in it is missing or impossible; with file, line and field.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise BookError(f"{file}: cannot read it: {reason}.", "Check the path and its permissions.") from error
    return parse_tco(content, str(file))


def parse_tco(content: bytes, file: str) -> Tco:
    """The same from YAML text; ``file`` is what errors call it."""
    root = compose(content, file).mapping("tco", required=("tco",))["tco"]
    fields = root.mapping(*_REQUIRED, "provider", "effective")
    for name in _REQUIRED:
        if name not in fields:
            raise root.error(f"{name!r} is missing", "Write 0 where it costs nothing." if name in _COSTS else "")
    costs = {name: Fraction(fields[name].amount()) for name in _COSTS}
    tco = Tco(
        id=fields["id"].text(),
        device=fields["device"].text(),
        gpus=fields["gpus"].whole(1),
        months=fields["months"].whole(1),
        utilisation=fields["utilisation"].share(),
        provider=fields["provider"].text() if "provider" in fields else None,
        effective=_effective(fields["effective"]) if "effective" in fields else (None, None),
        **costs,
    )
    if tco.pue < 1:
        raise fields["pue"].error(
            "a facility draws at least what its machines draw", "It is 1 or more: facility over machine power."
        )
    if tco.residual > tco.invested:
        raise fields["residual"].error("the machines bring more than they cost", "Check residual and capex.")
    return tco


def _effective(field: Field) -> tuple[str | None, str | None]:
    """Bounds as they are written, once they are known to be an interval."""
    field.interval()
    start, end = (None if bound.is_null else bound.text() for bound in field.items())
    return start, end
