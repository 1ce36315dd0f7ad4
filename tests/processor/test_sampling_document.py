"""What deploy/SAMPLING.md shows can be used as it stands there, and nothing is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tollspan.pricing import load_book
from tollspan.processor.cli.app import app
from tollspan.processor.config import DEFAULT, load
from tollspan.processor.queries import named_queries
from tollspan.processor.sample.condition_fields import LOOPS, MATCHERS, OF_SPANS, OF_TRACES
from tollspan.processor.sample.rules import parse_sampling

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "SAMPLING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
SHORT = re.findall(r"`(\{.+?\})`(?=[ ,|])", TEXT.split("## A budget")[0])
CONDITIONS = [text for text in SHORT if not re.match(r"\{(equals|in|regex|range|exists)", text)]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_every_block_loads(block: str, tmp_path: Path) -> None:
    content = yaml.safe_load(block)
    if "rules" in content or "base" in content:
        assert parse_sampling(block.encode(), "SAMPLING.md").warnings == ()
    elif "prices" in content:
        (tmp_path / "book.yaml").write_text("price_book: {id: document, version: 1, currency: USD}\n" + block)
        load_book(tmp_path / "book.yaml")
    else:
        (tmp_path / "tollspan.yaml").write_text(block)
        loaded = load(tmp_path / "tollspan.yaml", environment={})
        assert loaded.where("sampling.budget") != DEFAULT


@pytest.mark.parametrize("text", CONDITIONS)
def test_every_example_of_a_condition_loads(text: str) -> None:
    parse_sampling(f"rules: [{{when: {text}, keep: always}}]\nbase: {{keep: 1%}}".encode(), "SAMPLING.md")


def test_every_condition_is_told_of() -> None:
    told = set(re.findall(r"`([a-z_]+)`", TEXT)) | set(re.findall(r"`([a-z]+):`", TEXT))
    joined = {"any", "all", "not", "span", "root"}
    assert set(OF_SPANS) | set(OF_TRACES) | joined <= told
    assert set(LOOPS) <= told
    assert all(f"{{{name}: " in TEXT for name in MATCHERS)
    assert len(CONDITIONS) >= 15


def test_settings_queries_and_options_that_it_names_exist() -> None:
    known = set(load(environment={}).values)
    named = set(re.findall(r"`(sampling\.[a-z_.]+)`", TEXT))
    assert named
    assert named <= known
    asked = set(re.findall(r"tollspan query ([a-z-]+)", TEXT))
    assert {"sampling", "sampling-estimates"} <= asked <= set(named_queries())
    shown = CliRunner().invoke(app, ["sample", "--help"], env={"COLUMNS": "200"}).stdout
    for option in ("--check", "--dry-run", "--since", "--budget", "--prices", "--strict"):
        assert option in shown


def test_the_example_file_is_named_and_has_no_warnings() -> None:
    path = ROOT / "examples" / "sampling" / "sampling.yaml"
    assert f"(../{path.relative_to(ROOT).as_posix()})" in TEXT
    assert parse_sampling(path.read_bytes(), str(path)).warnings == ()
