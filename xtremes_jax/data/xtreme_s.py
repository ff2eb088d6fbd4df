"""`google/xtreme_s` today: each of its configs, read from the source that is still maintained.

The benchmark's own repository is a Python loading script, which `datasets` has not run since version 4. What the script
made (columns, splits, which clips) is made here from the parquet files of the original data sets instead. BABEL comes
from the user's disk: `babel.py`.

Clusters without a network read a mirror: `--data_dir ROOT` with copies of the repositories under `ROOT/<owner>/<name>`.
`hf download PolyAI/minds14 --repo-type dataset --local-dir ROOT/PolyAI/minds14` makes one (FLEURS and VoxPopuli with
`--revision refs/convert/parquet`). A repository that is not in the mirror is looked for on the hub.
"""

import csv
import gzip
import hashlib
import logging
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xtremes_jax.data.cache import build_directory
from xtremes_jax.data.repository import SPLIT_FLAGS, Repository, choose, first_line
from xtremes_jax.errors import InputError
from xtremes_jax.small_files import UnusableFile, read_text
from xtremes_jax.tasks import FLEURS_GROUPS, TASKS, XTREME_S

logger = logging.getLogger(__name__)

MAIN, CONVERTED = "main", "refs/convert/parquet"
LANGUAGES: dict[str, tuple[str, ...]] = {
    "mls": TASKS["mls"].languages,
    "voxpopuli": TASKS["voxpopuli"].languages,
    "minds14": TASKS["minds14"].languages,
    "fleurs": TASKS["fleurs-asr"].languages,
    "covost2": TASKS["covost2"].languages,
}
"""Data set -> its languages, in the order of the labels of `lang_id`."""

_MLS_CONFIGS = {
    "nl": "dutch", "fr": "french", "de": "german", "it": "italian", "pl": "polish", "pt": "portuguese", "es": "spanish",
}  # fmt: skip
_LIMITED = ("9_hours", "1_hours")
"""What XTREME-S trains MLS on: its limited split of 10 hours, which MLS stores as two parts, 9 hours and 1 hour."""
_COVOST2_RENAMES = {"sentence": "transcription", "file": "path"}
_COVOST2_TRAINING = ("train", "train_covost")
"""Where the source has a column `split`, the rows of these make up the training split, as in the original."""
_LARGEST_LISTING = 2**28
_LARGEST_PIECE = 2**26
_MOST_TIMES = 100
_SAME = {"train": ("train",), "validation": ("validation",), "test": ("test",)}


@dataclass(frozen=True)
class Origin:
    """Where one config of XTREME-S comes from."""

    repository: str
    """Hub id of a data set."""
    config: str
    """Its config."""
    revisions: tuple[str, ...]
    """Git revisions to look for parquet files in, in this order."""
    splits: Mapping[str, tuple[str, ...]]
    """Split of XTREME-S -> splits of the source, one after the other."""
    renames: Mapping[str, str] = field(default_factory=dict)
    """Column of the source -> column of XTREME-S."""


def resolve(config: str) -> Origin:
    """Where a config such as `mls.nl` comes from.

    MLS trains on its parts of 9 hours and 1 hour together: the benchmark is defined on the 10-hour limited split, not
    on the hundreds to thousands of hours of `train`.

    Raises:
        InputError: There is no such config.
    """
    dataset, _, language = config.partition(".")
    if language not in LANGUAGES.get(dataset, ()):
        raise choose("--dataset_config_name", config, _configs(), f"config in {XTREME_S}")
    if dataset == "mls":
        splits = {"train": _LIMITED, "validation": ("dev",), "test": ("test",)}
        renames = {"transcript": "transcription"}
        if language == "en":
            return Origin("parler-tts/mls_eng", "default", (MAIN, CONVERTED), splits, renames)
        repository = "facebook/multilingual_librispeech"
        return Origin(repository, _MLS_CONFIGS[language], (MAIN, CONVERTED), splits, renames)
    if dataset == "voxpopuli":
        renames = {"normalized_text": "transcription", "audio_id": "id"}
        return Origin("facebook/voxpopuli", language, (CONVERTED,), _SAME, renames)
    if dataset == "covost2":
        source = language.removesuffix(".en")
        return Origin("fixie-ai/covost2", f"{source}_en", (MAIN, CONVERTED), _SAME, _COVOST2_RENAMES)
    if dataset == "minds14":
        return Origin("PolyAI/minds14", language, (MAIN, CONVERTED), {split: ("train",) for split in _SAME})
    return Origin("google/fleurs", language, (CONVERTED,), _SAME)


