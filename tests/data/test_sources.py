"""Directories, hub ids and the demo corpus as splits; choice of configs, languages, columns and labels."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from xtremes_jax.arguments import DataArguments
from xtremes_jax.data.repository import Repository
from xtremes_jax.data.sources import SplitRequest, choose_configs, load_splits
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import select_task

TEXT, AUDIO = datasets.Value("string"), datasets.Audio(sampling_rate=16_000)
LANGUAGES = datasets.ClassLabel(names=["en", "es", "fr"])
GROUPS = datasets.ClassLabel(names=["western_european_we", "eastern_european_ee"])


def clip(seed: int) -> bytes:
    out = io.BytesIO()
    samples = np.random.default_rng(seed).integers(-9000, 9000, 300 + seed, dtype=np.int16)
    soundfile.write(out, samples, 16_000, format="FLAC")
    return out.getvalue()


def table(languages: list[int], kind: datasets.ClassLabel = LANGUAGES, **more) -> datasets.Dataset:
    """A row for each language id: columns file, audio, transcription, lang_id, and more given as (values, kind)."""
    rows = range(len(languages))
    columns = {
        "file": [f"{row}.flac" for row in rows],
        "audio": [{"bytes": clip(row), "path": f"{row}.flac"} for row in rows],
        "transcription": [f"text {row}" for row in rows],
        "lang_id": languages,
        **{name: values for name, (values, _) in more.items()},
    }
    made = datasets.Dataset.from_dict(columns).cast_column("audio", AUDIO).cast_column("lang_id", kind)
    for name, (_, kind) in more.items():
        made = made.cast_column(name, kind)
    return made


def write(folder: Path, configs: dict[str, dict[str, datasets.Dataset]]) -> Path:
    """A directory like a hub repository: parquet files, and a README.md that says which belong to which config."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            path = folder / config / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(path)
            lines += [f"  - split: {split}", f"    path: {config}/{split}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def load(path, splits=("train",), max_samples=None, **flags):
    data = DataArguments(dataset_name=str(path), **flags)
    selection = select_task(
        task=data.task, dataset_config_name=data.dataset_config_name, language=data.language,
        language_group=data.language_group, target_column_name=data.target_column_name, dataset_name=data.dataset_name,
    )  # fmt: skip
    wanted = {split: SplitRequest(split, max_samples) for split in splits}
    return load_splits(data, selection, wanted, cache_dir=cache_for(path))


def cache_for(path) -> str | None:
    """A cache next to the data; None where nothing is read."""
    return str(Path(path).parent / "cache") if Path(path).is_absolute() else None


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write(
        tmp_path / "corpus", {"mls.all": {"train": table([0, 0, 1, 2, 1]), "validation": table([1, 0])}}
    )  # fmt: skip


def test_a_directory_gives_its_rows_as_they_are(corpus):
    splits = load(corpus, ("train", "validation"), dataset_config_name="mls.all")
    train = splits["train"]
    assert (train.name, len(train), train.audio_column, train.target_column) == ("train", 5, "audio", "transcription")
    assert train.languages == ["en", "en", "es", "fr", "es"] and splits["validation"].languages == ["es", "en"]
    assert train.targets() == [f"text {row}" for row in range(5)] and train.label_names is None
    assert train.clip_names == [f"{row}.flac" for row in range(5)] and not train.synthetic
    assert [train.audio(row) for row in range(5)] == [clip(row) for row in range(5)]
    assert train.segment(0) is None and train.dataset.features["audio"] == datasets.Audio(decode=False)
    copy = pickle.loads(pickle.dumps(train))
    assert copy.audio(4) == clip(4) and copy.clip_names == train.clip_names


def test_one_language_of_a_config_of_all(corpus):
    train = load(corpus, task="mls", language="es")["train"]
    assert train.targets() == ["text 2", "text 4"] and train.languages == ["es", "es"]
    assert [train.audio(row) for row in range(2)] == [clip(2), clip(4)] and train.clip_names == ["2.flac", "4.flac"]
    assert load(corpus, dataset_config_name="mls.ES")["train"].languages == ["es", "es"], "case does not matter"
    with pytest.raises(InputError, match="--language pl: no clip of mls.all, split train.*en, es, fr"):
        load(corpus, task="mls", language="pl")


def test_all_of_configs_of_one_language_each(tmp_path):
    configs = {
        f"mls.{name}": {"train": table([0] * rows, datasets.ClassLabel(names=[name]), extra=(["x"] * rows, TEXT))}
        for name, rows in (("nl", 2), ("xx", 1))
    }
    configs["mls.nl"]["train"] = configs["mls.nl"]["train"].remove_columns("extra")
    configs["fleurs.nl_nl"] = configs["mls.nl"]
    train = load(write(tmp_path / "corpus", configs), task="mls")["train"]
    assert train.languages == ["nl", "nl", "xx"] and train.targets() == ["text 0", "text 1", "text 0"]
    assert "extra" not in train.dataset.column_names, "only the columns that all have"
    assert load(tmp_path / "corpus", dataset_config_name="mls.xx")["train"].languages == ["xx"]


def test_language_labels_of_single_configs_are_put_into_one_list(tmp_path):
    configs = {
        f"fleurs.{name}": {split: table([0] * rows, datasets.ClassLabel(names=[name])) for split in ("train", "test")}
        for name, rows in (("fr_fr", 1), ("de_de", 2))
    }
    splits = load(write(tmp_path / "corpus", configs), ("train", "test"), task="fleurs-lang_id")
    assert splits["train"].label_names == splits["test"].label_names == ["fr_fr", "de_de"]
    assert splits["test"].targets() == [0, 1, 1]


def test_all_languages_that_fail_are_named(tmp_path):
    good = table([0], datasets.ClassLabel(names=["x"]))
    bad = good.remove_columns("transcription")
    write(tmp_path / "corpus", {"mls.nl": {"train": bad}, "mls.fr": {"train": good}, "mls.de": {"test": good}})
    with pytest.raises(InputError, match="2 of 3 languages") as raised:
        load(tmp_path / "corpus", task="mls")
    assert "mls.nl: --target_column_name transcription: no such column" in str(raised.value)
    assert "mls.de: " in str(raised.value) and "mls.fr: " not in str(raised.value)


@pytest.mark.parametrize(
    ("configs", "flags", "chosen"),
    [
        (["mls.all", "mls.es"], {"task": "mls"}, ["mls.all"]),
        (["mls.all", "mls.es"], {"task": "mls", "language": "es"}, ["mls.es"]),
        (["mls.all", "mls.es"], {"task": "mls", "language": "fr"}, ["mls.all"]),
        (["mls.es", "voxpopuli.es", "mls.fr"], {"task": "mls"}, ["mls.es", "mls.fr"]),
        (["default"], {"task": "mls", "language": "fr"}, ["default"]),
        (["tr", "de"], {"task": "mls", "dataset_config_name": "tr"}, ["tr"]),
        (["fleurs.fr_fr", "fleurs.ja_jp", "fleurs.ko_kr"],
         {"task": "fleurs-asr", "language_group": "chinese_japanase_korean_cjk"}, ["fleurs.ja_jp", "fleurs.ko_kr"]),
        (["mls.es", "mls.fr"], {"task": "mls", "language": "de"}, "mls.de: no such config.*did you mean mls.es"),
        (["voxpopuli.all"], {"task": "mls"}, "mls.all: no such config.*There are: voxpopuli.all"),
        (["mls.es", "train"], {"task": "mls", "dataset_config_name": "tr"}, "tr: no such config"),
        (["fleurs.fr_fr"], {"task": "fleurs-asr", "language_group": "south_asian_sa"},
         "--language_group south_asian_sa: no such group of configs.*fleurs.fr_fr"),
    ],
)  # fmt: skip
def test_choice_of_configs(configs, flags, chosen):
    source = Repository("corpus", tuple(configs), load=lambda config, split: None)
    selection = select_task(dataset_name="corpus", **flags)
    if isinstance(chosen, list):
        assert choose_configs(source, selection) == chosen
    else:
        with pytest.raises(InputError, match=chosen):
            choose_configs(source, selection)


@pytest.mark.parametrize("with_ids", [True, False])
def test_a_language_group_is_found_by_its_id_or_its_languages(tmp_path, with_ids):
    names = datasets.ClassLabel(names=["en_us", "ru_ru", "fr_fr"])
    more = {"lang_group_id": ([0, 1, 0, 1], GROUPS)} if with_ids else {}
    # The fourth row's id says otherwise than its language: the reference goes by the id.
    path = write(tmp_path / "corpus", {"fleurs.all": {"train": table([0, 1, 2, 2], names, **more)}})
    train = load(path, task="fleurs-asr", language_group="eastern_european_ee")["train"]
    assert train.targets() == (["text 1", "text 3"] if with_ids else ["text 1"])
    with pytest.raises(InputError, match="--language_group south_asian_sa: no clip of fleurs.all"):
        load(path, task="fleurs-asr", language_group="south_asian_sa")
    with pytest.raises(InputError, match="--language fr: .*did you mean fr_fr"):
        load(path, task="fleurs-asr", language="fr")


def test_the_first_samples_are_taken(corpus):
    train = load(corpus, max_samples=3, task="mls")["train"]
    assert train.targets() == ["text 0", "text 1", "text 2"]
    assert len(train.languages) == len(train.clip_names) == len(train) == 3
    assert load(corpus, max_samples=1, task="mls", language="fr")["train"].targets() == ["text 3"], "of the language"
    assert len(load(corpus, max_samples=99, task="mls")["train"]) == 5


@pytest.mark.parametrize("single", [False, True])
def test_save_to_disk(tmp_path, single):
    rows = table([0, 2])
    saved = rows if single else datasets.DatasetDict(train=rows, validation=table([1]))
    saved.save_to_disk(str(tmp_path / "saved"))
    train = load(tmp_path / "saved", task="mls")["train"]
    assert train.languages == ["en", "fr"] and train.audio(1) == clip(1)
    with pytest.raises(InputError, match="test: no such split in config default.*There are: train"):
        load(tmp_path / "saved", ("test",), task="mls")


def test_save_to_disk_folders_are_configs(tmp_path):
    for name in ("fr", "nl"):
        rows = datasets.DatasetDict(train=table([0], datasets.ClassLabel(names=[name])))
        rows.save_to_disk(str(tmp_path / f"saved/mls.{name}"))
    assert load(tmp_path / "saved", task="mls")["train"].languages == ["fr", "nl"]


def test_a_folder_of_audio_files_needs_no_torchcodec(tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / "folder" / split
        folder.mkdir(parents=True)
        rows = [{"file_name": f"{row}.flac", "transcription": f"{split} {row}"} for row in range(3)]
        for row in range(3):
            (folder / f"{row}.flac").write_bytes(clip(row))
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    test = load(tmp_path / "folder", ("test",), task="mls", language="fr")["test"]
    assert test.targets() == ["test 0", "test 1", "test 2"] and test.languages == ["fr"] * 3
    assert test.audio(2) == tmp_path / "folder/test/2.flac"


@pytest.mark.parametrize("form", ["struct", "binary", "path"])
def test_parquet_without_the_library_s_own_types(tmp_path, form):
    (tmp_path / "plain").mkdir()
    (tmp_path / "0.flac").write_bytes(clip(0))
    values = {
        "struct": [{"bytes": clip(0), "path": "0.flac"}], "binary": [clip(0)], "path": [str(tmp_path / "0.flac")],
    }[form]  # fmt: skip
    rows = pa.table({"sound": values, "sentence": pa.array(["hi"], pa.large_string()), "locale": ["de"]})
    pq.write_table(rows, tmp_path / "plain/train.parquet")
    flags = {"audio_column_name": "sound", "target_column_name": "sentence"}
    train = load(tmp_path / "plain", task="mls", **flags)["train"]
    audio = train.audio(0)
    assert (audio.read_bytes() if form == "path" else audio) == clip(0)
    assert train.targets() == ["hi"] and train.languages == ["de"]
    assert train.clip_names == [{"struct": "0.flac", "binary": "row 0", "path": str(tmp_path / "0.flac")}[form]]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"target_column_name": "transcripton"}, "no such column in mls.all, split train: did you mean transcription"),
        ({"target_column_name": "file_"}, "did you mean file.*Its columns: file, audio, transcription, lang_id"),
        ({"audio_column_name": "sound"}, "--audio_column_name sound: no such column.*did you mean audio"),
        ({"audio_column_name": "transcription"}, "transcription: this column .* does not hold audio, it is text"),
        ({"audio_column_name": "lang_id"}, "lang_id: this column .* does not hold audio, it is 3 classes"),
        ({"target_column_name": "audio"}, "--target_column_name audio: this column .* holds audio.*predicts text"),
        ({"train_split_name": "trai"}, "trai: no such split in config mls.all: did you mean train"),
        ({"dataset_config_name": "voxpopuli.all", "task": "voxpopuli"}, "voxpopuli.all: no such config.*mls.all"),
    ],
)
def test_a_wrong_name_is_explained(corpus, flags, message):
    flags = {"task": "mls", **flags}
    with pytest.raises(InputError, match=message):
        load(corpus, (flags.get("train_split_name", "train"),), **flags)


