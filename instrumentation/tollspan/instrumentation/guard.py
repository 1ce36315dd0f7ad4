"""The fence between our telemetry and the user's program.

In: a block of ours, named by its site. Out: nothing that an `Exception` of ours could do to the caller: it is counted,
logged once a site, and the program goes on as if the block were not there. The user's own call is never inside a guard,
so that nothing of the user's is ever swallowed; and what is not an `Exception` (a cancelled task, Ctrl-C) passes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from types import TracebackType
from typing import Final

_log: Final = logging.getLogger("tollspan.instrumentation")

_lock: Final = threading.Lock()
_faults: Final[dict[str, int]] = {}


class guard:
    """Context manager round a block of telemetry: ``with guard("openai.response"): ...``.

    Stateless, so one instance may serve a site for ever, in every thread at once.

    Args:
        site: where the block stands, in dotted words; what faults are counted and logged by.
    """

    __slots__ = ("site",)

    def __init__(self, site: str) -> None:
        self.site = site

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        report(self.site, error)
        return True


def report(site: str, error: Exception) -> None:
    """Count a fault of ours and log it: a WARNING the first time at its site, with the traceback; DEBUG after that.

    Never raises an `Exception`, whatever the user's logging handlers do.
    """
    with _lock:
        count = _faults[site] = _faults.get(site, 0) + 1
    level = logging.WARNING if count == 1 else logging.DEBUG
    with contextlib.suppress(Exception):
        _log.log(
            level,
            "tollspan: fault in %s (%s: %s). The call went on; what this span says may be incomplete. "
            "Further faults here are counted and logged at DEBUG.",
            site,
            type(error).__name__,
            error,
            exc_info=(type(error), error, error.__traceback__),
        )


def faults() -> dict[str, int]:
    """Faults swallowed in this process so far, by site."""
    with _lock:
        return dict(_faults)
