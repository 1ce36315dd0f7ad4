"""Who bills: by address, by the user's word, for every client."""

from __future__ import annotations

import contextlib
import logging
import socket
from decimal import Decimal
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from tollspan.instrumentation import providers
from tollspan.instrumentation.providers import HOSTS, OLD_VARIABLE, VARIABLE, address_attributes, provider_of
from tollspan.pricing import PriceEngine, load_book
from tollspan.pricing.attributes import PROVIDER_NAME, SERVER_ADDRESS, SERVER_PORT
from tollspan.pricing.usage_objects import read_usage

from . import openai_bill
from .every_client import CLIENTS, Client, Make
from .stub_server import StubServer


@pytest.fixture(autouse=True)
def rows() -> None:
    """What was read of the variables in another test is not this one's."""
    providers._rows.cache_clear()


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_every_row_of_the_table_is_found_with_and_without_a_label_before_it(host: str) -> None:
    assert provider_of(host) == provider_of(f"eu.{host}") == HOSTS[host]


@pytest.mark.parametrize(
    ("own", "url", "provider"),
    [
        ("anthropic", "https://api.z.ai/api/anthropic", "zai"),
        ("anthropic", "https://api.moonshot.ai/anthropic", "moonshot_ai"),
        ("anthropic", "https://aiplatform.googleapis.com/v1", "gcp.vertex_ai"),
        ("gcp.gemini", "https://aiplatform.googleapis.com/v1", "gcp.gemini"),  # the client's flag tells
        ("gcp.vertex_ai", "https://us-central1-aiplatform.googleapis.com", "gcp.vertex_ai"),
        ("openai", "https://aiplatform.eu.rep.googleapis.com/v1", "gcp.vertex_ai"),
        ("openai", "https://bedrock-mantle.us-east-1.api.aws/openai/v1", "aws.bedrock"),
        ("anthropic", "https://aws-external-anthropic.us-east-1.api.aws", "anthropic"),
        ("openai", "https://mine.services.ai.azure.com/openai/v1", "azure.ai.openai"),
        ("mistral_ai", "https://mine.services.ai.azure.com/models", "azure.ai.inference"),
        ("azure.ai.inference", "https://mine.openai.azure.com", "azure.ai.inference"),
        ("cohere", "https://mine.eastus2.models.ai.azure.com", "azure.ai.inference"),
        ("mistral_ai", "https://codestral.mistral.ai", "mistral_ai"),
        ("groq", "https://gateway.example.com", "groq"),
        ("anthropic", "http://localhost:11434", "ollama"),
        ("openai", "http://localhost:1234/v1", "lm_studio"),
        ("openai", "http://10.0.0.7:1234/v1", "openai"),
        ("openai", "http://[::1]:1234/v1", "lm_studio"),
        ("openai", "http://localhost:8000/v1", "openai"),
        ("openai", "https://notopenrouter.ai", "openai"),
    ],
)
def test_an_address_tells_who_bills(own: str, url: str, provider: str) -> None:
    assert address_attributes(url, own)[PROVIDER_NAME] == provider


def test_an_address_that_is_none_leaves_the_client_its_own() -> None:
    assert address_attributes("", "groq") == {PROVIDER_NAME: "groq"}


@pytest.mark.parametrize("own", ["openai", "anthropic", "mistral_ai"])
def test_the_users_word_goes_before_every_table(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "Gateway.internal=azure.ai.openai, localhost:8000=vllm,api.groq.com=mine,[::1]:9=here")
    assert provider_of("gateway.internal", 443, own) == "azure.ai.openai"
    assert provider_of("localhost", 8000, own) == "vllm"
    assert provider_of("localhost", 8001, own) == own
    assert provider_of("api.groq.com", 443, own) == "mine"
    assert provider_of("::1", 9, own) == "here"


def test_a_port_of_its_own_goes_before_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "box=groq,box:8000=vllm")
    assert (provider_of("box", 8000), provider_of("box", 8001)) == ("vllm", "groq")


def test_the_old_name_is_honoured_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(OLD_VARIABLE, "old=vllm,both=vllm")
    monkeypatch.setenv(VARIABLE, "both=groq")
    with caplog.at_level(logging.WARNING):
        assert [provider_of(host) for host in ("old", "both", "old")] == ["vllm", "groq", "vllm"]
    assert [OLD_VARIABLE in record.message for record in caplog.records] == [True]


def test_a_row_that_is_wrong_is_named_once_and_the_rest_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "a=vllm,,broken=,=x,https://b/v1=groq,c:port=groq,d = groq")
    with caplog.at_level(logging.WARNING):
        assert [provider_of(host) for host in ("a", "b", "broken", "c", "d")] == [
            *("vllm", "openai", "openai"),
            *("openai", "groq"),
        ]
    (record,) = caplog.records
    assert all(wrong in record.message for wrong in ("broken=", "=x", "https://b/v1=groq", "c:port=groq"))
    assert "d = groq" not in record.message


