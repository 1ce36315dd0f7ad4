"""What the installed version of the openai client has of everything that is wrapped; who bills at which address.

Run with the newest of each line (``openai<3``, ``openai>=3``): what neither has is named in `ABSENT`, and a wrap point
that goes away in a new version fails here.
"""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import openai
import pytest

from tollspan.instrumentation.openai import POINTS, OpenAIInstrumentor, realtime
from tollspan.instrumentation.openai.providers import client_attributes
from tollspan.pricing import attributes as names

HOOKS = (
    *("openai._legacy_response:LegacyAPIResponse.parse", "openai._response:APIResponse.parse"),
    *("openai._response:AsyncAPIResponse.parse", "openai._response:APIResponse.close"),
    *("openai._response:AsyncAPIResponse.close", "openai._base_client:SyncAPIClient._sleep_for_retry"),
    "openai._base_client:AsyncAPIClient._sleep_for_retry",
    *(f"openai.resources.videos:{prefix}Videos.retrieve" for prefix in ("", "Async")),
    *(
        f"openai.resources.batches:{prefix}Batches.{name}"
        for prefix in ("", "Async")
        for name in ("create", "retrieve")
    ),
    *(f"openai.resources.files:{prefix}Files.content" for prefix in ("", "Async")),
    *(f"{target % prefix}.parse_event" for target, _ in realtime.CONNECTIONS for prefix in ("", "Async")),
)

_BETA = "openai.resources.beta.responses.responses:"
_DECISIONS = "openai.resources.decisions:"
ABSENT = (
    *(f"{_BETA}Responses.parse", f"{_BETA}AsyncResponses.parse"),
    *((f"{_DECISIONS}Decisions.create", f"{_DECISIONS}AsyncDecisions.create") if openai.__version__ < "3" else ()),
)
"""Targets that the newest of each line lacks, and that wait for it."""


def found(target: str) -> Any:
    """What stands at a target; None where the version has nothing there."""
    module, _, path = target.partition(":")
    try:
        owner: Any = importlib.import_module(module)
    except ImportError:
        return None
    for part in path.split("."):
        # Statically: where a peer has wrapped one, each ordinary look-up makes another object of it.
        owner = inspect.getattr_static(owner, part, None)
    return owner


@pytest.mark.parametrize("target", [*(point.target for point in POINTS), *HOOKS])
def test_everything_wrapped_is_there(target: str) -> None:
    assert (found(target) is None) == (target in ABSENT)


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.target)
def test_what_is_said_to_be_asynchronous_is(point: Any) -> None:
    original = found(point.target)
    if original is not None:
        assert inspect.iscoroutinefunction(inspect.unwrap(original)) is point.asynchronous


def test_wrappers_look_like_what_they_stand_for(telemetry: Any) -> None:
    before = {point.target: found(point.target) for point in POINTS}
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    try:
        for target, original in before.items():
            wrapper = found(target)
            if original is None:
                continue
            assert wrapper is not original
            assert (wrapper.__name__, wrapper.__doc__) == (original.__name__, original.__doc__)
            assert inspect.signature(wrapper) == inspect.signature(original)
            assert inspect.iscoroutinefunction(wrapper) == inspect.iscoroutinefunction(original)
    finally:
        OpenAIInstrumentor().uninstrument()
    assert all(found(target) is original for target, original in before.items())


def test_nothing_of_the_client_is_imported_before_the_program_does() -> None:
    program = (
        "import sys; from tollspan.instrumentation.openai import OpenAIInstrumentor;"
        "OpenAIInstrumentor().instrument(); assert 'openai' not in sys.modules, 'imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# -- who bills ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://eu.api.openai.com/v1", "openai"),
        ("https://apim.azure-api.net/openai", "azure.ai.openai"),
        ("https://dbc-1.cloud.databricks.com/serving-endpoints", "databricks"),
        ("https://router.huggingface.co/v1", "huggingface"),
        ("https://ollama.com/v1", "ollama"),
        ("http://localhost:11434/v1", "ollama"),
        ("http://192.168.1.4:11434/v1", "ollama"),
        ("https://api.perplexity.ai:11434", "perplexity"),
        ("https://api.sambanova.ai/v1", "sambanova"),
        ("http://localhost:8000/v1", "openai"),
        ("https://gateway.example.com/v1", "openai"),
    ],
)
def test_who_bills_at_an_address(url: str, provider: str) -> None:
    assert client_attributes(openai.OpenAI(api_key="none", base_url=url))[names.PROVIDER_NAME] == provider
