"""What the page says about itself and its settings, in a real browser."""

from __future__ import annotations

import re

import pytest
from test_browser import browser, file, find, page, server, tab  # noqa: F401

from litelvlm.methods import METHODS
from litelvlm.ui.examples import examples

pytestmark = pytest.mark.browser


def listed(page, name):  # noqa: F811
    page.click(f"#{name} input")
    return page.locator("[role=option]").all_inner_texts()


def test_methods_are_listed_in_groups(page):  # noqa: F811
    texts = [text.strip().lstrip("✓").strip() for text in listed(page, "lv-method")]
    groups = [text.rpartition(" · ")[2] for text in texts]
    assert list(dict.fromkeys(groups)) == ["before", "inside", "control"]
    assert groups == sorted(groups, key=["before", "inside", "control"].index)
    titles = {text.rpartition(" · ")[0]: group for text, group in zip(texts, groups, strict=True)}
    for rule in METHODS.values():
        control = rule.source.startswith("control")
        assert titles[rule.title] == ("control" if control else rule.where)


def test_models_are_listed_with_what_they_are_good_for(page):  # noqa: F811
    (text,) = listed(page, "lv-pick")
    assert "tiny-random: toy size, random weights" in text


def test_the_page_links_to_paper_and_code(page):  # noqa: F811
    addresses = [link.get_attribute("href") for link in page.locator("#lv-foot a").all()]
    assert "https://arxiv.org/abs/2605.13178" in addresses
    assert "https://github.com/sejong-rcv/LiteLVLM" in addresses
    for name, words in (("og:description", "image tokens"), ("og:title", "LiteLVLM")):
        told = page.locator(f"meta[property='{name}']").evaluate_all(
            "all => all.map(m => m.content)"
        )
        assert any(words in text for text in told)


def test_scores_are_shown_as_ranks_or_as_clip_gives_them(page, pipe):  # noqa: F811
    example = examples()[0]
    scene = pipe.encode(str(example.path))
    kept = pipe.select(scene, list(example.phrases), 21)[0]
    low = int((kept.similarity <= kept.threshold).sum())
    tab(page, "Similarity")
    assert re.search(rf"cut at {low}\b", page.inner_text("#lv-sim"))
    assert "raw dot product" not in page.inner_text("#lv-sim")
    page.click("[data-lv-view='raw']")
    assert f"cut at {kept.threshold:.4g}" in page.inner_text("#lv-sim")
    assert page.get_attribute("[data-lv-view='raw']", "aria-pressed") == "true"
    assert page.get_attribute("[data-lv-view='sides']", "aria-pressed") == "true", "masks apart"


def test_words_of_the_trade_are_explained(page):  # noqa: F811
    tab(page, "Tokens")
    assert "whatever the phrase" in page.get_attribute("#lv-tokens abbr", "title")
    page.click("#lv-advanced button")
    page.wait_for_selector("#lv-advanced input")
    told = page.inner_text("#lv-advanced")
    for words in ("closed up (compact)", "the sentence of the answer", "stand out"):
        assert words in told
