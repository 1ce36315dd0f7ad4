"""SkyPilot's catalogue of machines, as price-book entries.

In: a CSV file with the columns of SkyPilot's catalogue v8, from wherever the user has it (none ships). Out: an
`Import`: entries for `entries.book_text`, the lines that were left out and why, and the file's SHA-256.

What becomes of a machine:

- One with whole GPUs that have a driver name (`DEVICES`) prices ``gpu.seconds``: its hour divided by its GPUs. That is
  the whole machine's price, so its ``cpu.seconds`` and ``memory.byte_seconds`` are ``included``.
- One without GPUs prices ``cpu.seconds``: its hour divided by its vCPUs; ``memory.byte_seconds`` are ``included``.
- ``Price`` asks for ``purchase: on_demand`` and ``SpotPrice`` for ``purchase: spot``. Spot prices move, so they are
  estimates as of the file's day.
- Zones of one region are one price: a span does not say its zone. Where they differ the price is an estimate, the
  highest of them, so that a sum of estimates is not below the bill, and the note says what the lowest is.

- Google's file lists GPUs apart from machines. Those that come with a machine (`GPU_MACHINES`) are added to it, zone by
  zone, and the sum is the machine's price; those that are attached to any (T4) have a price of their own.

A line that cannot be used is left out and told with its number and reason; the others are used. A file is refused when
a column is missing or no line of it can be used.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Final

from tollspan.pricing.entries import Entry
from tollspan.pricing.errors import BookError
from tollspan.pricing.money import UNIT_PRICE_DECIMALS
from tollspan.pricing.names import nearest

COLUMNS: Final = ("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "Price", "Region")
"""Columns without which a file is refused. ``SpotPrice`` and ``AvailabilityZone`` are read where they are."""

DEVICES: Final[dict[str, str]] = {
    "A10": "NVIDIA A10",
    "A100": "NVIDIA A100-SXM4-40GB",
    "A100-80GB": "NVIDIA A100-SXM4-80GB",
    "A100-80GB-SXM": "NVIDIA A100-SXM4-80GB",
    "A10G": "NVIDIA A10G",
    "A40": "NVIDIA A40",
    "A6000": "NVIDIA RTX A6000",
    "B200": "NVIDIA B200",
    "GH200": "NVIDIA GH200 480GB",
    "H100": "NVIDIA H100 80GB HBM3",
    "H100-MEGA": "NVIDIA H100 80GB HBM3",
    "H100-SXM": "NVIDIA H100 80GB HBM3",
    "H200": "NVIDIA H200",
    "H200-SXM": "NVIDIA H200",
    "L4": "NVIDIA L4",
    "L40": "NVIDIA L40",
    "L40S": "NVIDIA L40S",
    "MI300X": "AMD Instinct MI300X",
    "RTX4090": "NVIDIA GeForce RTX 4090",
    "RTXA6000": "NVIDIA RTX A6000",
    "T4": "Tesla T4",
    "T4g": "NVIDIA T4G",
    "V100": "Tesla V100-SXM2-16GB",
    "V100-32GB": "Tesla V100-SXM2-32GB",
}
"""SkyPilot's accelerator names → names that drivers report (NVML, ``torch.cuda.get_device_name``)."""

BOARDS: Final = (
    ("azure", r"standard_nc.*", "A100-80GB", "NVIDIA A100 80GB PCIe"),
    ("azure", r"standard_nc.*", "H100", "NVIDIA H100 NVL"),
    ("azure", r".*mi300x.*", "MI300X", "AMD Instinct MI300X VF"),
    ("lambda", r".*_pcie", "H100", "NVIDIA H100 PCIe"),
    ("lambda", r"gpu_\dx_a100", "A100", "NVIDIA A100-PCIE-40GB"),
)
"""Machines with another board than `DEVICES` says: cloud, instance type (a regular expression, lower case), accelerator
and the name that the driver reports."""

