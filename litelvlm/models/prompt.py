"""GLaMM's conversation as token ids, built piece by piece so that special tokens are never parsed.

Text is split at the special tokens, stripped around them and tokenised piece by piece; special
tokens are inserted by id. So no phrase can smuggle a special token in, and no tokenizer version
can turn `[SEG]` into the ids of its letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from litelvlm.config import PromptConfig

_MARKS = re.compile(r"(<image>|\[SEG\]|</s>)")
# Curly quotes and apostrophes; soft hyphen, zero-width space and joiners, byte-order mark.
_USUAL = str.maketrans(
    "\u2018\u2019\u02bc\u201c\u201d", "'''\"\"", "\xad\u200b\u200c\u200d\u2060\ufeff"
)


@dataclass(frozen=True)
class PromptIds:
    """One conversation, cut where the image tokens go.

    Attributes:
        before: ids up to and including <im_start>.
        after: ids from <im_end> on.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    def length(self, image_tokens: int) -> int:
        """Sequence length with that many image tokens."""
        return len(self.before) + image_tokens + len(self.after)

    def seg_states(self, seg_id: int, image_tokens: int) -> list[int]:
        """Positions of the states that *predict* each [SEG]: one before the token itself."""
        start = len(self.before) + image_tokens
        return [start + i - 1 for i, token in enumerate(self.after) if token == seg_id]


def build_prompt(
    phrases: Sequence[str],
    prompt: PromptConfig,
    tokens: dict[str, int],
    encode: Callable[[str], list[int]],
    *,
    answered: bool = True,
) -> PromptIds:
    """The conversation that asks for one mask a phrase, one turn each.

    Args:
        phrases: at least one; used stripped and lower-cased, as GLaMM does.
        prompt: the wording.
        tokens: ids of "bos", "eos", "im_start", "im_end", "seg".
        encode: plain text -> ids, without special tokens.
        answered: True puts the answer template into every turn (forced mode); False leaves the
            last turn open after `ASSISTANT:` (generation).

    Returns:
        The ids before and after the image tokens.
    """
    gap, end = prompt.separators
    text = prompt.system + gap
    for turn in range(len(phrases)):
        image = prompt.image_sentence if turn == 0 else ""
        # A placeholder: the phrase goes in after splitting, as plain text, whatever it contains.
        question = prompt.question.replace("{phrase}", f"\0{turn}\0")
        text += f"{prompt.user}: {image}{question}{gap}{prompt.assistant}:"
        if answered or turn < len(phrases) - 1:
            text += f" {prompt.answer}{end}"

    ids = [tokens["bos"]]
    cut = -1
    for piece in _MARKS.split(text):
        if piece == "<image>":
            ids.append(tokens["im_start"])
            cut = len(ids)
            ids.append(tokens["im_end"])
        elif piece == "[SEG]":
            ids.append(tokens["seg"])
        elif piece == "</s>":
            ids.append(tokens["eos"])
        elif piece.strip():
            words = re.sub(r"\0(\d+)\0", lambda m: plain(phrases[int(m[1])]), piece)
            ids.extend(encode(words.strip()))
    if cut < 0:
        raise ValueError("the prompt's image_sentence must contain <image>")
    return PromptIds(tuple(ids[:cut]), tuple(ids[cut:]))


def plain(phrase: str) -> str:
    """A phrase as the model reads it: lower-cased, white space folded, no markup brackets.

    Full-width letters, ligatures and accents take their usual form (NFKC), curly quotes become
    straight, soft hyphens and joiners vanish. Angle and square brackets around a word would spell
    special tokens of some tokenizer. A phrase without any letter or digit is read as "".
    """
    text = unicodedata.normalize("NFKC", phrase).translate(_USUAL)
    text = re.sub(r"<([^<>\s]{1,40})>|\[([A-Z]{1,12})\]", r" \1\2 ", text)
    text = re.sub(r"<\|?|\|?>", " ", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).lower().split())
    return text if any(c.isalnum() for c in text) else ""
