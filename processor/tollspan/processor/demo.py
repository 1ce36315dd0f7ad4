"""The demo: an example's program, the LLM stub and the service, each its own process, and the ledger beside a tally.

In: `DemoOptions`. Out: a `DemoResult`: the report made from the store, and the figure that the example computes without
Tollspan. The demo stands outside the line: it starts the same commands that a user would, reads the store through the
same door as ``tollspan report``, and imports nothing of the example.

    llm stub ◀─ the providers' APIs ─ program under opentelemetry-instrument ─ OTLP ─▶ tollspan serve ─▶ store
       └▶ served.jsonl ─┐               └▶ console exporter: spans.txt ─┐                                 └▶ report
                        └───────────────────▶ tally.py ◀────────────────┘                 compared with ◀────┘
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from tollspan.processor.children import Child
from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.report import BRIEF, build_report, cost_by_part
from tollspan.processor.runtime import parse_keep
from tollspan.processor.store import Embedded, Server, connect_for_query, locate

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Example:
    """A program that the demo can run.

    Attributes:
        name: of its folder and of its program.
        called: what messages call the running program.
        needs: modules that it imports.
        extra: of tollspan's, which brings them.
        settings: of its environment, beside those that all have.
    """

    name: str
    called: str
    needs: tuple[str, ...]
    extra: str
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def program(self) -> str:
        return f"{self.name}.py"


SUPPORT_AGENT: Final = Example(
    "support_agent", "assistant", ("openai", "anthropic", "feast", "onnx", "onnxruntime"), "demo"
)
RAG_RANKER: Final = Example(
    "rag_ranker",
    "help centre",
    ("openai", "feast", "onnx", "onnxruntime", "qdrant_client", "torch"),
    "rag",
    {
        # What its machines hold and what they send is part of the bill; the stub stands where the provider would.
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=demo,cloud.provider=aws,cloud.region=us-east-1",
        "TOLLSPAN_CAPACITY": "cpu",
        "TOLLSPAN_NETWORK": "on",
        "TOLLSPAN_PLACES": "127.0.0.1=internet",
    },
)
EXAMPLES: Final = {example.name: example for example in (SUPPORT_AGENT, RAG_RANKER)}
STUB: Final = "llm_stub.py"
"""In the support assistant's folder: it serves the providers of all examples."""

START_S: Final = 60.0
"""Seconds that a process may take to be ready; importing Feast on a slow machine takes ten of them."""
STALL_S: Final = 120.0
"""Seconds without any finished request after which the assistant is taken to hang."""
DRAIN_S: Final = 60.0
"""Seconds that the service may take to finish what it has accepted."""

NOBODY: Final = "(none)"
"""Key of what carries no such tag: a model loaded before the first request is for no tenant."""

TOKEN_KINDS: Final[Mapping[str, str]] = {
    "tokens.input.uncached": "uncached",
    "tokens.input.cache_read": "cached",
    "tokens.input.cache_write.5m": "written_5m",
    "tokens.input.cache_write.1h": "written_1h",
    "tokens.output": "output",
    "tokens.output.reasoning": "reasoning",
}
"""Meter of the ledger → what the tally calls that kind of tokens."""
_TOKENS: Final = (
    "SELECT meter, toInt64(sum(quantity)) AS tokens FROM ledger FINAL "
    "ARRAY JOIN charges.meter AS meter, charges.quantity AS quantity "
    "WHERE meter LIKE 'tokens.%' AND start_time >= {since:DateTime64(9, 'UTC')} "
    "AND start_time < {until:DateTime64(9, 'UTC')} GROUP BY meter"
)

_PICO: Final = Decimal("1E-12")
_LISTENS: Final = re.compile(r"spans in at (\S+:\d+)")
_REQUEST_DONE: Final = re.compile(rb"^request \d+ of \d+: ", re.MULTILINE)
_OWN_VARIABLES: Final = ("OTEL_", "TOLLSPAN_", "OPENAI_", "ANTHROPIC_")
_LOCAL: Final = "127.0.0.1,localhost"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to run.

    Attributes:
        example: name of the program, a key of `EXAMPLES`.
        requests: requests to work through.
        keep: share of error-free traces whose bodies are kept.
        store: store URL; None for an embedded store in a folder of its own.
        keep_files: leave logs, spans and the stub's record where they are.
        seed: of the requests and of the stub.
    """

    example: str = SUPPORT_AGENT.name
    requests: int = 300
    keep: str = "0.1"
    store: str | None = None
    keep_files: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came of it.

    Attributes:
        report: as `build_report` gives it, for the time of this run.
        tally: what the example's tally printed.
        tokens: tokens in the ledger for the time of this run, by meter.
        spans_acked: spans that the service acknowledged.
        store: URL of the store.
        files: folder with logs, spans and the stub's record; None when it is gone.
    """

    report: Mapping[str, Any]
    tally: Mapping[str, Any]
    tokens: Mapping[str, int]
    spans_acked: int
    store: str
    files: Path | None


