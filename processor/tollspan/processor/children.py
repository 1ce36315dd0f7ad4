"""Child processes of the demo: started with their output in files, ended whatever happens.

In: command lines. Out: running `Child`ren whose logs can be shown when one fails. Nothing here knows what they run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from tollspan.processor.errors import TollspanError

_POLL_S: Final = 0.05
_TAIL_LINES: Final = 20
_END_S: Final = 5.0

T = TypeVar("T")


class ChildFailed(TollspanError):
    """A child process ended or hung; the message carries the end of its log."""


class Child:
    """One process with its output in files.

    Args:
        name: what messages call it.
        command: program and arguments.
        environment: the whole environment.
        directory: working directory, where ``<name>.log`` (stderr) is written.
        stdout: file for standard output; None = into the log.

    Children get a session of their own, so that Ctrl-C reaches only this process, which then ends them in order.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        stdout: Path | None = None,
    ) -> None:
        self.name = name
        self.log = directory / f"{name.replace(' ', '-')}.log"
        with self.log.open("wb") as log:
            out = stdout.open("wb") if stdout else log
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=directory,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=log,
                    start_new_session=True,
                )
            finally:
                if stdout:
                    out.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, look: Callable[[], T | None], timeout_s: float, what: str) -> T:
        """Wait until ``look`` finds something.

        Raises:
            ChildFailed: the process ended, or ``timeout_s`` passed, before it did.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            alive = self.running  # before the look: what it wrote just before it ended counts
            found = look()
            if found is not None:
                return found
            if not alive:
                raise self.failure(f"ended before {what}")
            if time.monotonic() > deadline:
                raise self.failure(f"took more than {timeout_s:g} s until {what}")
            time.sleep(_POLL_S)

    def finish(self, timeout_s: float, stop: bool = False) -> None:
        """Wait for its end, with ``stop`` after asking for it (SIGTERM).

        Raises:
            ChildFailed: it did not end in time, or not with exit code 0.
        """
        if stop and self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self.failure(f"did not end within {timeout_s:g} s") from None
        if code != 0:
            raise self.failure(f"ended with {_exit_text(code)}")

    def kill(self) -> None:
        """End it and everything that it started, now; harmless when it has ended."""
        for number, patience in ((signal.SIGTERM, _END_S), (signal.SIGKILL, _END_S)):
            if not self.running:
                return
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue

    def failure(self, what: str) -> ChildFailed:
        """An error about this process that ends with the end of its log."""
        return ChildFailed(f"The {self.name} {what}. The end of its log:\n{self.tail()}")

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """Last lines of its log, indented."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(f"    {line}" for line in text.splitlines()[-lines:]) or "    (empty)"


def _exit_text(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
