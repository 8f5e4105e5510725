"""Measure the plug-in on mid-size random models: `python tests/measure_plugin.py`.

Prints Markdown: plug-in against the untouched model at full budget, and the ratio of prefill times
against the ratio of FLOPs, for LLaVA-1.5 at 192 of 576 image tokens and Qwen2.5-VL at a third of
1,024. Weights are random: costs are real, answers mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import transformers
from tiny_vlm import MROPE, TEXT, picture, prompt, tokenizer

import litelvlm
from litelvlm.plugin.bench import paired

VISION = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=3, num_attention_heads=16)


def text(width: int, layers: int) -> dict:
    heads = dict(num_attention_heads=width // 128, num_key_value_heads=width // 128, head_dim=128)
    sizes = dict(hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers)
    return TEXT | sizes | heads


def llava(width: int, layers: int):
    vision = transformers.CLIPVisionConfig(**VISION, image_size=336, patch_size=14)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**text(width, layers)),
        image_token_index=4,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessor(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor, "llava", picture(480, 640), 192


def qwen(width: int, layers: int):
    mrope = MROPE | {"mrope_section": [16, 24, 24]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text(width, layers) | dict(rope_parameters=mrope),
        vision_config=dict(
            depth=2, num_heads=16, hidden_size=1024, intermediate_size=2816, out_hidden_size=width,
            fullatt_block_indexes=[1],
        ),
        image_token_id=4, video_token_id=5, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(), tokenizer(), transformers.Qwen2VLVideoProcessor()
    )
    return config, processor, "qwen2_5_vl", picture(896, 896), 342


def selection_ms(pruner, image, words, budget, repeats):
    """(ms of scoring and shortening at a budget, ms of the same path at full budget)."""
    times = {budget: [], None: []}
    for _ in range(repeats):
        for one, taken in times.items():
            start = time.perf_counter()
            pruner.prepare(image, words, one)
            taken.append((time.perf_counter() - start) * 1e3)
    pairs = zip(times[budget], times[None], strict=True)
    return statistics.median(a - b for a, b in pairs), statistics.median(times[None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{args.layers} layers of width {args.width}, {args.dtype}, CPU,", end=" ")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}, medians of {args.repeats} turns\n")
    for build in (llava, qwen):
        config, processor, kind, image, budget = build(args.width, args.layers)
        dtype = getattr(torch, args.dtype)
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
        model.generation_config.pad_token_id = 0
        method = "context" if kind == "llava" else "grid"
        pruner = litelvlm.Pruner(model, processor, method)
        print(kind, method, pruner.prepare(image, prompt(kind))["input_ids"].shape[1], "tokens")
        print(paired(pruner, image, prompt(kind), budget, repeats=args.repeats))
        extra, full = selection_ms(pruner, image, prompt(kind), budget, args.repeats)
        print(f"selection {extra:.1f} ms on top of {full:.0f} ms for processor and tower\n")


if __name__ == "__main__":
    main()
