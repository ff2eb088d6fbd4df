"""Hostile checkpoints: safetensors, files by torch.save of both layouts, and indexes of shards."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import ml_dtypes
import numpy as np
from safetensors.numpy import save

from fuzzing.mutate import NUMBERS, OUTSIDE, change_bytes, hostile_value, json_bytes, to_json
from fuzzing.reader import Place, Reader, require
from xtremes_jax.models.weights import PICKLED, PICKLED_INDEX, SAFETENSORS, SAFETENSORS_INDEX, read_tensors

_BY_TORCH = Path(__file__).resolve().parents[2] / "tests" / "golden" / "weights"
_MARK = "executed"
"""The file that a pickle would make if its program were run, in the current directory."""


@cache
def _by_torch(kind: str) -> bytes:
    return (_BY_TORCH / kind / PICKLED).read_bytes()


@cache
def _safetensors() -> bytes:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"a.weight": values, "a.bias": values[0].astype(np.float16), "b": values.astype(ml_dtypes.bfloat16)}
    return save({**tensors, "empty": np.empty((0, 5), np.float32), "c": np.arange(3)}, metadata={"format": "pt"})


class _Command:
    """Pickled, it is a call of a command."""

    def __init__(self, call: Callable, *arguments: object):
        self._called = (call, arguments)

    def __reduce__(self):
        return self._called


def _program(random: Random) -> bytes:
    """A pickle that would run code, or eat memory."""
    touch = f"touch {_MARK}"
    call = random.choice((
        _Command(os.system, touch), _Command(eval, f"open({_MARK!r}, 'w')"), _Command(exec, f"open({_MARK!r}, 'w')"),
        _Command(open, _MARK, "w"), _Command(os.mkdir, _MARK), _Command(bytearray, 10**11), _Command(range, 10**18),
        _Command(np.zeros, 10**10),
    ))  # fmt: skip
    value = random.choice((call, {"weight": call}, {call: 1} if random.random() < 0.2 else [call], (call,) * 3))
    return pickle.dumps(value, protocol=random.choice((0, 1, 2, 3, 4, 5)))


def _odd_pickle(random: Random) -> bytes:
    """Hand-made instructions: deep nesting, endless doubling, huge claims, unknown globals, endless loops of marks."""
    return b"\x80\x02" + random.choice((
        b"(" * random.choice((10, 100_000)) + b"t.", b"]" * 100_000 + b".", b"(l" * 50_000 + b".",
        b"X" + struct.pack("<I", 2**31) + b"a.", b"\x8e" + struct.pack("<Q", 2**62) + b"a.", b"\x8b\xff\xff\xff\x7f1.",
        b"}" + b"".join(b"q%ch%c\x86" % (level, level) for level in range(60)) + b"K\x01s.",
        b"r\xff\xff\xff\x7f}.", b"p999999999999\n}.", b"I" + b"9" * 50_000 + b"\n.", b"L" + b"9" * 4000 + b"L\n.",
        b"ctorch._utils\n_rebuild_tensor_v2\n" * 2 + b"(tR.", b"cposix\nsystem\n(Vtouch " + _MARK.encode() + b"\ntR.",
        b"ccollections\nOrderedDict\n)R}U\x01aK\x01sb.", b"N." * 3, b"0" * 100, b"N0" * random.choice((100, 3_000_000)),
        b"}" + b"(K\x01K\x02u" * 100_000 + b".", b"Q" * 10, b"Vx\nQ.", b"\x82\x01.", b"i__main__\nx\n.",
    ))  # fmt: skip


def _archive(random: Random, data: bytes, compression: int = zipfile.ZIP_STORED, claim: int | None = None) -> bytes:
    """A zip by torch.save's layout around a data.pkl; `claim` is written over the sizes that it states."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(random.choice(("model/", "model/", "../", "/", "a\\")) + "data.pkl", data)
        archive.writestr("model/version", "3\n")
        archive.writestr("model/data/0", b"\0" * 96)
    whole = stream.getvalue()
    if claim is not None:
        old, new = len(data).to_bytes(4, "little"), claim.to_bytes(4, "little")
        whole = whole.replace(old, new)
    return whole


