"""The client's own spans, and that there is one span with usage all the same.

The client makes spans of its own from version 1.14 on (scope ``com.anthropic.sdk.python``), by default. Beside ours
they would report each call's tokens twice. So, while one of our calls is open, its request gets no span of the
client's: in its place stands a reference to ours, which records nothing and carries the trace context on the wire as
the client's would have done. Nothing that the program set is changed, and every other span of the client (tools,
sessions, files) stays.

Two wishes of the program are respected. A client that was given a tracer provider of its own sends its spans somewhere
else, and keeps them. And where the client's own spans are preferred (`NATIVE_SPANS`), ours stand back for every client
that makes them.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan

from tollspan.instrumentation.anthropic.readers import State, operation_of
from tollspan.instrumentation.calls import open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.wrapping import Patches

_log: Final = logging.getLogger(__name__)
_QUIET: Final = guard("anthropic.native")

NATIVE_SPANS: Final = "TOLLSPAN_ANTHROPIC_NATIVE_SPANS"
"""Environment variable: ``true`` keeps the client's own spans, and ours stand back."""

_START: Final = "anthropic._base_client:start_api_call_span"

_DECIDED: Final = (
    "The anthropic client makes spans of its own. Those of message calls are left out, because tollspan's tell the "
    "same and more, and two would count each call twice. To keep the client's and leave out tollspan's, set "
    f"{NATIVE_SPANS}=true; to switch the client's off altogether, ANTHROPIC_OPEN_TELEMETRY=false."
)
_STOOD_BACK: Final = (
    "The anthropic client makes spans of its own, and %s asks for them: tollspan makes none for its message calls. The "
    "client's do not tell web searches, data residency, fast mode, or the usage of raw streams."
)


class Native:
    """What was decided about the client's own spans, for as long as an instrumentor is on.

    Attributes:
        preferred: the client's own spans are kept, and ours stand back.
    """

    def __init__(self, preferred: bool | None = None, tracer_provider: Any = None) -> None:
        """``preferred``: None = as the environment says. ``tracer_provider``: ours; None = the global one."""
        said = os.environ.get(NATIVE_SPANS, "").strip().lower()
        self.preferred = said in ("true", "1") if preferred is None else preferred
        self._provider = tracer_provider
        self._told: set[str] = set()

    def stands_in_for_ours(self, client: Any) -> bool:
        """Whether ``client`` makes spans of its own that are preferred to ours."""
        if not self.preferred or getattr(client, "_tracer", None) is None:
            return False
        self._tell(_STOOD_BACK, NATIVE_SPANS)
        return True

    def patch(self, patches: Patches) -> None:
        """Hook the client's start of a span."""
        patches.add(_START, self._quiet)

    def _quiet(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def start_api_call_span(tracer: Any, base_url: Any, options: Any, *args: Any, **kwargs: Any) -> Any:
            with _QUIET:
                call = open_call()
                if call is not None and operation_of(options) is not None and not self._elsewhere(call.state):
                    self._tell(_DECIDED)
                    context = call.span.get_span_context()
                    return NonRecordingSpan(context) if context.is_valid else None
            return original(tracer, base_url, options, *args, **kwargs)

        return start_api_call_span

    def _elsewhere(self, state: Any) -> bool:
        """Whether the client of a call sends its spans to another provider than ours."""
        if not isinstance(state, State):
            return False
        given = (getattr(state.client, "_open_telemetry", None) or {}).get("tracer_provider")
        return given is not None and given is not (self._provider or trace.get_tracer_provider())

    def _tell(self, message: str, *args: Any) -> None:
        if message not in self._told:
            self._told.add(message)
            _log.info(message, *args)
