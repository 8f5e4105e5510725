"""SAM's image encoder: this project's path against transformers' own, in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from litelvlm.bench.compare import Note, turns
from litelvlm.bench.figures import Spread
from litelvlm.pipeline import Pipeline
from litelvlm.profiling import Profiler
from litelvlm.scene import EncodedImage


@dataclass(frozen=True)
class SamTiming:
    """SAM's image encoder, this project's path and transformers' own, in turns.

    Attributes:
        ours, theirs: milliseconds.
        logit_difference: largest difference of the mask logits between the two.
        our_error, their_error: largest difference of the mask logits to float32.
        logit_scale: standard deviation of the float32 mask logits, to judge the others by.
        mask_agreement: share of pixels with the same side of zero in both.
    """

    ours: Spread
    theirs: Spread
    logit_difference: float
    our_error: float
    their_error: float
    logit_scale: float
    mask_agreement: float


def time_sam(pipe: Pipeline, scene: EncodedImage, repeats: int, say: Note) -> SamTiming:
    """Both paths through SAM's encoder in turns, and both against float32."""
    segmenter, device = pipe.family.segmenter, pipe.device
    pixels = segmenter.pixels(scene.image).to(device)
    paths: list[Callable[[], Tensor]] = [
        lambda: segmenter.encode(pixels),
        lambda: segmenter.encode_by_library(pixels),
    ]
    times: list[list[float]] = [[], []]
    profiler = Profiler(device)
    with torch.inference_mode():
        embeddings = []
        for index, path in enumerate(paths):  # warm-up
            say(f"SAM encoder, {('this project', 'transformers')[index]}")
            embeddings.append(path())
        for turn, index in turns(repeats, 2):
            say(f"SAM encoder, turn {turn + 1} of {repeats}")
            profiler.run("sam_image", paths[index])
            times[index].append(profiler.costs[-1].ms)
        say("SAM encoder in float32")
        embeddings.append(segmenter.encode_in_float32(pixels))
        # One prompt and a float32 decoder, so that only the encoder differs.
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randn(1, embeddings[0].shape[1], generator=generator).to(device)
        decoder = segmenter.decoder_in_float32()
        ours, theirs, exact = (
            decoder.decode(embedding.float(), prompt)[0] for embedding in embeddings
        )
    return SamTiming(
        ours=Spread.of(times[0]),
        theirs=Spread.of(times[1]),
        logit_difference=float((ours - theirs).abs().max()),
        our_error=float((ours - exact).abs().max()),
        their_error=float((theirs - exact).abs().max()),
        logit_scale=float(exact.std()),
        mask_agreement=float(((ours > 0) == (theirs > 0)).float().mean()),
    )
