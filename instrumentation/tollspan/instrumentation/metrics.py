"""Client metrics of the GenAI conventions, recorded when a call ends.

In: the attributes of an ended call. Out: the instruments of `INSTRUMENTS` on the meter provider that was given, else on
the global one, from the moment there is one. Whether a span is sampled makes no difference to them. Without a provider
that anybody reads, a call pays for one look.

What a metric is broken down by has few values (`DIMENSIONS`): no tenants, no ids, nothing that a user types but the
name of the model.

Sources: semantic-conventions-genai, docs/gen-ai (gen-ai-metrics, gen-ai-token-metrics) as of September 2026; the
counters and the cost are proposals (its pull requests 374 and 443). All of it is in development, so the names stand in
one table.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import Any, Final, Literal, NamedTuple

from opentelemetry.environment_variables import OTEL_PYTHON_METER_PROVIDER
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider, _internal, get_meter_provider

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.exits import dropping
from tollspan.pricing import attributes as names

TOKEN_TYPE: Final = "gen_ai.token.type"
TOKEN_MODALITY: Final = "gen_ai.token.modality"

_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_CHUNK: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS: Final = tuple(4**power for power in range(14))
_USD: Final = tuple(10.0**power for power in range(-6, 3))


class Instrument(NamedTuple):
    """An instrument.

    Attributes:
        name, unit, description: as the conventions give them.
        kind: how it adds up.
        bounds: bucket boundaries of a histogram.
    """

    name: str
    unit: str
    description: str
    kind: Literal["histogram", "counter"] = "histogram"
    bounds: tuple[float, ...] = ()


INSTRUMENTS: Final[dict[str, Instrument]] = {
    "tokens": Instrument(
        "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", bounds=_TOKENS
    ),
    "duration": Instrument("gen_ai.client.operation.duration", "s", "GenAI operation duration.", bounds=_SECONDS),
    "first_chunk": Instrument(
        "gen_ai.client.operation.time_to_first_chunk", "s", "Time to receive the first chunk.", bounds=_FIRST
    ),
    "chunk": Instrument(
        "gen_ai.client.operation.time_per_output_chunk", "s", "Time per output chunk after the first.", bounds=_CHUNK
    ),
    "cost": Instrument("gen_ai.client.operation.cost", "{USD}", "Cost of a GenAI operation.", bounds=_USD),
    "input": Instrument("gen_ai.client.inference.usage.input_tokens", "{token}", "Input tokens used.", "counter"),
    "output": Instrument("gen_ai.client.inference.usage.output_tokens", "{token}", "Output tokens used.", "counter"),
    "cache_read": Instrument(
        "gen_ai.client.inference.usage.cache_read.input_tokens", "{token}", "Input tokens read of a cache.", "counter"
    ),
    "cache_write": Instrument(
        "gen_ai.client.inference.usage.cache_write.input_tokens",
        "{token}",
        "Input tokens written to a cache.",
        "counter",
    ),
    "reasoning": Instrument(
        "gen_ai.client.inference.usage.reasoning.output_tokens", "{token}", "Output tokens of reasoning.", "counter"
    ),
}
"""What each instrument is called here → the instrument."""

DIMENSIONS: Final = (
    names.OPERATION_NAME,
    names.PROVIDER_NAME,
    names.REQUEST_MODEL,
    names.RESPONSE_MODEL,
    names.SERVER_ADDRESS,
    names.SERVER_PORT,
    names.OPENAI_RESPONSE_SERVICE_TIER,
)
"""Attributes of a span that every metric is broken down by."""

_MODALITIES: Final = {
    "input": (
        names.USAGE_INPUT_TOKENS,
        {
            "audio": names.USAGE_AUDIO_INPUT_TOKENS,
            "image": names.USAGE_IMAGE_INPUT_TOKENS,
            "video": names.USAGE_VIDEO_INPUT_TOKENS,
        },
    ),
    "output": (
        names.USAGE_OUTPUT_TOKENS,
        {
            "audio": names.USAGE_AUDIO_OUTPUT_TOKENS,
            "image": names.USAGE_IMAGE_OUTPUT_TOKENS,
            "video": names.USAGE_VIDEO_OUTPUT_TOKENS,
        },
    ),
}
"""Instrument → the attribute of the whole, and of its parts by modality."""

_PARTS: Final = {
    "cache_read": names.USAGE_CACHE_READ_TOKENS,
    "cache_write": names.USAGE_CACHE_WRITE_TOKENS,
    "reasoning": names.USAGE_REASONING_TOKENS,
}
_COST_DIMENSIONS: Final = (names.USAGE_COST_CURRENCY, names.USAGE_COST_SOURCE)
_EMBEDDINGS: Final = "embeddings"
_SET: Final[dict[str, Any]] = vars(_internal)
"""Where the API keeps the provider that was set. Not public: without it, the API is asked."""
_UNTOLD: Final[Any] = object()
_STAND_IN: Final = ("opentelemetry.metrics._internal", "_ProxyMeterProvider")


_waiting: Final[deque[tuple[ClientMetrics, dict[str, Any], float, tuple[float, ...]]]] = deque(maxlen=10_000)
"""Calls that the garbage collector ended, to be recorded."""


def record_waiting() -> None:
    """Record what could not be recorded where it ended."""
    while _waiting:
        try:
            metrics, attributes, seconds, gaps = _waiting.popleft()
        except IndexError:  # another thread was faster
            return
        if metrics.active():
            metrics.record(attributes, seconds, gaps)


atexit.register(record_waiting)


class ClientMetrics:
    """Client metrics of one instrumentation.

    Args:
        scope, version: instrumentation scope.
        provider: None = the global one, which a program may set at any time.
        chunks: whether the time of every chunk is recorded. One record costs as much as all else that we do for a
            chunk, three times over, so it has to be asked for.
    """

    def __init__(
        self, scope: str, version: str | None, provider: MeterProvider | None = None, *, chunks: bool = False
    ) -> None:
        self._scope = scope
        self._version = version
        self._given = provider
        self._chunks = chunks
        self._lock = threading.Lock()
        self._provider: MeterProvider | None = None
        self._instruments: dict[str, Any] | None = None
        self._named = OTEL_PYTHON_METER_PROVIDER in os.environ

    def active(self) -> bool:
        """Whether anybody reads the metrics."""
        provider = self._given
        if provider is None:
            # Until a provider is set, the API looks for the name of one in the environment, which is dear and here the
            # same for every call.
            provider = _SET.get("_METER_PROVIDER", _UNTOLD)
            if provider is None and not self._named:
                return False
            if provider is None or provider is _UNTOLD:
                provider = get_meter_provider()
        if provider is not self._provider:
            self._look_at(provider)
        return self._instruments is not None

    def began(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins: a good time to record those that the garbage collector has ended."""
        if _waiting:
            record_waiting()

    def finish(self, call: Call) -> None:
        """Record an ended call.

        One that the garbage collector ends waits for the next call that begins, or for the program's end: the collector
        may have come while this thread holds the very locks that recording takes.
        """
        # A stream's call goes on with its chunks, a raw response's until it is read.
        seconds = perf_counter() - call.started
        if dropping():
            _waiting.append((self, {**call.opened, **call.attributes}, seconds, tuple(call.gaps or ())))
            return
        if self.active():
            self.record({**call.opened, **call.attributes}, seconds, call.gaps or ())

    def record(self, attributes: Mapping[str, Any], seconds: float | None = None, gaps: Iterable[float] = ()) -> None:
        """Record what the attributes of a span say.

        Args:
            attributes: all of the span's.
            seconds: how long it took; None where that was not a call's own time (results that were asked for earlier).
            gaps: seconds between the chunks of its stream.
        """
        instruments = self._instruments
        if instruments is None:
            return
        shared = {name: attributes[name] for name in DIMENSIONS if name in attributes}
        if seconds is not None:
            error = attributes.get(names.ERROR_TYPE)
            instruments["duration"].record(seconds, shared if error is None else {**shared, names.ERROR_TYPE: error})
        first = attributes.get(names.RESPONSE_TIME_TO_FIRST_CHUNK)
        if first is not None:
            instruments["first_chunk"].record(first, shared)
        for gap in gaps if self._chunks else ():
            instruments["chunk"].record(gap, shared)
        amount = attributes.get(names.USAGE_COST_AMOUNT)
        if amount is not None:
            source = {name: attributes[name] for name in _COST_DIMENSIONS if name in attributes}
            instruments["cost"].record(amount, {**shared, **source})
        if names.USAGE_INVALID not in attributes:
            _record_tokens(instruments, attributes, shared)

    def _look_at(self, provider: MeterProvider) -> None:
        with self._lock:
            self._instruments = self._made(provider) if _is_read(provider) else None
            self._provider = provider

    def _made(self, provider: MeterProvider) -> dict[str, Any]:
        meter = provider.get_meter(self._scope, self._version)
        return {
            key: meter.create_counter(each.name, each.unit, each.description)
            if each.kind == "counter"
            else meter.create_histogram(
                each.name, each.unit, each.description, explicit_bucket_boundaries_advisory=each.bounds
            )
            for key, each in INSTRUMENTS.items()
        }