GPU_MACHINES: Final = (
    ("gcp", r"a2-(high|mega)gpu-(?P<count>\d+)g", "A100"),
    ("gcp", r"a2-ultragpu-(?P<count>\d+)g", "A100-80GB"),
    ("gcp", r"a3-highgpu-(?P<count>\d+)g", "H100"),
    ("gcp", r"a3-megagpu-(?P<count>\d+)g", "H100-MEGA"),
    ("gcp", r"a3-ultragpu-(?P<count>\d+)g", "H200"),
    ("gcp", r"a4-highgpu-(?P<count>\d+)g", "B200"),
    ("gcp", r"g2-standard-(?P<one>4|8|12|16|32)", "L4"),
    ("gcp", r"g2-standard-(?P<two>24)", "L4"),
    ("gcp", r"g2-standard-(?P<four>48)", "L4"),
    ("gcp", r"g2-standard-(?P<eight>96)", "L4"),
    ("gcp", r"(a|g)\d.*", ""),
)
"""Machines that always have GPUs and are listed without them: cloud, instance type (a regular expression), accelerator.
The group that matches says how many. An empty accelerator: it is not known which."""

_COUNTS: Final = {"one": 1, "two": 2, "four": 4, "eight": 8}
_PRICE_COLUMNS: Final = {"on_demand": "Price", "spot": "SpotPrice"}
_COUNT_DECIMALS: Final = 6
_TOO_MUCH: Final = 10**9
_EXACT: Final = Context(prec=100)
_PARTS: Final = ("cpu.seconds", "memory.byte_seconds")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A line that was left out.

    Attributes:
        line: its number in the file, the header being 1.
        reason: why, for people.
    """

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Import:
    """What was made of a file.

    Attributes:
        entries: prices by machine, region and purchase, in the order of their ids. An id is made of these names alone,
            so that it is the same for every version of a file.
        skipped: lines that were left out.
        lines: how many lines the file has, without its header.
        sha256: of the file.
    """

    entries: list[Entry]
    skipped: list[Skipped]
    lines: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Machine:
    """What one line says.

    Attributes:
        instance: its type; empty: GPUs that can be attached to a machine.
        device: driver's name of its GPUs; None: it has none.
        units: GPUs, or else vCPUs.
        prices: purchase → USD an hour.
    """

    instance: str
    region: str
    device: str | None
    units: Fraction
    prices: Mapping[str, Decimal]


def read_skypilot(
    path: str | os.PathLike[str],
    *,
    cloud: str,
    retrieved_at: str,
    url: str = "",
    effective: tuple[str | None, str | None] | None = None,
    regions: Collection[str] | None = None,
    devices: Mapping[str, str] | None = None,
) -> Import:
    """Entries for the machines in a file.

    Args:
        path: the CSV file.
        cloud: ``cloud.provider`` of the spans that they price: ``aws``, ``gcp``, ``azure``, ``lambda`` ...
        retrieved_at: day of the file, ``2026-11-21``.
        url: where it was had from.
        effective: instants in which the prices hold, as a book states them; None = from ``retrieved_at``.
        regions: take only these; None = all. A large cloud's whole file makes a book that takes seconds to load.
        devices: accelerator names → driver names, over those of `DEVICES`.

    Raises:
        BookError: the file cannot be read, lacks a column, or has no line that can be used.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise BookError(f"{file}: cannot read it: {reason}.", "Check the path and its permissions.") from error
    except UnicodeDecodeError as error:
        raise BookError(f"{file}: it is not UTF-8 text.", "Check that it is a CSV file.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    header = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    for column in COLUMNS:
        if column not in header:
            raise BookError(f"{file}:1: the column {column!r} is missing.", nearest(column, header))

    catalogue = _Catalogue(cloud, {**DEVICES, **(devices or {})})
    skipped: list[Skipped] = []
    machines: list[_Machine] = []
    shapes: dict[str, _Machine] = {}
    read = [
        (reader.line_num, {name: value.strip() for name, value in row.items() if isinstance(value, str) and name})
        for row in reader
    ]
    lines = len(read)
    wanted = [(line, fields) for line, fields in read if regions is None or fields.get("Region") in regions]
    for _, fields in wanted:
        catalogue.note_gpus(fields)
    for line, fields in sorted(wanted, key=lambda item: not item[1].get("InstanceType")):  # machines before loose GPUs
        try:
            machine = catalogue.machine(fields)
            if machine is None:
                continue
            shape = shapes.setdefault(machine.instance or str(machine.device), machine)
            if machine.instance and (machine.device, machine.units) != (shape.device, shape.units):
                raise _Unusable(f"{machine.instance} has other GPUs or vCPUs than in a line before")
            machines.append(machine)
        except _Unusable as error:
            skipped.append(Skipped(line, str(error)))
    skipped.sort(key=lambda found: found.line)
    if not machines:
        reason = f"; line {skipped[0].line}: {skipped[0].reason}" if skipped else ""
        raise BookError(f"{file}: none of its {lines} lines can be used{reason}.", "Check the file and the regions.")

    source = {"retrieved_at": retrieved_at, "sha256": hashlib.sha256(content).hexdigest(), "via": "SkyPilot catalogue"}
    if url:
        source["url"] = url
    holds = [retrieved_at, None] if effective is None else list(effective)
    entries = sorted(_entries(machines, cloud, holds, source), key=lambda entry: str(entry["id"]))
    return Import(entries, skipped, lines, source["sha256"])


class _Unusable(ValueError):
    """Why a line is left out."""


class _Catalogue:
    """Reads the lines of a cloud's file.

    Args:
        cloud: as spans name it.
        names: accelerator → driver's name.
    """

    def __init__(self, cloud: str, names: Mapping[str, str]) -> None:
        self._cloud = cloud
        self._names = names
        self._parts = {name for of_cloud, _, name in GPU_MACHINES if of_cloud == cloud}
        self._gpus: dict[tuple[str, int, str, str], dict[str, Decimal]] = {}
        self._taken: set[tuple[str, int, str, str]] = set()

    def note_gpus(self, fields: Mapping[str, str]) -> None:
        """Remember a line of GPUs that come with a machine; a line that is wrong is told when it is read."""
        if not fields.get("InstanceType") and fields.get("AcceleratorName") in self._parts:
            try:
                self._gpus[self._gpus_key(fields)] = _prices(fields)
            except _Unusable:
                return

    def machine(self, fields: Mapping[str, str]) -> _Machine | None:
        """What a line says; None: it was said with another line.

        Raises:
            _Unusable: it cannot be used.
        """
        instance, region = fields.get("InstanceType", ""), fields.get("Region", "")
        accelerator = fields.get("AcceleratorName", "")
        if not region:
            raise _Unusable("no Region")
        prices = _prices(fields)
        if not accelerator:
            if not instance:
                raise _Unusable("a price without a machine")
            return self._with_gpus(fields, prices) or _Machine(
                instance, region, None, Fraction(_number(fields.get("vCPUs", ""), "vCPUs")), prices
            )
        count = _count(fields)
        if not instance:
            if not self._parts:
                raise _Unusable(f"{accelerator} without a machine")
            if accelerator in self._parts and self._gpus_key(fields) not in self._taken:
                raise _Unusable(f"no machine of its zone comes with {count} {accelerator}")
            if accelerator in self._parts or count > 1:
                return None  # in the machine they come with, or a multiple of the line of one
        return _Machine(instance, region, self._device(instance, accelerator), count, prices)

    def _with_gpus(self, fields: Mapping[str, str], prices: Mapping[str, Decimal]) -> _Machine | None:
        """A machine that is listed without its GPUs, with them."""
        instance = fields["InstanceType"]
        for of_cloud, pattern, accelerator in GPU_MACHINES:
            found = re.fullmatch(pattern, instance) if of_cloud == self._cloud else None
            if found is None:
                continue
            if not accelerator:
                raise _Unusable(f"{instance} is listed without its GPUs")
            ((group, text),) = found.groupdict().items()
            count = _COUNTS.get(group) or int(text)
            key = (accelerator, count, fields["Region"], fields.get("AvailabilityZone", ""))
            gpus = self._gpus.get(key, {})
            both = {way: _EXACT.add(price, gpus[way]) for way, price in prices.items() if way in gpus}
            if not both:
                raise _Unusable(f"no price of the {count} {accelerator} of {instance} in its zone")
            self._taken.add(key)
            return _Machine(instance, fields["Region"], self._device(instance, accelerator), Fraction(count), both)
        return None

    def _device(self, instance: str, accelerator: str) -> str:
        for of_cloud, pattern, board, device in BOARDS:
            if of_cloud == self._cloud and board == accelerator and re.fullmatch(pattern, instance.lower()):
                return device
        if accelerator not in self._names:
            raise _Unusable(f"no driver's name is known for {accelerator!r}")
        return self._names[accelerator]

    @staticmethod
    def _gpus_key(fields: Mapping[str, str]) -> tuple[str, int, str, str]:
        return (
            fields["AcceleratorName"],
            int(_count(fields)),
            fields.get("Region", ""),
            fields.get("AvailabilityZone", ""),
        )


def _prices(fields: Mapping[str, str]) -> dict[str, Decimal]:
    """Purchase → USD an hour."""
    prices = {name: _number(fields[column], column) for name, column in _PRICE_COLUMNS.items() if fields.get(column)}
    if not prices:
        raise _Unusable("neither Price nor SpotPrice")
    return prices


def _count(fields: Mapping[str, str]) -> Fraction:
    count = _number(fields.get("AcceleratorCount", ""), "AcceleratorCount")
    if count != int(count):
        name = fields["AcceleratorName"]
        raise _Unusable(f"{count} of a {name}: a part of a device, whose name is the machine's own")
    return Fraction(count)


def _number(text: str, column: str) -> Decimal:
    """A number above 0. A machine that costs nothing is a hole in the catalogue, not a gift."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise _Unusable(f"{column} {text!r} is not a number") from None
    if not value.is_finite() or value <= 0:
        raise _Unusable(f"{column} {text!r} is not above 0")
    decimals = UNIT_PRICE_DECIMALS if column in _PRICE_COLUMNS.values() else _COUNT_DECIMALS
    if value >= _TOO_MUCH or -int(value.as_tuple().exponent) > decimals:
        raise _Unusable(f"{column} {text!r} has more digits than it can have")
    return value


def _entries(machines: list[_Machine], cloud: str, holds: list[str | None], source: dict[str, str]) -> Iterator[Entry]:
    """One entry for each machine, region and purchase, and what the machine's price includes."""
    zones: dict[tuple[str, str | None, Fraction, str, str], set[Decimal]] = {}
    for machine in machines:
        for purchase, price in machine.prices.items():
            key = (machine.instance, machine.device, machine.units, machine.region, purchase)
            zones.setdefault(key, set()).add(price)
    included: set[tuple[str, str]] = set()
    for (instance, device, units, region, purchase), prices in zones.items():
        if instance:
            included.update((instance, meter) for meter in (_PARTS if device is not None else _PARTS[1:]))
        amount = _EXACT.multiply(max(prices), Decimal(units.denominator))
        entry: Entry = {"id": f"skypilot/{cloud}/{instance or device}/{region}/{purchase}", "provider": cloud}
        entry |= {"sku": device or instance, "meter": "cpu.seconds" if device is None else "gpu.seconds"}
        entry |= {"amount": f"{amount:f}", "per": units.numerator, "unit": "hour"}
        host = {"host_type": instance} if instance and device is not None else {}
        entry |= {"when": {**host, "region": region, "purchase": purchase}, "effective": holds}
        note = f"highest of its zones; the lowest is {min(prices):f}" if len(prices) > 1 else ""
        if purchase == "spot" or note:
            entry["kind"] = "estimate"
        yield entry | {"source": source | ({"note": note} if note else {})}
    for instance, meter in included:
        entry = {"id": f"skypilot/{cloud}/{instance}/{meter}", "provider": cloud, "sku": instance, "meter": meter}
        yield entry | {"amount": "0", "effective": holds, "kind": "included", "source": source}
