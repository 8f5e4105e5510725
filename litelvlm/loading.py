"""From a name to a ready pipeline: presets, model folders, hub repositories, random weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from litelvlm.errors import InputError, ModelError, unknown
from litelvlm.families.table import FAMILIES, PRESETS, family, looks_like
from litelvlm.memory import memory_told
from litelvlm.models.files import (
    ModelSource,
    Progress,
    download,
    is_hub_id,
    read_all,
    read_object,
    shards,
    weight_names,
)
from litelvlm.models.filling import fill_random, load_into, some_names
from litelvlm.models.quantised import check_bits, quantise
from litelvlm.pipeline import Pipeline
from litelvlm.resources import asset

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGE = 10**9  # parameters; above it half precision is the default
_BAR_FROM = 2**30  # bytes; below it a load takes no time worth a progress bar
SHARD_BYTES = 2 * 1024**3  # of a converted model's files
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocabulary.json",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


def load(
    model: str | Path = "nano",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    bits: int | None = None,
    random_weights: bool = False,
    seed: int = 0,
    revision: str | None = None,
    tower: str | Path | None = None,
) -> Pipeline:
    """Load a model, ready to ground phrases.

    Args:
        model: name of a preset ("nano", "glamm-refseg", "tiny-random"), path of a model folder,
            or "owner/name" of a repository on the Hugging Face hub. Folders and repositories may
            hold this project's layout or the original one of a family it knows.
        device: "cpu", "cuda", "cuda:1", ...; None takes a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16"; None takes float32 for small models and
            bfloat16 above a billion parameters.
        bits: 8 or 4 stores the language model's linear layers in as many bits, quantised while
            they are read: less memory and faster writing. 4 needs CUDA and bitsandbytes.
        random_weights: draw the weights instead of reading them, to measure cost at full size.
        seed: of the drawn weights.
        revision: branch, tag or commit of a hub repository.
        tower: folder or hub id of the CLIP, for models whose files lack it; None takes the one they
            were made for. "none" leaves it out where only the rules read it, and with it all rules
            that do.

    Returns:
        A `Pipeline` in evaluation mode.

    Raises:
        ModelError: unknown model; files missing, corrupt, or not fitting the architecture.
        InputError: unknown device, dtype or bits, or something that is no name and no path.
        MemoryShortError: the device is too small for the weights.
    """
    if not isinstance(model, (str, Path)):
        raise InputError(
            f"load takes a model's name, folder or hub id, got a {type(model).__name__}; "
            "a loaded Hugging Face model goes to litelvlm.Pruner"
        )
    place = check_device(device)
    chosen = check_dtype(dtype)
    bits = check_bits(bits, place)
    with memory_told(place, f" while loading {model}"):
        return _load(str(model), place, chosen, bits, random_weights, seed, revision, tower)


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
    bits: int | None,
    random_weights: bool,
    seed: int,
    revision: str | None,
    tower: str | Path | None,
) -> Pipeline:
    preset = PRESETS.get(name)
    drawn = preset is not None and not preset.folder and (random_weights or preset.random_only)
    if drawn and preset is not None:
        kind, source = family(preset.family), None
        config = kind.random_config(name)
    else:
        kind, source = _open(name, revision, tower)
        config = source.config
    with torch.device("meta"):
        model = kind.build(config)
    if dtype is None:
        large = sum(parameter.numel() for parameter in model.parameters()) > _LARGE
        dtype = torch.bfloat16 if large else torch.float32
    if bits is not None:
        quantise(kind.blocks(model), bits)
    if source is None or random_weights:
        fill_random(model, dtype, device, seed=seed)
    else:
        with _progress(f"loading {config.name}", source.bytes) as progress:
            try:
                load_into(model, source, dtype, device, progress=progress)
            except ModelError as fault:
                raise ModelError(f"{fault}{_likeness(source.folder, kind)}") from None
    model.requires_grad_(False).eval()
    return Pipeline(kind.wrap(model, config, source.folder if source else None))


def open_model(name: str | Path, *, revision: str | None = None) -> ModelSource:
    """Open a preset, a folder or a hub repository.

    Args:
        name: a preset with weights ("nano", "glamm-refseg"), a folder in our layout or in a
            family's original one, or a hub id such as "MBZUAI/GLaMM-RefSeg".
        revision: commit, tag or branch on the hub; None takes the newest, or offline
            (HF_HUB_OFFLINE=1) what the cache has.

    Raises:
        ModelError: unknown name, files missing or corrupt, nothing to download from.
    """
    return _open(name, revision)[1]


def open_folder(folder: Path, *, tower: str | Path | None = None) -> ModelSource:
    """Open a model folder on disk.

    Args:
        folder: holds config.json, the weights and the tokenizer.
        tower: folder or hub id of the image-text tower for layouts whose files lack it; None takes
            the one that config.json names.

    Raises:
        ModelError: naming the file and the fault.
    """
    return _open_folder(folder, tower)[1]


def _open(
    name: str | Path, revision: str | None, tower: str | Path | None = None
) -> tuple[Any, ModelSource]:
    """The family's module and the opened source."""
    preset = PRESETS.get(str(name))
    if preset is not None:
        if preset.random_only:
            raise ModelError(f"{name} has no weights; load it with random_weights=True")
        if preset.hub:
            kind, source = _open_folder(download(preset.hub, revision), tower or preset.tower)
            return kind, replace(source, config=replace(source.config, name=str(name)))
        folder = asset(str(preset.folder))
        if not (folder / "config.json").is_file():
            raise ModelError(f"the weights of {name!r} are not there: no {folder / 'config.json'}")
        return _open_folder(folder, tower)
    if Path(name).is_dir():
        return _open_folder(Path(name), tower)
    if isinstance(name, str) and is_hub_id(name):
        return _open_folder(download(name, revision), tower)
    raise unknown("model", name, [*PRESETS, "a folder", "a hub id"])


