"""What the page says about itself: its head and foot, the model that answers and its card."""

from __future__ import annotations

import os

from litelvlm.families.table import PRESETS
from litelvlm.resources import asset
from litelvlm.ui import panels
from litelvlm.ui.desk import Desk
from litelvlm.ui.pictures import esc

SLOW_BYTES = 2e9  # weights beyond which a CPU is no pleasure
TITLE = "LiteLVLM: see which image tokens a vision-language model needs"
SUMMARY = (
    "Type what to look for in a picture and set how many image tokens the language model may see: "
    "the answer beside the unpruned one, which tokens were kept and why, and what it costs."
)
HEAD = (
    '<div class="lv-head"><h1>LiteLVLM</h1><p>A vision-language model looks at a picture through '
    "hundreds of image tokens. LiteLVLM drops most before the language model, without "
    "any training. See which ones, why, and what it costs and saves, beside the same model with "
    "all of its tokens.</p></div>"
)
_LINKS = {
    "Paper": "https://arxiv.org/abs/2605.13178",
    "Code of the paper": "https://github.com/sejong-rcv/LiteLVLM",
}


def foot(minutes: float) -> str:
    """Where to read on, and what happens to uploads.

    Args:
        minutes: that they are kept.
    """
    links = dict(_LINKS)
    if space := os.environ.get("SPACE_ID"):
        links["Code of this demo"] = f"https://huggingface.co/spaces/{space}/tree/main"
    told = " · ".join(
        f'<a href="{esc(url)}" target="_blank" rel="noopener">{name}</a>'
        for name, url in links.items()
    )
    return (
        f'<div class="lv-foot"><p>{told} · The model’s card with its results: on the left.</p>'
        "<p>Uploads are used for your answer only: they stay on this server for at most "
        f"{minutes:.0f} minutes, are never logged and never passed on. Method: Lee &amp; Choi, "
        "“LiteLVLM”, ICML 2026.</p></div>"
    )


def head_tags() -> str:
    """Title and description for the previews of links."""
    told = {"title": TITLE, "description": SUMMARY}
    return (
        "".join(
            f'<meta property="og:{name}" content="{esc(text)}"/>'
            f'<meta name="twitter:{name}" content="{esc(text)}"/>'
            for name, text in told.items()
        )
        + f'<meta name="description" content="{esc(SUMMARY)}"/>'
    )


def choices(names: tuple[str, ...]) -> list[tuple[str, str]]:
    """(what the list of models shows, name) of each: with its size and what it is good for."""
    return [(_label(name), name) for name in names]


def _label(name: str) -> str:
    preset = PRESETS.get(name)
    if preset is None:
        return name
    weights = asset(preset.folder) / "model.safetensors" if preset.folder else None
    there = weights is not None and weights.is_file()
    size = f" ({weights.stat().st_size / 1e6:.0f} MB)" if weights is not None and there else ""
    return f"{name}{size}: {preset.note}"


def card(desk: Desk, name: str | None) -> str:
    """The card of a model in Markdown: what it was made from, its results, the words it knows."""
    preset = PRESETS.get(name or desk.models.names[0])
    parts = []
    if (
        preset is not None
        and preset.folder
        and (file := asset(preset.folder) / "README.md").is_file()
    ):
        text = file.read_text(encoding="utf-8")
        parts.append("\n".join(line for line in text.splitlines() if not line.startswith("![")))
    elif preset is not None and preset.hub:
        parts.append(f"[{preset.hub}](https://huggingface.co/{preset.hub}): {preset.note}.")
    try:
        words = desk.models.get(name).family.vocabulary
    except Exception:  # `model_line` tells it
        words = None
    if words:
        parts.append(f"## The {len(words)} words it knows\n\n{', '.join(sorted(words))}")
    return "\n\n".join(parts) or "This model has no card."


def model_line(desk: Desk, name: str) -> str:
    """Which model answers, and what it can and cannot understand."""
    try:
        pipe = desk.models.get(name)
    except Exception as error:
        text = str(error) if isinstance(error, ValueError) else "It failed to load."
        return panels.notice("error", f"Model {esc(name)} is not available", esc(text))
    preset = PRESETS.get(pipe.name)
    note = f": {esc(preset.note)}" if preset else ""
    known = "It understands phrases in plain English."
    if not pipe.family.capabilities.masks:
        known = "It answers questions in its own words; type one a line."
    elif (words := pipe.family.vocabulary) is not None:
        known = (
            f"It knows {len(words)} English words and nothing else; words it does not "
            "know are named under your answer."
        )
    if preset and preset.random_only:
        known = ""
    where = "CPU" if pipe.device.type == "cpu" else str(pipe.device)
    name = f"<b>{esc(pipe.name)}</b>"
    line = f'<p class="lv-model">Answers come from {name}{note}. {known} On {where}.</p>'
    if pipe.device.type == "cpu" and pipe.weight_bytes > SLOW_BYTES:
        text = "This model is large and there is no GPU: an answer takes minutes."
        line += panels.notice("warn", "Running on the CPU", text)
    return line
