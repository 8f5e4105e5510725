"""Model folders: open one, check it, and load it into a module built on the meta device.

    source = open_model("MBZUAI/GLaMM-RefSeg")     # hub id, preset name or folder
    source.config                                  # ModelConfig
    with torch.device("meta"):                     # build without memory ...
        model = GroundingModel(source.config)
    load_into(model, source, torch.bfloat16, "cuda")     # ... and fill, strictly

Weights are read file by file through a memory map and copied straight to the target dtype and
device, so the peak is the weights plus one file. Pickled files are opened with `weights_only=True`
and can run no code. `convert` rewrites any of the layouts as safetensors in ours.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from litelvlm.config import FORMAT, ModelConfig, SelectionConfig
from litelvlm.errors import ModelError, unknown
from litelvlm.models.names import (
    Place,
    clip_config,
    place_clip,
    place_glamm,
    place_ours,
    sam_config,
)
from litelvlm.presets import GLAMM_PROMPT, PRESETS, TOKEN_TEXTS
from litelvlm.resources import asset

log = logging.getLogger(__name__)


SHARD_BYTES = 2 * 1024**3  # of a converted model's files
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocabulary.json",
)
Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


@dataclass(frozen=True)
class Entry:
    """One tensor of a model and where its pieces lie.

    Attributes:
        name: our name.
        pieces: (file, key in it): one, or three to be joined along the first axis.
        shape: of the joined tensor, after transposition.
        dtype: as stored.
        transpose: the stored axes are swapped.
    """

    name: str
    pieces: tuple[tuple[Path, str], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    transpose: bool = False

    @property
    def bytes(self) -> int:
        """Size as stored."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class ModelSource:
    """An opened model folder. Only headers have been read.

    Attributes:
        config: the model's configuration.
        folder: where the tokenizer's files lie.
        layout: "litelvlm-1" or "glamm".
        entries: all tensors by our name.
        ignored: names in the files that this project has no use for.
    """

    config: ModelConfig
    folder: Path
    layout: str
    entries: Mapping[str, Entry]
    ignored: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all tensors as stored."""
        return sum(entry.bytes for entry in self.entries.values())


def open_model(name: str | Path, *, revision: str | None = None) -> ModelSource:
    """Open a preset, a folder or a hub repository.

    Args:
        name: a preset with weights ("nano", "glamm-refseg"), a folder in our layout or in
            GLaMM's, or a hub id such as "MBZUAI/GLaMM-RefSeg".
        revision: commit, tag or branch on the hub; None takes the newest, or offline
            (HF_HUB_OFFLINE=1) what the cache has.

    Raises:
        ModelError: unknown name, files missing or corrupt, nothing to download from.
    """
    preset = PRESETS.get(str(name))
    if preset is not None:
        if preset.random_only:
            raise ModelError(f"{name} has no weights; load it with random_weights=True")
        if preset.hub:
            source = open_folder(_download(preset.hub, revision), clip=preset.clip)
            return replace(source, config=replace(source.config, name=str(name)))
        folder = asset(str(preset.folder))
        if not (folder / "config.json").is_file():
            raise ModelError(f"the weights of {name!r} are not there: no {folder / 'config.json'}")
        return open_folder(folder)
    if Path(name).is_dir():
        return open_folder(Path(name))
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) and ".." not in name:
        return open_folder(_download(name, revision))
    raise unknown("model", name, [*PRESETS, "a folder", "a hub id"])


def open_folder(folder: Path, *, clip: str | Path | None = None) -> ModelSource:
    """Open a model folder on disk.

    Args:
        folder: holds config.json, the weights and the tokenizer.
        clip: folder or hub id of the dual encoder for GLaMM's layout, whose files lack it; None
            takes `mm_vision_tower` of its config.json (relative to `folder`, or a hub id).

    Raises:
        ModelError: naming the file and the fault.
    """
    raw = _read_json(folder / "config.json")
    if raw.get("format") == FORMAT:
        config = ModelConfig.from_json(folder / "config.json")
        entries, ignored = _index([(folder, place_ours)])
        return ModelSource(config, folder, FORMAT, entries, ignored)
    if "mm_vision_tower" not in raw:
        raise ModelError(
            f"{folder / 'config.json'}: neither {FORMAT!r} nor GLaMM's layout (no mm_vision_tower)"
        )
    return _open_glamm(folder, raw, _clip_folder(folder, clip or raw["mm_vision_tower"]))


def _open_glamm(folder: Path, raw: dict[str, Any], clip: Path) -> ModelSource:
    # The checkpoint comes second: where it repeats the tower, its own values count.
    entries, ignored = _index([(clip, place_clip), (folder, place_glamm)])
    shapes = {name: entry.shape for name, entry in entries.items()}
    preprocessor = clip / "preprocessor_config.json"
    added = _read_json(folder / "added_tokens.json")
    try:
        dual = clip_config(
            _read_json(clip / "config.json"),
            _read_json(preprocessor) if preprocessor.is_file() else None,
        )
        segmenter = sam_config(shapes)
        vocabulary = shapes["language.model.embed_tokens.weight"][0]
    except KeyError as fault:
        raise ModelError(f"{folder}: the weights lack {fault}") from None
    except ValueError as fault:
        raise ModelError(f"{clip / 'config.json'}: {fault}") from None
    tokens = {key: added[text] for key, text in TOKEN_TEXTS.items() if text in added}
    if "seg" not in tokens or "im_start" not in tokens or "im_end" not in tokens:
        raise ModelError(
            f"{folder / 'added_tokens.json'}: [SEG], <im_start> or <im_end> is missing"
        )
    pad = raw.get("pad_token_id")
    tokens |= {
        "pad": pad if isinstance(pad, int) and pad >= 0 else 0,  # -1 stands for none at times
        "bos": raw.get("bos_token_id", 1),
        "eos": raw.get("eos_token_id", 2),
    }
    if max(tokens.values()) >= vocabulary:
        raise ModelError(f"{folder}: token id {max(tokens.values())} >= vocabulary {vocabulary}")
    for setting in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(raw.get(setting), int):
            raise ModelError(f"{folder / 'config.json'}: {setting} is {raw.get(setting)!r}")
    heads = raw["num_attention_heads"]
    language = {
        "vocab_size": vocabulary,  # config.json files of fine-tuned models often forget the added
        "hidden_size": raw["hidden_size"],
        "intermediate_size": raw["intermediate_size"],
        "num_hidden_layers": raw["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": raw.get("num_key_value_heads") or heads,
        "max_position_embeddings": raw.get("max_position_embeddings", 2048),
        "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
        "rope_theta": raw.get("rope_theta") or 10000.0,
        "hidden_act": raw.get("hidden_act", "silu"),
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings", False)),
        "bos_token_id": tokens["bos"],
        "eos_token_id": tokens["eos"],
        "pad_token_id": tokens["pad"],
    }
    config = ModelConfig(
        name=folder.name,
        dual_encoder=dual,
        language=language,
        segmenter=segmenter,
        prompt=GLAMM_PROMPT,
        tokens=tokens,
        selection=SelectionConfig(),
    )
    return ModelSource(config, folder, "glamm", entries, ignored)


def load_into(
    root: nn.Module,
    source: ModelSource,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    device: str | torch.device = "cpu",
    *,
    progress: Progress | None = None,
) -> None:
    """Fill a module with the weights of a source, strictly.

    Args:
        root: parameter names as in our layout (`bundle.GroundingModel`), usually built under
            `torch.device("meta")`. Parameters are replaced, not copied into.
        source: from `open_model`.
        dtype: of all floating-point weights, or by prefix.
        device: where they go.
        progress: called with (bytes read, bytes in all) after every tensor.

    Raises:
        ModelError: a weight is missing, unexpected or has another shape (the first eight of each
            are named); a file cannot be read. Nothing has been loaded in the first case.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in root.state_dict().items()}
    groups = _tied(root)
    _compare(source, wanted, groups)
    done = 0
    for entry, tensor in _read_all(source.entries.values()):
        if tensor.is_floating_point():
            kind = dtype if isinstance(dtype, torch.dtype) else dtype[entry.name.split(".")[0]]
        else:
            kind = tensor.dtype
        # A copy always: a view would keep the file mapped for as long as the model lives.
        value = tensor.to(
            device=device, dtype=kind, copy=True, memory_format=torch.contiguous_format
        )
        _assign(root, groups.get(entry.name, (entry.name,)), value)
        done += entry.bytes
        if progress:
            progress(done, source.bytes)
    fill_buffers(root, device)


