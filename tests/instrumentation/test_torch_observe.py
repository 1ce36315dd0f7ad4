"""What only the program can name is seen once, generations and graphs as one call, and a batch's cost is shared out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import StatusCode
from torch import nn

from tollspan.instrumentation.device_clock import GPU_SECONDS
from tollspan.instrumentation.tags import tag
from tollspan.instrumentation.torch import TorchInstrumentor
from tollspan.instrumentation.torch_cuda import RESOLVER
from tollspan.instrumentation.torch_events import EventClock
from tollspan.instrumentation.torch_observe import observe
from tollspan.instrumentation.torch_resolver import Resolver
from tollspan.instrumentation.torch_shares import Request, split
from tollspan.pricing import attributes

from .conftest import Telemetry
from .fake_device import FakeDevice

CPU_SECONDS = attributes.usage("cpu.seconds")
MS = 1_000_000


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def resolver() -> Resolver:
    return Resolver(thread=False)


@pytest.fixture
def torch_spans(telemetry: Telemetry, device: FakeDevice, resolver: Resolver) -> Iterator[Telemetry]:
    """PyTorch instrumented, with a fake device in the place of the CPU."""
    clock = EventClock(device, resolver)
    TorchInstrumentor().instrument(tracer_provider=telemetry.provider, clock_for=lambda device_type, index: clock)
    yield telemetry
    TorchInstrumentor().uninstrument()


def named(telemetry: Telemetry, name: str) -> list[dict[str, Any]]:
    return [dict(span.attributes or {}) for span in telemetry.spans() if span.name == name]


# -- observe -----------------------------------------------------------------------------------------------------------


def test_what_is_observed_is_one_span_with_all_that_runs_inside(torch_spans: Telemetry) -> None:
    with tag(tenant="acme"), observe("reranker", batch_size=8) as run:
        nn.Linear(2, 2).eval()(torch.ones(1, 2))
        run.input_positions = 120
    span = torch_spans.only()
    told = torch_spans.attributes()
    assert span.name == "inference reranker"
    assert told.pop(CPU_SECONDS) > 0
    assert told == {
        attributes.OPERATION: "inference",
        attributes.PROVIDER: "pytorch",
        attributes.MODEL: "reranker",
        attributes.TENANT: "acme",
        attributes.BATCH_SIZE: 8,
        attributes.POSITIONS_IN: 120,
        attributes.CPU_TIME_SOURCE: "process",
    }


def test_a_model_that_is_observed_is_known_with_its_device(
    torch_spans: Telemetry, device: FakeDevice, resolver: Resolver
) -> None:
    model = nn.Linear(2, 2).eval()
    for _ in range(2):
        with observe(model):
            model.forward(torch.ones(1, 2))
            device.launch(3 * MS)
    device.now = 10 * MS
    resolver.poll()
    spans = named(torch_spans, "inference Linear")
    assert [told[GPU_SECONDS] for told in spans] == [0.003, 0.003]
    assert [told.get(attributes.COLD_START) for told in spans] == [True, None]


def test_a_device_that_is_named_is_timed(torch_spans: Telemetry, device: FakeDevice, resolver: Resolver) -> None:
    with observe("kernel", device="cpu"):
        device.launch(2 * MS)
    device.now = 2 * MS
    resolver.poll()
    assert torch_spans.attributes()[GPU_SECONDS] == 0.002


def test_inside_another_execution_and_where_suppressed_it_is_nothing(torch_spans: Telemetry) -> None:
    with observe("outer"):
        with observe("inner") as run:
            run.batch_size = 3
        nn.Identity().eval()(torch.ones(1, 1))  # still inside the outer one
    with suppress_instrumentation(), observe("nobody"):
        pass
    assert torch_spans.only().name == "inference outer"
    assert attributes.BATCH_SIZE not in torch_spans.attributes()


def test_as_a_decorator_it_serves_every_call_and_passes_the_exception(torch_spans: Telemetry) -> None:
    error = ValueError("no")

    @observe("scorer")
    def score(fail: bool) -> int:
        if fail:
            raise error
        return 7

    assert score(False) == 7
    with pytest.raises(ValueError) as caught:
        score(True)
    assert caught.value is error
    assert [span.status.status_code for span in torch_spans.spans()] == [StatusCode.UNSET, StatusCode.ERROR]


def test_what_leaves_its_thread_in_the_middle_is_refused() -> None:
    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    for function in (coroutine, generator):
        with pytest.raises(TypeError):
            observe("x")(function)


def test_without_the_instrumentation_it_goes_to_the_global_provider() -> None:
    with observe("alone"):
        pass  # none is set: nothing happens, and nothing fails


# -- shares ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_shares_add_up_and_are_in_proportion(total: int, weights: list[int]) -> None:
    shares = split(total, weights)
    assert sum(shares) == total
    whole = sum(weights)
    for share, weight in zip(shares, weights, strict=True):
        exact = total * weight / whole if whole else total / len(weights)
        assert abs(share - exact) < 1 + exact * 1e-9


@pytest.mark.parametrize(
    ("total", "weights", "shares"),
    [(10, [1, 1, 1], [4, 3, 3]), (5, [0, 0], [3, 2]), (7, [0, 2, 5], [0, 2, 5]), (0, [3], [0])],
)
def test_a_split_is_the_same_every_time(total: int, weights: list[int], shares: list[int]) -> None:
    assert split(total, weights) == shares


@pytest.mark.parametrize("weight", [-1, 1.5, True])
def test_a_weight_is_a_count(weight: Any) -> None:
    with pytest.raises(ValueError):
        Request.here(weight)


def test_each_request_bears_its_share_in_its_own_trace(
    torch_spans: Telemetry, device: FakeDevice, resolver: Resolver
) -> None:
    tracer = torch_spans.provider.get_tracer("server")
    requests, roots = [], []
    for tenant, tokens in (("acme", 10), ("umbrella", 20), ("none of it", 0)):
        with tag(tenant=tenant), tracer.start_as_current_span(f"request of {tenant}") as root:
            requests.append(Request.here(tokens))
            roots.append(root.get_span_context())
    with observe("ranker", device="cpu", requests=requests, rule="tokens") as run:
        device.launch(100 * MS + 1)
        run.batch_size = 3
    device.now = 1000 * MS
    resolver.poll()

    spans = [span for span in torch_spans.spans() if span.name == "inference ranker"]
    whole = next(span for span in spans if span.links and len(span.links) == 3)
    parts = [span for span in spans if span is not whole]
    assert [link.context for link in whole.links] == roots
    assert (whole.attributes or {})[attributes.USAGE_ELSEWHERE] is True
    assert not {GPU_SECONDS, CPU_SECONDS} & set(whole.attributes or {})
    assert (whole.attributes or {})[attributes.GPU_WINDOW] == 0.100000001

    told = [dict(part.attributes or {}) for part in parts]
    assert [part.parent for part in parts] == roots
    assert [round(each[GPU_SECONDS] * 1e9) for each in told] == [33_333_334, 66_666_667, 0]
    assert [each[attributes.TENANT] for each in told] == ["acme", "umbrella", "none of it"]
    assert {each[attributes.SHARE_RULE] for each in told} == {"tokens"}
    assert {each[attributes.USAGE_ESTIMATED] for each in told} == {True}
    assert {part.end_time for part in parts} == {whole.end_time}


# -- generate ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpt(torch_spans: Telemetry) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=64)
    return transformers.GPT2LMHeadModel(config).eval()


def finish(device: FakeDevice, resolver: Resolver) -> None:
    device.now += 1
    resolver.poll()


def test_a_generation_is_one_span_with_its_positions(
    torch_spans: Telemetry, gpt: Any, device: FakeDevice, resolver: Resolver
) -> None:
    ids = torch.ones(3, 5, dtype=torch.long)
    result = gpt.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    finish(device, resolver)
    told = torch_spans.attributes()
    assert result.shape == (3, 9)
    assert torch_spans.only().name == "inference GPT2LMHeadModel"
    assert told[attributes.POSITIONS_IN] == 15
    assert told[attributes.POSITIONS_OUT] == 12
    assert told[attributes.BATCH_SIZE] == 3
    assert told[attributes.SEQUENCE_LENGTH] == 5


def test_a_generation_that_gives_more_than_ids_is_counted_too(
    torch_spans: Telemetry, gpt: Any, device: FakeDevice, resolver: Resolver
) -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    gpt.generate(
        input_ids=ids,
        max_new_tokens=2,
        num_return_sequences=2,
        num_beams=2,
        return_dict_in_generate=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    finish(device, resolver)
    told = torch_spans.attributes()
    assert (told[attributes.POSITIONS_IN], told[attributes.POSITIONS_OUT]) == (6, 8)


def test_a_failing_generation_fails_as_it_does_alone(
    torch_spans: Telemetry, gpt: Any, device: FakeDevice, resolver: Resolver
) -> None:
    with pytest.raises(ValueError):
        gpt.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=0)
    finish(device, resolver)
    assert torch_spans.only().status.status_code is StatusCode.ERROR
    gpt(torch.ones(1, 3, dtype=torch.long))
    finish(device, resolver)
    assert len(torch_spans.spans()) == 2


def test_uninstrument_restores_generate(telemetry: Telemetry) -> None:
    pytest.importorskip("transformers")
    from transformers import GenerationMixin

    original = GenerationMixin.__dict__["generate"]
    TorchInstrumentor().instrument(tracer_provider=telemetry.provider)
    assert GenerationMixin.__dict__["generate"] is not original
    TorchInstrumentor().uninstrument()
    assert GenerationMixin.__dict__["generate"] is original


# -- CUDA graphs -------------------------------------------------------------------------------------------------------


class FakeGraph:
    """As ``torch.cuda.CUDAGraph`` is used: nothing runs while it is captured, and everything when it is replayed."""

    device: FakeDevice

    def capture_begin(self, pool: object = None) -> None:
        assert RESOLVER.captures == 1, "whoever asks devices has to know before the capture begins"
        self.device.capturing_now = True

    def capture_end(self) -> None:
        self.device.capturing_now = False

    def replay(self) -> None:
        self.device.launch(5 * MS)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch, device: FakeDevice, request: pytest.FixtureRequest) -> FakeGraph:
    """To be asked for before the instrumentation."""
    import torch.cuda.graphs

    monkeypatch.setattr(torch.cuda.graphs, "CUDAGraph", FakeGraph)
    request.getfixturevalue("torch_spans")
    graph = FakeGraph()
    graph.device = device
    return graph


def test_a_replay_is_an_inference_of_the_model_in_the_graph(
    graph: FakeGraph, telemetry: Telemetry, device: FakeDevice, resolver: Resolver
) -> None:
    model = nn.Linear(2, 2).eval()
    graph.capture_begin()
    model(torch.ones(3, 2))
    graph.capture_end()
    assert RESOLVER.captures == 0
    for _ in range(2):
        graph.replay()
    device.now = 100 * MS
    resolver.poll()
    captured, *replayed = named(telemetry, "inference Linear")
    assert captured[attributes.GPU_TIME_STATUS] == "skipped"
    assert [told[GPU_SECONDS] for told in replayed] == [0.005, 0.005]
    assert [told[attributes.BATCH_SIZE] for told in replayed] == [3, 3]
    assert attributes.COLD_START not in replayed[0]


def test_a_replay_inside_a_module_call_is_part_of_it(
    graph: FakeGraph, telemetry: Telemetry, device: FakeDevice, resolver: Resolver
) -> None:
    with observe("model", device="cpu"):
        graph.replay()
    device.now = 100 * MS
    resolver.poll()
    assert telemetry.attributes()[GPU_SECONDS] == 0.005


def test_a_capture_that_fails_to_begin_is_none(graph: FakeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError):
        graph.capture_begin(nothing=1)  # type: ignore[call-arg]
    assert RESOLVER.captures == 0
