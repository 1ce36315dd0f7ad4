"""The HTTP library that an installed client stands on: httpx2 now, httpx in older versions of most clients.

Both have the same names, so that a test takes the one of its client as ``httpx2`` and is the same for both.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import requires
from typing import Any

from packaging.requirements import Requirement


def http_of(distribution: str) -> Any:
    """The HTTP library that ``distribution`` requires."""
    required = {each.name for line in requires(distribution) or () if not (each := Requirement(line)).marker}
    return import_module("httpx2" if "httpx2" in required else "httpx")


httpx2: Any = http_of("openai")
