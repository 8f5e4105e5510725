"""The animation at the top of the README: the demo on its first example, filmed in a browser.

    python tests/make_animation.py [--model photo] [--out assets/demo.gif] [--card assets/card.jpg]

With `--card` only the first screen is taken, in the shape of pictures that go with links.

Needs Chromium and playwright, as the browser tests do.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from served import ROOT, Server

WIDTH = 720  # of the animation, pixels
VIEW = {"width": 1280, "height": 1080}
CARD = {"width": 1280, "height": 672}  # 1.91 to 1, as previews of links are cut
BUDGETS = (8, 16, 32, 64, 96, 128, 192, 288, 384, 480, 576)
DRAG = """budget => { const range = document.querySelector('#lv-budget input[type=range]');
Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(range, budget);
range.dispatchEvent(new Event('input', {bubbles: true})); }"""


def film(page) -> list[tuple[Image.Image, int]]:
    """(frame, milliseconds) in order: the masks, the token map under the moving slider, a patch."""
    frames = []

    def shoot(milliseconds):
        frame = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        size = (WIDTH, round(WIDTH * frame.height / frame.width))
        frames.append((frame.resize(size, Image.Resampling.LANCZOS), milliseconds))

    page.wait_for_timeout(1500)
    shoot(1500)
    page.locator("#lv-tabs button[role=tab]:visible", has_text="Tokens").click()
    page.wait_for_selector("#lv-tokens .lv-canvas[data-lv-ready]")
    page.wait_for_timeout(500)
    shoot(1200)
    for budget in (*reversed(BUDGETS[:6]), *BUDGETS[1:], *reversed(BUDGETS[6:-1])):
        page.evaluate(DRAG, budget)
        page.wait_for_timeout(150)
        shoot(180)
    box = page.locator("#lv-tokens .lv-canvas").bounding_box()
    for across in (0.4, 0.5, 0.6):
        page.mouse.move(box["x"] + across * box["width"], box["y"] + box["height"] / 2)
        page.wait_for_timeout(150)
        shoot(900)
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="photo")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "demo.gif")
    parser.add_argument("--card", type=Path, help="write this picture instead")
    given = parser.parse_args()
    server = Server(tempfile.mkdtemp(), model=given.model)
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
                args=["--headless", "--no-sandbox", "--disable-gpu"],
            )
            page = browser.new_page(viewport=VIEW)
            page.goto(server.url)
            page.wait_for_selector("#lv-run")
            if given.card:
                page.wait_for_timeout(2000)
                page.screenshot(path=given.card, clip={"x": 0, "y": 0, **CARD}, quality=85)
                return
            frames = film(page)
    finally:
        server.stop()
    pictures = [frame.quantize(64, dither=Image.Dither.NONE) for frame, _ in frames]
    times = [milliseconds for _, milliseconds in frames]
    pictures[0].save(
        given.out, save_all=True, append_images=pictures[1:], duration=times, loop=0, optimize=True
    )
    print(f"{given.out}: {len(frames)} frames, {given.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
