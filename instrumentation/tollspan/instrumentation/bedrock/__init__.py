"""Amazon Bedrock: models called through ``botocore`` (and so ``boto3``), ``aiobotocore`` and AWS's newer SDK (`sdk`).

In: the wrap points below. All of AWS passes them; what is not in `requests.ASKED` costs a look-up and goes on. How
requests are read stands in `requests`, responses in `readers`, bodies and event streams in `bodies`, further attempts
in `attempts`. Out: one CLIENT span a call, ``chat {model}``, with the tokens that Bedrock counted, and the service tier
and the region that it was served in.

Bodies of ``InvokeModel`` can be read once, and the program does that: they are read along with it and never ahead.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import ClassVar, Final

from tollspan.instrumentation.bedrock import attempts, bodies, deferred, readers, requests, sdk
from tollspan.instrumentation.calls import WrapPoint
from tollspan.instrumentation.once import OnceInstrumentor
from tollspan.instrumentation.wrapping import Patches

__all__ = ["POINTS", "BedrockInstrumentor"]

_BOTOCORE: Final = tuple(
    WrapPoint(
        target=target,
        request=requests.read_request,
        response=readers.read_response,
        error=attempts.failed,
        finish=attempts.known,
        outlives=bodies.outlives,
        asked=requests.asked,
        asynchronous=asynchronous,
    )
    for target, asynchronous in (
        ("botocore.client:BaseClient._make_api_call", False),
        ("aiobotocore.client:AioBaseClient._make_api_call", True),
    )
)
"""The one way of all calls of a client, synchronous and asynchronous."""

POINTS: Final = (*_BOTOCORE, *sdk.POINTS)
"""Every wrapped function."""


class BedrockInstrumentor(OnceInstrumentor):
    """Spans for Bedrock's models. See `CallInstrumentor`."""

    scope: ClassVar[str] = "tollspan.instrumentation.bedrock"
    requires: ClassVar[tuple[str, ...]] = ("botocore >= 1.41",)
    points: ClassVar[tuple[WrapPoint, ...]] = POINTS

    def instrumentation_dependencies(self) -> Collection[str]:
        # Either will do, and the newer SDK stands on nothing of botocore.
        return self.requires if find_spec("botocore") else ("aws_sdk_bedrock_runtime",)

    def patch(self, patches: Patches) -> None:
        attempts.patch(patches)
        deferred.patch(patches)
        sdk.patch(patches)
