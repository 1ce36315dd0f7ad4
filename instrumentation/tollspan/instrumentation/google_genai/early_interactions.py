"""Interactions in the ``google-genai`` client 2.0 to 2.8, which has a client of Stainless' for them.

In: ``create`` and ``get`` of its resource. Out: what `interactions` reads of them; only the classes of streams and raw
responses differ.
"""

from __future__ import annotations

import functools
from typing import Any, Final, NamedTuple

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.google_genai import interactions
from tollspan.instrumentation.stainless_raw import RawResponses
from tollspan.instrumentation.streams import observe, observe_async
from tollspan.instrumentation.wrapping import Patches

PACKAGE: Final = "google.genai._interactions"
RAW: Final = RawResponses("google_genai.interactions", interactions.Asked)


class _Kinds(NamedTuple):
    """Classes of the client's results that outlive their call."""

    sync: type
    asynchronous: type
    raw: type


@functools.cache
def _kinds() -> _Kinds:
    # Imported when a call has been made, by which time the program has imported it.
    from google.genai._interactions._response import BaseAPIResponse  # type: ignore[import-not-found, unused-ignore]
    from google.genai._interactions._streaming import (  # type: ignore[import-not-found, unused-ignore]
        AsyncStream,
        Stream,
    )

    return _Kinds(Stream, AsyncStream, BaseAPIResponse)


def patch(patches: Patches) -> None:
    """Wrap the parsing of raw responses."""
    RAW.patch(patches, PACKAGE)


def outlives(call: Call, result: Any) -> Any:
    """For `WrapPoint.outlives`."""
    kinds = _kinds()
    if isinstance(result, kinds.sync):
        return observe(call, result, interactions.read_event)
    if isinstance(result, kinds.asynchronous):
        return observe_async(call, result, interactions.read_event)
    return RAW.keep(call, result) if isinstance(result, kinds.raw) else None
