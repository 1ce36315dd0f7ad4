"""SkyPilot's machines as a price book: exact prices, honest estimates, stable ids, bad lines told."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tollspan.pricing import BookError, PriceBook
from tollspan.pricing.entries import book_text
from tollspan.pricing.skypilot import BOARDS, DEVICES, GPU_MACHINES, Import, Skipped, read_skypilot
from tollspan.pricing.yamlbook import parse_layer

from .books import price

HEADER = "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone"
AWS = f"""\
{HEADER}
p5.48xlarge,H100,8.0,192.0,2048.0,"{{'Gpus': [{{'Name': 'H100'}}]}}",55.04,20.7871,us-east-1,use1-az1
p5.48xlarge,H100,8.0,192.0,2048.0,,55.04,21.5,us-east-1,use1-az2
p5.48xlarge,H100,8.0,192.0,2048.0,,60.1,,eu-west-1,euw1-az1
g4dn.xlarge,T4,1.0,4.0,16.0,,0.526,0.2,us-east-1,use1-az1
m5.large,,,2.0,8.0,,0.096,0.0351,us-east-1,use1-az1
"""
H100 = {"cloud_provider": "aws", "host_type": "p5.48xlarge", "device": "NVIDIA H100 80GB HBM3", "region": "us-east-1"}
HOUR = Decimal(3600)


def imported(tmp_path: Path, text: str = AWS, cloud: str = "aws", **options: Any) -> Import:
    file = tmp_path / "vms.csv"
    file.write_text(text)
    return read_skypilot(file, cloud=cloud, retrieved_at="2026-11-01", **options)


def book(found: Import) -> PriceBook:
    text = book_text("skypilot-aws", "2026-11-01", found.entries, about="Imported.")
    return PriceBook([parse_layer(text.encode(), "skypilot.yaml")])


def test_an_hour_of_one_gpu_is_the_instance_divided_by_its_gpus(tmp_path: Path) -> None:
    prices = book(imported(tmp_path))
    assert price(prices, {"gpu.seconds": HOUR}, **H100).cost == Decimal("6.88")
    assert price(prices, {"gpu.seconds": HOUR}, **H100 | {"region": "eu-west-1"}).cost == Decimal("7.5125")
    assert price(prices, {"gpu.seconds": HOUR}, **H100 | {"region": "ap-south-1"}).cost is None


def test_a_spot_machine_is_never_billed_on_demand(tmp_path: Path) -> None:
    prices = book(imported(tmp_path))
    spot = price(prices, {"gpu.seconds": HOUR}, **H100, purchase="spot")
    assert spot.cost == Decimal("2.6875")
    assert price(prices, {"gpu.seconds": HOUR}, **H100 | {"region": "eu-west-1"}, purchase="spot").cost is None


def test_zones_that_differ_are_an_estimate_of_the_highest(tmp_path: Path) -> None:
    (entry,) = [e for e in imported(tmp_path).entries if e["id"] == "skypilot/aws/p5.48xlarge/us-east-1/spot"]
    assert (entry["amount"], entry["per"], entry["kind"]) == ("21.5", 8, "estimate")
    assert entry["source"]["note"] == "highest of its zones; the lowest is 20.7871"


def test_on_demand_is_a_list_price_unless_zones_differ(tmp_path: Path) -> None:
    kinds = {e["id"]: e.get("kind", "list") for e in imported(tmp_path).entries}
    assert kinds["skypilot/aws/p5.48xlarge/us-east-1/on_demand"] == "list"
    dearer = AWS + "m5.large,,,2.0,8.0,,0.1,,us-east-1,use1-az2\n"
    (entry,) = [e for e in imported(tmp_path, dearer).entries if e["id"] == "skypilot/aws/m5.large/us-east-1/on_demand"]
    assert (entry["amount"], entry["kind"]) == ("0.1", "estimate")


def test_a_machine_is_billed_once_whatever_is_measured_on_it(tmp_path: Path) -> None:
    prices = book(imported(tmp_path))
    everything = {"gpu.seconds": HOUR, "cpu.seconds": HOUR, "memory.byte_seconds": 2**40}
    assert price(prices, everything, **H100).cost == Decimal("6.88")
    m5 = {"cloud_provider": "aws", "host_type": "m5.large", "region": "us-east-1"}
    assert price(prices, {"cpu.seconds": HOUR, "memory.byte_seconds": 2**40}, **m5).cost == Decimal("0.048")


def test_ids_do_not_depend_on_prices_or_order(tmp_path: Path) -> None:
    header, *lines = AWS.splitlines()
    other = "\n".join([header, *reversed(lines)]).replace("55.04", "56") + "\n"
    ids = [entry["id"] for entry in imported(tmp_path).entries]
    assert [entry["id"] for entry in imported(tmp_path, other).entries] == ids
    assert len(set(ids)) == len(ids)


def test_every_price_carries_the_files_hash_and_day(tmp_path: Path) -> None:
    found = imported(tmp_path, url="https://example.com/vms.csv")
    assert found.sha256 == hashlib.sha256(AWS.encode()).hexdigest()
    for entry in found.entries:
        assert entry["source"]["sha256"] == found.sha256
        assert entry["source"]["retrieved_at"] == "2026-11-01"
        assert entry["source"]["url"] == "https://example.com/vms.csv"
        assert entry["effective"] == ["2026-11-01", None]


def test_prices_are_exact_to_the_last_digit_of_the_file(tmp_path: Path) -> None:
    text = f"{HEADER}\nx,H200,8,1,1,,84.806908493000000001,,r,\n"
    assert imported(tmp_path, text).entries[-1]["amount"] == "84.806908493000000001"


def test_vcpus_that_are_no_whole_number_stay_exact(tmp_path: Path) -> None:
    text = f"{HEADER}\ne2-micro,,,0.25,1.0,,0.00837643,,us-central1,\n"
    (entry,) = [e for e in imported(tmp_path, text, cloud="gcp").entries if e["meter"] == "cpu.seconds"]
    assert (entry["amount"], entry["per"]) == ("0.03350572", 1)


GCP = f"""\
{HEADER}
a2-highgpu-1g,,,12.0,85.0,,0.73948,0.36975,us-central1,us-central1-a
a2-highgpu-1g,,,12.0,85.0,,0.73948,0.36975,us-central1,us-central1-b
a3-highgpu-8g,,,208.0,1872.0,,9.46006,,us-central1,us-central1-a
g2-standard-24,,,24.0,96.0,,0.98,,us-central1,us-central1-a
n1-standard-4,,,4.0,15.0,,0.189999,,us-central1,us-central1-a
,A100,1.0,,,,2.933908,1.7,us-central1,us-central1-a
,A100,1.0,,,,2.933908,,us-central1,us-central1-b
,H100,8.0,,,,78.2,,us-central1,us-central1-a
,L4,2.0,,,,1.12,,us-central1,us-central1-a
,T4,1.0,,,,0.35,0.11,us-central1,us-central1-a
,T4,4.0,,,,1.4,0.44,us-central1,us-central1-a
"""


def test_googles_gpus_are_added_to_the_machines_they_come_with(tmp_path: Path) -> None:
    found = imported(tmp_path, GCP, cloud="gcp")
    assert found.skipped == []
    amounts = {e["id"]: (e["amount"], e["per"]) for e in found.entries if e["meter"] == "gpu.seconds"}
    assert amounts == {
        "skypilot/gcp/Tesla T4/us-central1/on_demand": ("0.35", 1),
        "skypilot/gcp/Tesla T4/us-central1/spot": ("0.11", 1),
        "skypilot/gcp/a2-highgpu-1g/us-central1/on_demand": ("3.673388", 1),
        "skypilot/gcp/a2-highgpu-1g/us-central1/spot": ("2.06975", 1),
        "skypilot/gcp/a3-highgpu-8g/us-central1/on_demand": ("87.66006", 8),
        "skypilot/gcp/g2-standard-24/us-central1/on_demand": ("2.10", 2),
    }


def test_loose_gpus_may_stand_before_their_machines(tmp_path: Path) -> None:
    header, *lines = GCP.splitlines()
    backwards = "\n".join([header, *reversed(lines)]) + "\n"
    there, back = imported(tmp_path, GCP, cloud="gcp"), imported(tmp_path, backwards, cloud="gcp")
    assert back.skipped == []
    assert [(e["id"], e["amount"]) for e in back.entries] == [(e["id"], e["amount"]) for e in there.entries]


def test_a_gpu_that_is_attached_is_billed_beside_its_machine(tmp_path: Path) -> None:
    prices = book(imported(tmp_path, GCP, cloud="gcp"))
    gcp = {"cloud_provider": "gcp", "region": "us-central1"}
    t4 = price(prices, {"gpu.seconds": HOUR, "cpu.seconds": HOUR}, **gcp, host_type="n1-standard-4", device="Tesla T4")
    assert t4.cost == Decimal("0.35") + Decimal("0.04749975")
    a100 = {"host_type": "a2-highgpu-1g", "device": "NVIDIA A100-SXM4-40GB"}
    assert price(prices, {"gpu.seconds": HOUR, "cpu.seconds": HOUR}, **gcp, **a100).cost == Decimal("3.673388")


def test_a_gpu_without_a_machine_is_no_price_where_none_are_attached(tmp_path: Path) -> None:
    found = imported(tmp_path, AWS + ",H100,1,,,,2,,us-east-1,\n")
    assert found.skipped == [Skipped(7, "H100 without a machine")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",A100,1.0,,,,,,us-central1,", "neither Price nor SpotPrice"),
        (",H100,8,,,,78,,us-central1,", "no machine of its zone comes with 8 H100"),
        (",TPU,1.0,,,,2.9,,us-central1,", "no driver's name is known for 'TPU'"),
        (",,,,,,2.9,,us-central1,", "a price without a machine"),
        (
            "a2-highgpu-1g,,,12.0,85.0,,0.73948,,us-central1,",
            "no price of the 1 A100 of a2-highgpu-1g in its zone",
        ),
        ("a9-megagpu-8g,,,12.0,85.0,,0.7,,us-central1,", "a9-megagpu-8g is listed without its GPUs"),
        ("trn1.2xlarge,Trainium,1,8,32,,1.34,,us-east-1,", "no driver's name is known for 'Trainium'"),
        (
            "g6f.large,L4,0.125,2,8,,0.2,,us-east-1,",
            "0.125 of a L4: a part of a device, whose name is the machine's own",
        ),
        ("m5.large,,,2,8,,,,us-east-1,", "neither Price nor SpotPrice"),
        ("m5.large,,,2,8,,0,,us-east-1,", "Price '0' is not above 0"),
        ("m5.large,,,2,8,,-1,,us-east-1,", "Price '-1' is not above 0"),
        ("m5.large,,,2,8,,NaN,,us-east-1,", "Price 'NaN' is not above 0"),
        ("m5.large,,,2,8,,1E-30,,us-east-1,", "Price '1E-30' has more digits than it can have"),
        ("m5.large,,,2,8,,1E+30,,us-east-1,", "Price '1E+30' has more digits than it can have"),
        ("m5.large,,,2,8,,cheap,,us-east-1,", "Price 'cheap' is not a number"),
        ("m5.large,,,,8,,0.1,,us-east-1,", "vCPUs '' is not a number"),
        ("m5.large,,,2,8,,0.1,,,", "no Region"),
        ("m5.large", "no Region"),
        ("n2-standard-2,,,4,8,,0.1,,us-west1,", "n2-standard-2 has other GPUs or vCPUs than in a line before"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_and_the_others_are_used(tmp_path: Path, line: str, reason: str) -> None:
    good = "n2-standard-2,,,2,8,,0.097118,,us-central1,us-central1-a"
    found = imported(tmp_path, f"{HEADER}\n{good}\n{line}\n{good}\n", cloud="gcp")
    assert found.skipped == [Skipped(3, reason)]
    assert found.lines == 3
    assert [entry["amount"] for entry in found.entries if entry["meter"] == "cpu.seconds"] == ["0.097118"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("InstanceType,vCPUs\n", "vms.csv:1: the column 'AcceleratorName' is missing."),
        ("", "vms.csv:1: the column 'InstanceType' is missing."),
        (HEADER + "\n", "vms.csv: none of its 0 lines can be used. Check the file"),
        (HEADER + "\nx,,,1,1,,0,,r,\n", "vms.csv: none of its 1 lines can be used; line 2: Price '0' is not above 0."),
    ],
)
def test_a_file_without_prices_is_refused(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(BookError, match=error.replace(".", r"\.")):
        imported(tmp_path, text)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(BookError, match=r"none\.csv: cannot read it: No such file"):
        read_skypilot(tmp_path / "none.csv", cloud="aws", retrieved_at="2026-11-01")


def test_regions_and_devices_can_be_chosen(tmp_path: Path) -> None:
    found = imported(tmp_path, regions=["eu-west-1"])
    assert {e["when"]["region"] for e in found.entries if "when" in e} == {"eu-west-1"}
    trainium = f"{HEADER}\ntrn1.2xlarge,Trainium,1,8,32,,1.34375,,us-east-1,\n"
    (entry,) = [
        e
        for e in imported(tmp_path, trainium, devices={"Trainium": "AWS Trainium"}).entries
        if e["meter"] == "gpu.seconds"
    ]
    assert (entry["sku"], entry["amount"]) == ("AWS Trainium", "1.34375")


@pytest.mark.parametrize(
    ("cloud", "instance", "accelerator", "device"),
    [
        ("azure", "Standard_NC24ads_A100_v4", "A100-80GB", "NVIDIA A100 80GB PCIe"),
        ("azure", "Standard_ND96amsr_A100_v4", "A100-80GB", "NVIDIA A100-SXM4-80GB"),
        ("azure", "Standard_ND96isr_MI300X_v5", "MI300X", "AMD Instinct MI300X VF"),
        ("lambda", "gpu_1x_h100_pcie", "H100", "NVIDIA H100 PCIe"),
        ("lambda", "gpu_1x_h100_sxm5", "H100", "NVIDIA H100 80GB HBM3"),
        ("aws", "p4d.24xlarge", "A100", "NVIDIA A100-SXM4-40GB"),
    ],
)
def test_boards_are_told_apart_by_their_machine(
    tmp_path: Path, cloud: str, instance: str, accelerator: str, device: str
) -> None:
    found = imported(tmp_path, f"{HEADER}\n{instance},{accelerator},8,96,900,,10,,r,\n", cloud=cloud)
    assert [e["sku"] for e in found.entries if e["meter"] == "gpu.seconds"] == [device]


def test_every_board_stands_in_for_an_accelerator_that_is_known() -> None:
    assert {accelerator for _, _, accelerator, _ in BOARDS} <= set(DEVICES)
    assert {accelerator for _, _, accelerator in GPU_MACHINES} <= {*DEVICES, ""}
