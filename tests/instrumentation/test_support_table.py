"""The README's table of what is wrapped has every library that an entry point instruments, with its bounds.

``TOLLSPAN_WRITE_DOCS=1`` writes it anew.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tollspan.instrumentation.calls import CallInstrumentor
from tollspan.instrumentation.launch import OnImport

README = Path(__file__).parents[2] / "README.md"
TABLE = re.compile(r"(<!-- wrapped -->\n).*?(<!-- /wrapped -->)", re.DOTALL)
PINS = Path(__file__).parents[1] / "versions"
"""Where the versions stand that `make oldest` installs."""
STREAMED = "sync, async, streamed, raw and streaming responses"
ABOUT = {
    "openai": (
        "chat completions, responses (in the background too), completions, embeddings, images, audio, moderations, "
        f"videos, batches, assistants, realtime, live sessions; {STREAMED}; Azure and OpenAI-compatible servers "
        "by base URL",
        "2.0, 2.54, 3.52",
    ),
    "anthropic": (
        f"messages, beta messages, tool runner, batch results; {STREAMED}; Bedrock, Vertex and Foundry clients",
        "0.100, 0.125, 1.17, 2.11",
    ),
    "google-genai": (
        "generate content (every hop of automatic function calling), chats, embeddings, images, videos, batches, "
        "interactions, live sessions; sync, async, streamed; Gemini API and Vertex",
        "2.0, 2.34, 3.4",
    ),
    "botocore": (
        "Bedrock's Converse, ConverseStream, InvokeModel and its stream, agents, asynchronous work; boto3 and "
        "aiobotocore; the same and speech sessions through `aws_sdk_bedrock_runtime` (Python 3.12)",
        "1.41, 1.43, 1.44; aiobotocore 2.26, 3.10; aws_sdk_bedrock_runtime 0.12",
    ),
    "mistralai": (
        "chat, fim, agents, conversations, embeddings, OCR, transcription, classifiers, batches, realtime; "
        "sync, async, streamed",
        "1.12, 2.10, 3.7",
    ),
    "cohere": (
        "chat, embed, rerank and the rest of v1 and v2, batches, embed jobs; sync, async, streamed",
        "5.21, 6.1, 7.3",
    ),
    "ollama": ("chat, generate, embeddings, also as module functions; sync, async, streamed", "0.4, 0.5, 0.6"),
    "groq": ("chat (each model of a compound system), embeddings, audio; sync, async, streamed", "0.37, 1.7"),
    "together": ("chat, completions, embeddings, images, videos, audio, rerank; sync, async, streamed", "2.42, 3.1"),
    "litellm": (
        "completion, text completion, responses, Anthropic's messages, Google's content, embedding, images, audio, "
        "rerank, moderation, OCR, Router (every attempt); sync, async, streamed",
        "1.90, 1.109",
    ),
    "huggingface_hub": ("`InferenceClient` and its async twin, through any of its providers", "1.33, 2.4"),
    "torch": (
        "the outermost `nn.Module` call (not in training), transformers' `generate` and pipelines, "
        "sentence-transformers, CUDA graph replay; `observe(...)` for what cannot be seen, with shares for batched "
        "requests",
        "2.6, 2.13",
    ),
    "safetensors": (
        "model loads: `load_file`, `load`, `load_model`; `torch.load`, `torch.jit.load`, `torch.export.load`, "
        "`torch.hub`; transformers' and diffusers' `from_pretrained`, sentence-transformers, accelerate; "
        "`hf_hub_download`, `snapshot_download`",
        "0.4, 0.8; transformers 4.57, 5.23; huggingface_hub 0.36, 2.4; sentence-transformers 6.2; diffusers 0.42; "
        "accelerate 1.15",
    ),
    "vllm": (
        "`LLM.generate`, `chat`, `embed`, `AsyncLLM.generate`, where vLLM does not trace itself; "
        "the processor reads its own spans, SGLang's and Triton's",
        "0.32 (CPU)",
    ),
    "onnxruntime": (
        "`InferenceSession.run`, `run_async`, `run_with_iobinding`, `run_with_ort_values`, `run_with_ortvaluevector`; "
        "construction and `set_providers` as model load",
        "1.23, 1.31",
    ),
    "feast": ("online reads, histories when executed, document search, push, write, materialize; sync, async", "0.67"),
    "qdrant-client": ("queries, batches and groups; sync, async; local and over REST", "1.12, 1.20"),
    "chromadb": ("`Collection.query`", "1.0, 1.5"),
    "lancedb": ("vector queries; sync, async", "0.34, 0.40"),
    "redis": ("vector searches of `ft().search`; sync, async", "5.0, 8.1"),
    "pymilvus": (
        "searches, hybrid searches, reads by key and filter, iterators; sync, async, `Collection`; Lite and servers",
        "2.5, 3.0",
    ),
    "psycopg": (
        "pgvector: statements that ask for nearest neighbours, through psycopg, psycopg2 and asyncpg, and what stands "
        "on them (SQLAlchemy ...); sync, async, streamed",
        "psycopg 3.1, 3.3; psycopg2 2.9; asyncpg 0.29, 0.32; pgvector 0.8 in PostgreSQL 18",
    ),
    "hopsworks": ("`get_feature_vector`, `get_feature_vectors`; sync, async", "5.2"),
    "tecton-client": ("`get_features`; sync, async", "0.4"),
    "langchain-core": ("lookups of every LangChain cache; sync, async", "0.3, 1.7"),
    "gptcache": ("`adapt`, `aadapt` and the adapters over them, `api.get`", "0.1.44"),
}
"""Distribution → the calls that become spans, and the versions that the tests were run with."""
BY_HAND = frozenset(
    {"torch", "safetensors", "vllm", "onnxruntime", "feast", "qdrant-client", "chromadb", "lancedb", "redis"}
    | {"pymilvus", "psycopg", "hopsworks", "tecton-client", "langchain-core", "gptcache"}
)
"""What is no model client: `make oldest` does not run these."""


def instrumentors() -> list[CallInstrumentor]:
    found = []
    for entry in entry_points(group="opentelemetry_instrumentor"):
        if entry.name.startswith("tollspan_"):
            cls = getattr(import_module(entry.module), entry.attr)
            if issubclass(cls, OnImport):
                module, _, name = cls.real.partition(":")
                cls = getattr(import_module(module), name)
            if issubclass(cls, CallInstrumentor):
                found.append(cls())
    return sorted(found, key=lambda each: list(ABOUT).index(library(each)))


def library(instrumentor: CallInstrumentor) -> str:
    return Requirement(next(iter(instrumentor.instrumentation_dependencies()))).name


def table() -> str:
    lines = ["| Library | Calls | Tested with |", "|--|--|--|"]
    for instrumentor in instrumentors():
        calls, tested = ABOUT[library(instrumentor)]
        lines.append(f"| {', '.join(instrumentor.instrumentation_dependencies())} | {calls} | {tested} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_wrapped_calls_is_made_from_the_instrumentors() -> None:
    assert {library(each) for each in instrumentors()} == ABOUT.keys()
    text = README.read_text(encoding="utf-8")
    assert TABLE.search(text)
    fresh = TABLE.sub(lambda found: f"{found[1]}{table()}{found[2]}", text)
    if os.environ.get("TOLLSPAN_WRITE_DOCS"):
        README.write_text(fresh, encoding="utf-8")
    assert fresh == README.read_text(encoding="utf-8"), "run this test with TOLLSPAN_WRITE_DOCS=1"


def pinned() -> dict[str, str]:
    """The oldest version of each library that is run: its pin, in the environment that wants it."""
    found = {}
    for pins in PINS.glob("oldest-*.txt"):
        lines = pins.read_text(encoding="utf-8").splitlines()
        wanted = {canonicalize_name(Requirement(line[3:]).name) for line in lines if line.startswith("#: ")}
        for name, _, version in (line.partition("==") for line in lines if "==" in line and not line.startswith("#")):
            if name in wanted and (name not in found or Version(version) < Version(found[name])):
                found[name] = version
    return found


@pytest.mark.parametrize("name", [name for name in ABOUT if name not in BY_HAND])
def test_the_oldest_that_is_said_to_work_is_the_oldest_that_is_run(name: str) -> None:
    (requirement,) = (
        Requirement(each)
        for own in instrumentors()
        if library(own) == name
        for each in own.instrumentation_dependencies()
    )
    (bound,) = (each.version for each in requirement.specifier if each.operator == ">=")
    oldest = pinned()[canonicalize_name(name)]
    assert Version(bound) == Version(oldest)
    said = ABOUT[name][1].partition(",")[0]
    assert Version(oldest).release[: said.count(".") + 1] == Version(said).release
