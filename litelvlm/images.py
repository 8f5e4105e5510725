"""Pictures in: one door for files, Pillow images and arrays, safe against hostile files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from litelvlm.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

# Few decoders, little to attack. Pillow opens MPO (phones, 3D cameras) through its JPEG door.
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000


def read_image(source: str | Path | BinaryIO | Image | np.ndarray) -> np.ndarray:
    """Read a picture as upright 8-bit RGB.

    The EXIF orientation is applied, transparent pixels are laid over white, 16-bit greys are
    scaled to 8 bits, and of an animation the first frame is taken.

    Args:
        source: path or open binary file (JPEG, PNG or WEBP), Pillow image, or (H, W, 3) uint8
            array, RGB.

    Returns:
        (H, W, 3) uint8, contiguous, not sharing memory with a file.

    Raises:
        InputError: not a picture, a format that is not offered, damaged, empty, or larger than
            50 megapixels (seen from the header, before anything is decoded).
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the picture")
    if not isinstance(source, (str, Path)) and not hasattr(source, "read"):
        kind = type(source).__name__
        raise InputError(f"a picture is a path, a Pillow image or an (H, W, 3) array; got {kind}")
    name = str(getattr(source, "name", source))[-80:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning: the size is checked below
            with Image.open(source, formats=FORMATS) as image:
                return _to_rgb(image, name)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{name}: is a folder, expected a picture") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name}: more than {MAX_PIXELS // 10**6} megapixels") from None
    except UnidentifiedImageError:
        raise InputError(f"{name}: not a JPEG, PNG or WEBP picture") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as fault:
        raise InputError(f"{name}: damaged picture ({str(fault)[:60]})") from None


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        given = f"{tuple(array.shape)} {array.dtype}"
        raise InputError(f"a picture array is (height, width, 3) uint8 RGB; got {given}")
    _check_size(array.shape[1], array.shape[0], "the array")
    return np.ascontiguousarray(array)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{name}: empty picture ({width} x {height})")
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise InputError(f"{name}: {width} x {height} pixels, at most {limit} megapixels are taken")


def _to_rgb(image: Any, name: str) -> np.ndarray:
    from PIL import Image, ImageOps

    _check_size(image.width, image.height, name)
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        if image.mode != "I;16" and values.max(initial=0) <= 255:
            image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        else:
            image = Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
