"""The shipped GPU, CPU and egress prices: sourced, chosen by cloud, region, host and device, else unpriced."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tollspan.pricing import shipped_book
from tollspan.pricing.book import TableLayer

from .books import NOON, at, price

BOOK = shipped_book()
HOUR = Decimal(3600)


def test_every_price_has_a_source_a_date_and_a_region() -> None:
    layer = next(layer for layer in BOOK.layers if layer.name == "infrastructure")
    assert isinstance(layer, TableLayer)
    for row in layer.rows:
        assert row.source.url.startswith("https://"), row.id
        assert row.source.retrieved_at, row.id
        assert row.when["region"], row.id
        assert row.provider in ("aws", "gcp", "azure"), row.id


@pytest.mark.parametrize(
    ("selectors", "hour"),
    [
        (
            {
                "cloud_provider": "aws",
                "region": "us-east-1",
                "host_type": "p5.48xlarge",
                "device": "NVIDIA H100 80GB HBM3",
            },
            "6.88",
        ),
        (
            {"cloud_provider": "aws", "region": "us-east-2", "host_type": "p5en.48xlarge", "device": "NVIDIA H200"},
            "7.912",
        ),
        ({"cloud_provider": "aws", "region": "us-east-1", "host_type": "g5.xlarge", "device": "NVIDIA A10G"}, "1.006"),
        ({"cloud_provider": "aws", "region": "us-east-1", "host_type": "g4dn.xlarge", "device": "Tesla T4"}, "0.526"),
        ({"cloud_provider": "aws", "region": "us-east-1", "host_type": "g6.12xlarge", "device": "NVIDIA L4"}, "1.1504"),
        ({"cloud_provider": "aws", "region": "us-east-1", "host_type": "g6e.xlarge", "device": "NVIDIA L40S"}, "1.861"),
        (
            {
                "cloud_provider": "gcp",
                "region": "us-central1",
                "host_type": "projects/1/machineTypes/a2-highgpu-1g",
                "device": "NVIDIA A100-SXM4-40GB",
            },
            "3.673385",
        ),
        (
            {
                "cloud_provider": "azure",
                "region": "eastus",
                "host_type": "Standard_ND96isr_H100_v5",
                "device": "NVIDIA H100 80GB HBM3",
            },
            "12.29",
        ),
    ],
)
def test_an_hour_of_one_gpu_costs_its_share_of_the_instance(selectors: dict[str, str], hour: str) -> None:
    assert price(BOOK, {"gpu.seconds": HOUR}, **selectors).cost == Decimal(hour)


@pytest.mark.parametrize(
    ("selectors", "hour"),
    [
        ({"cloud_provider": "aws", "region": "us-east-1", "host_type": "m7i.2xlarge"}, "0.0504"),
        ({"cloud_provider": "aws", "region": "us-east-1", "host_type": "t3.medium"}, "0.0208"),
        ({"cloud_provider": "gcp", "region": "us-central1", "host_type": "e2-standard-4"}, "0.03350571"),
        ({"cloud_provider": "azure", "region": "eastus", "host_type": "Standard_D4s_v5"}, "0.048"),
    ],
)
def test_an_hour_of_one_vcpu_costs_its_share_of_the_instance(selectors: dict[str, str], hour: str) -> None:
    assert price(BOOK, {"cpu.seconds": HOUR}, **selectors).cost == Decimal(hour)


@pytest.mark.parametrize(
    ("selectors", "cost"),
    [
        ({"cloud_provider": "aws", "region": "us-east-1"}, "0.09"),
        ({"cloud_provider": "azure", "region": "eastus"}, "0.087"),
    ],
)
def test_a_gigabyte_to_the_internet(selectors: dict[str, str], cost: str) -> None:
    assert price(BOOK, {"network.egress.bytes": 10**9}, **selectors).cost == Decimal(cost)


def test_google_counts_egress_in_gibibytes() -> None:
    charges = price(BOOK, {"network.egress.bytes": 2**30}, cloud_provider="gcp", region="us-central1")
    assert (charges.cost, charges.charges[0].per) == (Decimal("0.12"), "1 GiB")


H100 = {"cloud_provider": "aws", "region": "us-east-1", "host_type": "p5.48xlarge", "device": "NVIDIA H100 80GB HBM3"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"cloud_provider": None}, "unknown_device"),
        ({"device": "NVIDIA H100 80GB HBM3 MIG 1g.10gb"}, "unknown_device"),
        ({"region": "eu-west-1"}, "no_price_for_region"),
        ({"region": None}, "no_price_for_region"),
        ({"host_type": None}, "no_price_for_host_type"),
    ],
)
def test_a_gpu_second_without_the_whole_answer_is_unpriced(changed: dict[str, str | None], reason: str) -> None:
    charges = price(BOOK, {"gpu.seconds": 10**9}, **{**H100, **changed})
    assert (charges.cost, charges.status, charges.reasons) == (None, "unpriced", (reason,))


def test_prices_do_not_reach_back_before_they_were_cut() -> None:
    assert price(BOOK, {"gpu.seconds": 10**9}, at=at("2025-05-31T23:59:59Z"), **H100).reasons == ("no_price_at_time",)
    assert price(BOOK, {"gpu.seconds": 10**9}, at=NOON, **H100).status == "priced"