def example_directory(name: str = SUPPORT_AGENT.name) -> Path:
    """An example's folder: packed into an installed wheel, else ``examples/`` of the source tree.

    Raises:
        ConfigError: neither is there.
    """
    here = Path(__file__).resolve().parent
    for folder in (here / "_examples" / name, *(parent / "examples" / name for parent in here.parents)):
        if (folder / EXAMPLES[name].program).is_file():
            return folder
    raise ConfigError("The demo's example is not installed.", "Install tollspan from its wheel or its source tree.")


def check_requirements(example: Example, embedded: bool) -> None:
    """Raise ConfigError when the libraries that the demo runs on are not installed.

    Args:
        example: what is to be run.
        embedded: whether the store is an embedded one, which needs chdb.
    """
    needs = (*example.needs, "chdb") if embedded else example.needs
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"The demo needs {', '.join(missing)}.", f"Install them: pip install 'tollspan[{example.extra}]'."
        )


def child_environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of telemetry and provider, proxies off for this machine, and more."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OWN_VARIABLES)}
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = f"{kept[name]},{_LOCAL}" if kept.get(name) else _LOCAL
    return kept | settings


def other_instrumentations() -> str:
    """Instrumentations installed beside ours, for ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``.

    The demo shows Tollspan's spans: another vendor's instrumentation of the same client would show every call twice.
    """
    names = {entry.name for entry in entry_points(group="opentelemetry_instrumentor")}
    return ",".join(sorted(name for name in names if not name.startswith("tollspan_") and name != "threading"))


def launcher() -> list[str]:
    """``opentelemetry-instrument`` of this very environment, whether or not it is on the PATH."""
    script = Path(sys.executable).parent / "opentelemetry-instrument"
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "from opentelemetry.instrumentation.auto_instrumentation import run; run()"]


def run_demo(
    options: DemoOptions,
    *,
    say: Callable[[str], object] = lambda text: None,
    progress: Callable[[int], object] = lambda done: None,
) -> DemoResult:
    """Run the demo to its end.

    Args:
        options: see `DemoOptions`.
        say: told what is being waited for.
        progress: told how many requests are done.

    Raises:
        TollspanError: a requirement is missing or a process failed; all processes are ended and, unless
            ``keep_files`` is set, all files of this run are gone.
    """
    example = EXAMPLES[options.example]
    # What cannot be read is said before anything is made.
    parse_keep(options.keep)
    if options.store is not None:
        locate(options.store)
    home = Path(tempfile.mkdtemp(prefix="tollspan-demo-"))
    files = home / "files"
    files.mkdir()
    url = options.store or f"chdb://{home / 'store'}"
    location = locate(url)
    check_requirements(example, isinstance(location, Embedded))
    done = False
    try:
        # An embedded store's URL is made absolute here: `chdb://` depends on variables that children do not see.
        full = location.url if isinstance(location, Embedded) else url
        result = _run(options, example, location, full, files, say, progress)
        done = True
    finally:
        if not options.keep_files:
            shutil.rmtree(files, ignore_errors=True)
            if not done or options.store is not None:
                shutil.rmtree(home, ignore_errors=True)
    return result


