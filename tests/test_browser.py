"""The demo in a real browser: what a visitor does, by mouse and by keyboard."""

from __future__ import annotations

import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image
from served import Server

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DIMMED = re.compile(r"0\.[0-4]")  # the opacity of an answer to another question
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
    "--disable-background-networking",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    expect.set_options(timeout=30_000)
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory, browser):
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.stop()


@pytest.fixture
def page(browser, server):
    """A fresh visitor on the page; what the page asked other hosts for is in `page.strangers`."""
    yield from open_page(browser, server)


@pytest.fixture
def phone(browser, server):
    yield from open_page(browser, server, viewport={"width": 390, "height": 844}, has_touch=True)


@pytest.fixture
def dark(browser, server):
    yield from open_page(browser, server, path="/?__theme=dark", color_scheme="dark")


def open_page(browser, server, path="/", ready="#lv-state .lv-status", **options):
    options = {"viewport": {"width": 1280, "height": 900}, **options}
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.strangers, page.faults, page.runs, page.pending = [], [], [], set()
    own = (server.url, "data:", "blob:", "about:")
    page.on("request", lambda r: None if r.url.startswith(own) else page.strangers.append(r.url))
    page.on("request", lambda r: page.runs.append(r.post_data) if "queue/join" in r.url else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda r: page.pending.add(r) if "heartbeat" not in r.url else None)
    page.on("requestfinished", lambda r: page.pending.discard(r))
    page.on("requestfailed", lambda r: page.pending.discard(r))
    page.goto(server.url + path)
    page.wait_for_selector(ready)  # the page opens on an answer
    settled(page)
    yield page
    context.close()


@pytest.fixture
def file(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (180, 240, 3), np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(pixels).save(path)
    return str(path)


def settled(page):
    """Wait until the page is idle and waits for nothing, for a third of a second."""
    calm = 0
    while calm < 5:
        page.wait_for_timeout(60)
        page.evaluate("new Promise(done => requestIdleCallback(() => done()))")
        calm = 0 if page.pending else calm + 1


def clear(page):
    """Take the picture away, where there is one."""
    remove = page.locator("#lv-picture button[aria-label='Remove Image']")
    if remove.count():
        remove.click()
        page.wait_for_selector("#lv-picture img", state="detached")
        settled(page)


def upload(page, file):
    clear(page)
    page.set_input_files("#lv-picture input[type=file]", file)
    page.wait_for_selector("#lv-picture img")
    settled(page)


def ask(page, phrases):
    """Type and press Find, when the page has taken note of what was typed."""
    page.fill("#lv-phrases textarea", phrases)
    settled(page)
    page.click("#lv-run")


def find(page, file, phrases="the disc"):
    upload(page, file)
    ask(page, phrases)
    about(page, phrases.splitlines()[0])
    answered(page)
    settled(page)


def shows(page, part, text, *more):
    """Wait until a part of the page shows texts to a reader."""
    for one in (text, *more):
        expect(page.locator(part)).to_contain_text(one, use_inner_text=True)


def about(page, phrase):
    """Wait for the answer to a phrase: the page opens on another one."""
    shows(page, "#lv-masks", phrase)


def says(page, text):
    shows(page, "#lv-state", text)


def answered(page, text=" s, picture"):
    shows(page, "#lv-state .lv-status", text)


def describes(page, part, text):
    """Wait until the first picture of a part is about a text."""
    alt = re.compile(re.escape(text))
    expect(page.locator(f"{part} img").first).to_have_attribute("alt", alt)


def tab(page, name):
    shown = page.locator("#lv-tabs button[role=tab]:visible", has_text=name)
    more = page.locator("#lv-tabs .overflow-menu > button:visible")
    # On a narrow screen the last ones are behind a button; while the page is laid out, neither is.
    shown.or_(more).first.wait_for()
    if not shown.count():
        more.click()
        page.locator("#lv-tabs .overflow-dropdown button", has_text=name).click()
        return
    shown.first.click()


def sized(page, width, height):
    """Wait for the six layers of both answers in the size of the picture."""
    layers = page.locator("#lv-masks img")
    expect(layers).to_have_count(6)
    for layer in layers.all():
        expect(layer).to_have_js_property("naturalWidth", width)
        expect(layer).to_have_js_property("naturalHeight", height)


# ---------------------------------------------------------------------------------- upload and run
def test_the_first_view_names_the_model(page):
    shows(page, "#lv-model", "tiny-random")


def test_upload_type_and_find_show_both_answers(page, file):
    find(page, file)
    sized(page, 240, 180)
    shows(page, "#lv-masks", "Pruned, 21 tokens", "All 64")
    assert page.faults == []


def test_the_photo_is_on_screen_behind_the_layers(page, file):
    find(page, file)
    shot = page.locator("#lv-masks .lv-sides").screenshot()
    import io

    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), float)
    assert pixels.std() > 30, "a picture of noise under the masks, not an empty box"


