"""vLLM in the program's own process, the real engine on the CPU: what goes in and what comes out is counted once."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode

from tollspan.instrumentation.tags import tag
from tollspan.instrumentation.torch import TorchInstrumentor
from tollspan.instrumentation.torch_execution import INSIDE
from tollspan.instrumentation.vllm import Counts, VLLMInstrumentor
from tollspan.pricing import attributes

from .conftest import Telemetry

vllm = pytest.importorskip("vllm")

CPU_SECONDS = attributes.usage("cpu.seconds")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, and its tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    words = ["<pad>", "<unk>", "<s>", "</s>", *(f"w{n}" for n in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for message in messages %}{{ message['content'] }} {% endfor %}",
    ).save_pretrained(folder)
    transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=2,
            eos_token_id=3,
        )
    ).save_pretrained(folder)
    return folder


SETTINGS: dict[str, Any] = {
    "max_model_len": 512,
    "enforce_eager": True,
    "dtype": "float32",
    "disable_log_stats": True,
}


@pytest.fixture(scope="module")
def llm(saved: Path) -> Iterator[Any]:
    """An engine in the test's own process and thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        engine = vllm.LLM(str(saved), **SETTINGS)
        yield engine
        engine.llm_engine.engine_core.shutdown()


@pytest.fixture
def spans(telemetry: Telemetry) -> Iterator[Telemetry]:
    TorchInstrumentor().instrument(tracer_provider=telemetry.provider)
    VLLMInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    VLLMInstrumentor().uninstrument()
    TorchInstrumentor().uninstrument()
    assert (INSIDE.active, INSIDE.tally) == (False, None)


def sampling(**more: Any) -> Any:
    return vllm.SamplingParams(**{"max_tokens": 5, "ignore_eos": True, "temperature": 0.0, **more})


# -- engines in processes of their own: before there is one in this process, which leaves it unfit for others ----------


Use = Callable[[Any], Awaitable[None]]


@pytest.fixture(scope="module")
def with_engine(saved: Path) -> Iterator[Callable[[Use], None]]:
    """Runs a function with an engine whose worker is a process of its own."""
    from vllm.v1.engine.async_llm import AsyncLLM

    loop = asyncio.new_event_loop()

    async def engine() -> Any:
        return AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(model=str(saved), **SETTINGS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        patch.setenv("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
        running = loop.run_until_complete(engine())

        async def used(use: Use) -> None:
            await use(running)

        yield lambda use: loop.run_until_complete(used(use))
        running.shutdown()
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.close()


@pytest.mark.parametrize("kind", ["CUMULATIVE", "DELTA", "FINAL_ONLY"])
def test_a_stream_is_counted_whichever_way_it_tells(spans: Telemetry, with_engine: Any, kind: str) -> None:
    from vllm.sampling_params import RequestOutputKind

    async def use(engine: Any) -> None:
        settings = sampling(n=2, temperature=1.0, output_kind=RequestOutputKind[kind])
        with tag(tenant="acme"):
            outputs = [output async for output in engine.generate("w1 w2 w3", settings, "request-" + kind)]
        assert outputs[-1].finished

    with_engine(use)
    told = spans.attributes()
    assert spans.only().name == "text_completion tiny-llama"
    assert (told[attributes.USAGE_INPUT_TOKENS], told[attributes.USAGE_OUTPUT_TOKENS]) == (3, 10)
    assert told[attributes.RESPONSE_ID] == "request-" + kind
    assert told[attributes.RESPONSE_FINISH_REASONS] == ("length", "length")
    assert told[attributes.RESPONSE_TIME_TO_FIRST_CHUNK] > 0
    assert told[attributes.TENANT] == "acme"
    assert attributes.STREAM_ABANDONED not in told
    assert CPU_SECONDS not in told, "the work is another process's"


def test_requests_at_once_are_counted_each_for_itself(spans: Telemetry, with_engine: Any) -> None:
    async def use(engine: Any) -> None:
        async def one(number: int) -> None:
            prompt = " ".join(["w1"] * number)
            async for _ in engine.generate(prompt, sampling(max_tokens=number), f"at-once-{number}"):
                pass

        await asyncio.gather(*(one(number) for number in range(1, 6)))

    with_engine(use)
    told = [dict(span.attributes or {}) for span in spans.spans()]
    counted = sorted((about[attributes.USAGE_INPUT_TOKENS], about[attributes.USAGE_OUTPUT_TOKENS]) for about in told)
    assert counted == [(n, n) for n in range(1, 6)]


def test_an_abandoned_stream_says_so_and_has_what_was_seen(spans: Telemetry, with_engine: Any) -> None:
    async def use(engine: Any) -> None:
        async for output in engine.generate("w1 w2", sampling(max_tokens=100), "left"):
            if len(output.outputs[0].token_ids) >= 2:
                break
        gc.collect()
        await asyncio.sleep(0)

    with_engine(use)
    told = spans.attributes()
    assert told[attributes.STREAM_ABANDONED] is True
    assert told[attributes.USAGE_INPUT_TOKENS] == 2
    assert 2 <= told[attributes.USAGE_OUTPUT_TOKENS] < 100


def test_a_cancelled_request_is_cancelled(spans: Telemetry, with_engine: Any) -> None:
    async def use(engine: Any) -> None:
        begun = asyncio.Event()

        async def one() -> None:
            async for _ in engine.generate("w1 w2", sampling(max_tokens=120), "cancelled"):
                begun.set()

        task = asyncio.create_task(one())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine.output_processor.has_unfinished_requests()

    with_engine(use)
    span = spans.only()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})[attributes.ERROR_TYPE].endswith("CancelledError")


