"""What is asked against what was answered, in a real browser: no answer passes for another."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image
from served import Server
from test_browser import (  # noqa: F401
    about,
    answered,
    browser,
    clear,
    file,
    find,
    open_page,
    page,
    server,
    tab,
    upload,
)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def two_models(tmp_path_factory, browser):  # noqa: F811
    made = Server(tmp_path_factory.mktemp("two"), "--model", "nano")
    yield made
    made.stop()


def says(page, text):  # noqa: F811
    page.wait_for_function(
        "text => document.querySelector('#lv-state').textContent.includes(text)", arg=text
    )


def opacity(page):  # noqa: F811
    return float(
        page.evaluate("getComputedStyle(document.querySelector('#lv-tabs .tabitem')).opacity")
    )


def marked(page):  # noqa: F811
    says(page, "Settings changed: press Find to run again")
    assert opacity(page) < 0.5


def fresh(page, text=" s, picture"):  # noqa: F811
    answered(page, text)
    page.wait_for_function(
        "getComputedStyle(document.querySelector('#lv-tabs .tabitem')).opacity === '1'"
    )


def pick(page, label, option):  # noqa: F811
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option).click()
    page.wait_for_function("!document.querySelector('[role=option]')")


def chosen(page):  # noqa: F811
    """The name of the model; the list tells more of it."""
    return re.match("[^ :]+", page.input_value("#lv-pick input"))[0]


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
    assert "On screen: the earlier answer to “the disc”" in page.inner_text("#lv-state")
    page.fill("#lv-phrases textarea", "the disc ")
    fresh(page)
    pick(page, "Order", "released")
    marked(page)
    page.click("#lv-run")
    fresh(page)


def test_another_model_marks_the_answer(browser, two_models):  # noqa: F811
    for visit in open_page(browser, two_models):
        visit.set_default_timeout(60_000)
        first = chosen(visit)
        assert first in visit.inner_text("#lv-state"), "the model that answered is the chosen one"
        before = visit.input_value("#lv-budget input[type=number]")
        pick(visit, "Model", "nano" if first != "nano" else "tiny-random")
        marked(visit)
        assert f"by {first}" in visit.inner_text("#lv-state")
        pick(visit, "Model", first)
        if visit.input_value("#lv-budget input[type=number]") == before:
            fresh(visit, "answered in advance")


def test_an_example_shows_the_model_that_answers_it(browser, two_models):  # noqa: F811
    for visit in open_page(browser, two_models):
        visit.set_default_timeout(60_000)
        visit.locator("[data-lv-example='1']").click()  # made for nano
        answered(visit, "by nano")
        assert chosen(visit) == "nano"
        assert "nano" in visit.inner_text("#lv-model")
        visit.wait_for_timeout(500)
        assert "Settings changed" not in visit.inner_text("#lv-state")


def test_an_answer_does_not_outlive_its_picture(page, file, tmp_path):  # noqa: F811
    find(page, file)
    shown = page.get_attribute("#lv-masks img", "src")
    clear(page)
    says(page, "Choose a picture first")
    assert not page.is_visible("#lv-masks")
    assert not page.is_visible("#lv-share")
    page.click("#lv-run")
    page.wait_for_selector("#lv-state .lv-error")
    assert not page.is_visible("#lv-masks")
    other = tmp_path / "other.png"
    Image.new("RGB", (60, 90), "teal").save(other)
    upload(page, str(other))
    says(page, "Another picture: press Find")
    assert not page.is_visible("#lv-masks")
    upload(page, file)
    fresh(page)
    assert page.get_attribute("#lv-masks img", "src") == shown, "the same picture, the same answer"
    assert page.is_visible("#lv-masks")


def test_what_is_typed_during_a_run_marks_its_answer(page, file):  # noqa: F811
    upload(page, file)
    page.evaluate(
        """() => { const box = document.querySelector('#lv-phrases textarea');
        const type = (text) => {
          Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value')
            .set.call(box, text);
          box.dispatchEvent(new Event('input', {bubbles: true}));
        };
        type('the disc');
        setTimeout(() => {
          document.querySelector('#lv-run').click();
          setTimeout(() => type('a wall'), 0);
        }, 300); }"""
    )
    about(page, "the disc")
    marked(page)
    assert page.input_value("#lv-phrases textarea") == "a wall"


def test_the_phrase_shown_can_be_switched_while_the_answer_is_marked(page, file):  # noqa: F811
    find(page, file, "the disc\na wall")
    tab(page, "Tokens")
    page.click("#lv-advanced button")
    pick(page, "Order", "released")
    marked(page)
    page.locator("#lv-phrase label", has_text="a wall").click()
    page.wait_for_function("document.querySelector('#lv-tokens img').alt.includes('a wall')")
    page.fill("#lv-phrases textarea", "?!")
    page.click("#lv-run")
    page.wait_for_selector("#lv-state .lv-error")
    page.locator("#lv-phrase label", has_text="the disc").click()
    page.wait_for_function("document.querySelector('#lv-tokens img').alt.includes('the disc')")


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
    from litelvlm.ui.examples import examples

    page.click("#lv-advanced button")
    for label, (option, _) in OPTIONS.items():
        pick(page, label, option)
    page.click("#lv-run")
    fresh(page)
    page.click("[data-lv-budget='32']")
    answered(page, "32 of 64")
    tab(page, "Tokens")
    page.wait_for_function("document.querySelector('#lv-share').href.includes('tab=tokens')")
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
        visit.wait_for_selector("#lv-tokens", state="visible")
        assert visit.get_attribute("#lv-tokens img", "src") == layer
        assert all(f"{n} kept" in visit.inner_text("#lv-tokens .lv-counts") for n in counts)
        visit.click("#lv-advanced button")
        for label, (option, _) in OPTIONS.items():
            assert visit.get_by_label(label, exact=True).input_value() == option
        visit.wait_for_timeout(500)
        assert "Settings changed" not in visit.inner_text("#lv-state")
        assert visit.get_attribute("#lv-share", "href") == address


def test_a_link_to_an_upload_asks_for_it_and_answers_the_same(
    page,  # noqa: F811
    browser,  # noqa: F811
    server,  # noqa: F811
    file,  # noqa: F811
):
    find(page, file)
    page.click("[data-lv-budget='16']")
    answered(page, "16 of 64")
    shown = page.get_attribute("#lv-masks img", "src")
    address = page.get_attribute("#lv-share", "href")
    visits = open_page(browser, server, path="/" + address, ready="#lv-state .lv-info")
    for visit in visits:
        says(visit, "Upload the same picture")
        assert visit.input_value("#lv-phrases textarea") == "the disc"
        assert not visit.is_visible("#lv-masks")
        upload(visit, file)
        visit.click("#lv-run")
        answered(visit, "16 of 64")
        assert visit.get_attribute("#lv-masks img", "src") == shown


def test_a_strange_link_opens_the_page_all_the_same(browser, server):  # noqa: F811
    path = "/?example=none.jpg&budget=99999&method=magic&split=7&tab=attic&mode=x&model=y"
    for visit in open_page(browser, server, path=path):
        answered(visit, "21 of 64")
        assert visit.is_visible("#lv-masks")
        assert visit.faults == []
