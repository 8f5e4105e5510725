"""The token map in a real browser: what it says and draws is what the engine returns."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from test_browser import (  # noqa: F401
    about,
    answered,
    browser,
    expect,
    file,
    find,
    open_page,
    page,
    phone,
    says,
    server,
    settled,
    shows,
    tab,
)

from litelvlm.question import Question
from litelvlm.ui.examples import examples

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def asked(pipe):
    """The opening example, and the selections of its first phrase by budget."""
    first = examples()[0]
    scene = pipe.encode(first.pixels())
    return scene, lambda budget: pipe.select(scene, list(first.phrases), budget)[0]


def ready(page):  # noqa: F811
    page.wait_for_selector("#lv-play [data-lv-play]", state="attached")
    tab(page, "Tokens")
    page.wait_for_selector("#lv-tokens .lv-canvas[data-lv-ready]")
    return page.locator("#lv-tokens .lv-canvas")


def middle(scene, patch, box):
    """Where on the screen the middle of a patch lies."""
    x0, y0, x1, y1 = scene.frame.boxes()[patch]
    height, width = scene.frame.image_hw
    return (x0 + x1) / 2 / width * box["width"], (y0 + y1) / 2 / height * box["height"]


def seen(scene, patch):
    x0, y0, x1, y1 = scene.frame.boxes()[patch]
    height, width = scene.frame.image_hw
    return x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height


def expected(select, budget, patch):
    """What the map has to say about a patch, from the engine alone."""
    chosen = select(budget)
    entry = next(b for b in range(8, 65) if select(b).kept()[patch])
    return {
        "patch": patch,
        "similarity": int((chosen.similarity < chosen.similarity[patch]).sum()) + 1,
        "context": int((chosen.context > chosen.context[patch]).sum()) + 1,
        "kept": bool(chosen.kept()[patch]),
        "entry": entry,
    }


def said(page, patch, block="#lv-readout"):  # noqa: F811
    """What the readout says about a patch, once it is there: all of it is written at once."""
    shows(page, block, f"Patch {patch},")
    text = page.inner_text(block)
    number = lambda what: int(re.search(what, text).group(1))  # noqa: E731
    return {
        "patch": number(r"Patch (\d+)"),
        "similarity": number(r"Similarity .*rank (\d+) of"),
        "context": number(r"Context .*rank (\d+) of"),
        "kept": re.search(r"With \d+ tokens (kept|dropped)", text).group(1) == "kept",
        "entry": number(r"Enters at (\d+)"),
    }


def test_the_page_opens_on_an_answered_example(page, asked):  # noqa: F811
    _, select = asked
    says(page, "answered in advance")
    expect(page.locator("#lv-masks")).not_to_contain_text("Nothing here yet")
    expect(page.locator("#lv-phrases textarea")).to_have_value("\n".join(examples()[0].phrases))
    tab(page, "Tokens")
    shows(page, "#lv-tokens .lv-counts", f"{int((select(21).reason == 0).sum())} kept")


def test_moving_the_slider_on_the_first_screen_answers(page):  # noqa: F811
    page.click("[data-lv-budget='16']")
    answered(page, "16 of 64 image tokens")
    says(page, "already encoded")


@pytest.mark.parametrize("size", [(1280, 720)])
def test_what_one_sets_is_in_view_without_scrolling(browser, server, size):  # noqa: F811
    for visit in open_page(
        browser, server, viewport=dict(zip(("width", "height"), size, strict=True))
    ):
        for part in ("#lv-picture", "#lv-phrases", "#lv-run", "#lv-budget"):
            box = visit.locator(part).bounding_box()
            assert 0 <= box["y"] <= size[1] - box["height"], part


def test_on_a_phone_the_slider_lies_directly_over_the_result(phone):  # noqa: F811
    slider, result = (phone.locator(i).bounding_box() for i in ("#lv-budget", "#lv-tabs"))
    assert 0 < result["y"] - (slider["y"] + slider["height"]) < 80
    for name in ("Masks", "Tokens", "Similarity", "Cost", "Budget curve", "Use it"):
        tab(phone, name)


def test_a_patch_tells_its_scores_and_ranks(page, asked):  # noqa: F811
    scene, select = asked
    canvas = ready(page)
    for patch in [p for p in range(scene.count) if seen(scene, p)][::9]:
        x, y = middle(scene, patch, canvas.bounding_box())
        canvas.hover(position={"x": x, "y": y})
        assert said(page, patch) == expected(select, 21, patch)


def test_arrows_move_and_two_patches_are_compared(page, asked):  # noqa: F811
    scene, select = asked
    canvas = ready(page)
    canvas.focus()
    start = next(patch for patch in range(scene.count) if seen(scene, patch))
    said(page, start)
    canvas.press("ArrowDown")
    canvas.press("Enter")
    canvas.press("ArrowRight")
    blocks = page.locator("#lv-readout > div")
    down = start + scene.frame.grid[1]
    expect(blocks).to_have_count(2)
    expect(blocks.first).to_contain_text("held")
    for place, patch in ((1, down), (2, down + 1)):
        told = said(page, patch, f"#lv-readout > div:nth-child({place})")
        assert told == expected(select, 21, patch)
    canvas.press("Escape")
    expect(blocks).to_have_count(1)


def test_a_tap_shows_a_patch(phone, asked):  # noqa: F811
    scene, select = asked
    canvas = ready(phone)
    patch = next(p for p in range(20, scene.count) if seen(scene, p))
    x, y = middle(scene, patch, canvas.bounding_box())
    canvas.tap(position={"x": x, "y": y})
    assert said(phone, patch) == expected(select, 21, patch)


def test_the_map_follows_the_slider_before_the_answer(page, asked):  # noqa: F811
    scene, select = asked
    ready(page)
    runs = len(page.runs)
    page.evaluate(
        """() => { const r = document.querySelector('#lv-budget input[type=range]');
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(r, 40);
        r.dispatchEvent(new Event('input', {bubbles: true})); }"""
    )
    expect(page.locator("#lv-tokens .lv-canvas")).to_have_attribute("data-lv-live", "40")
    settled(page)
    assert len(page.runs) == runs, "no model runs while it is dragged"
    kept = select(40).kept()
    for patch in [p for p in range(scene.count) if seen(scene, p)][::5]:
        x, y = middle(scene, patch, {"width": 1, "height": 1})
        blue = page.evaluate(
            """([x, y]) => { const c = document.querySelector('#lv-tokens .lv-canvas');
            const d = c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data;
            return [...d.slice(0, 3)]; }""",
            [x, y],
        )
        assert (max(blue) > 60) == bool(kept[patch]), patch


def test_the_similarity_map_outlines_what_the_slider_would_keep(page, asked):  # noqa: F811
    scene, select = asked
    page.wait_for_selector("#lv-play [data-lv-play]", state="attached")
    tab(page, "Similarity")
    page.wait_for_selector("#lv-sim .lv-cut[data-lv-ready]")
    drag = """v => { const r = document.querySelector('#lv-budget input[type=range]');
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(r, v);
        r.dispatchEvent(new Event('input', {bubbles: true})); }"""
    white = """([x0, y0, x1, y1]) => { const c = document.querySelector('#lv-sim .lv-cut');
        const at = (v, whole) => Math.round(v * whole);
        const d = c.getContext('2d').getImageData(at(x0, c.width), at((y0 + y1) / 2, c.height),
            1, 1).data; return d[3] === 255; }"""
    columns = scene.frame.grid[1]
    height, width = scene.frame.image_hw
    for budget in (12, 40):
        page.evaluate(drag, budget)
        kept = select(budget).kept(0)
        for patch in [p for p in range(scene.count) if seen(scene, p) and p % columns]:
            box = (scene.frame.boxes()[patch] / [width, height, width, height]).tolist()
            border = bool(kept[patch] and not kept[patch - 1])
            assert page.evaluate(white, box) == border, (budget, patch)
        assert kept.any()


def test_play_shows_every_budget_and_stops(page):  # noqa: F811
    ready(page)
    page.click("[data-lv-play-budget]")
    page.wait_for_function("Number(document.querySelector('.lv-canvas').dataset.lvLive) > 12")
    page.click("[data-lv-play-budget]")
    page.wait_for_function("!('lvLive' in document.querySelector('.lv-canvas').dataset)")
    expect(page.locator("[data-lv-play-budget]")).to_have_attribute("aria-pressed", "false")


def test_the_animation_goes_up_to_all_tokens_and_back(page):  # noqa: F811
    ready(page)
    page.click("#lv-film")
    page.wait_for_selector("#lv-film-link a")
    link = page.get_attribute("#lv-film-link a", "href")
    film = Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2])))
    frames = []
    for number in range(film.n_frames):
        film.seek(number)
        frames.append(np.asarray(film.convert("RGB"), float).mean())
    assert film.format == "GIF"
    assert len(frames) > 10
    top = int(np.argmax(frames))
    assert 0 < top < len(frames) - 1, "brightest in the middle, where nothing is darkened"


def test_a_phrase_with_markup_is_shown_as_text(page, file):  # noqa: F811
    find(page, file, "<img src=x onerror=alert(1)> \"' disc")
    canvas = ready(page)
    expect(canvas).to_have_attribute("aria-label", re.compile("<img src=x"))
    expect(page.locator("img[src='x']")).to_have_count(0)
    assert page.faults == []


def test_every_budget_is_in_the_table(pipe, picture):
    from litelvlm.ui.desk import Desk
    from litelvlm.ui.limits import take_picture
    from litelvlm.ui.settings import Settings

    desk = Desk(Settings(models=("tiny-random",)), lambda name: pipe)
    for method in ("litelvlm", "litelvlm+", "most-similar", "visionzip"):
        ask = Question(("the disc", "a thing"), 16, method=method)
        given = desk.answer("tiny-random", take_picture(picture), ask, None)
        played = desk.play(given, 1)
        assert played.budgets[-1] == given.scene.count
        for budget, chosen in zip(played.budgets[:-1], played.maps, strict=False):
            own = pipe.select(given.scene, list(ask.phrases), budget, method=method)[1]
            assert own.indices.tolist() == chosen.indices.tolist()
            assert own.reason.tolist() == chosen.reason.tolist()
