"""Results of the client that outlive their call: streams, raw responses, responses whose body has not been read.

In: how to read a chunk of one API. Out: `WrapPoint.outlives` for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tollspan.instrumentation import stream_usage
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.openai.readers import State
from tollspan.instrumentation.stainless_raw import RawResponses
from tollspan.instrumentation.streams import ReadChunk, observe, observe_async

RAW: Final = RawResponses("openai", State)
"""Raw responses, of the clients that are read as this one too."""


class _Kinds(NamedTuple):
    """Classes of the client's results that outlive their call."""

    sync_stream: type
    async_stream: type
    raw: type
    streaming: type


@functools.cache
def _kinds() -> _Kinds:
    # Imported when a call has been made, by which time the program has imported it.
    from openai import AsyncStream, Stream
    from openai._legacy_response import LegacyAPIResponse
    from openai._response import BaseAPIResponse

    return _Kinds(Stream, AsyncStream, LegacyAPIResponse, BaseAPIResponse)


def outliving(read_chunk: ReadChunk) -> Callable[[Call, Any], Any]:
    """`WrapPoint.outlives` for an API whose chunks ``read_chunk`` reads."""

    def outlives(call: Call, result: Any) -> Any:
        kinds = _kinds()
        if isinstance(result, kinds.sync_stream):
            if call.state.hides:
                return stream_usage.observe(call, result, read_chunk)
            return observe(call, result, read_chunk)
        if isinstance(result, kinds.async_stream):
            if call.state.hides:
                return stream_usage.observe_async(call, result, read_chunk)
            return observe_async(call, result, read_chunk)
        if isinstance(result, kinds.raw):
            return RAW.hold(call, result) if call.state.streamed else RAW.read(call, result)
        if isinstance(result, kinds.streaming):
            return RAW.hold(call, result)
        if call.state.streamed:
            # Somebody else's instrumentation beneath ours may have put an iterator of its own in the stream's place.
            if hasattr(result, "__next__"):
                return observe(call, result, read_chunk)
            if hasattr(result, "__anext__"):
                return observe_async(call, result, read_chunk)
        return None

    return outlives