def test_server_of_an_address() -> None:
    found = address_attributes("https://API.groq.com/openai", "openai")
    assert found == {PROVIDER_NAME: "groq", SERVER_ADDRESS: "api.groq.com", SERVER_PORT: 443}


# -- every client ------------------------------------------------------------------------------------------------------

CLIENT = pytest.mark.parametrize("client", CLIENTS, ids=str)

OTHERS = {
    "openai": ("https://api.deepseek.com", "deepseek"),
    "openai responses": ("https://mine.openai.azure.com/openai/v1", "azure.ai.openai"),
    "anthropic": ("https://api.z.ai/api/anthropic", "zai"),
    "google-genai": ("https://openrouter.ai/api", "openrouter"),
    "mistral": ("https://mine.services.ai.azure.com/models", "azure.ai.inference"),
    "cohere": ("https://mine.eastus2.models.ai.azure.com", "azure.ai.inference"),
    "ollama": ("http://localhost:1234", "lm_studio"),
    "groq": ("https://openrouter.ai/api", "openrouter"),
    "together": ("https://api.groq.com/openai/v1", "groq"),
    "huggingface": ("https://api.x.ai", "x_ai"),
    "litellm": ("https://api.moonshot.ai/v1", "moonshot_ai"),
}
"""Client → address that is another's than its own, and whose it is."""

OWN = {
    "openai responses": "openai",
    "google-genai": "gcp.gemini",
    "mistral": "mistral_ai",
    "litellm": "openai",
    "bedrock": "aws.bedrock",
}
"""Client → its own provider, where that has another name."""

PRICES = b"""
price_book: {id: test, version: 1, currency: USD}
prices:
  - {id: in, provider: gateway, sku: "*", meter: tokens.input.uncached, amount: "2", per: 1000000}
  - {id: out, provider: gateway, sku: "*", meter: tokens.output, amount: "10", per: 1000000}
  - {id: search, provider: gateway, sku: "*", meter: web_searches, amount: "0", per: 1}
"""


def asked(client: Client, url: str, telemetry: Any) -> dict[str, Any]:
    """Attributes of the span of a call to an address; the call may fail."""
    pytest.importorskip(client.module)
    instrumentors = [resolve_name(f"tollspan.instrumentation.{each}")() for each in client.instrumentor.split()]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=telemetry.provider)
    try:
        with contextlib.suppress(Exception):
            next(iter(client.asks.values())).sync(client.make(Make(url), False))
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
    return telemetry.attributes()


# Bedrock's protocol is spoken by nobody else that is known.
@pytest.mark.parametrize("client", [client for client in CLIENTS if client.name != "bedrock"], ids=str)
def test_a_client_at_anothers_address_is_billed_by_that(
    client: Client, telemetry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*_: Any, **__: Any) -> Any:
        raise OSError("this test asks nobody")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    url, provider = OTHERS[client.name]
    assert asked(client, url, telemetry)[PROVIDER_NAME] == provider


@CLIENT
def test_a_client_at_an_address_that_nobody_knows_keeps_its_own(client: Client, telemetry: Any) -> None:
    with StubServer() as stub:
        stub.json(client.answer((1000, 100)))
        assert asked(client, stub.url, telemetry)[PROVIDER_NAME] == OWN.get(client.name, client.name)


@CLIENT
def test_a_call_has_the_price_of_whom_the_user_names(
    client: Client, telemetry: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    book = tmp_path / "book.yaml"
    book.write_bytes(PRICES)
    monkeypatch.setattr(openai_bill, "ENGINE", PriceEngine(load_book(book)))
    with StubServer() as stub:
        monkeypatch.setenv(VARIABLE, f"127.0.0.1:{stub.port}=gateway")
        stub.json(client.answer((1000, 100)))
        assert asked(client, stub.url, telemetry)[PROVIDER_NAME] == "gateway"
    # 1000 at 2 and 100 at 10 for a million
    assert openai_bill.bill(telemetry.spans())[1:] == (Decimal("0.003"), "priced")


def test_whoever_bills_usage_is_read_in_the_form_of_the_protocol() -> None:
    told = {"input_tokens": 7, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 4}}
    assert read_usage("deepseek", told, form="anthropic").quantities["tokens.output.reasoning"] == 4
    assert read_usage("deepseek", told).unknown == ("output_tokens_details.thinking_tokens",)
    cost = {**told, "cache_read_input_tokens": 3, "cost": 0.5}
    assert read_usage("openrouter", cost, form="anthropic").reported_cost == Decimal("0.5")
