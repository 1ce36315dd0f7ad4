"""Amazon Bedrock: models called through ``botocore`` (and so ``boto3``) and ``aiobotocore``.

In: the wrap points below. All of AWS passes them; what is not in `requests.ASKED` costs a look-up and goes on. How
requests are read stands in `requests`, responses in `readers`, bodies and event streams in `bodies`, further attempts
in `attempts`. Out: one CLIENT span a call, ``chat {model}``, with the tokens that Bedrock counted, and the service tier
and the region that it was served in.

Bodies of ``InvokeModel`` can be read once, and the program does that: they are read along with it and never ahead.
"""

from __future__ import annotations

from typing import ClassVar, Final

from tollspan.instrumentation.bedrock import attempts, bodies, readers, requests
from tollspan.instrumentation.calls import CallInstrumentor, WrapPoint
from tollspan.instrumentation.wrapping import Patches

__all__ = ["POINTS", "BedrockInstrumentor"]

POINTS: Final = tuple(
    WrapPoint(
        target=target,
        request=requests.read_request,
        response=readers.read_response,
        error=attempts.failed,
        finish=attempts.known,
        outlives=bodies.outlives,
        asynchronous=asynchronous,
    )
    for target, asynchronous in (
        ("botocore.client:BaseClient._make_api_call", False),
        ("aiobotocore.client:AioBaseClient._make_api_call", True),
    )
)
"""Every wrapped function: the one way of all calls of a client, synchronous and asynchronous."""


class BedrockInstrumentor(CallInstrumentor):
    """Spans for Bedrock's models. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.bedrock"
    requires: ClassVar[tuple[str, ...]] = ("botocore >= 1.41",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS

    def patch(self, patches: Patches) -> None:
        attempts.patch(patches)
