"""The tab for clips in a real browser, with a small random model that takes them."""

from __future__ import annotations

import pytest
from served import Server
from test_browser import browser, expect, open_page, settled, shows, tab  # noqa: F401
from test_sa2va import write_sa2va
from test_video import draw

from litelvlm.clips import write_clip

pytestmark = pytest.mark.browser


def test_a_clip_plays_with_its_masks(browser, tmp_path):  # noqa: F811
    model = tmp_path / "model"
    (model / "openai").mkdir(parents=True)
    write_sa2va(model)
    (model / "clip").rename(model / "openai" / "clip-vit-base-patch16")
    write_clip(tmp_path / "disc.mp4", draw(), 5.0)
    server = Server(tmp_path / "server", model=str(model))
    try:
        for page in open_page(browser, server):
            page.set_default_timeout(60_000)
            tab(page, "Clip")
            page.set_input_files("#lv-clip input[type=file]", str(tmp_path / "disc.mp4"))
            page.wait_for_selector("#lv-clip video")
            page.fill("#lv-clip-what textarea", "the red disc")
            settled(page)
            page.click("#lv-follow")
            shows(page, "#lv-clip-shown .lv-error", "from 1 to 4, got 64")
            page.fill("#lv-clip-budget input[type=number]", "3")
            page.press("#lv-clip-budget input[type=number]", "Tab")
            settled(page)
            page.click("#lv-follow")
            page.wait_for_function(
                "document.querySelector('#lv-clip-shown video')?.readyState >= 2"
            )
            length = page.evaluate("document.querySelector('#lv-clip-shown video').duration")
            assert length == pytest.approx(7 / 5, abs=0.1)
            expect(page.locator("#lv-clip-shown img")).to_have_count(5)
            shows(page, "#lv-clip-shown", "15 of 20 image tokens")
    finally:
        server.stop()
