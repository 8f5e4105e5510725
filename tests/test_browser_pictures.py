"""Uploads of every kind in a real browser: the preview is the picture that the model sees."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from test_browser import (  # noqa: F401
    about,
    answered,
    ask,
    browser,
    clear,
    expect,
    page,
    server,
    settled,
    shows,
    upload,
)

from litelvlm.images import read_image

pytestmark = pytest.mark.browser


def scene(mode="RGB"):
    rows, columns = np.mgrid[:60, :90]
    smooth = np.stack([rows * 4, columns * 2, rows + columns], axis=2).astype(np.uint8)
    smooth[5:20, 5:40] = (220, 30, 30)  # no two corners are alike
    return Image.fromarray(smooth).convert(mode)


def turned(kind):
    exif = Image.Exif()
    exif[274] = 6
    return {"exif": exif, "format": kind}


def sixteen():
    return Image.fromarray(np.linspace(0, 65535, 60 * 90).reshape(60, 90).astype(np.uint16))


def clear_disc():
    image = scene("RGBA")
    image.putalpha(Image.fromarray((np.mgrid[:60, :90][1] > 45).astype(np.uint8) * 255))
    return image


KINDS = {
    "plain.png": (scene, {}),
    "plain.jpg": (scene, {"quality": 95}),
    "moving.gif": (scene, {"save_all": True, "append_images": [Image.new("RGB", (90, 60))] * 2}),
    "moving.webp": (
        scene,
        {"save_all": True, "append_images": [Image.new("RGB", (90, 60))], "lossless": True},
    ),
    "plain.bmp": (scene, {}),
    "plain.tiff": (scene, {}),
    "plain.avif": (scene, {"quality": 95}),
    "turned.jpg": (scene, turned("JPEG")),
    "turned.webp": (scene, turned("WEBP")),
    "turned.png": (scene, turned("PNG")),
    "sixteen.png": (sixteen, {}),
    "sixteen.tiff": (sixteen, {}),
    "clear.png": (clear_disc, {}),
    "print.jpg": (lambda: scene("CMYK"), {"quality": 95}),
    "really-tiff.jpg": (scene, {"format": "TIFF"}),
    "really-jpeg.png": (scene, {"format": "JPEG", "quality": 95}),
    "really-png.gif": (scene, {"format": "PNG"}),
}


def previewed(page):  # noqa: F811
    """(H, W, 4) uint8 as the browser draws the preview."""
    told = page.evaluate(
        """() => { const i = document.querySelector('#lv-picture img');
        const c = document.createElement('canvas');
        c.width = i.naturalWidth; c.height = i.naturalHeight;
        c.getContext('2d').drawImage(i, 0, 0);
        return c.toDataURL('image/png'); }"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(told.partition(",")[2]))), np.float32)


def test_the_preview_is_the_upright_picture_that_the_model_sees(page, tmp_path):  # noqa: F811
    for name, (make, options) in KINDS.items():
        path = tmp_path / name
        make().save(path, **options)
        seen = read_image(path)
        upload(page, str(path))
        page.wait_for_function(
            """([w, h]) => { const i = document.querySelector('#lv-picture img');
            return i && i.complete && i.naturalWidth === w && i.naturalHeight === h; }""",
            arg=[seen.shape[1], seen.shape[0]],
        )
        shown = previewed(page)
        assert shown[..., 3].min() == 255, name
        assert np.abs(shown[..., :3] - seen).mean() < 3, name
        ask(page, name)
        about(page, name)
        answered(page)
        settled(page)
        expect(page.locator("#lv-state")).not_to_contain_text("Settings changed")


def test_what_cannot_be_read_is_told_at_once(page, tmp_path):  # noqa: F811
    path = tmp_path / "text.png"
    path.write_text("no picture")
    clear(page)
    page.set_input_files("#lv-picture input[type=file]", str(path))
    shows(page, "#lv-state .lv-error", "not a picture that is known")
    expect(page.locator("#lv-masks")).to_be_hidden()
