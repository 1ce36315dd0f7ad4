"""What instrumentation adds to a PyTorch call: ours beside the plain program and beside global forward hooks.

    python tests/benchmarks/torch_overhead.py [--rounds 15] [--json]

All variants run in one process, one thread, and take turns round by round, so that the machine's moods fall on all of
them alike. Times are CPU time of the thread, in microseconds a call; what is added is the median over rounds of the
variant's round less the same round of the plain program. Global hooks, the usual way to see every module, only set and
clear a flag here: they make no span and stand beside our variant without one. "SDK span" is a span of the SDK made by
hand round the plain call, with as many attributes and nothing else: what no instrumentation can go below. The encoder
shows what the same span costs where the model has emptied the processor's caches: several times what it costs in a loop
of its own. The generation needs transformers, and is left out without it.

Not a test: prints figures, and exits with 1 only when global hooks add less to an inner module than we do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from torch import nn

from tollspan.instrumentation.torch import TorchInstrumentor

PLAIN, NO_SPAN, UNSAMPLED, SPAN, HOOKS, SDK = "plain", "no span", "not sampled", "span", "global hooks", "SDK span"
INNER = 100


class Generation:
    """Twenty tokens of a tiny GPT-2."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        self.model = GPT2LMHeadModel(GPT2Config(n_layer=5, n_head=4, n_embd=64, vocab_size=1000, n_positions=64)).eval()

    def eval(self) -> None:
        pass

    def __call__(self, ids: torch.Tensor) -> object:
        return self.model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)


def workloads() -> dict[str, tuple[nn.Module | Generation, torch.Tensor, int]]:
    """Name → model, input, calls a round."""
    mlp = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(128, 4, 256, batch_first=True), 6)
    generations: dict[str, tuple[nn.Module | Generation, torch.Tensor, int]] = {}
    with suppress(ImportError):
        generations["GPT-2 generate"] = (Generation(), torch.ones(1, 5, dtype=torch.long), 3)
    return {
        **generations,
        "Identity": (nn.Identity(), torch.ones(1, 1), 1000),
        f"{INNER} Identity": (nn.Sequential(*(nn.Identity() for _ in range(INNER))), torch.ones(1, 1), 200),
        "MLP of 4 modules": (mlp, torch.ones(8, 64), 500),
        "encoder of 6 layers": (encoder, torch.ones(4, 16, 128), 40),
    }


@contextmanager
def instrumented(sampler: Sampler) -> Iterator[None]:
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SpanProcessor())
    TorchInstrumentor().instrument(tracer_provider=provider)
    try:
        yield
    finally:
        TorchInstrumentor().uninstrument()


@contextmanager
def plain() -> Iterator[None]:
    yield


@contextmanager
def no_span() -> Iterator[None]:
    with instrumented(ALWAYS_ON), suppress_instrumentation():
        yield


@contextmanager
def hooks() -> Iterator[None]:
    inside: list[nn.Module] = []
    before = nn.modules.module.register_module_forward_pre_hook(lambda module, args: inside.append(module))
    after = nn.modules.module.register_module_forward_hook(lambda module, args, output: inside.pop() and None)
    try:
        yield
    finally:
        before.remove()
        after.remove()


VARIANTS: dict[str, Callable[[], object]] = {
    PLAIN: plain,
    NO_SPAN: no_span,
    UNSAMPLED: lambda: instrumented(ALWAYS_OFF),
    SPAN: lambda: instrumented(ALWAYS_ON),
    HOOKS: hooks,
    SDK: plain,
}


class WithSdkSpan:
    """A model in a span made by hand."""

    def __init__(self, model: Callable[[torch.Tensor], object]) -> None:
        provider = TracerProvider()
        provider.add_span_processor(SpanProcessor())
        self.model, self.tracer = model, provider.get_tracer("bare")

    def __call__(self, x: torch.Tensor) -> object:
        span = self.tracer.start_span("inference", attributes={"a": "1", "b": "2", "c": "3", "d": 4, "e": "5", "f": 6})
        try:
            return self.model(x)
        finally:
            span.set_attributes({"g": 0.5, "h": "process"})
            span.end()


def microseconds(model: Callable[[torch.Tensor], object], x: torch.Tensor, calls: int) -> float:
    """CPU time of one call, after as many unmeasured ones as let the interpreter settle on what it finds."""
    for _ in range(max(calls // 10, min(calls, 5))):
        model(x)
    start = time.thread_time_ns()
    for _ in range(calls):
        model(x)
    return (time.thread_time_ns() - start) / calls / 1000


def measure(rounds: int) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # one fused call for a whole encoder layer would hide its modules
    rows: list[dict[str, object]] = []
    with torch.no_grad():
        for name, (model, x, calls) in workloads().items():
            model.eval()
            times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
            for _ in range(rounds):
                for variant, switch in VARIANTS.items():
                    with switch():  # type: ignore[attr-defined]
                        called = WithSdkSpan(model) if variant == SDK else model
                        times[variant].append(microseconds(called, x, calls))
            base = statistics.median(times[PLAIN])
            added = {
                variant: statistics.median(a - b for a, b in zip(times[variant], times[PLAIN], strict=True))
                for variant in VARIANTS
                if variant != PLAIN
            }
            rows.append({"model": name, "plain": base, **added})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    rows = measure(options.rounds)
    one, many = (next(row for row in rows if row["model"] == name) for name in ("Identity", f"{INNER} Identity"))
    inner = {variant: (float(many[variant]) - float(one[variant])) / INNER for variant in (NO_SPAN, SPAN, HOOKS)}  # type: ignore[arg-type]
    if options.json:
        print(json.dumps({"added_us": rows, "added_us_per_inner_module": inner}))
    else:
        added = (NO_SPAN, UNSAMPLED, SPAN, SDK, HOOKS)
        print(f"{'added µs a call':24}{PLAIN:>10}" + "".join(f"{variant:>22}" for variant in added))
        for row in rows:
            base = float(row["plain"])  # type: ignore[arg-type]
            cells = (f"{row[v]:.2f} (x{1 + float(row[v]) / base:.3f})" for v in added)  # type: ignore[arg-type]
            print(f"{row['model']!s:24}{base:10.2f}" + "".join(f"{cell:>22}" for cell in cells))
        print("per inner module: " + ", ".join(f"{variant} {value:.3f} µs" for variant, value in inner.items()))
    if inner[NO_SPAN] > inner[HOOKS]:
        sys.exit("global hooks add less to an inner module than we do")


if __name__ == "__main__":
    main()