def test_shift_enter_runs_too(page, file):
    upload(page, file)
    page.fill("#lv-phrases textarea", "a thing")
    page.locator("#lv-phrases textarea").press("Shift+Enter")
    answered(page)


def test_a_click_on_an_example_runs_it(page):
    page.locator("[data-lv-example='0']").click()
    answered(page)
    expect(page.locator("#lv-phrases textarea")).not_to_have_value("")
    page.wait_for_selector("#lv-picture img")


def test_nothing_on_the_page_comes_from_another_host(page, file):
    find(page, file)
    for name in ("Tokens", "Similarity", "Cost", "Budget curve", "Use it"):
        tab(page, name)
        settled(page)
    assert page.strangers == []


def test_every_picture_has_a_text_alternative(page, file):
    find(page, file)
    for name, part in (("Masks", "#lv-masks"), ("Tokens", "#lv-tokens"), ("Similarity", "#lv-sim")):
        tab(page, name)
        expect(page.locator(f"{part} img").first).to_be_visible()
        expect(page.locator(".lv-html img:is(:not([alt]), [alt=''])")).to_have_count(0)


def test_a_phrase_with_markup_is_shown_as_text(page, file):
    find(page, file, "<img src=x onerror=window.hacked=1> ${1+1} {{value}}")
    shows(page, "#lv-masks", "<img src=x", "${1+1} {{value}}")
    assert page.evaluate("window.hacked") is None


# ------------------------------------------------------------------------------------------ budget
def test_moving_the_slider_answers_with_the_new_budget(page, file):
    find(page, file)
    page.click("[data-lv-budget='32']")
    answered(page, "32 of 64")
    expect(page.locator("[data-lv-budget='32']")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("[data-lv-budget][aria-pressed=true]")).to_have_count(1)
    says(page, "already encoded")
    shows(page, "#lv-masks", "32 tokens")


def test_another_method_answers_at_once(page, file):
    find(page, file)
    page.locator("#lv-method input").click()
    page.get_by_role("option", name="Uniform grid").click()
    answered(page, "already encoded")
    tab(page, "Tokens")
    shows(page, "#lv-tokens", "Uniform grid")


