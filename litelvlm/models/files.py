"""Weight files of a model folder: what tensors they hold, read one by one through a memory map.

Only headers are read until a tensor is asked for, so the peak is the weights plus one file. Pickled
files are opened with `weights_only=True` and can run no code.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from litelvlm.errors import ModelError, one_line
from litelvlm.models.names import Place
from litelvlm.resources import read_json

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
        rows: which rows are taken; see `names.Place`.
    """

    name: str
    pieces: tuple[tuple[Path, str], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    transpose: bool = False
    rows: tuple[int, int, int, int] | None = None

    @property
    def bytes(self) -> int:
        """Size as stored."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class ModelSource:
    """An opened model folder. Only headers have been read.

    Attributes:
        config: the model's configuration, of its family's kind.
        folder: where the tokenizer's files lie.
        layout: "litelvlm-1", or the name of an original one.
        entries: all tensors by our name.
        ignored: names in the files that this project has no use for.
    """

    config: Any
    folder: Path
    layout: str
    entries: Mapping[str, Entry]
    ignored: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of all tensors as stored."""
        return sum(entry.bytes for entry in self.entries.values())


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or `ModelError` naming the file and the fault."""
    return read_json(path, dict, ModelError)


def read_vocabulary(folder: Path) -> frozenset[str] | None:
    """Words of a model with a closed vocabulary, from vocabulary.json; None without one."""
    path = folder / "vocabulary.json"
    return frozenset(map(str, read_json(path, list, ModelError))) if path.is_file() else None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a folder, safetensors before pickled ones.

    Raises:
        ModelError: there are none, or the index names one that is not there.
    """
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            shards = read_object(index).get("weight_map")
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
        raise ModelError(f"{path}: not a safe checkpoint ({one_line(fault, 160)})") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as fault:
        if isinstance(fault, ModelError) or "out of memory" in str(fault).lower():
            raise
        raise ModelError(f"{path}: corrupt or cut short ({one_line(fault, 160)})") from None


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


def index(
    folders: Iterable[tuple[Path, Callable[[str], Place | tuple[Place, ...] | None]]],
) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """All tensors of some folders by our name, and the names left out. Later folders win."""
    entries: dict[str, Entry] = {}
    ignored: list[str] = []
    for folder, place in folders:
        found: dict[str, dict[int, tuple[Path, str, tuple[int, ...], torch.dtype, Place]]] = {}
        for path in weight_files(folder):
            with _open(path) as held:
                for key in held:
                    places = place(key)
                    if places is None:
                        ignored.append(key)
                        continue
                    shape, dtype = _header(held, key)
                    for at in places if isinstance(places, tuple) else (places,):
                        parts = found.setdefault(at.name, {})
                        parts[at.part or 0] = (path, key, shape, dtype, at)
                        if at.part is not None:
                            parts.setdefault(-1, parts[at.part])  # marks a joined tensor
        for name, parts in found.items():
            joined = parts.pop(-1, None) is not None
            if joined and len(parts) < 3:
                if name not in entries:  # incomplete and nothing to fall back on: a fault later
                    entries[name] = Entry(name, (), (), parts[min(parts)][3])
                continue
            pieces = [parts[number] for number in sorted(parts)]
            _, _, shape, dtype, at = pieces[0]
            if at.rows is not None:
                _, first, last, of = at.rows
                shape = (shape[0] * (last - first) // of, *shape[1:])
            if joined:
                shape = (sum(piece[2][0] for piece in pieces), *shape[1:])
            if at.transpose:
                shape = shape[::-1]
            files = tuple((path, key) for path, key, *_ in pieces)
            entries[name] = Entry(name, files, shape, dtype, at.transpose, at.rows)
    return entries, tuple(ignored)


def weight_names(folder: Path) -> list[str]:
    """Names of all tensors in a folder as stored; none where it holds no readable weights."""
    try:
        names = []
        for path in weight_files(folder):
            with _open(path) as held:
                names += list(held)
    except ModelError:
        return []
    return names


def read_all(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Tensor]]:
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
                if entry.rows is not None:
                    groups, first, last, of = entry.rows
                    tensor = tensor.unflatten(0, (groups, of, -1))[:, first:last].flatten(0, 2)
                yield entry, tensor.t() if entry.transpose else tensor


def equal_up_to_rounding(own: Tensor, other: Tensor) -> bool:
    """Whether two weights of one shape are the same but for one rounding to `own`'s dtype."""
    # Or to the float16 that checkpoints are stored in.
    step = max(torch.finfo(own.dtype).eps, torch.finfo(torch.float16).eps)
    a, b = own.float(), other.float().to(own.device)
    return not bool(((a - b).abs() > step * b.abs() + 6e-8).any())


def shards(entries: Iterable[Entry], limit: int) -> Iterator[list[Entry]]:
    """Tensors in groups of at most `limit` bytes; a larger one stands alone."""
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


def folder_beside(folder: Path, tower: str | Path) -> Path:
    """The folder of a part that a checkpoint lacks: in it, on disk, or from the hub."""
    for candidate in (folder / tower, Path(tower)):
        if candidate.is_dir():
            return candidate
    if not is_hub_id(str(tower)):
        raise ModelError(f"{folder}: the tower {str(tower)!r} is no folder and no hub id")
    return download(str(tower), None)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub repository, owner/name."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and ".." not in name


def download(repository: str, revision: str | None) -> Path:
    """A hub repository in the local cache: safetensors if it has any, else pickled files."""
    from huggingface_hub import snapshot_download

    small = ["*.json", "tokenizer.model", "merges.txt"]
    try:
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            folder = Path(
                snapshot_download(repository, revision=revision, allow_patterns=[*small, weights])
            )
            if any(folder.glob(weights)):
                return folder
    except (OSError, ValueError, RuntimeError) as fault:
        # The hub's own errors are OSErrors; no network and no cache end here too.
        raise ModelError(
            f"cannot fetch {repository} from the hub ({one_line(fault, 160)})"
        ) from None
    raise ModelError(f"{repository}: no weights (model.safetensors or pytorch_model.bin)")
