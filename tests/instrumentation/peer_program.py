"""A program with two instrumentations of one client: run as ``python -m tests.instrumentation.peer_program``.

In: name of a client in `every_client`, the peer's instrumentor as ``module:Class``, which of the two is first, and the
share of traces that is sampled at their head. Out: one line of JSON for each call, plain and streamed, synchronous and
not: who bills it with what, and whose spans there are. A process of its own, because a peer leaves wrappers behind.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation import TollspanSampler

from .every_client import CLIENTS, Client
from .seen import Seen
from .stub_server import StubServer
from .test_every_client import World


def instrument(client: Client, peer: str, first: str, provider: TracerProvider) -> None:
    ours = [
        getattr(import_module(f"tollspan.instrumentation.{module}"), name)()
        for module, name in (each.split(":") for each in client.instrumentor.split())
    ]
    module, _, name = peer.partition(":")
    theirs = getattr(import_module(module), name)()
    if module.startswith("openlit."):
        import_module("openlit._config").OpenlitConfig()  # which its instrumentors read
    for each in [*ours, theirs] if first == "ours" else [theirs, *ours]:
        each.instrument(tracer_provider=provider, skip_dep_check=True)


def billed(spans: list[Any]) -> list[dict[str, Any]]:
    """Rows that are billed, of all spans of a call together."""
    import numpy as np
    import pyarrow.compute as pc
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    from tollspan.pricing import PriceEngine, shipped_book
    from tollspan.processor.assemble import Assembler
    from tollspan.processor.charge import charge
    from tollspan.processor.decode import decode
    from tollspan.processor.identity import span_keys, trace_keys, words
    from tollspan.processor.normalize import normalize
    from tollspan.processor.pipeline import silent, used

    normalized = normalize(decode([encode_spans(spans).SerializeToString()]), received_ns=time.time_ns())
    table = normalized.table
    traces, parents = trace_keys(words(table["trace_id"], 2)), words(table["parent_span_id"], 1)[:, 0]
    elsewhere = np.asarray(pc.fill_null(table["elsewhere"], False))
    rollups, _ = Assembler().mark(
        span_keys(traces, words(table["span_id"], 1)[:, 0]),
        span_keys(traces, parents),
        parents == 0,
        np.asarray(table["token_bearing"]) | silent(normalized),
        used=used(normalized) & ~elsewhere,
    )
    scopes = {span.context.span_id: span.instrumentation_scope.name for span in spans}
    rows = charge(normalized, rollups | elsewhere, PriceEngine(shipped_book())).ledger.to_pylist()
    return [
        {
            "scope": scopes[int.from_bytes(row["span_id"], "big")],
            "tokens": {
                meter: int(quantity)
                for meter, quantity in zip(row["charges.meter"], row["charges.quantity"], strict=True)
                if meter.startswith("tokens.")
            },
        }
        for row in rows
        if row["cost_status"] != "rollup"
    ]


async def call(world: World, ask: Callable[[Any], Any], streamed: bool) -> None:
    if streamed:
        world.streams()
    else:
        world.answers()
    async with world.made() as client:
        if streamed:
            stream = await world.open(client, ask)
            # Some peers' streams can seemingly be read both ways.
            if world.asynchronous:
                async for _ in stream:
                    pass
            else:
                for _ in stream:
                    pass
        else:
            await world.ask(client, ask)


def main(name: str, peer: str, first: str, share: str = "1") -> None:
    (client,) = (each for each in CLIENTS if each.name == name)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=TollspanSampler(float(share)))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    instrument(client, peer, first, provider)
    for streamed in (False, True):
        ask = next(iter((client.streams if streamed else client.asks).values()))
        for asynchronous in (False, True):
            exporter.clear()
            with StubServer() as stub:
                asyncio.run(call(World(client, asynchronous, stub, Seen()), ask.of(asynchronous), streamed))
            gc.collect()
            spans = list(exporter.get_finished_spans())
            print(
                json.dumps(
                    {
                        "call": f"{'streamed' if streamed else 'plain'}, {'async' if asynchronous else 'sync'}",
                        "billed": billed(spans),
                        "scopes": sorted(span.instrumentation_scope.name for span in spans),
                    }
                )
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
