"""A pipeline, or an encoder, is one span for all the model calls inside, read at once or bit by bit."""

from __future__ import annotations

import contextlib
import gc
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from tollspan.instrumentation.device_clock import GPU_SECONDS
from tollspan.instrumentation.tags import tag
from tollspan.instrumentation.torch import TorchInstrumentor
from tollspan.instrumentation.torch_events import EventClock
from tollspan.instrumentation.torch_execution import INSIDE
from tollspan.instrumentation.torch_observe import observe
from tollspan.instrumentation.torch_pipelines import ENCODERS, Lasting
from tollspan.instrumentation.torch_resolver import Resolver
from tollspan.pricing import attributes

from .conftest import Telemetry
from .fake_device import FakeDevice

transformers = pytest.importorskip("transformers")

CPU_SECONDS = attributes.usage("cpu.seconds")
MS = 1_000_000
WORDS = ["<pad>", "<unk>", "<s>", "</s>", "good", "morning", "evening", "bad", "one", "two"]


@pytest.fixture
def spans(telemetry: Telemetry) -> Iterator[Telemetry]:
    TorchInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    TorchInstrumentor().uninstrument()


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def resolver() -> Resolver:
    return Resolver(thread=False)


@pytest.fixture
def on_device(telemetry: Telemetry, device: FakeDevice, resolver: Resolver) -> Iterator[Telemetry]:
    """As `spans`, with a fake device in the place of the CPU."""
    clock = EventClock(device, resolver)
    TorchInstrumentor().instrument(tracer_provider=telemetry.provider, clock_for=lambda device_type, index: clock)
    yield telemetry
    TorchInstrumentor().uninstrument()


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        chat_template="{% for message in messages %}{{ message['content'] }} {% endfor %}",
    )


def bert(**more: Any) -> Any:
    return transformers.BertConfig(
        vocab_size=16, hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, **more
    )


@pytest.fixture
def generator() -> Any:
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=64)
    config.name_or_path = "acme/tiny-gpt"
    model = transformers.GPT2LMHeadModel(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return transformers.pipeline("text-generation", model=model, tokenizer=tokenizer())


@pytest.fixture
def classifier() -> Any:
    model = transformers.BertForSequenceClassification(bert(num_labels=2)).eval()
    return transformers.pipeline("text-classification", model=model, tokenizer=tokenizer())


def data(texts: list[str]) -> Any:
    """A dataset that a pipeline reads lazily."""

    class Texts(torch.utils.data.Dataset[str]):
        def __len__(self) -> int:
            return len(texts)

        def __getitem__(self, place: int) -> str:
            return texts[place]

    return Texts()


# -- at once -----------------------------------------------------------------------------------------------------------


def test_a_generation_in_a_pipeline_is_one_span_with_its_positions(spans: Telemetry, generator: Any) -> None:
    with tag(tenant="acme"):
        generator("good morning", max_new_tokens=4, do_sample=False)
    told = spans.attributes()
    assert spans.only().name == "inference acme/tiny-gpt"
    assert told[attributes.MODEL] == "acme/tiny-gpt"
    assert told[attributes.OPERATION] == attributes.OPERATION_INFERENCE
    assert told[attributes.PIPELINE_TASK] == "text-generation"
    assert told[attributes.BATCH_SIZE] == 1
    assert (told[attributes.POSITIONS_IN], told[attributes.POSITIONS_OUT]) == (2, 4)
    assert told[attributes.COLD_START] is True
    assert told[attributes.TENANT] == "acme"
    assert told[CPU_SECONDS] > 0


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_list_is_one_span_however_it_is_batched(spans: Telemetry, generator: Any, batch_size: int) -> None:
    results = generator(["good morning", "bad"] * 2, max_new_tokens=3, do_sample=False, batch_size=batch_size)
    assert len(results) == 4
    told = spans.attributes()
    assert told[attributes.BATCH_SIZE] == 4
    # In a batch the shorter rows are filled up.
    assert told[attributes.POSITIONS_IN] == (6 if batch_size == 1 else 8)
    assert told[attributes.POSITIONS_OUT] == 12


def test_a_conversation_is_one_item(spans: Telemetry, generator: Any) -> None:
    talk = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "morning"}]
    generator(talk, max_new_tokens=2, do_sample=False)
    generator([talk, talk, talk], max_new_tokens=2, do_sample=False)
    assert [dict(span.attributes or {})[attributes.BATCH_SIZE] for span in spans.spans()] == [1, 3]


