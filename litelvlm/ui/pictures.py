"""Pictures as data URLs, so that nothing a visitor sends or gets is served from a file."""

from __future__ import annotations

import base64
import html
import io

import cv2
import numpy as np
from PIL import Image

VIEW_SIDE = 960  # longest side of what is shown, pixels


def esc(text: object) -> str:
    """Text of any origin, safe inside HTML, attributes and the page's templates."""
    safe = html.escape(str(text), quote=True)
    return safe.replace("{", "&#123;").replace("$", "&#36;").replace("`", "&#96;")


def view_size(hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which a picture of this size is shown."""
    scale = min(1.0, VIEW_SIDE / max(hw))
    return max(1, round(hw[0] * scale)), max(1, round(hw[1] * scale))


def png(image: np.ndarray, level: int = 1) -> bytes:
    """(H, W), (H, W, 3) RGB or (H, W, 4) RGBA uint8 -> PNG file, lossless.

    Args:
        image: the picture.
        level: zlib level; 1 is fast.
    """
    if image.ndim == 3:
        order = cv2.COLOR_RGBA2BGRA if image.shape[2] == 4 else cv2.COLOR_RGB2BGR
        image = cv2.cvtColor(image, order)
    # One filter for all rows: the layers are flat, and trying them all takes four times as long.
    options = [
        cv2.IMWRITE_PNG_COMPRESSION,
        level,
        cv2.IMWRITE_PNG_FILTER,
        cv2.IMWRITE_PNG_FILTER_UP,
    ]
    done, data = cv2.imencode(".png", image, options)
    if not done:
        raise RuntimeError("OpenCV could not write a PNG")
    return data.tobytes()


def data_url(content: bytes, kind: str = "image/png") -> str:
    """A file as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def photo_style(image: np.ndarray | None) -> str:
    """A style element that hands the photo, once, to every stage of the page."""
    if image is None:
        return ""
    height, width = view_size(image.shape[:2])
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return f'<style>:root{{--lv-photo:url("{data_url(png(image, 2))}")}}</style>'


def stage(hw: tuple[int, int], inner: str, kind: str = "") -> str:
    """A place of the photo's shape, with the photo behind whatever lies in it."""
    height, width = hw
    return (
        f'<div class="lv-stage {kind}" style="aspect-ratio:{width}/{height};'
        f'--lv-ratio:{width / height:.4f}">{inner}</div>'
    )


def layer_image(layer: np.ndarray, alt: str, kind: str = "") -> str:
    """A layer over the photo of a `stage`."""
    return layer_at(data_url(png(layer)), alt, kind)


def layer_at(url: str, alt: str, kind: str = "") -> str:
    """The same of a layer that is encoded already."""
    return f'<img class="lv-layer {kind}" src="{url}" alt="{esc(alt)}"/>'


def figure_bytes(figure: object, kind: str) -> bytes:
    """A matplotlib figure as a "png" or "svg" file."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=160)  # type: ignore[attr-defined]
    return stream.getvalue()


def pixels(figure: object) -> np.ndarray:
    """A matplotlib figure as (H, W, 3) uint8 RGB."""
    return np.asarray(Image.open(io.BytesIO(figure_bytes(figure, "png"))).convert("RGB"))