def _configs() -> tuple[str, ...]:
    return tuple(f"{dataset}.{language}" for dataset, languages in LANGUAGES.items() for language in languages)


def open_xtreme_s(*, hub_root: str | None = None, cache_dir: str | None = None) -> Repository:
    """Opens all configs of one language but BABEL's: `mls.nl`, `voxpopuli.en`, `minds14.fr-FR`, `fleurs.fr_fr`, ….

    Args:
        hub_root: A local mirror of the hub (see the module); None reads the hub alone.
        cache_dir: Where `datasets` keeps its copies; None for its own default.

    Raises:
        InputError: The mirror is not a directory; when a config is loaded: its files cannot be found or fetched.
    """
    root = Path(hub_root) if hub_root is not None else None
    if root is not None and not root.is_dir():
        raise InputError(
            f"--data_dir {hub_root}: no such directory. For {XTREME_S} it is a mirror of the hub with repositories "
            "under <owner>/<name>; leave the flag out to read the hub itself."
        )

    def load(config: str, split: str) -> datasets.Dataset:
        return load_config(config, split, root, cache_dir)

    return Repository(XTREME_S, _configs(), load)


def load_config(config: str, split: str, root: Path | None, cache_dir: str | None) -> datasets.Dataset:
    """Loads one split of one config, in the columns of XTREME-S; audio is not decoded.

    Raises:
        InputError: No such split, or its files cannot be found or fetched.
    """
    origin = resolve(config)
    dataset, _, language = config.partition(".")
    if split not in origin.splits:
        raise choose(SPLIT_FLAGS, split, origin.splits, f"split in {config}")
    table, listed = _load_tables(config, origin, split, root, cache_dir)
    if dataset == "minds14":
        listed = _split_list(language, split, root)
    table = table.rename_columns({old: new for old, new in origin.renames.items() if old in table.column_names})
    # Rows are picked out last: `datasets` would write a copy of their audio to add a column afterwards.
    table = _with_language(table, LANGUAGES[dataset], language)
    if dataset == "covost2":
        return _rows_of_covost2(table, split)
    return table if listed is None else _keep_listed(table, listed, config, split)


def _load_tables(
    config: str, origin: Origin, split: str, root: Path | None, cache_dir: str | None
) -> tuple[datasets.Dataset, set[str] | None]:
    """The source's splits that make up `split`, one after the other, with a log line that says which.

    The second value lists the clips to be picked out of them; None for all.
    """
    names = origin.splits[split]
    files = [find_parquet(origin, name, root) for name in names]
    handles = None
    if config == "mls.en" and split == "train" and not all(files):
        # The English source has no limited split: its clips are picked out of the 44,500 hours by the original lists.
        names, handles = ("train",), _limited_handles(root)
        files = [find_parquet(origin, "train", root)]
    renamed = ", ".join(f"{old} -> {new}" for old, new in origin.renames.items())
    logger.info(
        "%s %s of %s comes from %s, config %s, split %s%s.",
        config, split, XTREME_S, origin.repository, origin.config, " + ".join(names), renamed and f"; {renamed}",
    )  # fmt: skip
    if config.startswith("fleurs.") and not all(files):
        return _load_fleurs_archive(origin.config, split, root, cache_dir), None
    for name, found in zip(names, files, strict=True):
        if not found:
            raise _not_found(config, origin, name, root)
        if "/partial-" in found[0]:
            logger.warning(
                "%s %s: only a part of this split has been converted to parquet on the hub, and only that is used.",
                config, split,
            )  # fmt: skip
    try:
        tables = [
            datasets.load_dataset("parquet", data_files={"rows": found}, split="rows", cache_dir=cache_dir)
            for found in files
        ]
    except Exception as error:  # network, permissions, truncated files: a dozen types
        raise InputError(
            f"{config}: the files of {origin.repository} cannot be read: {first_line(error)} Check the network, or the "
            "copy under --data_dir."
        ) from error
    return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables), handles


