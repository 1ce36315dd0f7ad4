"""Spans that other libraries really send are billed once, for what they tell, with no change to anybody's program.

The fixtures in ``dialects/`` are spans of the libraries themselves, called against a local server that speaks the
providers' wire and reports known usage; or, where a library could not be run, spans written from its sources.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tollspan.processor.decode import decode, fused
from tollspan.processor.dialects import MODEL_OBJECTS, NO_MODEL_CALLS, NO_PROVIDERS, OPERATION_KINDS, OPERATION_NAMES
from tollspan.processor.normalize import normalize
from tollspan.processor.providers import MODELS, canonical, seller
from tollspan.processor.store import open_store
from tollspan.processor.usage_dialects import COUNTING, USAGE, Counting, Usage

from .dialect_bill import Bill, bills, cases, request
from .otlp_factory import START

CASES = cases()


@pytest.fixture(scope="module")
def billed(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bill]:
    """Every case's bill, each call's spans together."""
    with open_store(f"chdb://{store_directory}?database=dialects") as store:
        store.migrate()
        return bills(CASES, store, tmp_path_factory.mktemp("dialects"))


@pytest.fixture(scope="module")
def late(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bill]:
    """Every case's bill where each span comes in a batch of its own, parents first."""
    with open_store(f"chdb://{store_directory}?database=dialects_late") as store:
        store.migrate()
        return bills(CASES, store, tmp_path_factory.mktemp("dialects_late"), apart=True)


@pytest.mark.parametrize("case", CASES)
def test_a_library_s_spans_are_billed_as_the_fixture_says(case: str, billed: dict[str, Bill]) -> None:
    bill, said = billed[case], CASES[case]["billed"]
    assert dict(bill.tokens) == said["tokens"]
    assert bill.cost == (None if said["cost"] is None else Decimal(said["cost"]))
    assert [
        {
            "provider": row["provider"],
            "model": row["model"] or row["request_model"],
            "operation": row["operation"],
            "status": row["cost_status"],
            "reasons": row["cost_reasons"],
            "convention": row["convention"],
        }
        for row in bill.rows
    ] == said["rows"]


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if not case["lost"]])
def test_a_library_that_tells_all_is_billed_for_what_was_used(case: str, billed: dict[str, Bill]) -> None:
    assert dict(billed[case].tokens) == CASES[case]["used"]


TOO_MANY = {
    "openllmetry.anthropic-stream": 1,  # traceloop/openllmetry#4377
}
"""Cases in which the library itself tells more tokens than were used."""


@pytest.mark.parametrize("case", CASES)
def test_no_call_is_billed_twice(case: str, billed: dict[str, Bill]) -> None:
    assert billed[case].tokens.total() <= sum(CASES[case]["used"].values()) + TOO_MANY.get(case, 0)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if len(case["spans"]) > 1])
def test_parents_that_come_in_batches_before_their_children_are_corrected(
    case: str, billed: dict[str, Bill], late: dict[str, Bill]
) -> None:
    assert (late[case].tokens, late[case].cost) == (billed[case].tokens, billed[case].cost)


# -- the tables --------------------------------------------------------------------------------------------------------