def _open_folder(folder: Path, tower: str | Path | None) -> tuple[Any, ModelSource]:
    raw = read_object(folder / "config.json")
    for name in FAMILIES:
        kind = family(name)
        if kind.recognises(raw):
            return kind, kind.open_folder(folder, raw, tower)
    given = raw.get("model_type") or raw.get("format")
    raise ModelError(
        f"{folder / 'config.json'}: {given!r} is the layout of no family known here "
        f"({', '.join(FAMILIES)}){_likeness(folder)}"
    )


def _likeness(folder: Path, kind: Any = None) -> str:
    """What the names of a folder's weights say, for a message; empty where that is `kind` or none.

    Its files are read again, headers only, which a failed load can afford.
    """
    found = looks_like(weight_names(folder))
    if found is None or family(found) is kind:
        return ""
    return f"; the names of its weights are those of {found}"


def convert(
    name: str | Path,
    target: Path,
    *,
    revision: str | None = None,
    tower: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Rewrite a model as safetensors in our layout: config.json, weights, tokenizer files.

    Stored dtypes are kept. Memory: about twice an output shard. The folder appears only when it is
    complete.

    Args:
        name: as for `open_model`.
        target: a folder that does not exist yet or is empty.
        revision, tower: as for `load`.
        shard_bytes: largest size of one output file, bytes; a single larger tensor gets its own.
        progress: called with (bytes written, bytes in all).

    Raises:
        ModelError: the source cannot be read, or `target` is in use.
    """
    source = _open(name, revision, tower)[1]
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target}: exists already and is not an empty folder")
    broken = [entry.name for entry in source.entries.values() if not entry.pieces]
    if broken:
        raise ModelError(f"{source.folder}: incomplete: {some_names(broken)}")
    groups = list(shards(source.entries.values(), shard_bytes))
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        done = 0
        where: dict[str, str] = {}
        for number, group in enumerate(groups, 1):
            file = "model.safetensors"
            if len(groups) > 1:
                file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            tensors = {entry.name: tensor.contiguous().clone() for entry, tensor in read_all(group)}
            save_file(tensors, partial / file, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, file)
            done += sum(entry.bytes for entry in group)
            if progress:
                progress(done, source.bytes)
        if len(groups) > 1:
            index = {"metadata": {"total_size": source.bytes}, "weight_map": where}
            (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        for file in TOKENIZER_FILES:
            if (source.folder / file).is_file():
                shutil.copyfile(source.folder / file, partial / file)
        (partial / "config.json").write_text(source.config.to_json(), encoding="utf-8")
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


@contextmanager
def _progress(title: str, total: int) -> Iterator[Progress | None]:
    """A bar on stderr for loads that take a while; none for small models."""
    if total < _BAR_FROM:
        yield None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit="B", unit_scale=True, leave=False) as bar:
        yield lambda done, _: bar.update(done - bar.n) and None