def test_a_classification_tells_what_went_in(spans: Telemetry, classifier: Any) -> None:
    assert [list(found) for found in classifier(["good morning", "bad evening one"])] == [["label", "score"]] * 2
    told = spans.attributes()
    assert told[attributes.PIPELINE_TASK] == "text-classification"
    assert (told[attributes.BATCH_SIZE], told[attributes.POSITIONS_IN]) == (2, 5)
    assert attributes.POSITIONS_OUT not in told


def test_features(spans: Telemetry) -> None:
    model = transformers.BertModel(bert()).eval()
    pipe = transformers.pipeline("feature-extraction", model=model, tokenizer=tokenizer())
    assert len(pipe("good morning")[0]) == 2
    told = spans.attributes()
    assert told[attributes.PIPELINE_TASK] == "feature-extraction"
    assert told[attributes.POSITIONS_IN] == 2


def test_a_pipeline_that_cuts_its_input_into_chunks_is_one_span(spans: Telemetry) -> None:
    model = transformers.BertForSequenceClassification(bert(label2id={"entailment": 0, "other": 1})).eval()
    pipe = transformers.pipeline("zero-shot-classification", model=model, tokenizer=tokenizer())
    pipe(["good morning", "bad"], candidate_labels=["one", "two"])
    assert spans.attributes()[attributes.BATCH_SIZE] == 2


def test_a_failing_pipeline_fails_as_it_does_alone(spans: Telemetry, classifier: Any) -> None:
    with pytest.raises(Exception) as alone, suppress_instrumentation():
        classifier([7])
    with pytest.raises(type(alone.value)) as seen:
        classifier([7])
    assert str(seen.value) == str(alone.value)
    assert spans.only().status.status_code is StatusCode.ERROR
    assert (INSIDE.active, INSIDE.tally) == (False, None)
    classifier("good")
    assert len(spans.spans()) == 2


def test_inside_another_execution_a_pipeline_is_part_of_it(spans: Telemetry, classifier: Any) -> None:
    with observe("ranker", device="cpu"):
        classifier("good")
        list(classifier(iter_of("good", "bad")))
    assert spans.only().name == "inference ranker"


def test_what_is_not_sampled_is_untouched(telemetry: Telemetry, classifier: Any) -> None:
    alone = type(classifier(data(["good"])))
    TorchInstrumentor().instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    try:
        classifier("good")
        results = classifier(data(["good", "bad"]))
        assert type(results) is alone
        assert len(list(results)) == 2
    finally:
        TorchInstrumentor().uninstrument()
    assert (INSIDE.active, INSIDE.tally) == (False, None)


def test_suppressed_and_uninstrumented_there_is_no_span(spans: Telemetry, classifier: Any) -> None:
    with suppress_instrumentation():
        classifier("good")
    bound = classifier.__call__
    TorchInstrumentor().uninstrument()
    bound("good")
    TorchInstrumentor().instrument(tracer_provider=spans.provider)
    assert spans.spans() == []


def test_uninstrument_restores_what_was_there(telemetry: Telemetry) -> None:
    base = transformers.pipelines.base.Pipeline
    stood = {name: base.__dict__[name] for name in ("__call__", "forward")}
    TorchInstrumentor().instrument(tracer_provider=telemetry.provider)
    for name, original in stood.items():
        assert base.__dict__[name] is not original
        assert inspect.signature(base.__dict__[name]) == inspect.signature(original)
    TorchInstrumentor().uninstrument()
    assert {name: base.__dict__[name] for name in stood} == stood