def _pickled(random: Random) -> bytes:
    kind = random.randrange(10)
    if kind < 4:
        return change_bytes(random, _by_torch(random.choice(("zip", "legacy"))))
    data = _program(random) if kind < 7 else _odd_pickle(random)
    if random.random() < 0.3:
        return data
    if random.random() < 0.3:  # behind the three pickles that the old layout starts with
        start = _by_torch("legacy")
        return start[: start.index(b".", start.index(b"little_endian")) + 1] + data
    if kind == 9:  # a bomb
        data = (b"N0" * 2_000_000)[: random.choice((4_000_000, 1_000_000))]
        kinds = (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        return _archive(random, data, random.choice(kinds), claim=random.choice((None, 100, 2**32 - 2)))
    return _archive(random, data, random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


@cache
def _large_bomb() -> bytes:
    """A megabyte that unpacks to a gigabyte, which the directory says is a hundred bytes."""
    stream = io.BytesIO()
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(b"\0" * (1 << 24)) for _ in range(72)) + packer.flush()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/version", "3\n")
        archive.writestr("model/data.pkl", packed)
    whole = bytearray(stream.getvalue())
    local, central = whole.index(b"model/data.pkl") - 30, whole.rindex(b"model/data.pkl") - 46
    whole[local + 8 : local + 10] = whole[central + 10 : central + 12] = (8).to_bytes(2, "little")
    whole[local + 22 : local + 26] = whole[central + 24 : central + 28] = (100).to_bytes(4, "little")
    return bytes(whole)


def _lying_safetensors(random: Random) -> bytes:
    """A header that claims any dtype, shape and place."""
    size = 10**12
    shape = random.choice(
        ([4], [2**40, 2**40], [size], [-1], [0], [], [1] * 1000, ["4"], [2**63, 2], None, [4, 0, 2**62])
    )
    ends = random.choice(
        ([0, 16], [0, size], [size, size + 16], [16, 0], [-16, 0], [0, 2**64], [0.5, 16], ["0", "16"], [0])
    )
    entry = {"dtype": random.choice(("F32", "F32", "BF16", "F8_E4M3", "Q4", "", 3, "I64", "BOOL")), "shape": shape,
             "data_offsets": ends}  # fmt: skip
    header: dict[str, object] = {random.choice(("a", "", "a" * 100_000, "../x", "\0")): entry}
    if random.random() < 0.3:
        header["b"] = dict(entry)
    if random.random() < 0.3:
        header["__metadata__"] = random.choice(
            ({"format": "pt"}, {"format": "flax"}, {"format": 3}, 3, {"a": "b"}, None)
        )
    if random.random() < 0.2:
        header["c"] = hostile_value(random)
    text = to_json(header).encode("utf-8", "surrogatepass")
    length = random.choice((len(text), len(text), len(text), len(text), *NUMBERS))
    return (length % 2**64).to_bytes(8, "little") + text + b"\1" * random.choice((0, 16, 64))


def _sharded(random: Random, folder: Path) -> None:
    """An index whose shards are absent, outside, links, folders, pipes, or of another kind."""
    suffix, index = random.choice(((".safetensors", SAFETENSORS_INDEX), (".bin", PICKLED_INDEX)))
    content = _safetensors() if suffix == ".safetensors" else _by_torch(random.choice(("zip", "legacy")))
    (folder / f"shard{suffix}").write_bytes(content if random.random() < 0.7 else change_bytes(random, content))
    (folder.parent / "outside" / f"model{suffix}").write_bytes(content)
    elsewhere = (f"../outside/model{suffix}", str(folder.parent / "outside" / f"model{suffix}"), OUTSIDE, "..", ".", "",
                 f"shard{suffix}\0", "c:shard", "a\\b", f"other{suffix}", "folder", "pipe", "loop",
                 "a" * 400)  # fmt: skip
    name = random.choice((f"shard{suffix}",) * 4 + elsewhere)
    weight_map: dict[str, object] = {"a.weight": name, "b": random.choice((name, f"shard{suffix}"))}
    value = {"metadata": {"total_size": random.choice((96, -1, 10**15))}, "weight_map": weight_map}
    data = json.dumps(value).encode() if random.random() < 0.5 else json_bytes(random, value)
    (folder / index).write_bytes(data)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    os.symlink("loop", folder / "loop")


def _unusual(random: Random, folder: Path) -> None:
    """The weights' file is a link, a folder, a pipe, or sparse and of a size that nobody has."""
    name = random.choice((SAFETENSORS, PICKLED, SAFETENSORS_INDEX))
    path, kind = folder / name, random.randrange(6)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        os.symlink(random.choice((name, "/dev/zero", "/nowhere", ".", "../outside/secret.txt", "/proc/self/mem")), path)
    else:
        head = random.choice(
            (_safetensors(), _by_torch("zip"), _by_torch("legacy"), b"", b"{", b"PK\x03\x04", b"\x80\x02")
        )
        path.write_bytes(head)
        os.truncate(path, random.choice((2**33, 2**40, 10)))


def hostile_weights(random: Random, folder: Path) -> None:
    """Writes one checkpoint into a folder."""
    kind = random.random()
    if kind < 0.2:
        data = _safetensors() if random.random() < 0.1 else change_bytes(random, _safetensors())
        (folder / SAFETENSORS).write_bytes(data)
    elif kind < 0.36:
        (folder / SAFETENSORS).write_bytes(_lying_safetensors(random))
    elif kind < 0.76:
        (folder / PICKLED).write_bytes(_pickled(random))
    elif kind < 0.92:
        _sharded(random, folder)
    elif kind < 0.995:
        _unusual(random, folder)
    else:
        (folder / PICKLED).write_bytes(_large_bomb())


def _make(random: Random, place: Place) -> None:
    hostile_weights(random, place.folder)


def _read(random: Random, place: Place) -> None:
    check_weights(place.folder)


def check_weights(folder: Path) -> None:
    """Reads every tensor of a checkpoint; none is larger than the files."""
    there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    for name, tensor in read_tensors(folder).items():
        require(isinstance(name, str) and isinstance(tensor, np.ndarray), (name, type(tensor)))
        require(tensor.nbytes <= there, (name, tensor.shape, tensor.dtype))
        require(tensor.size == 0 or tensor.ravel()[-1] is not None, name)


READERS = {"weights": Reader("weights", _make, _read)}
