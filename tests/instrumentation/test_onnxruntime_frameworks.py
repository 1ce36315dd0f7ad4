"""What stands on ONNX Runtime, or calls it, or is called by it, is counted once: each for what it used itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from opentelemetry.sdk.trace import ReadableSpan

from tollspan.instrumentation import cpu_clock
from tollspan.instrumentation.cpu_clock import CPU, CpuClock
from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor
from tollspan.pricing import attributes

from .conftest import Telemetry
from .test_onnxruntime import batch, model_bytes

CPU_SECONDS = attributes.usage("cpu.seconds")
BURNT = 0.15
"""Seconds: far more than what the runtimes' own threads do meanwhile."""


@pytest.fixture
def both_spans(telemetry: Telemetry) -> Iterator[Telemetry]:
    """ONNX Runtime and torch instrumented."""
    pytest.importorskip("torch")
    from tollspan.instrumentation.torch import TorchInstrumentor

    OnnxRuntimeInstrumentor().instrument(tracer_provider=telemetry.provider)
    TorchInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    TorchInstrumentor().uninstrument()
    OnnxRuntimeInstrumentor().uninstrument()
    assert CPU.in_flight == 0


def cpu_seconds(spans: Sequence[ReadableSpan]) -> list[float]:
    return [(span.attributes or {})[CPU_SECONDS] for span in spans]  # type: ignore[misc]


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def inferences(telemetry: Telemetry) -> list[ReadableSpan]:
    return [span for span in telemetry.spans() if span.name.startswith("inference ")]


def test_a_module_that_runs_a_session_is_billed_without_it(both_spans: Telemetry) -> None:
    import torch

    session = slow_session()

    class Ranker(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])

    ranker = Ranker().eval()
    begun = time.process_time()
    ranker(torch.ones(3, 4))
    used = time.process_time() - begun
    inner, outer = inferences(both_spans)
    assert (inner.name, outer.name) == ("inference intent", "inference Ranker")
    assert inner.parent is not None
    assert outer.context is not None
    assert inner.parent.span_id == outer.context.span_id
    inside, outside = cpu_seconds([inner, outer])
    assert inside >= BURNT > outside
    assert inside + outside <= used


def test_a_session_that_calls_a_module_is_billed_without_it(both_spans: Telemetry) -> None:
    import torch

    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            burn(BURNT)
            return x

    session, module = onnxruntime.InferenceSession(model_bytes()), Slow().eval()
    calling(session, lambda: module(torch.ones(3, 4)))
    session.run(None, {"x": batch()})
    inner, outer = inferences(both_spans)
    assert (inner.name, outer.name) == ("inference Slow", "inference intent")
    inside, outside = cpu_seconds([inner, outer])
    assert inside >= BURNT > outside


def test_a_session_that_runs_a_session_is_one_run(both_spans: Telemetry) -> None:
    outer, inner = (onnxruntime.InferenceSession(model_bytes()) for _ in range(2))
    calling(outer, lambda: inner.run(None, {"x": batch()}))
    outer.run(None, {"x": batch()})
    assert len(inferences(both_spans)) == 1


def calling(session: Any, call: Any) -> None:
    """Has ``call`` called within every run of the session, as an operator written in Python is."""
    real = session._sess

    class Calling:
        def run(self, *args: Any) -> Any:
            call()
            return real.run(*args)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    session._sess = Calling()


def slow_session() -> Any:
    session = onnxruntime.InferenceSession(model_bytes())
    calling(session, lambda: burn(BURNT))
    return session


def test_what_calls_inside_used_is_taken_off_every_one_around_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0
    for name in ("process_time_ns", "thread_time_ns"):
        monkeypatch.setattr(cpu_clock, name, lambda: now)
    clock, used = CpuClock(), []
    outer = clock.begin()
    for _ in range(2):
        middle = clock.begin()
        now += 10
        inner = clock.begin()
        now += 30
        used.append(clock.end(inner)[0])
        now += 1
        used.append(clock.end(middle)[0])
    now += 5
    assert [*used, clock.end(outer)[0]] == [30, 11, 30, 11, 5]
    assert clock.in_flight == 0


def test_a_call_that_ends_after_the_one_around_it_leaves_none_in_flight() -> None:
    clock = CpuClock()
    outer, inner = clock.begin(), clock.begin()
    clock.end(outer)
    assert clock.in_flight == 1
    clock.end(inner)
    assert clock.in_flight == 0


# -- optimum and sentence-transformers ---------------------------------------------------------------------------------


def encoder(path: Path) -> None:
    """An encoder as exporters write it: token ids and a mask go in, the last hidden state comes out."""
    ids, mask = (
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch_size", "sequence_length"])
        for name in ("input_ids", "attention_mask")
    )
    hidden = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch_size", "sequence_length", 8])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["weights", "last"], ["wide"]),
        helper.make_node("Mul", ["embedded", "wide"], ["last_hidden_state"]),
    ]
    tensors = [
        numpy_helper.from_array(np.random.default_rng(0).random((100, 8), np.float32), "table"),
        numpy_helper.from_array(np.array([-1]), "last"),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "main_graph", [ids, mask], [hidden], tensors),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 10
    onnx.save_model(model, str(path))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A model of optimum's in a folder, with its tokenizer."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("optimum.onnxruntime")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "good", "morning", "evening", "bad"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(tmp_path)
    transformers.BertConfig(
        vocab_size=100, hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8
    ).save_pretrained(tmp_path)
    encoder(tmp_path / "model.onnx")
    return tmp_path


@pytest.mark.parametrize("binding", [True, False])
def test_optimum_is_one_load_and_one_inference_a_call(both_spans: Telemetry, exported: Path, binding: bool) -> None:
    import torch
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    model = ORTModelForFeatureExtraction.from_pretrained(exported, use_io_binding=binding)
    ids = torch.ones(2, 5, dtype=torch.int64)
    assert model(input_ids=ids, attention_mask=ids).last_hidden_state.shape == (2, 5, 8)
    spans = both_spans.spans()
    assert [span.name for span in spans] == ["model_load model", "inference model"]
    about = dict(spans[1].attributes or {})
    assert about[attributes.BATCH_SIZE] == 2
    assert about[attributes.MODEL_DTYPE] == "float32"


def test_sentence_transformers_is_a_module_and_the_session_it_runs_each_for_itself(
    both_spans: Telemetry, exported: Path
) -> None:
    library = pytest.importorskip("sentence_transformers")
    parts = library.models
    transformer = parts.Transformer(str(exported), backend="onnx", model_args={"file_name": "model.onnx"})
    model = library.SentenceTransformer(modules=[transformer, parts.Pooling(8)])
    begun = time.process_time()
    assert model.encode(["good morning", "bad evening"]).shape == (2, 8)
    used = time.process_time() - begun
    names = [span.name for span in both_spans.spans()]
    assert names.count("model_load model") == 1
    assert names.count("inference model") == 1
    measured = inferences(both_spans)
    assert sum(cpu_seconds(measured)) <= used
