"""Patches that come and go: originals are restored, waiting for an import leaves nothing, reloading does no harm."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wrapt.importer

from tollspan.instrumentation import faults, launch, wrapping
from tollspan.instrumentation.wrapping import Patches, when_imported

LIBRARY = "library_for_the_wrapping_tests"
SOURCE = """
class Client:
    def ask(self):
        return "asked"

def ask():
    return Client().ask()
"""
TARGETS = (f"{LIBRARY}:Client.ask", f"{LIBRARY}:ask", f"{LIBRARY}:Client.gone", f"{LIBRARY}.part:ask")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Imports a library that no program has imported yet."""
    (tmp_path / f"{LIBRARY}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda: importlib.import_module(LIBRARY)
    sys.modules.pop(LIBRARY, None)


def loud(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return original(*args).upper()

    return call


def patched() -> Patches:
    patches = Patches()
    for target in TARGETS:
        patches.add(target, loud)
    return patches


def hooks() -> int:
    """Hooks that the import machinery holds."""
    return sum(map(len, wrapt.importer._post_import_hooks.values()))


@pytest.mark.parametrize("imported_before", [True, False])
def test_what_is_imported_before_or_after_is_patched_and_restored(library: Any, imported_before: bool) -> None:
    if imported_before:
        library()
    patches = patched()
    module = library()
    assert module.Client().ask() == "ASKED"
    patches.remove()
    assert module.Client().ask() == module.ask() == "asked"
    assert vars(module.Client)["ask"].__qualname__ == "Client.ask"
    assert LIBRARY not in wrapping.waiting()


def test_patches_that_are_removed_before_the_library_comes_do_nothing(library: Any) -> None:
    patched().remove()
    assert library().ask() == "asked"


def test_a_thousand_cycles_leave_nothing() -> None:
    missing = type("Missing", (launch.OnImport,), {"real": "nowhere:Nothing", "libraries": (LIBRARY,)})

    def cycle(times: int) -> tuple[int, int]:
        for _ in range(times):
            patches = patched()
            missing().instrument()
            missing().uninstrument()
            patches.remove()
        gc.collect()
        return hooks(), sys.getallocatedblocks()

    waiting = wrapping.waiting()
    before = cycle(100)
    after = cycle(1000)
    assert after[0] == before[0]
    assert after[1] - before[1] < 500
    assert wrapping.waiting() == waiting


def test_a_module_has_one_hook_however_many_wait(library: Any) -> None:
    first, before = patched(), hooks()
    others = [patched() for _ in range(10)]
    assert hooks() == before
    assert wrapping.waiting()[LIBRARY] == 33
    for patches in others:
        patches.remove()
    assert library().Client().ask() == "ASKED"
    first.remove()


def test_those_who_wait_are_called_in_order_and_a_fault_of_one_takes_nothing_from_the_others(library: Any) -> None:
    seen: list[int] = []
    counted = sum(faults().values())
    when_imported(LIBRARY, lambda module: seen.append(1))
    when_imported(LIBRARY, lambda module: seen.append(1 // 0))
    when_imported(LIBRARY, lambda module: seen.append(module.ask() == "asked"))
    forget = when_imported(LIBRARY, lambda module: seen.append(4))
    forget()
    forget()
    library()
    assert seen == [1, True]
    assert sum(faults().values()) == counted + 1


def test_a_library_that_imports_what_is_asked_for_is_patched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Any
) -> None:
    monkeypatch.delitem(sys.modules, "lazy_part_of_the_library", raising=False)
    (tmp_path / "lazy_part_of_the_library.py").write_text(SOURCE)
    lazy = """
def __getattr__(name):
    if name != "Client":
        raise AttributeError(name)
    from lazy_part_of_the_library import Client
    return Client
"""
    (tmp_path / f"{LIBRARY}.py").write_text(lazy)
    patches = Patches()
    patches.add(f"{LIBRARY}:Client.ask", loud)
    patches.add("lazy_part_of_the_library:ask", loud)
    importing = threading.Thread(target=library, daemon=True)
    importing.start()
    importing.join(10)
    assert not importing.is_alive()
    assert library().Client().ask() == "ASKED"
    patches.remove()
    assert library().Client().ask() == "asked"


def test_half_of_a_module_is_left_to_its_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    patches = Patches()
    patches.add(TARGETS[0], loud)
    monkeypatch.setattr(sys, "half", lambda: patches.add(TARGETS[1], loud), raising=False)
    (tmp_path / f"{LIBRARY}.py").write_text(f"import sys; sys.half()\n{SOURCE}")
    assert library().ask() == "ASKED"
    patches.remove()
    assert library().ask() == "asked"


def test_a_module_that_nobody_imported_is_found_where_it_was_put() -> None:
    module = types.ModuleType(LIBRARY)
    exec(SOURCE, vars(module))
    patches = patched()
    sys.modules[LIBRARY] = module
    others = patched()
    try:
        assert module.Client().ask() == "ASKED"
    finally:
        del sys.modules[LIBRARY]
        others.remove()
        patches.remove()


def test_a_reloaded_module_is_as_new_and_what_was_before_is_restored(library: Any) -> None:
    patches = patched()
    module = library()
    old = module.Client
    importlib.reload(module)
    assert old().ask() == "ASKED"
    assert module.Client().ask() == module.ask() == "asked"
    again = patched()
    assert module.Client().ask() == "ASKED"
    patches.remove()
    assert old().ask() == "asked"
    assert module.Client().ask() == "ASKED"
    again.remove()
    assert module.ask() == "asked"


@pytest.mark.parametrize("hooked", [True, False])
def test_an_import_that_another_thread_is_in_the_middle_of_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Any, hooked: bool
) -> None:
    waiting, made = threading.Event(), [patched()] if hooked else []
    thread = threading.Thread(target=lambda: made.append(patched()))

    def half() -> None:
        thread.start()
        assert waiting.wait(10)

    def wait(name: str) -> Any:
        waiting.set()
        return importlib.import_module(name)

    monkeypatch.setattr(wrapping, "import_module", wait)
    monkeypatch.setattr(sys, "half", half, raising=False)
    (tmp_path / f"{LIBRARY}.py").write_text(f"import sys; sys.half()\n{SOURCE}")
    module = library()
    thread.join(10)
    assert module.Client().ask() == module.ask() == "ASKED"
    for patches in reversed(made):
        patches.remove()
    assert module.Client().ask() == "asked"
