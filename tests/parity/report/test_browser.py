"""The HTML report in a real browser: it is drawn, fits a phone and a screen, and asks for nothing.

A probe is added to a copy of the page; what it finds stands in the title of a frame around it. The
checks are shown to fail on pages that are wrong on purpose.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_report import FULL, MARKED, MEASURED

from opdf_compile.parity.report.page import page
from opdf_compile.parity.report.parity_report import ParityReport
from opdf_compile.parity.report.parity_result import StructurePart

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)
PHONE, SCREEN = 390, 1280
HEIGHT = 4000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None,
        reason="no browser: install chromium, or name one in the environment variable CHROME",
    ),
]

PROBE = """<script>
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("main, main > *")].filter(
    (item) => item.getBoundingClientRect().right > innerWidth + 1);
  parent.document.title = JSON.stringify({
    asked: performance.getEntriesByType("resource").map((entry) => entry.name),
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide: wide.map((item) => item.tagName),
    height: document.documentElement.scrollHeight,
    background: getComputedStyle(document.body).backgroundColor,
    headings: document.querySelectorAll("h1, h2").length,
    figures: document.querySelectorAll("figure svg").length,
    scripts: document.scripts.length,
  });
});
</script>"""


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page."""

    found: dict[str, Any]
    console: list[str]
    pixels: np.ndarray[Any, Any]


def run_browser(folder: Path, *options: str) -> tuple[str, str]:
    assert BROWSER is not None
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--disable-dev-shm-usage", "--no-first-run", "--enable-logging=stderr"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"),
            *("--virtual-time-budget=4000", *options),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def look(text: str, folder: Path, width: int = SCREEN, *, dark: bool = False) -> Seen:
    """Open a page in a frame of a width, which may be narrower than a window can be."""
    framed = html.escape(text.replace("</body>", f"{PROBE}</body>"), quote=True)
    frame = folder / "frame.html"
    frame.write_text(
        f'<!doctype html><meta charset="utf-8"><style>body,iframe{{margin:0;border:0}}</style>'
        f'<iframe width="{width}" height="{HEIGHT}" srcdoc="{framed}"></iframe>',
        encoding="utf-8",
    )
    shade = (f"--blink-settings=preferredColorScheme={0 if dark else 1}",)
    picture = folder / "page.png"
    size = f"--window-size={max(width, 600)},{HEIGHT}"
    dom, said = run_browser(folder, size, *shade, "--dump-dom", frame.as_uri())
    run_browser(folder, size, *shade, f"--screenshot={picture}", frame.as_uri())
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None, dom[:500]
    from matplotlib import image

    return Seen(
        json.loads(html.unescape(title[1])),
        [line for line in said.splitlines() if ":CONSOLE" in line],
        image.imread(picture)[:, :width, :3],
    )


def faults(seen: Seen) -> list[str]:
    """What is wrong with a page, in words."""
    found = seen.found
    checks = {
        "asks for something": bool(found["asked"]),
        "is wider than its window": found["overflow"] > 0 or bool(found["wide"]),
        "says something on the console": bool(seen.console),
        "is blank": float(seen.pixels[: min(HEIGHT, found["height"])].std()) < 0.02,
    }
    return [fault for fault, there in checks.items() if there]


def reports() -> dict[str, ParityReport]:
    long = "encoder.layer.11.attention.output.dense" * 6
    differences = tuple(
        f"Gemm {long} has transB = 0 at output {i}\n  candidate: {MARKED}\n  reference: {long}"
        for i in range(3)
    )
    return {
        "pass": FULL,
        "fail": replace(FULL, verdict="fail", structure=StructurePart("fail", 9, differences)),
        "inconclusive": replace(
            FULL, verdict="inconclusive", latency=replace(MEASURED, verdict="inconclusive")
        ),
    }


@pytest.mark.parametrize(
    ("verdict", "width", "dark"),
    [
        ("pass", PHONE, False),
        ("fail", PHONE, True),
        ("fail", SCREEN, False),
        ("inconclusive", SCREEN, True),
    ],
)
def test_the_page_is_drawn_and_asks_for_nothing(
    tmp_path: Path, verdict: str, width: int, dark: bool
) -> None:
    seen = look(page(reports()[verdict]), tmp_path, width, dark=dark)
    assert faults(seen) == []
    assert seen.found["headings"] > 4
    assert seen.found["figures"] == len(FULL.latency.per_shape)
    assert seen.found["scripts"] == 1  # The probe's own.
    channels = [int(number) for number in re.findall(r"\d+", seen.found["background"])[:3]]
    assert (sum(channels) < 3 * 60) == dark


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ('<img alt="" src="http://example.invalid/x.png">', "asks for something"),
        ('<div style="width: 2000px">wide</div>', "is wider than its window"),
        ("<script>console.error('no')</script>", "says something on the console"),
    ],
)
def test_a_page_that_is_wrong_is_found_out(tmp_path: Path, added: str, fault: str) -> None:
    text = page(FULL).replace("<footer>", f"{added}<footer>")
    assert fault in faults(look(text, tmp_path))


def test_a_blank_page_is_found_out(tmp_path: Path) -> None:
    assert faults(look("<!doctype html><body></body>", tmp_path)) == ["is blank"]
