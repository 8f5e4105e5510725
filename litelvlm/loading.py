"""From a name to a ready pipeline: presets, model folders, hub repositories, random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from litelvlm.errors import InputError, MemoryShortError, ModelError, unknown
from litelvlm.models.bundle import GroundingModel
from litelvlm.models.checkpoints import Progress, fill_random, load_into, open_model
from litelvlm.models.language import load_tokenizer, wrap_tokenizer
from litelvlm.pipeline import Pipeline
from litelvlm.presets import PRESETS, stand_in_tokenizer, tiny_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGE = 10**9  # parameters; above it half precision is the default
_BAR_FROM = 2**30  # bytes; below it a load takes no time worth a progress bar


def load(
    model: str | Path = "nano",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    random_weights: bool = False,
    seed: int = 0,
    revision: str | None = None,
) -> Pipeline:
    """Load a model, ready to ground phrases.

    Args:
        model: name of a preset ("nano", "glamm-refseg", "tiny-random"), path of a model folder,
            or "owner/name" of a repository on the Hugging Face hub. Folders and repositories may
            hold this project's layout or GLaMM's original one.
        device: "cpu", "cuda", "cuda:1", ...; None takes a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16"; None takes float32 for small models and
            bfloat16 above a billion parameters.
        random_weights: draw the weights instead of reading them, to measure cost at full size.
        seed: of the drawn weights.
        revision: branch, tag or commit of a hub repository.

    Returns:
        A `Pipeline` in evaluation mode.

    Raises:
        ModelError: unknown model; files missing, corrupt, or not fitting the architecture.
        InputError: unknown device or dtype.
        MemoryShortError: the device is too small for the weights.
    """
    if not isinstance(model, (str, Path)):
        raise InputError(
            "model must be the name of a preset, a folder or a hub repository, got "
            f"{type(model).__name__}; a loaded Hugging Face model goes to litelvlm.Pruner"
        )
    place = check_device(device)
    chosen = check_dtype(dtype)
    try:
        return _load(str(model), place, chosen, random_weights, seed, revision)
    except (torch.OutOfMemoryError, MemoryError):
        raise MemoryShortError(f"out of memory on {place} while loading {model}") from None


def check_device(device: str | torch.device | None) -> torch.device:
    """A usable device, or `InputError` naming the ones that are there."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise unknown("device", device, here) from None
    name = f"{place.type}:{place.index or 0}" if place.type == "cuda" else place.type
    if name not in here:
        raise InputError(f"device {str(device)!r} is not here; there is: {', '.join(here)}")
    return place


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A floating-point dtype the models run in, or `InputError` listing them."""
    if dtype is None or dtype in _DTYPES.values():
        return dtype  # type: ignore[return-value]
    if str(dtype) not in _DTYPES:
        raise unknown("dtype", dtype, _DTYPES)
    return _DTYPES[str(dtype)]


def _load(
    name: str,
    device: torch.device,
    dtype: torch.dtype | None,
    random_weights: bool,
    seed: int,
    revision: str | None,
) -> Pipeline:
    preset = PRESETS.get(name)
    if preset and preset.config and (random_weights or preset.random_only):
        config, source = preset.config, None
    else:
        source = open_model(name, revision=revision)
        config = source.config
    with torch.device("meta"):
        model = GroundingModel(config)
    if dtype is None:
        large = sum(parameter.numel() for parameter in model.parameters()) > _LARGE
        dtype = torch.bfloat16 if large else torch.float32
    if source is None or random_weights:
        fill_random(model, dtype, device, seed=seed)
    else:
        with _progress(f"loading {config.name}", source.bytes) as progress:
            load_into(model, source, dtype, device, progress=progress)
    model.requires_grad_(False).eval()
    if source is not None:
        tokenizer = load_tokenizer(source.folder)
        given, expected = tokenizer.convert_tokens_to_ids("[SEG]"), config.tokens["seg"]
        if given != expected:
            raise ModelError(f"{source.folder}: [SEG] is {given} in the tokenizer, not {expected}")
        return Pipeline(model, config, tokenizer, _vocabulary(source.folder))
    drawn = tiny_tokenizer() if preset and preset.random_only else stand_in_tokenizer()
    return Pipeline(model, config, wrap_tokenizer(drawn))


def _vocabulary(folder: Path) -> frozenset[str] | None:
    """Words of a model with a closed vocabulary, from vocabulary.json; None without one."""
    path = folder / "vocabulary.json"
    if not path.is_file():
        return None
    try:
        return frozenset(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as fault:
        raise ModelError(f"{path}: cannot be read as a list of words ({fault})") from None


@contextmanager
def _progress(title: str, total: int) -> Iterator[Progress | None]:
    """A bar on stderr for loads that take a while; none for small models."""
    if total < _BAR_FROM:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit="B", unit_scale=True, leave=False) as bar:
        yield lambda done, _: bar.update(done - bar.n) and None
