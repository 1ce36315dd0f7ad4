"""A running LLM stub of the examples, and their scripts as modules."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import anthropic
import openai

from tollspan.processor.demo import STUB, child_environment, example_directory


def script(path: Path) -> ModuleType:
    """A module of an example, which is a folder of scripts and no package."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Stub:
    """A running `llm_stub.py`."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.served = folder / "served.jsonl"
        ready = folder / "ready.json"
        command = [sys.executable, str(example_directory() / STUB), "--tally", str(self.served), "--ready", str(ready)]
        self.process = subprocess.Popen(
            [*command, "--pace", "0", *options], env=child_environment(), stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        self.process.stderr.readline()
        self.base_url = self.process.stderr.readline().split()[0].removeprefix("OPENAI_BASE_URL=")

    def client(self, **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key="stub", **settings)

    def claude(self, **settings: Any) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.base_url.removesuffix("/v1"), api_key="stub", **settings)

    def stop(self) -> list[dict[str, Any]]:
        """End it and give what it tallied."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(15) == 0
        return [json.loads(line) for line in self.served.read_text().splitlines()]
