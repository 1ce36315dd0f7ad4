"""One setting, one name: in a file, in the environment and on the command line; and every mistake said at once."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from tollspan.processor import config as module
from tollspan.processor.cli.app import app
from tollspan.processor.config import (
    RUNTIME,
    SECTIONS,
    Config,
    JournalLimits,
    Places,
    listed,
    load,
    runtime_config,
    service_config,
    settings,
)
from tollspan.processor.errors import ConfigError
from tollspan.processor.pipeline import Settings
from tollspan.processor.runtime import RuntimeConfig
from tollspan.processor.sections import Section, attribute_docs, flag, variable
from tollspan.processor.service import ServiceConfig
from tollspan.processor.values import Between, Given, Problem, Secret, masked, read, show_size, show_time

GIB, MIB = 1 << 30, 1 << 20


def written(folder: Path, text: str, name: str = "tollspan.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(file: Path | None = None, **more: Any) -> list[str]:
    """The lines of the error."""
    with pytest.raises(ConfigError) as caught:
        load(file, environment=more.pop("environment", {}), **more)
    lines = str(caught.value).splitlines()
    return [line.strip() for line in lines if not line.endswith("settings cannot be used:")]


# -- where values come from --------------------------------------------------------------------------------------------


def test_flag_goes_before_environment_before_file_before_default(tmp_path: Path) -> None:
    file = written(tmp_path, "journal:\n  max_bytes: 1 GiB\n  segment_bytes: 32 MiB\n  memory_bytes: 16 MiB\n")
    env = {"TOLLSPAN_JOURNAL_MAX_BYTES": "2 GiB", "TOLLSPAN_JOURNAL_SEGMENT_BYTES": "48MiB"}
    config = load(file, flags={"journal.max_bytes": "3GiB"}, environment=env)
    limits = config.get(JournalLimits)
    assert (limits.max_bytes, limits.segment_bytes, limits.memory_bytes) == (3 * GIB, 48 * MIB, 16 * MIB)
    assert limits.pending_bytes == JournalLimits().pending_bytes
    assert [config.where(f"journal.{name}_bytes") for name in ("max", "segment", "memory", "pending")] == [
        "--journal-max-bytes", "TOLLSPAN_JOURNAL_SEGMENT_BYTES", "tollspan.yaml:4", "default",
    ]  # fmt: skip


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = written(tmp_path, "sampling: {keep: 0.5}")
    assert load(environment={"TOLLSPAN_CONFIG": str(file)}).get(Settings).keep == 0.5


@pytest.mark.parametrize(
    ("given", "where", "value"),
    [
        ({"TOLLSPAN_STORE": "chdb:///x"}, "store", "chdb:///x"),
        ({"TOLLSPAN_PRICES": "/p.yaml"}, "prices", Path("/p.yaml")),
        ({"TOLLSPAN_KEEP": ".25"}, "keep", 0.25),
        ({"TOLLSPAN_SAMPLING_KEEP": ".25"}, "keep", 0.25),
        ({"TOLLSPAN_JOURNAL": "/j"}, "journal", Path("/j")),
        ({"TOLLSPAN_JOURNAL_DIRECTORY": "/j"}, "journal", Path("/j")),
        ({"TOLLSPAN_STORE": ""}, "store", "chdb://"),
    ],
)
def test_names_that_were_there_before_still_work(given: dict[str, str], where: str, value: object) -> None:
    config = runtime_config(load(environment=given))
    assert (config.settings.keep if where == "keep" else getattr(config, where)) == value
    assert RuntimeConfig.from_environment(given) == config, "the drop-in exporter reads the same"


def test_without_anything_the_service_is_what_its_own_defaults_say() -> None:
    assert service_config(load(environment={})) == ServiceConfig()
    assert RuntimeConfig.from_environment({}) == RuntimeConfig()


@pytest.mark.parametrize("text", ["", "# nothing\n", "journal:\n"])
def test_an_empty_file_says_nothing(tmp_path: Path, text: str) -> None:
    assert service_config(load(written(tmp_path, text), environment={})) == ServiceConfig()


def test_paths_of_a_file_are_meant_from_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "prices: books/mine.yaml\nsenders: /etc/senders.yaml\n")
    places = load(file, environment={}).get(Places)
    assert (places.prices, places.senders) == (tmp_path / "books/mine.yaml", Path("/etc/senders.yaml"))
    assert load(environment={}, flags={"prices": "mine.yaml"}).get(Places).prices == Path("mine.yaml")


def test_yaml_does_not_turn_off_into_false_nor_an_address_into_a_number(tmp_path: Path) -> None:
    file = written(tmp_path, "http: off\nsql: ~\nlisten: 12:30\ninsecure_listen: yes\n")
    places = load(file, environment={}).get(Places)
    assert (places.http, places.sql, places.listen, places.insecure_listen) == (None, None, "12:30", True)


def test_dots_are_as_good_as_nesting(tmp_path: Path) -> None:
    file = written(tmp_path, "journal.max_bytes: 1GiB\n")
    assert load(file, environment={}).get(JournalLimits).max_bytes == GIB


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    secret = written(tmp_path, "clickhouse://u:p@h/db\n", "url")
    config = load(environment={"TOLLSPAN_STORE_FILE": str(secret)})
    assert config.get(Places).store == "clickhouse://u:p@h/db"
    assert refusal(environment={"TOLLSPAN_STORE_FILE": "/not/there"})[0].startswith("TOLLSPAN_STORE_FILE: the file")


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_all_mistakes_of_all_places_are_said_at_once_with_file_and_line_and_the_nearest_name(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "store: chdb://\n"
        "journal:\n"
        "  max_byte: 3\n"
        "sampling:\n"
        "  keep: 2\n"
        "samplin: {keep: 1}\n"
        "shutdown: 3\n"
        "store: again\n",
    )
    found = refusal(file, environment={"TOLLSPAN_JOURNAL_MAX_BYTE": "1"}, flags={"journal.segment_bytes": "many"})
    assert set(found) == {
        "TOLLSPAN_JOURNAL_MAX_BYTE is no setting; did you mean TOLLSPAN_JOURNAL_MAX_BYTES?",
        "tollspan.yaml:8: store is there twice, first at tollspan.yaml:1",
        "tollspan.yaml:3: journal.max_byte is no setting; did you mean journal.max_bytes?",
        "tollspan.yaml:6: samplin is no setting; did you mean sampling.keep?",
        "tollspan.yaml:7: shutdown has to be a mapping of grace, drain",
        "tollspan.yaml:5: sampling.keep has to be a number from 0 to 1, not '2'",
        "--journal-segment-bytes: journal.segment_bytes has to be a size such as 512 MiB, not 'many'",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\n", "tollspan.yaml:2: no YAML"),
        ("- a\n", "tollspan.yaml:1: the file has to be a mapping"),
        ("store: [a]\n", "tollspan.yaml:1: store has to be text, not a list"),
        ("store:\n", "tollspan.yaml:1: store has to have a value"),
        ("? [a]\n: 1\n", "tollspan.yaml:1: a key has to be plain text here"),
        ("tls: {cert: a.pem}\n", "tollspan.yaml:1: tls: TLS needs a certificate and its key"),
        ("journal: {max_bytes: 0}\n", "tollspan.yaml:1: journal: max_bytes, segment_bytes and pending_bytes"),
        ("log: {format: xml}\n", "tollspan.yaml:1: log.format has to be one of text, json, not 'xml'"),
        ("log: {level: warn}\n", "did you mean warning?"),
        ("insecure_listen: perhaps\n", "insecure_listen has to be true or false"),
    ],
)
def test_a_bad_file_says_where_and_what(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(written(tmp_path, text))[0]


def test_a_file_that_is_not_there_or_no_text_is_one_line(tmp_path: Path) -> None:
    assert "cannot be read: no such file" in refusal(tmp_path / "none.yaml")[0]
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "no UTF-8 text" in refusal(tmp_path / "b.yaml")[0]


def test_two_names_of_one_setting_in_one_place_are_a_mistake() -> None:
    found = refusal(environment={"TOLLSPAN_KEEP": "0.1", "TOLLSPAN_SAMPLING_KEEP": "0.2"})
    assert found == ["TOLLSPAN_KEEP: sampling.keep is given twice, first by TOLLSPAN_SAMPLING_KEEP."]


def test_variables_of_the_instrumentation_are_no_mistakes_and_others_are_mentioned() -> None:
    config = load(environment={"TOLLSPAN_STREAM_USAGE": "1", "TOLLSPAN_TEST_X": "1", "TOLLSPAN_ZEBRA": "1"})
    assert config.warnings == ["TOLLSPAN_ZEBRA in the environment is no setting of the processor."]


def test_an_exporter_is_not_stopped_by_a_setting_that_only_the_service_knows(tmp_path: Path) -> None:
    file = written(tmp_path, "listen: 127.0.0.1:1\nlog: {level: banana}\nsampling: {keep: 0.3}\n")
    assert load(file, environment={}, sections=RUNTIME).get(Settings).keep == 0.3


def test_no_password_is_in_an_error(tmp_path: Path) -> None:
    file = written(tmp_path, "log: {level: 'clickhouse://u:secret@h/db'}\n")
    assert "secret" not in refusal(file)[0]


# -- showing -----------------------------------------------------------------------------------------------------------


def test_the_printed_configuration_says_the_same_again_and_where_each_value_is_from(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "http: off\njournal: {max_bytes: 3 GiB}\nshutdown: {grace: 90s}\nprices: mine.yaml\nlog: {format: json}\n",
    )
    first = load(file, environment={"TOLLSPAN_KEEP": "0.125"})
    text = first.as_yaml()
    again = load(written(tmp_path, text, "again.yaml"), environment={})
    assert again.changes(first) == []
    assert service_config(again) == service_config(first)
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert {
        "max_bytes: 3 GiB # tollspan.yaml:2",
        "keep: 0.125 # TOLLSPAN_KEEP",
        "grace: 90s # tollspan.yaml:3",
        "http: off # tollspan.yaml:1",
        "sql: 127.0.0.1:8123 # default",
    } <= lines


@pytest.mark.parametrize("password", ["simple", "p:a@ss", "with/slash", "p@@"])
def test_a_password_is_not_printed(password: str) -> None:
    text = load(environment={"TOLLSPAN_STORE": f"clickhouse://user:{password}@host:8123/db"}).as_yaml()
    assert "store: clickhouse://user:****@host:8123/db " in text
    assert password not in text


def test_urls_without_a_password_are_printed_as_they_are() -> None:
    for url in (
        "chdb:///var/lib/x",
        "clickhouse://host:8123/db",
        "clickhouse://user@host:8123/db",
        "http://[::1]:4318",
    ):
        assert masked(url) == url


def test_every_setting_has_help_a_default_and_names_of_its_own() -> None:
    every = settings()
    names = [name for each in every for name in (each.name, *each.aliases)]
    for of in (lambda name: name, variable, flag):
        shown = [of(name) for name in names]
        assert len(set(shown)) == len(shown), "two settings share a name"
    for each in every:
        assert each.help, f"{each.name} has no line under Attributes: in {each.section.where}"


def test_every_section_can_be_loaded_alone_and_named_live_settings_exist() -> None:
    for section in SECTIONS:
        own = {each.name for each in settings([section.name])}
        assert section.live <= own, f"{section.live - own} is no setting"
        assert set(section.aliases) <= own
        assert dataclasses.is_dataclass(section.load())
        load(environment={}, sections=[section.name])


# -- values ------------------------------------------------------------------------------------------------------------


class Colour(StrEnum):
    red = "red"


@dataclass(frozen=True)
class Endpoint:
    """Where to.

    Attributes:
        url: address.
        headers: sent along.
        timeout_s: how long.
    """

    url: str
    headers: Annotated[dict[str, str], Secret()] = field(default_factory=dict)
    timeout_s: float = 10.0


@pytest.mark.parametrize(
    ("hint", "name", "text", "value"),
    [
        (int, "max_bytes", "8 GiB", 8 * GIB),
        (int, "max_bytes", "8gib", 8 * GIB),
        (int, "max_bytes", "1.5 GiB", 3 * GIB // 2),
        (int, "max_bytes", "500 kB", 500_000),
        (int, "max_bytes", "64M", 64 * MIB),
        (int, "max_bytes", "64Mi", 64 * MIB),
        (int, "max_bytes", "1_048_576", MIB),
        (float, "wait_s", "30s", 30.0),
        (float, "wait_s", "250ms", 0.25),
        (float, "wait_s", "1.5m", 90.0),
        (float, "wait_s", "2", 2.0),
        (float, "wait_s", "7d", 604800.0),
        (int, "threads", "64", 64),
        (float, "rate_per_s", "2.5", 2.5),
        (float | None, "wait_s", "off", None),
        (str | None, "http", "None", None),
        (bool, "x", "ON", True),
        (Colour, "x", "Red", Colour.red),
        (Literal["a", "b"], "x", "b", "b"),
        (tuple[str, ...], "x", "a, b", ("a", "b")),
        (tuple[str, ...], "x", "[a, b]", ("a", "b")),
        (tuple[str, ...], "x", "a", ("a",)),
        (dict[str, str], "x", "a=1,b=x=y", {"a": "1", "b": "x=y"}),
        (dict[str, str], "x", "{a: off}", {"a": "off"}),
        (tuple[Endpoint, ...], "x", "[{url: h:1, timeout: 5s}]", (Endpoint("h:1", timeout_s=5.0),)),
        (tuple[Endpoint, ...], "x", "{url: h:1}", (Endpoint("h:1"),)),
    ],
)
def test_what_a_person_writes_becomes_a_value(hint: Any, name: str, text: str, value: object) -> None:
    assert read(hint, name, Given(text, "here")) == value


@pytest.mark.parametrize(
    ("hint", "name", "text", "said"),
    [
        (int, "max_bytes", "8 parsecs", "a size"),
        (int, "max_bytes", "-1", "a size"),
        (int, "max_bytes", "0.3", "whole number"),
        (float, "wait_s", "5 M", "a duration"),
        (float, "wait_s", "nan", "a duration"),
        (float, "wait_s", "1e400", "a duration"),
        (float, "wait_s", "9" * 400, "too large"),
        (int, "threads", "1.5", "whole number"),
        (int, "threads", "12 MiB", "a whole number"),
        (Annotated[float, Between(0, 1)], "x", "1.1", "from 0 to 1"),
        (dict[str, str], "x", "a", "name=value"),
        (tuple[Endpoint, ...], "x", "[{uri: h:1}]", "[0] has no uri; did you mean url?"),
        (tuple[Endpoint, ...], "x", "[{timeout: 1s}]", "[0] lacks url"),
        (tuple[Endpoint, ...], "x", "[{url: a, timeout: soon}]", "[0] .timeout has to be a duration"),
        (Path, "x", "  ", "a path"),
    ],
)
def test_what_cannot_be_read_is_said(hint: Any, name: str, text: str, said: str) -> None:
    with pytest.raises(Problem) as caught:
        read(hint, name, Given(text, "here"))
    assert said in str(caught.value)


@given(st.integers(0, 1 << 50))
def test_sizes_that_are_shown_are_read_back(size: int) -> None:
    assert read(int, "x_bytes", Given(show_size(size), "")) == size


@given(st.integers(1, 10**9))
def test_durations_that_are_shown_are_read_back(micros: int) -> None:
    seconds = micros / 1e6
    assert read(float, "x_s", Given(show_time(seconds), "")) == pytest.approx(seconds, rel=1e-12)


@given(st.text(max_size=30))
def test_no_text_at_all_is_a_fault(text: str) -> None:
    for hint, name in ((int, "a_bytes"), (float, "a_s"), (bool, "a"), (tuple[str, ...], "a"), (dict[str, str], "a")):
        try:
            read(hint, name, Given(text, "here"))
        except Problem:
            pass


KEYS = st.sampled_from(["journal", "max_bytes", "sampling", "keep", "store", "tls", "cert", "http", "x"])
TREES = st.recursive(
    st.none() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(TREES)
def test_whatever_a_file_holds_is_a_configuration_or_an_error_for_people(tmp_path_factory: Any, tree: object) -> None:
    file = tmp_path_factory.mktemp("c") / "c.yaml"
    file.write_text(yaml.safe_dump(tree))
    try:
        load(file, environment={})
    except ConfigError:
        pass


def test_a_setting_inside_of_a_list_is_named_by_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Forwarding:
        """Sends on.

        Attributes:
            endpoints: where to.
            password: for it.
        """

        endpoints: tuple[Endpoint, ...] = ()
        password: Annotated[str, Secret()] = ""

    Forwarding.__annotations__ = {"endpoints": tuple[Endpoint, ...], "password": Annotated[str, Secret()]}
    monkeypatch.setattr(module, "_Forwarding", Forwarding, raising=False)
    section = Section("forwarding", "tollspan.processor.config:_Forwarding")
    monkeypatch.setattr(module, "SECTIONS", (*SECTIONS, section))
    text = "forwarding:\n  endpoints:\n    - url: a:1\n      headers: {authorization: Bearer xyz}\n    - url: b:1\n"
    config = load(written(tmp_path, text), environment={"TOLLSPAN_FORWARDING_PASSWORD": "hush"})
    made: Any = config._parts[f"{section.where}"]
    assert [each.url for each in made.endpoints] == ["a:1", "b:1"]
    assert made.password == "hush"
    shown = config.as_yaml()
    assert "hush" not in shown
    assert "xyz" not in shown
    bad = written(tmp_path, text + "      timeot: 3\n")
    assert refusal(bad) == ["tollspan.yaml:6: forwarding.endpoints [1] has no timeot; did you mean timeout?"]


def test_help_is_read_from_the_docstring() -> None:
    class Two:
        """Both.

        Attributes:
            a, b: one line
                and another of `it`.
            c: last.

        More.
        """

    assert attribute_docs(Two) == {"a": "one line and another of it", "b": "one line and another of it", "c": "last"}


# -- the command -------------------------------------------------------------------------------------------------------


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["serve", *arguments])


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOLLSPAN_STORE", "TOLLSPAN_KEEP", "TOLLSPAN_PRICES", "TOLLSPAN_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def test_every_setting_is_an_option_of_serve() -> None:
    given: list[str] = []
    for each in settings():
        if each.boolean:
            given.append(f"--no-{each.flag.removeprefix('--')}")
        elif each.default is not None and str(each.shown(each.default)) and not isinstance(each.default, (tuple, dict)):
            given += [each.flag, str(each.shown(each.default))]
    result = invoke(*given, "--print-config")
    assert result.exit_code == 0, result.stderr
    wheres = [line.partition("  # ")[2] for line in result.stdout.splitlines() if "  # " in line]
    assert sum(where.startswith("--") for where in wheres) >= len(given) // 2


def test_print_config_starts_nothing_and_can_be_read(tmp_path: Path) -> None:
    file = written(tmp_path, "sampling: {keep: 0.2}\n")
    result = invoke(
        "--config", str(file), "--store", f"chdb://{tmp_path}/s", "--journal-max-bytes=1GiB", "--print-config"
    )
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["sampling"]["keep"] == 0.2
    assert "max_bytes: 1 GiB" in result.stdout
    assert not (tmp_path / "s").exists()


def test_an_unknown_option_is_wrong_usage_and_the_nearest_is_named() -> None:
    result = invoke("--journal-max-byts", "3", "--decision-wait", "1", "--segment")
    assert result.exit_code == 2
    assert "--journal-max-byts is no option of this command; did you mean --journal-max-bytes?" in result.stderr
    assert "--segment is no option" in result.stderr


@pytest.mark.parametrize("given", [["--journal-max-bytes"], ["--journal-max-bytes", "--keep", "1"]])
def test_an_option_without_its_value_is_wrong_usage(given: list[str]) -> None:
    result = invoke(*given)
    assert (result.exit_code, "--journal-max-bytes lacks its value" in result.stderr) == (2, True)


def test_the_list_of_settings_is_rows() -> None:
    result = invoke("--list-settings", "--format", "csv")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert len(lines) == len(settings()) + 1
    assert any(line.startswith("journal.max_bytes,a size") for line in lines)


def test_a_broken_configuration_is_said_without_a_traceback(tmp_path: Path) -> None:
    result = invoke("--config", str(written(tmp_path, "sampling: {kep: 1}\n")))
    assert result.exit_code == 2
    assert result.stderr == "error: tollspan.yaml:1: sampling.kep is no setting; did you mean sampling.keep?\n"


def test_the_document_of_settings_is_what_the_code_says() -> None:
    """Written anew by TOLLSPAN_WRITE_DOCS=1."""
    path = Path(__file__).parents[2] / "deploy" / "SETTINGS.md"
    said = (
        "# Settings\n\n"
        "In YAML as written here, nested or with dots; in the environment `journal.max_bytes` is\n"
        "`TOLLSPAN_JOURNAL_MAX_BYTES`, on the command line `--journal-max-bytes`. Those with *SIGHUP* change\n"
        "without a restart. Made by `tests/processor/test_config.py` with `TOLLSPAN_WRITE_DOCS=1`.\n\n"
        "| setting | takes | default | | what |\n|--|--|--|--|--|\n"
        + "".join(
            f"| `{row['setting']}` | {str(row['takes']).replace('|', '/')} | `{row['default']}` |"
            f" {'*SIGHUP*' if row['changes by'] == 'SIGHUP' else ''} | {row['what']} |\n"
            for row in listed()
        )
    )
    if os.environ.get("TOLLSPAN_WRITE_DOCS"):
        path.write_text(said)
    assert path.read_text() == said


def test_the_other_commands_take_store_and_book_from_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book.yaml").write_text(
        "price_book: {id: house, version: 1, currency: USD}\nprices:\n"
        "  - {id: h, provider: openai, sku: house-8b, meter: tokens.output, amount: '2', per: 1000000}\n"
    )
    file = written(
        tmp_path, f"store: chdb://{tmp_path}/none\nprices: book.yaml\njournal: {{directory: {tmp_path}/j}}\n"
    )
    monkeypatch.setenv("TOLLSPAN_CONFIG", str(file))
    price = ["price", "--provider", "openai", "--model", "house-8b", "--usage", "tokens.output=500", "--format", "json"]
    result = CliRunner().invoke(app, price)
    assert (result.exit_code, "0.001" in result.stdout) == (0, True), result.output
    for command in (["query", "total"], ["journal", "inspect"]):
        said = CliRunner().invoke(app, command)
        assert str(tmp_path) in str(said.exception) + said.output, "it looked where the file says"
    # What is said more closely goes before it.
    monkeypatch.setenv("TOLLSPAN_STORE", f"chdb://{tmp_path}/other")
    assert f"{tmp_path}/other" in str(CliRunner().invoke(app, ["query", "total"]).exception)
    file.write_text("stor: x\nprices: [1]\n")
    assert "tollspan.yaml:2" in str(CliRunner().invoke(app, price).exception)


def test_changes_between_two_configurations(tmp_path: Path) -> None:
    first: Config = load(environment={})
    second = load(environment={"TOLLSPAN_KEEP": "0.9", "TOLLSPAN_LISTEN": "127.0.0.1:1"})
    assert [(each.name, each.live) for each, *_ in first.changes(second)] == [
        ("listen", False),
        ("sampling.keep", True),
    ]
    first.take(second, {"sampling.keep"})
    assert [each.name for each, *_ in first.changes(second)] == ["listen"]
