"""The command line says in one line what is wrong, and takes a thing under every name that it has."""

from __future__ import annotations

import csv
import io
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tollspan.processor.cli.app import app, run
from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.cli.serve import LogLevel
from tollspan.processor.errors import ConfigError
from tollspan.processor.service import Service
from tollspan.processor.usage_trace import TraceFormat, read_usage_trace

BOOK = """
price_book: {id: acme, version: 1, currency: USD}
prices:
  - {id: house/out, provider: openai, sku: house-model-8b, meter: tokens.output, amount: "2", per: 1000000}
"""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


class Started(Exception):
    """Raised in the place of a running service."""


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `serve` would run, without running it."""
    seen: dict[str, Any] = {}

    def init(self: Service, config: Any, *_: object) -> None:
        seen["config"] = config
        raise Started

    monkeypatch.setattr(Service, "__init__", init)
    for name in ("clickhouse_connect", "urllib3"):  # `serve` quietens them for its process
        monkeypatch.setattr(logging.getLogger(name), "level", logging.getLogger(name).level)
    return seen


def test_a_log_level_that_is_none_is_wrong_usage() -> None:
    result = invoke("serve", "--log-level", "banana")
    assert result.exit_code == 2
    assert "banana" in result.stderr
    assert all(level.value in result.stderr for level in LogLevel)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("level", ["debug", "DEBUG", "Warning"])
def test_a_log_level_may_be_written_in_any_case(configured: dict[str, Any], level: str) -> None:
    assert isinstance(invoke("serve", "--log-level", level).exception, Started)


@pytest.mark.parametrize("option", ["--prices", "--book"])
def test_serve_takes_a_price_book_under_both_names(configured: dict[str, Any], option: str) -> None:
    assert isinstance(invoke("serve", option, "mine.yaml").exception, Started)
    assert configured["config"].runtime.prices == Path("mine.yaml")


@pytest.mark.parametrize("option", ["--prices", "--book"])
def test_price_takes_a_price_book_under_both_names(tmp_path: Path, option: str) -> None:
    call = ("price", "--provider", "openai", "--model", "house-model-8b", "--usage", "tokens.output=500")
    assert invoke(*call).exit_code == 3, "the shipped book does not have it"
    (tmp_path / "book.yaml").write_text(BOOK)
    result = invoke(*call, option, str(tmp_path / "book.yaml"))
    assert (result.exit_code, result.exception) == (0, None)
    assert "0.001" in result.stdout


@pytest.mark.parametrize("limit", ["0", "-3"])
@pytest.mark.parametrize("name", ["total", "traces"])
def test_a_limit_that_shows_nothing_is_one_line(name: str, limit: str) -> None:
    result = invoke("query", name, "--limit", limit, "--store", "chdb:///nowhere")
    assert result.exit_code == 2
    assert result.stderr == f"error: --limit {limit} would show no rows. Give 1 or more, or leave it out.\n"


@pytest.mark.parametrize("form", [Format.csv, Format.markdown])
def test_no_rows_are_nothing(capsys: pytest.CaptureFixture[str], form: Format) -> None:
    print_rows([], form)
    assert capsys.readouterr().out == ""


def test_no_rows_are_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([], Format.json)
    assert capsys.readouterr().out == "[]\n"


def test_an_unknown_is_an_empty_field(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"a": None, "b": 0}], Format.csv)
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == [{"a": "", "b": "0"}]


@pytest.mark.parametrize("content", [b"A,B\n1,2\n", b"\xff\xfe"])
def test_a_format_is_named_without_an_article(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="The format azure-llm ") as caught:
        read_usage_trace(path, TraceFormat.azure_llm)
    assert "A azure" not in str(caught.value)


def test_an_error_for_people_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["tollspan", "query", "total", "--store", "chdb:///nowhere/at/all"])
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