def test_threads_are_counted_each_for_itself(spans: Telemetry, classifier: Any) -> None:
    ready = threading.Barrier(2)

    def classify(texts: list[str]) -> None:
        ready.wait()
        classifier(texts)

    threads = [threading.Thread(target=classify, args=(["good"] * n,)) for n in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [dict(span.attributes or {}) for span in spans.spans()]
    assert sorted(about[attributes.POSITIONS_IN] for about in told) == [2, 3]


# -- bit by bit --------------------------------------------------------------------------------------------------------


def iter_of(*texts: str) -> Iterator[str]:
    yield from texts


@pytest.mark.parametrize("given", [lambda: iter_of("good", "bad one", "two"), lambda: data(["good", "bad one", "two"])])
def test_what_is_read_lazily_is_one_span_that_ends_with_it(
    spans: Telemetry, classifier: Any, given: Callable[[], Any]
) -> None:
    alone = type(classifier(given()))
    spans.exporter.clear()
    results = classifier(given(), batch_size=2)
    assert isinstance(results, alone)
    assert spans.spans() == []
    assert [list(found) for found in results] == [["label", "score"]] * 3
    told = spans.attributes()
    assert told[attributes.BATCH_SIZE] == 3
    assert told[attributes.POSITIONS_IN] == 5  # 2 × 2 and 1
    assert told[CPU_SECONDS] > 0
    assert attributes.STREAM_ABANDONED not in told
    assert attributes.RESPONSE_TIME_TO_FIRST_CHUNK not in told


def test_a_dataset_s_results_have_its_length(spans: Telemetry, classifier: Any) -> None:
    results = classifier(data(["good", "bad"]))
    assert len(results) == 2
    assert len(list(results)) == 2


def test_a_key_of_a_dataset(spans: Telemetry, generator: Any) -> None:
    from transformers.pipelines.pt_utils import KeyDataset

    rows = [{"text": "good morning"}, {"text": "bad evening"}]
    list(generator(KeyDataset(rows, "text"), max_new_tokens=2, do_sample=False, batch_size=2))
    told = spans.attributes()
    assert told[attributes.BATCH_SIZE] == 2
    assert (told[attributes.POSITIONS_IN], told[attributes.POSITIONS_OUT]) == (4, 4)


def test_an_abandoned_iteration_ends_its_span_and_says_so(spans: Telemetry, classifier: Any) -> None:
    results = classifier(data(["good"] * 5))
    for _ in results:
        break
    del results
    gc.collect()
    told = spans.attributes()
    assert told[attributes.STREAM_ABANDONED] is True
    assert told[attributes.BATCH_SIZE] == 1


def test_a_step_that_fails_ends_the_span(spans: Telemetry, classifier: Any) -> None:
    def texts() -> Iterator[Any]:
        yield "good"
        raise LookupError("no more")

    with pytest.raises(LookupError):
        list(classifier(texts()))
    span = spans.only()
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {})[attributes.ERROR_TYPE] == "LookupError"
    assert (INSIDE.active, INSIDE.tally) == (False, None)


def test_between_two_steps_the_program_is_outside(spans: Telemetry, classifier: Any) -> None:
    model = torch.nn.Linear(2, 2).eval()
    for _ in classifier(data(["good", "bad"])):
        model(torch.ones(1, 2))
    assert sorted(span.name for span in spans.spans()) == [
        *["inference BertForSequenceClassification"],
        *["inference Linear"] * 2,
    ]
    outer = next(span for span in spans.spans() if "Bert" in span.name)
    assert all(span.parent is None for span in spans.spans() if span is not outer)


