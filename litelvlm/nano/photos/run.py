"""Train the photograph model on a folder of photos, from the weights of a model folder on.

    litelvlm train --photos DIR --out RUN --export MODEL

The backbone stays as it is; its features are computed once, into RUN/cache. The text tower, the
language model and its tokenizer go on from the model folder they start from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from litelvlm.config import ModelConfig
from litelvlm.errors import InputError, unknown
from litelvlm.metrics import iou
from litelvlm.models.bundle import GroundingModel
from litelvlm.nano.photos import language, masks, names, tower
from litelvlm.nano.photos.cache import Data, Features, compute
from litelvlm.nano.photos.data import (
    FOREIGN,
    LOW,
    decode_mask,
    read_lines,
    store_photos,
    stored_photos,
)
from litelvlm.nano.photos.mix import write_composites
from litelvlm.nano.train.common import autocast, read_checkpoint
from litelvlm.nano.train.export import write_weights
from litelvlm.nano.train.frozen import Frozen
from litelvlm.nano.train.grounder import Grounder, seg_places
from litelvlm.nano.train.masks import PromptToken, decode
from litelvlm.nano.train.recipe import LanguagePlan, recipe
from litelvlm.nano.train.start import start_from_prompt
from litelvlm.nano.train.targets import low_mask
from litelvlm.nano.train.tokens import PromptTokens

STAGES = ("clip", "masks", "language")
PEOPLE = ("man", "woman", "boy", "girl")
CLEAR = 0.3  # logit by which one of PEOPLE leads the others before a person is called so


_LANGUAGE = LanguagePlan(
    2980,
    3e-4,
    (),
    masks_from=250,
    decoder_from=650,
    decoder=1.0,
    masked=6,
    warmup=40,
    quality=1.0,
    probe_every=200,
)


@dataclass(frozen=True)
class PhotoPlan:
    """Steps of the stages, photos a step, captioned ones beside them, and composites."""

    clip: int = 3000
    masks: int = 900
    language: LanguagePlan = _LANGUAGE
    batch: int = 8
    several: int = 4
    composites: int = 5400


TINY = PhotoPlan(2, 2, replace(_LANGUAGE, steps=2, masks_from=0, decoder_from=1), 2, 1, 2)


def read_data(root: Path, cache: Path, backbone: Any, composites: int) -> Data:
    """Read a folder; see `data.py` for its layout.

    Composites, masks and features are made where they are missing, and kept in `cache`.

    Raises:
        InputError: a file that is missing or no JSON, or no photo with a mask.
    """
    cache.mkdir(parents=True, exist_ok=True)
    rows = read_lines(root / "train.jsonl")
    found = {n: root / f"{n}.jsonl" for n in ("captions", "names", "val")}
    optional = {n: read_lines(path) for n, path in found.items() if path.exists()}
    items = optional.get("val", [])
    told = [*optional.get("captions", []), *optional.get("names", [])]
    if (cache / "order.json").exists():
        photos, stored = stored_photos(cache)
        features = Features(cache)
    else:
        if not any(row["masks"] for row in rows):
            raise InputError(f"{root / 'train.jsonl'}: no photo has a mask")
        rows += write_composites(root, rows, composites, cache / "mix")
        photos, stored = store_photos(rows, cache)
        deep = list(dict.fromkeys([r["image"] for r in items] + [p.image for p in photos]))
        others = [r["image"] for r in told if r["image"] not in set(deep)]
        features = compute(backbone, root, deep, others, cache)
    classes = sorted({t.name for p in photos for t in p.things if not t.name.startswith(FOREIGN)})
    labelled = names.labelled(told, names.bank(classes))
    shown = {name for found in labelled.values() for name in found}
    captions = {r["image"]: r["captions"] for r in told if "captions" in r}
    alike = names.overlaps(classes, shown)
    return Data(photos, stored, features, captions, labelled, alike, classes, items)


def train(
    root: Path,
    folder: Path,
    start: Path,
    stages: Sequence[str] = STAGES,
    plan: PhotoPlan = PhotoPlan(),
    resume: bool = False,
    probes: int = 90,
    limit: int | None = None,
) -> GroundingModel:
    """Run stages; each reads the checkpoints of those before it from `folder`.

    root: folder of photos; start: model folder to go on from; probes: items of val.jsonl a
    measurement; limit: stop each stage after so many steps.

    Raises:
        InputError: unknown stage, or a folder that cannot be read.
    """
    for stage in stages:
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
    config = ModelConfig.from_json(start / "config.json")
    model = open_model(config, start)
    clip, sam = model.dual_encoder, model.segmenter
    sam.set_attn_implementation("eager")  # plain products train faster on bfloat16 CPUs
    data = read_data(root, folder / "cache", clip.visual.conv1.backbone, plan.composites)
    some = data.items[:: max(1, len(data.items) // probes)] if probes else []
    side = tower.Side(clip.visual.conv1.out_channels)
    prompt = PromptToken(config.segmenter["prompt_encoder_config"]["hidden_size"])
    tokens = PromptTokens(start / "tokenizer.json")
    grounder = make_grounder(config, model, tokens, data.classes)
    knew = known_tokens(model, data) if "language" in stages else None

    if "clip" in stages:
        seen = tower.TowerBatches(data, clip.context_length, plan.batch, plan.several)
        probe = partial(probe_tower, features=data.features, items=some)
        tower.train_tower(clip, side, seen, folder, plan.clip, resume, probe, limit=limit)
    else:
        load_stage(folder, "clip", {"clip": clip, "side": side})
    if "masks" in stages:
        boxed = masks.MaskBatches(data)
        probe = partial(probe_masks, features=data.features, items=some)
        masks.train_masks(sam, prompt, boxed, folder, plan.masks, resume, probe, limit=limit)
    else:
        load_stage(folder, "masks", {"sam": sam, "prompt": prompt})
    for module in (clip, sam, prompt):
        module.eval().requires_grad_(False)
    frozen = Frozen(clip, sam, prompt)
    if knew is not None:
        names_of = called(clip, side, data)
        asked = language.PhotoBatches(data, tokens, names_of, turns=plan.language.masked)
        if not (resume and (folder / "language.pt").exists()):
            start_language(grounder, frozen, asked, *knew)
        probe = partial(probe_language, features=data.features, items=some)
        language.train_language(
            grounder, frozen, asked, plan.language, folder, resume, probe, limit
        )
    else:
        load_stage(folder, "language", {"grounder": grounder, "sam": sam, "prompt": prompt})
    if (folder / "language.pt").exists():
        model.language.load_state_dict(grounder.llama.state_dict())
        model.projector.load_state_dict(grounder.projector.state_dict())
        model.seg_head.load_state_dict(grounder.seg_head.state_dict())
    return model


def open_model(config: ModelConfig, folder: Path) -> GroundingModel:
    """A model folder of this project's, in float32."""
    model = GroundingModel(config)
    state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
    left = model.load_state_dict(state, strict=False)
    if left.unexpected_keys:
        raise InputError(f"{folder}: {left.unexpected_keys[0]} belongs to no part of the model")
    model.language.tie_weights()
    return model