def _run(
    options: DemoOptions,
    example: Example,
    location: Embedded | Server,
    url: str,
    files: Path,
    say: Callable[[str], object],
    progress: Callable[[int], object],
) -> DemoResult:
    folder = example_directory(example.name)
    served, spans, ready = files / "served.jsonl", files / "spans.txt", files / "llm.json"
    # A server's journal would lie in the user's data directory; this one belongs to the run.
    home = location.directory if isinstance(location, Embedded) else files / "journal"
    with ExitStack() as stack:

        def start(name: str, command: list[str], environment: dict[str, str], stdout: Path | None = None) -> Child:
            with _undisturbed():
                child = Child(name, command, environment, files, stdout)
                stack.callback(child.kill)
            return child

        say("starting the LLM stub and the service")
        seed = ["--seed", str(options.seed)]
        stub_program = str(example_directory() / STUB)
        command = [sys.executable, stub_program, "--tally", str(served), "--ready", str(ready), *seed]
        stub = start("LLM stub", command, child_environment())
        command = [sys.executable, "-m", "tollspan.processor.main", "serve", "--listen", "127.0.0.1:0"]
        command += [
            "--http",
            "off",
            "--sql",
            "127.0.0.1:0",
            "--keep",
            options.keep,
            "--prices",
            str(folder / "prices.yaml"),
        ]
        command += [] if isinstance(location, Embedded) else ["--journal", str(home)]
        # The URL may hold a password, so it goes by the environment and not where `ps` shows it.
        service = start("service", command, child_environment(TOLLSPAN_STORE=url))
        base_url = stub.wait_for(lambda: _value(ready, "base_url"), START_S, "it listened")
        address = service.wait_for(lambda: _listens(service, home, location), START_S, "it listened")

        say(f"starting the {example.called}")
        began = datetime.now(UTC)
        program_file = str(folder / example.program)
        command = [*launcher(), sys.executable, program_file, "--requests", str(options.requests), *seed]
        program = start(example.called, command, program_environment(example, base_url, address), stdout=spans)
        _follow(program, options.requests, progress, say)
        say("letting the service finish")
        service.finish(DRAIN_S, stop=True)
        ended = datetime.now(UTC)
        stub.finish(DRAIN_S, stop=True)

    say("reading the ledger")
    tally = _tally(folder, served, spans)
    stats = _value(home / "stats.json", "spans_acked")
    if stats is None:
        raise TollspanError("The service left no counters behind.", "Run again with --keep-files and read its log.")
    reader = connect_for_query(url)
    try:
        # One clock for all, but a span's start is taken a moment before or after ours; a second is plenty.
        window = {"since": began - timedelta(seconds=1), "until": ended + timedelta(seconds=1)}
        report = build_report(reader, window["since"], window["until"], sections=BRIEF)
        tokens = {row["meter"]: row["tokens"] for row in reader.rows(_TOKENS, window)}
    finally:
        reader.close()
    return DemoResult(report, tally, tokens, int(stats), location.url, files if options.keep_files else None)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold SIGTERM and SIGINT back: a child that nobody knows of yet would outlive us."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda sent, _: came.append(sent)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for sent in came:
            signal.raise_signal(sent)


def program_environment(example: Example, base_url: str, address: str) -> dict[str, str]:
    """Environment of an example's program: its providers, and telemetry as any user would set it.

    Args:
        example: what is to be run.
        base_url: of the LLM stub, as OpenAI's client takes it.
        address: OTLP/gRPC address of the service, ``host:port``.
    """
    settings = child_environment(
        OPENAI_BASE_URL=base_url,
        OPENAI_API_KEY="stub",
        # OpenAI's base URL ends in the API's version, Anthropic's has none.
        ANTHROPIC_BASE_URL=base_url.removesuffix("/v1"),
        ANTHROPIC_API_KEY="stub",
        OTEL_SERVICE_NAME=example.name.replace("_", "-"),
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=demo",
        OTEL_TRACES_EXPORTER="otlp,console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_LOGS_EXPORTER="none",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{address}",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_INSECURE="true",
        # The comparison needs every span: the queue must not overflow on a slow machine.
        OTEL_BSP_MAX_QUEUE_SIZE="200000",
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=other_instrumentations(),
    )
    return {**settings, **example.settings}


def _follow(program: Child, requests: int, progress: Callable[[int], object], say: Callable[[str], object]) -> None:
    """Wait for the program's end, counting the requests that its log says are done."""
    done, position = 0, 0
    moved = time.monotonic()
    while program.running:
        with program.log.open("rb") as log:
            log.seek(position)
            new = log.read()
        end = new.rfind(b"\n") + 1
        position += end
        finished = len(_REQUEST_DONE.findall(new[:end]))
        if finished:
            if done == 0:
                say("working through the requests")
            done += finished
            progress(min(done, requests))
            moved = time.monotonic()
        if time.monotonic() - moved > STALL_S:
            raise program.failure(f"finished no request for {STALL_S:g} s")
        time.sleep(0.1)
    program.finish(0)
    progress(requests)


