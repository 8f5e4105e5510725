"""Methods against each other in a real browser: what both tabs show is what the engine returns."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from test_browser import about, answered, browser, dark, page, phone, server, tab  # noqa: F401

from litelvlm import viz
from litelvlm.methods import METHODS
from litelvlm.ui.examples import examples
from litelvlm.ui.inputs import method_choices
from litelvlm.ui.pictures import view_size
from litelvlm.ui.work import budgets

pytestmark = pytest.mark.browser
LABELS = {name: label for label, name in method_choices()}


@pytest.fixture(scope="module")
def engine(pipe):
    """The opening example: its phrases, and the answers by method and budget."""
    phrases = list(examples()[0].phrases)
    scene = pipe.encode(examples()[0].pixels())
    return phrases, lambda *budget, **given: pipe.ground(scene, phrases, *budget, **given)


def alike(answers, whole):
    return [(a.mask & b.mask).sum() / max(1, (a.mask | b.mask).sum())
            for a, b in zip(answers, whole, strict=True)]  # fmt: skip


def choose(page, *names):  # noqa: F811
    """Make these the methods to compare."""
    box = page.locator("#lv-rivals")
    while box.locator(".token-remove:not(.remove-all)").count():
        box.locator(".token-remove:not(.remove-all)").first.click()
    for name in names:
        box.locator("input").click()
        page.get_by_role("option", name=LABELS[name], exact=True).click()
    page.keyboard.press("Escape")


def compare(page, *names):  # noqa: F811
    tab(page, "Methods")
    choose(page, *names)
    page.click("#lv-compare-methods")
    page.wait_for_function(
        "n => document.querySelectorAll('#lv-beside .lv-rival').length === n", arg=len(names)
    )


def layer(page, method, place):  # noqa: F811
    """The RGBA pixels of a picture in the column of a method."""
    source = page.locator(f".lv-rival[data-lv-method='{method}'] img").nth(place)
    data = source.get_attribute("src").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def draw(page, done):  # noqa: F811
    tab(page, "Budget curve")
    page.click("#lv-sweep")
    page.wait_for_function(
        "text => document.querySelector('#lv-curve').textContent.includes(text)", arg=done
    )


def points(page):  # noqa: F811
    """What the points of the first chart say: (title, budget) -> value."""
    told = page.locator("#lv-curve .lv-chart").first.locator(".lv-point")
    labels = told.evaluate_all("list => list.map(p => p.getAttribute('aria-label'))")
    found = [re.fullmatch(r"(.*), (\d+) tokens: ([\d.]+)", label).groups() for label in labels]
    return {(title, int(budget)): float(value) for title, budget, value in found}


def line(page):  # noqa: F811
    """What the line of the budget says, and where it stands: (number, share of the axis)."""
    return page.locator("#lv-curve .lv-now").first.evaluate(
        "g => { const [, , l, r] = g.dataset.lvAxis.split(' ').map(Number);"
        "const x = g.transform.baseVal.consolidate().matrix.e;"
        "return [Number(g.querySelector('text').textContent), (x - l) / (r - l)]; }"
    )


# ------------------------------------------------------------------------------------ side by side
def test_methods_side_by_side_show_what_the_engine_returns(page, engine):  # noqa: F811
    phrases, ask = engine
    names = ("litelvlm", "most-similar", "context")
    compare(page, *names)
    whole, size = ask(), view_size(examples()[0].pixels().shape[:2])
    for name in names:
        mine = ask(21, method=name)
        text = page.inner_text(f".lv-rival[data-lv-method='{name}']")
        assert METHODS[name].title in text
        assert f"agreement (IoU) {alike(mine, whole)[0]:.2f}" in text
        assert "21 tokens" in text
        least, median, most = (
            float(re.search(rf"{before}([\d.]+){after}", text).group(1))
            for before, after in ((r"\(", "–"), (", ", " ms"), ("–", r"\)"))
        )
        assert 0 < least <= median <= most
        assert np.array_equal(layer(page, name, 0), viz.token_layer(mine[0].token_map, size))
        assert np.array_equal(layer(page, name, 1), viz.mask_layer([mine[0].mask], size))
    assert f"“{phrases[0]}” with 21 of 64 tokens" in page.inner_text("#lv-beside")
    assert page.faults == []


def test_the_figure_of_the_methods_can_be_saved(page, tmp_path):  # noqa: F811
    compare(page, "random", "grid")
    for kind in ("png", "svg"):
        with page.expect_download() as waiting:
            page.click(f"#lv-beside-figure a[download='methods.{kind}']")
        waiting.value.save_as(tmp_path / f"methods.{kind}")
    image = Image.open(tmp_path / "methods.png")
    assert image.format == "PNG"
    assert np.asarray(image.convert("L")).std() > 20
    assert "<svg" in (tmp_path / "methods.svg").read_text()


def test_the_comparison_follows_the_phrase_and_outlives_the_budget_alone(page):  # noqa: F811
    page.fill("#lv-phrases textarea", "a wall\nthe disc")
    page.click("#lv-run")
    about(page, "a wall")
    compare(page, "litelvlm", "context")
    assert "“a wall” with 21" in page.inner_text("#lv-beside")
    page.locator("#lv-phrase label", has_text="the disc").click()
    page.wait_for_function(
        "document.querySelector('#lv-beside').textContent.includes('“the disc” with 21')"
    )
    page.click("[data-lv-budget='32']")
    answered(page, "32 of 64")
    assert "“the disc” with 21 of 64 tokens" in page.inner_text("#lv-beside")
    page.fill("#lv-phrases textarea", "something else")
    page.click("#lv-run")
    about(page, "something else")
    assert page.locator("#lv-beside .lv-rival").count() == 0
    assert page.locator("#lv-beside-figure a").count() == 0


def test_one_method_is_nothing_to_compare_and_a_fifth_cannot_be_chosen(page):  # noqa: F811
    tab(page, "Methods")
    names = ("litelvlm", "random", "grid", "context", "trim")
    choose(page, names[0])
    page.click("#lv-compare-methods")
    page.wait_for_selector("#lv-beside .lv-error")
    assert "choose 2 to 4 methods to compare, got 1" in page.inner_text("#lv-beside")
    choose(page, *names[:4])
    page.locator("#lv-rivals input").click()
    fifth = page.get_by_role("option", name=LABELS[names[4]], exact=True)
    if fifth.count():
        fifth.click()
    assert page.locator("#lv-rivals .token").count() == 4


# ------------------------------------------------------------------------------------------- curve
def test_the_curve_takes_the_ticked_methods_and_agrees_with_the_engine(page, engine):  # noqa: F811
    _, ask = engine
    tab(page, "Budget curve")
    page.click("#lv-curve-methods button")
    page.locator("#lv-ticked").get_by_label(LABELS["random"]).uncheck()
    page.locator("#lv-ticked").get_by_label(LABELS["grid"]).uncheck()
    page.locator("#lv-ticked").get_by_label(LABELS["context"]).check()
    draw(page, "6 of 6")
    whole, told = ask(), points(page)
    names = ("litelvlm", "context")
    assert set(told) == {(METHODS[n].title, b) for n in names for b in budgets(64)[:-1]}
    for name in names:
        for budget in budgets(64)[:-1]:
            mean = np.mean(alike(ask(budget, method=name), whole))
            assert told[METHODS[name].title, budget] == pytest.approx(mean, abs=0.005001)


def test_a_point_sets_the_budget_and_the_curve_stays(page, engine):  # noqa: F811
    draw(page, "9 of 9")
    before = points(page)
    assert line(page) == [21, pytest.approx(np.log(21 / 8) / np.log(64 / 8), abs=0.01)]
    page.locator("#lv-curve .lv-point[data-lv-budget='16']").first.click(force=True)
    answered(page, "16 of 64")
    assert page.input_value("#lv-budget input[type=number]") == "16"
    assert points(page) == before
    assert line(page) == [16, pytest.approx(np.log(16 / 8) / np.log(64 / 8), abs=0.01)]
    page.locator("#lv-curve .lv-point[data-lv-budget='32']").first.focus()
    page.keyboard.press("Enter")
    answered(page, "32 of 64")
    page.locator("#lv-budget input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    answered(page, "33 of 64")
    assert points(page) == before
    assert line(page)[0] == 33
    page.fill("#lv-phrases textarea", "something else")
    page.click("#lv-run")
    about(page, "something else")
    assert page.locator("#lv-curve .lv-point").count() == 0


def test_a_cancelled_curve_keeps_its_points(page):  # noqa: F811
    tab(page, "Budget curve")
    page.click("#lv-curve-methods button")
    for box in page.locator("#lv-ticked input").all():  # enough work to be cancelled
        box.check()
    page.click("#lv-sweep")
    page.wait_for_selector("#lv-curve .lv-point", state="attached")
    page.click("#lv-cancel")
    page.wait_for_function(
        "document.querySelector('#lv-curve').textContent.includes('Cancelled after')"
    )
    done, total = map(
        int,
        re.search(r"Cancelled after (\d+) of (\d+) points", page.inner_text("#lv-curve")).groups(),
    )
    page.wait_for_timeout(700)
    assert 0 < done < total
    assert len(points(page)) == done
    assert not page.locator("#lv-curve .lv-progress").count()


def test_both_tabs_fit_a_phone(phone):  # noqa: F811
    compare(phone, "litelvlm", "context")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    draw(phone, "9 of 9")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