def normalized(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    return normalize(decode([request(0, case["spans"])]), received_ns=START + 10**10).table.to_pylist()


def read() -> dict[str, list[Any]]:
    """What is read in all fixtures, in one batch."""
    payloads = [request(number, case["spans"]) for number, case in enumerate(CASES.values())]
    made = normalize(decode(payloads), received_ns=START + 10**10)
    table = {column: made.table[column].to_pylist() for column in ("invalid", "convention")}
    return table | {meter: column.to_pylist() for meter, column in made.quantities.items()}


def test_what_a_span_says_does_not_depend_on_its_neighbours() -> None:
    together = read()
    alone: dict[str, list[Any]] = {name: [] for name in together}
    for case in CASES.values():
        made = normalize(decode([request(0, case["spans"])]), received_ns=START + 10**10)
        for name in together:
            column = made.table[name] if name in made.table.column_names else made.quantities.get(name)
            alone[name].extend([None] * len(case["spans"]) if column is None else column.to_pylist())
    assert alone == together


@pytest.mark.parametrize("usage", USAGE, ids=lambda usage: usage.name)
def test_every_dialect_has_a_fixture_that_needs_it(usage: Usage, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read()
    monkeypatch.setattr(
        "tollspan.processor.usage_counts.USAGE", tuple(other for other in USAGE if other.name != usage.name)
    )
    assert read() != before


@pytest.mark.parametrize("rule", COUNTING, ids=lambda rule: f"{rule.scope}-{rule.convention}")
def test_every_exception_of_a_dialect_has_a_fixture_that_needs_it(
    rule: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read()
    monkeypatch.setattr("tollspan.processor.usage_counts.COUNTING", tuple(other for other in COUNTING if other != rule))
    assert read() != before
    assert rule.seen, "say what was tried"


def test_every_operation_of_another_dialect_has_a_kind() -> None:
    known = OPERATION_KINDS.keys() | NO_MODEL_CALLS
    assert set(OPERATION_NAMES.values()) <= known
    assert not OPERATION_NAMES.keys() & known, "a canonical name is not another name"


# -- versions ----------------------------------------------------------------------------------------------------------

EXCLUSIVE = {
    "gen_ai.provider.name": "anthropic",
    "gen_ai.usage.input_tokens": 100,
    "gen_ai.usage.cache_read.input_tokens": 60,
    "gen_ai.usage.output_tokens": 10,
}


def convention(scope: str, version: str, attributes: Mapping[str, object] = EXCLUSIVE) -> str:
    spans = [{"name": "chat", "scope": scope, "scope_version": version, "parent": None, "attributes": attributes}]
    (row,) = normalized({"spans": spans})
    return str(row["convention"])


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.1.9", "otel_inclusive"),
        ("1.2", "cache_exclusive"),
        ("1.2.0", "cache_exclusive"),
        ("v1.9.3rc1", "cache_exclusive"),
        ("1.10", "otel_inclusive"),
        ("2.0.0b1", "otel_inclusive"),
        ("", "cache_exclusive"),
        ("unknown", "otel_inclusive"),
    ],
)
def test_an_exception_holds_for_its_versions(version: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Counting(("opentelemetry",), "cache_exclusive", "acme.tracer", since="1.2", before="1.10")
    monkeypatch.setattr("tollspan.processor.usage_counts.COUNTING", (rule,))
    assert convention("acme.tracer", version) == expected


@pytest.mark.parametrize(
    ("scope", "provider", "expected"),
    [
        ("openlit.instrumentation.anthropic", "anthropic", "cache_exclusive"),
        ("openlit.otel.tracing", "Anthropic", "cache_exclusive"),
        ("openlit.instrumentation.openai", "openai", "otel_inclusive"),
        ("openlitter", "anthropic", "otel_inclusive"),
        ("opentelemetry.instrumentation.anthropic", "anthropic", "otel_inclusive"),
    ],
)
def test_scope_and_provider_decide(scope: str, provider: str, expected: str) -> None:
    assert convention(scope, "1", {**EXCLUSIVE, "gen_ai.provider.name": provider}) == expected


def test_calls_of_several_conventions_share_a_batch() -> None:
    def one(scope: str, input_tokens: int) -> dict[str, Any]:
        attributes = {**EXCLUSIVE, "gen_ai.usage.input_tokens": input_tokens}
        return {"name": "chat", "scope": scope, "scope_version": "", "parent": None, "attributes": attributes}

    spans = [one("openlit.otel.tracing", 40), one("app", 100), one("openlit.otel.tracing", 7), one("app", 50)]
    made = normalize(decode([request(0, spans)]), received_ns=START + 10**10)
    assert made.quantities["tokens.input.uncached"].to_pylist() == [40, 40, 7, None]
    assert made.quantities["tokens.input.cache_read"].to_pylist() == [60, 60, 60, None]
    assert made.table["invalid"].to_pylist() == [None, None, None, "usage_inconsistent"]


# -- providers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("openai.chat", "openai"),
        ("openai.responses", "openai"),
        ("anthropic.messages", "anthropic"),
        ("google.generative-ai", "gcp.gemini"),
        ("google.vertex.chat", "gcp.vertex_ai"),
        ("amazon-bedrock", "aws.bedrock"),
        ("azure-openai.responses", "azure.ai.openai"),
        ("mistral.chat", "mistral"),
        ("openai/gpt-4o", "openai"),
        ("aws.bedrock", "aws.bedrock"),
        ("azure.ai.openai", "azure.ai.openai"),
        ("acme", "acme"),
        *((name, None) for name in sorted(NO_PROVIDERS)),
    ],
)
def test_a_provider_has_its_canonical_name(said: str, name: str | None) -> None:
    assert canonical(said) == name


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("claude-sonnet-4-5", "anthropic"),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "aws.bedrock"),
        ("amazon.nova-pro-v1:0", "aws.bedrock"),
        ("arn:aws:bedrock:us-east-1:1:application-inference-profile/x", "aws.bedrock"),
        ("GPT-4o-mini", "openai"),
        ("o3", "openai"),
        ("o3-mini", "openai"),
        ("text-embedding-3-small", "openai"),
        ("gemini-2.5-flash", "gcp.gemini"),
        ("mistral-large-latest", "mistral_ai"),
        ("grok-4", "x_ai"),
        ("gpt-oss-120b", None),
        ("llama-3.3-70b", None),
        ("o365", None),
        ("acme/tiny-llama", None),
        ("", None),
    ],
)
def test_a_model_s_name_tells_who_sells_it_where_only_its_maker_does(model: str, provider: str | None) -> None:
    assert seller(model) == provider
    assert len({pattern for pattern, _ in MODELS}) == len(MODELS)


