"""Caches of answers: a lookup is one span, says whether it hit, and a hit asks no model.

Every test drives the real library; the model behind it is OpenAI's client on a mock wire, or a function. A library that
is not installed is skipped.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation

from tollspan.instrumentation import cache_lookup
from tollspan.instrumentation.caches.gptcache import GPTCacheInstrumentor
from tollspan.instrumentation.caches.langchain import LangChainCacheInstrumentor
from tollspan.pricing import attributes as names

from .conftest import Telemetry, Wire

MODEL = "gpt-5-mini-2025-08-07"


def told(telemetry: Telemetry) -> list[tuple[Any, ...]]:
    """Cache, kind, store and result of every lookup, in order."""
    keys = (names.MODEL, names.CACHE_KIND, names.PROVIDER, names.CACHE_RESULT)
    lookups = [dict(span.attributes or {}) for span in telemetry.spans() if span.name.startswith("cache_lookup ")]
    assert all(each[names.OPERATION] == "cache_lookup" for each in lookups)
    return [tuple(each.get(key) for key in keys) for each in lookups]


# -- LangChain ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def langchain(telemetry: Telemetry) -> Iterator[Any]:
    caches = pytest.importorskip("langchain_core.caches")
    LangChainCacheInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield caches
    LangChainCacheInstrumentor().uninstrument()


def generations(text: str = "Hello.", **usage: Any) -> list[Any]:
    messages = importlib.import_module("langchain_core.messages")
    outputs = importlib.import_module("langchain_core.outputs")
    message = messages.AIMessage(content=text, response_metadata={"model_name": MODEL})
    message.usage_metadata = usage or None
    return [outputs.ChatGeneration(message=message)]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_miss_and_a_hit(langchain: Any, telemetry: Telemetry, asynchronous: bool) -> None:
    cache = langchain.InMemoryCache()
    stored = generations(input_tokens=100, output_tokens=20, total_tokens=120)

    def look(prompt: str) -> Any:
        return asyncio.run(cache.alookup(prompt, "llm")) if asynchronous else cache.lookup(prompt, "llm")

    assert look("question") is None
    cache.update("question", "llm", stored)
    assert look("question") is stored
    assert told(telemetry) == [("InMemoryCache", "exact", "memory", result) for result in ("miss", "hit")]
    miss, hit = (dict(span.attributes or {}) for span in telemetry.spans())
    saved = (names.CACHE_SAVED_MODEL, names.CACHE_SAVED_INPUT_TOKENS, names.CACHE_SAVED_OUTPUT_TOKENS)
    assert [hit[name] for name in saved] == [MODEL, 100, 20]
    assert not any(name in miss for name in saved)
    assert "question" not in repr([miss, hit])


def test_what_is_not_known_of_a_hit_is_not_told(langchain: Any, telemetry: Telemetry) -> None:
    outputs = importlib.import_module("langchain_core.outputs")
    cache = langchain.InMemoryCache()
    cache.update("question", "llm", [outputs.Generation(text="Hello.")])
    cache.lookup("question", "llm")
    assert told(telemetry) == [("InMemoryCache", "exact", "memory", "hit")]
    assert not [name for name in telemetry.attributes() if name.startswith("tollspan.cache.saved")]


def test_equal_lookups_have_equal_hashes(langchain: Any, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "a secret of the test")
    cache = langchain.InMemoryCache()
    for asked in (("a", "llm"), ("a", "llm"), ("b", "llm")):
        cache.lookup(*asked)
    first, again, other = ((span.attributes or {})[names.READ_KEYS] for span in telemetry.spans())
    assert first == again != other


def test_a_model_is_asked_on_a_miss_and_not_on_a_hit(langchain: Any, openai_spans: Telemetry, wire: Wire) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    client = wire.json(wire.completion()).client()
    cache = langchain.InMemoryCache()
    model = langchain_openai.ChatOpenAI(
        model="gpt-5-mini", api_key="none", cache=cache, client=client.chat.completions, root_client=client
    )
    first, again = model.invoke("question"), model.invoke("question")
    assert first.content == again.content == "Hello."
    assert len(wire.requests) == 1
    assert [span.name.split(" ")[0] for span in openai_spans.spans()] == ["cache_lookup", "chat", "cache_lookup"]
    assert [each[-1] for each in told(openai_spans)] == ["miss", "hit"]
    hit = openai_spans.spans()[-1].attributes or {}
    assert (hit[names.CACHE_SAVED_INPUT_TOKENS], hit[names.CACHE_SAVED_OUTPUT_TOKENS]) == (100, 20)
    assert hit[names.CACHE_SAVED_MODEL] == MODEL
    assert names.USAGE_INPUT_TOKENS not in hit


def test_classes_that_come_later_and_their_asynchronous_twins_are_seen_once(
    langchain: Any, telemetry: Telemetry
) -> None:
    class OurSemanticRedisCache(langchain.BaseCache):  # type: ignore[misc, name-defined]
        def lookup(self, prompt: str, llm_string: str) -> Any:
            return generations()

        def update(self, prompt: str, llm_string: str, return_val: Any) -> None: ...

        def clear(self, **kwargs: Any) -> None: ...

    class Deeper(OurSemanticRedisCache):
        def lookup(self, prompt: str, llm_string: str) -> Any:
            return super().lookup(prompt, llm_string)

    OurSemanticRedisCache().lookup("question", "llm")
    asyncio.run(OurSemanticRedisCache().alookup("question", "llm"))  # of the base: in a thread, through `lookup`
    Deeper().lookup("question", "llm")
    assert told(telemetry) == [
        ("OurSemanticRedisCache", "semantic", "redis", "hit"),
        ("OurSemanticRedisCache", "semantic", "redis", "hit"),
        ("Deeper", None, None, "hit"),
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_cache_of_sqlalchemy_names_its_database(langchain: Any, telemetry: Telemetry, tmp_path: Path) -> None:
    community = pytest.importorskip("langchain_community.cache")
    cache = community.SQLiteCache(str(tmp_path / "answers.db"))
    cache.update("question", "llm", generations(input_tokens=1, output_tokens=2, total_tokens=3))
    assert cache.lookup("question", "llm")[0].text == "Hello."
    assert cache.lookup("other", "llm") is None
    assert told(telemetry) == [("SQLiteCache", "exact", "sqlite", result) for result in ("hit", "miss")]
    assert (telemetry.spans()[0].attributes or {})[names.CACHE_SAVED_OUTPUT_TOKENS] == 2


def test_an_error_of_a_cache_is_its_own(langchain: Any, telemetry: Telemetry) -> None:
    class Broken(langchain.InMemoryCache):  # type: ignore[misc, name-defined]
        def lookup(self, prompt: str, llm_string: str) -> Any:
            raise LookupError(prompt)

    with pytest.raises(LookupError, match="question"):
        Broken().lookup("question", "llm")
    assert telemetry.attributes()[names.ERROR_TYPE] == "LookupError"
    assert names.CACHE_RESULT not in telemetry.attributes()


def test_a_lookup_inside_one_of_the_programs_own_is_part_of_it(
    langchain: Any, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", telemetry.provider)
    with cache_lookup(cache="answers") as look:
        langchain.InMemoryCache().lookup("question", "llm")
        look.miss()
    assert told(telemetry) == [("answers", "exact", None, "miss")]


def test_suppressed_and_concurrent_lookups(langchain: Any, telemetry: Telemetry) -> None:
    cache = langchain.InMemoryCache()
    cache.update("0", "llm", generations())
    with suppress_instrumentation():
        cache.lookup("0", "llm")
    assert telemetry.spans() == []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: cache.lookup(str(n % 2), "llm"), range(20)))
    assert sorted(each[-1] for each in told(telemetry)) == ["hit"] * 10 + ["miss"] * 10


def test_uninstrument_restores_every_class_of_langchain(telemetry: Telemetry) -> None:
    caches = pytest.importorskip("langchain_core.caches")

    class Early(caches.InMemoryCache):  # type: ignore[misc, name-defined]
        def lookup(self, prompt: str, llm_string: str) -> Any:
            return None

    plain = {kind: dict(vars(kind)) for kind in (caches.BaseCache, caches.InMemoryCache, Early)}
    LangChainCacheInstrumentor().instrument(tracer_provider=telemetry.provider)

    class Late(caches.InMemoryCache):  # type: ignore[misc, name-defined]
        def lookup(self, prompt: str, llm_string: str) -> Any:
            return None

    assert all(vars(kind)["lookup"] is not plain[kind]["lookup"] for kind in (caches.InMemoryCache, Early))
    assert hasattr(Late.lookup, "__wrapped__")
    LangChainCacheInstrumentor().uninstrument()
    for kind, before in plain.items():
        assert dict(vars(kind)) == before
        assert vars(kind)["lookup"] is before["lookup"]
    assert not hasattr(Late.lookup, "__wrapped__")
    Late().lookup("question", "llm")
    assert telemetry.spans() == []


# -- GPTCache ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gptcache(telemetry: Telemetry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    library = pytest.importorskip("gptcache")
    monkeypatch.chdir(tmp_path)
    GPTCacheInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield library
    GPTCacheInstrumentor().uninstrument()


def exact(gptcache: Any) -> Any:
    cache = gptcache.Cache()
    cache.init(
        pre_embedding_func=importlib.import_module("gptcache.processor.pre").get_prompt,
        data_manager=importlib.import_module("gptcache.manager.factory").get_data_manager(),
    )
    return cache


def semantic(gptcache: Any) -> Any:
    numpy, _ = pytest.importorskip("numpy"), pytest.importorskip("faiss")
    manager = importlib.import_module("gptcache.manager")
    cache = gptcache.Cache()
    cache.init(
        pre_embedding_func=importlib.import_module("gptcache.processor.pre").get_prompt,
        embedding_func=lambda text, **_: numpy.array([len(text), 1.0], dtype="float32"),
        data_manager=manager.get_data_manager(manager.CacheBase("sqlite"), manager.VectorBase("faiss", dimension=2)),
        similarity_evaluation=importlib.import_module("gptcache.similarity_evaluation").SearchDistanceEvaluation(),
    )
    return cache


KINDS: list[tuple[Callable[[Any], Any], str, str]] = [
    (exact, "MapDataManager", "exact"),
    (semantic, "SSDataManager", "semantic"),
]


@pytest.mark.parametrize(("make", "manager", "kind"), KINDS)
def test_lookups_of_gptcache(
    gptcache: Any, telemetry: Telemetry, make: Callable[[Any], Any], manager: str, kind: str
) -> None:
    cache = make(gptcache)
    api = importlib.import_module("gptcache.adapter.api")
    assert api.get("question", cache_obj=cache) is None
    api.put("question", "answer", cache_obj=cache)
    assert api.get("question", cache_obj=cache) == "answer"
    assert told(telemetry) == [(manager, kind, "gptcache", result) for result in ("miss", "hit")]
    assert "question" not in repr([span.attributes for span in telemetry.spans()])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_model_is_asked_when_the_lookup_is_over(gptcache: Any, telemetry: Telemetry, asynchronous: bool) -> None:
    cache = exact(gptcache)
    adapter = importlib.import_module("gptcache.adapter.adapter")
    asked: list[int] = []

    def handler(**kwargs: Any) -> str:
        asked.append(len(telemetry.spans()))
        return "answer"

    async def handler_async(**kwargs: Any) -> str:
        return handler(**kwargs)

    def save(answer: Any, update: Any, *args: Any, **kwargs: Any) -> Any:
        update(answer)
        return answer

    def ask() -> Any:
        given = {"prompt": "question", "model": "gpt-x", "cache_obj": cache}
        if asynchronous:
            return asyncio.run(adapter.aadapt(handler_async, str.upper, save, **given))
        return adapter.adapt(handler, str.upper, save, **given)

    assert (ask(), ask()) == ("answer", "ANSWER")
    assert asked == [1]
    assert [each[-1] for each in told(telemetry)] == ["miss", "hit"]
    assert (telemetry.spans()[1].attributes or {})[names.CACHE_SAVED_MODEL] == "gpt-x"


def test_a_cache_that_was_not_asked_has_no_result(gptcache: Any, telemetry: Telemetry) -> None:
    cache = exact(gptcache)
    cache.cache_enable_func = lambda *args, **kwargs: False
    importlib.import_module("gptcache.adapter.api").get("question", cache_obj=cache)
    assert told(telemetry) == [("MapDataManager", "exact", "gptcache", None)]


def test_errors_of_gptcache_and_of_the_model_are_their_own(gptcache: Any, telemetry: Telemetry) -> None:
    adapter = importlib.import_module("gptcache.adapter.adapter")

    def handler(**kwargs: Any) -> str:
        raise LookupError("the model's")

    with pytest.raises(LookupError, match="the model's"):
        adapter.adapt(handler, str, print, prompt="question", cache_obj=exact(gptcache))
    assert told(telemetry)[0][-1] == "miss"
    assert names.ERROR_TYPE not in telemetry.attributes()
    with pytest.raises(Exception, match="init"):
        adapter.adapt(handler, str, print, prompt="question", cache_obj=gptcache.Cache())
    assert names.ERROR_TYPE in (telemetry.spans()[1].attributes or {})


@pytest.mark.filterwarnings("ignore")
def test_langchain_on_gptcache_is_counted_once(langchain: Any, gptcache: Any, telemetry: Telemetry) -> None:
    community = pytest.importorskip("langchain_community.cache")
    cache = community.GPTCache()
    cache.update("question", "llm", [importlib.import_module("langchain_core.outputs").Generation(text="Hello.")])
    assert cache.lookup("question", "llm")[0].text == "Hello."
    assert told(telemetry) == [("GPTCache", None, "gptcache", "hit")]


def test_uninstrument_restores_the_functions_of_gptcache(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = pytest.importorskip("gptcache.adapter.adapter")
    api = importlib.import_module("gptcache.adapter.api")
    data_manager = importlib.import_module("gptcache.manager.data_manager")
    managers = (data_manager.MapDataManager, data_manager.SSDataManager)

    def stands(*apis: Any) -> list[Any]:
        taken = [module.adapt for module in apis]
        return [adapter.adapt, adapter.aadapt, *(vars(manager)["search"] for manager in managers), *taken]

    before = stands(api, api)
    monkeypatch.delitem(sys.modules, "gptcache.adapter.api")
    GPTCacheInstrumentor().instrument(tracer_provider=telemetry.provider)
    taken = importlib.import_module("gptcache.adapter.api")  # takes the function while we stand there
    assert taken is not api
    assert all(one is not other for one, other in zip(stands(taken), before, strict=False))
    GPTCacheInstrumentor().uninstrument()
    assert all(one is other for one, other in zip(stands(api, taken), before, strict=True))