def _not_found(config: str, origin: Origin, split: str, root: Path | None) -> InputError:
    mirror = f"under --data_dir {root} nor " if root else ""
    return InputError(
        f"{config}: no parquet files of split {split}, config {origin.config}, {mirror}on the hub in "
        f"{origin.repository} ({' or '.join(origin.revisions)}). Get a copy with `hf download {origin.repository} "
        f"--repo-type dataset --revision {origin.revisions[-1]} --local-dir ROOT/{origin.repository}`, and give "
        "--data_dir ROOT."
    )


def find_parquet(origin: Origin, split: str, root: Path | None) -> list[str]:
    """Paths or `hf://` addresses of a split's parquet files, from the mirror if it has the repository, else the hub.

    Both layouts that the hub knows are looked for: `config/split-00000-of-00001.parquet` (as people upload them) and
    `config/split/0000.parquet` (as the hub converts them; `partial-split` where it stopped at 5 GB).

    Raises:
        InputError: The hub cannot be reached.
    """
    config = origin.config
    patterns = [f"{config}/{split}-*.parquet", f"{config}/{split}/*.parquet", f"{config}/partial-{split}/*.parquet"]
    if config == "default":
        patterns.insert(0, f"data/{split}-*.parquet")
    mirror = root / origin.repository if root is not None else None
    if mirror is not None and mirror.is_dir():
        found = (sorted(str(path) for path in mirror.glob(pattern)) for pattern in patterns)
        return next((paths for paths in found if paths), [])
    for revision in origin.revisions:
        address = f"datasets/{origin.repository}@{quote(revision, safe='')}"
        for pattern in patterns:
            try:
                paths = huggingface_hub.HfFileSystem().glob(f"{address}/{pattern}")
            except FileNotFoundError:  # no such repository, revision or folder: another may be there
                continue
            except Exception as error:  # the network's exceptions differ from version to version
                raise _unreachable(origin.repository, root, error) from error
            if paths:
                return [f"hf://{path}" for path in sorted(paths)]
    return []


def _unreachable(repository: str, root: Path | None, error: Exception) -> InputError:
    mirror = f"is not under --data_dir {root}, and " if root else ""
    return InputError(
        f"{repository} {mirror}cannot be read from the hub: {first_line(error)} Check the network, or give --data_dir "
        f"with a mirror that holds {repository}."
    )


def _fetch(repository: str, file: str, root: Path | None) -> Path:
    """One file of a repository, from the mirror if it has the repository, else from the hub (and its cache)."""
    if root is not None and (root / repository).is_dir():
        if not (root / repository / file).is_file():
            raise InputError(f"{root / repository} has no file {file}. Copy it there from the hub's {repository}.")
        return root / repository / file
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, repo_type="dataset"))
    except Exception as error:  # as in find_parquet
        raise _unreachable(f"{repository}/{file}", root, error) from error


def _split_list(language: str, split: str, root: Path | None) -> set[str]:
    """Clips of one of MInDS-14's splits: the source has a single one, XTREME-S drew three and lists them by path."""
    name = {"validation": "dev"}.get(split, split)
    path = _fetch(XTREME_S, f"minds14_splits/{name}_{language}.tsv", root)
    lines = _lines(path)
    return {line.partition("\t")[0].strip() for line in lines if line.strip()}