def test_text_cannot_be_predicted_as_classes_of_another_kind(tmp_path):
    rows = table([0, 1], intent_class=([0.5, 1.5], datasets.Value("float64")))
    path = write(tmp_path / "corpus", {"minds14.all": {"train": rows}})
    with pytest.raises(InputError, match="intent_class: this column .* holds .*float64.*predicts classes"):
        load(path, task="minds14")


def test_class_ids(tmp_path):
    kind = datasets.ClassLabel(names=["pay", "call", "ask"])
    rows = table([0, 1, 2], intent_class=([2, 0, None], kind), number=([7, 10, 7], datasets.Value("int64")))
    path = write(tmp_path / "corpus", {"minds14.all": {"train": rows, "test": rows.select([1])}})
    splits = load(path, ("train", "test"), task="minds14")
    assert splits["train"].label_names == splits["test"].label_names == ["pay", "call", "ask"]
    assert splits["train"].targets() == [2, 0, None] and splits["test"].targets() == [0]
    numbered = load(path, task="minds14", target_column_name="number")["train"]
    assert numbered.label_names == ["7", "10"] and numbered.targets() == [0, 1, 0]


@pytest.mark.parametrize(("names", "message"), [(["call", "pay"], "order differs"), (["pay", "sing"], "no sing")])
def test_splits_with_other_classes_are_refused(tmp_path, names, message):
    splits = {
        split: table([0], intent_class=([0], datasets.ClassLabel(names=kind)))
        for split, kind in (("train", ["pay", "call"]), ("test", names))
    }
    path = write(tmp_path / "corpus", {"minds14.all": {"train": splits["train"]}, "minds14.en-US": splits})
    with pytest.raises(InputError):
        load(path, ("train", "test"), dataset_config_name="minds14.en-US")
    # One config cannot have two schemas in `datasets`; save_to_disk can.
    for split, rows in splits.items():
        rows.save_to_disk(str(tmp_path / f"saved/{split}"))
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=f"classes of split test are not those of train.*{message}"):
        load(tmp_path / "saved", ("train", "test"), task="minds14")


