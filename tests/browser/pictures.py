"""The pictures of the README: the page over two months of an imaginary company, from a service that took its spans.

    python tests/browser/pictures.py [FOLDER]

Writes ``page-*.png`` into FOLDER (``docs``).
"""

from __future__ import annotations

import base64
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.chromium import launch
from tests.browser.looks import figure, panel, ready, row, section
from tests.browser.month import BOOK, month
from tests.browser.world import World, await_rows
from tests.end_to_end.service import Service
from tollspan.processor.store import connect_for_query

DOCS = Path(__file__).resolve().parents[2] / "docs"
WIDE = {"width": 1200, "height": 820}
PHONE = {"width": 390, "height": 844}


COLORS = """async (data) => {
  const picture = await createImageBitmap(await (await fetch("data:image/png;base64," + data)).blob());
  const canvas = new OffscreenCanvas(picture.width, picture.height), context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const { data: bytes } = context.getImageData(0, 0, picture.width, picture.height);
  const counts = new Map();
  const color = (at) => (bytes[at] << 16) | (bytes[at + 1] << 8) | bytes[at + 2];
  for (let at = 0; at < bytes.length; at += 4) counts.set(color(at), (counts.get(color(at)) || 0) + 1);
  const parts = (each) => [each >> 16, (each >> 8) & 255, each & 255];
  const apart = (a, b) => (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2;
  // One after the other, the color that is missed most: by how often it is there and how far from those that are taken.
  const found = [...counts].map(([each, count]) => ({ each, count, split: parts(each), far: 1e9, place: 0 }));
  const palette = [];
  while (palette.length < Math.min(256, found.length)) {
    const next = found.reduce((a, b) => (b.count * b.far > a.count * a.far ? b : a));
    for (const other of found) {
      const far = apart(other.split, next.split);
      if (far < other.far) [other.far, other.place] = [far, palette.length];
    }
    palette.push(next.each);
  }
  const nearest = new Map(found.map(({ each, place }) => [each, place]));
  const places = new Uint8Array(bytes.length / 4);
  for (let at = 0; at < bytes.length; at += 4) places[at / 4] = nearest.get(color(at));
  let text = "";
  for (let at = 0; at < places.length; at += 8192) text += String.fromCharCode(...places.subarray(at, at + 8192));
  return [picture.width, picture.height, palette, btoa(text)];
}"""
"""A PNG in base64 → width, height, at most 256 colors, and which of them is next to each pixel's."""


def small(browser: Browser, png: bytes) -> bytes:
    """The same picture with a palette: a third of the size."""
    page = browser.new_page()
    width, height, colors, text = page.evaluate(COLORS, base64.b64encode(png).decode())
    page.close()
    places = base64.b64decode(text)
    lines = b"".join(b"\0" + places[at : at + width] for at in range(0, len(places), width))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", b"".join(color.to_bytes(3, "big") for color in colors))
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


def settled(world: World) -> None:
    """Wait until nothing more comes."""
    before = -1
    while (now := world.rows("SELECT count() AS n FROM ledger")[0]["n"]) != before:
        before = now
        time.sleep(2)
    await_rows(world, 1)


def opened(browser: Browser, url: str, viewport: dict[str, int] = WIDE, scheme: str = "light") -> Page:
    page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce", locale="en-US")  # type: ignore[arg-type]
    page.goto(url)
    ready(page)
    for drawing in page.locator(".drawing").all():
        drawing.locator("svg").wait_for(state="attached")
    return page


def pictures(browser: Browser, where: str, folder: Path) -> None:
    def take(page: Page, name: str) -> None:
        page.mouse.move(0, 0)
        # Without the room that is kept for a scroll bar.
        width = page.evaluate("document.body.clientWidth")
        assert page.viewport_size is not None
        shot = page.screenshot(clip={"x": 0, "y": 0, "width": width, "height": page.viewport_size["height"]})
        (folder / f"page-{name}.png").write_bytes(small(browser, shot))

    take(opened(browser, f"{where}/?since=30d"), "executive")
    take(opened(browser, f"{where}/?view=oncall&since=1h&budget=1000", scheme="dark"), "oncall")

    page = opened(browser, f"{where}/?view=debug&since=7d")
    section(page, "traces").locator("[data-row]", has_text="support-chat").first.locator(".row-link").click()
    panel(page, "trace").locator("[data-span]").first.wait_for()
    take(page, "trace")

    page = opened(browser, f"{where}/?since=30d")
    row(section(page, "by.model"), "claude-opus-4-5").locator(".row-link").click()
    panel(page, "figure").locator("[data-call]").first.wait_for()
    panel(page, "figure").locator("[data-call] .row-link").first.click()
    panel(page, "charge").locator("[data-charge]").first.wait_for()
    take(page, "charge")

    page = opened(browser, f"{where}/?since=30d", PHONE)
    figure(page, "spend").wait_for()
    take(page, "phone")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tollspan-pictures-") as name:
        book = Path(name) / "prices.yaml"
        book.write_text(BOOK, encoding="utf-8")
        options = ["--prices", str(book), "--page", "127.0.0.1:0", "--sampling-keep", "1"]
        with Service(Path(name) / "store", options) as service, sync_playwright() as playwright:
            for payload in month():
                service.export(payload)
            world = World(service, connect_for_query(service.url))
            settled(world)
            browser = launch(playwright)
            pictures(browser, world.page, folder)
            browser.close()
    for path in sorted(folder.glob("page-*.png")):
        print(f"{path.stat().st_size / 1024:6.0f} KiB  {path}")


if __name__ == "__main__":
    main()
