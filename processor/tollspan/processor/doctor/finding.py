"""What a check found."""

from __future__ import annotations

from typing import Final, NamedTuple

from tollspan.processor.logs import hidden

OK: Final = "ok"
WARN: Final = "warning"
FAIL: Final = "failed"
SKIP: Final = "skipped"


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        check: ``<area>.<what>``.
        status: `OK`; `WARN`: it works, and something will go wrong with it; `FAIL`: it does not; `SKIP`: not looked at.
        found: what is the case, one sentence.
        do: what to do about it; '' where nothing has to be done.
    """

    check: str
    status: str
    found: str
    do: str = ""

    def masked(self) -> Finding:
        """Without passwords and tokens."""
        return self._replace(found=hidden(self.found), do=hidden(self.do))


def ok(check: str, found: str) -> Finding:
    """All is well with it."""
    return Finding(check, OK, found)


def warn(check: str, found: str, do: str = "") -> Finding:
    """It works, and something will go wrong with it."""
    return Finding(check, WARN, found, do)


def fail(check: str, found: str, do: str) -> Finding:
    """It does not work."""
    return Finding(check, FAIL, found, do)


def skip(check: str, found: str, do: str = "") -> Finding:
    """It was not looked at."""
    return Finding(check, SKIP, found, do)
