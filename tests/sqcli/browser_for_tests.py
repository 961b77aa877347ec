"""Pages in headless Chromium: what is wider than its card, and screenshots."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio")
MEASURE = """
<script>
addEventListener('load', () => {
  const wide = [];
  const name = e => e.tagName.toLowerCase() + (e.className.baseVal === undefined && e.className ? '.' + e.className : '');
  for (const card of document.querySelectorAll('section, nav, main')) {
    const edge = card.getBoundingClientRect().right + 1;
    if (card.scrollWidth > card.clientWidth) wide.push(name(card) + ' ' + card.scrollWidth + ' > ' + card.clientWidth);
    for (const e of card.querySelectorAll('td, th, dd, svg, h2, a, table'))
      if (e.getBoundingClientRect().width && e.getBoundingClientRect().right > edge)
        wide.push(name(e) + ' "' + e.textContent.trim().slice(0, 30) + '" outside its card');
  }
  if (document.documentElement.scrollWidth > innerWidth) wide.push('page ' + document.documentElement.scrollWidth);
  const background = getComputedStyle(document.body).backgroundColor;
  const bright = background.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3;
  parent.postMessage(JSON.stringify({width: innerWidth, wide: wide.slice(0, 10), background, dark: bright < 128}), '*');
});
</script>
"""


def too_wide(page: str, *widths: int, dark: bool = False) -> dict[int, list[str]]:
    """What does not fit into its card when the page (HTML) is so many CSS pixels wide, by width. Fails where the browser shows
    the other colours than asked for.
    """
    inner = html.escape(page.replace("</body>", MEASURE + "</body>"), quote=True)
    frames = (f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{inner}"></iframe>' for width in widths)
    outer = (
        "<!doctype html><body><pre id=said></pre>"
        "<script>addEventListener('message', e => said.textContent += e.data + '\\n')</script>"
        f"{''.join(frames)}</body>"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outer.html"
        file.write_text(outer, encoding="utf-8")
        done = _chromium(folder, _scheme(dark), "--virtual-time-budget=10000", "--dump-dom", file.as_uri())
    said = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    seen = [json.loads(line) for line in html.unescape(said[1]).splitlines()] if said else []
    assert sorted(one["width"] for one in seen) == sorted(widths), f"a page did not load: {done.stderr[-500:]}"
    for one in seen:
        assert one["dark"] == dark, f"asked for dark = {dark}, shown was {one['background']}"
    return {one["width"]: one["wide"] for one in seen}


def screenshot(page: str, width: int, height: int, out: Path, *, dark: bool = False) -> None:
    """A PNG of the page; widths under 500 are shown inside a wider window."""
    inner = html.escape(page, quote=True)
    outer = f'<!doctype html><body style="margin:0"><iframe style="border:0;width:{width}px;height:{height}px" srcdoc="{inner}"></iframe>'
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outer.html"
        file.write_text(outer, encoding="utf-8")
        _chromium(
            folder, _scheme(dark), f"--window-size={max(width, 500)},{height}", f"--screenshot={out}", file.as_uri()
        )


def _scheme(dark: bool) -> str:
    return f"--blink-settings=preferredColorScheme={0 if dark else 1}"


def _chromium(folder: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, *QUIET, f"--user-data-dir={folder}/profile", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
