"""Other vendors' instrumentations of the same library, installed beside ours: one call is billed once, on our span.

In: `PEERS`, who they are and where a library's requests leave. Out: our spans placed beneath theirs. The processor
takes a span with usage above another one for the sum of what is below it, so the inner one is billed; ours is to be it,
for the peers lose what a price depends on (service tier, cache lifetimes, searches). Nothing is done to a peer: its
spans, its metrics and its order of wrapping stay as they are. What changes is where ours starts: not where the call
begins but where its request leaves, inside whatever the peer has opened by then (`Call.depart`). It keeps its start
time. A peer's span that goes to another provider does not become our parent: it is not there for our reader to see.

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
from typing import Any, Final, NamedTuple

import wrapt

from tollspan.instrumentation.calls import Opening, WrapPoint, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.switches import PEERS as VARIABLE
from tollspan.instrumentation.switches import text
from tollspan.instrumentation.wrapping import Patches

_log: Final = logging.getLogger(__name__)

_WATCH: Final = guard("peers.watch")
_DEPART: Final = guard("peers.depart")


class Library(NamedTuple):
    """A library that others instrument too.

    Attributes:
        peers: modules of their instrumentations.
        leaves: targets that every request of the library passes, synchronous functions, inside of all that a peer
            wraps.
    """

    peers: tuple[str, ...]
    leaves: tuple[str, ...]


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
    ),
    "bedrock": Library(
        (
            "opentelemetry.instrumentation.bedrock",
            "opentelemetry.instrumentation.botocore",
            "openinference.instrumentation.bedrock",
            "openlit.instrumentation.bedrock",
        ),
        ("botocore.client:BaseClient._make_request",),
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

    def __init__(self, name: str, library: Library, mode: str, patches: Patches) -> None:
        self.seen: str | None = None
        self._name = name
        self._library = library
        self._mode = mode
        self._patches = patches
        self._watching = False

    def present(self) -> bool:
        """Whether a peer is there."""
        return self.seen is not None

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

                if self._patches.active:
                    self.arm()

    def arm(self) -> None:
        """Watch the requests leave; without a peer no call pays for that."""
        if self._mode == UNDER:
            for target in self._library.leaves:
                self._patches.add(target, _leaving)

    def changes(self, point: WrapPoint) -> dict[str, Any]:
        """What becomes of a wrap point."""
        if self._mode == UNDER:
            return {"late": self.present}
        if self._mode == YIELD:
            read = point.request

            def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
                return None if self.seen is not None else read(args, kwargs)

            return {"request": request}
        return {}


def watch(scope: str, patches: Patches) -> Beside | None:
    """Look out for the peers of a library; None for a library that has none."""
    name = scope.rpartition(".")[2]
    library = PEERS.get(name)
    if library is None:
        return None
    mode = text(VARIABLE).lower() or UNDER
    if mode not in _SAID:
        _log.warning("%s=%s is not one of %s: taken as %s", VARIABLE, mode, ", ".join(_SAID), UNDER)
        mode = UNDER
    beside = Beside(name, library, mode, patches)
    for module in library.peers:
        with _WATCH:
            wrapt.register_post_import_hook(beside.imported, module)
    # A hook cannot be taken back: from here on one that is called after the patches were removed does nothing.
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
