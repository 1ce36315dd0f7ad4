"""A real Chromium and axe-core for the browser tests, from the npm registry: Playwright's own host is no registry.

    python tests/browser/chromium.py

Fetches what is not there yet into ``browser/`` of the virtual environment, once, and prints where Chromium is. A
Chromium or Chrome on PATH, or the one that ``TOLLSPAN_TEST_CHROMIUM`` names, is taken instead. Exits 1 with one line
where none can be had; the tests are then skipped with the same line.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import io
import os
import platform
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

REGISTRY: Final = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
KEPT: Final = Path(sys.prefix) / "browser"
INSTALLED: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_S: Final = 20.0

FONTS: Final = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>{fonts}</dir><cachedir>{fonts}/cache</cachedir></fontconfig>
"""


class UnavailableError(Exception):
    """No browser can be had here; says why."""


@dataclass(frozen=True, slots=True)
class Package:
    """A version of an npm package, and the digest that its archive has to have.

    Attributes:
        name: with its scope.
        version: exactly this one.
        sha512: of the archive, in base64, as the registry's ``integrity`` has it.
    """

    name: str
    version: str
    sha512: str

    @property
    def folder(self) -> Path:
        """Where it is kept; whole, or not there at all."""
        return KEPT / f"{self.name.rpartition('/')[2]}-{self.version}"

    def fetch(self) -> bytes:
        """The archive.

        Raises:
            UnavailableError: the registry cannot be reached, or sends something else.
        """
        url = f"{REGISTRY}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                archive = bytes(answer.read())
        except OSError as error:
            raise UnavailableError(f"{url} cannot be fetched: {error}") from error
        if base64.b64encode(hashlib.sha512(archive).digest()).decode() != self.sha512:
            raise UnavailableError(f"{url} is not what was pinned: its SHA-512 differs")
        return archive

    def kept(self, unpack: Callable[[tarfile.TarFile, Path], None]) -> Path:
        """Its folder, fetched and unpacked now if it is not there; two processes that do this at once agree.

        Raises:
            UnavailableError: see `fetch`.
        """
        if self.folder.is_dir():
            return self.folder
        archive = self.fetch()
        KEPT.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=KEPT))
        try:
            with tarfile.open(fileobj=io.BytesIO(archive)) as members:
                unpack(members, made)
            made.chmod(0o755)
            try:
                made.rename(self.folder)
            except OSError:
                if not self.folder.is_dir():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return self.folder


CHROMIUM: Final = Package(
    "@sparticuz/chromium",
    "147.0.0",
    "4ZKeAQQa8up2mt675qSitztLdbQrlf8BKdC5naeap+5Mv1OV1OlJdPoU+EJC/p5sQUJUQmN4r+q5+EhaaOUHpQ==",
)
AXE: Final = Package(
    "axe-core", "4.14.1", "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)


@dataclass(frozen=True, slots=True)
class Chromium:
    """How to start it.

    Attributes:
        path: the program.
        arguments: of the command line.
        environment: variables that it alone gets.
    """

    path: Path
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def chromium() -> Chromium:
    """The Chromium to test with; fetched if need be.

    Raises:
        UnavailableError: there is none for this machine, or it cannot be fetched.
    """
    named = os.environ.get("TOLLSPAN_TEST_CHROMIUM")
    if named and not Path(named).is_file():
        raise UnavailableError(f"TOLLSPAN_TEST_CHROMIUM names {named}, which is no file")
    # Chromium's sandbox refuses root, and needs rights that containers do not give.
    arguments = ("--no-sandbox", "--disable-gpu")
    found = named or next(filter(None, map(shutil.which, INSTALLED)), None)
    if found:
        return Chromium(Path(found), arguments)
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise UnavailableError(
            f"no Chromium on PATH, and none to fetch for {sys.platform} on {platform.machine()}: "
            "name one with TOLLSPAN_TEST_CHROMIUM"
        )
    folder = CHROMIUM.kept(_unpack_chromium)
    environment = {}
    if not _has("libnss3.so", "libexpat.so.1"):
        environment["LD_LIBRARY_PATH"] = str(folder / "lib")
    if not Path("/etc/fonts/fonts.conf").is_file():
        environment["FONTCONFIG_FILE"] = str(folder / "fonts.conf")
    return Chromium(folder / "chromium", arguments, environment)


def launch(playwright: Playwright, *arguments: str) -> Browser:
    """Start it, with more arguments.

    Raises:
        UnavailableError: see `chromium`.
    """
    found = chromium()
    return playwright.chromium.launch(
        executable_path=found.path,
        args=[*found.arguments, *arguments],
        env={**os.environ, **found.environment},
    )


def axe() -> str:
    """The script of axe-core, which finds what hinders people who use a page with little sight or without a mouse.

    Raises:
        UnavailableError: it cannot be fetched.
    """
    return (AXE.kept(_unpack_axe) / "axe.min.js").read_text(encoding="utf-8")


def _has(*libraries: str) -> bool:
    try:
        for library in libraries:
            ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _member(members: tarfile.TarFile, name: str) -> bytes:
    found = members.extractfile(f"package/{name}")
    assert found is not None, name
    return found.read()


def unpack(members: tarfile.TarFile, into: Path) -> None:
    """All of it; with a filter where tarfile has one: Python 3.11 has since 3.11.4."""
    members.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
    members.extractall(into)


def _unpack_axe(members: tarfile.TarFile, into: Path) -> None:
    for name in ("axe.min.js", "LICENSE"):
        (into / name).write_bytes(_member(members, name))


def _unpack_chromium(members: tarfile.TarFile, into: Path) -> None:
    try:
        import brotli
    except ImportError as error:
        raise UnavailableError("Chromium's archive needs the package brotli: pip install brotli") from error
    program = into / "chromium"
    program.write_bytes(brotli.decompress(_member(members, "bin/chromium.br")))
    program.chmod(0o755)
    for name in ("al2023", "fonts"):
        with tarfile.open(fileobj=io.BytesIO(brotli.decompress(_member(members, f"bin/{name}.tar.br")))) as inner:
            unpack(inner, into)
    (into / "fonts.conf").write_text(FONTS.format(fonts=CHROMIUM.folder / "fonts"), encoding="utf-8")


if __name__ == "__main__":
    try:
        axe()
        print(chromium().path)
    except UnavailableError as error:
        sys.exit(f"{error}: the browser tests will be skipped")
