"""Normalize: what a span says reaches its canonical column, and what it says wrongly is invalid, never zero."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tollspan.pricing import attributes as names
from tollspan.pricing.meters import METERS, NANO
from tollspan.processor.decode import decode
from tollspan.processor.decode.arrow_bytes import LONGEST_NAME
from tollspan.processor.dialects import COSTS, NO_MODEL_CALLS, OLD_PROVIDERS, OPERATION_KINDS, TEXT
from tollspan.processor.normalize import CLOCK_SKEW_NS, REASONS, Normalized, normalize
from tollspan.processor.usage_counts import KEYS as COUNT_KEYS

from .otlp_factory import START, chat_payload, request, resource_spans, span

NOW = START + 3600 * NANO
CHAT = {"gen_ai.operation.name": "chat"}
TOKENS = "gen_ai.usage.input_tokens"
COLUMNS = {
    "trace_id": pa.binary(16),
    "span_id": pa.binary(8),
    "parent_span_id": pa.binary(8),
    "start_ns": pa.int64(),
    "end_ns": pa.int64(),
    "duration_ns": pa.uint64(),
    "http_status": pa.int32(),
    "retries": pa.int32(),
    "cold_start": pa.bool_(),
    "sent": pa.bool_(),
    "deferred": pa.bool_(),
    "batch_size": pa.int64(),
    "billable": pa.bool_(),
    "token_bearing": pa.bool_(),
    "incomplete": pa.bool_(),
    "provider_assumed": pa.bool_(),
    "estimated": pa.bool_(),
    "elsewhere": pa.bool_(),
    "slim": pa.bool_(),
    "reported_cost": pa.decimal128(38, 12),
    **dict.fromkeys(
        (
            *("name", "service", "environment", "region", "tenant", "team", "feature", "workflow", "variant"),
            *("agent", "route", "version"),
            *("provider", "model", "request_model", "operation", "kind", "service_tier", "processing"),
            *(
                "cloud_provider",
                "host_type",
                "device",
                "purchase",
                "residency",
                "span_status",
                "error_type",
                "invalid",
                "convention",
            ),
        ),
        pa.string(),
    ),
}


def normalized(*spans: Any, resource: dict[str, object] | None = None, now: int = NOW) -> Normalized:
    return normalize(decode([request(spans, resource)]), received_ns=now)


def row(values: dict[str, object], resource: dict[str, object] | None = None, **fields: Any) -> dict[str, Any]:
    """Canonical columns of one span, and its quantities under ``quantities``."""
    made = normalized(span(values, **fields), resource=resource)
    (only,) = made.table.to_pylist()
    only["quantities"] = {meter: column[0].as_py() for meter, column in made.quantities.items()}
    return only


# -- shape -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payloads", [[], [request([span()])], [chat_payload(64)]], ids=["empty", "bare span", "chat"])
def test_every_canonical_column_is_there_in_its_type(payloads: list[bytes]) -> None:
    table = normalize(decode(payloads), received_ns=NOW).table
    types = {
        item.name: item.type.value_type if pa.types.is_dictionary(item.type) else item.type for item in table.schema
    }
    assert types == COLUMNS


def test_a_span_that_says_nothing_has_nulls_and_is_not_billable() -> None:
    made = row({})
    silent = COLUMNS.keys() - {
        *("trace_id", "span_id", "parent_span_id", "start_ns", "end_ns", "duration_ns", "name", "kind"),
        *("span_status", "billable", "token_bearing", "incomplete", "provider_assumed"),
    }
    assert {column: made[column] for column in silent} == dict.fromkeys(silent)
    assert (made["kind"], made["span_status"], made["billable"], made["token_bearing"]) == (
        "other",
        "unset",
        False,
        False,
    )
    assert made["quantities"] == {}


def test_rows_stand_in_the_order_of_the_spans() -> None:
    count = 200
    spans = [
        span(
            {
                **({"tollspan.tenant": f"t{n % 7}"} if n % 3 else {}),
                **({"gen_ai.usage.input_tokens": n} if n % 2 else {}),
            },
            number=n,
        )
        for n in range(1, count)
    ]
    made = normalized(*spans)
    assert made.table["tenant"].to_pylist() == [f"t{n % 7}" if n % 3 else None for n in range(1, count)]
    assert made.quantities["tokens.input.uncached"].to_pylist() == [n if n % 2 else None for n in range(1, count)]
    assert made.table["name"].to_pylist() == [f"span {n}" for n in range(1, count)]


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("column", "key"), [(c, key) for c, source in TEXT.items() for key in source.keys])
def test_every_key_of_the_tables_reaches_its_column(column: str, key: str) -> None:
    assert row({key: "some value"})[column] == "some value"


@pytest.mark.parametrize("column", [column for column, source in TEXT.items() if len(source.keys) > 1])
def test_the_preferred_key_wins_whatever_the_order(column: str) -> None:
    keys = TEXT[column].keys
    for values in ({key: f"v{n}" for n, key in enumerate(keys)}, {k: f"v{n}" for n, k in reversed([*enumerate(keys)])}):
        assert row(values)[column] == "v0"


@pytest.mark.parametrize("column", TEXT)
def test_the_resource_speaks_for_a_silent_span_where_the_tables_say_so(column: str) -> None:
    source = TEXT[column]
    key = source.keys[0]
    assert row({}, {key: "from resource"})[column] == ("from resource" if source.resource else None)
    assert row({key: "from span"}, {key: "from resource"})[column] == "from span"
    assert row({key: ""}, {key: "from resource"})[column] == ("from resource" if source.resource else None)


def test_each_span_is_spoken_for_by_its_own_resource() -> None:
    payload = ExportTraceServiceRequest(
        resource_spans=[
            resource_spans([span(number=n)], {"service.name": f"s{n % 4}"} if n % 5 else {}) for n in range(1, 40)
        ]
    ).SerializeToString()
    table = normalize(decode([payload, payload]), received_ns=NOW).table
    assert table["service"].to_pylist() == [f"s{n % 4}" if n % 5 else None for n in range(1, 40)] * 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [(42, "42"), (True, "true"), (1.5, "1.5"), ("", None), (["a"], None), (b"a", None), (None, None)],
)
def test_a_tag_of_another_type_is_taken_as_text_when_it_is_a_scalar(value: object, shown: str | None) -> None:
    assert row({"tollspan.tenant": value})["tenant"] == shown


def test_a_name_of_megabytes_is_cut_visibly() -> None:
    tenant = row({}, {"tollspan.tenant": "é" * 3_000_000})["tenant"]
    assert len(tenant) == LONGEST_NAME
    assert tenant.endswith("é…")


@pytest.mark.parametrize(("old", "new"), OLD_PROVIDERS.items())
def test_older_provider_names_become_current_ones(old: str, new: str) -> None:
    assert row({"gen_ai.system": old})["provider"] == new
    assert row({"gen_ai.system": old.title()})["provider"] == new


def test_a_provider_has_one_spelling_whatever_its_case_and_a_model_stays_as_given() -> None:
    given = ["OpenAI", None, "openai", "OPENAI", "xAI", "x_ai", "Mistral"]
    spans = [
        span({**({"gen_ai.provider.name": name} if name else {}), "gen_ai.request.model": f"Llama-{n}"}, number=n)
        for n, name in enumerate(given, 1)
    ]
    table = normalized(*spans).table
    provider = table["provider"].combine_chunks()
    assert provider.to_pylist() == ["openai", None, "openai", "openai", "x_ai", "x_ai", "mistral"]
    assert sorted(provider.dictionary.to_pylist()) == ["mistral", "openai", "x_ai"]
    assert table["request_model"].to_pylist() == [f"Llama-{n}" for n in range(1, len(given) + 1)]


@pytest.mark.parametrize(
    ("served", "requested", "tier", "processing"),
    [
        ("priority", "flex", "priority", None),
        (None, "flex", "flex", None),
        (None, "auto", None, None),
        ("auto", "flex", "flex", None),
        ("default", "auto", "default", None),
        ("batch", None, None, "batch"),
        (None, None, None, None),
    ],
)
def test_the_service_tier_is_the_served_one(
    served: str | None, requested: str | None, tier: str | None, processing: str | None
) -> None:
    values: dict[str, object] = {
        key: value
        for key, value in (
            (names.OPENAI_RESPONSE_SERVICE_TIER, served),
            (names.OPENAI_REQUEST_SERVICE_TIER, requested),
        )
        if value is not None
    }
    other = span({names.OPENAI_RESPONSE_SERVICE_TIER: "default", names.PROCESSING: "online"}, number=2)
    table = normalized(span(values), other).table
    assert table["service_tier"].to_pylist() == [tier, "default"]
    assert table["processing"].to_pylist() == [processing, "online"]


# -- operations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "kind"),
    [*OPERATION_KINDS.items(), ("invoke_agent", "other"), ("execute_tool", "other"), ("fetch_response", "other")],
)
def test_an_operation_has_its_kind_and_only_model_calls_and_capacity_are_billable_without_usage(
    operation: str, kind: str
) -> None:
    for key in (names.OPERATION_NAME, names.OPERATION):
        made = row({key: operation})
        assert (made["operation"], made["kind"]) == (operation, kind)
        assert made["billable"] is (kind in ("inference", "capacity"))


@pytest.mark.parametrize("operation", [*sorted(NO_MODEL_CALLS), "Invoke_Agent"])
def test_an_agent_span_with_usage_is_billable_and_token_bearing(operation: str) -> None:
    made = row({"gen_ai.operation.name": operation, "gen_ai.usage.input_tokens": 10})
    assert (made["kind"], made["billable"], made["token_bearing"]) == ("other", True, True)


@pytest.mark.parametrize("key", [TOKENS, "gen_ai.usage.completion_tokens", "tollspan.usage.tokens.input.uncached"])
@pytest.mark.parametrize("operation", [None, "converse", "Summarize"])
def test_tokens_without_a_known_operation_are_an_inference(operation: str | None, key: str) -> None:
    values: dict[str, object] = {} if operation is None else {"gen_ai.operation.name": operation}
    assert row({**values, key: 10})["kind"] == "inference"
    assert row({**values, key: -10})["kind"] == "inference"
    assert row({**values, "tollspan.usage.cpu.seconds": 1.0})["kind"] == "other"
    assert row(values)["kind"] == "other"


@pytest.mark.parametrize(("operation", "kind"), [("Chat", "inference"), ("MODEL_LOAD", "model_load")])
def test_operations_are_compared_in_lower_case(operation: str, kind: str) -> None:
    made = row({"gen_ai.operation.name": operation})
    assert (made["kind"], made["operation"]) == (kind, operation)


def test_compute_usage_is_billable_but_bears_no_tokens() -> None:
    made = row({"tollspan.operation": "feature_read", "tollspan.usage.feature.reads": 3})
    assert (made["kind"], made["billable"], made["token_bearing"]) == ("feature_read", True, False)


def test_facts_beside_the_price() -> None:
    made = row(
        {
            "http.response.status_code": 429,
            "tollspan.retries": 2,
            "tollspan.cold_start": True,
            "tollspan.batch.size": 16,
            "error.type": "RateLimitError",
        },
        status=Status(code=Status.STATUS_CODE_ERROR),
    )
    assert [made[c] for c in ("http_status", "retries", "cold_start", "batch_size", "error_type", "span_status")] == [
        *(429, 2, True, 16, "RateLimitError", "error")
    ]
    wrong = row({"tollspan.retries": -1, "http.response.status_code": 2**40, "tollspan.cold_start": "yes"})
    assert [wrong[c] for c in ("retries", "http_status", "cold_start", "invalid")] == [None] * 4


@pytest.mark.parametrize(
    ("key", "value", "purchase"),
    [
        ("tollspan.host.purchase", "reserved_1y", "reserved_1y"),
        ("k8s.node.label.karpenter.sh/capacity-type", "on-demand", "on_demand"),
        ("k8s.node.label.eks.amazonaws.com/capacityType", "SPOT", "spot"),
    ],
)
def test_how_a_machine_is_paid_for_is_told_by_its_resource(key: str, value: str, purchase: str) -> None:
    assert row({}, {key: value})["purchase"] == purchase


def test_a_residency_has_one_case_and_is_the_span_s_before_the_resource_s() -> None:
    assert row({"tollspan.residency": "US"}, {"tollspan.residency": "eu"})["residency"] == "us"


# -- what others say it cost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "cost"),
    [
        ("0.0123", "0.0123"),
        (0.0123, "0.0123"),
        (0.1 + 0.2, "0.3"),  # 0.30000000000000004 at 12 decimals
        (3, "3"),
        ("0", "0"),
        (0.0, "0"),
        ("1.5e-7", "0.00000015"),
        (1.5e-7, "0.00000015"),
        (1e-300, "0"),
        (5e-324, "0"),
        # A tie goes to the even digit, as written and not as a double would have it.
        ("0.0000000000005", "0"),
        ("0.0000000000015", "0.000000000002"),
        (2.5e-12, "0.000000000002"),
        ("0.00000000000250000000000000000001", "0.000000000003"),
        ("99999999999999.999999999999", "99999999999999.999999999999"),
        ("1" + "0" * 15, None),
        (1e15, None),
        (1e300, None),
        (2**63 - 1, None),
        ("-0.01", None),
        (-0.01, None),
        (float("nan"), None),
        (float("inf"), None),
        ("nan", None),
        ("much", None),
        ("$0.01", None),
        ("1e-99999", None),
        ("", None),
        (True, None),
        ([0.01], None),
        (b"0.01", None),
        (None, None),
        ('{"input": 0.001, "total": 0.0035}', "0.0035"),
        ('{"total": 1e-05}', "0.00001"),
        ('{"total_cost": 2}', None),
        ('{"total": null}', None),
        ('{"total": ', None),
    ],
)
def test_a_reported_cost_is_kept_as_written_and_what_is_none_is_null(value: object, cost: str | None) -> None:
    made = normalized(span({names.COST_REPORTED: value}, number=1), span({names.COST_REPORTED: "0.5"}, number=2))
    assert made.table["reported_cost"].to_pylist() == [None if cost is None else Decimal(cost), Decimal("0.5")]
    assert made.table["invalid"].to_pylist() == [None, None]
    assert made.table["billable"].to_pylist() == [False, False], "what somebody says it cost is no usage"


@pytest.mark.parametrize(
    "key",
    [
        *("tollspan.cost.reported", "gen_ai.usage.cost", "llm.cost.total", "operation.cost"),
        "langfuse.observation.cost_details",
    ],
)
def test_a_reported_cost_is_read_from_every_key_and_the_provider_s_own_word_wins(key: str) -> None:
    assert row({key: "0.25"})["reported_cost"] == Decimal("0.25")
    expected = Decimal("0.25") if key == COSTS[0] else Decimal("0.75")
    assert row({key: "0.25", COSTS[0]: "0.75" if key != COSTS[0] else "0.25"})["reported_cost"] == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats() | st.text(max_size=20) | st.decimals(min_value=0, max_value=10**14).map(str), max_size=20))
def test_every_reported_cost_is_what_decimal_makes_of_it(values: list[object]) -> None:
    made = normalized(*(span({names.COST_REPORTED: value}, number=n) for n, value in enumerate(values, 1)))
    for value, got in zip(values, made.table["reported_cost"].to_pylist(), strict=True):
        if isinstance(value, float) and 0 < value < 1e15:
            with localcontext(prec=60):
                assert got == Decimal(repr(value)).quantize(Decimal("1e-12"), ROUND_HALF_EVEN)
        elif got is not None:
            with localcontext(prec=60):
                assert got == Decimal(str(value)).quantize(Decimal("1e-12"), ROUND_HALF_EVEN)


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (START, START + 5, None),
        (START, START, None),
        (0, START, "time"),
        (0, 0, "time"),
        (START, 0, "time"),
        (START + 1, START, "time"),
        (2**63, 2**63 + 1, "time"),
        (2**64 - 1, 2**64 - 1, "time"),
        (START, 2**63, "time"),
        (NOW + CLOCK_SKEW_NS, NOW + CLOCK_SKEW_NS, None),
        (NOW + CLOCK_SKEW_NS + 1, NOW + CLOCK_SKEW_NS + 1, "time"),
    ],
)
def test_impossible_times_are_invalid_and_stored_within_range(start: int, end: int, reason: str | None) -> None:
    made = row({}, start_time_unix_nano=start, end_time_unix_nano=end)
    assert made["invalid"] == reason
    assert made["start_ns"] == (start if start < 2**63 else 0)
    assert made["end_ns"] == (end if end < 2**63 else 0)
    assert made["duration_ns"] == max(end - start, 0)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63))
@settings(max_examples=50, deadline=None)
def test_no_time_raises(start: int, end: int, now: int) -> None:
    made = normalized(span(start_time_unix_nano=start, end_time_unix_nano=end), now=now)
    assert made.table["duration_ns"].to_pylist() == [max(end - start, 0)]


# -- hostile -----------------------------------------------------------------------------------------------------------

anything = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary()
known_keys = sorted(
    {key for source in TEXT.values() for key in source.keys}
    | COUNT_KEYS
    | {names.usage(meter) for meter in METERS}
    | set(COSTS)
    | {names.RETRIES, names.COLD_START, names.BATCH_SIZE, names.HTTP_STATUS}
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(known_keys), anything | st.lists(anything, max_size=2), max_size=8))
def test_no_value_of_any_type_raises_or_disturbs_its_neighbour(values: dict[str, object]) -> None:
    good = span({**CHAT, TOKENS: 12, "tollspan.tenant": "acme"}, number=2)
    made = normalized(span(values, number=1), good)
    assert made.table["invalid"].to_pylist()[0] in REASONS
    assert made.table.to_pylist()[1] == normalized(good).table.to_pylist()[0]
    assert made.quantities["tokens.input.uncached"][1].as_py() == 12
    for column in made.quantities.values():
        steps = [value for value in column.to_pylist() if value is not None]
        assert min(steps) >= 0


def test_a_hundred_thousand_keys_are_looked_up_not_walked() -> None:
    many: dict[str, object] = {f"tollspan.usage.meter{n}": n for n in range(50_000)}
    many |= {f"key{n}": n for n in range(50_000)}
    made = row({**CHAT, **many, TOKENS: 4})
    assert made["invalid"] == "usage_unknown_meter"
    assert made["quantities"] == {"tokens.input.uncached": 4}