def _limited_handles(root: Path | None) -> set[str]:
    """Ids of English MLS's 9 hours and 1 hour, from the original lists under the mirror."""
    folders = ("parler-tts/mls_eng/limited_supervision", "mls_english/train/limited_supervision")
    lists = [path for folder in folders if root for path in sorted((root / folder).rglob("handles.txt"))]
    if not lists:
        raise InputError(
            "mls.en: parler-tts/mls_eng has no 10-hour training split. Take the folder limited_supervision of "
            "mls_english_opus.tar.gz (openslr.org/94), put it at ROOT/mls_english/train/limited_supervision, and give "
            "--data_dir ROOT; its clips are then picked out of the whole training split, which is large. Or use "
            "another --language."
        )
    return {line.strip() for path in lists for line in _lines(path) if line.strip()}


def _rows_of_covost2(table: datasets.Dataset, split: str) -> datasets.Dataset:
    """The rows that the original takes for a split, where a column still names CoVoST's own finer ones."""
    if "split" not in table.column_names:
        return table
    wanted = {"train": _COVOST2_TRAINING, "validation": ("validation", "dev")}.get(split, (split,))
    keep = np.flatnonzero(np.isin(np.array(table["split"][:], dtype=object), wanted))
    return table if len(keep) == len(table) else table.select(keep)


def _keep_listed(table: datasets.Dataset, listed: set[str], config: str, split: str) -> datasets.Dataset:
    """The rows whose clip is listed, by its id or by the end of a path: folder and file, or file without suffix."""
    values = pa.array(sorted(listed), pa.string())
    keep, seen = np.zeros(len(table), bool), set()
    for names in _names(table):
        folder_and_file = pc.replace_substring_regex(names, r"^.*/([^/]+/[^/]+)$", r"\1")
        stem = pc.replace_substring_regex(names, r"^(?:.*/)?([^/]+?)(?:\.[^./]*)?$", r"\1")
        for form in (names, folder_and_file, stem):
            found = pc.is_in(form, value_set=values)
            keep |= found.to_numpy()
            seen.update(pc.unique(form.filter(found)).to_pylist())
    if not keep.any():
        raise InputError(f"{config} {split}: none of the {len(listed)} listed clips is in the data. Is the copy whole?")
    if len(seen) < len(listed):
        missing = sorted(listed - seen)
        logger.warning("%s %s: %d listed clips are not in the data, such as %s.",
                       config, split, len(missing), missing[0])  # fmt: skip
    return table.select(np.flatnonzero(keep))


def _names(table: datasets.Dataset) -> Iterator[pa.ChunkedArray]:
    """Everything by which a row may be listed: its id, its paths, the path stored with its audio. Reads no audio.

    Which of them a source has, and which one holds the name of the lists, differs from source to source.
    """
    columns = [column for column in ("id", "audio_id", "path", "file", "audio") if column in table.column_names]
    arrow = table.select_columns(columns).with_format("arrow")[:]
    for column in columns:
        names = arrow[column]
        if pa.types.is_struct(names.type):
            names = pc.struct_field(names, "path")
        if pa.types.is_string(names.type) or pa.types.is_large_string(names.type):
            yield names.cast(pa.string())


def _with_language(table: datasets.Dataset, languages: Sequence[str], language: str) -> datasets.Dataset:
    """The table with a `lang_id` whose labels are the data set's languages."""
    labels = datasets.ClassLabel(names=list(languages))
    if "lang_id" in table.column_names:
        if getattr(table.features["lang_id"], "names", None) == labels.names:
            return table
        table = table.remove_columns("lang_id")
    return table.add_column("lang_id", np.full(len(table), languages.index(language)), feature=labels)


