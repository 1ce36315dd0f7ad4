"""The sampling file in use, renewed when it changes (`watched`): a broken one changes nothing and says so.

In: the path of a sampling file (`rules`), or none, and the base share for where it says none. Out: a `Sampling` for
whoever follows. What is odd in a file and no mistake is logged once for each version of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from tollspan.processor.counters import Counters
from tollspan.processor.sample.rules import Sampling, plain, read_sampling
from tollspan.processor.watched import CHECK_S, Watched

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """By which rules bodies are kept.

    Attributes:
        file: YAML file of sampling rules; without one errors are kept, and a share (sampling.keep) of the rest.
    """

    file: Path | None = None


class SamplingFile(Watched[Sampling]):
    """The rules in use, and the thread that renews them.

    Args:
        path: the file; None for what holds without one.
        keep: base share where the file says none.
        counters: gets ``sampling_file.reloaded`` and ``sampling_file.reload_failed``.
        check_s: seconds between two looks at the file.

    Raises:
        SamplingError: the file is broken now.
    """

    area = "sampling_file"
    what = "sampling file"

    def __init__(self, path: Path | None, keep: float, counters: Counters, check_s: float = CHECK_S) -> None:
        self._keep = keep
        super().__init__(path, counters, check_s)

    def load(self) -> Sampling:
        """The rules as they stand."""
        if self.path is None:
            return plain(self._keep)
        found = read_sampling(self.path, self._keep)
        for warning in found.warnings:
            log.warning("%s", warning)
        return found

    def version(self, of: Sampling) -> str:
        """How many rules it has, and what becomes of the rest."""
        return f"{len(of.rules)} rules and a base share of {of.base.share:g}"

    def retune(self, keep: float) -> None:
        """Take another base share where the file says none; may be called from any thread."""
        if keep == self._keep:
            return
        self._keep = keep
        if self.path is None:
            self.replace(plain(keep))
        else:
            self._good = ""  # as good as changed
            self.reload()