def _tally(folder: Path, served: Path, spans: Path) -> dict[str, Any]:
    """Run the example's tally, a program of its own."""
    command = [sys.executable, str(folder / "tally.py"), "--served", str(served), "--spans", str(spans)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    if answer.returncode != 0:
        raise TollspanError(f"The tally failed:\n{answer.stderr}")
    tally: dict[str, Any] = json.loads(answer.stdout)
    return tally


def _listens(service: Child, home: Path, location: Embedded | Server) -> str | None:
    """OTLP address of the service, once it has one: an embedded store's serve.json says it, else its log does."""
    if isinstance(location, Embedded):
        # A file that a killed service left behind names another process.
        mine = _value(home / "serve.json", "pid") == service.pid
        return _value(home / "serve.json", "grpc") if mine else None
    match = _LISTENS.search(service.log.read_text(encoding="utf-8", errors="replace"))
    return match[1] if match else None


def _value(path: Path, key: str) -> Any:
    """A value of a JSON file that may not be there yet."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(key)
    except (FileNotFoundError, ValueError):
        return None


def comparison(result: DemoResult) -> tuple[bool, str]:
    """Whether ledger and tally agree to the last digit, in cost, tokens and counts, and one line that says so."""
    total, telemetry, tally = result.report["total"], result.report["telemetry"], result.tally
    ledger_cost, tally_cost = _money(total["cost"]), _money(tally["cost"])
    kinds = sorted({*TOKEN_KINDS, *result.tokens})
    counts = [
        ("inferences", total["inferences"], tally["inferences"]),
        ("unpriced inferences", total["unpriced_inferences"], tally["unpriced_inferences"]),
        ("spans acknowledged", result.spans_acked, tally["spans"]),
        ("spans summarized", telemetry["recorded_spans"], tally["spans"]),
        ("traces", telemetry["traces"], tally["traces"]),
        *((kind, result.tokens.get(kind, 0), tally["tokens"].get(TOKEN_KINDS.get(kind), 0)) for kind in kinds),
    ]
    # An example that tells its parts has each of them compared.
    of_tally = {part: _money(cost) for part, cost in tally.get("parts", {}).items()}
    of_ledger = cost_by_part(result.report) if of_tally else {}
    wrong = [
        f"{part} {_shown(of_ledger.get(part))} against {_shown(of_tally.get(part))}"
        for part in sorted({*of_tally, *of_ledger})
        if of_ledger.get(part) != of_tally.get(part)
    ]
    wrong += [f"{name} {ours:,} against {theirs:,}" for name, ours, theirs in counts if ours != theirs]
    if ledger_cost != tally_cost:
        wrong.insert(0, f"cost {_shown(ledger_cost)} against {_shown(tally_cost)}")
    if wrong:
        return False, f"Ledger and tally DIFFER: {', '.join(wrong)}."
    return True, (
        f"Ledger {_shown(ledger_cost)} = tally {_shown(tally_cost)}, to the last digit: {total['inferences']:,} "
        f"inferences, {total['unpriced_inferences']:,} of them without a price on both sides, "
        f"{sum(result.tokens.values()):,} tokens of {len(result.tokens)} kinds, from {tally['spans']:,} spans sent and "
        "acknowledged."
    )


def conservation(report: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the parts of the bill add up to the total, to the last digit, and one line that says so."""
    parts = cost_by_part(report)
    total = _money(report["total"]["cost"])
    known = {part: cost for part, cost in parts.items() if cost is not None}
    added = " + ".join(f"{part} {cost:f}" for part, cost in sorted(known.items(), key=lambda item: -item[1]))
    if sum(known.values(), Decimal(0)) != (total or Decimal(0)):
        return False, f"The parts do NOT add up to the total of {_shown(total)}: {added}."
    return True, f"{added} = {_shown(total)}: the parts add up to the total, to the last digit."


def summary(result: DemoResult) -> dict[str, Any]:
    """The run as one flat object: costs in USD, null where they are not known."""
    report, telemetry = result.report, result.report["telemetry"]
    total = report["total"]

    def by(key: str, *names: str) -> dict[str, Decimal | None]:
        return {"/".join(str(row[n] or NOBODY) for n in names): _money(row["cost"]) for row in report[key]}

    return {
        "spans_sent": result.tally["spans"],
        "spans_acked": result.spans_acked,
        "inferences": total["inferences"],
        "traces": telemetry["traces"],
        "spans_kept": telemetry["all_kept_spans"],
        "currency": total["currency"],
        "total_cost": _money(total["cost"]),
        "tally_cost": _money(result.tally["cost"]),
        "unpriced_inferences": total["unpriced_inferences"],
        "not_billed": total["not_billed"],
        "tokens": dict(sorted(result.tokens.items())),
        "retries": sum(row["retries"] or 0 for row in report["retries"]),
        "cold_starts": sum(row["cold_starts"] for row in report["cold_starts"]),
        "telemetry_bytes": telemetry["bytes"],
        "telemetry_cost": _money(telemetry["cost"]),
        "by_tenant": by("by_tenant", "tenant"),
        "by_feature": by("by_feature", "feature"),
        "by_model": by("by_model", "provider", "model"),
        "by_variant": by("by_variant", "variant"),
        "by_component": by("by_component", "component"),
        "by_part": {part: _money(cost) for part, cost in cost_by_part(report).items()},
        "store": result.store,
    }


def _money(cost: object) -> Decimal | None:
    """A cost with all twelve places, so that equal amounts are equal as text too."""
    return None if cost is None else Decimal(str(cost)).quantize(_PICO)


def _shown(cost: Decimal | None) -> str:
    return "unknown" if cost is None else f"{cost:f} USD"
