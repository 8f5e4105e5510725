"""What is asked against what was answered, in a real browser: no answer passes for another."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from served import Server
from test_browser import (  # noqa: F401
    DIMMED,
    about,
    answered,
    ask,
    browser,
    clear,
    describes,
    expect,
    file,
    find,
    open_page,
    page,
    says,
    server,
    settled,
    shows,
    tab,
    upload,
)

from litelvlm.ui.examples import examples

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def two_models(tmp_path_factory, browser):  # noqa: F811
    made = Server(tmp_path_factory.mktemp("two"), "--model", "nano")
    yield made
    made.stop()


def marked(page):  # noqa: F811
    says(page, "Settings changed: press Find to run again")
    expect(page.locator("#lv-tabs .tabitem").first).to_have_css("opacity", DIMMED)


def fresh(page, text=" s, picture"):  # noqa: F811
    answered(page, text)
    expect(page.locator("#lv-tabs .tabitem").first).to_have_css("opacity", "1")


def pick(page, label, option):  # noqa: F811
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option).click()
    expect(page.locator("[role=option]")).to_have_count(0)


OPTIONS = {
    "Split": ("a quarter", "model’s default"),
    "Order": ("released", "model’s default"),
    "Positions": ("original", "model’s default"),
    "Context score": ("attention", "model’s default"),
    "CLIP reads": ("question", "model’s default"),
}


def test_every_option_marks_the_answer_until_it_is_set_back_or_run_again(page, file):  # noqa: F811
    find(page, file)
    page.click("#lv-advanced button")
    for label, (option, usual) in OPTIONS.items():
        pick(page, label, option)
        marked(page)
        pick(page, label, usual)
        fresh(page)
    writes, given = page.locator("#lv-advanced input[type=radio]").all()[::-1]
    writes.check()
    marked(page)
    given.check()
    fresh(page)
    page.fill("#lv-phrases textarea", "a wall")
    marked(page)
    says(page, "On screen: the earlier answer to “the disc”")
    page.fill("#lv-phrases textarea", "the disc ")
    fresh(page)
    pick(page, "Order", "released")
    marked(page)
    page.click("#lv-run")
    fresh(page)


def test_another_model_marks_the_answer(browser, two_models):  # noqa: F811
    for visit in open_page(browser, two_models):
        visit.set_default_timeout(60_000)
        visit.click("[data-lv-budget='32']")  # which both can take
        answered(visit, "32 of")
        settled(visit)
        first = re.match("[^ :]+", visit.input_value("#lv-pick input"))[0]
        says(visit, f"by {first}")
        pick(visit, "Model", "nano" if first != "nano" else "tiny-random")
        marked(visit)
        says(visit, f"by {first}")
        pick(visit, "Model", first)
        fresh(visit, "32 of")


def test_an_example_shows_the_model_that_answers_it(browser, two_models):  # noqa: F811
    made = next(n for n, one in enumerate(examples()) if one.model == "nano")
    for visit in open_page(browser, two_models):
        visit.set_default_timeout(60_000)
        visit.locator(f"[data-lv-example='{made}']").click()
        answered(visit, "by nano")
        settled(visit)
        expect(visit.locator("#lv-pick input")).to_have_value(re.compile("^nano\\b"))
        shows(visit, "#lv-model", "nano")
        expect(visit.locator("#lv-state")).not_to_contain_text("Settings changed")


def test_an_answer_does_not_outlive_its_picture(page, file, tmp_path):  # noqa: F811
    find(page, file)
    masks = page.locator("#lv-masks")
    shown = masks.locator("img").first.get_attribute("src")
    clear(page)
    says(page, "Choose a picture first")
    expect(masks).to_be_hidden()
    expect(page.locator("#lv-share")).to_be_hidden()
    page.click("#lv-run")
    page.wait_for_selector("#lv-state .lv-error")
    settled(page)
    expect(masks).to_be_hidden()
    other = tmp_path / "other.png"
    Image.new("RGB", (60, 90), "teal").save(other)
    upload(page, str(other))
    says(page, "Another picture: press Find")
    expect(masks).to_be_hidden()
    upload(page, file)
    fresh(page)
    expect(masks.locator("img").first).to_have_attribute("src", shown)
    expect(masks).to_be_visible()


def test_what_is_typed_during_a_run_marks_its_answer(page, file):  # noqa: F811
    upload(page, file)
    page.fill("#lv-phrases textarea", "the disc")
    settled(page)
    page.evaluate(
        """() => { const box = document.querySelector('#lv-phrases textarea');
        document.querySelector('#lv-run').click();
        setTimeout(() => {
          Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value')
            .set.call(box, 'a wall');
          box.dispatchEvent(new Event('input', {bubbles: true}));
        }, 0); }"""
    )
    about(page, "the disc")
    settled(page)
    marked(page)
    expect(page.locator("#lv-phrases textarea")).to_have_value("a wall")


def test_the_phrase_shown_can_be_switched_while_the_answer_is_marked(page, file):  # noqa: F811
    find(page, file, "the disc\na wall")
    tab(page, "Tokens")
    page.click("#lv-advanced button")
    pick(page, "Order", "released")
    marked(page)
    page.locator("#lv-phrase label", has_text="a wall").click()
    describes(page, "#lv-tokens", "a wall")
    ask(page, "?!")
    page.wait_for_selector("#lv-state .lv-error")
    page.locator("#lv-phrase label", has_text="the disc").click()
    describes(page, "#lv-tokens", "the disc")


def test_moving_the_slider_runs_what_is_asked_now(page, file):  # noqa: F811
    find(page, file)
    page.fill("#lv-phrases textarea", "a wall")
    marked(page)
    page.click("[data-lv-budget='32']")
    about(page, "a wall")
    fresh(page, "32 of 64")


# ------------------------------------------------------------------------------------------- links
def test_a_link_opens_the_same_answer_with_all_options_in_the_same_tab(
    page,  # noqa: F811
    browser,  # noqa: F811
    server,  # noqa: F811
    pipe,
):
    page.click("#lv-advanced button")
    for label, (option, _) in OPTIONS.items():
        pick(page, label, option)
    settled(page)
    page.click("#lv-run")
    fresh(page)
    page.click("[data-lv-budget='32']")
    answered(page, "32 of 64")
    tab(page, "Tokens")
    expect(page.locator("#lv-share")).to_have_attribute("href", re.compile("tab=tokens"))
    settled(page)
    address = page.get_attribute("#lv-share", "href")
    assert "data" not in address
    assert len(address) < 400, "the picture is not in it"
    layer = page.get_attribute("#lv-tokens img", "src")
    example = examples()[0]
    scene = pipe.encode(str(example.path))
    mine = pipe.ground(
        scene, list(example.phrases), 32, split=0.25, order="released", positions="original",
        context="attention", text="question",
    )  # fmt: skip
    counts = [f"{n}" for n in np.unique(mine[0].token_map.reason, return_counts=True)[1]]
    for visit in open_page(browser, server, path="/" + address):
        answered(visit, "32 of 64")
        expect(visit.locator("#lv-tokens")).to_be_visible()
        expect(visit.locator("#lv-tokens img").first).to_have_attribute("src", layer)
        shows(visit, "#lv-tokens .lv-counts", *(f"{n} kept" for n in counts))
        visit.click("#lv-advanced button")
        for label, (option, _) in OPTIONS.items():
            expect(visit.get_by_label(label, exact=True)).to_have_value(option)
        settled(visit)
        expect(visit.locator("#lv-state")).not_to_contain_text("Settings changed")
        expect(visit.locator("#lv-share")).to_have_attribute("href", address)


def test_a_link_to_an_upload_asks_for_it_and_answers_the_same(
    page,  # noqa: F811
    browser,  # noqa: F811
    server,  # noqa: F811
    file,  # noqa: F811
):
    find(page, file)
    page.click("[data-lv-budget='16']")
    answered(page, "16 of 64")
    settled(page)
    shown = page.get_attribute("#lv-masks img", "src")
    address = page.get_attribute("#lv-share", "href")
    visits = open_page(browser, server, path="/" + address, ready="#lv-state .lv-info")
    for visit in visits:
        says(visit, "Upload the same picture")
        expect(visit.locator("#lv-phrases textarea")).to_have_value("the disc")
        expect(visit.locator("#lv-masks")).to_be_hidden()
        upload(visit, file)
        visit.click("#lv-run")
        answered(visit, "16 of 64")
        expect(visit.locator("#lv-masks img").first).to_have_attribute("src", shown)


def test_a_strange_link_opens_the_page_all_the_same(browser, server):  # noqa: F811
    path = "/?example=none.jpg&budget=99999&method=magic&split=7&tab=attic&mode=x&model=y"
    for visit in open_page(browser, server, path=path):
        answered(visit, "21 of 64")
        expect(visit.locator("#lv-masks")).to_be_visible()
        assert visit.faults == []
