"""A process that takes up what waits in a journal and its inbox, prices and writes it, and ends.

For processes with the drop-in exporter that cannot do it themselves: the interpreter is at its end and starts no
threads any more (Python 3.12 and later), or they were forked from one that had the embedded engine open. `run` starts
``python -m tollspan.processor.drain`` and hands it the configuration through a pipe, since it may hold a password.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tollspan.processor.errors import JournalInUse
from tollspan.processor.runtime import Runtime, RuntimeConfig
from tollspan.processor.store import StoreInUse

log = logging.getLogger(__name__)

AGAIN_S: Final = 0.3
"""Seconds between two tries to get hold of a store that is in use."""


def run(config: RuntimeConfig, timeout_s: float) -> bool:
    """Drain in another process; True when it has finished within ``timeout_s``. It goes on alone if it has not."""
    if not Path(sys.executable or "").name.startswith("python"):
        return False  # embedded in another program, which knows no -m
    # The launcher's variables would have it instrument itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environment["OTEL_SDK_DISABLED"] = "true"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        process.communicate(pickle.dumps((config, timeout_s)), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return False
    except (OSError, RuntimeError, pickle.PickleError) as error:
        log.warning("what was accepted cannot be written now, and waits for the next start: %s", error)
        return False
    return process.returncode == 0


def main() -> None:
    """Read a configuration from standard input, and drain."""
    config, timeout_s = pickle.load(sys.stdin.buffer)
    end = time.monotonic() + max(timeout_s, config.drain_s)
    while True:
        try:
            runtime = Runtime(config, wait_for_store=True)
        except (StoreInUse, JournalInUse):
            # Another that drains, or whoever owns it now; either may have looked into the inbox for the last time.
            if time.monotonic() >= end:
                sys.exit(1)
            time.sleep(AGAIN_S)
            continue
        runtime.start()
        runtime.stop(max(0.1, end - time.monotonic()))
        return


if __name__ == "__main__":
    main()
