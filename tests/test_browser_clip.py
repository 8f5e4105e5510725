"""The tab for clips in a real browser, with a small random model that takes them."""

from __future__ import annotations

import pytest
from served import Server
from test_browser import browser  # noqa: F401
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
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(server.url)
        page.get_by_role("tab", name="Clip").click()
        page.set_input_files("#lv-clip input[type=file]", str(tmp_path / "disc.mp4"))
        page.wait_for_selector("#lv-clip video")
        page.fill("#lv-clip-what textarea", "the red disc")
        page.click("#lv-follow")
        page.wait_for_selector("#lv-clip-shown .lv-error")
        assert "from 1 to 4, got 64" in page.inner_text("#lv-clip-shown")
        page.fill("#lv-clip-budget input[type=number]", "3")
        page.press("#lv-clip-budget input[type=number]", "Tab")
        page.click("#lv-follow")
        page.wait_for_function(
            "document.querySelector('#lv-clip-shown video')?.readyState >= 2", timeout=60_000
        )
        length = page.evaluate("document.querySelector('#lv-clip-shown video').duration")
        assert length == pytest.approx(7 / 5, abs=0.1)
        assert page.locator("#lv-clip-shown img").count() == 5
        assert "15 of 20 image tokens" in page.inner_text("#lv-clip-shown")
    finally:
        server.stop()
