"""Who may import whom: pricing nothing of ours; instrumentation and processor only pricing, never each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "pricing": {"tollspan.pricing"},
    "instrumentation": {"tollspan.instrumentation", "tollspan.pricing"},
    "processor": {"tollspan.processor", "tollspan.pricing"},
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "tollspan"}


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            assert ".".join(name.split(".")[:2]) in ALLOWED[room], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ALLOWED)
def test_the_namespace_package_has_no_init(room: str) -> None:
    assert not (ROOT / room / "tollspan" / "__init__.py").exists()
