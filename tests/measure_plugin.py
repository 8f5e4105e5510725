"""What the plug-in costs and saves, on random models: `python tests/measure_plugin.py`.

    python tests/measure_plugin.py --width 4096 --layers 32 --repeats 3    (the size of 7B)

LLaVA-1.5 with the rule `litelvlm` at 192 of 576 image tokens, and Qwen2.5-VL with `divprune` at a
third of 1,024. Prints a Markdown table: the plug-in against the untouched model at full budget, the
ratio of prefill times against the ratio of FLOPs, and what scoring and choosing cost. Everything
takes turns in one process; leave the computer alone meanwhile. Weights are random: costs are real,
answers mean nothing.
"""

from __future__ import annotations

import argparse

import torch
import transformers
from tiny_vlm import MROPE, TEXT, clip_of, picture, prompt, tokenizer

import litelvlm
from litelvlm.plugin.bench import paired
from litelvlm.tables import markdown_table

HEADS = ["model", "image tokens", "full budget, plug-in by plain", "prefill, pruned by unpruned"]
HEADS += ["FLOPs likewise", "selection, ms", "of the prefill saved"]


def vision(layers):
    """As many blocks for the language model's as LLaVA-1.5 has, 24 for 32."""
    sizes = dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
    return sizes | dict(num_hidden_layers=max(3, layers * 3 // 4))


def text(width, layers):
    heads = dict(num_attention_heads=width // 128, num_key_value_heads=width // 128, head_dim=128)
    sizes = dict(hidden_size=width, intermediate_size=width * 43 // 16, num_hidden_layers=layers)
    return TEXT | sizes | heads


def model_of(config, dtype):
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    model.generation_config.pad_token_id = 0
    return model


def llava(width, layers, dtype):
    """(pruner, picture, budget)."""
    tower = transformers.CLIPVisionConfig(**vision(layers), image_size=336, patch_size=14)
    config = transformers.LlavaConfig(
        vision_config=tower,
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
    model = model_of(config, dtype)
    words = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    clip = clip_of(model, **words, num_attention_heads=12)  # CLIP ViT-L's text half
    return litelvlm.Pruner(model, processor, "litelvlm", clip=clip), picture(480, 640), 192


def qwen2_5_vl(width, layers, dtype):
    """Likewise."""
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
    pruner = litelvlm.Pruner(model_of(config, dtype), processor, "divprune")
    return pruner, picture(896, 896), 342


def row(name, pruner, image, budget, repeats):
    found = paired(pruner, image, prompt(name), budget, repeats=repeats)
    full, less = found.unpruned, found.pruned
    return [
        f"{pruner.family.name}, `{pruner.method.name}`",
        f"{less.image_tokens} of {full.image_tokens}",
        f"{found.full_ratio:.3f} ({found.full_ms:,.0f} by {found.plain_ms:,.0f} ms)",
        f"{found.prefill_ratio:.3f} ({less.prefill_ms:,.0f} by {full.prefill_ms:,.0f} ms)",
        f"{found.flop_ratio:.3f}",
        f"{found.selection_ms:.1f}",
        f"{found.selection_share:.2%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--width", type=int, default=2048, help="of the language model (2048)")
    parser.add_argument("--layers", type=int, default=6, help="of the language model (6)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns (7)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    for build in (llava, qwen2_5_vl):  # one model at a time in memory
        torch.manual_seed(0)
        given = build(args.width, args.layers, getattr(torch, args.dtype))
        rows.append(row(build.__name__, *given, args.repeats))
        del given
    print(
        f"{args.layers} layers of width {args.width}, {args.dtype}, CPU, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, medians of {args.repeats} turns\n"
    )
    print("\n".join(markdown_table(HEADS, rows, (0,))))


if __name__ == "__main__":
    main()
