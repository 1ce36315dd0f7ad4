"""What the launcher loads: instrumentors that load themselves when the program imports their library.

In: the entry points, which name the classes here, and a table of where the real instrumentor of a library is. Out: that
instrumentor, imported and switched on when the program imports the library. An instrumented program pays for the
clients that it uses, and one that uses none pays for this module.

A program that instruments by itself uses the real classes (``tollspan.instrumentation.openai.OpenAIInstrumentor``).
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, Final

# The module switches type checking off for itself, so checkers find no names in it.
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.switches import text
from tollspan.instrumentation.wrapping import when_imported

_LOAD: Final = guard("launch.load")


class OnImport(BaseInstrumentor):  # type: ignore[misc]
    """Stands for the instrumentor of a library until the program imports the library.

    Attributes:
        real: ``"module:Class"`` of the instrumentor.
        libraries: modules whose import brings it; any of them.
    """

    real: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]]

    _options: dict[str, Any] | None = None
    _loaded: Any = None

    def instrumentation_dependencies(self) -> Collection[str]:
        # Which versions are served, the real one knows, and it looks when it comes.
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        self._lock = threading.Lock()
        self._options = kwargs
        self._waiting = [when_imported(library, self._imported) for library in self.libraries]

    def _uninstrument(self, **kwargs: Any) -> None:
        for forget in self._waiting:
            forget()
        with self._lock:
            self._options = None
            loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.uninstrument(**kwargs)

    def _imported(self, library: ModuleType | None = None) -> None:
        # Runs inside the program's import statement, which must not fail because of us.
        with _LOAD:
            with self._lock:
                if self._options is None or self._loaded is not None:
                    return
                module, _, name = self.real.partition(":")
                self._loaded = getattr(import_module(module), name)()
                options = self._options
            self._loaded.instrument(**options)


def _on_import(name: str, module: str, *libraries: str) -> type[OnImport]:
    real = f"tollspan.instrumentation.{module}:{name}"
    return type(name, (OnImport,), {"__module__": __name__, "real": real, "libraries": libraries})


class CapacityInstrumentor(OnImport):
    """What the process holds of devices, from when the program imports what may use one; of CPUs, at once."""

    real = "tollspan.instrumentation.capacity:CapacityInstrumentor"
    libraries = ("torch", "onnxruntime")

    def _instrument(self, **kwargs: Any) -> None:
        super()._instrument(**kwargs)
        if text("TOLLSPAN_CAPACITY").lower() in ("cpu", "all"):
            self._imported()


OpenAIInstrumentor: Final = _on_import("OpenAIInstrumentor", "openai", "openai")
AnthropicInstrumentor: Final = _on_import("AnthropicInstrumentor", "anthropic", "anthropic")
GoogleGenAIInstrumentor: Final = _on_import("GoogleGenAIInstrumentor", "google_genai", "google.genai")
BedrockInstrumentor: Final = _on_import("BedrockInstrumentor", "bedrock", "botocore", "aws_sdk_bedrock_runtime")
# The first is a package without code in newer versions, and brings no hook then.
MistralInstrumentor: Final = _on_import("MistralInstrumentor", "mistral", "mistralai", "mistralai.client")
CohereInstrumentor: Final = _on_import("CohereInstrumentor", "cohere", "cohere")
OllamaInstrumentor: Final = _on_import("OllamaInstrumentor", "ollama", "ollama._client", "ollama")
LiteLLMInstrumentor: Final = _on_import("LiteLLMInstrumentor", "litellm", "litellm")
HuggingFaceInstrumentor: Final = _on_import(
    "HuggingFaceInstrumentor", "huggingface", "huggingface_hub.inference", "huggingface_hub.inference._client"
)
GroqInstrumentor: Final = _on_import("GroqInstrumentor", "stainless", "groq")
TogetherInstrumentor: Final = _on_import("TogetherInstrumentor", "stainless", "together")
TorchInstrumentor: Final = _on_import("TorchInstrumentor", "torch", "torch")
# safetensors and transformers import torch; what only downloads models does not.
ModelLoadInstrumentor: Final = _on_import(
    "ModelLoadInstrumentor", "model_loads", "torch", "huggingface_hub.file_download"
)
VLLMInstrumentor: Final = _on_import("VLLMInstrumentor", "vllm", "vllm")
OnnxRuntimeInstrumentor: Final = _on_import("OnnxRuntimeInstrumentor", "onnxruntime", "onnxruntime")
FeastInstrumentor: Final = _on_import("FeastInstrumentor", "feast", "feast")
HopsworksInstrumentor: Final = _on_import("HopsworksInstrumentor", "hopsworks", "hsfs")
TectonInstrumentor: Final = _on_import("TectonInstrumentor", "tecton", "tecton_client")
QdrantInstrumentor: Final = _on_import("QdrantInstrumentor", "vectors.qdrant", "qdrant_client")
ChromaInstrumentor: Final = _on_import("ChromaInstrumentor", "vectors.chroma", "chromadb")
LanceDBInstrumentor: Final = _on_import("LanceDBInstrumentor", "vectors.lance", "lancedb")
RedisSearchInstrumentor: Final = _on_import("RedisSearchInstrumentor", "vectors.redisearch", "redis")
MilvusInstrumentor: Final = _on_import("MilvusInstrumentor", "vectors.milvus", "pymilvus")
PgVectorInstrumentor: Final = _on_import("PgVectorInstrumentor", "vectors.pgvector", "psycopg", "psycopg2", "asyncpg")
LangChainCacheInstrumentor: Final = _on_import(
    "LangChainCacheInstrumentor", "caches.langchain", "langchain_core.caches"
)
GPTCacheInstrumentor: Final = _on_import("GPTCacheInstrumentor", "caches.gptcache", "gptcache")
