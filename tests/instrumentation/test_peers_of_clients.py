"""Other vendors' instrumentations of every client beside ours, where they are installed (the ``bench`` extra has them):
each call is billed once, by ours, whoever was first."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

OPENLLMETRY = "opentelemetry.instrumentation"
OPENINFERENCE = "openinference.instrumentation"
PEERS = (
    ("openai", f"{OPENLLMETRY}.openai:OpenAIInstrumentor"),
    ("openai", f"{OPENLLMETRY}.genai.openai:OpenAIInstrumentor"),
    ("openai", f"{OPENINFERENCE}.openai:OpenAIInstrumentor"),
    ("openai responses", f"{OPENLLMETRY}.openai:OpenAIInstrumentor"),
    ("openai responses", f"{OPENLLMETRY}.genai.openai:OpenAIInstrumentor"),
    ("openai responses", f"{OPENINFERENCE}.openai:OpenAIInstrumentor"),
    ("anthropic", f"{OPENLLMETRY}.anthropic:AnthropicInstrumentor"),
    ("anthropic", f"{OPENLLMETRY}.genai.anthropic:AnthropicInstrumentor"),
    ("anthropic", f"{OPENINFERENCE}.anthropic:AnthropicInstrumentor"),
    ("google-genai", f"{OPENLLMETRY}.google_generativeai:GoogleGenerativeAiInstrumentor"),
    ("google-genai", f"{OPENINFERENCE}.google_genai:GoogleGenAIInstrumentor"),
    ("bedrock", f"{OPENLLMETRY}.bedrock:BedrockInstrumentor"),
    ("bedrock", f"{OPENLLMETRY}.botocore:BotocoreInstrumentor"),
    ("bedrock", f"{OPENINFERENCE}.bedrock:BedrockInstrumentor"),
    ("mistral", f"{OPENINFERENCE}.mistralai:MistralAIInstrumentor"),
    ("cohere", f"{OPENLLMETRY}.cohere:CohereInstrumentor"),
    ("ollama", f"{OPENLLMETRY}.ollama:OllamaInstrumentor"),
    ("groq", f"{OPENLLMETRY}.groq:GroqInstrumentor"),
    ("groq", f"{OPENINFERENCE}.groq:GroqInstrumentor"),
    ("openai", "openlit.instrumentation.openai:OpenAIInstrumentor"),
    ("anthropic", "openlit.instrumentation.anthropic:AnthropicInstrumentor"),
    ("google-genai", "openlit.instrumentation.google_ai_studio:GoogleAIStudioInstrumentor"),
    ("bedrock", "openlit.instrumentation.bedrock:BedrockInstrumentor"),
    ("ollama", "openlit.instrumentation.ollama:OllamaInstrumentor"),
    ("groq", "openlit.instrumentation.groq:GroqInstrumentor"),
)


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize(("client", "peer"), PEERS)
def test_each_call_is_billed_once_on_our_span(client: str, peer: str, first: str) -> None:
    module, _, name = peer.partition(":")
    try:
        getattr(import_module(module), name)
    except (ImportError, AttributeError):
        pytest.skip(f"{module} is not installed, or not with this version of the client")
    done = subprocess.run(
        [sys.executable, "-m", "tests.instrumentation.peer_program", client, peer, first],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(calls) == 4
    for call in calls:
        assert [row["scope"].partition(".")[0] for row in call["billed"]] == ["tollspan"], call
        assert call["billed"][0]["tokens"] == {"tokens.input.uncached": 1000, "tokens.output": 100}, call
    scopes = {scope.partition(".")[0] for call in calls for scope in call["scopes"]}
    assert len(scopes) == 2, "the peer made no span: nothing was tried"
