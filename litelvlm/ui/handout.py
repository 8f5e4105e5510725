"""What a visitor takes away: the lines that reproduce an answer, masks, records, the figure."""

from __future__ import annotations

import json
import shlex
from urllib.parse import urlencode

import numpy as np

from litelvlm import viz
from litelvlm.ui.examples import shipped
from litelvlm.ui.limits import WORK_SIDE, enlarge_mask
from litelvlm.ui.pictures import data_url, esc, figure_bytes, png
from litelvlm.ui.work import Answer

UPLOAD = "your-picture.jpg"  # an upload stays with the visitor, who fills in its name


# ------------------------------------------------------------------------------------------ use it
def snippet(given: Answer, device: str | None, dtype: str | None) -> str:
    """Python lines that reproduce exactly this result."""
    load = [repr(given.model)]
    load += [f"device={device!r}"] if device else []
    load += [f"dtype={dtype!r}"] if dtype else []
    ask = given.ask
    more = "".join(f", {name}={value!r}" for name, value in ask.chosen().items())
    lines = ["import litelvlm"]
    source = repr(UPLOAD)
    if example := shipped(given.picture.key):
        lines += ["from litelvlm.resources import asset"]
        source = f'asset("examples", {example!r})'
    if given.picture.shrunk:
        lines += ["from litelvlm.images import read_image", "from litelvlm.ui.limits import fit"]
        source = f"fit(read_image({source}), {WORK_SIDE})"
    told = "result.found, result.area_fraction" if given.masks else "result.text"
    lines += [
        "",
        f"pipe = litelvlm.load({', '.join(load)})",
        f"scene = pipe.encode({source})",
        f"results = pipe.ground(scene, {list(ask.phrases)!r}, budget={ask.budget}{more})",
        "for result in results:",
        f"    print(result.phrase, {told})",
        "print(results.costs)",
        'litelvlm.show(results, "figure.png")',
    ]
    return "\n".join(lines) + "\n"


def command(given: Answer, device: str | None, dtype: str | None) -> str:
    """Lines for a POSIX shell that reproduce this result; they write it to found/."""
    example = shipped(given.picture.key)
    path = f'asset("examples", {example!r})' if example else repr(UPLOAD)
    code = ["from litelvlm.resources import asset"] if example else []
    picture, lines = UPLOAD, []
    if given.picture.shrunk:
        picture = "smaller.png"
        code += [
            "from PIL import Image",
            "from litelvlm.images import read_image",
            "from litelvlm.ui.limits import fit",
            f"Image.fromarray(fit(read_image({path}), {WORK_SIDE})).save({picture!r})",
        ]
        lines.append(shlex.join(["python", "-c", "; ".join(code)]))
    elif example:  # wherever the package lies on the visitor's computer
        picture = '"$example"'
        found = shlex.join(["python", "-c", "; ".join([*code, f"print({path})"])])
        lines.append(f'example="$({found})"')
    options = {"model": given.model, "budget": given.ask.budget, **given.ask.chosen()}
    options |= {"device": device, "dtype": dtype, "out": "found"}
    if not given.masks:
        options.pop("mode")  # `ask` has no other
    named = {name.replace("_", "-"): value for name, value in options.items()}
    words = [f"--{name}={value}" for name, value in named.items() if value is not None]
    verb, asked = "ground" if given.masks else "ask", shlex.join(given.ask.phrases)
    lines.append(f"litelvlm {verb} {shlex.join(words)} -- {picture} {asked}")
    return "\n".join(lines) + "\n"


def client(given: Answer, url: str, locked: bool) -> str:
    """Python lines that ask this server the same question.

    Args:
        given: the answer.
        url: of the page.
        locked: whether the page asks for a name and a password.
    """
    ask = given.ask
    more = {"budget": ask.budget, **ask.chosen(), "model": given.model}
    more.pop("max_new_tokens", None)  # the server's own choice
    example = shipped(given.picture.key)
    lines = ["from gradio_client import Client, handle_file"]
    lines += ["from litelvlm.resources import asset"] if example else []
    auth = ', auth=("USER", "PASSWORD")' if locked else ""
    path = f'str(asset("examples", {example!r}))' if example else repr(UPLOAD)
    lines += [
        "",
        f"client = Client({url!r}{auth})",
        "overlay, record = client.predict(",
        f"    handle_file({path}),",
        f"    {chr(10).join(ask.phrases)!r},",
        *(f"    {name}={value!r}," for name, value in more.items() if value is not None),
        '    api_name="/ground",',
        ")",
    ]
    return "\n".join(lines) + "\n"


