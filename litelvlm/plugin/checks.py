"""What a user gives to `Pruner`, checked and read: models, options, budgets, questions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from litelvlm.errors import InputError, ModelError
from litelvlm.methods import SelectionOptions
from litelvlm.plugin.families import Family, family_of
from litelvlm.question import check_budget, check_choice, check_seed

_WHERE = "what the user asks"  # stands for the question when a chat template is read


def check_model(model: Any) -> Family:
    """The family of a model that is ready to be pruned, or one sentence saying why it is not."""
    import transformers

    config: Any = getattr(model, "config", None)
    kind = type(model).__name__
    if not hasattr(config, "model_type") or not hasattr(model, "generate"):
        raise InputError(
            "model must come from AutoModelForImageTextToText.from_pretrained, "
            f"got {kind if not isinstance(model, str) else repr(model[:60])}"
        )
    if type(model).__module__.startswith("transformers_modules"):
        raise ModelError(
            f"{kind} runs its repository's own code, whose token layout is not known; load the "
            "version that is part of transformers (without trust_remote_code)"
        )
    family = family_of(config.model_type)
    # Florence-2 takes the features in generate, which passes them to its encoder.
    inner = getattr(model, "_orig_mod", model)  # of torch.compile
    takes = "mm_encoder_outputs" in inspect.signature(inner.forward).parameters
    if not takes and not config.is_encoder_decoder:
        raise ModelError(
            f"{kind} of transformers {transformers.__version__} takes no features from outside; "
            "5.18 or newer does"
        )
    if not hasattr(model, "hf_device_map") and any(p.is_meta for p in model.parameters()):
        raise ModelError(f"{kind} is on the meta device, it has no weights; load them first")
    if model.training:
        raise InputError(f"{kind} is in training mode; call model.eval() first")
    return family


def question_in(processor: Any, prompt: str) -> str:
    """The user's words in a prompt: without placeholders, special tokens and the chat frame."""
    token = processor.image_token
    content = [{"type": "image"}, {"type": "text", "text": _WHERE}]
    if getattr(processor, "chat_template", None):
        turn = [{"role": "user", "content": content}]
        frame = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        head, tail = frame.split(token)[0], frame.rpartition(_WHERE)[2]
        prompt = prompt.removeprefix(head).removesuffix(tail)
    for special in {token, *processor.tokenizer.all_special_tokens}:
        prompt = prompt.replace(special, " ")
    return " ".join(prompt.split())


def check_options(options: dict[str, Any]) -> SelectionOptions:
    """The choices of a rule by name, or `InputError` for an unknown name or value."""
    known = ("split", "order", "context", "seed")
    if extra := set(options) - set(known):
        raise InputError(f"unknown option {min(extra)!r}; known: {', '.join(known)}")
    checked: dict[str, Any] = {
        name: check_seed(value) if name == "seed" else check_choice(name, value)
        for name, value in options.items()
    }
    return SelectionOptions(**checked)


def read_budgets(budget: Any, totals: Sequence[int]) -> list[int]:
    """Patches to keep of each picture."""
    given = list(budget) if isinstance(budget, (list, tuple)) else [budget] * len(totals)
    if len(given) != len(totals):
        raise InputError(f"{len(given)} budgets for {len(totals)} pictures")
    chosen = []
    for number, (one, total) in enumerate(zip(given, totals, strict=True)):
        if one is None:
            chosen.append(total)
        elif isinstance(one, float) and 0 < one <= 1:
            chosen.append(max(1, round(one * total)))
        else:
            try:
                chosen.append(check_budget(one, total))
            except InputError as fault:
                where = f" (picture {number})" if len(totals) > 1 else ""
                raise InputError(f"{fault}{where}; a float in 0..1 is a share") from None
    return chosen
