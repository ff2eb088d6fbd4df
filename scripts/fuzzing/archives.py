"""Hostile data sets: FLEURS' archives, `save_to_disk` directories, parquet files."""

import contextlib
import gzip
import io
import json
import os
import tarfile
import tempfile
from functools import cache
from pathlib import Path
from random import Random

import datasets

from fuzzing.mutate import change_bytes, json_bytes
from fuzzing.reader import Place, Reader, require
from fuzzing.sound import _clip
from xtremes_jax.arguments import DataArguments
from xtremes_jax.data.repository import open_repository
from xtremes_jax.data.sources import SplitRequest, load_splits
from xtremes_jax.data.xtreme_s import load_config
from xtremes_jax.tasks import select_task

_LANGUAGE = "fr_fr"
_ROW = ["7", "0.wav", "Ab c.", "ab c", "a b | c |", "3200", "MALE"]


def _member(random: Random, name: str, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    kind = random.randrange(20)
    if kind == 0:
        info.name = random.choice(
            ("../outside/new.wav", "/tmp/outside.wav", "validation/../../../x", "~/x", "a\\..\\x")
        )
    elif kind in (1, 2):
        info.type, info.size = random.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), 0
        info.linkname = random.choice(("../../../outside/secret.txt", "/etc/passwd", info.name, "0.wav", "a" * 5000))
    elif kind == 3:
        info.type, info.size = random.choice((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z")), 0
    elif kind == 4:
        info.mode = 0o7777
    elif kind == 5:
        info.size = random.choice((2**33, 2**40, len(data) + 10_000))
    elif kind == 6:
        info.name = random.choice(("a" * 300, "d/" * 200 + "x", "dev/\udcff.wav", ".", ""))
    return info, b"" if info.size == 0 else data


@cache
def _bomb(kind: str) -> bytes:
    """A gzip of a tar file that claims or holds gigabytes."""
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=1) as packed:
        info = tarfile.TarInfo("dev/0.wav")
        info.size = 2**31
        if kind == "header":
            info.type = random_type = tarfile.XHDTYPE
            require(random_type == b"x", info)
        packed.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(16):
            packed.write(b"\0" * 2**23)
    return stream.getvalue()


def hostile_archive(random: Random, root: Path) -> None:
    """Writes a mirror of FLEURS' repository with one archive and its listing."""
    base = root / "google" / "fleurs" / "data" / _LANGUAGE
    (base / "audio").mkdir(parents=True)
    rows = [list(_ROW) for _ in range(random.choice((1, 2, 3)))]
    if random.random() < 0.4:
        row = random.choice(rows)
        row[random.randrange(7)] = random.choice(
            ("", "-1", "9" * 30, "9" * 5000, "../../outside/secret.txt", "/etc/passwd", "x", "\0", "1e3", '"', "é")
        )
    text = "\n".join("\t".join(row) for row in rows) + "\n"
    data = text.encode() if random.random() < 0.7 else change_bytes(random, text.encode())
    (base / "dev.tsv").write_bytes(data)
    archive = base / "audio" / "dev.tar.gz"
    kind = random.random()
    if kind < 0.03:
        archive.write_bytes(_bomb(random.choice(("header", "member"))))
        return
    stream = io.BytesIO()
    form = random.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(
        fileobj=stream, mode=random.choice(("w:gz", "w:gz", "w:gz", "w", "w:bz2", "w:xz")), format=form
    ) as tar:
        for number in range(random.choice((1, 2, 4))):
            info, content = _member(random, f"dev/{number}.wav", _clip("WAV", "PCM_16", 16_000, 1))
            with contextlib.suppress(ValueError, OSError):  # a name that this format has no room for
                tar.addfile(info, io.BytesIO(content.ljust(info.size, b"\0")) if info.size < 2**20 else None)
    data = stream.getvalue()
    archive.write_bytes(change_bytes(random, data) if random.random() < 0.4 else data)


def _make_archive(random: Random, place: Place) -> None:
    hostile_archive(random, place.folder)


def _read_archive(random: Random, place: Place) -> None:
    with tempfile.TemporaryDirectory(dir=place.root / "tmp") as cache_dir:
        check_archive(place.folder, Path(cache_dir))
        require(not (place.root / "tmp" / "outside.wav").exists(), "written outside")


def check_archive(root: Path, cache_dir: Path) -> None:
    """Loads the split; what was unpacked lies in its folder alone, and holds neither links out of it nor devices."""
    table = load_config(f"fleurs.{_LANGUAGE}", "validation", root, str(cache_dir))
    require(len(table) > 0, table)
    for path in cache_dir.rglob("*"):
        require(path.is_dir() or path.is_file() or path.is_symlink(), path)
        require(Path(os.path.realpath(path)).is_relative_to(os.path.realpath(cache_dir)), path)


@cache
def _saved(kind: str) -> dict[str, bytes]:
    """Files of a data set that was saved, by their paths in its folder."""
    clips = [_clip("WAV", "PCM_16", 16_000, 1)] * 2
    table = datasets.Dataset.from_dict({"audio": clips, "transcription": ["ab", "c"], "lang_id": [0, 1]})
    with tempfile.TemporaryDirectory() as folder:
        if kind == "parquet":
            table.to_parquet(str(Path(folder) / "train-00000-of-00001.parquet"))
        elif kind == "dict":
            datasets.DatasetDict({"train": table}).save_to_disk(folder)
        else:
            table.save_to_disk(folder)
        found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def hostile_saved(random: Random, folder: Path, kind: str) -> None:
    """Writes a saved data set with one or all of its files changed."""
    files = _saved(kind)
    changed = random.choice((*files, None))
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if changed not in (name, None):
            path.write_bytes(data)
        elif name.endswith(".json"):
            value = json.loads(data)
            if "_data_files" in value and random.random() < 0.3:
                value["_data_files"] = [{"filename": random.choice(("../outside/x.arrow", "/etc/passwd", ".."))}]
            if "splits" in value and random.random() < 0.3:
                value["splits"] = [random.choice(("../outside", "/", ".."))]
            path.write_bytes(json_bytes(random, value) if random.random() < 0.7 else json.dumps(value).encode())
        else:
            path.write_bytes(change_bytes(random, data) if random.random() < 0.8 else data)
    for name, data in _saved("single").items():
        (folder.parent / "outside" / ("x.arrow" if name.endswith(".arrow") else name)).write_bytes(data)


def _make_saved(random: Random, place: Place) -> None:
    hostile_saved(random, place.folder, random.choice(("single", "dict")))


def _make_parquet(random: Random, place: Place) -> None:
    hostile_saved(random, place.folder, "parquet")


def _read_saved(random: Random, place: Place) -> None:
    with tempfile.TemporaryDirectory(dir=place.root / "tmp") as cache_dir:
        check_saved(place.folder, Path(cache_dir))


def check_saved(folder: Path, cache_dir: Path) -> None:
    """Loads the training split; none of its files may lie outside the folder."""
    selection = select_task(task="fleurs-asr", dataset_name=str(folder))
    data = DataArguments(dataset_name=str(folder))
    raw = load_splits(data, selection, {"train": SplitRequest("train")}, str(cache_dir))["train"]
    require(len(raw) == len(raw.languages) == len(raw.clip_names), raw)
    for part in raw.dataset.cache_files:
        where = Path(os.path.realpath(part["filename"]))
        roots = (os.path.realpath(folder), os.path.realpath(cache_dir))
        require(any(where.is_relative_to(root) for root in roots), where)
    require(len(list(raw.stored(range(len(raw))))) == len(raw) and len(raw.targets()) == len(raw), raw)


def _read_parquet(random: Random, place: Place) -> None:
    with tempfile.TemporaryDirectory(dir=place.root / "tmp") as cache_dir:
        table = open_repository(str(place.folder), cache_dir=cache_dir).load("default", "train")
        require(len(table) >= 0 and isinstance(table.column_names, list), table)


READERS = {
    "archive": Reader("archive", _make_archive, _read_archive),
    "saved": Reader("saved", _make_saved, _read_saved, also_named=("split train",)),
    "parquet": Reader("parquet", _make_parquet, _read_parquet, also_named=("config default",)),
}
