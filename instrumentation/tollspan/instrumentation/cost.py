"""What a call cost, on its own span: priced in the user's process, where the user has asked for it.

In: the attributes of an ended call. Out: ``gen_ai.usage.cost.amount`` (a double, as the proposed convention has it),
``.currency`` and ``.source`` = ``local``, and the same amount to the last digit as ``tollspan.cost.local``. Only where
the whole call is priced: a lower bound on one span would be summed up as if it were a cost.

It is a convenience for whoever looks at a trace. The ledger is priced by the processor, which does not read any of
these: they are not what a provider reported.

Prices are loaded while the first request is on its way, by a thread of their own; a call that ends sooner waits for
them, but not one that the garbage collector ends. Prices are those of the instant at which the call started.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from time import perf_counter, time_ns
from typing import Any, Final

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.exits import dropping
from tollspan.instrumentation.switches import PRICES, text
from tollspan.pricing import attributes as names

_log: Final = logging.getLogger(__name__)

_LONGEST_WAIT: Final = 5.0
"""Seconds that the first call waits for prices."""

COUNTS: Final = {
    "input_tokens": names.USAGE_INPUT_TOKENS,
    "output_tokens": names.USAGE_OUTPUT_TOKENS,
    "cache_read": names.USAGE_CACHE_READ_TOKENS,
    "cache_write": names.USAGE_CACHE_WRITE_TOKENS,
    "reasoning": names.USAGE_REASONING_TOKENS,
    "audio_input": names.USAGE_AUDIO_INPUT_TOKENS,
    "audio_output": names.USAGE_AUDIO_OUTPUT_TOKENS,
    "audio_cache_read": names.USAGE_AUDIO_CACHE_READ_TOKENS,
    "image_input": names.USAGE_IMAGE_INPUT_TOKENS,
    "image_output": names.USAGE_IMAGE_OUTPUT_TOKENS,
    "image_cache_read": names.USAGE_IMAGE_CACHE_READ_TOKENS,
    "video_input": names.USAGE_VIDEO_INPUT_TOKENS,
    "video_output": names.USAGE_VIDEO_OUTPUT_TOKENS,
    "video_cache_read": names.USAGE_VIDEO_CACHE_READ_TOKENS,
}
"""Count of the inclusive convention → the attribute that our instrumentations write it under."""

PARTS: Final = {
    **{
        f"cache_write_{lifetime}": names.usage(f"tokens.input.cache_write.{lifetime}")
        for lifetime in ("5m", "30m", "1h", "12h")
    },
    "citation": names.usage("tokens.output.citation"),
}
"""Counts that are parts of another one and stand under ``tollspan.usage.``; by themselves they say nothing."""

SELECTORS: Final[dict[str, tuple[str, ...]]] = {
    "provider": (names.PROVIDER_NAME,),
    "model": (names.RESPONSE_MODEL,),
    "request_model": (names.REQUEST_MODEL,),
    "service_tier": (
        names.OPENAI_RESPONSE_SERVICE_TIER,
        names.ANTHROPIC_RESPONSE_SERVICE_TIER,
        names.OPENAI_REQUEST_SERVICE_TIER,
    ),
    "processing": (names.PROCESSING,),
    "region": (names.CLOUD_REGION,),
    "cloud_provider": (names.CLOUD_PROVIDER,),
    "host_type": (names.HOST_TYPE,),
    "purchase": (names.HOST_PURCHASE,),
    "residency": (names.RESIDENCY,),
}
"""Selector → attributes that tell it, of the span and then of its resource; the first that is given counts."""

_TWO_SIDED: Final = frozenset({"chat", "text_completion", "generate_content", "responses"})
_WHOLE: Final = frozenset({"tokens.input.uncached", "tokens.output"})
_PRICED: Final = frozenset({"priced", "free"})


def quantities(attributes: Mapping[str, Any]) -> dict[str, int]:
    """Disjoint quantities, in base steps of their meters, of a span of ours; empty where it tells none that is right.

    The same as the processor reads of the span, for what our instrumentations write.
    """
    from tollspan.pricing.conventions import OTEL_INCLUSIVE, disjoint
    from tollspan.pricing.meters import METERS

    if names.USAGE_INVALID in attributes:
        return {}
    counts = {name: attributes[key] for name, key in COUNTS.items() if key in attributes}
    if counts:
        counts |= {name: attributes[key] for name, key in PARTS.items() if key in attributes}
    told, wrong = disjoint(OTEL_INCLUSIVE, counts)
    if wrong is not None:
        return {}
    counted = tokens = bool(counts)
    for key, value in attributes.items():
        if key.startswith(names.USAGE_PREFIX):
            meter = METERS.get(key[len(names.USAGE_PREFIX) :])
            if meter is None:
                return {}
            if type(value) not in (int, float):
                return {}
            steps = round(value * meter.scale)
            if meter.name.startswith("tokens."):
                tokens = True
                if counted and told.get(meter.name) != steps:
                    return {}  # contradicts the counts
            told[meter.name] = steps
    if tokens and attributes.get(names.OPERATION_NAME) in _TWO_SIDED and not told.keys() >= _WHOLE:
        return {}  # one side only: what it costs is a lower bound
    return told


class LocalCost:
    """Costs of calls by the shipped prices, or by `PRICES` in front of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading: threading.Thread | None = None
        self._engine: Any = None
        self._failed = False

    def began(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin to load prices, the first time."""
        if self._loading is None:
            with self._lock:
                if self._loading is None:
                    thread = threading.Thread(target=self._load, name="tollspan-prices", daemon=True)
                    thread.start()
                    self._loading = thread

    def finish(self, call: Call) -> None:
        """Put a call's cost among its attributes, if the whole of it has a price."""
        attributes = {**call.opened, **call.attributes}
        usage = quantities(attributes)
        from tollspan.pricing.meters import METERS

        if all(METERS[meter].component == "network" for meter in usage):
            return  # bytes alone are not what a call of a model cost
        engine = self._engine or self._waited()
        if engine is None:
            return
        from tollspan.pricing.selectors import Selectors

        resource = getattr(getattr(call.span, "resource", None), "attributes", None) or {}
        chosen = {name: _first(keys, attributes, resource) for name, keys in SELECTORS.items()}
        # The instant at which the span started; the SDK's spans tell it, in ns.
        at = getattr(call.span, "start_time", None) or time_ns() - int((perf_counter() - call.started) * 1e9)
        charges = engine.price(usage, at=at, selectors=Selectors(**chosen))
        if charges.status not in _PRICED or charges.cost is None:
            return
        call.attributes[names.USAGE_COST_AMOUNT] = float(charges.cost)
        call.attributes[names.USAGE_COST_CURRENCY] = "USD"
        call.attributes[names.USAGE_COST_SOURCE] = "local"
        call.attributes[names.COST_LOCAL] = format(charges.cost, "f")

    def _waited(self) -> Any:
        """The engine, when it has been loaded; None if it cannot be."""
        loading = self._loading
        # A destructor may have come while this thread holds what loading needs.
        if loading is None or self._failed or dropping():
            return None
        loading.join(_LONGEST_WAIT)
        if self._engine is None and not loading.is_alive() and not self._failed:
            self._load()  # a fork came in between, and took no threads along
        return self._engine

    def _load(self) -> None:
        try:
            from tollspan.pricing import PriceEngine, Selectors, load_book, shipped_book

            path = text(PRICES)
            engine = PriceEngine(load_book(path) if path else shipped_book())
            # The catalogue of models loads when the first one is priced.
            engine.price({"tokens.output": 1}, at=time_ns(), selectors=Selectors(provider="openai", model="gpt-5-mini"))
            self._engine = engine
        except Exception as error:  # noqa: BLE001 (a broken book must not reach the program)
            self._failed = True
            _log.warning("tollspan: no prices, so spans carry no cost: %s", error)


def _first(keys: tuple[str, ...], attributes: Mapping[str, Any], resource: Mapping[str, Any]) -> str | None:
    for key in keys:
        value = attributes.get(key)
        if value is None:
            value = resource.get(key)
        if isinstance(value, str) and value and value != "auto":
            return value
    return None
