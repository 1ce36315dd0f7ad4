"""The schema that editors read says what the reader of books says.

Whether it does for whole books is asked of ``jsonschema``, which only the tests need; where it is not installed, the
lists of both are still compared.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tollspan.pricing import BookError, yamlbook, yamlrows, yamlterms
from tollspan.pricing.meters import METERS
from tollspan.pricing.money import units_of
from tollspan.pricing.selectors import WHEN_KEYS
from tollspan.pricing.yamlbook import parse_layer

from .test_yamlbook import BAD, SENSE, SHAPE, documented

SCHEMA: Final = json.loads(files("tollspan.pricing").joinpath("book.schema.json").read_text())
DEFINITIONS: Final = SCHEMA["$defs"]
SHIPPED: Final = sorted(Path(yamlbook.__file__).parent.glob("*.yaml"))


class Yaml12(yaml.SafeLoader):
    """As an editor reads YAML: what looks like a date is a string."""


Yaml12.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@cache
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    return jsonschema.Draft202012Validator(SCHEMA)


def faults(text: str) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator().iter_errors(yaml.load(text, Loader=Yaml12))]


@pytest.mark.parametrize(
    ("definition", "fields"),
    [
        (SCHEMA, yamlbook.BOOK_FIELDS),
        (DEFINITIONS["header"], yamlbook.HEADER_FIELDS),
        (DEFINITIONS["alias"], yamlbook.ALIAS_FIELDS),
        (DEFINITIONS["price"], yamlrows.ROW_FIELDS),
        (DEFINITIONS["window"], yamlrows.WINDOW_FIELDS),
        (DEFINITIONS["tiers"], yamlrows.TIERS_FIELDS),
        (DEFINITIONS["step"], yamlrows.STEP_FIELDS),
        (DEFINITIONS["source"], yamlrows.SOURCE_FIELDS),
        (DEFINITIONS["when"], WHEN_KEYS),
        (DEFINITIONS["factor_entry"], yamlterms.FACTOR_FIELDS),
        (DEFINITIONS["adjustment"], yamlterms.ADJUSTMENT_FIELDS),
        (DEFINITIONS["match"], yamlterms.MATCH_FIELDS),
        (DEFINITIONS["volume"], yamlterms.VOLUME_FIELDS),
        (DEFINITIONS["volume"]["properties"]["steps"]["items"], yamlterms.VOLUME_STEP_FIELDS),
        (DEFINITIONS["exchange_rate"], yamlterms.RATE_FIELDS),
    ],
)
def test_every_field_of_the_reader_is_one_of_the_schema_and_no_other(
    definition: dict[str, Any], fields: tuple[str, ...]
) -> None:
    assert sorted(definition["properties"]) == sorted(fields)
    assert definition["additionalProperties"] is False


def choices(definition: dict[str, Any]) -> list[str]:
    return [choice for choice in definition["enum"] if choice is not None]


def test_lists_of_the_schema_are_the_code_s() -> None:
    price, tiers, volume = (DEFINITIONS[name]["properties"] for name in ("price", "tiers", "volume"))
    assert choices(DEFINITIONS["meter"]) == list(METERS)
    assert choices(DEFINITIONS["unit"]) == sorted({unit for meter in METERS for unit in units_of(meter)})
    assert choices(price["kind"]) == list(yamlrows.KINDS)
    assert choices(price["status"]) == list(yamlrows.STATUSES)
    assert dict(zip(choices(tiers["mode"]), choices(tiers["basis"]), strict=True)) == yamlrows.MODES
    assert choices(volume["basis"]) == list(yamlterms.BASES)
    assert choices(volume["mode"]) == list(yamlterms.VOLUME_MODES)


def test_every_definition_is_used_and_every_field_is_explained() -> None:
    text = json.dumps(SCHEMA)
    assert [name for name in DEFINITIONS if f'"#/$defs/{name}"' not in text] == []
    for name in ("price", "alias", "header", "source", "match", "volume"):
        for field, definition in DEFINITIONS[name]["properties"].items():
            reference = definition.get("$ref") or next(
                (one["$ref"] for one in definition.get("anyOf", ()) if "$ref" in one), ""
            )
            referred = DEFINITIONS.get(reference.removeprefix("#/$defs/"), {})
            assert definition.get("description") or referred.get("description"), f"{name}.{field}"


def test_the_schema_is_one() -> None:
    validator().check_schema(SCHEMA)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_books_that_ship_and_load_are_valid(file: Path) -> None:
    content = file.read_text()
    try:
        parse_layer(content.encode(), file.name)
    except BookError:
        pytest.skip("not a price book")
    assert faults(content) == []


def test_the_book_in_the_documentation_is_valid() -> None:
    assert faults(documented()) == []


@pytest.mark.parametrize(("text", "wrong"), [(text, wrong) for text, _, wrong in BAD if wrong in (SHAPE, SENSE)])
def test_what_the_reader_refuses_for_its_shape_the_schema_refuses_too(text: str, wrong: str) -> None:
    assert bool(faults(text)) == (wrong == SHAPE)


GOOD: Final = [
    "prices: [{meter: tokens.output, amount: 0}]",
    "prices: [{meter: tokens.output, amount: '.5', per: '1_000', tiers: null, minimum: null, effective: null}]",
    "prices: [{meter: tokens.output, amount: 1e-6, effective: [null, 2026-01-01T00:00+01:00]}]",
    "prices: [{meter: tokens.output, amount: 1, effective: ['2026-01-01 00:00:00.5Z', null]}]",
    "prices: [{meter: tokens.output, kind: included, amount: 0}]",
    "prices: [{meter: tokens.output, kind: included, amount: null}]",
    "prices: [{meter: tokens.output, amount: 1, windows: [{tz: null, days: null, hours: ['9:00-24:00']}]}]",
    "prices: [{meter: tokens.output, amount: 1, tiers: {basis: quantity, steps: [{above: 1, amount: 1}]}}]",
    "prices: [{meter: tokens.output, amount: 1, when: {region: '*', purchase: null, device: [a, 3]}}]",
    "prices: [{meter: tokens.output, amount: 1, provider: null, sku: 4, id: 7, currency: USD}]",
    "price_book: {id: 1, version: 2.5, known_at: 2026-01-01}\naliases: [{ref: 4, sku: p/4, share: 0.5, to: null}]",
    "prices: null\ncalendars: null\nfactors: [{percent: '+1.5'}]",
    "calendars: {a: [2026-01-01]}\nadjustments: [{factor: 0, when: {region: [a, b]}}]",
    "adjustments: [{volume: {basis: quantity, mode: cliff, steps: [{above: 1, factor: 1}]}, "
    "match: {meter: 'tokens.*'}, unit: token}]",
]


@pytest.mark.parametrize("text", GOOD)
def test_what_the_reader_takes_the_schema_takes_too(text: str) -> None:
    parse_layer(text.encode(), "book.yaml")
    assert faults(text) == []
