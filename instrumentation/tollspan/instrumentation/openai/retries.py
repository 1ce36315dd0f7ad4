"""Attempts that the OpenAI client makes inside one call: what `tollspan.instrumentation.stainless_retries` is told.

In: the functions that send its requests. Out: `Call.retries`, and `CALL_SENT` False on a call that failed before
anything was sent.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

from tollspan.instrumentation.stainless_retries import Retries

_WAY: Final = ("post", "request", "_send_request")
"""Methods of the client that a call passes on its way out. One that replaces any of them may send as it likes."""


def _takes_the_way(client: Any, asynchronous: bool) -> bool:
    """Whether whatever ``client`` sends passes our hook: it is the library's own in all that leads there."""
    import openai

    library: type = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    # Looked up statically: where a peer has wrapped one, each ordinary look-up makes another object of it.
    return isinstance(client, library) and all(
        inspect.getattr_static(client, name, None) is inspect.getattr_static(library, name, None) for name in _WAY
    )


RETRIES: Final = Retries(
    "openai",
    ("openai._client:OpenAI._send_request", "openai._client:AsyncOpenAI._send_request"),
    sends=True,
    passes=_takes_the_way,
)
