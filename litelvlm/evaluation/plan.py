"""What an evaluation runs: methods with their options, budgets, protocol, seeds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from litelvlm.errors import InputError, unknown
from litelvlm.methods import METHODS, get_method
from litelvlm.question import SELECTION_OPTIONS, check_budget, check_choice

PROTOCOLS = ("all", "released")
UNPRUNED = "none"
DRAWN = 3  # expressions a picture that the released protocol draws


@dataclass(frozen=True)
class Variant:
    """A method with some of its options set, for example `litelvlm:order=released`.

    Attributes:
        name: name of the method; "none" is the unpruned model.
        options: (option, value) pairs; the others take the model's defaults.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def parse(text: str) -> Variant:
        """Read `name` or `name:option=value,option=value`. Raises `InputError`."""
        name, _, rest = text.strip().partition(":")
        get_method(name)
        options: dict[str, Any] = {}
        for part in filter(None, rest.split(",")):
            key, equals, value = part.partition("=")
            if key not in SELECTION_OPTIONS or not equals:
                raise unknown(f"option of {name}", key, SELECTION_OPTIONS)
            options[key] = check_choice(key, value)
        return Variant(name, tuple(sorted(options.items())))

    @staticmethod
    def parse_label(label: str) -> Variant:
        """As `parse`; "none", the unpruned model, is understood too."""
        return Variant(UNPRUNED) if label == UNPRUNED else Variant.parse(label)

    @property
    def label(self) -> str:
        """The text that `parse` reads back."""
        options = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.name}:{options}" if options else self.name

    @property
    def title(self) -> str:
        """As printed in tables."""
        if self.name == UNPRUNED:
            return "Unpruned"
        options = ", ".join(f"{key} {value}" for key, value in self.options)
        title = METHODS[self.name].title
        return f"{title} ({options})" if options else title

    @property
    def seeded(self) -> bool:
        """Whether a seed changes what it keeps."""
        return self.name in METHODS and METHODS[self.name].seeded


@dataclass(frozen=True)
class Plan:
    """One evaluation.

    Attributes:
        variants: what is compared; the unpruned model is always run beside them.
        budgets: image tokens kept; the number of all tokens, if named, is the unpruned row.
        protocol: "all": every expression on its own. "released": at most three expressions drawn
            from each picture, in one prompt that shares one selection, random wording.
        mode: "forced" (the answer stands in the prompt) or "generate".
        seeds: what is random (drawing methods, the released protocol) runs once per seed; the rest
            once.
        view: what CLIP sees of a picture, of `geometry.VIEWS`; None is the model's own.
        batch: most expressions of a picture in one call.
        profile: "time", or "full" to measure memory and FLOPs too, at twice the time.
        limit: only the first so many pictures of each share; None takes all.
    """

    variants: tuple[Variant, ...]
    budgets: tuple[int, ...]
    protocol: str = "all"
    mode: str = "forced"
    seeds: tuple[int, ...] = (0,)
    view: str | None = None
    batch: int = 16
    profile: str = "time"
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise unknown("protocol", self.protocol, PROTOCOLS)
        for name in ("mode", "profile"):
            check_choice(name, getattr(self, name))
        if self.view is not None:
            check_choice("view", self.view)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds must be distinct and at least one, got {list(self.seeds)}")
        if self.batch < 1:
            raise InputError(f"batch must be at least 1, got {self.batch}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit must be at least 1, got {self.limit}")
        if self.mode == "generate" and self.protocol == "released":
            raise InputError("the released protocol puts the answers into the prompt: mode forced")

    def check(self, tokens_total: int) -> None:
        """Raise `InputError` where a budget does not fit a model of N tokens."""
        for budget in self.budgets:
            check_budget(budget, tokens_total)
            if self.protocol == "released" and budget < DRAWN:
                raise InputError(f"budget {budget} is below the {DRAWN} expressions of one prompt")

    def units(self, tokens_total: int) -> list[tuple[Variant, int, int]]:
        """(variant, budget, seed) to run for every picture, seed by seed, unpruned first."""
        wanted = []
        for place, seed in enumerate(self.seeds):
            again = self.protocol == "released" or place == 0
            if again:
                wanted.append((Variant(UNPRUNED), tokens_total, seed))
            wanted += [
                (variant, budget, seed)
                for variant in self.variants
                for budget in sorted(set(self.budgets), reverse=True)
                if budget < tokens_total and (again or variant.seeded)
            ]
        return wanted

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for the records of two runs to belong together."""
        keys = ("protocol", "mode", "view", "batch", "profile")
        return {key: value for key, value in asdict(self).items() if key in keys}


def default_budgets(tokens_total: int) -> tuple[int, ...]:
    """All tokens, and 1/2, 1/3, 2/9, 1/9 and 1/18 of them (576, 288, 192, 128, 64, 32 of 576)."""
    shares = (1, 1 / 2, 1 / 3, 2 / 9, 1 / 9, 1 / 18)
    return tuple(dict.fromkeys(max(1, round(tokens_total * share)) for share in shares))


def picture_seed(seed: int, picture: str) -> int:
    """A seed of a picture's own, the same in every process and run: 0..2**32 - 1."""
    return zlib.crc32(f"{seed}/{picture}".encode())


def variants_of(names: Sequence[str]) -> Iterator[Variant]:
    """Parse names; "all" stands for every method. Repetitions are dropped."""
    seen = set()
    for name in names:
        for text in METHODS if name == "all" else (name,):
            variant = Variant.parse(text)
            if variant not in seen:
                seen.add(variant)
                yield variant
