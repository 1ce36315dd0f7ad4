"""The harness of the browser tests sees what it is there to see, and takes no archive but the pinned one."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.browser import chromium
from tests.browser.chromium import AXE, Package, UnavailableError
from tests.browser.conftest import Visit, Watch

PAGE = (
    "data:text/html,<html lang=en><title>t</title><main><h1>Costs</h1>"
    "<p style='color:%23aaa;background:%23fff'>faint</p><button></button></main>"
)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A registry with one small package in it, and what was asked of it."""
    asked: list[str] = []
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as members:
        members.addfile(tarfile.TarInfo("package/empty"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(archive.getvalue())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(chromium, "REGISTRY", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(chromium, "KEPT", tmp_path)
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_archive_than_the_pinned_one_is_refused(registry: list[str], tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="not what was pinned"):
        AXE.kept(lambda members, into: None)
    assert registry == ["/axe-core/-/axe-core-4.14.1.tgz"]
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_unpacked_leaves_nothing(registry: list[str], tmp_path: Path) -> None:
    fetched: list[bytes] = []

    class Trusting(Package):
        def fetch(self) -> bytes:
            from urllib.request import urlopen

            with urlopen(f"{chromium.REGISTRY}/any") as answer:
                fetched.append(answer.read())
            return fetched[-1]

    def fails(members: tarfile.TarFile, into: Path) -> None:
        (into / "half").write_text("")
        raise UnavailableError("no room")

    package = Trusting("@scope/any", "1", "")
    with pytest.raises(UnavailableError, match="no room"):
        package.kept(fails)
    assert not list(tmp_path.iterdir())
    package.kept(chromium.unpack)
    assert (tmp_path / "any-1" / "package" / "empty").is_file()
    package.kept(fails)  # not unpacked again
    assert len(fetched) == 2


def test_no_registry_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium, "REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="cannot be fetched"):
        replace(AXE, version="0").fetch()


def test_a_browser_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOLLSPAN_TEST_CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match="TOLLSPAN_TEST_CHROMIUM"):
        chromium.chromium()


def test_what_a_page_does_wrong_is_seen(visit: Visit, watch: Watch) -> None:
    page = visit(PAGE)
    page.evaluate("fetch('http://example.com/').catch(() => 0)")
    page.evaluate("console.error('broken'); setTimeout(() => { throw new Error('thrown') })")
    page.wait_for_function("true")
    page.evaluate("alert('open')")
    seen = "\n".join(watch.problems)
    assert "another host: http://example.com/" in seen
    assert "ERR_NAME_NOT_RESOLVED" in seen
    assert "console error: broken" in seen
    assert "exception: thrown" in seen
    assert "dialog: open" in seen
    watch.forgiven.append("")


def test_what_hinders_people_is_seen(visit: Visit, violations: object) -> None:
    found = "\n".join(violations(visit(PAGE)))  # type: ignore[operator]
    assert "color-contrast (serious)" in found
    assert "button-name (critical)" in found