def test_read_by_several_threads_each_step_is_counted(spans: Telemetry, classifier: Any) -> None:
    results = iter(classifier(data(["good"] * 4)))
    for _ in range(4):
        thread = threading.Thread(target=lambda: next(results))
        thread.start()
        thread.join()
    with contextlib.suppress(StopIteration):
        next(results)
    assert spans.attributes()[attributes.BATCH_SIZE] == 4


def test_read_again_the_models_are_seen_by_themselves(spans: Telemetry, classifier: Any) -> None:
    results = classifier(data(["good", "bad"]))
    list(results)
    assert len(list(results)) == 2
    assert len(spans.spans()) == 3


# -- the device's time -------------------------------------------------------------------------------------------------


def launching(pipe: Any, device: FakeDevice, nanoseconds: int) -> None:
    """Each batch occupies the fake device."""
    module = pipe.model
    module.register_forward_hook(lambda *_: device.launch(nanoseconds))


def test_the_device_s_time_is_that_of_the_batches(
    on_device: Telemetry, classifier: Any, device: FakeDevice, resolver: Resolver
) -> None:
    launching(classifier, device, 5 * MS)
    classifier(["good"] * 4, batch_size=2)
    assert on_device.spans() == [], "the device is not done yet"
    device.now = 100 * MS
    resolver.poll()
    told = on_device.attributes()
    assert told[GPU_SECONDS] == 0.010
    assert told[attributes.GPU_WINDOW] == 0.010
    assert told[attributes.GPU_TIME_STATUS] == "ok"


def test_the_span_of_a_lazy_one_waits_for_the_device_and_ends_when_it_was_read(
    on_device: Telemetry, classifier: Any, device: FakeDevice, resolver: Resolver
) -> None:
    launching(classifier, device, 5 * MS)
    results = classifier(data(["good"] * 3))
    for _ in results:
        device.now += 50 * MS  # the program's own time: the device waits
        resolver.poll()
    told = on_device.attributes()
    assert told[GPU_SECONDS] == 0.015
    assert told[attributes.BATCH_SIZE] == 3


def test_what_the_device_did_not_tell_of_one_batch_is_not_told_of_all(
    on_device: Telemetry, classifier: Any, device: FakeDevice, resolver: Resolver
) -> None:
    results = iter(classifier(data(["good"] * 2)))
    next(results)
    device.capturing_now = True
    next(results)
    device.capturing_now = False
    assert next(results, None) is None
    device.now += MS
    resolver.poll()
    told = on_device.attributes()
    assert told[attributes.GPU_TIME_STATUS] == "skipped"
    assert GPU_SECONDS not in told


def test_a_device_that_died_costs_the_time_and_not_the_span(
    faulty_telemetry: Telemetry, device: FakeDevice, resolver: Resolver, classifier: Any
) -> None:
    clock = EventClock(device, resolver)
    provider = faulty_telemetry.provider
    TorchInstrumentor().instrument(tracer_provider=provider, clock_for=lambda device_type, index: clock)
    try:
        results = iter(classifier(data(["good"] * 2)))
        next(results)
        device.dead = True
        assert list(next(results)) == ["label", "score"]
        assert next(results, None) is None
        resolver.poll()
    finally:
        TorchInstrumentor().uninstrument()
    told = faulty_telemetry.attributes()
    assert told[attributes.GPU_TIME_STATUS] == "error"
    assert told[attributes.BATCH_SIZE] == 2
    assert GPU_SECONDS not in told


