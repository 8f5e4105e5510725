"""Does similarity reversal hold for this CLIP? Measured for any model of open_clip, layer by layer.

LiteLVLM keeps the patches *least* like the text because inside the referent CLIP's similarity is
reversed. That is a property of a trained model, not a law: it may hold in one layer and not in the
next, for phrases and not for questions, and not at all for another model.

Every patch of every layer is taken through the model's own head into the space it shares with text,
then compared with the text by a plain dot product. Heads that pool over tokens (the class token,
a mean, SigLIP's attention) see the patch alone, in every place of the sequence; with an attention
head that leaves its value and output projections.

    tower = load_tower("ViT-B-16", "laion2b_s34b_b88k")
    for row in measure(tower, SceneSource("val")).rows: print(row.layer, row.form, row.auc)
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from tqdm import tqdm

from litelvlm.config import WORDINGS
from litelvlm.data.samples import Sample, Source, by_picture
from litelvlm.errors import InputError, ModelError, one_line, unknown
from litelvlm.geometry import PatchFrame
from litelvlm.metrics import reversal_auc, token_recall
from litelvlm.models.dual_encoder import Towers
from litelvlm.tables import markdown_table

if TYPE_CHECKING:
    from litelvlm.pipeline import Pipeline

SHARES = tuple(number / 20 for number in range(21))  # of the patches kept, for recall curves

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tower:
    """A CLIP under a name, layer by layer."""

    name: str
    encoder: Towers

    @torch.inference_mode()
    def text(self, phrases: Sequence[str], form: str) -> Tensor:
        """(T, E) float32, text embeddings, not normalised."""
        wordings = WORDINGS[form]
        texts = [wording.format(phrase) for phrase in phrases for wording in wordings]
        embeds = self.encoder.encode_text(texts).float()
        return embeds.view(len(phrases), len(wordings), -1).mean(1)

    @torch.inference_mode()
    def patches(self, image: np.ndarray, view: str = "crop") -> dict[str, tuple[Tensor, Any]]:
        """Patches of every layer that fits the head, in the shared space.

        Args:
            image: (H, W, 3) uint8.
            view: "crop" or "letterbox".

        Returns:
            Name of the layer ("1" is the output of the first block) -> (N, E) float32, (rows,
            columns).
        """
        clip = self.encoder.clip
        visual, device = clip.visual, next(clip.parameters()).device
        pixels = self.encoder.pixels(image, view).to(device)
        out = visual.forward_intermediates(pixels, intermediates_only=True, output_fmt="NCHW")
        found = {}
        for number, maps in enumerate(out["image_intermediates"], start=1):
            tokens = maps[0].flatten(1).T  # (N, D)
            try:
                projected = project_alone(visual, tokens)
            except RuntimeError:
                continue  # an early stage of a pyramid: its width does not fit the head
            found[str(number)] = (projected.float(), tuple(maps.shape[-2:]))
        if not found:
            raise ModelError(f"{self.name}: no layer fits the head of its image tower")
        return found


@dataclass(frozen=True)
class LayerRow:
    """One layer under one text form.

    Attributes:
        layer: number of the block, from 1; its output is measured.
        used: whether LiteLVLM reads this layer (the last but one).
        form: key of `WORDINGS`.
        auc: chance that a patch inside the target is *more* like the text than one outside, mean
            over expressions; below 0.5 the similarity is reversed.
        auc_error: its standard error.
        reversed_share: share of expressions with an AUC below 0.5.
        lowest: share of the target covered by the lowest-similarity patches, for each of `SHARES`.
        highest: the same for the highest-similarity patches.
        expressions: how many were measured.
    """

    layer: int
    used: bool
    form: str
    auc: float
    auc_error: float
    reversed_share: float
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    expressions: int


@dataclass(frozen=True)
class Reversal:
    """The measurement of one model on one data set; `skipped` expressions cover no patch."""

    model: str
    data: str
    rows: tuple[LayerRow, ...]
    skipped: int

    def used(self, form: str = "phrase") -> LayerRow:
        """The row of the layer that LiteLVLM reads."""
        return next(row for row in self.rows if row.used and row.form == form)


def load_tower(
    name: str, pretrained: str | None = None, *, random_weights: bool = False, seed: int = 0
) -> Tower:
    """A model that open_clip knows by name.

    Args:
        name: for example "ViT-B-16" or "ViT-B-16-SigLIP".
        pretrained: tag that open_clip knows (downloaded on first use) or path of a weight file.
        random_weights: draw the weights instead: the run works, the numbers mean nothing.
        seed: of the drawn weights.

    Raises:
        ModelError: unknown model or tag, weights that cannot be had, or a tag trained with another
            activation than the model's (open_clip only warns).
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise ModelError(f"unknown open_clip model {name!r}; see open_clip.list_models()")
    if (pretrained is None) == (not random_weights):
        raise InputError("give weights (a tag or a file), or ask for random ones; not both")
    if pretrained is not None and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags:
            raise unknown(f"weights of {name}", pretrained, tags)
        wants = open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False)
        if bool(wants) != bool(config.get("quick_gelu", False)):
            other = f"{name}-quickgelu" if wants else name.removesuffix("-quickgelu")
            raise ModelError(f"weights {pretrained!r} were trained as {other}, not {name}")
    elif pretrained is not None and f"{name}-quickgelu" in open_clip.list_models():
        # A file does not tell the activation it was trained with.
        log.warning("%s: for weights of OpenAI, DFN or MetaCLIP name it %s-quickgelu", name, name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            clip = open_clip.create_model(name, pretrained=pretrained, pretrained_hf=False)
        tokenize = open_clip.get_tokenizer(name)
    except Exception as fault:  # hub clients, torch and timm raise what they like
        raise ModelError(f"{name}: cannot be loaded ({one_line(fault, 120)})") from None
    return tower_of(clip, tokenize, name if pretrained is None else f"{name} ({pretrained})")


def tower_of(clip: nn.Module, tokenize: Callable[[list[str]], Tensor], name: str) -> Tower:
    """A tower around an open_clip module that is already there."""
    visual: Any = clip.visual
    if not hasattr(visual, "forward_intermediates"):
        raise ModelError(f"{name}: its image tower hands out no intermediate layers")
    names = ("image_mean", "image_std")
    own = {each: told for each in names if (told := getattr(visual, each, None))}
    return Tower(name, Towers(clip.eval(), tokenize=tokenize, **own))


def tower_of_pipeline(pipe: Pipeline) -> Tower:
    """The dual encoder of a loaded pipeline."""
    return Tower(pipe.name, pipe.family.encoder)


def measure(
    tower: Tower,
    samples: Source | Iterable[Sample],
    *,
    forms: Sequence[str] = tuple(WORDINGS),
    view: str = "crop",
    limit: int | None = None,
    progress: bool = False,
) -> Reversal:
    """Measure a tower on expressions with masks.

    Args:
        tower: from `load_tower`, `tower_of` or `tower_of_pipeline`.
        samples: a source or samples; expressions whose target covers no patch are skipped.
        forms: keys of `WORDINGS`.
        view: what the tower sees of a picture that is not square.
        limit: only the first so many pictures.
        progress: show a bar on stderr.

    Returns:
        One row for each layer and form.

    Raises:
        InputError: unknown form, unreadable picture, or nothing to measure.
    """
    for form in forms:
        if form not in WORDINGS:
            raise unknown("text form", form, WORDINGS)
    name = getattr(samples, "name", "samples")
    given = samples.samples() if hasattr(samples, "samples") else iter(samples)
    groups = list(by_picture(given))[:limit]
    seen: dict[tuple[str, str], list[tuple[float, np.ndarray, np.ndarray]]] = defaultdict(list)
    skipped = 0
    layers = 0
    for group in tqdm(groups, name, unit="picture", disable=not progress):
        image = group[0].read_image()
        hw = (image.shape[0], image.shape[1])
        masks = [sample.read_mask(hw) for sample in group]
        embeds = {form: tower.text([sample.text for sample in group], form) for form in forms}
        patches = tower.patches(image, view)
        layers = max(int(layer) for layer in patches)
        measured = np.zeros(len(group), bool)
        for layer, (projected, grid) in patches.items():
            frame = PatchFrame(grid, hw, view)
            shares = [frame.coverage(mask) for mask in masks]
            for form in forms:
                scores = (embeds[form] @ projected.T).cpu().numpy()  # (T, N)
                for place, (row, share) in enumerate(zip(scores, shares, strict=True)):
                    auc = reversal_auc(row, share)
                    if auc is None:
                        continue
                    measured[place] = True
                    curves = _recalls(row, share), _recalls(-row, share)
                    seen[layer, form].append((auc, *curves))
        skipped += int((~measured).sum())
    rows = tuple(
        _row(int(layer), layers, form, seen[layer, form])
        for layer, form in sorted(seen, key=lambda key: (int(key[0]), list(forms).index(key[1])))
    )
    if not rows:
        raise InputError(f"{name}: no expression whose target covers half a patch")
    return Reversal(tower.name, name, rows, skipped)


def write_report(found: Reversal, folder: Path, command: str = "") -> None:
    """Write reversal.json, reversal.md and reversal.png into `folder`."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    document = {**asdict(found), "shares": SHARES}
    (folder / "reversal.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "reversal.md").write_text(markdown(found, command), encoding="utf-8")
    _draw(found, folder)


def markdown(found: Reversal, command: str = "") -> str:
    """The measurement as Markdown."""
    third = min(range(len(SHARES)), key=lambda place: abs(SHARES[place] - 1 / 3))
    lines = [f"# Similarity reversal of {found.model} on {found.data}", ""]
    if command:
        lines += ["```", command, "```", ""]
    lines += [
        f"{max(row.expressions for row in found.rows)} expressions, {found.skipped} skipped: their "
        "target covers no patch by half. AUC: chance that a patch inside the target is more like "
        "the text than one outside; below 0.5 the similarity is reversed. Recall: share of the "
        f"target under the lowest or highest {SHARES[third]:.0%} of the patches (chance: the "
        "same). The layer that LiteLVLM reads is in bold.",
        "",
    ]
    rows = [
        (
            f"**{row.layer}**" if row.used else row.layer,
            row.form,
            f"{row.auc:.3f}",
            f"{row.auc_error:.3f}",
            f"{row.reversed_share:.0%}",
            f"{row.lowest[third]:.2f}",
            f"{row.highest[third]:.2f}",
        )
        for row in found.rows
    ]
    heads = ("layer", "text", "AUC", "±", "reversed in", "recall, lowest", "recall, highest")
    lines += markdown_table(heads, rows, (1,))
    lines += ["", "![AUC by layer and recall curves](reversal.png)", ""]
    return "\n".join(lines)


def project_alone(visual: Any, tokens: Tensor) -> Tensor:
    """(N, D) -> (N, E): each patch through the head of the tower as if it were the whole picture.

    Raises:
        RuntimeError: the width does not fit.
    """
    if hasattr(visual, "attnpool"):  # CLIP's ResNets: value and output projection of the pool
        return visual.attnpool.c_proj(visual.attnpool.v_proj(tokens))
    if hasattr(visual, "trunk"):  # towers of timm
        trunk = visual.trunk
        if trunk.num_features != tokens.shape[-1]:
            raise RuntimeError(f"width {tokens.shape[-1]} does not fit the head")
        if hasattr(trunk, "patch_embed") and hasattr(trunk, "num_prefix_tokens"):
            pooled = trunk.forward_head(trunk.norm(_repeated(tokens, trunk.num_prefix_tokens)))
        else:
            pooled = trunk.forward_head(tokens[:, :, None, None])
        return visual.head(pooled)
    # open_clip's ViT. Its pooling has no public name; it is the same for every pool type.
    pooled, _ = visual._pool(_repeated(tokens, 1))
    return pooled if visual.proj is None else pooled @ visual.proj


def _repeated(tokens: Tensor, prefix: int) -> Tensor:
    """(N, 1 + prefix, D): the same token in every place, whichever the pooling reads."""
    return tokens[:, None].expand(-1, 1 + prefix, -1)


def _recalls(scores: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Share of the target covered by the lowest patches, for each of `SHARES`."""
    order = np.argsort(scores, kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    return np.array([token_recall(rank < round(part * len(order)), share) for part in SHARES])


def _row(layer: int, layers: int, form: str, seen: list[Any]) -> LayerRow:
    aucs = np.array([auc for auc, _, _ in seen])
    return LayerRow(
        layer=layer,
        used=layer == layers - 1,
        form=form,
        auc=float(aucs.mean()),
        auc_error=float(aucs.std(ddof=1) / len(aucs) ** 0.5) if len(aucs) > 1 else 0.0,
        reversed_share=float((aucs < 0.5).mean()),
        lowest=tuple(np.mean([low for _, low, _ in seen], axis=0).tolist()),
        highest=tuple(np.mean([high for _, _, high in seen], axis=0).tolist()),
        expressions=len(seen),
    )


def _draw(found: Reversal, folder: Path) -> None:
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = picture.subplots(1, 2)
    forms = list(dict.fromkeys(row.form for row in found.rows))
    for form, ink, mark in zip(forms, ("#0072b2", "#d55e00", "#009e73"), "os^", strict=False):
        its = [row for row in found.rows if row.form == form]
        layers = [row.layer for row in its]
        left.plot(layers, [row.auc for row in its], color=ink, marker=mark, ms=4, label=form)
        for row in its:
            if row.used:
                left.axvline(row.layer, color="#bbbbbb", lw=6, alpha=0.3, zorder=0)
                right.plot(SHARES, row.lowest, color=ink, label=f"lowest, {form}")
                right.plot(SHARES, row.highest, "--", color=ink, label=f"highest, {form}")
    left.axhline(0.5, color="#444444", lw=0.8)
    left.set(xlabel="layer", ylabel="AUC", title="above 0.5: like the text; below: reversed")
    left.set_ylim(0, 1)
    right.plot((0, 1), (0, 1), color="#444444", lw=0.8, label="chance")
    right.set(xlabel="share of patches kept", ylabel="share of the target kept")
    right.set_title("at the layer LiteLVLM reads")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    picture.savefig(folder / "reversal.png", dpi=150)
