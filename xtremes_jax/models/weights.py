"""Checkpoint files in and out, as NumPy arrays: safetensors and `pytorch_model.bin`, one file or sharded.

safetensors: https://github.com/huggingface/safetensors. Files by `torch.save` are read by `torch_file.py`, which runs
no pickled code. Arrays come as stored; `convert.py` renames and casts them.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

# Registers bfloat16 with NumPy, which safetensors then uses.
import ml_dtypes  # noqa: F401
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from xtremes_jax.errors import InputError
from xtremes_jax.models.config_fields import shown
from xtremes_jax.models.torch_file import read_torch_file
from xtremes_jax.small_files import UnusableFile, read_object

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
WEIGHT_FILES = (SAFETENSORS, SAFETENSORS_INDEX, PICKLED, PICKLED_INDEX)
"""What `read_tensors` looks for, in this order."""

ADAPTER_FILES = ("adapter.*.safetensors", "adapter.*.bin")
"""What the adapters of one language are called beside the weights, its name for the star; looked for in this order."""

# Flax, TensorFlow, fairseq and Lightning, ONNX, GGUF.
_OTHER_WEIGHTS = (".msgpack", ".h5", ".pt", ".ckpt", ".onnx", ".gguf")

MAX_SHARD_BYTES = 5_000_000_000

Reader = Callable[[], np.ndarray]


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name, read from disk when asked for, so that an 8 GB checkpoint is never held twice.

    Arrays come as stored (shape and dtype), C-contiguous. They may be views of the mapped file: read-only, then.
    """

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_tensors(directory: Path) -> Tensors:
    """Open the checkpoint in a directory; the first of `WEIGHT_FILES` that is there is used.

    Args:
        directory: a Transformers model directory.

    Returns:
        A lazy mapping from Hugging Face names to arrays of any dtype (bfloat16 through ml_dtypes).

    Raises:
        InputError: there are no weights, or a file is truncated, damaged, of another kind, or tries to run code.
    """
    directory = Path(directory)
    for name in WEIGHT_FILES:
        path = directory / name
        if not path.is_file():
            continue
        if path.suffix == ".json":
            return Tensors(_read_sharded(path))
        return Tensors(_read_file(path))
    others = sorted(path.name for path in directory.glob("*") if path.suffix in _OTHER_WEIGHTS)
    hint = "Copy the weights there, or name another model."
    if others:
        hint = f"It holds {', '.join(others)}, which cannot be used: save the model with PyTorch Transformers first."
    raise InputError(f"No weights in {directory}: looked for {', '.join(WEIGHT_FILES)}. {hint}")


def read_tensor_file(path: Path) -> Tensors:
    """Open one file of tensors, safetensors or by `torch.save`; lazily, and with the errors, as `read_tensors`."""
    return Tensors(_read_file(Path(path)))


def write_tensor_file(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one safetensors file, in place of any that is there."""
    # The library hands raw pointers to its writer: anything but C order would be written scrambled.
    arrays = {name: np.asarray(tensors[name], order="C") for name in tensors}
    path.touch()
    mode = path.stat().st_mode
    save_file(arrays, path, metadata={"format": "pt"})
    # The library makes files that only their owner may read, whatever the umask says.
    path.chmod(mode)


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold one object; InputError otherwise (see `small_files.read_object`)."""
    try:
        return read_object(path)
    except UnusableFile as error:
        raise InputError(f"{path} {error}. Download or export it again.") from error


def write_safetensors(
    directory: Path, tensors: Mapping[str, np.ndarray], max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[str]:
    """Write `model.safetensors`, or numbered shards with an index when the tensors take more than `max_shard_bytes`.

    Each file is written under a temporary name and renamed, and weights of an earlier export in the other layout are
    removed last: a reader finds the old weights or the new ones (but for shards that replace shards).

    Args:
        directory: made if absent.
        tensors: arrays by their Hugging Face names; only one shard is held in memory on top of the mapping's own.
        max_shard_bytes: largest shard; a single tensor above it gets a shard of its own.

    Returns:
        The names of the files, in order of writing.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = _plan_shards({name: tensors[name].nbytes for name in tensors}, max_shard_bytes)
    names = [SAFETENSORS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    staged = {name: directory / f".{name}.{os.getpid()}.tmp" for name in names}
    total = 0
    try:
        for name, members in zip(names, shards, strict=True):
            arrays = {member: tensors[member] for member in members}
            total += sum(array.nbytes for array in arrays.values())
            write_tensor_file(staged[name], arrays)
        if len(shards) > 1:
            weight_map = {member: name for name, members in zip(names, shards, strict=True) for member in members}
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            staged[SAFETENSORS_INDEX] = directory / f".{SAFETENSORS_INDEX}.{os.getpid()}.tmp"
            staged[SAFETENSORS_INDEX].write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for name, path in staged.items():
            os.replace(path, directory / name)
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)
    for old in (directory / SAFETENSORS, directory / SAFETENSORS_INDEX, *directory.glob("model-*-of-*.safetensors")):
        if old.name not in staged:
            old.unlink(missing_ok=True)
    return list(staged)


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _plan_shards(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """Names in their order, cut into runs of at most `max_bytes`; always at least one run."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _read_sharded(index_path: Path) -> dict[str, Reader]:
    """The shards that an index names, which must be plain names of files beside it."""
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputError(f'{index_path} has no "weight_map" from tensor names to file names. Download it again.')
    listed: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        listed.setdefault(shard, []).append(name)
    readers: dict[str, Reader] = {}
    for shard, names in sorted(listed.items()):
        if shard in ("", ".", "..") or any(character in shard for character in "/\\\0:"):
            raise InputError(f"{index_path} names the shard {shown(shard)}, which is not a plain file name: refused.")
        path = index_path.parent / shard
        if not os.path.isfile(path):  # Path.is_file raises an error where a name is too long
            what = f"{index_path} names the shard {shown(shard)}, which is missing or no file."
            raise InputError(f"{what} Download the whole model again.")
        found = _read_file(path)
        missing = [name for name in names if name not in found]
        if missing:
            raise InputError(
                f"{path} lacks {shown(missing[0])} and {len(missing) - 1} more that {index_path.name} lists."
            )
        # A tensor that the index does not list is still handed on, so that the conversion can report it by name.
        readers.update({name: read for name, read in found.items() if weight_map.get(name, shard) == shard})
    return readers


def _read_file(path: Path) -> dict[str, Reader]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)


def _read_safetensors(path: Path) -> dict[str, Reader]:
    """One safetensors file. The library validates the header against the file's size."""
    try:
        handle = safe_open(path, framework="np")
        names = list(handle.keys())
        layout = (handle.metadata() or {}).get("format")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or no safetensors file ({error}). Download it again.") from error
    if layout in ("tf", "flax"):
        raise InputError(f"{path} holds {layout} weights. Save the model with PyTorch Transformers first.")

    def read(name: str) -> np.ndarray:
        try:
            return handle.get_tensor(name)
        except (SafetensorError, AttributeError, TypeError, KeyError) as error:
            raise InputError(f"{path}: tensor {name} cannot be read ({error}).") from error

    return {name: partial(read, name) for name in names}
