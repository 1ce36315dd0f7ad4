"""``tollspan demo``: what an example's program cost, and the proof."""

from __future__ import annotations

import json
import signal
import sys
from enum import StrEnum
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from tollspan.processor.cli.output import Format, plain


class ReportFormat(StrEnum):
    """Formats of a report."""

    table = "table"
    json = "json"
    markdown = "markdown"


class ExampleName(StrEnum):
    """Programs that the demo can run, by the names of their folders."""

    support_agent = "support_agent"
    rag_ranker = "rag_ranker"


def demo(
    example: Annotated[ExampleName, typer.Argument(help="Which program.")] = ExampleName.support_agent,
    requests: Annotated[int, typer.Option(min=1, help="Requests to work through.")] = 300,
    keep: Annotated[str, typer.Option(help="Share of error-free traces whose bodies are kept, 0 to 1.")] = "0.1",
    output: Annotated[ReportFormat, typer.Option("--format", help="Of the report.")] = ReportFormat.table,
    store: Annotated[
        str | None, typer.Option(help="Store to use; by default an embedded one in a folder of its own.")
    ] = None,
    keep_files: Annotated[
        bool, typer.Option("--keep-files", help="Leave logs, spans and the LLM stub's record for you to read.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the requests and of the LLM stub.")] = 0,
) -> None:
    """Run an example, say what it cost, and compare with a tally made without Tollspan.

    support_agent is a support assistant; rag_ranker a help centre with a vector store and a torch ranker, which needs
    the extra `rag`. Three processes run: a local stub in place of the LLM provider, `tollspan serve`, and the program
    under opentelemetry-instrument. Nothing leaves this machine. Exit code 1 when ledger and tally differ.

    Example: tollspan demo --requests 300 --format markdown
    """
    # Here, so that the other commands do not wait for the demo's imports.
    from tollspan.processor.demo import DemoOptions, comparison, conservation, run_demo, summary
    from tollspan.processor.report import print_report

    # `timeout` and service managers end us with SIGTERM: leave by way of the clean-up, like Ctrl-C.
    signal.signal(signal.SIGTERM, _leave)
    options = DemoOptions(example.value, requests=requests, keep=keep, store=store, keep_files=keep_files, seed=seed)
    console = Console(stderr=True, highlight=False)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("starting", total=requests)

        def say(text: str) -> None:
            bar.update(task, description=text)
            if not console.is_terminal:  # a log gets a line for each stage in the place of a moving bar
                console.print(text)

        result = run_demo(options, say=say, progress=lambda done: bar.update(task, completed=done))

    agreed, sentence = comparison(result)
    whole, parts = conservation(result.report)
    agreed, sentence = agreed and whole, f"{parts}\n\n{sentence}"
    if output is ReportFormat.json:
        print(json.dumps({name: plain(value) for name, value in summary(result).items()}, ensure_ascii=False, indent=2))
    else:
        print_report(result.report, Format(output.value), brief=True)
        print(f"\n{sentence}")
    if output is ReportFormat.json and not agreed:
        print(sentence, file=sys.stderr)
    if store is None:
        console.print(f"\nThe ledger is kept in {result.store}; ask it more:", soft_wrap=True)
        console.print(f"    tollspan query by-model --store {result.store}", soft_wrap=True, markup=False)
    if result.files is not None:
        console.print(f"Logs, spans and the LLM stub's record: {result.files}", soft_wrap=True)
    if not agreed:
        raise typer.Exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