def test_a_framework_is_no_provider_and_the_next_attribute_is_asked() -> None:
    values = {"gen_ai.provider.name": "langchain", "llm.provider": "azure", "gen_ai.usage.input_tokens": 1}
    spans = [{"name": "x", "scope": "app", "scope_version": "", "parent": None, "attributes": values}]
    (row,) = normalized({"spans": spans})
    assert (row["provider"], row["provider_assumed"]) == ("azure", False)


# -- numbers inside of objects -----------------------------------------------------------------------------------------

LANGFUSE = "langfuse.observation.usage_details"


def inside(value: object, key: str = LANGFUSE, scope: str = "langfuse-sdk", **more: object) -> dict[str, Any]:
    spans = [{"name": "x", "scope": scope, "scope_version": "", "parent": None, "attributes": {key: value, **more}}]
    made = normalize(decode([request(0, spans)]), received_ns=START + 10**10)
    found = {meter: column[0].as_py() for meter, column in made.quantities.items()}
    return found | {"invalid": made.table["invalid"].to_pylist()[0]}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"input": 5, "output": 7}', (5, 7, None)),
        ('{"input":5,"output":"7"}', (5, 7, None)),
        ('{ "output" : 7.0 ,\n "input" : 5 }', (5, 7, None)),
        ('{"input": 5}', (5, None, None)),
        ('{"input": null, "output": 7}', (None, 7, None)),
        ('{"input": -5, "output": 7}', (None, None, "usage_negative")),
        ('{"input": 5.5}', (None, None, "usage_fractional")),
        ('{"input": 1e99}', (None, None, "usage_not_a_number")),
        ('{"input": 99999999999999999}', (None, None, "usage_too_large")),
        ('{"note": "\\"input\\": 900"}', (None, None, None)),
        ('{"inputs": 5}', (None, None, None)),
        ("[]", (None, None, None)),
        ("", (None, None, None)),
        ("{" * 100_000, (None, None, None)),
        (5, (None, None, None)),
        ('{"input": 5, "x": "' + "x" * 300_000 + '"}', (None, None, None)),
    ],
)
def test_counts_in_an_object(written: object, read: tuple[int | None, int | None, str | None]) -> None:
    made = inside(written)
    assert (made.get("tokens.input.uncached"), made.get("tokens.output"), made["invalid"]) == read


