"""Window: what `assemble` knows of recent spans, put down when the process ends and taken up by the next.

In: a `Window`. Out: the same in another process, aged by the time in between. Without it a call whose parent arrives
after a restart, or before one, would be billed twice: on itself and on the agent's span above it.

A folder: ``window.npz`` with the structure, ``written-<n>.arrow`` with ledger rows that a late child may correct,
``owed.arrow`` with corrections that the store has not taken. It is read once and removed, so that nothing old is taken
up after a crash; a crash itself leaves none (see ARCHITECTURE.md, "Roll-ups"). A folder that cannot be read, or is
another store's, is left out with a line in the log: the bill is then as after a crash.
"""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from tollspan.processor.assemble import Assembler
from tollspan.processor.schema import SCHEMAS

log = logging.getLogger(__name__)

VERSION: Final = 1
_STATE: Final = "window.npz"
_OWED: Final = "owed.arrow"


class Window(NamedTuple):
    """What outlives the process.

    Attributes:
        assembler: structure and ledger rows of recent spans.
        owed: ledger rows that are corrections, and not written yet.
        seed: what span keys are mixed with.
    """

    assembler: Assembler
    owed: list[dict[str, Any]]
    seed: np.uint64


def save(folder: Path, store: str, window: Window) -> None:
    """Put a window down, in place of any other. What goes wrong is logged: it costs no span.

    Args:
        folder: made anew.
        store: URL of the store that its ledger rows are in.
    """
    fresh = folder.with_name(folder.name + ".new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        arrays, tables = window.assembler.dump(time.monotonic())
        for number, table in enumerate(tables):
            _put(fresh / f"written-{number}.arrow", table)
        if window.owed:
            _put(fresh / _OWED, pa.Table.from_pylist(window.owed, schema=SCHEMAS["ledger"]))
        about = {"version": VERSION, "saved_ns": time.time_ns(), "seed": window.seed, "store": store}
        with (fresh / _STATE).open("wb") as file:
            known = {f"about.{name}": np.array(value) for name, value in about.items()}
            np.savez(file, **known, **arrays)  # type: ignore[arg-type]
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    except (OSError, pa.ArrowException, ValueError) as error:
        log.warning("what is known of recent spans is not kept for the next start: %s", error)
        shutil.rmtree(fresh, ignore_errors=True)


def load(folder: Path, store: str) -> Window | None:
    """Take a window up, and remove it; None where there is none that fits.

    Args:
        store: URL of the store that is written to now.
    """
    if not folder.exists():
        return None
    try:
        with np.load(folder / _STATE, allow_pickle=False) as state:
            arrays = {name: state[name] for name in state.files}
        about = {name: arrays.pop(f"about.{name}") for name in ("version", "saved_ns", "seed", "store")}
        if int(about["version"]) != VERSION or str(about["store"]) != store:
            log.warning("what was known of recent spans is another store's or version's; it is not taken up")
            return None
        away_s = max(0.0, (time.time_ns() - int(about["saved_ns"])) / 1e9)
        tables = [_get(folder / f"written-{number}.arrow") for number in range(len(list(folder.glob("written-*"))))]
        owed = _get(folder / _OWED) if (folder / _OWED).exists() else None
        columns = set(SCHEMAS["ledger"].names)
        if any(set(table.column_names) != columns for table in (*tables, *([] if owed is None else [owed]))):
            log.warning("what was known of recent spans has the ledger of another version; it is not taken up")
            return None
        assembler = Assembler.revived(arrays, tables, time.monotonic() - away_s)
        return Window(assembler, [] if owed is None else owed.to_pylist(), np.uint64(about["seed"]))
    except Exception as error:  # noqa: BLE001 (files that may hold anything, read by three libraries)
        log.warning("what was known of recent spans cannot be read, and is not taken up: %s", error)
        return None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def _get(path: Path) -> pa.Table:
    # Read, not mapped: the file is removed.
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        return reader.read_all()
