"""A browser shows the page: its text stands there, and it paints."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from report.page import Page
from report.seen import HOSTILE, Seen
from secateur.report import html_report

CHROMIUM = shutil.which("chromium")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed, so the page cannot be looked at")


@dataclass(frozen=True)
class Shown:
    dom: str
    screenshot: bytes


@pytest.fixture(scope="module")
def shown(result: Seen, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    folder = tmp_path_factory.mktemp("browser")
    page, picture = folder / "report.html", folder / "report.png"
    page.write_text(html_report(result, command="secateur prune"), encoding="utf-8")
    dom = _chromium(folder / "first", "--dump-dom", page.as_uri())
    _chromium(folder / "second", "--window-size=1200,1600", f"--screenshot={picture}", page.as_uri())
    return Shown(dom, picture.read_bytes())


def _chromium(profile: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()


def _pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and the filtered rows of a PNG."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    data, place = b"", 8
    while place < len(png):
        length, kind = struct.unpack(">I4s", png[place : place + 8])
        data += png[place + 8 : place + 8 + length] if kind == b"IDAT" else b""
        place += length + 12
    return width, height, zlib.decompress(data)


def test_the_text_stands_on_the_page(shown: Shown, result: Seen) -> None:
    page = Page(shown.dom)
    assert f"{result.before.parameters:,} → {result.after.parameters:,}" in page.text
    assert "Proof holds" in page.text
    assert HOSTILE in page.text
    assert all(layer.reason in page.text for layer in result.layers if layer.reason)
    assert page.tags.count("rect") > 2 * len(result.layers)


def test_hostile_names_make_no_element(shown: Shown) -> None:
    assert not {"script", "img"} & set(Page(shown.dom).tags)


def test_the_page_is_painted(shown: Shown) -> None:
    width, height, data = _pixels(shown.screenshot)
    assert (width, height) == (1200, 1600)
    stride = len(data) // height
    rows = {data[start : start + stride] for start in range(0, len(data), stride)}
    assert len(rows) > height / 8
