"""Other vendors' instrumentations of the same library, installed beside ours: one call is billed once, on our span.

In: `PEERS`, who they are and where a library's requests leave. Out: our spans placed beneath theirs. The processor
takes a span with usage above another one for the sum of what is below it, so the inner one is billed; ours is to be it,
for the peers lose what a price depends on (service tier, cache lifetimes, searches). Nothing is done to a peer: its
spans, its metrics and its order of wrapping stay as they are. What changes is where ours starts: not where the call
begins but where its request leaves, inside whatever the peer has opened by then (`Call.depart`). It keeps its start
time. A peer's span that goes to another provider does not become our parent: it is not there for our reader to see.
Some peers open a span without making it current: a span processor, added to the provider once a peer is there, notes
the last one that was started in each context (`_above`). And some open one when the call is over: such a span gets the
one attribute that we ever put on a peer's, ``tollspan.usage_elsewhere``, by which the processor takes it for a roll-up.

A peer counts as present from the moment that the program imports its module. `TOLLSPAN_PEERS` in the environment says
what then happens:

- ``under`` (default): as above.
- ``yield``: ours makes no span while a peer is there; the calls are the peer's, with what it says of them.
- ``beside``: ours starts where the call begins. The call is billed once where one of the two is inside the other, by
  what the inner one says.
"""

from __future__ import annotations

import functools
import logging
import weakref
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context

from tollspan.instrumentation.calls import Opening, WrapPoint, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.switches import PEERS as VARIABLE
from tollspan.instrumentation.switches import text
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

_log: Final = logging.getLogger(__name__)

_WATCH: Final = guard("peers.watch")
_DEPART: Final = guard("peers.depart")
_OPENED: Final = guard("peers.opened")


class Library(NamedTuple):
    """A library that others instrument too.

    Attributes:
        peers: modules of their instrumentations.
        leaves: targets that every request of the library passes, inside of all that a peer wraps.
        scopes: beginnings of their spans' instrumentation scopes, where these are not the modules' names.
        afterwards: (beginning of a scope, beginning of a name) of spans that they open when the call is over, to tell
            its usage.
    """

    peers: tuple[str, ...]
    leaves: tuple[str, ...]
    scopes: tuple[str, ...] = ()
    afterwards: tuple[tuple[str, str], ...] = ()