def _record_tokens(instruments: dict[str, Any], attributes: Mapping[str, Any], shared: dict[str, Any]) -> None:
    # What is asked of an embedding model is no inference by the conventions' words: it has the histogram alone.
    inference = attributes.get(names.OPERATION_NAME) != _EMBEDDINGS
    for side, (whole, parts) in _MODALITIES.items():
        total = attributes.get(whole)
        if total is None:
            continue
        instruments["tokens"].record(total, {**shared, TOKEN_TYPE: side})
        if not inference:
            continue
        rest = total
        for modality, attribute in parts.items():
            count = attributes.get(attribute)
            if count:
                rest -= count
                instruments[side].add(count, {**shared, TOKEN_MODALITY: modality})
        # Few providers say which of the rest is text.
        if rest > 0 or not total:
            instruments[side].add(rest, shared)
    if inference:
        for part, attribute in _PARTS.items():
            count = attributes.get(attribute)
            if count is not None:
                instruments[part].add(count, shared)


def _is_read(provider: MeterProvider) -> bool:
    """Whether what is recorded on a provider goes anywhere, as far as can be told."""
    kind = type(provider)
    # Before the program sets one, the global provider is a stand-in, whose class has no public name.
    if isinstance(provider, NoOpMeterProvider) or (kind.__module__, kind.__name__) == _STAND_IN:
        return False
    # The launcher sets a provider without readers where metrics are exported nowhere.
    readers = getattr(provider, "_metric_readers", None)
    return readers is None or len(readers) > 0
