"""``pricing/README.md``: its books load, and its outputs are what the commands print.

``TOLLSPAN_WRITE_DOCS=1`` writes the outputs anew.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tollspan.pricing.meters import METERS
from tollspan.pricing.resolve import REASONS
from tollspan.pricing.yamlbook import parse_layer
from tollspan.pricing.yamlrows import ROW_FIELDS
from tollspan.processor.cli.app import app

README = Path(__file__).parents[2] / "pricing" / "README.md"
TEXT = README.read_text(encoding="utf-8")

BOOKS = re.findall(r"(?:<!-- file: (\S+) -->\n)?```yaml\n(.*?)```", TEXT, re.DOTALL)
CONSOLE = re.compile(r"```console\n\$ (tollspan [^\n]+)\n(.*?)```", re.DOTALL)
METER_TABLE = re.compile(r"(<!-- meters -->\n).*?(<!-- /meters -->)", re.DOTALL)
HASH = re.compile(r"(?<=@)([^\s+]*?)\.?[0-9a-f]{8}(?=[+\s])")
"""What ends a book's version in a charge; it changes with every comment in the file."""


@pytest.fixture
def printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    for name, text in BOOKS:
        if name:
            (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOLLSPAN_PRICES", raising=False)
    return CliRunner()


def meters() -> str:
    named = {"model": "provider, model", "device": "cloud, device", "host": "cloud, host type", "platform": "cloud"}
    rows = ["| meter | unit | price by | what |", "|--|--|--|--|"]
    rows += [f"| `{m.name}` | {m.unit} | {named[m.axis]} | {m.about} |" for m in METERS.values()]
    return "\n".join(rows) + "\n"


def output(runner: CliRunner, command: str) -> str:
    result = runner.invoke(app, shlex.split(command)[1:])
    assert result.exit_code in (0, 3), result.output
    lines = (line.rstrip() for line in HASH.sub(r"\1", result.stdout).splitlines())
    return "\n".join(lines).strip("\n") + "\n"


@pytest.mark.parametrize(("name", "text"), BOOKS, ids=[f"{n}-{name}" for n, (name, _) in enumerate(BOOKS)])
def test_every_book_loads(name: str, text: str) -> None:
    layer = parse_layer(text.encode(), name or "readme.yaml")
    assert layer.rows or layer.terms


def test_the_book_to_begin_with_has_nothing_to_complain_of(printed: CliRunner) -> None:
    result = printed.invoke(app, ["prices", "check", "acme.yaml", "--at", "2026-11-20", "--strict"])
    assert result.exit_code == 0, result.output


def test_every_output_and_the_table_of_meters_are_as_the_code_gives_them(printed: CliRunner) -> None:
    commands = CONSOLE.findall(TEXT)
    assert len(commands) == 5
    table = METER_TABLE.sub(lambda found: f"{found[1]}{meters()}{found[2]}", TEXT)
    fresh = CONSOLE.sub(lambda found: f"```console\n$ {found[1]}\n{output(printed, found[1])}```", table)
    if os.environ.get("TOLLSPAN_WRITE_DOCS"):
        README.write_text(fresh, encoding="utf-8")
    assert fresh == README.read_text(encoding="utf-8"), "run this test with TOLLSPAN_WRITE_DOCS=1 and read what changed"


def test_the_hard_cases_show_what_they_are_about(printed: CliRunner) -> None:
    tiers, holiday, contract, device, unknown = (output(printed, command) for command, _ in CONSOLE.findall(TEXT))
    assert "this request has 250,000 input tokens" in tiers
    assert "it was thu 2026-10-01 10:30, an excepted day" in holiday
    assert re.search(r"× 1\.1 \(data-residency/openai/gpt-5\.4\S*\) × 0\.88 \(openai-ea-2026\) = ", contract)
    assert "(3,600 second × 2.1 + 1,400 second × 1.4) USD per 1 hour × 1/7 (share of the device) = " in device
    assert "Did you mean gpt-5-mini" in unknown
    assert "no cost: unpriced (unknown_model)" in unknown


def test_every_field_of_a_price_and_every_reason_is_explained() -> None:
    fields = TEXT[TEXT.index("The fields of a price:") : TEXT.index("A price is never edited.")]
    assert not [name for name in ROW_FIELDS if f"`{name}`" not in fields]
    reasons = TEXT[TEXT.index("| reason |") : TEXT.index("Money is kept")]
    named = {"no_price_for_region", "usage_missing"}
    told = [reason for reason in REASONS if not reason.startswith("no_price_for_") and not reason.startswith("usage_")]
    assert not [reason for reason in {*told, *named} - {"usage_missing"} if f"`{reason}`" not in reasons]


def test_every_meter_that_is_named_is_one() -> None:
    named = set(re.findall(r"\b(?:tokens|gpu|cpu|network)\.[a-z_.]+[a-z]\b", TEXT))
    assert named
    assert named <= set(METERS)