def test_only_logfire_s_scopes_speak_by_an_answer_s_object() -> None:
    answer = '{"message": {}, "usage": {"prompt_tokens": 5, "completion_tokens": 7}}'
    assert inside(answer, "response_data", "logfire.openai")["tokens.output"] == 7
    assert "tokens.output" not in inside(answer, "response_data", "my.http.client")


@pytest.mark.parametrize(
    ("changed", "deferred"),
    [
        ({}, True),
        ({"gen_ai.response.id": "x"}, None),
        ({"response_data": "{}"}, None),
        ({"logfire.span_type": "log"}, None),
        ({"gen_ai.operation.name": "embeddings"}, None),
        ({"gen_ai.usage.input_tokens": 5}, None),
    ],
)
def test_a_streamed_call_of_logfire_is_billed_on_its_log(changed: dict[str, object], deferred: bool | None) -> None:
    values = {"gen_ai.operation.name": "chat", "logfire.span_type": "span", **changed}
    for scope in ("logfire.openai", "my.tracer"):
        spans = [{"name": "x", "scope": scope, "scope_version": "5", "parent": None, "attributes": values}]
        (row,) = normalized({"spans": spans})
        assert row["deferred"] is (deferred if scope == "logfire.openai" else None)


def test_a_total_above_its_parts_is_a_lower_bound() -> None:
    values = {"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5}
    for total, incomplete in ((15, False), (16, True), (14, False)):
        attributes = {**values, "gen_ai.usage.total_tokens": total}
        spans = [{"name": "x", "scope": "app", "scope_version": "", "parent": None, "attributes": attributes}]
        (row,) = normalized({"spans": spans})
        assert row["incomplete"] is incomplete


# -- the fixtures ------------------------------------------------------------------------------------------------------


def test_fixtures_are_complete() -> None:
    scopes = Counter(span["scope"] for case in CASES.values() for span in case["spans"])
    assert len(scopes) > 30
    for case in CASES.values():
        assert case["made"] in ("run", "sources")
        assert case["made"] == "run" or case["source"]
        assert case["libraries"]
        assert case["date"]
        parents = [span["parent"] for span in case["spans"]]
        assert all(parent is None or 0 <= parent < len(parents) for parent in parents)
    names = [case["case"] for case in CASES.values()]
    assert all(a != b for a, b in itertools.pairwise(sorted(names)))


@pytest.mark.parametrize("by_shape", [True, False])
def test_columns_do_not_depend_on_who_decodes(by_shape: bool) -> None:
    """Spans of all libraries in one batch, twice, by the kernels and without; texts by shape where they can be."""
    spans = [case["spans"] for case in CASES.values()]
    if by_shape:
        spans = [some for some in spans if not any(each["attributes"].keys() & {*MODEL_OBJECTS} for each in some)]
    payloads = [request(number, some) for number, some in enumerate(spans + spans)]
    fused.prepare(wait=True)
    found = normalize(decode(payloads), received_ns=START)
    with patch.object(fused, "_walk", None):
        other = normalize(decode(payloads), received_ns=START)
    assert found.shapes is not None
    assert (found.shapes.of is not None) == by_shape
    assert len(found) > (len(found.shapes.rows) if by_shape else 0)
    assert found.table.to_pylist() == other.table.select(found.table.column_names).to_pylist()
    assert {meter: values.to_pylist() for meter, values in found.quantities.items()} == {
        meter: values.to_pylist() for meter, values in other.quantities.items()
    }
