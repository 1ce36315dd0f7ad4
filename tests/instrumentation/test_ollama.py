"""The ollama client, instrumented: every kind of call, and the module's functions wherever a program has them from."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tollspan.instrumentation.ollama import OPERATIONS, OllamaInstrumentor
from tollspan.pricing import PriceEngine, load_book
from tollspan.pricing import attributes as names

from . import openai_bill
from .openai_bill import bill, ledger
from .small_stubs import HELLO, NDJSON, OLLAMA_LAST, SmallStub, lines, ollama_async, ollama_client, ollama_part

ollama = pytest.importorskip("ollama")
from ollama import chat as taken_before  # noqa: E402

MODEL = "llama3.2"
TEXT: dict[str, Any] = {"tokens.input.uncached": 1000, "tokens.output": 100}


@pytest.fixture
def stub() -> Iterator[SmallStub]:
    made = SmallStub()
    yield made
    made.close()


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    OllamaInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    OllamaInstrumentor().uninstrument()


GENERATED = {"model": MODEL, "created_at": "2026-11-21T10:00:00Z", "response": "Hello.", "done": True, **OLLAMA_LAST}
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, dict[str, Any]]] = {
    "chat": ("chat", {"messages": HELLO}, ollama_part("Hello.", True, **OLLAMA_LAST), "chat", TEXT),
    "generate": ("generate", {"prompt": "hello"}, GENERATED, "text_completion", TEXT),
    "embed": (
        "embed",
        {"input": ["a"]},
        {"model": MODEL, "embeddings": [[0.1]], "total_duration": 1, "prompt_eval_count": 1000},
        "embeddings",
        {"tokens.input.uncached": 1000},
    ),
    "embeddings": ("embeddings", {"prompt": "a"}, {"embedding": [0.1]}, "embeddings", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_call(spans: Any, stub: SmallStub, kind: str) -> None:
    method, asked, body, operation, meters = KINDS[kind]
    getattr(ollama_client(stub.json(body).url), method)(model=MODEL, **asked)
    assert spans.attributes()[names.OPERATION_NAME] == operation
    (row,) = ledger(spans.spans())
    assert (row["meters"], row["provider"]) == (meters, "ollama")


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_call_async(spans: Any, stub: SmallStub, kind: str) -> None:
    method, asked, body, operation, meters = KINDS[kind]
    await getattr(ollama_async(stub.json(body).url), method)(model=MODEL, **asked)
    assert spans.attributes()[names.OPERATION_NAME] == operation
    (row,) = ledger(spans.spans())
    assert row["meters"] == meters


def test_a_generated_stream(spans: Any, stub: SmallStub) -> None:
    parts = [{"model": MODEL, "response": "Hel", "done": False}, GENERATED]
    assert len(list(ollama_client(stub.stream(lines(parts), NDJSON).url).generate(MODEL, "hello", stream=True))) == 2
    (row,) = ledger(spans.spans())
    assert row["meters"] == TEXT


def test_what_is_no_model_call_has_no_span(spans: Any, stub: SmallStub) -> None:
    client = ollama_client(stub.json({"models": []}).url)
    client.copy("a", "b")
    assert spans.spans() == []


def test_every_operation_is_a_path_of_the_client(stub: SmallStub, telemetry: Any) -> None:
    paths = set()

    class Recording(ollama.Client):  # type: ignore[misc, name-defined]
        def _request(self, kind: Any, method: str, path: str, **_: Any) -> Any:
            paths.add(path)
            raise KeyError

    client = Recording(stub.url)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("chat", {"messages": HELLO}),
        ("generate", {}),
        ("embed", {"input": "a"}),
        ("embeddings", {"prompt": "a"}),
        ("systemone", {"state": "a", "questions": {}}),
    ]
    for name, asked in calls:
        if hasattr(client, name):
            with pytest.raises(KeyError):
                getattr(client, name)(model=MODEL, **asked)
    assert paths <= set(OPERATIONS)
    assert len(paths) >= 4


# -- the module's functions --------------------------------------------------------------------------------------------


@pytest.fixture
def module(stub: SmallStub, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, whose own client asks the stub."""
    bound = ollama.chat.__self__
    theirs = ollama_client(stub.url)
    monkeypatch.setattr(bound, "_client", theirs._client)
    return ollama


def test_the_modules_functions_are_seen(spans: Any, stub: SmallStub, module: Any) -> None:
    stub.json(ollama_part("Hello.", True, **OLLAMA_LAST))
    module.chat(model=MODEL, messages=HELLO)
    (row,) = ledger(spans.spans())
    assert row["meters"] == TEXT


