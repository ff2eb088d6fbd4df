"""Manifests of audio paths: CSV, TSV and JSON lines, with a column of splits or a file for each."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from xtremes_jax.arguments import DataArguments
from xtremes_jax.data.manifest import manifest_configs, read_rows
from xtremes_jax.data.sources import SplitRequest, load_splits
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import select_task

ROWS = [
    {"path": "a.wav", "transcription": 'she said "yes, now"', "language": "en", "split": "train"},
    {"path": "sub/b.wav", "transcription": "zażółć gęślą", "language": "pl", "split": "train"},
    {"path": "c.wav", "transcription": "ok", "language": "en", "split": "test"},
]


@pytest.fixture
def folder(tmp_path, rng) -> Path:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", rng.normal(0, 0.1, 400), 8_000)
    return tmp_path


def write(path: Path, rows: list[dict]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        elif path.suffix == ".tsv":
            lines = [list(rows[0]), *(list(row.values()) for row in rows)]
            file.writelines("\t".join(map(str, line)) + "\n" for line in lines)
        else:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def load(path: Path, splits=("train",), **flags):
    data = DataArguments(dataset_name=str(path), **{"task": "mls", **flags})
    selection = select_task(
        task=data.task, language=data.language, target_column_name=data.target_column_name,
        dataset_name=data.dataset_name,
    )  # fmt: skip
    return load_splits(data, selection, {split: SplitRequest(split) for split in splits})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("layout", ["one file", "folder"])
def test_every_format_and_layout_gives_the_same_rows(folder, suffix, layout):
    if layout == "one file":
        path = write(folder / f"all{suffix}", ROWS)
    else:
        path = folder
        for split in ("train", "test"):
            write(folder / f"{split}{suffix}", [row for row in ROWS if row["split"] == split])
    splits = load(path, ("train", "test"))
    train, test = splits["train"], splits["test"]
    assert train.targets() == [ROWS[0]["transcription"], ROWS[1]["transcription"]] and test.targets() == ["ok"]
    assert train.languages == ["en", "pl"] and test.languages == ["en"]
    assert train.audio(1) == folder / "sub/b.wav" and train.segment(1) is None
    assert train.clip_names == [str(folder / "a.wav"), str(folder / "sub/b.wav")]
    assert load(path, language="pl")["train"].targets() == ["zażółć gęślą"]


def test_absolute_paths_stay(folder):
    path = write(folder / "m.csv", [{"path": str(folder / "c.wav"), "transcription": "x"}])
    assert load(path)["train"].audio(0) == folder / "c.wav"


def test_common_voice_is_understood(folder, caplog):
    (folder / "clips").mkdir()
    (folder / "a.wav").rename(folder / "clips/common_1.wav")
    rows = [{"client_id": "1", "path": "common_1.wav", "sentence": '"Hi', "locale": "en"}]
    write(folder / "dev.tsv", rows)
    write(folder / "train.tsv", rows)
    with caplog.at_level("INFO"):
        split = load(folder, ("validation",))["validation"]
    assert split.targets() == ['"Hi'] and split.languages == ["en"]
    assert split.audio(0) == folder / "clips/common_1.wav"
    assert "split validation is called dev here" in caplog.text
    assert "column sentence is taken as transcription" in caplog.text and "column path is taken as audio" in caplog.text


def test_nemo_segments_are_stretches_of_the_recording(folder):
    rows = [
        {"audio_filepath": "a.wav", "text": "one", "duration": 0.02},
        {"audio_filepath": "a.wav", "text": "two", "duration": 0.015, "offset": 0.01},
    ]
    split = load(write(folder / "train.jsonl", rows))["train"]
    assert split.targets() == ["one", "two"]
    assert split.segment(0) is None and split.segment(1) == (0.01, 0.025)
    assert split.audio(0) == split.audio(1) == folder / "a.wav"
    for odd in ({"offset": 1}, {"offset": 10**400, "duration": 1}):
        with pytest.raises(InputError, match="clip 1.*seconds"):
            load(write(folder / "train.jsonl", [{"audio_filepath": "a.wav", "text": "x"} | odd]))


def test_classes_are_text_and_must_be_those_of_the_training_split(folder):
    rows = [
        {"path": "a.wav", "intent_class": "pay", "split": "train"},
        {"path": "c.wav", "intent_class": "call", "split": "train"},
        {"path": "a.wav", "intent_class": "pay", "split": "test"},
    ]
    splits = load(write(folder / "m.csv", rows), ("train", "test"), task="minds14")
    assert splits["train"].label_names == splits["test"].label_names == ["call", "pay"]
    assert splits["train"].targets() == [1, 0] and splits["test"].targets() == [1]
    rows[2]["intent_class"] = "sing"
    with pytest.raises(InputError, match="classes of split test are not those of train, which has no sing"):
        load(write(folder / "m.csv", rows), ("train", "test"), task="minds14")


def test_missing_values_are_left_for_the_person_to_see(folder):
    rows = [{"path": "a.wav", "transcription": "x"}, {"path": None, "transcription": None}]
    split = load(write(folder / "m.jsonl", rows))["train"]
    assert split.targets() == ["x", None] and split.clip_names[1] == "row 1"
    with pytest.raises(InputError, match="the row has no audio"):
        split.audio(1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "m.csv is empty"),
        ("m.tsv", "path\ttranscription\n", "m.tsv is empty"),
        ("m.jsonl", "\n\n", "m.jsonl is empty"),
        ("m.csv", "path,transcription\na.wav,hi,there\n", "line 2: 3 values, but the header names 2 columns"),
        ("m.tsv", "path\ttranscription\na.wav\thi\tx\n", "line 2: 3 values.*Remove tabs"),
        ("m.jsonl", '{"path": "a.wav"}\n{"path": ', "line 2 is not valid JSON"),
        ("m.jsonl", '["a.wav"]\n', "line 1 must hold a JSON object"),
        ("m.csv", "clip,transcription\na.wav,hi\n", "--audio_column_name audio: the manifest .* clip, transcription"),
        ("m.csv", "path,transcripton\na.wav,hi\n", "--target_column_name transcription: .*mean transcripton"),
        ("m.csv", "path,transcription\n,hi\n", "names no audio file"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("header", "flags", "message"),
    [
        ("path,transcription", {"target_column_name": "gender", "task": "minds14"}, "--target_column_name gender: "),
        ("path,transcription", {"task": "minds14"}, "--target_column_name intent_class: .*Its columns: path, transcr"),
        ("path,language", {"task": "minds14"}, "--target_column_name intent_class: .*Its columns: path, language"),
        ("path,label", {"target_column_name": "lang_id", "task": "minds14"}, "--target_column_name lang_id: "),
        ("path,transcription", {"target_column_name": "raw_transcription"}, "raw_transcription: .*mean transcription"),
        ("path,transcription", {"audio_column_name": "soundfile"}, "--audio_column_name soundfile: "),
    ],
)
def test_a_column_that_was_named_has_no_substitute(folder, header, flags, message):
    (folder / "m.csv").write_text(f"{header}\na.wav,hi\n")
    with pytest.raises(InputError, match=message):
        load(folder / "m.csv", **flags)


def test_classes_have_substitutes_of_their_own_kind(folder):
    (folder / "m.csv").write_text("path,transcription,label,locale\na.wav,hi,pay,fr\n")
    assert load(folder / "m.csv", task="minds14")["train"].label_names == ["pay"]
    assert load(folder / "m.csv", task="fleurs-lang_id")["train"].label_names == ["fr"]


def test_paths_may_be_addresses_or_missing_or_too_long(folder):
    (folder / "clips").mkdir()
    (folder / "a.wav").rename(folder / "clips/z.wav")
    files = ["gone.wav", "s3://bucket/x.wav", "n" * 300 + ".wav", "z.wav"]
    split = load(write(folder / "train.tsv", [{"path": name, "sentence": "x"} for name in files]))["train"]
    assert split.audio(0) == folder / "clips/gone.wav" and split.audio(3) == folder / "clips/z.wav"
    assert split.dataset["audio"][1] == {"bytes": None, "path": "s3://bucket/x.wav"}


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"path,transcription\na.wav,caf\xe9\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_rows(tmp_path / "m.csv")


def test_splits_are_found_or_listed(folder):
    path = write(folder / "m.csv", [{key: row[key] for key in ("path", "transcription")} for row in ROWS])
    assert len(load(path, ("test",))["test"]) == 3, "without a column of splits, all rows are the one that is needed"
    with pytest.raises(InputError, match="no column `split`, and this run needs train and test"):
        load(path, ("train", "test"))
    with pytest.raises(InputError, match="validation: no such split in .*There are: train, test"):
        load(write(path, ROWS), ("validation",))


def test_a_folder_that_describes_itself_is_not_a_folder_of_manifests(folder):
    write(folder / "train.csv", ROWS)
    assert manifest_configs(folder) == {"default": folder}
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    assert manifest_configs(folder) == {}


def test_folders_of_manifests_are_configs(tmp_path, rng):
    for language in ("fr", "nl"):
        (tmp_path / f"mls.{language}").mkdir()
        soundfile.write(tmp_path / f"mls.{language}/x.wav", rng.normal(0, 0.1, 300), 8_000)
        write(tmp_path / f"mls.{language}/train.csv", [{"path": "x.wav", "text": language}])
    split = load(tmp_path)["train"]
    assert split.languages == ["fr", "nl"] and split.targets() == ["fr", "nl"]
    assert np.array_equal(soundfile.read(split.audio(1))[0], soundfile.read(tmp_path / "mls.nl/x.wav")[0])