def test_a_split_of_class_names_as_text_joins_one_of_class_ids(tmp_path):
    kind = datasets.ClassLabel(names=["pay", "call"])
    kinds = {"train": (["pay", "call"], TEXT), "test": ([0, 1], kind)}
    for split, target in kinds.items():
        table([0, 1], intent_class=target).save_to_disk(str(tmp_path / f"saved/{split}"))
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    splits = load(tmp_path / "saved", ("train", "test"), task="minds14")
    assert splits["test"].label_names == ["call", "pay"], "the training split's, sorted"
    assert splits["train"].targets() == splits["test"].targets() == [1, 0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/place", "/no/such/place: no such file or directory"),
        ("notes.txt", "is a file that is no manifest"),
        ("empty", "cannot be loaded: .*directory that holds the parquet files"),
        ("clips.csv", "--dataset_name clips.csv: no such file"),
        ("nobody/nothing", "--dataset_name nobody/nothing cannot be loaded: .*Check spelling and network"),
    ],
)
def test_data_that_is_not_there(tmp_path, monkeypatch, name, message):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load(name, task="mls")


def test_the_demo_corpus_and_its_copies_are_synthetic(corpus, monkeypatch, caplog):
    (corpus / "SYNTHETIC").write_text("spoken by a machine")
    import xtremes_jax.data.demo

    monkeypatch.setattr(xtremes_jax.data.demo, "build_demo", lambda cache_dir: corpus)
    with caplog.at_level("INFO"):
        assert load("demo", task="mls", language="fr")["train"].synthetic
    assert "Split train: 1 clips (fr 1), SYNTHETIC speech." in caplog.text
    assert load(corpus, task="mls")["train"].synthetic


