"""What instrumentation adds to a PyTorch call: ours beside the plain program and beside global forward hooks.

    python tests/benchmarks/torch_overhead.py [--rounds 40] [--json] [--only "encoder of 6 layers"]

All variants run in one process, one thread, and take turns round by round, so that the machine's moods fall on all of
them alike; each is called ``WARM`` times after it was switched on, since switching has the interpreter forget what it
knew of modules. Times are CPU time of the calling thread, in microseconds a call, the best decile of rounds; what is
added is that less the plain program's. Beside it, in brackets, the CPU time that is added to the whole process: with
spans exported in batches, ours are made after the call, by another thread.

    no span        instrumented, suppressed
    not sampled    the sampler says no; exported in batches otherwise
    span           exported in batches, as by default
    span at once   a span processor that we do not know: the span is made and ended within the call
    SDK span       made by hand round the plain call, with as many attributes, not current, no clocks; at once
    global hooks   the usual way to see every module: they set and clear a flag, and make no span

The encoders show what a span costs where the model has emptied the processor's caches: several times what it costs in a
loop of its own. One has the sizes of all-MiniLM-L6, the smallest that people search with, and four texts of 16 tokens;
the narrow one, a sixth of its work, is here to see our part better, and has no budget. The generation needs
transformers, and is left out without it.

Not a test: prints figures, and exits with 1 when one of ``BUDGETS`` is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from torch import nn

from tollspan.instrumentation.torch import TorchInstrumentor

PLAIN, NO_SPAN, UNSAMPLED, SPAN, AT_ONCE = "plain", "no span", "not sampled", "span", "span at once"
SDK, HOOKS = "SDK span", "global hooks"
INNER = 100
WARM = 60
"""Calls after a variant was switched on that are not measured; of a generation, which calls its model often, three."""

IDENTITY, MANY, GENERATION = "Identity", f"{INNER} Identity", "GPT-2 generate"
ENCODER, SMALL_ENCODER = "encoder of 6 layers", "a narrow encoder"


class Generation:
    """Twenty tokens of a tiny GPT-2."""

    def __init__(self) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        self.model = GPT2LMHeadModel(GPT2Config(n_layer=5, n_head=4, n_embd=64, vocab_size=1000, n_positions=64)).eval()

    def eval(self) -> None:
        pass

    def __call__(self, ids: torch.Tensor) -> object:
        return self.model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)


def encoder_of(width: int, heads: int, inner: int) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(width, heads, inner, batch_first=True), 6)


def workloads() -> dict[str, tuple[nn.Module | Generation, torch.Tensor, int]]:
    """Name → model, input, calls a round."""
    mlp = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    generations: dict[str, tuple[nn.Module | Generation, torch.Tensor, int]] = {}
    with suppress(ImportError):
        generations[GENERATION] = (Generation(), torch.ones(1, 5, dtype=torch.long), 2)
    return {
        **generations,
        IDENTITY: (nn.Identity(), torch.ones(1, 1), 400),
        MANY: (nn.Sequential(*(nn.Identity() for _ in range(INNER))), torch.ones(1, 1), 100),
        "MLP of 4 modules": (mlp, torch.ones(8, 64), 200),
        SMALL_ENCODER: (encoder_of(128, 4, 256), torch.ones(4, 16, 128), 20),
        ENCODER: (encoder_of(384, 12, 1536), torch.ones(4, 16, 384), 5),
    }


class Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def provider(sampler: Sampler, *, batches: bool = True) -> TracerProvider:
    made = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(Nowhere()) if batches else SpanProcessor())
    return made


PROVIDERS = {
    UNSAMPLED: provider(ALWAYS_OFF),
    SPAN: provider(ALWAYS_ON),
    AT_ONCE: provider(ALWAYS_ON, batches=False),
}


@contextmanager
def instrumented(variant: str) -> Iterator[None]:
    TorchInstrumentor().instrument(tracer_provider=PROVIDERS[variant])
    try:
        yield
        PROVIDERS[variant].force_flush()
    finally:
        TorchInstrumentor().uninstrument()


@contextmanager
def plain() -> Iterator[None]:
    yield


@contextmanager
def no_span() -> Iterator[None]:
    with instrumented(SPAN), suppress_instrumentation():
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
    UNSAMPLED: lambda: instrumented(UNSAMPLED),
    SPAN: lambda: instrumented(SPAN),
    AT_ONCE: lambda: instrumented(AT_ONCE),
    HOOKS: hooks,
    SDK: plain,
}


class WithSdkSpan:
    """A model in a span made by hand."""

    def __init__(self, model: Callable[[torch.Tensor], object]) -> None:
        self.model, self.tracer = model, PROVIDERS[AT_ONCE].get_tracer("bare")

    def __call__(self, x: torch.Tensor) -> object:
        span = self.tracer.start_span("inference", attributes={"a": "1", "b": "2", "c": "3", "d": 4, "e": "5", "f": 6})
        try:
            return self.model(x)
        finally:
            span.set_attributes({"g": 0.5, "h": "process"})
            span.end()


def round_of(variant: str, model: Callable[[torch.Tensor], object], x: torch.Tensor, calls: int) -> tuple[float, float]:
    """CPU time of one call in microseconds: the thread's, and the process' with what comes after."""
    called = WithSdkSpan(model) if variant == SDK else model
    for _ in range(3 if isinstance(model, Generation) else WARM):
        called(x)
    for each in PROVIDERS.values():
        each.force_flush()
    whole, own = time.process_time_ns(), time.thread_time_ns()
    for _ in range(calls):
        called(x)
    own = time.thread_time_ns() - own
    if variant in PROVIDERS:
        PROVIDERS[variant].force_flush()
    return own / calls / 1000, (time.process_time_ns() - whole) / calls / 1000


def measure(rounds: int, only: str | None) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)  # one fused call for a whole encoder layer would hide its modules
    gc.collect()
    gc.freeze()
    rows: list[dict[str, object]] = []
    with torch.no_grad():
        for name, (model, x, calls) in workloads().items():
            if only is not None and name != only:
                continue
            model.eval()
            times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
            for _ in range(rounds):
                for variant, switch in VARIANTS.items():
                    with switch():  # type: ignore[attr-defined]
                        times[variant].append(round_of(variant, model, x, calls))
            best = {
                variant: [statistics.quantiles(column, n=10)[0] for column in zip(*times[variant], strict=True)]
                for variant in VARIANTS
            }
            added = {
                variant: [a - b for a, b in zip(best[variant], best[PLAIN], strict=True)]
                for variant in VARIANTS
                if variant != PLAIN
            }
            rows.append({"model": name, PLAIN: best[PLAIN][0], **added})
    return rows


BUDGETS: tuple[tuple[str, str, float, bool], ...] = (
    (IDENTITY, NO_SPAN, 2.5, False),
    (IDENTITY, SPAN, 30, False),
    (IDENTITY, AT_ONCE, 30, False),
    (ENCODER, SPAN, 0.04, True),
    (GENERATION, SPAN, 0.04, True),
)
"""Model, variant, the most that it may add: in µs, or (True) as a share of the plain call."""
MOST_INNER = 0.35
"""µs that may be added to a module inside another."""


def missed(rows: dict[str, dict[str, object]], inner: dict[str, float]) -> list[str]:
    """Budgets that were not kept, in words."""
    said = []
    for name, variant, most, share in BUDGETS:
        if name in rows:
            added, base = float(rows[name][variant][0]), float(rows[name][PLAIN])  # type: ignore[arg-type,index]
            if (added / base if share else added) > most:
                said.append(f"{name}, {variant}: {added:.1f} µs added to {base:.1f}; at most {most:g}")
    if inner and inner[NO_SPAN] > min(MOST_INNER, inner[HOOKS]):
        said.append(f"an inner module: {inner[NO_SPAN]:.2f} µs; at most {MOST_INNER:g}, and less than global hooks")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", help="one of the models, by its name")
    options = parser.parse_args()

    rows = measure(options.rounds, options.only)
    by_name = {str(row["model"]): row for row in rows}
    inner: dict[str, float] = {}
    if IDENTITY in by_name and MANY in by_name:
        inner = {
            variant: (by_name[MANY][variant][0] - by_name[IDENTITY][variant][0]) / INNER  # type: ignore[index]
            for variant in (NO_SPAN, SPAN, HOOKS)
        }
    if options.json:
        print(json.dumps({"added_us": rows, "added_us_per_inner_module": inner}))
    else:
        print(f"{'added µs a call':21}{PLAIN:>10}" + "".join(f"{each:>25}" for each in VARIANTS if each != PLAIN))
        for row in rows:
            base = float(row[PLAIN])  # type: ignore[arg-type]
            cells = (
                f"{own:.2f} (x{1 + own / base:.3f}) [{whole:.1f}]"
                for own, whole in (row[variant] for variant in VARIANTS if variant != PLAIN)  # type: ignore[misc]
            )
            print(f"{row['model']!s:21}{base:10.2f}" + "".join(f"{cell:>25}" for cell in cells))
        if inner:
            print("per inner module: " + ", ".join(f"{variant} {value:.3f} µs" for variant, value in inner.items()))
    if over := missed(by_name, inner):
        sys.exit("\n".join(over))


if __name__ == "__main__":
    main()