def fill_random(
    root: nn.Module,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    device: str | torch.device = "cpu",
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Fill a module with cheap seeded random weights, one tensor at a time, in the target dtype.

    Scales keep activations finite through any depth: matrices are uniform with standard deviation
    1 / sqrt(fan-in), norms near one, biases and all else small. Tensors over a million numbers are
    tiled from one block, because seven thousand million draws would take minutes; the block's
    length is a prime, so that rows differ. The same seed gives the same weights on every device.
    """
    groups = _tied(root)
    generator = torch.Generator().manual_seed(seed)
    block = torch.rand(1_000_003, generator=generator) * 2 - 1  # -1..1
    blocks: dict[torch.dtype, Tensor] = {}
    names = list(root.state_dict())
    total = sum(parameter.numel() for parameter in root.parameters())
    done = 0
    for name in names:
        if name in groups and groups[name][0] != name:
            continue  # shares the tensor of an earlier name
        old = root.get_parameter(name) if _is_parameter(root, name) else root.get_buffer(name)
        kind = dtype if isinstance(dtype, torch.dtype) else dtype[name.split(".")[0]]
        count, shape = old.numel(), tuple(old.shape)
        if not old.is_floating_point():
            continue
        if count > len(block):
            unit = blocks.setdefault(kind, block.to(kind))
            start = int(torch.randint(len(block), (1,), generator=generator))
            value = torch.empty(count, dtype=kind)
            value[: len(unit) - start] = unit[start:]
            tail = value[len(unit) - start :]
            whole = len(tail) // len(unit)
            tail[: whole * len(unit)].view(whole, len(unit))[:] = unit
            tail[whole * len(unit) :] = unit[: len(tail) - whole * len(unit)]
        else:
            value = (torch.rand(count, generator=generator) * 2 - 1).to(kind)
        value = value.view(shape)
        if name.endswith("shared_image_embedding.positional_embedding"):
            pass  # SAM's random frequencies, of order one
        elif name.endswith(("pos_embed", "positional_embedding")):
            value.mul_(0.1)
        elif len(shape) >= 2:
            fan_in = old[0].numel()
            value.mul_(3**0.5 / fan_in**0.5)  # uniform on -a..a has deviation a / sqrt(3)
        elif "norm" in name or ".ln_" in name:
            value.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("logit_scale"):
            value.fill_(4.6)
        else:
            value.mul_(0.1)
        _assign(root, groups.get(name, (name,)), value.to(device))
        done += count
        if progress:
            progress(done, total)
    fill_buffers(root, device)


def fill_buffers(root: nn.Module, device: str | torch.device) -> None:
    """Compute the buffers that no checkpoint holds: rotary frequencies and CLIP's causal mask.

    Raises:
        RuntimeError: a buffer or parameter is still on the meta device, which is a fault of ours.
    """
    for module in root.modules():
        own = dict(module.named_buffers(recurse=False))
        if not any(buffer.is_meta for buffer in own.values()):
            for name, buffer in own.items():
                setattr(module, name, buffer.to(device))
        elif "inv_freq" in own:  # transformers' rotary embedding is made from its configuration
            with torch.device("cpu"):
                fresh = type(module)(module.config)  # type: ignore[call-arg]
            for name, buffer in fresh.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        elif "attn_mask" in own:  # open_clip's text tower: nothing above the diagonal is seen
            side = own["attn_mask"].shape[-1]
            module.attn_mask = torch.full((side, side), -torch.inf, device=device).triu_(1)
    left = [n for n, t in [*root.named_parameters(), *root.named_buffers()] if t.is_meta]
    if left:
        raise RuntimeError(f"still without values: {', '.join(left[:8])}")


def convert(
    name: str | Path,
    target: Path,
    *,
    revision: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> Path:
    """Rewrite a model as safetensors in our layout: config.json, weights, tokenizer files.

    Stored dtypes are kept. Memory: about twice an output shard. The folder appears only when it is
    complete.

    Args:
        name: as for `open_model`.
        target: a folder that does not exist yet or is empty.
        revision: as for `open_model`.
        shard_bytes: largest size of one output file, bytes; a single larger tensor gets its own.
        progress: called with (bytes written, bytes in all).

    Raises:
        ModelError: the source cannot be read, or `target` is in use.
    """
    source = open_model(name, revision=revision)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target}: exists already and is not an empty folder")
    broken = [entry.name for entry in source.entries.values() if not entry.pieces]
    if broken:
        raise ModelError(f"{source.folder}: incomplete: {_some(broken)}")
    shards = list(_shards(source.entries.values(), shard_bytes))
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        done = 0
        where: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {
                entry.name: tensor.contiguous().clone() for entry, tensor in _read_all(shard)
            }
            save_file(tensors, partial / file, metadata={"format": "pt"})
            where |= dict.fromkeys(tensors, file)
            done += sum(entry.bytes for entry in shard)
            if progress:
                progress(done, source.bytes)
        if len(shards) > 1:
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


# --- reading ---------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise ModelError(f"{path}: cannot be read as JSON ({_line(fault)})") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: holds a {type(raw).__name__}, expected an object")
    return raw


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a folder, safetensors before pickled ones.

    Raises:
        ModelError: there are none, or the index names one that is not there.
    """
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise ModelError(f"{index}: no weight_map")
            names = sorted({str(shard) for shard in shards.values()})
            for shard in names:
                if Path(shard).name != shard:
                    raise ModelError(f"{index}: {shard!r} is not a plain file name")
                if not (folder / shard).is_file():
                    raise ModelError(f"{folder / shard}: no such file, but {index.name} names it")
            return [folder / shard for shard in names]
        if (folder / f"{stem}.{ending}").is_file():
            return [folder / f"{stem}.{ending}"]
    raise ModelError(f"{folder}: no weights (model.safetensors or pytorch_model.bin)")


@contextmanager
def _open(path: Path) -> Iterator[Mapping[str, Any]]:
    """The tensors of one file by name, lazily: nothing is read before a tensor is used."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as handle:
                yield _Safetensors(handle)
        else:
            # Files of torch before 1.6 are not zip archives and cannot be mapped.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd pickles, which are refused below
                held = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
            if not isinstance(held, dict) or not all(
                isinstance(value, Tensor) for value in held.values()
            ):
                raise ModelError(f"{path}: not a checkpoint (expected tensors by name)")
            yield held
    except pickle.UnpicklingError as fault:
        raise ModelError(f"{path}: not a safe checkpoint ({_line(fault)})") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as fault:
        if isinstance(fault, ModelError) or "out of memory" in str(fault).lower():
            raise
        raise ModelError(f"{path}: corrupt or cut short ({_line(fault)})") from None


class _Safetensors(Mapping[str, Any]):
    """An open safetensors file as a mapping from name to tensor."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def __iter__(self) -> Iterator[str]:
        return iter(self.handle.keys())

    def __len__(self) -> int:
        return len(self.handle.keys())

    def __getitem__(self, key: str) -> Tensor:
        return self.handle.get_tensor(key)


def _header(held: Mapping[str, Any], key: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of one tensor without reading it."""
    if isinstance(held, _Safetensors):
        piece = held.handle.get_slice(key)
        kind = piece.get_dtype()
        if kind not in _DTYPES:
            raise ModelError(f"{key}: stored as {kind}, expected one of {', '.join(_DTYPES)}")
        return tuple(piece.get_shape()), _DTYPES[kind]
    return tuple(held[key].shape), held[key].dtype


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _index(
    folders: Iterable[tuple[Path, Callable[[str], Place | None]]],
) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """All tensors of some folders by our name, and the names left out. Later folders win."""
    entries: dict[str, Entry] = {}
    ignored: list[str] = []
    for folder, place in folders:
        found: dict[str, dict[int, tuple[Path, str, tuple[int, ...], torch.dtype, bool]]] = {}
        for path in weight_files(folder):
            with _open(path) as held:
                for key in held:
                    at = place(key)
                    if at is None:
                        ignored.append(key)
                        continue
                    shape, dtype = _header(held, key)
                    parts = found.setdefault(at.name, {})
                    parts[at.part or 0] = (path, key, shape, dtype, at.transpose)
                    if at.part is not None:
                        parts.setdefault(-1, parts[at.part])  # marks a joined tensor
        for name, parts in found.items():
            joined = parts.pop(-1, None) is not None
            if joined and len(parts) < 3:
                if name not in entries:  # incomplete and nothing to fall back on: a fault later
                    entries[name] = Entry(name, (), (), parts[min(parts)][3])
                continue
            pieces = [parts[number] for number in sorted(parts)]
            _, _, shape, dtype, transpose = pieces[0]
            if joined:
                shape = (sum(piece[2][0] for piece in pieces), *shape[1:])
            if transpose:
                shape = shape[::-1]
            files = tuple((path, key) for path, key, *_ in pieces)
            entries[name] = Entry(name, files, shape, dtype, transpose)
    return entries, tuple(ignored)


def _read_all(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Tensor]]:
    """Every tensor, file by file. It may be a view of a mapped file: copy what is to stay."""
    by_file: dict[Path, list[Entry]] = {}
    for entry in entries:
        by_file.setdefault(entry.pieces[0][0], []).append(entry)
    for path, group in by_file.items():
        with _open(path) as held:
            for entry in group:
                parts = []
                for file, key in entry.pieces:
                    if file == path:
                        parts.append(held[key])
                    else:  # a joined tensor that straddles two files
                        with _open(file) as other:
                            parts.append(other[key].clone())
                tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
                yield entry, tensor.t() if entry.transpose else tensor


def _shards(entries: Iterable[Entry], limit: int) -> Iterator[list[Entry]]:
    shard: list[Entry] = []
    size = 0
    for entry in entries:
        if shard and size + entry.bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += entry.bytes
    if shard:
        yield shard


# --- filling ---------------------------------------------------------------------------------


def _tied(root: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names that share one parameter with others: name -> all its names, first one first."""
    owners: dict[int, list[str]] = {}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    return {name: tuple(names) for names in owners.values() if len(names) > 1 for name in names}


def _compare(
    source: ModelSource, wanted: Mapping[str, tuple[int, ...]], groups: Mapping[str, tuple]
) -> None:
    """Raise a `ModelError` unless the source holds exactly the wanted names and shapes."""
    have = {name: entry for name, entry in source.entries.items() if entry.pieces}
    missing = [name for name in wanted if not any(n in have for n in groups.get(name, (name,)))]
    unexpected = [name for name in have if name not in wanted]
    misshapen = [
        f"{name} {list(have[name].shape)}, expected {list(shape)}"
        for name, shape in wanted.items()
        if name in have and have[name].shape != shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    told = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in faults if names)
    if told:
        raise ModelError(f"{source.folder}: weights do not fit: {told}")


def _is_parameter(root: nn.Module, name: str) -> bool:
    stem, _, leaf = name.rpartition(".")
    return leaf in root.get_submodule(stem)._parameters


def _assign(root: nn.Module, names: Iterable[str], value: Tensor) -> None:
    """Put one tensor under all its names."""
    parameter: nn.Parameter | None = None
    for name in names:
        stem, _, leaf = name.rpartition(".")
        module = root.get_submodule(stem)
        if _is_parameter(root, name):
            if parameter is None:
                parameter = nn.Parameter(value, requires_grad=False)
            setattr(module, leaf, parameter)
        else:
            setattr(module, leaf, value)


# --- the hub ---------------------------------------------------------------------------------


def _clip_folder(folder: Path, tower: str | Path) -> Path:
    """The folder of a dual encoder: beside the model, on disk, or from the hub."""
    for candidate in (folder / tower, Path(tower)):
        if candidate.is_dir():
            return candidate
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(tower)) or ".." in str(tower):
        raise ModelError(f"{folder}: the dual encoder {str(tower)!r} is no folder and no hub id")
    return _download(str(tower), None)


def _download(repository: str, revision: str | None) -> Path:
    """A hub repository in the local cache: safetensors if it has any, else pickled files."""
    from huggingface_hub import snapshot_download

    small = ["*.json", "tokenizer.model"]
    try:
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            folder = Path(
                snapshot_download(repository, revision=revision, allow_patterns=[*small, weights])
            )
            if any(folder.glob(weights)):
                return folder
    except (OSError, ValueError, RuntimeError) as fault:
        # The hub's own errors are OSErrors; no network and no cache end here too.
        raise ModelError(f"cannot fetch {repository} from the hub ({_line(fault)})") from None
    raise ModelError(f"{repository}: no weights (model.safetensors or pytorch_model.bin)")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _line(fault: BaseException) -> str:
    """The first line of an error's text, short enough for a one-line message."""
    text = str(fault).strip().split("\n")[0]
    return (text[:157] + "...") if len(text) > 160 else text or type(fault).__name__
