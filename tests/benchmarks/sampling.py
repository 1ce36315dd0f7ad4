"""What sampling decisions cost: CPU beside all else that the pipeline does, memory of open traces, and time of a tick.

    python tests/benchmarks/sampling.py [cpu] [tick] [memory] [--open 1000000]

**cpu**: the real pipeline behind the journal, with a store that takes everything at once, and a file of ten rules. The
share is that of look, offer and tick in the CPU time of the pipeline's thread; gRPC and the journal are not in it, so
of the whole service it is less. The goal is 10 %.

**tick**: a round that decides 2,000 traces, while more and more others are open; and one that decides more and more.
Beside it the way it was done before: everything that waits is put together and sorted at each look.

**memory**: a process of its own, tuned as the service is, in which a million traces of 8 spans with 14 attributes wait.
Their bodies are on disk but for the bound (`sampling.max_pending_bytes`). The goal is 1.5 GiB resident.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__" and "memory-child" in sys.argv:
    from tollspan.processor.memory import keep_freed_memory

    keep_freed_memory()

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from load import SPANS_PER_TRACE, requests  # noqa: E402  (a script's neighbour)

from tollspan.pricing import PriceEngine, shipped_book  # noqa: E402
from tollspan.processor.counters import Counters  # noqa: E402
from tollspan.processor.decode import fused  # noqa: E402
from tollspan.processor.identity import distinct  # noqa: E402
from tollspan.processor.journal import Batch, Range  # noqa: E402
from tollspan.processor.pipeline import Pipeline, Settings  # noqa: E402
from tollspan.processor.sample import Pending, Plain, Policy, Signs, TailSampler  # noqa: E402
from tollspan.processor.sample.levels import Figure, Levels  # noqa: E402
from tollspan.processor.sample.policy import RulePolicy  # noqa: E402
from tollspan.processor.sample.rules import read_sampling  # noqa: E402

RULES = """
rules:
  - {name: asked-for, when: {marked: keep}, keep: always}
  - {name: not-wanted, when: {any: [{marked: drop}, {root: {name: [GET /healthz, GET /readyz]}}]}, keep: never}
  - {name: server-errors, when: {any: [{http_status: [5xx, 429]}, {error_type: {in: [timeout, rate_limit_exceeded]}}]}, keep: always}
  - {name: internal-errors, when: {error: true, tenant: internal}, keep: 20%}
  - {name: errors, when: {error: true}, keep: always}
  - {name: loops, when: {loop: {retries: 10, calls: 60, depth: 40}}, keep: always}
  - {name: runaway, when: {any: [{expensive: 2.50}, {expensive: {over: 1.00}, spans: 500}]}, keep: always}
  - {name: dearest, when: {any: [{expensive: {above: p99, of: feature}}]}, keep: always}
  - {name: no-price, when: {unpriced: true}, keep: 50%}
  - {name: slow, when: {any: [{slow: 60s}, {slow: {above: p99, of: route, window: 30m}}]}, keep: always}