def link(given: Answer, tab: str) -> str:
    """A link to the result as shown; of an upload it carries a mark by which it is known again."""
    ask = given.ask
    example = shipped(given.picture.key)
    picture = {"example": example} if example else {"picture": given.picture.key[:16]}
    query = urlencode(
        picture
        | {"phrases": "\n".join(ask.phrases), "budget": ask.budget, "model": given.model}
        | {**ask.chosen(), "tab": tab}
    )
    note = (
        "It opens this answer, in this tab."
        if example
        else "The picture is not in it: who opens it is asked to upload the same picture."
    )
    return (
        f'<p class="lv-caption"><a class="lv-link" id="lv-share" href="?{esc(query)}">Link to this '
        f"result</a> {note}</p>"
    )


def downloads(given: Answer, figures: bool = False) -> str:
    """Links that hold their file themselves; the figure only when asked for, it takes a second."""
    record = to_json(given)
    links = _mask_links(given, record) if given.masks else []
    links.append(_link(_json(record), "application/json", "result.json", "Everything as JSON"))
    if figures:
        links += _figures(viz.figure(given.pruned), "figure")
    return f'<div class="lv-links">{"".join(links)}</div>'


def _mask_links(given: Answer, record: dict) -> list[str]:
    links = []
    for number, item in enumerate(given.pruned, 1):
        mask = enlarge_mask(item.mask, given.picture.original_hw)
        file = png(mask.astype(np.uint8) * 255, 6)
        links.append(
            _link(file, "image/png", f"mask-{number}.png", f"Mask of “{item.phrase[:40]}”")
        )
    rle = [{"phrase": r["phrase"], "segmentation": r["mask_rle"]} for r in record["results"]]
    links.append(_link(_json(rle), "application/json", "masks-coco-rle.json", "Masks as COCO RLE"))
    return links


def figure_links(picture: object, name: str) -> str:
    """Links to a matplotlib figure in two formats."""
    return f'<div class="lv-links">{"".join(_figures(picture, name))}</div>'


def _figures(picture: object, name: str) -> list[str]:
    kinds = {"png": "image/png", "svg": "image/svg+xml"}
    return [
        _link(figure_bytes(picture, kind), mime, f"{name}.{kind}", f"Figure, {kind.upper()}")
        for kind, mime in kinds.items()
    ]


def animation(content: bytes) -> str:
    """A link to the token map over the budgets."""
    link = _link(content, "image/gif", "token-map.gif", "Token map, every budget")
    return f'<div class="lv-links">{link}</div>'


def to_json(given: Answer) -> dict:
    """The result record of the demo: the library's, with masks at the picture's own size."""
    from dataclasses import replace

    results = given.pruned
    if given.masks:
        size = given.picture.original_hw
        items = tuple(replace(item, mask=enlarge_mask(item.mask, size)) for item in results)
        results = replace(results, items=items)
    record = results.to_json()
    height, width = given.picture.original_hw
    record["image"] = {"width": width, "height": height, "sha256": given.picture.key}
    for result, item, score in zip(record["results"], results, given.agreement, strict=True):
        result[f"agreement_with_unpruned_{item.measure.lower()}"] = round(score, 4)
    return record


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def _link(content: bytes, kind: str, name: str, text: str) -> str:
    size = f"{len(content) / 1e3:.0f} kB" if len(content) >= 1000 else f"{len(content)} B"
    return (
        f'<a class="lv-link" download="{esc(name)}" href="{data_url(content, kind)}">'
        f"{esc(text)} <small>{esc(name)}, {size}</small></a>"
    )