PEERS: Final[dict[str, Library]] = {
    "openai": Library(
        (
            "opentelemetry.instrumentation.openai",
            "opentelemetry.instrumentation.openai_v2",
            "opentelemetry.instrumentation.genai.openai",
            "openinference.instrumentation.openai",
            "logfire._internal.integrations.llm_providers.openai",
            "langfuse.openai",
            "openlit.instrumentation.openai",
        ),
        ("openai._base_client:BaseClient._build_request",),
        scopes=("langfuse-sdk", "logfire.openai"),
        afterwards=(
            ("logfire.openai", "streaming response from"),
            ("opentelemetry.instrumentation.openai", "openai.response"),
        ),
    ),
    "anthropic": Library(
        (
            "opentelemetry.instrumentation.anthropic",
            "opentelemetry.instrumentation.genai.anthropic",
            "openinference.instrumentation.anthropic",
            "logfire._internal.integrations.llm_providers.anthropic",
            "openlit.instrumentation.anthropic",
        ),
        ("anthropic._base_client:BaseClient._build_request",),
        scopes=("logfire.anthropic",),
        afterwards=(("logfire.anthropic", "streaming response from"),),
    ),
    "bedrock": Library(
        (
            "opentelemetry.instrumentation.bedrock",
            "opentelemetry.instrumentation.botocore",
            "openinference.instrumentation.bedrock",
            "openlit.instrumentation.bedrock",
        ),
        ("botocore.client:BaseClient._make_request",),
        afterwards=(("opentelemetry.instrumentation.bedrock", ""),),
    ),
    "cohere": Library(
        ("opentelemetry.instrumentation.cohere", "openlit.instrumentation.cohere"),
        ("cohere.core.http_client:get_request_body",),
        afterwards=(("openlit.instrumentation.cohere", ""),),
    ),
    "google_genai": Library(
        (
            "opentelemetry.instrumentation.google_generativeai",
            "opentelemetry.instrumentation.google_genai",
            "openinference.instrumentation.google_genai",
            "logfire._internal.integrations.google_genai",
            "openlit.instrumentation.google_ai_studio",
        ),
        ("google.genai._api_client:BaseApiClient._build_request",),
        afterwards=(("openlit.instrumentation.google_ai_studio", ""),),
    ),
    "groq": Library(
        (
            "opentelemetry.instrumentation.groq",
            "openinference.instrumentation.groq",
            "openlit.instrumentation.groq",
        ),
        ("groq._base_client:BaseClient._build_request",),
        afterwards=(("openlit.instrumentation.groq", ""),),
    ),
    "litellm": Library(
        ("openinference.instrumentation.litellm", "openlit.instrumentation.litellm"),
        # Of each call, also of those that LiteLLM makes inside another; where it is handed on, its request.
        tuple(f"litellm.litellm_core_utils.litellm_logging:Logging.{name}" for name in ("__init__", "pre_call")),
    ),
    "mistral": Library(
        (
            "opentelemetry.instrumentation.mistralai",
            "openinference.instrumentation.mistralai",
            "openlit.instrumentation.mistral",
        ),
        tuple(
            f"mistralai.{package}basesdk:BaseSDK._build_request{kind}"
            for package in ("", "client.")
            for kind in ("", "_async")
        ),
    ),
    "ollama": Library(
        ("opentelemetry.instrumentation.ollama", "openlit.instrumentation.ollama"),
        ("httpx._client:BaseClient.build_request",),
        afterwards=(("openlit.instrumentation.ollama", ""),),
    ),
    "together": Library(
        ("opentelemetry.instrumentation.together", "openlit.instrumentation.together"),
        ("together._base_client:BaseClient._build_request",),
    ),
}
"""Last name of our module → the library's peers."""

UNDER: Final = "under"
YIELD: Final = "yield"
BESIDE: Final = "beside"

_SAID: Final = {
    UNDER: "our span goes beneath its span, so that a call is billed once and by ours",
    YIELD: "our instrumentation makes no spans of its own for it",
    BESIDE: "both make spans, and a call is billed by the inner one",
}


