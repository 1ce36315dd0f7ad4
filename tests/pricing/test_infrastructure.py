"""The shipped GPU, CPU, network and storage prices: sourced, chosen by what the span tells, else unpriced."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

import tollspan.pricing
from tollspan.pricing import Charges, shipped_book
from tollspan.pricing.book import TableLayer
from tollspan.pricing.meters import METERS
from tollspan.pricing.rows import PriceRow

from .books import NOON, at, book_of, price

BOOK = shipped_book()
HOUR = Decimal(3600)
_LAYER = next(layer for layer in BOOK.layers if layer.name == "infrastructure")
assert isinstance(_LAYER, TableLayer)
LAYER: TableLayer = _LAYER
ROWS: tuple[PriceRow, ...] = LAYER.rows

COMPUTE = [row for row in ROWS if METERS[row.meter].component == "compute" and row.kind != "included"]
ANYWHERE = ("lambda", "coreweave")
"""Clouds whose one price holds wherever they run."""


def test_every_price_names_the_page_that_decides_and_the_day_it_was_looked_at() -> None:
    for row in ROWS:
        assert row.source.url.startswith("https://"), row.id
        assert date(2026, 11, 1) <= date.fromisoformat(row.source.retrieved_at) <= date(2026, 11, 21), row.id
        assert row.provider in ("aws", "gcp", "azure", *ANYWHERE), row.id


def test_every_price_holds_in_named_regions_only() -> None:
    for row in ROWS:
        assert ("region" in row.when) == (row.kind != "included" and row.provider not in ANYWHERE), row.id


def test_every_machine_asks_how_it_is_paid_for() -> None:
    for row in COMPUTE:
        assert row.when["purchase"] in ("on_demand", "spot", "reserved_1y", "reserved_3y"), row.id


def test_spot_prices_are_estimates_of_a_day() -> None:
    spot = [row for row in ROWS if row.when.get("purchase") == "spot"]
    assert spot
    for row in spot:
        assert row.kind == "estimate", row.id
        assert row.effective.start is not None, row.id
        assert "spot prices move" in row.source.note, row.id


def test_every_estimate_says_what_was_taken() -> None:
    for row in ROWS:
        if row.kind == "estimate":
            assert row.source.note, row.id


def test_a_commitment_costs_less_than_the_same_machine_on_demand() -> None:
    def machine(row: PriceRow) -> tuple[Any, ...]:
        return row.provider, row.sku, row.when.get("host_type"), row.when.get("region"), row.meter

    def rate(row: PriceRow) -> Fraction:
        return Fraction(row.rates[0][1].num, row.rates[0][1].den)

    on_demand = {machine(row): rate(row) for row in COMPUTE if row.when["purchase"] == "on_demand"}
    compared = 0
    for row in COMPUTE:
        if row.when["purchase"] != "on_demand" and machine(row) in on_demand:
            assert rate(row) < on_demand[machine(row)], row.id
            compared += 1
    assert compared >= 20


AWS = {"cloud_provider": "aws", "region": "us-east-1"}
GCP = {"cloud_provider": "gcp", "region": "us-central1"}
AZURE = {"cloud_provider": "azure", "region": "eastus"}
P5 = {**AWS, "host_type": "p5.48xlarge", "device": "NVIDIA H100 80GB HBM3"}
P5EN = {**AWS, "host_type": "p5en.48xlarge", "device": "NVIDIA H200"}
A3 = {**GCP, "host_type": "a3-highgpu-8g", "device": "NVIDIA H100 80GB HBM3"}
A2 = {**GCP, "host_type": "projects/1/machineTypes/a2-highgpu-1g", "device": "NVIDIA A100-SXM4-40GB"}
MI300X = {"cloud_provider": "azure", "region": "westus3", "host_type": "Standard_ND96isr_MI300X_v5"}


def gpu_hour(**selectors: str | None) -> Charges:
    return price(BOOK, {"gpu.seconds": HOUR}, **selectors)


@pytest.mark.parametrize(
    ("selectors", "hour"),
    [
        (P5, "6.88"),
        ({**P5EN, "region": "us-east-2"}, "7.912"),
        ({**P5, "host_type": "p6-b200.48xlarge", "device": "NVIDIA B200"}, "14.2416"),
        ({**AWS, "host_type": "g5.xlarge", "device": "NVIDIA A10G"}, "1.006"),
        ({**AWS, "host_type": "g4dn.xlarge", "device": "Tesla T4"}, "0.526"),
        ({**AWS, "host_type": "g6.12xlarge", "device": "NVIDIA L4"}, "1.1504"),
        ({**AWS, "host_type": "g6e.xlarge", "device": "NVIDIA L40S"}, "1.861"),
        (A2, "3.673385"),
        ({**GCP, "host_type": "g2-standard-4", "device": "NVIDIA L4"}, "0.706832276"),
        ({**AZURE, "host_type": "Standard_ND96isr_H100_v5", "device": "NVIDIA H100 80GB HBM3"}, "12.29"),
        ({**MI300X, "device": "AMD Instinct MI300X VF"}, "6"),
        ({**MI300X, "device": "AMD Instinct MI300X"}, "6"),
        ({"cloud_provider": "lambda", "host_type": "gpu_8x_b200_sxm6", "device": "NVIDIA B200"}, "6.69"),
        ({"cloud_provider": "coreweave", "region": "us-east-04a", "device": "NVIDIA H200"}, "6.305"),
    ],
)
def test_an_hour_of_one_gpu_costs_its_share_of_the_instance(selectors: dict[str, str], hour: str) -> None:
    assert gpu_hour(**selectors).cost == Decimal(hour)


@pytest.mark.parametrize(
    ("selectors", "purchase", "hour"),
    [
        (A3, "on_demand", "11.061250014875"),
        (A3, "reserved_1y", "7.672959278875"),
        (A3, "reserved_3y", "4.858047899375"),
        (A2, "spot", "2.12081"),
        (A2, "preemptible", "2.12081"),
        (A2, "reserved_1y", "2.314207040000"),
        (P5, "spot", "2.598375"),
        (
            {**AZURE, "region": "eastus2", "host_type": "Standard_ND96isr_H200_v5", "device": "NVIDIA H200"},
            "reserved_3y",
            "5.277739726027",
        ),
        ({"cloud_provider": "coreweave", "device": "NVIDIA H100 80GB HBM3"}, "spot", "2.46375"),
    ],
)
def test_a_machine_costs_what_the_way_it_is_paid_for_costs(selectors: dict[str, str], purchase: str, hour: str) -> None:
    assert gpu_hour(**selectors, purchase=purchase).cost == Decimal(hour)


@pytest.mark.parametrize("purchase", ["spot", "reserved_1y", "savings_plan"])
def test_a_machine_whose_purchase_has_no_price_is_not_billed_on_demand(purchase: str) -> None:
    charges = gpu_hour(**AWS, host_type="g5.xlarge", device="NVIDIA A10G", purchase=purchase)
    assert (charges.cost, charges.reasons) == (None, ("no_price_for_purchase",))


@pytest.mark.parametrize(
    ("selectors", "hour"),
    [
        ({**AWS, "host_type": "m7i.2xlarge"}, "0.0504"),
        ({**AWS, "host_type": "t3.medium"}, "0.0208"),
        ({**GCP, "host_type": "e2-standard-4"}, "0.03350571"),
        ({**GCP, "host_type": "n1-standard-8"}, "0.04749975"),
        ({**AZURE, "host_type": "Standard_D4s_v5"}, "0.048"),
    ],
)
def test_an_hour_of_one_vcpu_costs_its_share_of_the_instance_memory_included(
    selectors: dict[str, str], hour: str
) -> None:
    charges = price(BOOK, {"cpu.seconds": HOUR, "memory.byte_seconds": 2**30 * 3600}, **selectors)
    assert charges.cost == Decimal(hour)
    assert [charge.status for charge in charges.charges] == ["priced", "included"]


@pytest.mark.parametrize(
    "selectors",
    [
        P5,
        A2,
        {**AZURE, "host_type": "Standard_ND96asr_v4", "device": "NVIDIA A100-SXM4-40GB"},
        {"cloud_provider": "lambda", "host_type": "gpu_1x_h100_sxm5", "device": "NVIDIA H100 80GB HBM3"},
    ],
)
def test_a_gpu_machine_is_billed_once_by_its_gpus(selectors: dict[str, str]) -> None:
    everything = {"gpu.seconds": HOUR, "cpu.seconds": HOUR, "memory.byte_seconds": 2**40}
    charges = price(BOOK, everything, **selectors)
    assert charges.status == "priced"
    assert charges.cost == gpu_hour(**selectors).cost
    assert [charge.status for charge in charges.charges] == ["priced", "included", "included"]


def test_a_users_own_price_stands_before_what_is_included() -> None:
    own = book_of("prices: [{provider: aws, sku: g5.xlarge, meter: cpu.seconds, amount: 0.02, unit: hour}]").layers[0]
    charges = price(BOOK.with_front(own), {"cpu.seconds": HOUR}, **AWS, host_type="g5.xlarge")
    assert (charges.cost, charges.status) == (Decimal("0.02"), "priced")


def test_a_gpu_that_is_sold_apart_is_billed_beside_its_machine() -> None:
    n1 = {**GCP, "host_type": "n1-standard-4"}
    assert price(BOOK, {"gpu.seconds": HOUR, "cpu.seconds": HOUR}, **n1, device="Tesla T4").cost == Decimal(
        "0.35"
    ) + Decimal("0.04749975")


def test_serverless_is_billed_by_what_is_sold() -> None:
    used = {"cpu.seconds": Decimal(100), "memory.byte_seconds": 2**30 * 100}
    assert price(BOOK, used, **AWS, host_type="aws_lambda").cost == Decimal("0.00166667")
    assert price(BOOK, used, **GCP, host_type="gcp_cloud_run").cost == Decimal("0.00265")


GB, GIB = 10**9, 2**30


@pytest.mark.parametrize(
    ("selectors", "size", "costs"),
    [
        (
            AWS,
            GB,
            {
                "egress.same_zone": "0",
                "ingress.same_zone": "0",
                "egress.cross_zone": "0.01",
                "ingress.cross_zone": "0.01",
                "egress.cross_region": "0.02",
                "ingress.cross_region": "0",
                "egress.internet": "0.09",
                "ingress.internet": "0",
            },
        ),
        (
            GCP,
            GIB,
            {
                "egress.same_zone": "0",
                "ingress.same_zone": "0",
                "egress.cross_zone": "0.01",
                "ingress.cross_zone": "0",
                "egress.cross_region": "0.02",
                "ingress.cross_region": "0",
                "egress.internet": "0.12",
                "ingress.internet": "0",
            },
        ),
        (
            AZURE,
            GB,
            {
                "egress.same_zone": "0",
                "ingress.same_zone": "0",
                "egress.cross_zone": "0",
                "ingress.cross_zone": "0",
                "egress.cross_region": "0.02",
                "ingress.cross_region": "0",
                "egress.internet": "0.087",
                "ingress.internet": "0",
            },
        ),
    ],
)
def test_a_gigabyte_costs_by_where_it_goes(selectors: dict[str, str], size: int, costs: dict[str, str]) -> None:
    for scope, cost in costs.items():
        charges = price(BOOK, {f"network.{scope}.bytes": size}, **selectors)
        assert (charges.cost, charges.status) == (Decimal(cost), "priced" if Decimal(cost) else "free"), scope


def test_google_counts_in_gibibytes() -> None:
    (charge,) = price(BOOK, {"network.egress.internet.bytes": GIB}, **GCP).charges
    assert charge.per == "1 GiB"


@pytest.mark.parametrize("meter", ["network.egress.bytes", "network.ingress.bytes", "network.egress.cross_cloud.bytes"])
@pytest.mark.parametrize("cloud", [AWS, GCP, AZURE])
def test_bytes_that_went_nobody_knows_where_have_no_price(meter: str, cloud: dict[str, str]) -> None:
    charges = price(BOOK, {meter: GB}, **cloud)
    assert (charges.cost, charges.reasons) == (None, ("no_meter_price",))


@pytest.mark.parametrize("cloud", [AWS, GCP])
def test_object_storage_charges_requests_and_not_reading(cloud: dict[str, str]) -> None:
    used = {"storage.read.requests": 10_000, "storage.write.requests": 1000, "storage.read.bytes": GB}
    charges = price(BOOK, used, **cloud)
    costs = {charge.meter: charge.cost for charge in charges.charges}
    assert costs == {
        "storage.read.requests": Decimal("0.004"),
        "storage.write.requests": Decimal("0.005"),
        "storage.read.bytes": Decimal(0),
    }


FILE = yaml.safe_load(Path(tollspan.pricing.__file__).with_name("infrastructure.yaml").read_bytes())
MIG = [alias for alias in FILE["aliases"] if " MIG " in alias["ref"]]


def test_a_mig_slice_costs_its_sevenths() -> None:
    assert gpu_hour(**P5 | {"device": "NVIDIA H100 80GB HBM3 MIG 1g.10gb"}).cost == Decimal("0.982857142857")
    assert gpu_hour(**P5 | {"device": "NVIDIA H100 80GB HBM3 MIG 3g.40gb"}).cost == Decimal("2.948571428571")
    assert gpu_hour(**P5 | {"device": "NVIDIA H100 80GB HBM3 MIG 7g.80gb"}).cost == Decimal("6.88")


def test_every_mig_slice_is_of_a_device_that_has_a_price_and_as_large_as_its_name_says() -> None:
    priced = {(row.provider, row.sku) for row in COMPUTE if row.meter == "gpu.seconds"}
    assert len(MIG) == 98
    for alias in MIG:
        device, _, profile = alias["ref"].partition(" MIG ")
        found = re.fullmatch(r"([1-7])g\.[0-9]+gb(\+me)?", profile)
        assert found, alias
        assert Fraction(alias.get("share", 1)) == Fraction(int(found[1]), 7), alias
        assert alias["sku"] == f"{alias['provider']}/{device}", alias
        assert (alias["provider"], device.lower()) in priced, alias


def test_slices_of_one_device_never_cost_more_than_it() -> None:
    whole = gpu_hour(**P5).cost
    slices = ["4g.40gb", "3g.40gb"]
    costs = [gpu_hour(**P5 | {"device": f"NVIDIA H100 80GB HBM3 MIG {profile}"}).cost for profile in slices]
    assert whole is not None
    assert sum(cost for cost in costs if cost is not None) == whole


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"cloud_provider": None}, "unknown_device"),
        ({"device": "NVIDIA H200 MIG 1g.99gb"}, "unknown_device"),
        ({"device": "NVIDIA H200 NVL"}, "unknown_device"),
        ({"region": "eu-west-1"}, "no_price_for_region"),
        ({"region": None}, "no_price_for_region"),
        ({"host_type": None}, "no_price_for_host_type"),
    ],
)
def test_a_gpu_second_without_the_whole_answer_is_unpriced(changed: dict[str, str | None], reason: str) -> None:
    charges = gpu_hour(**{**P5EN, **changed})
    assert (charges.cost, charges.status, charges.reasons) == (None, "unpriced", (reason,))


def test_prices_do_not_reach_back_before_they_were_cut() -> None:
    assert price(BOOK, {"gpu.seconds": 10**9}, at=at("2025-05-31T23:59:59Z"), **P5).reasons == ("no_price_at_time",)
    assert price(BOOK, {"gpu.seconds": 10**9}, at=NOON, **P5).status == "priced"