def test_the_slider_works_by_keyboard(page, file):
    find(page, file)
    page.locator("#lv-budget input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    answered(page, "22 of 64")


def test_a_typed_budget_runs_too(page, file):
    find(page, file)
    page.fill("#lv-budget input[type=number]", "40")
    page.keyboard.press("Tab")
    answered(page, "40 of 64")


def test_dragging_thirty_times_in_three_seconds_runs_twice_at_most_and_the_last_wins(page, file):
    find(page, file)
    page.evaluate(
        "window.moves = []; document.addEventListener('change', () => "
        "moves.push(performance.now()), true)"
    )
    page.runs.clear()
    slider = page.locator("#lv-budget input[type=range]")
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    start = time.perf_counter()
    for number in range(30):
        x = box["x"] + box["width"] * (0.1 + 0.8 * ((number * 7) % 30) / 30)
        page.mouse.move(x, middle)
        page.mouse.down()
        page.mouse.move(x + 3, middle)
        page.mouse.up()
        page.wait_for_timeout(max(0, 100 * (number + 1) - 1000 * (time.perf_counter() - start)))
    value = page.input_value("#lv-budget input[type=range]")
    answered(page, f"{value} of 64")
    settled(page)
    # A busy computer may drag with pauses: each ends one drag and begins the next.
    pauses = page.evaluate("moves.filter((now, i) => i && now - moves[i - 1] > 300).length")
    assert len(page.runs) <= 2 * (1 + pauses)
    says(page, f"{value} of 64")


def test_a_wrong_typed_budget_never_breaks_the_page(page, file):
    find(page, file)
    page.fill("#lv-budget input[type=number]", "9999")
    page.keyboard.press("Tab")
    settled(page)
    expect(page.locator("#lv-state").locator(".lv-status, .lv-error").first).to_be_visible()
    page.click("[data-lv-budget='16']")
    answered(page, "16 of 64")


# --------------------------------------------------------------------------------------- the tabs
def test_the_border_between_both_answers_can_be_dragged_and_moved_by_keyboard(page, file):
    find(page, file)
    page.click("[data-lv-view='compare']")
    page.wait_for_selector(".lv-compare")
    stage = page.locator(".lv-compare").bounding_box()
    y = stage["y"] + stage["height"] / 2
    page.mouse.move(stage["x"] + stage["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.2, y, steps=5)
    page.mouse.up()
    cut = "parseFloat(getComputedStyle(document.documentElement).getPropertyValue('--lv-cut'))"
    page.wait_for_function(f"Math.abs({cut} - 20) <= 3")
    before = page.evaluate(cut)
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"before => {cut} > before", arg=before)
    kept = page.evaluate(cut)
    page.click("[data-lv-budget='32']")
    answered(page, "32 of 64")
    settled(page)
    assert float(page.input_value(".lv-range")) == kept, "a new answer keeps the border"


def test_the_overlay_shows_both_answers_in_one_picture(page, file):
    find(page, file)
    expect(page.locator(".lv-view-overlay")).to_be_hidden()
    page.click("[data-lv-view='overlay']")
    expect(page.locator(".lv-view-overlay")).to_be_visible()
    expect(page.locator(".lv-view-sides")).to_be_hidden()


def test_each_phrase_has_its_own_tokens_and_similarity(page, file):
    find(page, file, "the disc\na wall")
    tab(page, "Tokens")
    describes(page, "#lv-tokens", "the disc")
    page.locator("#lv-phrase label", has_text="a wall").click()
    describes(page, "#lv-tokens", "a wall")
    tab(page, "Similarity")
    describes(page, "#lv-sim", "a wall")
    shows(page, "#lv-sim", "Reversal (AUC)")


def test_the_costs_fill_in_with_work_memory_and_spread_when_they_are_looked_at(page, file):
    find(page, file)
    tab(page, "Cost")
    shows(page, "#lv-cost", "Median of 5 runs", "MFLOP")
    expect(page.locator("#lv-cost .lv-whisker").nth(5)).to_be_attached()


def test_the_curve_is_drawn_to_the_end(page, file):
    find(page, file)
    tab(page, "Budget curve")
    page.click("#lv-sweep")
    shows(page, "#lv-curve", "9 of 9")
    expect(page.locator("#lv-curve .lv-dot").nth(17)).to_be_attached()


def draw_much(page):
    """Begin a curve of all methods: enough work to be cancelled."""
    tab(page, "Budget curve")
    page.click("#lv-curve-methods button")
    page.wait_for_selector("#lv-ticked input")
    for box in page.locator("#lv-ticked input").all():
        box.check()
    page.click("#lv-sweep")


def test_the_curve_can_be_cancelled_and_the_page_goes_on(page, file):
    find(page, file, "\n".join(f"thing {n}" for n in range(6)))
    draw_much(page)
    page.wait_for_selector("#lv-curve .lv-progress")
    page.click("#lv-cancel")
    shows(page, "#lv-curve", "Cancelled")
    settled(page)
    shows(page, "#lv-curve", "Cancelled")
    page.click("[data-lv-budget='8']")
    answered(page, "8 of 64")


def test_files_can_be_saved(page, file, tmp_path):
    find(page, file)
    tab(page, "Use it")
    shows(page, "#lv-snippet", "pipe.ground(scene, ['the disc'], budget=21)")
    page.click("#lv-prepare")
    page.wait_for_selector("#lv-downloads a[download='figure.svg']")
    for name in ("mask-1.png", "result.json", "figure.png"):
        with page.expect_download() as waiting:
            page.click(f"#lv-downloads a[download='{name}']")
        waiting.value.save_as(tmp_path / name)
    assert Image.open(tmp_path / "mask-1.png").size == (240, 180)
    assert json.loads((tmp_path / "result.json").read_text())["results"][0]["phrase"] == "the disc"
    assert Image.open(tmp_path / "figure.png").format == "PNG"


# ------------------------------------------------------------------------------------------ errors
def test_an_error_is_told_and_the_next_try_works(page, file):
    clear(page)
    ask(page, "")
    shows(page, "#lv-state .lv-error", "Choose a picture")
    upload(page, file)
    page.click("#lv-run")
    shows(page, "#lv-state .lv-error", "Type what")
    ask(page, "a thing")
    answered(page)
    expect(page.locator("#lv-state .lv-error")).to_have_count(0)


def test_after_an_error_the_old_answer_is_marked_as_such(page, file):
    answers = page.locator(".tabitem:has(#lv-masks)")
    find(page, file)
    expect(answers).to_have_css("opacity", "1")
    ask(page, "?!")
    page.wait_for_selector("#lv-state .lv-error")
    says(page, "the earlier answer to “the disc”")
    expect(answers).to_have_css("opacity", DIMMED)
    ask(page, "a thing")
    about(page, "a thing")
    expect(answers).to_have_css("opacity", "1")


def test_the_page_opens_on_the_answer_that_the_engine_gives(page, server):
    from litelvlm import load
    from litelvlm.ui.examples import examples

    example = examples()[0]
    pipe = load("tiny-random")
    mine = pipe.ground(pipe.encode(str(example.path)), list(example.phrases), 21)
    expect(page.locator("#lv-phrases textarea")).to_have_value("\n".join(example.phrases))
    full = pipe.ground(pipe.encode(str(example.path)), list(example.phrases))
    for a, b in zip(mine, full, strict=True):
        union = (a.mask | b.mask).sum()
        if a.found and b.found:
            shows(page, "#lv-masks", f"{(a.mask & b.mask).sum() / union:.2f}")
    says(page, "21 of 64")


def test_a_link_opens_the_answer_it_was_made_for(page, browser, server):
    page.click("[data-lv-budget='32']")
    answered(page, "32 of 64")
    tab(page, "Use it")
    settled(page)
    address = page.get_attribute("#lv-share", "href")
    for opened in open_page(browser, server, path="/" + address):
        answered(opened, "32 of 64")
        expect(opened.locator("#lv-budget input[type=number]")).to_have_value("32")


def test_a_changed_option_says_that_the_answer_is_of_before(page, file):
    find(page, file)
    page.click("#lv-advanced button")
    page.get_by_label("model writes its answer").check()
    says(page, "Settings changed")
    page.click("#lv-run")
    expect(page.locator("#lv-state")).not_to_contain_text("Settings changed")


def test_what_is_no_picture_is_refused_on_the_page(page, tmp_path, file):
    path = tmp_path / "text.png"
    path.write_text("no picture")
    clear(page)
    page.set_input_files("#lv-picture input[type=file]", str(path))
    ask(page, "a thing")
    settled(page)
    shows(page, "#lv-state .lv-error", "not a picture that is known; JPEG, PNG, WEBP")


def test_a_reload_starts_afresh(page, file):
    find(page, file)
    page.reload()
    answered(page, "answered in advance")
    settled(page)
    find(page, file)


def test_two_visitors_keep_their_own_answers(browser, server, file, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (60, 90), "teal").save(other)
    first = open_page(browser, server)
    second = open_page(browser, server)
    one, two = next(first), next(second)
    find(one, file, "mine")
    find(two, str(other), "yours")
    one.click("[data-lv-budget='8']")
    answered(one, "8 of 64")
    sized(one, 240, 180)
    sized(two, 60, 90)
    about(one, "mine")
    for visit in (first, second):
        next(visit, None)


# ---------------------------------------------------------------------------- phone, dark, keyboard
def test_a_phone_shows_every_tab_without_scrolling_sideways(phone, file):
    find(phone, file, "the disc\na rather long phrase about something on the left of the picture")
    for name in ("Masks", "Tokens", "Similarity", "Cost", "Budget curve", "Use it"):
        tab(phone, name)
        settled(phone)
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_dark_mode_is_dark_and_legible(dark, file):
    find(dark, file)

    def luma(script):
        colour = [float(n) for n in re.findall(r"[\d.]+", dark.evaluate(script))[:3]]
        return np.dot(colour, (0.299, 0.587, 0.114))

    body = luma("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
    for part in (
        ".lv-head h1",
        ".lv-head p",
        "#lv-state .lv-status",
        ".lv-legend li",
        ".lv-caption",
    ):
        text = luma(f"getComputedStyle(document.querySelector('{part}')).color")
        assert text - body > 90, part
    assert body < 60


def test_all_of_it_can_be_reached_by_keyboard(page, file):
    upload(page, file)
    page.locator("#lv-phrases textarea").focus()
    page.keyboard.type("a thing")
    page.keyboard.press("Tab")
    expect(page.locator("#lv-run")).to_be_focused()
    page.keyboard.press("Enter")
    answered(page)
    settled(page)
    page.click("[data-lv-view='compare']")  # the border has a view of its own
    page.locator("#lv-phrases textarea").focus()
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "(() => { const e = document.activeElement; return e.dataset.lvBudget ? 'mark' : "
                "e.dataset.lvView || (e.getAttribute('role') === 'tab' ? 'tab' : '') || "
                "(e.classList.contains('lv-range') ? 'border' : '') || "
                "(e.type === 'range' ? 'budget' : ''); })()"
            )
        )
        if {"mark", "tab", "border", "budget", "overlay"} <= seen:
            break
    assert {"mark", "tab", "border", "budget", "overlay"} <= seen
