"""What has to be in the ledger, told by a generator that knows what it sent and imports nothing of the processor.

Words: a *call* is a span as the generator knows it. The *account* keeps which calls were sent, which of them were
acknowledged, and what the book charges; `Account.problems` holds rows of the ledger against it:

    acked ⊆ stored ⊆ sent, each span once, each with the status and the cost that ten lines of Decimal say,
    and the sums equal to the last digit.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

PICO: Final = Decimal("1e-12")
PROVIDER: Final = "oracle"
NOW: Final = 1_763_600_000_000_000_000
"""November 2025, ns since the epoch: when calls begin unless a scenario says otherwise."""


class Book(NamedTuple):
    """A price book of two models.

    Attributes:
        version: of the book.
        prices: USD per million input and per million output tokens, by model.
    """

    version: int
    prices: Mapping[str, tuple[Decimal, Decimal]]

    def yaml(self) -> str:
        """The book as `tollspan serve --prices` reads it."""
        lines = [f"price_book: {{id: oracle, version: {self.version}, currency: USD}}", "prices:"]
        for model, amounts in self.prices.items():
            for meter, amount in zip(("tokens.input.uncached", "tokens.output"), amounts, strict=True):
                lines.append(
                    f"  - {{id: {model}.{meter}, provider: {PROVIDER}, sku: {model}, meter: {meter},"
                    f" amount: '{amount}', per: 1000000}}"
                )
        return "\n".join(lines) + "\n"

    def cost(self, model: str, tokens: tuple[int, int]) -> Decimal:
        """What a call costs: each charge rounded once, half to even, to 10⁻¹² USD."""
        charges = (count * price / 1_000_000 for count, price in zip(tokens, self.prices[model], strict=True))
        return sum((charge.quantize(PICO, ROUND_HALF_EVEN) for charge in charges), Decimal(0))


# Amounts with more digits than 10⁻¹² USD a token has, so that rounding is tested with every call.
BOOK: Final = Book(
    1, {"small": (Decimal("0.15"), Decimal("0.6")), "large": (Decimal("3.3333333"), Decimal("15.0000005"))}
)
DEARER: Final = Book(2, {model: (i * 3, o * 7) for model, (i, o) in BOOK.prices.items()})


@dataclass(frozen=True, slots=True)
class Call:
    """A span that is sent.

    Attributes:
        span, trace, parent: ids as numbers; parent 0 for a root.
        model: of the book, or one that it does not know; '' for a span that is no model call.
        tokens: input and output; None where it tells none.
        operation: of the GenAI conventions.
        status: what the ledger says of it when nothing below it tells usage; '' for no row in the ledger.
        start_ns, end_ns: since the epoch.
        more: attributes beside the usual ones.
        rejected: its ids cannot be, and the receiver has to leave it out.
        failed: it ended in an error.
    """

    span: int
    trace: int
    parent: int = 0
    model: str = ""
    tokens: tuple[int, int] | None = None
    operation: str = "chat"
    status: str = ""
    start_ns: int = NOW
    end_ns: int = NOW + 5_000_000
    more: Mapping[str, Any] = field(default_factory=dict)
    rejected: bool = False
    failed: bool = False

    @property
    def tells_usage(self) -> bool:
        """Whether it accounts for what is above it: usage that is right and above zero."""
        return self.tokens is not None and any(self.tokens) and self.status != "invalid"

    @property
    def name(self) -> str:
        """Of the span."""
        return f"{self.operation} {self.model}" if self.model else "request"

    def attributes(self) -> dict[str, Any]:
        """By name."""
        if not self.model:
            return {"http.route": "/answers", **self.more}
        said: dict[str, Any] = {
            "gen_ai.operation.name": self.operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": self.model,
        }
        if self.tokens is not None:
            said |= {"gen_ai.usage.input_tokens": self.tokens[0], "gen_ai.usage.output_tokens": self.tokens[1]}
        return {**said, **self.more}

    def message(self) -> Span:
        """As protobuf."""
        made = Span(
            trace_id=b"short" if self.rejected else self.trace.to_bytes(16, "big"),
            span_id=self.span.to_bytes(8, "big"),
            parent_span_id=self.parent.to_bytes(8, "big") if self.parent else b"",
            name=self.name,
            kind=Span.SPAN_KIND_CLIENT if self.parent else Span.SPAN_KIND_SERVER,
            start_time_unix_nano=self.start_ns,
            end_time_unix_nano=self.end_ns,
        )
        if self.failed:
            made.status.code = Status.STATUS_CODE_ERROR
        for key, value in self.attributes().items():
            put(made.attributes.add(key=key).value, value)
        return made

    def json(self) -> dict[str, Any]:
        """As OTLP/JSON: ids in hex, 64-bit numbers as strings. For attributes that are strings and integers."""
        made = {
            "traceId": "11" if self.rejected else f"{self.trace:032x}",
            "spanId": f"{self.span:016x}",
            "name": self.name,
            "kind": 3 if self.parent else 2,
            "startTimeUnixNano": str(self.start_ns),
            "endTimeUnixNano": str(self.end_ns),
            "status": {"code": 2} if self.failed else {},
            "attributes": [
                {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}
                for key, value in self.attributes().items()
            ],
        }
        return {**made, "parentSpanId": f"{self.parent:016x}"} if self.parent else made


def put(target: AnyValue, value: Any) -> None:
    """Set an attribute's value; an `AnyValue` is taken as it is."""
    if isinstance(value, AnyValue):
        target.CopyFrom(value)
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int):
        target.int_value = value
    elif isinstance(value, float):
        target.double_value = value
    elif isinstance(value, bytes):
        target.bytes_value = value
    else:
        target.string_value = value


