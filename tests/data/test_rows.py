"""Rows of configs: types that cost no copy, numbers that are no class, columns of paths, configs that are joined."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from xtremes_jax.arguments import DataArguments
from xtremes_jax.data.prepare import prepare
from xtremes_jax.data.sources import RawSplit, SplitRequest, load_splits
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import select_task

TEXT = datasets.Value("string")
LANGUAGES = datasets.ClassLabel(names=["en", "es", "fr"])


def clip(seed: int) -> bytes:
    out = io.BytesIO()
    samples = np.random.default_rng(seed).integers(-9000, 9000, 300 + seed, dtype=np.int16)
    soundfile.write(out, samples, 16_000, format="FLAC")
    return out.getvalue()


def table(languages: list[int], kind: datasets.ClassLabel) -> datasets.Dataset:
    """A row for each language id."""
    rows = range(len(languages))
    columns = {
        "audio": [{"bytes": clip(row), "path": f"{row}.flac"} for row in rows],
        "transcription": [f"text {row}" for row in rows],
        "lang_id": languages,
    }
    return datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio()).cast_column("lang_id", kind)


def load(path: Path, **flags) -> RawSplit:
    data = DataArguments(dataset_name=str(path), **flags)
    selection = select_task(
        task=data.task, language_group=data.language_group, target_column_name=data.target_column_name,
        dataset_name=data.dataset_name,
    )  # fmt: skip
    return load_splits(data, selection, {"train": SplitRequest("train")}, cache_dir=str(path.parent / "cache"))["train"]


@pytest.fixture
def plain(tmp_path):
    """Writes a parquet file without the library's own types, and gives its directory."""

    def call(columns: dict, name: str = "train", features: datasets.Features | None = None) -> Path:
        (tmp_path / "plain").mkdir(exist_ok=True)
        rows = pa.table(columns)
        if features is not None:
            rows = rows.replace_schema_metadata(features.arrow_schema.metadata)
        pq.write_table(rows, tmp_path / f"plain/{name}.parquet")
        return tmp_path / "plain"

    return call


@pytest.mark.parametrize("audio", ["binary", "large binary", "struct"])
def test_types_of_text_and_audio_cost_no_copy_of_the_audio(plain, tmp_path, audio):
    clips = [clip(0), clip(1)]
    stored = {
        "binary": pa.array(clips), "large binary": pa.array(clips, pa.large_binary()),
        "struct": pa.array([{"bytes": data, "path": None} for data in clips]),
    }[audio]  # fmt: skip
    path = plain({"audio": stored, "transcription": pa.array(["hi", None], pa.large_string())})
    train = load(path, task="mls")
    assert train.targets() == ["hi", None] and [train.audio(row) for row in range(2)] == clips
    assert not list(tmp_path.rglob("cache-*.arrow"))


def test_configs_that_keep_text_in_other_ways_are_joined(tmp_path):
    for name, text in (("fr", TEXT), ("nl", datasets.Value("large_string"))):
        rows = table([0, 1], datasets.ClassLabel(names=[name, "x"])).cast_column("transcription", text)
        rows.save_to_disk(str(tmp_path / f"saved/mls.{name}"))
    train = load(tmp_path / "saved", task="mls")
    assert train.targets() == ["text 0", "text 1"] * 2 and train.languages == ["fr", "x", "nl", "x"]
    assert train.dataset.features["transcription"] == TEXT
    assert [train.audio(row) for row in range(4)] == [clip(0), clip(1)] * 2
    written = [path for path in (tmp_path / "saved").rglob("cache-*.arrow") if clip(0)[-50:] in path.read_bytes()]
    assert not written, "texts were written anew, audio was not"


def test_other_labels_of_chosen_rows_cost_no_copy_of_the_audio(tmp_path):
    configs = {
        f"fleurs.{name}": table([0, 1, 0], datasets.ClassLabel(names=[name, "fr_fr"])) for name in ("ja_jp", "ko_kr")
    }
    lines = ["---", "configs:"]
    for name, rows in configs.items():
        (tmp_path / "corpus" / name).mkdir(parents=True)
        rows.to_parquet(tmp_path / f"corpus/{name}/train.parquet")
        lines += [f"- config_name: {name}", f"  data_files: {name}/train.parquet"]
    (tmp_path / "corpus/README.md").write_text("\n".join([*lines, "---", ""]))
    path = tmp_path / "corpus"
    train = load(path, task="fleurs-lang_id", language_group="chinese_japanase_korean_cjk")
    assert train.languages == ["ja_jp", "ja_jp", "ko_kr", "ko_kr"] and train.label_names == ["ja_jp", "fr_fr", "ko_kr"]
    assert train.targets() == [0, 0, 2, 2] and train.audio(3) == clip(2)
    assert not list(tmp_path.rglob("cache-*.arrow"))


def test_numbers_that_are_no_class_are_left_for_the_person_to_see(plain, tmp_path):
    kinds = datasets.Features(
        audio=datasets.Audio(decode=False), intent_class=datasets.ClassLabel(names=["pay", "call"]), lang_id=LANGUAGES
    )
    columns = {
        "audio": pa.array([{"bytes": clip(row), "path": f"{row}.flac"} for row in range(4)]),
        "intent_class": [1, 7, None, 0], "lang_id": [2, 0, 9, -1],
    }  # fmt: skip
    train = load(plain(columns, features=kinds), task="minds14")
    assert train.targets() == [1, 7, None, 0] and train.languages == ["fr", "en", "all", "all"]
    options = {"kind": "classification", "num_frames": lambda samples: 1, "show_progress": False}
    prepared = prepare(train, cache_dir=tmp_path / "prepared", **options)
    assert prepared.references == ["call", "pay"]
    assert [skipped.reason for skipped in prepared.skipped] == [
        "its class 7 in column intent_class is not one of 0 to 1",
        "it has no class: column intent_class is null, negative or none of its classes",
    ]


@pytest.mark.parametrize("good", ["file", "address"])
def test_a_column_of_paths_is_known_by_any_of_the_first(plain, tmp_path, good):
    (tmp_path / "0.flac").write_bytes(clip(0))
    paths = ["/gone.flac", "long" * 100, str(tmp_path / "0.flac") if good == "file" else "s3://bucket/0.flac"]
    columns = {"audio": paths, "transcription": ["a", "b" * 300, "c"]}
    train = load(plain(columns), task="mls")
    assert train.dataset["audio"][2] == {"bytes": None, "path": paths[2]}
    if good == "file":
        assert train.audio(2).read_bytes() == clip(0)
    columns["transcription"][0] = "a" * 300
    with pytest.raises(InputError, match="--audio_column_name transcription: this column .* does not hold audio"):
        load(plain(columns), task="mls", audio_column_name="transcription")
