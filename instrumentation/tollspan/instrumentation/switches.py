"""Switches of the LLM instrumentations: environment variables, read when a client is instrumented.

| variable | values | |
|--|--|--|
| ``TOLLSPAN_CLIENT_METRICS`` | ``true`` (default), ``chunks``, ``false`` | metrics; also of each chunk; none |
| ``TOLLSPAN_CLIENT_COST`` | ``true``, ``false`` (default) | what a call cost, on its span |
| ``TOLLSPAN_PRICES`` | path | the user's own price book, in front of the shipped one |
| ``TOLLSPAN_FINGERPRINT_KEY`` | text, none by default | secret of the deployment: requests get a keyed hash |
| ``TOLLSPAN_ESTIMATE_USAGE`` | ``true``, ``module:function``, ``false`` (default) | tokens that no provider counted |
| ``TOLLSPAN_PEERS`` | ``under`` (default), ``yield``, ``beside`` | other vendors' instrumentations beside ours |
| ``TOLLSPAN_NETWORK`` | ``auto`` (default), ``on``, ``off`` | bytes that calls send and receive |
| ``TOLLSPAN_PLACES`` | ``host=provider/region/zone, ...`` | where hosts are whose names do not tell |
| ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` | ``span_only``, ``event_only``, ``span_and_event`` | content |
"""

from __future__ import annotations

import logging
import os
from typing import Final

_log: Final = logging.getLogger(__name__)

METRICS: Final = "TOLLSPAN_CLIENT_METRICS"
COST: Final = "TOLLSPAN_CLIENT_COST"
PRICES: Final = "TOLLSPAN_PRICES"
FINGERPRINT_KEY: Final = "TOLLSPAN_FINGERPRINT_KEY"
ESTIMATE: Final = "TOLLSPAN_ESTIMATE_USAGE"
PEERS: Final = "TOLLSPAN_PEERS"
NETWORK: Final = "TOLLSPAN_NETWORK"
PLACES: Final = "TOLLSPAN_PLACES"
CONTENT: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

_MODES: Final = {
    "span_only": frozenset({"span"}),
    "event_only": frozenset({"event"}),
    "span_and_event": frozenset({"span", "event"}),
}
_NO_MODES: Final = frozenset({"", "no_content", "false"})


def text(variable: str) -> str:
    """Value of a variable without blanks round it; empty when it is not set."""
    return os.environ.get(variable, "").strip()


def is_on(variable: str) -> bool:
    """Whether a switch that is off by default is on."""
    return text(variable).lower() in ("1", "true", "yes", "on")


def is_off(variable: str) -> bool:
    """Whether a switch that is on by default is off."""
    return text(variable).lower() in ("0", "false", "no", "off")


def content_modes() -> frozenset[str]:
    """Where content goes: any of ``span`` and ``event``; empty = nowhere."""
    value = text(CONTENT).lower()
    if value in _NO_MODES:
        return frozenset()
    if value not in _MODES:
        # Older conventions said "true"; what they meant by it differs, and content is not to be captured by a guess.
        _log.warning("%s=%s is not one of %s: no content is captured", CONTENT, value, ", ".join(_MODES))
        return frozenset()
    return _MODES[value]