def test_a_function_that_was_taken_before_we_came_is_seen(spans: Any, stub: SmallStub, module: Any) -> None:
    stub.stream(lines([ollama_part("Hel"), ollama_part("lo.", True, **OLLAMA_LAST)]), NDJSON)
    assert len(list(taken_before(model=MODEL, messages=HELLO, stream=True))) == 2
    (row,) = ledger(spans.spans())
    assert row["meters"] == TEXT


def test_the_modules_functions_are_never_touched(telemetry: Any) -> None:
    before = (ollama.chat, ollama.generate, ollama.embed, ollama.Client.chat)
    OllamaInstrumentor().instrument(tracer_provider=telemetry.provider)
    during = (ollama.chat, ollama.generate, ollama.embed, ollama.Client.chat)
    OllamaInstrumentor().uninstrument()
    assert all(one is other for one, other in zip(before, during, strict=True))


# -- counts ------------------------------------------------------------------------------------------------------------


def test_a_count_that_the_server_left_out_is_absent(spans: Any, stub: SmallStub) -> None:
    last = {key: value for key, value in OLLAMA_LAST.items() if key != "prompt_eval_count"}
    ollama_client(stub.json(ollama_part("Hello.", True, **last)).url).chat(MODEL, HELLO)
    attributes = spans.attributes()
    assert names.USAGE_INPUT_TOKENS not in attributes
    assert attributes[names.USAGE_OUTPUT_TOKENS] == 100


def test_an_error_in_a_stream_has_no_status(spans: Any, stub: SmallStub) -> None:
    client = ollama_client(stub.stream(lines([ollama_part("Hel"), {"error": "no"}]), NDJSON).url)
    with pytest.raises(ollama.ResponseError):
        list(client.chat(MODEL, HELLO, stream=True))
    attributes = spans.attributes()
    assert attributes[names.ERROR_TYPE].endswith("ResponseError")
    assert names.HTTP_STATUS not in attributes


def test_a_server_that_is_not_there(spans: Any) -> None:
    with pytest.raises((ConnectionError, httpx.ConnectError)):
        ollama_client("http://127.0.0.1:9").chat(MODEL, HELLO)
    assert spans.attributes()[names.ERROR_TYPE] in ("ConnectionError", "httpx.ConnectError")


def test_a_stream_closed_unread_was_not_sent(spans: Any, stub: SmallStub) -> None:
    stream = ollama_client(stub.url).chat(MODEL, HELLO, stream=True)
    stream.close()
    gc.collect()
    assert stub.requests == []
    assert spans.attributes()[names.CALL_SENT] is False


def test_request_parameters(spans: Any, stub: SmallStub) -> None:
    client = ollama_client(stub.json(ollama_part("Hello.", True, **OLLAMA_LAST)).url)
    client.chat(MODEL, HELLO, options={"temperature": 0.5, "top_p": 0.9, "num_predict": 7})
    attributes = spans.attributes()
    assert attributes[names.REQUEST_TEMPERATURE] == 0.5
    assert attributes[names.REQUEST_TOP_P] == 0.9
    assert attributes[names.REQUEST_MAX_TOKENS] == 7


def test_options_given_as_the_clients_own_model(spans: Any, stub: SmallStub) -> None:
    client = ollama_client(stub.json(ollama_part("Hello.", True, **OLLAMA_LAST)).url)
    client.chat(MODEL, HELLO, options=ollama.Options(temperature=0.5))
    assert spans.attributes()[names.REQUEST_TEMPERATURE] == 0.5


# -- what it costs -----------------------------------------------------------------------------------------------------


def test_its_tokens_have_no_list_price(spans: Any, stub: SmallStub) -> None:
    ollama_client(stub.json(ollama_part("Hello.", True, **OLLAMA_LAST)).url).chat(MODEL, HELLO)
    assert bill(spans.spans()) == (TEXT, None, "unpriced")


BOOK = """
price_book: {id: own, version: 1, currency: USD}
prices:
  - {id: in, provider: ollama, sku: llama3.2, meter: tokens.input.uncached, amount: '0.02', per: 1000000}
  - {id: out, provider: ollama, sku: llama3.2, meter: tokens.output, amount: '0.30', per: 1000000}
"""


def test_the_users_book_may_price_them(
    spans: Any, stub: SmallStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "book.yaml"
    path.write_text(BOOK)
    monkeypatch.setattr(openai_bill, "ENGINE", PriceEngine(load_book(path)))
    ollama_client(stub.json(ollama_part("Hello.", True, **OLLAMA_LAST)).url).chat(MODEL, HELLO)
    assert bill(spans.spans()) == (TEXT, Decimal("0.00005"), "priced")
