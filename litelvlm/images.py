"""Pictures in: one door for files, Pillow images and arrays, safe against hostile files."""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from litelvlm.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

# Few decoders, little to attack. Pillow opens MPO (phones, 3D cameras) through its JPEG door.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 50_000_000
_TAKEN = "JPEG, PNG, WEBP, GIF, BMP, TIFF and AVIF are taken"
# How a file that cannot be opened begins -> what is told about it.
_TOLD = (
    (rb"\Z", f"is empty; {_TAKEN}"),
    (rb"\x89PNG|\xff\xd8|RIFF....WEBP|GIF8|BM|....ftypavi", "damaged picture"),
    (rb"II\*\0|MM\0\*", "damaged TIFF or a raw picture; export it as JPEG or PNG"),
    (rb"....ftyp(hei|hev|mif)", "HEIC needs one more package, pillow-heif; or export it as JPEG"),
    (rb"\s*(<\?xml.*)?(<!--.*-->\s*)?(<!DOCTYPE svg.*)?<svg", "SVG is not taken, export it as PNG"),
    (rb"(?i)\s*(<!doctype )?<?html", "is a web page, not a picture"),
    (rb"%PDF|%!PS", "PDF and PostScript are not taken, export the page as PNG"),
)
log = logging.getLogger(__name__)


def read_image(source: str | Path | BinaryIO | Image | np.ndarray) -> np.ndarray:
    """Read a picture as upright 8-bit RGB.

    The EXIF orientation is applied, transparent pixels are laid over white, 16-bit greys are
    scaled to 8 bits, and of an animation the first frame is taken. What a file is, its content
    tells, not its name.

    Args:
        source: path or open binary file of one of `FORMATS` (HEIC where pillow-heif is installed),
            Pillow image, or (H, W, 3) uint8 array, RGB.

    Returns:
        (H, W, 3) uint8, contiguous, not sharing memory with a file.

    Raises:
        InputError: not a picture, a format that is not offered, damaged, empty, or larger than
            50 megapixels (seen from the header, before anything is decoded).
    """
    from PIL import Image

    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the picture")
    if not isinstance(source, (str, Path)) and not hasattr(source, "read"):
        kind = type(source).__name__
        raise InputError(f"a picture is a path, a Pillow image or an (H, W, 3) array; got {kind}")
    name = _name(source)
    with opened(source) as image:
        try:
            return _to_rgb(image, name)
        except OSError as fault:
            if image.format not in ("JPEG", "MPO") or "truncated" not in str(fault):
                raise
    return _without_tail(source, name)


@contextmanager
def opened(source: str | Path | BinaryIO) -> Iterator[Image]:
    """A picture file, its header read and its size checked.

    Raises:
        InputError: also in place of what goes wrong inside the `with`, where the file is decoded.
    """
    from PIL import Image, UnidentifiedImageError

    name = _name(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb warning: the size is checked below
            try:
                image: Image.Image = Image.open(source, formats=FORMATS)
            except UnidentifiedImageError:
                image = _other_door(_content(source), name)
            with image:
                _check_size(image.width, image.height, name)
                yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{name}: is a folder, expected a picture") from None
    except Image.DecompressionBombError:
        raise InputError(f"{name}: more than {MAX_PIXELS // 10**6} megapixels") from None
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as fault:
        raise InputError(f"{name}: damaged picture ({one_line(fault, 60)})") from None


def stored_size(path: Path) -> tuple[tuple[int, int], int]:
    """(height, width) of a picture as stored, and its EXIF orientation, 1..8. Reads the header."""
    with opened(path) as image:
        turn = image.getexif().get(_ORIENTATION, 1)
        return (image.height, image.width), turn if turn in range(1, 9) else 1


def shown_as_read(path: Path) -> bool:
    """Whether a browser shows a file as `read_image` reads it.

    That takes a format that all of them know under its own suffix, upright, opaque, 8-bit and
    without further frames. Raises `InputError` as `opened`.
    """
    from PIL import Image

    with opened(path) as image:
        kind = "JPEG" if image.format == "MPO" else image.format
        return (
            kind in ("JPEG", "PNG", "WEBP")
            and Image.registered_extensions().get(path.suffix.lower()) == kind
            and image.mode in ("1", "L", "P", "RGB")
            and not image.has_transparency_data
            and (kind == "JPEG" or image.getexif().get(_ORIENTATION, 1) == 1)
            and (kind == "JPEG" or getattr(image, "n_frames", 1) == 1)
        )


def turned(mask: np.ndarray, turn: int) -> np.ndarray:
    """An (H, W) array turned upright from an EXIF orientation."""
    mask = mask.T if turn > 4 else mask
    return mask[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]


_ORIENTATION = 0x0112


def _name(source: Any) -> str:
    given = source if isinstance(source, (str, Path)) else getattr(source, "name", "the file")
    return str(given)[-80:]


def _content(source: str | Path | BinaryIO) -> bytes:
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    source.seek(0)
    return source.read()


def _other_door(content: bytes, name: str) -> Image:
    """A picture that Pillow does not know at once: HEIC, or PNG with a damaged side chunk.

    Raises:
        InputError: it is neither; the message tells what the file is.
    """
    from PIL import Image, UnidentifiedImageError

    if re.match(rb"....ftyp(hei|hev|mif)", content, re.DOTALL):
        try:
            import pillow_heif
        except ImportError:
            pass
        else:
            file = pillow_heif.open_heif(io.BytesIO(content))
            _check_size(file.size[0], file.size[1], name)
            return file.to_pillow()
    if content.startswith(b"\x89PNG"):
        try:
            return Image.open(io.BytesIO(_core_of_png(content)), formats=("PNG",))
        except UnidentifiedImageError:
            pass
    head = content[:1000]
    known = (told for start, told in _TOLD if re.match(start, head, re.DOTALL))
    raise InputError(f"{name}: {next(known, f'not a picture that is known; {_TAKEN}')}")


def _core_of_png(content: bytes) -> bytes:
    """A PNG without text and other chunks that do not change its pixels, however damaged."""
    place, kept = 8, content[:8]
    while place + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        chunk = content[place : place + 12 + length]
        place += len(chunk)
        whole = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[:1].isupper() or (kind in (b"tRNS", b"eXIf") and whole):
            kept += chunk
    return kept


def _without_tail(source: str | Path | BinaryIO, name: str) -> np.ndarray:
    """A JPEG whose last bytes are lost: what is there, if it is nearly all.

    libjpeg leaves blocks that it cannot read grey. One row of blocks may be.
    """
    with opened(io.BytesIO(_content(source).rstrip(b"\xff") + b"\xff\xd9")) as image:
        pixels = _to_rgb(image, name)
        stored = np.array(image.convert("RGB"))
    grey: np.ndarray = np.all(np.abs(stored.astype(np.int16) - 128) < 2, axis=(1, 2))
    lost = len(grey) if grey.all() else int(np.argmin(grey[::-1]))
    if lost > 16:
        raise InputError(f"{name}: damaged picture (cut off, the lower {lost} rows are lost)")
    return pixels


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
        values = np.nan_to_num(np.asarray(image, np.float64))
        brightest = values.max(initial=0)
        if image.mode != "I;16" and brightest <= 255:
            image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        else:
            if brightest < 65536 / 8:
                log.warning(
                    "%s: 16-bit picture whose brightest value is %d of 65535: it is read nearly "
                    "black; stretch its range first",
                    name,
                    brightest,
                )
            image = Image.fromarray((values.clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))
