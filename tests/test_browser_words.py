"""What the page says about itself and its settings, in a real browser."""

from __future__ import annotations

import re

import pytest
from test_browser import browser, expect, page, server, shows, tab  # noqa: F401

from litelvlm.methods import METHODS
from litelvlm.ui.examples import examples

pytestmark = pytest.mark.browser


def listed(page, name, count):  # noqa: F811
    page.click(f"#{name} input")
    options = page.locator("[role=option]")
    expect(options).to_have_count(count)
    return options.all_inner_texts()


def test_methods_are_listed_in_groups(page):  # noqa: F811
    texts = [text.strip().lstrip("✓").strip() for text in listed(page, "lv-method", len(METHODS))]
    groups = [text.rpartition(" · ")[2] for text in texts]
    assert list(dict.fromkeys(groups)) == ["before", "inside", "control"]
    assert groups == sorted(groups, key=["before", "inside", "control"].index)
    titles = {text.rpartition(" · ")[0]: group for text, group in zip(texts, groups, strict=True)}
    for rule in METHODS.values():
        control = rule.source.startswith("control")
        assert titles[rule.title] == ("control" if control else rule.where)


def test_models_are_listed_with_what_they_are_good_for(page):  # noqa: F811
    (text,) = listed(page, "lv-pick", 1)
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
    told = expect(page.locator("#lv-sim"))
    told.to_contain_text(re.compile(rf"cut at {low}\b"), use_inner_text=True)
    told.not_to_contain_text("raw dot product", use_inner_text=True)
    page.click("[data-lv-view='raw']")
    shows(page, "#lv-sim", f"cut at {kept.threshold:.4g}")
    for view in ("raw", "sides"):  # the masks' view is a choice of its own
        expect(page.locator(f"[data-lv-view={view}]")).to_have_attribute("aria-pressed", "true")


def test_words_of_the_trade_are_explained(page):  # noqa: F811
    tab(page, "Tokens")
    explained = page.locator("#lv-tokens abbr").first
    expect(explained).to_have_attribute("title", re.compile("whatever the phrase"))
    page.click("#lv-advanced button")
    shows(page, "#lv-advanced", "closed up (compact)", "the sentence of the answer", "stand out")
