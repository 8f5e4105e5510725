"""The table of selection methods: what each is called, where it comes from, what it needs."""

from __future__ import annotations

from litelvlm.errors import unknown
from litelvlm.methods import before, inside, litelvlm
from litelvlm.methods.view import Method

_LITELVLM = "Lee & Choi, LiteLVLM, ICML 2026, arXiv 2605.13178"


def _before(name, title, rule, source, text, *needs, **more) -> Method:  # type: ignore[no-untyped-def]
    return Method(name, title, source, text, "before", frozenset(needs), rule, **more)


def _inside(name, title, rule, source, text, positions) -> Method:  # type: ignore[no-untyped-def]
    return Method(name, title, source, text, "inside", frozenset({"layers"}), rule, positions)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _before(
            "litelvlm",
            "LiteLVLM",
            litelvlm.litelvlm,
            _LITELVLM,
            "Half the budget goes to the patches least like the phrase, half to context.",
            "similarity",
            "last",
        ),
        _before(
            "litelvlm-released",
            "LiteLVLM (released code)",
            litelvlm.released,
            f"{_LITELVLM}; github.com/sejong-rcv/LiteLVLM",
            "An equal share per phrase of the least similar patches, context first in order.",
            "similarity",
            "last",
        ),
        _before(
            "litelvlm+",
            "LiteLVLM+ (ours)",
            litelvlm.plus,
            f"ours, after {_LITELVLM}",
            "Differing patches of the half least like the phrase, and an even lattice.",
            "similarity",
            positions="original",
        ),
        _before(
            "random",
            "Random",
            before.random,
            "control",
            "Patches drawn uniformly at random.",
            seeded=True,
        ),
        _before(
            "grid",
            "Uniform grid",
            before.grid,
            "control",
            "Patches on an even lattice.",
        ),
        _before(
            "most-similar",
            "Most similar",
            before.most_similar,
            "control: the ranking without the reversal",
            "The patches most like the phrase.",
            "similarity",
        ),
        _before(
            "least-similar",
            "Least similar only",
            before.least_similar,
            f"{_LITELVLM} (ablation)",
            "The patches least like the phrase, no context.",
            "similarity",
        ),
        _before(
            "context",
            "Context only",
            before.context,
            f"{_LITELVLM} (ablation)",
            "The patches with the highest context score, blind to the phrase.",
            "last",
        ),
        _before(
            "trim",
            "TRIM",
            before.trim,
            "Song et al., COLING 2025; github.com/FreedomIntelligence/TRIM",
            "The patches least like the phrase (sign as released) and the mean of the others.",
            "similarity",
        ),
        _before(
            "class-attention",
            "Class attention",
            before.class_attention,
            "Zhang et al. (FasterVLM), arXiv 2412.01818; github.com/Theia-4869/FasterVLM",
            "The patches the class token attends to most in the last block but one.",
            "penultimate",
        ),
        _before(
            "visionzip",
            "VisionZip",
            before.visionzip,
            "Yang et al., CVPR 2025; github.com/dvlab-research/VisionZip",
            "Most attended patches, and evenly spaced ones that absorb the others.",
            "penultimate",
        ),
        _before(
            "prumerge+",
            "LLaVA-PruMerge+",
            before.prumerge_plus,
            "Shang et al., ICCV 2025; github.com/42Shawn/LLaVA-PruMerge",
            "Most attended and evenly spaced patches, each joined by its 32 nearest.",
            "last",
        ),
        _before(
            "vispruner",
            "VisPruner",
            before.vispruner,
            "Zhang et al., ICCV 2025; github.com/Theia-4869/VisPruner",
            "Half most attended; the other half what is left after dropping duplicates.",
            "penultimate",
        ),
        _before(
            "cdpruner",
            "CDPruner",
            before.cdpruner,
            "Zhang et al., arXiv 2506.10967; github.com/Theia-4869/CDPruner",
            "The most diverse set under a kernel weighted by negated similarity to the phrase.",
            "llm",
            "similarity",
        ),
        _before(
            "divprune",
            "DivPrune",
            before.divprune,
            "Alvar et al., CVPR 2025; github.com/vbdi/divprune",
            "Greedy max-min distance among the projected tokens.",
            "llm",
        ),
        _before(
            "scope",
            "SCOPE",
            before.scope,
            "Deng et al., 2025; github.com/kinredon/SCOPE",
            "Greedy gain in coverage times class attention.",
            "penultimate",
        ),
        _before(
            "vscan",
            "VScan (encoder stage)",
            before.vscan_encoder,
            "Zhang et al., TMLR 2026; github.com/Tencent/SelfEvolvingAgent (VScan)",
            "Half most attended at the end, half per window early on; the rest is averaged in.",
            "penultimate",
            "early",
        ),
        _before(
            "nuwa",
            "Nüwa (per-cell selection)",
            before.nuwa_cells,
            "arXiv 2602.02951, ICLR 2026; github.com/Man-PaperRejected/Nuwa",
            "The best patches by class attention among the winners of each 2 x 2 cell.",
            "penultimate",
            positions="original",
        ),
        _inside(
            "fastv",
            "FastV",
            inside.FASTV,
            "Chen et al., ECCV 2024; github.com/pkunlp-icler/FastV",
            "After two layers, the image tokens the last token attends to most.",
            "original",
        ),
        _inside(
            "pyramiddrop",
            "PyramidDrop",
            inside.PYRAMIDDROP,
            "Xing et al., CVPR 2025; github.com/Cooperx521/PyramidDrop",
            "An equal fraction is dropped at each quarter of the depth, by the last token.",
            "compact",
        ),
        _inside(
            "sparsevlm",
            "SparseVLM",
            inside.SPARSEVLM,
            "Zhang et al., ICML 2025; github.com/Gumpest/SparseVLMs",
            "Three cuts by the attention of relevant text tokens; the dropped are clustered.",
            "compact",
        ),
        _inside(
            "sparsevlm-no-merge",
            "SparseVLM (no merge)",
            inside.SPARSEVLM_WITHOUT_MERGE,
            "Zhang et al., ICML 2025; github.com/Gumpest/SparseVLMs",
            "Three cuts by the attention of relevant text tokens; the dropped are lost.",
            "compact",
        ),
    )
}


def get_method(name: str) -> Method:
    """The method of that name. Raises `InputError` listing the names that exist."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
