"""Procedural referring scenes: pictures of named things with phrases that need the picture.

Each scene puts 1-7 sprites over a photo or a generated ground, often several of one class or of
one colour, so that colour, place, relation, order and size decide what a phrase means. The same
seed and recipe give the same bytes, whatever was drawn before; no global random state is read or
written. (That holds for one build of OpenCV; another may round a pixel differently.)

Measured on one thread of an AMD EPYC server (processor time, all degradations, up to 8 phrases):
360 scenes/s at 336 x 336, 250 at the default random shapes, 750 at 168 x 168 with 1-3 objects.
Repainting half of the things halves that: 520 -> 240 scenes/s in the half-size recipe of training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from litelvlm.errors import InputError, unknown
from litelvlm.nano.backgrounds import background
from litelvlm.nano.compose import choose, degrade, place
from litelvlm.nano.expressions import write_expressions
from litelvlm.nano.rules import Expression, SceneObject, View
from litelvlm.nano.scene_recipe import EASY, SPLITS, TEST, TRAIN, VAL, SceneRecipe
from litelvlm.nano.sprites import PLURAL_ONLY, kinds, plural
from litelvlm.nano.wording import COUNTS, known_words, nouns

__all__ = [
    "EASY",
    "TEST",
    "TRAIN",
    "VAL",
    "Expression",
    "DrawnScene",
    "SceneObject",
    "SceneRecipe",
    "benchmark",
    "benchmark_hash",
    "known_words",
    "make_scene",
    "names",
    "nouns",
]

# Random canvases: short side 336, long side by these ratios.
_RATIOS = (1.0, 1.0, 1.0, 1.0, 4 / 3, 4 / 3, 3 / 2, 16 / 9)


@dataclass(frozen=True)
class DrawnScene:
    """A picture, what is in it, and phrases about it.

    Attributes:
        seed: the seed it was made from.
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8; 0 background, i + 1 the visible pixels of objects[i].
        objects: the things, back to front.
        expressions: the phrases.
        caption: names all things, for example "a dog, two red apples and a car".
    """

    seed: int
    image: np.ndarray
    labels: np.ndarray
    objects: tuple[SceneObject, ...]
    expressions: tuple[Expression, ...]
    caption: str

    def mask(self, targets: Sequence[int]) -> np.ndarray:
        """Visible pixels of the given objects, (H, W) bool; all False for no targets."""
        if not len(targets):
            return np.zeros(self.labels.shape, bool)
        return np.isin(self.labels, np.asarray(targets) + 1)


def names() -> tuple[str, ...]:
    """Canonical class names, sorted."""
    return tuple(kinds())


def make_scene(seed: int, recipe: SceneRecipe = TRAIN) -> DrawnScene:
    """Draw one scene. The same seed and recipe give the same bytes.

    Args:
        seed: any non-negative integer.
        recipe: size, number of objects, difficulty, split.

    Returns:
        A scene with at least one object and, save for rare crowded cases, at least one phrase.
    """
    if seed < 0:
        raise InputError(f"seed {seed}; expected a non-negative integer")
    stream = np.random.SeedSequence([seed, SPLITS.index(recipe.split)])
    rng = np.random.Generator(np.random.PCG64(stream))
    for _ in range(4):
        scene = _draw(rng, seed, recipe)
        if scene.expressions or recipe.expressions == 0:
            break
    return scene


def _draw(rng: np.random.Generator, seed: int, recipe: SceneRecipe) -> DrawnScene:
    height, width = recipe.canvas or _random_canvas(rng)
    image, avoid = background(rng, height, width, recipe.split, recipe.clutter)
    fewest, most = recipe.objects
    if recipe.level == 0:
        most = max(fewest, min(most, 2))
    count = fewest + int(rng.random() * (most - fewest + 1))
    wanted = choose(rng, recipe, count, avoid)
    placed = place(rng, image, wanted, recipe)
    labels = placed.labels
    objects = placed.objects()
    image = degrade(rng, image, recipe.degrade)
    view = View(objects, placed.pixels(), tuple(placed.full), height, width, avoid, placed.covers)
    full = recipe.level == 3
    phrases = write_expressions(
        rng,
        view,
        recipe.expressions,
        recipe.level,
        recipe.none if full else 0.0,
        recipe.several if full else 0.0,
        recipe.typos,
    )
    return DrawnScene(seed, image, labels, objects, phrases, _caption(rng, objects))


def _random_canvas(rng: np.random.Generator) -> tuple[int, int]:
    ratio = _RATIOS[int(rng.random() * len(_RATIOS))]
    long = round(336 * ratio)
    return (336, long) if rng.random() < 0.7 else (long, 336)


# --- Words about the whole ------------------------------------------------------------------------


def _caption(rng: np.random.Generator, objects: Sequence[SceneObject]) -> str:
    """Name everything: "a dog, two red apples and a car"."""
    groups: dict[tuple[str, str | None], int] = {}
    plain = {name for name in {t.name: 0 for t in objects} if rng.random() < 0.2}
    for thing in objects:
        colour = None if thing.name in plain or thing.colour == thing.name else thing.colour
        groups[thing.name, colour] = groups.get((thing.name, colour), 0) + 1
    parts = []
    for (name, colour), count in groups.items():
        words = [colour] if colour else []
        if name in PLURAL_ONLY:
            parts.append(" ".join(["some", *words, name] if count > 1 else [*words, name]))
        elif count > 1:
            parts.append(" ".join([COUNTS[min(count, len(COUNTS) - 1)], *words, plural(name)]))
        else:
            text = " ".join([*words, name])
            parts.append(("an " if text[0] in "aeiou" else "a ") + text)
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + " and " + parts[-1]


# --- Held-out benchmark ---------------------------------------------------------------------------

_BENCH = {"val": (VAL, 500), "test": (TEST, 500)}
# Share of each kind that the benchmark aims at.
MIXTURE = {
    "name": 0.10,
    "colour": 0.15,
    "size": 0.09,
    "position": 0.23,
    "relation": 0.20,
    "ordinal": 0.10,
    "superlative": 0.13,
}


def benchmark(split: str) -> Iterator[tuple[DrawnScene, Expression]]:
    """The held-out benchmark: 500 scenes with one phrase each, always the same.

    Scenes have 1, 2 .. 7 objects in turn, the recipe's random shapes, and all degradations. Seeds
    and photos are the split's own; variants that training never shows are four times as likely as
    others. Each phrase has exactly one target. Of the kinds that a scene offers, the one that is
    furthest behind its share is taken; single objects allow names, places and colours only.

    Args:
        split: "val" or "test". Nothing may be tuned on "test".
    """
    if split not in _BENCH:
        raise unknown("benchmark split", split, _BENCH)
    recipe, total = _BENCH[split]
    taken = dict.fromkeys(MIXTURE, 0)
    made, seed = 0, 0
    while made < total:
        count = made % 7 + 1
        scene = make_scene(seed, replace(recipe, objects=(count, count)))
        seed += 1
        if not scene.expressions or len(scene.objects) != count:
            continue
        chosen = min(scene.expressions, key=lambda e: taken[e.kind] / MIXTURE[e.kind])
        taken[chosen.kind] += 1
        made += 1
        yield scene, chosen


def benchmark_hash(split: str) -> str:
    """SHA-256 over texts, targets, label maps and pictures of the benchmark, as hex.

    It pins one build of OpenCV and one processor family: another may round a pixel differently.
    """
    digest = hashlib.sha256()
    for scene, expression in benchmark(split):
        digest.update(repr((expression.text, expression.targets, scene.labels.shape)).encode())
        digest.update(scene.labels.tobytes())
        digest.update(scene.image.tobytes())
    return digest.hexdigest()