def _load_fleurs_archive(language: str, split: str, root: Path | None, cache_dir: str | None) -> datasets.Dataset:
    """FLEURS as its authors store it: `data/<language>/<split>.tsv` (no header) and `audio/<split>.tar.gz`."""
    source = {"validation": "dev"}.get(split, split)
    listing = _fetch("google/fleurs", f"data/{language}/{source}.tsv", root)
    archive = _fetch("google/fleurs", f"data/{language}/audio/{source}.tar.gz", root)
    folder = _unpack(archive, Path(cache_dir or datasets.config.HF_DATASETS_CACHE))
    rows = _rows_of_listing(listing)
    genders = {"MALE": 0, "FEMALE": 1, "OTHER": 2}
    text, count = datasets.Value("string"), datasets.Value("int32")
    features = {
        "id": count, "num_samples": count, "path": text, "audio": text, "transcription": text,
        "raw_transcription": text, "gender": datasets.ClassLabel(names=["male", "female", "other"]),
        "lang_group_id": datasets.ClassLabel(names=list(FLEURS_GROUPS)),
    }  # fmt: skip
    group = next(name for name, members in FLEURS_GROUPS.items() if language in members)
    columns = {
        "id": [_number(row[0], listing, number) for number, row in enumerate(rows, 1)],
        "num_samples": [_number(row[5], listing, number) for number, row in enumerate(rows, 1)],
        "path": [row[1] for row in rows],
        "audio": [str(folder / source / row[1]) for row in rows],
        "transcription": [row[3] for row in rows],
        "raw_transcription": [row[2] for row in rows],
        "gender": [genders.get(row[6].strip().upper(), 2) for row in rows],
        "lang_group_id": [group] * len(rows),
    }
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    return table.cast_column("audio", datasets.Audio(decode=False))


def _lines(path: Path) -> list[str]:
    try:
        return read_text(path, largest=_LARGEST_LISTING).splitlines()
    except UnusableFile as error:
        raise InputError(f"{path} {error}. Copy it again.") from error


def _rows_of_listing(listing: Path) -> list[list[str]]:
    """The seven columns of FLEURS, whose second names a file of the archive and never one elsewhere."""
    try:
        rows = list(csv.reader(_lines(listing), delimiter="\t", quoting=csv.QUOTE_NONE))
    except csv.Error as error:
        raise InputError(f"{listing}: {error}. Copy the file again.") from error
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) < 7), None)
    if wrong or not rows:
        raise InputError(f"{listing}, line {wrong or 1}: not the seven columns of FLEURS. Copy the file again.")
    for number, row in enumerate(rows, 1):
        if row[1] in ("", ".", "..") or "/" in row[1] or "\0" in row[1]:
            raise InputError(f"{listing}, line {number}: {ascii(row[1])[:80]} is no plain name of a file: refused.")
    return rows


def _number(text: str, listing: Path, line: int) -> int:
    try:
        number = int(text)
    except ValueError as error:
        raise InputError(f"{listing}, line {line}: {ascii(text)[:80]} is no whole number. Copy it again.") from error
    if not 0 <= number < 2**31:
        raise InputError(f"{listing}, line {line}: {number} is no id or number of samples. Copy it again.")
    return number


class _Headers:
    """A stream that tarfile may read small pieces of: a header that claims gigabytes would be read whole."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > _LARGEST_PIECE:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._stream.read(size)


class _Limited:
    """What `extractall` asks of each member: tarfile's own filter (nothing outside the folder, no devices), and in all
    no more than speech can be compressed to the size of the archive."""

    def __init__(self, archive: Path, size: int):
        self._archive, self._left = archive, size * _MOST_TIMES + _LARGEST_PIECE

    def __call__(self, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        self._left -= member.size + tarfile.BLOCKSIZE
        if self._left < 0:
            raise InputError(f"{self._archive} is refused: it unpacks to over {_MOST_TIMES} times its size.")
        return tarfile.data_filter(member, folder)


def _unpack(archive: Path, cache: Path) -> Path:
    """Unpacks an archive once into the cache, whole or not at all; its folder's name tells size and date."""
    stat = archive.stat()
    mark = hashlib.sha1(f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]

    def extract(folder: Path) -> None:
        try:
            with gzip.open(archive) as stream, tarfile.open(fileobj=_Headers(stream), mode="r:") as members:
                members.extractall(folder, filter=_Limited(archive, stat.st_size))
        except (tarfile.TarError, EOFError, OSError, ValueError, LookupError, zlib.error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"The archive {archive} cannot be unpacked into {cache}: {first_line(error)} Copy it again, or give a "
                "directory with more room by --cache_dir."
            ) from error

    return build_directory(cache / "xtremes_jax_archives" / mark, extract)
