"""What a visitor may send, checked in one place for the page, the endpoints and MCP."""

from __future__ import annotations

import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from litelvlm.errors import InputError
from litelvlm.images import FORMATS, MAX_PIXELS, read_image, shown_as_read
from litelvlm.models.prompt import plain

MAX_PHRASES = 6
MAX_LETTERS = 200  # in one phrase
WORK_SIDE = 1600  # longest side the demo works at, pixels


@dataclass(frozen=True)
class Picture:
    """An uploaded picture, ready to be encoded.

    Attributes:
        image: (h, w, 3) uint8, upright RGB, longest side at most `WORK_SIDE`.
        original_hw: size of the upright picture as uploaded; masks are handed out at this size.
        key: SHA-256 of the upright pixels as uploaded, row by row, three bytes each.
        path: file it was read from, None for one that came without a file.
    """

    image: np.ndarray
    original_hw: tuple[int, int]
    key: str
    path: str | None = None

    @property
    def shrunk(self) -> bool:
        """Whether the demo works on a smaller copy."""
        return self.image.shape[:2] != self.original_hw


@functools.lru_cache(maxsize=256)
def picture_key(path: str) -> str:
    """`Picture.key` of an upload, read once. Raises as `read_picture`."""
    return read_picture(path).key


def preview(path: str) -> np.ndarray | None:
    """The pixels to show in place of an upload that a browser would show otherwise, or not at all.

    None where the file itself will do. Raises as `read_picture`.
    """
    return None if shown_as_read(Path(path)) else read_image(_Upload(Path(path).read_bytes()))


class _Upload(io.BytesIO):
    name = "this file"  # what error messages call it; never the server's own path


def read_picture(path: str | Path | None, before: Picture | None = None) -> Picture:
    """Read an upload.

    Args:
        path: of the upload. The server names uploads by their content, so the same path is the
            same picture.
        before: the picture read last, returned again if the path is the same.

    Raises:
        InputError: with a message fit for the visitor.
    """
    if not path:
        raise InputError("Choose a picture first.")
    if before is not None and before.path == str(path):
        return before
    try:
        content = Path(path).read_bytes()
    except OSError:
        raise InputError("This upload has been deleted meanwhile: choose it again.") from None
    if not content:
        raise InputError("This file is empty: choose a picture.")
    return take_picture(read_image(_Upload(content)), str(path))


def take_picture(image: np.ndarray, path: str | None = None) -> Picture:
    """A `Picture` from (H, W, 3) uint8 pixels."""
    key = hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()
    return Picture(fit(image, WORK_SIDE), (image.shape[0], image.shape[1]), key, path)


def fit(image: np.ndarray, longest: int) -> np.ndarray:
    """Shrink a picture so that its longest side is at most `longest` pixels; never enlarge."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def enlarge_mask(mask: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """A mask at the size of the picture as uploaded: (h, w) bool -> (H, W) bool."""
    if mask.shape == tuple(hw):
        return mask
    soft = cv2.resize(mask.astype(np.float32), (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)
    return soft > 0.5


def check_phrases(given: Any) -> tuple[str, ...]:
    """Phrases from text, one a line, or from a list: 1 to 6 of at most 200 characters."""
    if isinstance(given, (list, tuple)) and all(isinstance(item, str) for item in given):
        lines = [" ".join(item.split()) for item in given]
    elif isinstance(given, str):
        lines = [" ".join(line.split()) for line in given.splitlines()]
    else:
        raise InputError("Phrases are text, one a line.")
    phrases = tuple(dict.fromkeys(line for line in lines if line))
    if not phrases:
        raise InputError("Type what to look for, for example: the red apple.")
    if len(phrases) > MAX_PHRASES:
        raise InputError(f"{len(phrases)} phrases at once are too many: at most {MAX_PHRASES}.")
    for phrase in phrases:
        if len(phrase) > MAX_LETTERS:
            raise InputError(
                f"A phrase of {len(phrase)} characters is too long: at most {MAX_LETTERS}."
            )
        if not plain(phrase):
            raise InputError(f"There is no word in “{phrase[:20]}”: name the thing to look for.")
    return phrases


def harden_pillow() -> None:
    """Limit Pillow, for the whole process, to the decoders and the size the demo takes.

    Gradio opens uploads itself in places; with this it cannot be led to a rare decoder either.
    """
    from PIL import Image

    Image.init()
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses at twice this figure
    for name in [name for name in Image.OPEN if name not in FORMATS]:
        del Image.OPEN[name]
    Image.ID[:] = [name for name in Image.ID if name in FORMATS]
