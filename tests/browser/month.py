"""Two months of an imaginary company's assistant, for pictures and for timing: real models at the shipped prices.

Five shops, four features: a support chat whose agent plans, reads features, asks and answers; a search that embeds
and ranks on a GPU; summaries; and triage. Weekdays are busier than weekends and days than nights; ten days ago the
largest shop moved its chat to a dearer model, in the last half hour a provider refuses a part of the calls, and one
model has no price. All of it follows from the seed and the instant at which it ends.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.processor.otlp_factory import span
from tests.processor.small_world import request_of, tags
from tollspan.pricing import attributes as names

BOOK: Final = """
price_book: {id: helpdesk, version: "2026-10", currency: USD}
prices:
  - {sku: L4, meter: gpu.seconds, amount: "0.8048", per: 3600}
  - {sku: L4, meter: gpu.idle_seconds, amount: "0.8048", per: 3600}
  - {meter: network.egress.internet.bytes, amount: "0.09", unit: GB}
  - {meter: storage.read.bytes, amount: "0.0004", unit: GB}
  - {meter: feature.reads, amount: "0.0000025"}
"""
SHOPS: Final = {"acme-outdoor": 8, "globex-home": 5, "northwind-foods": 3, "initech-parts": 2, "umbrella-health": 1}
FEATURES: Final = {"support-chat": 5, "search": 6, "summaries": 3, "triage": 4}
OWN: Final = {"northwind-foods": "northwind-support-8b"}
"""Shops with a model of their own, which has no price."""
ASSISTANT: Final = {
    names.SERVICE_NAME: "assistant", names.SERVICE_VERSION: "4.2.0", names.ENVIRONMENT: "production",
    names.CLOUD_REGION: "eu-west-1",
}  # fmt: skip
RANKER: Final = {**ASSISTANT, names.SERVICE_NAME: "ranker", names.SERVICE_VERSION: "1.9.3"}
SECOND: Final = 10**9


class Month:
    """Makes it: `payloads` are requests of some hundred spans each, in the order of time."""

    def __init__(self, until: datetime, days: int = 61, traces: int = 14_000, seed: int = 11) -> None:
        self.random = random.Random(seed)
        self.until, self.days, self.traces = until, days, traces
        self.assistant: list[Span] = []
        self.ranker: list[Span] = []

    def payloads(self) -> Iterator[bytes]:
        for at in sorted(self._instants()):
            self._trace(at)
            if len(self.assistant) >= 500:
                yield self._request()
        yield self._request()

    def _request(self) -> bytes:
        made = request_of((ASSISTANT, self.assistant), (RANKER, self.ranker))
        self.assistant, self.ranker = [], []
        return made

    def _instants(self) -> Iterator[datetime]:
        rng, count = self.random, 0
        while count < self.traces:
            at = self.until - timedelta(seconds=rng.random() * self.days * 86_400)
            grown = 1 - 0.012 * (self.until - at).days
            busy = (1 - 0.6 * math.cos(2 * math.pi * (at.hour + at.minute / 60 - 3) / 24)) / 1.6
            if rng.random() < grown * busy * (0.35 if at.weekday() >= 5 else 1.0):
                count += 1
                yield at
        # The last two hours, in which somebody is on call.
        for _ in range(self.traces // 35):
            yield self.until - timedelta(seconds=rng.random() * 7_200)

    def _span(
        self, name: str, trace: bytes, parent: bytes, start: int, seconds: float, values: dict[str, Any], **more: Any
    ) -> Span:
        error = more.pop("error", "")
        if error:
            values = {**values, "error.type": error}
        made = span(
            values,
            trace_id=trace,
            span_id=self.random.randbytes(8),
            parent_span_id=parent,
            name=name,
            start_time_unix_nano=start,
            end_time_unix_nano=start + round(seconds * SECOND),
            status=Status(code=Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET),
            **more,
        )
        (self.ranker if values.get(names.PROVIDER) == "pytorch" else self.assistant).append(made)
        return made

    def _call(
        self, trace: bytes, parent: bytes, start: int, model: str, tokens: tuple[int, int], who: dict[str, str],
        cached: int = 0, trouble: bool = False, operation: str = "chat",
    ) -> int:  # fmt: skip
        """A call of a model; ns that it took, with its retry where there was one."""
        rng = self.random
        provider = "anthropic" if model.startswith("claude") else "vllm" if model in OWN.values() else "openai"
        seconds = (0.25 + tokens[1] / 90) * rng.lognormvariate(0, 0.3)
        refused = rng.random() < (0.3 if trouble and provider == "anthropic" else 0.012)
        values: dict[str, Any] = {
            names.OPERATION_NAME: operation,
            names.PROVIDER_NAME: provider,
            names.REQUEST_MODEL: model,
            names.RETRIES: int(refused),
            **who,
        }
        if refused and rng.random() < 0.4:
            self._span(
                f"{operation} {model}",
                trace,
                parent,
                start,
                0.2,
                {**values, names.HTTP_STATUS: 529},
                error="overloaded",
            )
            return round(0.2 * SECOND)
        values |= {names.USAGE_INPUT_TOKENS: tokens[0]}
        if operation == "chat":
            values |= {names.USAGE_OUTPUT_TOKENS: tokens[1]}
        if cached:
            values["gen_ai.usage.cache_read.input_tokens"] = cached
        self._span(f"{operation} {model}", trace, parent, start, seconds * (1.8 if refused else 1.0), values)
        return round(seconds * SECOND)

    def _trace(self, at: datetime) -> None:
        rng = self.random
        shop = rng.choices(list(SHOPS), list(SHOPS.values()))[0]
        feature = rng.choices(list(FEATURES), list(FEATURES.values()))[0]
        trace, root = rng.randbytes(16), rng.randbytes(8)
        start = int(at.timestamp() * 10**6) * 1_000
        who = tags(shop, feature, route=f"/{feature}", variant=rng.choice("AB"), team=feature.split("-")[0])
        trouble = self.until - at < timedelta(minutes=30)
        moved = self.until - at < timedelta(days=10)
        end = {
            "support-chat": self._chat, "search": self._search, "summaries": self._summary, "triage": self._triage
        }[feature](trace, root, start, shop, who, trouble, moved)  # fmt: skip
        self._span(
            f"POST /{feature}", trace, b"", start, (end - start) / SECOND + 0.02,
            {"http.request.method": "POST", "http.route": f"/{feature}", **who}, kind=Span.SPAN_KIND_SERVER,
        )  # fmt: skip
        self.assistant[-1].span_id = root

    def _chat(
        self, trace: bytes, root: bytes, start: int, shop: str, who: dict[str, str], trouble: bool, moved: bool
    ) -> int:
        rng, at = self.random, start + 5_000_000
        who = {**who, names.TAGS["agent"]: "concierge"}
        agent = self._span("invoke_agent concierge", trace, root, at, 1.0, {
            names.OPERATION_NAME: "invoke_agent", names.AGENT_NAME: "concierge", **who,
        })  # fmt: skip
        self._span("feature read profiles", trace, agent.span_id, at, 0.012, {
            names.OPERATION: names.OPERATION_FEATURE_READ, names.PROVIDER: "feast", names.MODEL: "customer_profile",
            names.usage("feature.reads"): rng.choice((4, 8, 40)), **who,
        })  # fmt: skip
        at += 14_000_000
        dear = shop == "acme-outdoor" and moved
        turns = 1 + min(int(rng.paretovariate(1.6)), 12)
        for turn in range(turns):
            context = 900 + turn * 700
            at += self._call(trace, agent.span_id, at, "gpt-5-mini", (context, 60), who, cached=context // 2)
            self._span("execute_tool orders", trace, agent.span_id, at, 0.08, {
                names.OPERATION_NAME: "execute_tool", "gen_ai.tool.name": "orders", **who,
            })  # fmt: skip
            at += 90_000_000
        model = (
            "claude-opus-4-5" if dear else "northwind-support-8b" if shop == "northwind-foods" else "claude-sonnet-4-6"
        )
        tokens = (1_500 + turns * 650, int(260 * rng.lognormvariate(0, 0.4)))
        at += self._call(trace, agent.span_id, at, model, tokens, who, cached=1_024, trouble=trouble)
        agent.end_time_unix_nano = at
        return at

    def _search(
        self, trace: bytes, root: bytes, start: int, shop: str, who: dict[str, str], trouble: bool, moved: bool
    ) -> int:
        rng, at = self.random, start + 3_000_000
        at += self._call(
            trace, root, at, "text-embedding-3-small", (rng.randrange(8, 40), 0), who, operation="embeddings"
        ) // 4  # fmt: skip
        batch = rng.choice((1, 1, 4, 8, 16))
        cold = rng.random() < 0.02
        seconds = 0.03 + 0.004 * batch + (2.4 if cold else 0.0)
        self._span("inference cross-encoder", trace, root, at, seconds, {
            names.OPERATION: names.OPERATION_INFERENCE, names.PROVIDER: "pytorch", names.MODEL: "cross-encoder",
            names.DEVICE_NAME: "L4", names.BATCH_SIZE: batch, names.COLD_START: cold,
            names.usage("gpu.seconds"): seconds, **who,
        })  # fmt: skip
        if rng.random() < 0.25:
            self._span("capacity L4", rng.randbytes(16), b"", at, 60.0, {
                names.OPERATION: names.OPERATION_CAPACITY, names.PROVIDER: "pytorch", names.DEVICE_NAME: "L4",
                names.usage("gpu.idle_seconds"): 20 + rng.random() * 30,
            })  # fmt: skip
        return at + round(seconds * SECOND)

    def _summary(
        self, trace: bytes, root: bytes, start: int, shop: str, who: dict[str, str], trouble: bool, moved: bool
    ) -> int:
        rng = self.random
        tokens = (int(3_000 * rng.lognormvariate(0, 0.7)), int(350 * rng.lognormvariate(0, 0.3)))
        who = {**who, names.usage("network.egress.internet.bytes"): rng.randrange(20_000, 400_000)}  # type: ignore[dict-item]
        return start + self._call(trace, root, start + 2_000_000, "claude-sonnet-4-6", tokens, who, trouble=trouble)

    def _triage(
        self, trace: bytes, root: bytes, start: int, shop: str, who: dict[str, str], trouble: bool, moved: bool
    ) -> int:
        tokens = (self.random.randrange(200, 900), 12)
        return start + self._call(trace, root, start + 2_000_000, "gpt-5-nano", tokens, who)


def month(until: datetime | None = None, **more: Any) -> Iterator[bytes]:
    """Requests of two months that end now."""
    return Month(until or datetime.now(UTC), **more).payloads()