def load_stage(folder: Path, stage: str, modules: dict[str, nn.Module]) -> None:
    """Load a stage's checkpoint, if there is one."""
    path = folder / f"{stage}.pt"
    if path.exists():
        trained = read_checkpoint(path)["modules"]
        for name, module in modules.items():
            module.load_state_dict(trained[name])


def make_grounder(
    config: ModelConfig, model: GroundingModel, tokens: PromptTokens, classes: list[str]
) -> Grounder:
    """The trainer of the language part, with a model's weights."""
    own = {k: v for k, v in config.language.items() if not k.endswith("_token_id")}
    plan = replace(
        recipe("small"), dual_encoder=config.dual_encoder, segmenter=config.segmenter, language=own
    )
    grounder = Grounder(plan, tokens, classes)
    grounder.llama.load_state_dict(model.language.state_dict())
    grounder.projector.load_state_dict(model.projector.state_dict())
    return grounder


@torch.no_grad()
def known_tokens(model: GroundingModel, data: Data, photos: int = 300) -> tuple[list[str], Tensor]:
    """Some images and the image tokens (M, N, W) that the model makes of them before training."""
    rng = np.random.default_rng(3)
    chosen = rng.permutation(len(data.photos))[:photos]
    images = [data.photos[i].image for i in chosen]
    clip = model.dual_encoder
    rows = [model.projector(hidden_of(clip, data.features, [image]))[0].half() for image in images]
    return images, torch.stack(rows)


def hidden_of(clip: Any, features: Features, images: list[str]) -> Tensor:
    """H (B, N, W) of images."""
    with autocast("cpu"):
        return tower.hidden(clip, *features(images, (16, 32)))


def start_language(
    grounder: Grounder,
    frozen: Frozen,
    turns: language.PhotoBatches,
    images: list[str],
    tokens: Tensor,
    batches: int = 120,
) -> None:
    """Bring a changed dual encoder and mask branch to a language model that knew others.

    The projector is fitted so that the new H gives the tokens that the language model knew; the
    [SEG] head becomes the mask branch's box prompt behind a least-squares read-out of the box
    from the [SEG] state.
    """
    features = turns.data.features
    known = torch.cat([hidden_of(frozen.clip, features, [image]) for image in images])
    language.fit_projector(grounder.projector, known.flatten(0, 1), tokens.flatten(0, 1))
    states, waves = [], []
    for number in range(min(batches, 2 * len(turns.data.photos))):
        batch = turns(10**6 + number)
        with torch.no_grad(), autocast("cpu"):
            final = grounder(tower.hidden(frozen.clip, *batch["maps"][1:]), batch["ids"])[1]
        found = final[seg_places(final, batch["ids"], batch["state"])].float()
        states.append(found[batch["real"]])
        waves.append(frozen.prompt.waves(batch["frame_box"])[batch["real"]])
    compass: Any = grounder.helpers.compass
    compass.copy_(language.read_out(torch.cat(states), torch.cat(waves)))
    start_from_prompt(grounder, frozen.prompt)


