"""Empty stand-ins for the CUDA libraries that a CUDA build of torch links to and a program on the CPU never calls.

    python tests/versions/cuda_stubs.py <site-packages>/torch/lib

An old torch has wheels for the CPU only where the index of PyTorch can be reached; those of PyPI load 2.5 GB of CUDA.
Of these only ``nvidia-cuda-runtime-cu12`` and ``nvidia-cuda-cupti-cu12`` (15 MB) are to be there: they say themselves
that there is no device. For every other library that is linked to, one is compiled here (gcc) that has the symbols that
are asked for, each a function that fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

LIBRARY = re.compile(r"NEEDED.*\[(lib(?:cu|nccl|nv)(?!dart|pti)\S*?)\]")
SYMBOL = re.compile(r"(?:cu|nccl|nv)\w+")


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def asked_of(folder: Path) -> dict[str, set[tuple[str, str]]]:
    """Library → the symbols that are asked of it, each with its version ("" where it has none)."""
    asked: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for file in sorted(folder.glob("*.so")):
        libraries = LIBRARY.findall(output("readelf", "-dW", file))
        symbols = [
            line.split()[-1].partition("@") for line in output("nm", "-D", "--undefined-only", file).splitlines()
        ]
        for library in libraries:
            stem = re.split(r"[._]|\.so", library.removeprefix("lib"))[0].lower()
            asked[library] |= {
                (name, version)
                for name, _, version in symbols
                if SYMBOL.match(name) and (version == library or (not version and _is_of(name.lower(), stem)))
            }
    return asked


def _is_of(symbol: str, stem: str) -> bool:
    return symbol.startswith("cu" if stem == "cuda" else stem)


def compiled(library: Path, symbols: set[tuple[str, str]]) -> None:
    versions: dict[str, list[str]] = defaultdict(list)
    for name, version in sorted(symbols):
        versions[version].append(name)
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "stub.c"), Path(folder, "stub.map")
        source.write_text(
            "".join(f"int {name}(void) {{ return 1; }}\n" for name in sorted({name for name, _ in symbols}))
        )
        said = {version: names for version, names in versions.items() if version}
        script.write_text("".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in said.items()))
        command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library.name}", "-o", str(library)]
        command += [f"-Wl,--version-script={script}"] if said else []
        subprocess.run([*command, str(source)], check=True)


def main() -> None:
    folder = Path(sys.argv[1])
    for name, symbols in asked_of(folder).items():
        if not (folder / name).exists():
            compiled(folder / name, symbols)
            print(f"{name}: {len(symbols)} symbols")


if __name__ == "__main__":
    main()