def test_what_the_device_did_not_finish_is_ended_by_a_shutdown(
    on_device: Telemetry, classifier: Any, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollspan.instrumentation.torch_resolver.SHUTDOWN", 0.01)
    launching(classifier, device, 5 * MS)
    classifier(["good"] * 2)
    assert on_device.spans() == []
    on_device.provider.shutdown()
    assert on_device.attributes()[attributes.GPU_TIME_STATUS] == "timeout"


def test_a_span_with_parts_ends_once_with_its_own_end(telemetry: Telemetry) -> None:
    span = telemetry.provider.get_tracer("test").start_span("whole")
    whole = Lasting(span)
    first, second = whole.part(), whole.part()
    first.set_attributes({attributes.GPU_TIME_STATUS: "ok", GPU_SECONDS: 0.25, attributes.GPU_WINDOW: 0.5})
    first.end()
    whole.end(7)
    assert telemetry.spans() == []
    second.set_attributes({attributes.GPU_TIME_STATUS: "ok", GPU_SECONDS: 0.5, attributes.GPU_WINDOW: 0.5})
    second.end()
    assert telemetry.only().end_time == 7
    told = telemetry.attributes()
    assert (told[GPU_SECONDS], told[attributes.GPU_WINDOW]) == (0.75, 1.0)


# -- encoders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer().save_pretrained(tmp_path)
    transformers.BertModel(bert()).save_pretrained(tmp_path)
    return tmp_path


def test_an_encoder_is_one_span_for_all_its_batches(spans: Telemetry, saved: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(saved), device="cpu")
    spans.exporter.clear()
    assert model.encode(["good morning", "bad evening", "one"], batch_size=2).shape == (3, 8)
    assert model.encode("good").shape == (8,)
    names = {span.name for span in spans.spans()}
    told = [dict(span.attributes or {}) for span in spans.spans()]
    assert names == {"inference SentenceTransformer"}
    assert [about[attributes.BATCH_SIZE] for about in told] == [3, 1]
    assert all(about[CPU_SECONDS] > 0 for about in told)


def test_a_cross_encoder_is_one_span(spans: Telemetry, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    tokenizer().save_pretrained(tmp_path)
    transformers.BertForSequenceClassification(bert(num_labels=1)).save_pretrained(tmp_path)
    model = library.CrossEncoder(str(tmp_path), device="cpu")
    spans.exporter.clear()
    assert model.predict([("good", "bad"), ("one", "two")]).shape == (2,)
    model.predict(("good", "bad"))
    told = [dict(span.attributes or {}) for span in spans.spans()]
    assert [about[attributes.BATCH_SIZE] for about in told] == [2, 1]


def test_encoders_are_given_back(telemetry: Telemetry) -> None:
    library = pytest.importorskip("sentence_transformers")
    targets = [target.partition(":")[2].split(".") for target in ENCODERS]
    stood = [vars(getattr(library, kind))[name] for kind, name in targets]
    TorchInstrumentor().instrument(tracer_provider=telemetry.provider)
    assert all(vars(getattr(library, k))[n] is not was for (k, n), was in zip(targets, stood, strict=True))
    TorchInstrumentor().uninstrument()
    assert [vars(getattr(library, kind))[name] for kind, name in targets] == stood


# -- a model that is none of torch's -----------------------------------------------------------------------------------


def test_a_pipeline_over_onnx_runtime_is_that_one_s_inference_alone(spans: Telemetry, tmp_path: Path) -> None:
    pytest.importorskip("optimum.onnxruntime")
    pytest.importorskip("onnx")
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor

    from .test_onnxruntime_frameworks import encoder

    bert().save_pretrained(tmp_path)
    encoder(tmp_path / "model.onnx")
    OnnxRuntimeInstrumentor().instrument(tracer_provider=spans.provider)
    try:
        model = ORTModelForFeatureExtraction.from_pretrained(tmp_path)
        pipe = transformers.pipeline("feature-extraction", model=model, tokenizer=tokenizer())
        pipe(["good morning", "bad"])
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert [span.name for span in spans.spans()] == ["model_load model", *["inference model"] * 2]


def test_generate_of_what_is_no_module_is_left_alone(spans: Telemetry) -> None:
    class Served(transformers.GenerationMixin):  # type: ignore[misc, name-defined]
        """As optimum's models for ONNX Runtime are made."""

        config = None

    with pytest.raises(AttributeError):
        Served().generate(torch.ones(1, 2, dtype=torch.long))
    assert spans.spans() == []