class Beside:
    """The peers of one library, as far as they are there.

    Attributes:
        seen: module of the first one that was imported.
    """

    def __init__(
        self, name: str, library: Library, mode: str, patches: Patches, provider: trace.TracerProvider | None
    ) -> None:
        self.seen: str | None = None
        self._name = name
        self._library = library
        self._mode = mode
        self._patches = patches
        self._provider = provider
        self._scopes = library.peers + library.scopes
        self._targets: set[str] = set()
        self._watching = False

    def present(self) -> bool:
        """Whether a peer is there."""
        if self.seen is None:
            return False
        self._watch_spans()
        return True

    def opened(self, span: Any) -> None:
        """A span was started in the current context: if it is a peer's, note it."""
        scope = getattr(span, "instrumentation_scope", None)
        if scope is None or not self._patches.active or not scope.name.startswith(self._scopes):
            return
        call = open_call()
        if call is not None and call.point.target in self._targets:
            again = call.departed
        else:
            again = _told(self._name).get() and any(
                scope.name.startswith(told) and span.name.startswith(name) for told, name in self._library.afterwards
            )
        if again:
            # The call that it is about has a span of ours already, which cannot be put beneath it any more.
            span.set_attribute(names.USAGE_ELSEWHERE, True)
            _told(self._name).set(False)
        else:
            _latest(self._name).set(weakref.ref(span))

    def above(self, before: Context) -> trace.Span | None:
        """The peer's span of a call that began in ``before``: still open, and beside the call's own place."""
        _told(self._name).set(True)
        noted = _latest(self._name).get()
        span = noted() if noted is not None else None
        if span is None or not span.is_recording():
            return None
        own = trace.get_current_span(before).get_span_context()
        parent = span.parent
        beside = not own.is_valid if parent is None else parent.span_id == own.span_id
        return span if beside else None

    def _watch_spans(self) -> None:
        provider = self._provider or trace.get_tracer_provider()
        # By identity: providers need not be hashable.
        if _watched.get(id(provider)) is not provider and hasattr(provider, "add_span_processor"):
            _watched[id(provider)] = provider
            provider.add_span_processor(_above())

    def imported(self, module: Any) -> None:
        """A peer was imported: remember it, and say once what that means."""
        with _WATCH:
            if self.seen is None and (self._patches.active or not self._watching):
                self.seen = module.__name__
                others = ", ".join(f"{mode}: {said}" for mode, said in _SAID.items() if mode != self._mode)
                _log.warning(
                    "tollspan: %s instruments %s too; %s. To change it, set %s (%s), or switch one of them off by "
                    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS.",
                    self.seen,
                    self._name,
                    _SAID[self._mode],
                    VARIABLE,
                    others,
                )

                if self._mode == UNDER:
                    _besides[self._name] = self
                    self._watch_spans()
                if self._patches.active:
                    self.arm()

    def arm(self) -> None:
        """Watch the requests leave; without a peer no call pays for that."""
        if self._mode == UNDER:
            for target in self._library.leaves:
                self._patches.add(target, _leaving)

    def changes(self, point: WrapPoint) -> dict[str, Any]:
        """What becomes of a wrap point."""
        self._targets.add(point.target)
        if self._mode == UNDER:
            return {"late": self.present, "above": self.above}
        if self._mode == YIELD:
            read = point.request

            def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
                return None if self.seen is not None else read(args, kwargs)

            return {"request": request}
        return {}


def _above() -> Any:
    """A span processor that sees spans start, so that one of a peer's is known that is not made current."""
    # Imported here: only a provider of the SDK takes one.
    from opentelemetry.sdk.trace import SpanProcessor

    class Above(SpanProcessor):
        def on_start(self, span: Any, parent_context: Context | None = None) -> None:
            with _OPENED:
                for beside in tuple(_besides.values()):
                    beside.opened(span)

    return Above()


_besides: Final[dict[str, Beside]] = {}
"""Name of a library that has a peer → what is known of it."""

_watched: Final[weakref.WeakValueDictionary[int, Any]] = weakref.WeakValueDictionary()
"""Tracer providers that have one of `_above`."""


@functools.cache
def _latest(name: str) -> ContextVar[weakref.ref[Any] | None]:
    """The last span of a library's peers that was started in a context."""
    return ContextVar(f"tollspan.peers.{name}", default=None)


@functools.cache
def _told(name: str) -> ContextVar[bool]:
    """Whether the last thing that happened to a library in a context was a call of ours."""
    return ContextVar(f"tollspan.peers.{name}.told", default=False)


def watch(scope: str, patches: Patches, provider: trace.TracerProvider | None = None) -> Beside | None:
    """Look out for the peers of a library; None for a library that has none."""
    name = scope.rpartition(".")[2]
    library = PEERS.get(name)
    if library is None:
        return None
    mode = text(VARIABLE).lower() or UNDER
    if mode not in _SAID:
        _log.warning("%s=%s is not one of %s: taken as %s", VARIABLE, mode, ", ".join(_SAID), UNDER)
        mode = UNDER
    beside = Beside(name, library, mode, patches, provider)
    for module in library.peers:
        with _WATCH:
            patches.when_imported(module, beside.imported)
    # From here on one that comes when the patches are removed does nothing.
    beside._watching = True
    if beside.seen is not None and not patches.active:
        beside.arm()
    return beside


def _leaving(original: Any) -> Any:
    @functools.wraps(original)
    def leave(*args: Any, **kwargs: Any) -> Any:
        with _DEPART:
            call = open_call()
            if call is not None:
                call.depart()
        return original(*args, **kwargs)

    return leave