def test_nothing_imports_torch(corpus):
    program = (
        "import sys; from xtremes_jax.arguments import DataArguments; from xtremes_jax.tasks import select_task\n"
        "from xtremes_jax.data.sources import SplitRequest, load_splits\n"
        f"data = DataArguments(dataset_name={str(corpus)!r}, task='mls')\n"
        "chosen = select_task(task='mls', dataset_name=data.dataset_name)\n"
        f"split = load_splits(data, chosen, {{'a': SplitRequest('train')}}, {str(corpus.parent / 'cache')!r})['a']\n"
        "split.audio(0), split.targets()\n"
        "print(sorted({'torch', 'torchcodec', 'librosa', 'jax'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "[]"


DIRECTIONS = datasets.ClassLabel(names=["es", "fr", "it"])


def translated(languages: list[int], kind: datasets.ClassLabel = DIRECTIONS) -> datasets.Dataset:
    return table(languages, kind, translation=([f"words {row}" for row in range(len(languages))], TEXT))


@pytest.mark.parametrize("names", [["es", "fr", "it"], ["es.en", "fr.en", "it.en"]])
@pytest.mark.parametrize("asked", ["fr", "fr.en", "fr_en"])
def test_directions_of_one_config(tmp_path, names, asked):
    """The corpus names the language that is spoken, or the direction; so may the person."""
    kind = datasets.ClassLabel(names=names)
    path = write(tmp_path / "corpus", {"covost2.all": {"train": translated([0, 1, 1, 2], kind)}})
    every = load(path, dataset_config_name="covost2.all")["train"]
    assert every.languages == ["es.en", "fr.en", "fr.en", "it.en"] and every.label_names is None
    assert every.target_column == "translation" and every.targets() == [f"words {row}" for row in range(4)]
    one = load(path, task="covost2", language=asked)["train"]
    assert one.languages == ["fr.en"] * 2 and one.targets() == ["words 1", "words 2"]
    with pytest.raises(InputError, match=r"de\.en: no clip .* is in it.*Its languages: es\.en, fr\.en, it\.en"):
        load(path, task="covost2", language="de")


@pytest.mark.parametrize("configs", [("covost2.es.en", "covost2.fr.en"), ("covost2.es", "covost2.fr")])
def test_directions_in_configs_of_their_own(tmp_path, configs):
    es, fr = (translated([row] * 2).remove_columns("lang_id") for row in (0, 1))
    path = write(tmp_path / "corpus", {configs[0]: {"train": es}, configs[1]: {"train": fr}})
    assert load(path, task="covost2")["train"].languages == ["es.en"] * 2 + ["fr.en"] * 2
    assert load(path, task="covost2", language="fr")["train"].languages == ["fr.en"] * 2
    with pytest.raises(InputError, match=r"covost2\.de\.en: no such config.*There are: covost2\.es"):
        load(path, dataset_config_name="covost2.de.en")


def test_a_config_named_after_a_direction_and_a_manifest(tmp_path):
    path = write(tmp_path / "corpus", {"cy_en": {"train": translated([0, 0]).remove_columns("lang_id")}})
    assert load(path, task="covost2", dataset_config_name="cy_en")["train"].languages == ["cy.en"] * 2
    (tmp_path / "a.flac").write_bytes(clip(1))
    manifest = tmp_path / "clips.tsv"
    manifest.write_text("path\tsentence\ttranslation\tlocale\na.flac\tun\tone\tfr\na.flac\tdau\ttwo\tcy\n")
    split = load(manifest, task="covost2")["train"]
    assert split.languages == ["fr.en", "cy.en"] and split.targets() == ["one", "two"]
    manifest.write_text("path\tsentence\tlocale\na.flac\tun\tfr\n")
    with pytest.raises(InputError, match="--target_column_name translation: the manifest .* no such column"):
        load(manifest, task="covost2")


def test_a_table_without_translations_says_what_it_has(tmp_path):
    path = write(tmp_path / "corpus", {"covost2.all": {"train": table([1, 2])}})
    with pytest.raises(InputError, match=r"translation: no such column.*Its columns: file, audio, transcription"):
        load(path, task="covost2")