def encode(calls: Iterable[Call], service: str = "oracle") -> bytes:
    """One export request."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = service
    resource.scope_spans.add().spans.extend(call.message() for call in calls)
    return request.SerializeToString()


def encode_json(calls: Iterable[Call]) -> dict[str, Any]:
    """The same as OTLP/JSON."""
    name = {"key": "service.name", "value": {"stringValue": "oracle"}}
    spans = [call.json() for call in calls]
    return {"resourceSpans": [{"resource": {"attributes": [name]}, "scopeSpans": [{"spans": spans}]}]}


class Generator:
    """Traces of every shape that matters to a bill, each with ids of its own.

    Args:
        seed: the same traces come again for the same seed.
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self._spans = 0

    def call(self, trace: int = 0, parent: int = 0, **given: Any) -> Call:
        """A priced call; everything can be given."""
        self._spans += 1
        start = NOW + self.chance.randrange(10**12)
        usual: dict[str, Any] = {
            "model": self.chance.choice(tuple(BOOK.prices)),
            "tokens": (self.chance.randrange(1, 9000), self.chance.randrange(1, 900)),
            "status": "priced",
            "start_ns": start,
            "end_ns": start + self.chance.randrange(1, 10**10),
        }
        # The trace's last bytes are what a sampler takes for randomness.
        trace = trace or (self._spans << 64 | self.chance.getrandbits(63) | 1)
        return Call(span=self._spans, trace=trace, parent=parent, **{**usual, **given})

    def plain(self, trace: int = 0, parent: int = 0, **given: Any) -> Call:
        """A span that costs nothing and has no row in the ledger."""
        return self.call(trace, parent, **{"model": "", "tokens": None, "status": "", **given})

    def trace(self) -> list[Call]:
        """One trace, parents first."""
        root = self.plain()
        below = {"trace": root.trace, "parent": root.span}
        match self.chance.randrange(8):
            case 0:  # an agent that repeats the usage of the calls below a plain span: a roll-up
                agent = self.call(**below, operation="invoke_agent")
                chain = self.plain(root.trace, agent.span)
                return [root, agent, chain, *(self.call(root.trace, chain.span) for _ in range(2))]
            case 1:  # a wrapper that lost the usage, above a call of a model that nobody has a price for
                silent = self.call(**below, tokens=None, status="unpriced")
                return [root, silent, self.call(root.trace, silent.span, model="unheard-of", status="unpriced")]
            case 2:  # no usage at all, and nothing below
                return [root, self.call(**below, tokens=None, status="unpriced")]
            case 3:  # refused by the provider, then tried again
                refused = self.call(
                    **below, tokens=None, status="not_billed", failed=True, more={"http.response.status_code": 429}
                )
                return [root, refused, self.call(**below)]
            case 4:  # counts that cannot be
                return [root, self.call(**below, tokens=(-5, 10), status="invalid"), self.call(**below)]
            case 5:  # an embedding below a chat does not account for it
                chat = self.call(**below)
                return [root, chat, self.call(root.trace, chat.span, operation="embeddings")]
            case _:
                return [root, *(self.call(**below) for _ in range(self.chance.randrange(1, 5)))]

    def batches(self, count: int, spans: int = 40) -> Iterator[list[Call]]:
        """``count`` requests of about so many spans, traces whole."""
        for _ in range(count):
            batch: list[Call] = []
            while len(batch) < spans:
                batch += self.trace()
            yield batch