def test_a_request_that_is_refused_raises_what_it_raises(spans: Telemetry, with_engine: Any) -> None:
    async def use(engine: Any) -> None:
        async def one() -> AsyncIterator[Any]:
            async for output in engine.generate("w1 " * 600, sampling(), "too-long"):
                yield output

        with pytest.raises(Exception, match=r"maximum|longer|length"):
            [output async for output in one()]

    with_engine(use)
    assert spans.only().status.status_code is StatusCode.ERROR


def test_an_embedding_by_an_engine_in_another_process(
    spans: Telemetry, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROCESSING_METHOD", "spawn")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    embedder = vllm.LLM(str(saved), runner="pooling", **SETTINGS)
    assert len(embedder.embed(["w1 w2 w3", "w4"], use_tqdm=False)) == 2
    embedder.llm_engine.engine_core.shutdown()
    (span,) = (span for span in spans.spans() if span.name == "embeddings tiny-llama")
    told = dict(span.attributes or {})
    assert (told[attributes.BATCH_SIZE], told[attributes.USAGE_INPUT_TOKENS]) == (2, 4)
    assert attributes.USAGE_OUTPUT_TOKENS not in told
    assert CPU_SECONDS not in told, "the work is another process's"


# -- LLM ---------------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_span_with_its_tokens(spans: Telemetry, llm: Any) -> None:
    with tag(tenant="acme"):
        results = llm.generate(["w1 w2 w3", "w4 w5"], sampling(), use_tqdm=False)
    assert [len(each.outputs[0].token_ids) for each in results] == [5, 5]
    told = spans.attributes()
    assert spans.only().name == "text_completion tiny-llama"
    assert told[attributes.PROVIDER_NAME] == "vllm"
    assert told[attributes.RESPONSE_MODEL] == "tiny-llama"
    assert told[attributes.BATCH_SIZE] == 2
    assert (told[attributes.USAGE_INPUT_TOKENS], told[attributes.USAGE_OUTPUT_TOKENS]) == (5, 10)
    assert told[attributes.USAGE_CACHE_READ_TOKENS] == 0
    assert told[attributes.REQUEST_MAX_TOKENS] == 5
    assert told[attributes.RESPONSE_FINISH_REASONS] == ("length", "length")
    assert told[attributes.TENANT] == "acme"
    assert told[attributes.DEVICE_TYPE] == "cpu"
    assert told[CPU_SECONDS] > 0


def test_what_was_in_the_engine_s_cache_is_told(spans: Telemetry, llm: Any) -> None:
    block = llm.llm_engine.vllm_config.cache_config.block_size
    length = 2 * block + 1
    prompt = " ".join(f"w{n % 60}" for n in range(length))
    for _ in range(2):
        llm.generate(prompt, sampling(), use_tqdm=False)
    first, second = (dict(span.attributes or {}) for span in spans.spans())
    assert first[attributes.USAGE_INPUT_TOKENS] == second[attributes.USAGE_INPUT_TOKENS] == length
    cached = [about[attributes.USAGE_CACHE_READ_TOKENS] for about in (first, second)]
    assert cached == [0, 2 * block]


def test_several_answers_to_one_prompt(spans: Telemetry, llm: Any) -> None:
    llm.generate("w7 w8", sampling(n=3, temperature=1.0), use_tqdm=False)
    told = spans.attributes()
    assert (told[attributes.USAGE_INPUT_TOKENS], told[attributes.USAGE_OUTPUT_TOKENS]) == (2, 15)
    assert told[attributes.BATCH_SIZE] == 1


def test_chat(spans: Telemetry, llm: Any) -> None:
    talk = [{"role": "user", "content": "w1 w2"}]
    llm.chat([talk, talk], sampling(), use_tqdm=False)
    told = spans.attributes()
    assert spans.only().name == "chat tiny-llama"
    assert (told[attributes.USAGE_INPUT_TOKENS], told[attributes.USAGE_OUTPUT_TOKENS]) == (4, 10)


def test_the_modules_of_the_engine_are_part_of_the_call(spans: Telemetry, llm: Any) -> None:
    import torch

    llm.generate("w1", sampling(), use_tqdm=False)
    torch.nn.Linear(2, 2).eval()(torch.ones(1, 2))
    assert [span.name for span in spans.spans()] == ["text_completion tiny-llama", "inference Linear"]


def test_a_failing_call_fails_as_it_does_alone(spans: Telemetry, llm: Any) -> None:
    with pytest.raises(Exception) as alone, suppress_instrumentation():
        llm.generate("w1 " * 600, sampling(), use_tqdm=False)
    with pytest.raises(type(alone.value)) as seen:
        llm.generate("w1 " * 600, sampling(), use_tqdm=False)
    assert str(seen.value) == str(alone.value)
    span = spans.only()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes.USAGE_INPUT_TOKENS not in dict(span.attributes or {})


def test_where_the_engine_traces_by_itself_there_is_no_span(
    spans: Telemetry, llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm.llm_engine.vllm_config.observability_config, "otlp_traces_endpoint", "http://localhost:1")
    llm.generate("w1", sampling(), use_tqdm=False)
    assert [span.name for span in spans.spans() if not span.name.startswith("inference ")] == []


def test_uninstrument_restores_what_was_there(telemetry: Telemetry) -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    stood = {kind: {name: vars(kind).get(name) for name in names} for kind, names in _wrapped(AsyncLLM).items()}
    VLLMInstrumentor().instrument(tracer_provider=telemetry.provider)
    assert inspect.isasyncgenfunction(AsyncLLM.generate)
    for kind, names in stood.items():
        for name, original in names.items():
            assert vars(kind)[name] is not original
    VLLMInstrumentor().uninstrument()
    assert {kind: {name: vars(kind).get(name) for name in names} for kind, names in stood.items()} == stood


def _wrapped(asynchronous: Any) -> dict[Any, tuple[str, ...]]:
    return {vllm.LLM: ("generate", "chat", "embed"), asynchronous: ("generate",)}


def test_a_prompt_without_tokens_is_not_counted_as_none() -> None:
    from vllm import CompletionOutput, RequestOutput

    given = CompletionOutput(0, "", [1, 2], None, None)
    counts = Counts()
    for ids in ([1, 2, 3], None):
        output = RequestOutput("1", None, ids, None, [given], True)
        counts.asked(output)
        counts.gave(output)
    told = counts.attributes()
    assert attributes.USAGE_INPUT_TOKENS not in told
    assert told[attributes.USAGE_OUTPUT_TOKENS] == 4
