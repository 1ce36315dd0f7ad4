"""When a gRPC server wants to be asked again: ``google.rpc.RetryInfo`` in the details of a status."""

from __future__ import annotations

from typing import Any, Final

from google.rpc import error_details_pb2, status_pb2

_STATUS_DETAILS: Final = "grpc-status-details-bin"


def retry_delay(call: Any) -> float | None:
    """Seconds that the receiver asks us to wait (google.rpc.RetryInfo in the status details), if it does."""
    for key, value in call.trailing_metadata() or ():
        if key != _STATUS_DETAILS:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.RetryInfo()
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    return None
