"""Methods against each other in a real browser: what both tabs show is what the engine returns."""

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
    ask,
    browser,
    draw_much,
    expect,
    page,
    phone,
    server,
    settled,
    shows,
    tab,
)

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
    box.locator(".remove-all").click()
    expect(box.locator(".token")).to_have_count(0)
    for number, name in enumerate(names, 1):
        box.locator("input").click()
        page.get_by_role("option", name=LABELS[name], exact=True).click()
        expect(box.locator(".token")).to_have_count(number)
    page.keyboard.press("Escape")


def compare(page, *names):  # noqa: F811
    tab(page, "Methods")
    choose(page, *names)
    page.click("#lv-compare-methods")
    expect(page.locator("#lv-beside .lv-rival")).to_have_count(len(names))
    settled(page)


def layer(page, method, place):  # noqa: F811
    """The RGBA pixels of a picture in the column of a method."""
    source = page.locator(f".lv-rival[data-lv-method='{method}'] img").nth(place)
    data = source.get_attribute("src").partition(",")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def draw(page, done):  # noqa: F811
    tab(page, "Budget curve")
    page.click("#lv-sweep")
    shows(page, "#lv-curve", done)
    settled(page)


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
    shows(page, "#lv-beside", f"“{phrases[0]}” with 21 of 64 tokens")
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
    ask(page, "a wall\nthe disc")
    about(page, "a wall")
    compare(page, "litelvlm", "context")
    shows(page, "#lv-beside", "“a wall” with 21")
    page.locator("#lv-phrase label", has_text="the disc").click()
    shows(page, "#lv-beside", "“the disc” with 21")
    page.click("[data-lv-budget='32']")
    answered(page, "32 of 64")
    settled(page)
    shows(page, "#lv-beside", "“the disc” with 21 of 64 tokens")
    ask(page, "something else")
    about(page, "something else")
    expect(page.locator("#lv-beside .lv-rival")).to_have_count(0)
    expect(page.locator("#lv-beside-figure a")).to_have_count(0)


def test_one_method_is_nothing_to_compare_and_a_fifth_cannot_be_chosen(page):  # noqa: F811
    tab(page, "Methods")
    names = ("litelvlm", "random", "grid", "context", "trim")
    choose(page, names[0])
    page.click("#lv-compare-methods")
    shows(page, "#lv-beside .lv-error", "choose 2 to 4 methods to compare, got 1")
    choose(page, *names[:4])
    page.locator("#lv-rivals input").click()
    settled(page)
    fifth = page.get_by_role("option", name=LABELS[names[4]], exact=True)
    if fifth.count():
        fifth.click()
        settled(page)
    expect(page.locator("#lv-rivals .token")).to_have_count(4)


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
    settled(page)
    expect(page.locator("#lv-budget input[type=number]")).to_have_value("16")
    assert points(page) == before
    assert line(page) == [16, pytest.approx(np.log(16 / 8) / np.log(64 / 8), abs=0.01)]
    page.locator("#lv-curve .lv-point[data-lv-budget='32']").first.focus()
    page.keyboard.press("Enter")
    answered(page, "32 of 64")
    page.locator("#lv-budget input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    answered(page, "33 of 64")
    settled(page)
    assert points(page) == before
    assert line(page)[0] == 33
    ask(page, "something else")
    about(page, "something else")
    expect(page.locator("#lv-curve .lv-point")).to_have_count(0)


def test_a_cancelled_curve_keeps_its_points(page):  # noqa: F811
    draw_much(page)
    page.wait_for_selector("#lv-curve .lv-point", state="attached")
    page.click("#lv-cancel")
    shows(page, "#lv-curve", "Cancelled after")
    settled(page)
    done, total = map(
        int,
        re.search(r"Cancelled after (\d+) of (\d+) points", page.inner_text("#lv-curve")).groups(),
    )
    assert 0 < done < total
    assert len(points(page)) == done
    expect(page.locator("#lv-curve .lv-progress")).to_have_count(0)


def test_both_tabs_fit_a_phone(phone):  # noqa: F811
    compare(phone, "litelvlm", "context")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    draw(phone, "9 of 9")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