base: {keep: 10%}
"""  # noqa: E501


class Nowhere:
    """A journal and a store that take everything and hold nothing."""

    away = ""
    id = b"x" * 16
    cursor = (0, 0)

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def release(self, *_: Any) -> None: ...

    def write(self, *_: Any) -> None: ...

    def put(self, *_: Any) -> None: ...


class Line:
    """The pipeline, driven by hand at a time of our own."""

    def __init__(self, folder: Path, policy: Policy, **settings: Any) -> None:
        nowhere: Any = Nowhere(folder)
        self.pipeline = Pipeline(nowhere, nowhere, PriceEngine(shipped_book()), Settings(**settings), Counters())
        self.pipeline.sampler.memory.open(folder / "sampling")
        self.pipeline.sampler.use(policy)
        self.now = 0.0
        self.pipeline.clock = lambda: self.now
        self.number = 0

    def take(self, payloads: list[bytes], seconds: float) -> None:
        self.number += 1
        place = Range(1, self.number * 100, self.number * 100 + 100)
        self.pipeline._guarded(Batch(f"batch-{self.number}", payloads, place, time.time_ns()))
        self.now += seconds
        self.pipeline._decide()
        self.pipeline._let_go()


def ten_rules(folder: Path) -> RulePolicy:
    file = folder / "sampling.yaml"
    file.write_text(RULES)
    return RulePolicy(read_sampling(file), Levels.by_hand(list[Figure]()))


class Watch:
    """CPU time of this thread within some functions."""

    def __init__(self, *places: tuple[Any, str]) -> None:
        self.seconds: dict[str, float] = {}
        for owner, name in places:
            setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - began

        return timed


def cpu(batches: int = 24, size: int = 32) -> None:
    fused.prepare(wait=True)
    print(f"cpu: batches of {size * 512:,} spans, µs a span of the pipeline's thread")
    shares: dict[str, list[float]] = {"share of 10 %": [], "ten rules": []}
    folder = Path(tempfile.mkdtemp(prefix="tollspan-bench-"))
    made: dict[str, Policy] = {"share of 10 %": Plain(0.1), "ten rules": ten_rules(folder)}
    best: dict[str, tuple[float, dict[str, float], float]] = {}
    for _ in range(3):
        for name, policy in made.items():
            line = Line(Path(tempfile.mkdtemp(dir=folder)), policy, keep=0.1)
            for _ in range(6):
                line.take(requests(size), 2.0)
            watch = Watch(*((line.pipeline.sampler, each) for each in ("look", "offer", "tick")))
            work = [requests(size) for _ in range(batches)]
            began = time.thread_time()
            for payloads in work:
                line.take(payloads, 2.0)
            whole, spans = time.thread_time() - began, batches * size * 512
            ours = sum(watch.seconds.values())
            shares[name].append(ours / whole)
            if name not in best or ours / spans < best[name][2]:
                parts = {each: seconds / spans * 1e6 for each, seconds in watch.seconds.items()}
                best[name] = whole / spans * 1e6, parts, ours / spans
    shutil.rmtree(folder)
    for name, (whole_us, parts, _) in best.items():
        said = ", ".join(f"{each} {value:.3f}" for each, value in parts.items())
        print(f"  {name:14} {whole_us:5.2f} in all; {said}: {100 * min(shares[name]):.1f} %")
    print(f"  goal: at most 10 % with ten rules: {'reached' if min(shares['ten rules']) <= 0.1 else 'not reached'}")


# -- ticks -------------------------------------------------------------------------------------------------------------


class Weightless:
    """Bodies of no size."""

    nbytes = 0

    def select(self, rows: Any) -> Weightless:
        return self


def offered(sampler: TailSampler, traces: range, root: bool, now: float, chunk: int = 4000) -> None:
    """Traces of 8 spans."""
    for first in range(traces.start, traces.stop, chunk):
        numbers = np.arange(first, min(first + chunk, traces.stop), dtype=np.uint64)
        keys = np.repeat(numbers * np.uint64(0x9E3779B97F4A7C15), SPANS_PER_TRACE)
        count = len(keys)
        ids = np.column_stack([keys, keys])
        signs = {sampler.policies.current: Signs({"marks": np.zeros(count, np.uint8)}, count)}
        roots = np.zeros(count, np.bool_)
        roots[::SPANS_PER_TRACE] = root
        spans, random = np.arange(count, dtype=np.uint64), keys >> np.uint64(8)
        sampler.offer(Pending(None, Weightless(), keys, ids, spans, random, roots, signs, now, 0))


class Sorting:
    """How it was done before: each look puts everything together that waits, and sorts it by trace."""

    def __init__(self) -> None:
        self.waiting: list[dict[str, Any]] = []

    def offer(self, traces: range, root: bool, now: float, chunk: int = 4000) -> None:
        for first in range(traces.start, traces.stop, chunk):
            numbers = np.arange(first, min(first + chunk, traces.stop), dtype=np.uint64)
            keys = np.repeat(numbers * np.uint64(0x9E3779B97F4A7C15), SPANS_PER_TRACE)
            roots = np.zeros(len(keys), np.bool_)
            roots[::SPANS_PER_TRACE] = root
            self.waiting.append({"trace": keys, "root": roots, "arrived": now})

    def tick(self, now: float) -> int:
        parts = self.waiting
        sizes = [len(part["trace"]) for part in parts]
        arrived = np.repeat(np.array([part["arrived"] for part in parts]), sizes)
        root = np.concatenate([part["root"] for part in parts])
        keys, _, group = distinct(np.concatenate([part["trace"] for part in parts]))
        born, rooted = np.full(len(keys), np.inf), np.full(len(keys), np.inf)
        np.minimum.at(born, group, arrived)
        np.minimum.at(rooted, group[root], arrived[root])
        due = (rooted + 5.0 <= now) | (born + 1e6 <= now)
        leaving, start = due[group], 0
        for part, size in zip(parts, sizes, strict=True):
            gone = leaving[start : start + size]
            start += size
            if gone.any():
                part["trace"], part["root"] = part["trace"][~gone], part["root"][~gone]
        self.waiting = [part for part in parts if len(part["trace"])]
        return int(due.sum())


def tick() -> None:
    print("tick: ms of CPU for a round (best of 5)")
    print(f"  {'open traces':>12} {'decided':>8} {'now':>9} {'before':>9} {'ratio':>8}")
    for waiting, decided in ((10_000, 2000), (100_000, 2000), (1_000_000, 2000), (100_000, 200), (100_000, 20_000)):
        sampler = TailSampler(Plain(0.1), wait_s=5.0, timeout_s=1e6, max_spans=10**9)
        offered(sampler, range(waiting), False, 0.0)
        before = Sorting()
        before.offer(range(waiting), False, 0.0)
        best, worst, now = np.inf, np.inf, 0.0
        for round_ in range(5):
            some = range(10**7 + round_ * decided, 10**7 + (round_ + 1) * decided)
            offered(sampler, some, True, now)
            before.offer(some, True, now)
            now += 5.0
            began = time.process_time()
            done = sampler.tick(now)
            best = min(best, time.process_time() - began)
            assert done.traces == decided
            if round_ < 3:
                began = time.process_time()
                assert before.tick(now) == decided
                worst = min(worst, time.process_time() - began)
        print(f"  {waiting:12,} {decided:8,} {best * 1e3:9.2f} {worst * 1e3:9.2f} {worst / best:7.1f}×")


# -- memory ------------------------------------------------------------------------------------------------------------


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def memory(traces: int) -> None:
    command = [sys.executable, __file__, "memory-child", "--open", str(traces)]
    subprocess.run(command, check=True)


def memory_child(traces: int, size: int = 32) -> None:
    fused.prepare(wait=True)
    folder = Path(tempfile.mkdtemp(prefix="tollspan-bench-"))
    try:
        line = Line(folder, ten_rules(folder), decision_wait_s=1e6, decision_timeout_s=1e6)
        sampler, spans, most = line.pipeline.sampler, 0, 0
        began, empty = time.perf_counter(), resident()
        while spans < traces * SPANS_PER_TRACE:
            line.take(requests(size), 0.0)
            spans += size * 512
            most = max(most, resident())
        seen = next(iter(sampler.waiting))
        signs = sum(each.nbytes for each in seen.signs.values()) / seen.total
        on_disk = sum(path.stat().st_size for path in (folder / "sampling").glob("*.spilled"))
        open_ = len(sampler.open)
        print(
            f"memory: {open_:,} open traces, {sampler.waiting_spans:,} spans ({time.perf_counter() - began:.0f} s)\n"
            f"  resident {resident() / 2**20:,.0f} MiB, {most / 2**20:,.0f} at the most, {empty / 2**20:,.0f} before"
            f" (and recent spans: {len(line.pipeline.recent.assembler.spans):,})\n"
            f"  waiting in memory {sampler.waiting.nbytes / 2**20:,.0f} MiB, on disk {on_disk / 2**30:.2f} GiB"
            f" ({on_disk / sampler.waiting_spans:.0f} bytes a span)\n"
            f"  signs {signs:.1f} bytes a span; index, slots, runs"
            f" {sampler.open.nbytes / open_:.0f} bytes a trace"
        )
        goal = 1.5 * 2**30
        print(f"  goal: at most 1,536 MiB: {'reached' if most <= goal else 'not reached'}")
        began = time.process_time()
        decided, more = 0, True
        while more:
            done = sampler.tick(1e7, everything=True)
            line.pipeline._settle(done)
            decided, more = decided + done.traces, done.more
        cost = (time.process_time() - began) / spans * 1e6
        print(f"  all decided and summed up: {cost:.2f} µs a span; {resident() / 2**20:,.0f} MiB")
        assert decided == open_
        assert not list((folder / "sampling").glob("*.spilled")) or sampler.tick(1e7).traces == 0
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=["cpu", "tick", "memory"])
    parser.add_argument("--open", type=int, default=1_000_000)
    args = parser.parse_args()
    for part in args.parts:
        if part == "memory-child":
            memory_child(args.open)
        else:
            {"cpu": cpu, "tick": tick, "memory": lambda: memory(args.open)}[part]()


if __name__ == "__main__":
    main()
