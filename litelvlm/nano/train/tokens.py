"""The language model's tokenizer (a small byte-level BPE) and the prompt as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litelvlm.config import PromptConfig
from litelvlm.models.prompt import PromptIds, build_prompt, plain

if TYPE_CHECKING:
    from litelvlm.nano.scenes import SceneRecipe

SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<im_start>",
    "<im_end>",
    "[SEG]",
    "<bbox>",
    "<point>",
    "<p>",
    "</p>",
)
KEYS = ("pad", "bos", "eos", "unk", "im_start", "im_end", "seg", "bbox", "point", "p", "p_end")

PROMPT = PromptConfig(system="You ground phrases in pictures.")


def train_tokenizer(corpus: Iterable[str], vocabulary: int, path: Path) -> None:
    """Train a byte-level BPE on `corpus` and write it to `path` (tokenizer.json).

    Every byte is in the vocabulary, so no text is ever unknown.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


@dataclass(frozen=True)
class PromptTokens:
    """A trained tokenizer and the prompt in its ids.

    Attributes:
        tokenizer: of the `tokenizers` library.
        ids: of the special tokens, by the names in `KEYS`.
        before: ids up to and with <im_start>.
        between: ids from <im_end> to the end of the image sentence, the same for every phrase.
    """

    path: Path
    tokenizer: Any = field(init=False, repr=False, compare=False)
    ids: dict[str, int] = field(init=False, repr=False, compare=False)
    before: list[int] = field(init=False, repr=False, compare=False)
    between: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.path))
        object.__setattr__(self, "tokenizer", tokenizer)
        ids = {key: tokenizer.token_to_id(token) for key, token in zip(KEYS, SPECIAL, strict=True)}
        object.__setattr__(self, "ids", ids)
        sample = self.build("it")
        tail = PROMPT.image_sentence.split("<image>")[1].lstrip()
        object.__setattr__(self, "before", list(sample.before))
        between = [ids["im_end"], *self.encode(tail)]
        if list(sample.after[: len(between)]) != between:
            raise ValueError("the tokenizer joins the image sentence with the question")
        object.__setattr__(self, "between", between)

    def __reduce__(self) -> tuple[Any, ...]:
        return (PromptTokens, (self.path,))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def build(self, phrase: str) -> PromptIds:
        """The whole conversation about one phrase, as the engine builds it."""
        return build_prompt([phrase], PROMPT, self.ids, self.encode)

    def turns(self, phrases: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Question and answer about each phrase, from the end of the image sentence on.

        A turn that does not fit loses words of its phrase.

        Returns:
            Ids, (E, length) int64, padded, and (E,) int64, the place that predicts [SEG].
        """
        out = torch.full((len(phrases), length), self.ids["pad"])
        state = torch.zeros(len(phrases), dtype=torch.int64)
        for i, phrase in enumerate(phrases):
            words = phrase.split()
            ids = list(self.build(phrase).after[len(self.between) :])
            while len(ids) > length and words:
                words = words[:-1]
                ids = list(self.build(" ".join(words)).after[len(self.between) :])
            out[i, : len(ids)] = torch.tensor(ids)
            state[i] = ids.index(self.ids["seg"]) - 1
        return out, state

    def word(self, name: str) -> int:
        """The first token of a class name as it stands inside a sentence."""
        return self.encode(f" {name}")[0]


def corpus(scenes: int, recipe: SceneRecipe, seed: int) -> Iterator[str]:
    """Sentences to train the tokenizer on: whole turns about the phrases of many scenes."""
    from litelvlm.nano.scenes import make_scene, names

    fixed = PROMPT.image_sentence.split("<image>")
    opening = f"{PROMPT.system} {PROMPT.user}: {fixed[0].strip()}"
    closing = f" {PROMPT.assistant}: {PROMPT.answer.split('[SEG]')[0].strip()}"
    for name in (*names(), "background"):
        yield from [f"the {name}"] * 20
    for i in range(scenes):
        yield opening
        for expression in make_scene(seed + i, recipe).expressions:
            question = PROMPT.question.replace("{phrase}", plain(expression.text))
            yield f"{fixed[1].lstrip()}{question}{closing}"