@dataclass
class Account:
    """What was sent, what was acknowledged, what was refused.

    Attributes:
        books: any of them may have priced a call, if the ledger names it.
        sent: by span number.
        acked: span numbers.
        refusals: requests that were answered with a refusal, by code, counting every try.
        left_out: spans that the receiver said it left out of an acknowledged request.
    """

    books: Sequence[Book] = (BOOK,)
    sent: dict[int, Call] = field(default_factory=dict)
    acked: set[int] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, calls: Iterable[Call]) -> None:
        """These go onto the wire now."""
        with self._lock:
            self.sent |= {call.span: call for call in calls}

    def ack(self, calls: Iterable[Call], left_out: int = 0) -> None:
        """A request of these was acknowledged, but for so many of them."""
        with self._lock:
            self.acked |= {call.span for call in calls if not call.rejected}
            self.left_out += left_out

    def refuse(self, code: str) -> None:
        """A request was refused."""
        with self._lock:
            self.refusals[code] += 1

    def billable(self, spans: Iterable[int]) -> set[int]:
        """Those of them that have a row in the ledger."""
        return {span for span in spans if self.sent[span].status and not self.sent[span].rejected}

    def due(self, spans: set[int]) -> dict[int, str]:
        """What the ledger has to say of these spans when exactly these are there: their status."""
        rolled: set[int] = set()
        climbed: set[tuple[int, bool]] = set()
        for span in spans:
            call = self.sent[span]
            above = self.sent.get(call.parent) if call.tells_usage else None
            embeds = call.operation == "embeddings"
            while above is not None and (above.span, embeds) not in climbed:
                climbed.add((above.span, embeds))
                # An embedding accounts for embeddings alone, and nothing else accounts for one.
                if above.model and embeds == (above.operation == "embeddings"):
                    rolled.add(above.span)
                above = self.sent.get(above.parent)
        return {span: "rollup" if span in rolled else self.sent[span].status for span in spans}

    def cost(self, span: int, status: str, book: Book) -> Decimal | None:
        """What a call with this status costs; None where nobody knows, or nothing is owed."""
        call = self.sent[span]
        return book.cost(call.model, call.tokens) if status == "priced" and call.tokens is not None else None

    def problems(self, rows: Mapping[int, tuple[Decimal | None, str, str]], most: int = 5) -> list[str]:
        """What is wrong with the ledger.

        Args:
            rows: cost, cost_status and book_version by span number, each span once.
            most: how many of each kind are named.
        """
        stored = set(rows)
        unheard, lost = stored - self.billable(self.sent), self.billable(self.acked) - stored
        found = [f"acknowledged and not stored: {len(lost)}, e.g. {sorted(lost)[:most]}"] if lost else []
        found += [f"stored and never sent: {len(unheard)}, e.g. {sorted(unheard)[:most]}"] if unheard else []
        due = self.due(stored - unheard)
        wrong = []
        for span, expected in due.items():
            cost, status, version = rows[span]
            books = [book for book in self.books if len(self.books) == 1 or f"oracle@{book.version}" in version]
            if status != expected or cost not in [self.cost(span, expected, book) for book in books]:
                wrong.append(f"{span}: {status} {cost} instead of {expected} ({self.sent[span]})")
        return found + ([f"wrong: {len(wrong)}, e.g. " + "; ".join(wrong[:most])] if wrong else [])

    def total(self, spans: set[int]) -> Decimal:
        """Σ cost of exactly these, by the first book."""
        due = self.due(spans)
        costs = (self.cost(span, status, self.books[0]) for span, status in due.items())
        return sum((cost for cost in costs if cost is not None), Decimal(0))


def regrouped(batches: Iterable[Sequence[Call]], chance: random.Random, spans: int) -> list[list[Call]]:
    """The same calls in other requests, in another order."""
    calls = [call for batch in batches for call in batch]
    chance.shuffle(calls)
    return [calls[start : start + spans] for start in range(0, len(calls), spans)]


def changed(call: Call, **to: Any) -> Call:
    """A call with the same ids and other content."""
    return replace(call, **to)