@torch.no_grad()
def called(clip: Any, side: tower.Side, data: Data, photos: int = 900) -> dict[int, str]:
    """Stored mask -> "man", "woman", ... of a person, where the dual encoder is sure.

    It has learned these words from captions alone; masks are of "person".
    """
    from open_clip import tokenize

    lines = tokenize([f"the {word}" for word in PEOPLE], context_length=clip.context_length)
    text = F.normalize(tower.text_features(clip, lines).float(), dim=-1)
    found = {}
    order = np.random.default_rng(0).permutation(len(data.photos))
    some = [data.photos[i] for i in order]
    some = [p for p in some if any(_person(t) for t in p.things)][:photos]
    for photo in some:
        hidden = hidden_of(clip, data.features, [photo.image])
        patches = clip.visual.ln_post(hidden)[0] @ clip.visual.proj
        logits = -side.scale[0].exp() * (patches @ text.T)  # (N, people)
        for thing in photo.things:
            if _person(thing):
                cover = tower.cover_of(data.masks, [thing.row])[0]
                mean = (logits * cover[:, None]).sum(0) / cover.sum().clamp(min=1e-6)
                first, second = mean.topk(2).values
                if first - second > CLEAR:
                    found[thing.row] = PEOPLE[int(mean.argmax())]
    return found


def _person(thing: Any) -> bool:
    return thing.name == "person" and thing.single and thing.area > 0.004


def _mean_iou(items: list[dict[str, Any]], answer: Callable[[dict[str, Any]], Tensor]) -> float:
    """Mean IoU of (LOW, LOW) logits over items, at the decoder's size."""
    found = [
        iou((answer(item) > 0).numpy(), low_mask(decode_mask(item["mask"]), LOW) > 127)
        for item in items
    ]
    return float(np.mean(found))


@torch.no_grad()
def probe_tower(
    clip: Any, side: tower.Side, features: Features, items: list[dict[str, Any]]
) -> dict[str, float]:
    """gIoU of the dual encoder's own logits, read as masks."""
    from open_clip import tokenize

    def answer(item: dict[str, Any]) -> Tensor:
        patches = (
            clip.visual.ln_post(hidden_of(clip, features, [item["image"]]))[0] @ clip.visual.proj
        )
        line = tokenize([item["phrase"]], context_length=clip.context_length)
        text = F.normalize(tower.text_features(clip, line).float(), dim=-1)[0]
        logits = -side.scale[0].exp() * (patches @ text) + side.scale[1]
        grid = logits.view(1, 1, tower.GRID, tower.GRID)
        return F.interpolate(grid, size=(LOW, LOW), mode="bilinear")[0, 0]

    return {"v_giou": _mean_iou(items, answer)} if items else {}


@torch.no_grad()
def probe_masks(
    sam: Any, prompt: PromptToken, features: Features, items: list[dict[str, Any]]
) -> dict[str, float]:
    """Mean IoU of the mask branch from exact boxes."""
    from litelvlm.nano.photos.data import square_box

    def answer(item: dict[str, Any]) -> Tensor:
        box = torch.tensor([[square_box(decode_mask(item["mask"]))]])
        with autocast("cpu"):
            embedding = sam.vision_encoder.fuse(*features([item["image"]])).float()
            return decode(sam, embedding, prompt(box)[:, :, None])[0][0, 0]

    return {"v_box": _mean_iou(items, answer)} if items else {}


@torch.no_grad()
def probe_language(
    grounder: Grounder, frozen: Frozen, features: Features, items: list[dict[str, Any]]
) -> dict[str, float]:
    """gIoU of the whole model, unpruned."""

    def answer(item: dict[str, Any]) -> Tensor:
        ids, state = grounder.tokens.turns([item["phrase"]], 40)
        with autocast("cpu"):
            patches, embedding = language.frozen_features(
                frozen.clip, frozen.sam, features([item["image"]])
            )
            sparse, _ = grounder.answer(patches, ids[None], state[None])
            return decode(frozen.sam, embedding, sparse[:, :, None])[0][0, 0]

    return {"v_giou": _mean_iou(items, answer)} if items else {}


def export(model: GroundingModel, start: Path, target: Path) -> Path:
    """Write a model folder: weights in float16, configuration and tokenizer of the start."""
    target.mkdir(parents=True, exist_ok=True)
    write_weights(model.state_dict(), target)
    for name in ("config.json", "tokenizer.json", "vocabulary.json"):
        if (start / name).resolve() != (target / name).resolve():
            shutil.copyfile(start / name, target / name)
    return target
