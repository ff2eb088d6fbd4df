"""`google/xtreme_s` from its maintained sources: small parquet files in their schemas, in a mirror of the hub."""

import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from xtremes_jax.arguments import DataArguments
from xtremes_jax.data import xtreme_s
from xtremes_jax.data.sources import SplitRequest, load_splits
from xtremes_jax.data.xtreme_s import CONVERTED, MAIN, resolve
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import FLEURS_GROUPS, FLEURS_LANGUAGES, select_task

TEXT = datasets.Value("string")
rng = np.random.default_rng()


def clip(extension: str = "FLAC") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, rng.integers(-9000, 9000, rng.integers(300, 900), dtype=np.int16), 16_000, format=extension)
    return out.getvalue()


def write(path: Path, columns: dict, kinds: dict | None = None) -> None:
    """A parquet file as the hub has it: the audio is bytes and a path, and the schema says that it is audio."""
    rows = len(next(iter(columns.values())))
    names = columns.pop("audio_names", [None] * rows)
    columns["audio"] = [{"bytes": clip(), "path": name} for name in names]
    table = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(sampling_rate=16_000))
    for name, kind in (kinds or {}).items():
        table = table.cast_column(name, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)


def mls(texts: list[str], ids: list[str] | None = None) -> dict:
    rows = len(texts)
    ids = ids or [f"{text}_1_{row:06}" for row, text in enumerate(texts)]
    return {
        "original_path": ["http://www.archive.org/download/book_0911/book_01_64kb.mp3"] * rows,
        "begin_time": [0.0] * rows, "end_time": [1.0] * rows,
        "transcript": texts, "audio_duration": [1.0] * rows, "speaker_id": ["7"] * rows, "chapter_id": ["9"] * rows,
        "id": ids,
    }  # fmt: skip


def copies_of_audio(root: Path) -> list[Path]:
    """What `datasets` writes where it cannot change a table in place: a new file of all its columns."""
    return list(root.rglob("cache-*.arrow"))


def load(root: Path, splits=("train",), **flags):
    data = DataArguments(data_dir=str(root), **flags)
    selection = select_task(
        task=data.task, dataset_config_name=data.dataset_config_name, language=data.language,
        language_group=data.language_group, target_column_name=data.target_column_name,
    )  # fmt: skip
    wanted = {split: SplitRequest(split) for split in splits}
    return load_splits(data, selection, wanted, cache_dir=str(root / "cache"))


@pytest.mark.parametrize(
    ("config", "repository", "source", "revisions", "train", "validation"),
    [
        ("mls.nl", "facebook/multilingual_librispeech", "dutch", (MAIN, CONVERTED), ("9_hours", "1_hours"), ("dev",)),
        ("mls.pt", "facebook/multilingual_librispeech", "portuguese", (MAIN, CONVERTED), ("9_hours", "1_hours"),
         ("dev",)),
        ("mls.en", "parler-tts/mls_eng", "default", (MAIN, CONVERTED), ("9_hours", "1_hours"), ("dev",)),
        ("voxpopuli.sl", "facebook/voxpopuli", "sl", (CONVERTED,), ("train",), ("validation",)),
        ("minds14.zh-CN", "PolyAI/minds14", "zh-CN", (MAIN, CONVERTED), ("train",), ("train",)),
        ("covost2.fr.en", "fixie-ai/covost2", "fr_en", (MAIN, CONVERTED), ("train",), ("validation",)),
        ("covost2.zh-CN.en", "fixie-ai/covost2", "zh-CN_en", (MAIN, CONVERTED), ("train",), ("validation",)),
        ("fleurs.yue_hant_hk", "google/fleurs", "yue_hant_hk", (CONVERTED,), ("train",), ("validation",)),
    ],
)  # fmt: skip
def test_each_config_has_its_source(config, repository, source, revisions, train, validation):
    origin = resolve(config)
    assert (origin.repository, origin.config, origin.revisions) == (repository, source, revisions)
    assert (origin.splits["train"], origin.splits["validation"]) == (train, validation)


def test_all_languages_of_all_tasks_resolve():
    counts = {dataset: len(languages) for dataset, languages in xtreme_s.LANGUAGES.items()}
    assert counts == {"mls": 8, "voxpopuli": 14, "minds14": 14, "fleurs": 102, "covost2": 21}
    for dataset, languages in xtreme_s.LANGUAGES.items():
        for language in languages:
            resolve(f"{dataset}.{language}")
    with pytest.raises(InputError, match=r"mls\.xx.*no such config.*mls\.nl"):
        resolve("mls.xx")


@pytest.mark.parametrize("pattern", ["{config}/{split}-00000-of-00001.parquet", "{config}/{split}/0000.parquet"])
def test_mls_trains_on_the_ten_hour_split_in_either_layout(tmp_path, pattern, caplog):
    root = tmp_path / "facebook/multilingual_librispeech"
    for split in ("train", "9_hours", "1_hours", "dev", "test"):
        write(root / pattern.format(config="dutch", split=split), mls([f"{split} een", f"{split} twee"]))
    with caplog.at_level("INFO"):
        splits = load(tmp_path, ("train", "validation", "test"), dataset_config_name="mls.nl")
    train = splits["train"]
    assert train.targets() == ["9_hours een", "9_hours twee", "1_hours een", "1_hours twee"]
    assert splits["validation"].targets() == ["dev een", "dev twee"]
    assert splits["test"].targets() == ["test een", "test twee"]
    assert train.languages == ["nl"] * 4
    assert train.dataset.features["lang_id"].names == ["nl", "en", "fr", "de", "it", "pl", "pt", "es"]
    assert train.clip_names[2] == "1_hours een_1_000000"
    assert soundfile.info(io.BytesIO(train.audio(3))).samplerate == 16_000
    assert "facebook/multilingual_librispeech, config dutch, split 9_hours + 1_hours" in caplog.text
    assert "transcript -> transcription" in caplog.text


@pytest.mark.parametrize("named_by", ["id", "path of the audio"])
def test_english_mls_is_picked_by_the_original_lists(tmp_path, named_by):
    root = tmp_path / "parler-tts/mls_eng/data"
    ids = ["10_2_000001", "10_2_000002", "11_4_000007", "12_6_000009"]
    columns = mls(["a", "b", "c", "d"], ids)
    if named_by != "id":
        del columns["id"]
        columns["audio_names"] = [f"{name}.flac" for name in ids]
    write(root / "train-00000-of-00001.parquet", columns)
    with pytest.raises(InputError, match="no 10-hour training split.*limited_supervision"):
        load(tmp_path, task="mls", language="en")
    for folder, name in (("9hr", ids[3]), ("1hr/0", ids[1])):
        listing = tmp_path / "mls_english/train/limited_supervision" / folder / "handles.txt"
        listing.parent.mkdir(parents=True)
        listing.write_text(name + "\n")
    train = load(tmp_path, task="mls", language="en")["train"]
    assert train.targets() == ["b", "d"] and train.languages == ["en", "en"]
    assert train.clip_names == [name if named_by == "id" else f"{name}.flac" for name in (ids[1], ids[3])]
    assert not copies_of_audio(tmp_path)


def test_all_languages_are_joined_in_order_and_all_that_fail_are_named(tmp_path):
    codes = dict(nl="dutch", fr="french", de="german", it="italian", pl="polish", pt="portuguese", es="spanish")
    for code, name in codes.items():
        if code not in ("pl", "it"):
            write(tmp_path / f"facebook/multilingual_librispeech/{name}/dev-0.parquet", mls([f"{code} text"]))
    write(tmp_path / "parler-tts/mls_eng/data/dev-0.parquet", mls(["en text"]))
    with pytest.raises(InputError) as raised:
        load(tmp_path, ("validation",), dataset_config_name="mls.all")
    message = str(raised.value)
    assert "2 of 8 languages" in message and "mls.pl: no parquet" in message and "mls.it: no parquet" in message
    assert "mls.nl" not in message and "hf download facebook/multilingual_librispeech" in message
    for name in ("polish", "italian"):
        write(tmp_path / f"facebook/multilingual_librispeech/{name}/dev-0.parquet", mls([f"{name} text"] * 2))
    split = load(tmp_path, ("validation",), dataset_config_name="mls.all")["validation"]
    assert split.languages == ["nl", "en", "fr", "de", "it", "it", "pl", "pl", "pt", "es"]
    assert split.targets()[1] == "en text" and split.targets()[4] == "italian text"


def voxpopuli(texts: list[str]) -> dict:
    rows = len(texts)
    return {
        "audio_id": [f"2017-{text}" for text in texts], "language": [3] * rows,
        "raw_text": [f"{text.title()}!" for text in texts], "normalized_text": texts,
        "gender": ["female"] * rows, "speaker_id": ["1"] * rows,
    }  # fmt: skip


def test_voxpopuli_takes_normalized_text_and_says_when_a_split_is_partial(tmp_path, caplog):
    names = ["en", "de", "fr", "es", "pl", "it", "ro", "hu", "cs", "nl", "fi", "hr", "sk", "sl"]
    kinds = {"language": datasets.ClassLabel(names=names)}
    root = tmp_path / "facebook/voxpopuli/pl"
    write(root / "partial-train/0000.parquet", voxpopuli(["jeden", "dwa"]), kinds)
    write(root / "partial-train/0001.parquet", voxpopuli(["trzy"]), kinds)
    write(root / "validation/0000.parquet", voxpopuli(["cztery"]), kinds)
    with caplog.at_level("WARNING"):
        splits = load(tmp_path, ("train", "validation"), task="voxpopuli", language="pl")
    assert splits["train"].targets() == ["jeden", "dwa", "trzy"]
    assert splits["train"].languages == ["pl"] * 3, "lang_id is ours, whatever the source's own column says"
    assert splits["train"].clip_names == ["2017-jeden", "2017-dwa", "2017-trzy"]
    assert {"id", "audio", "transcription", "lang_id"} <= set(splits["train"].dataset.column_names)
    assert [record.message[:18] for record in caplog.records] == ["voxpopuli.pl train"]


def minds(folder: str, files: list[str], intents: list[int]) -> dict:
    return {
        "path": [f"{folder}/{name}.wav" for name in files], "transcription": files, "english_transcription": files,
        "intent_class": intents, "lang_id": [6] * len(files),
    }  # fmt: skip


INTENTS = datasets.ClassLabel(names=["abroad", "address", "app_error"])


def test_minds14_is_split_by_the_lists_of_xtreme_s(tmp_path, caplog):
    kinds = {"intent_class": INTENTS, "lang_id": datasets.ClassLabel(names=list(xtreme_s.LANGUAGES["minds14"]))}
    names = ["a", "b", "c", "d", "e"]
    folder = "fr-FR~ADDRESS"
    write(tmp_path / "PolyAI/minds14/fr-FR/train-00000-of-00001.parquet", minds(folder, names, [0, 1, 2, 1, 0]), kinds)
    lists = tmp_path / "google/xtreme_s/minds14_splits"
    lists.mkdir(parents=True)
    for name, members in (("train", "cae"), ("dev", "dx"), ("test", "b")):
        lines = "".join(f"{folder}/{member}.wav\tsome text\tADDRESS\n" for member in members)
        (lists / f"{name}_fr-FR.tsv").write_text(lines)
    with caplog.at_level("WARNING"):
        splits = load(tmp_path, ("train", "validation", "test"), dataset_config_name="minds14.fr-FR")
    assert {role: split.targets() for role, split in splits.items()} == {
        "train": [0, 2, 0], "validation": [1], "test": [1],
    }  # fmt: skip
    assert splits["train"].clip_names == [f"{folder}/{name}.wav" for name in "ace"]
    assert splits["train"].label_names == INTENTS.names and splits["test"].languages == ["fr-FR"]
    assert not copies_of_audio(tmp_path)
    assert [record.message for record in caplog.records] == [
        f"minds14.fr-FR validation: 1 listed clips are not in the data, such as {folder}/x.wav."
    ]
    (lists / "test_fr-FR.tsv").write_text(f"{folder}/zzz.wav\n")
    with pytest.raises(InputError, match="none of the 1 listed clips"):
        load(tmp_path, ("test",), dataset_config_name="minds14.fr-FR")
    (lists / "test_fr-FR.tsv").unlink()
    with pytest.raises(InputError, match="has no file minds14_splits/test_fr-FR.tsv"):
        load(tmp_path, ("test",), dataset_config_name="minds14.fr-FR")


def test_listed_clips_are_found_by_the_end_of_a_path_and_languages_need_no_names(tmp_path):
    columns = minds("fr-FR~ADDRESS", ["a", "b", "c"], [1, 1, 1])
    columns["path"] = [f"/build/audio/{folder}/a.wav" for folder in ("fr-FR~ABROAD", "fr-FR~ADDRESS", "fr-FR~OTHER")]
    write(tmp_path / "PolyAI/minds14/fr-FR/train-0.parquet", columns, {"intent_class": INTENTS})
    lists = tmp_path / "google/xtreme_s/minds14_splits"
    lists.mkdir(parents=True)
    (lists / "test_fr-FR.tsv").write_text("fr-FR~ADDRESS/a.wav\n")
    split = load(tmp_path, ("test",), dataset_config_name="minds14.fr-FR")["test"]
    assert not copies_of_audio(tmp_path)
    assert split.clip_names == ["/build/audio/fr-FR~ADDRESS/a.wav"] and split.languages == ["fr-FR"]
    assert split.dataset.features["lang_id"].names == list(xtreme_s.LANGUAGES["minds14"])


def fleurs(language: str, texts: list[str]) -> dict:
    rows = len(texts)
    group = next(number for number, members in enumerate(FLEURS_GROUPS.values()) if language in members)
    return {
        "id": list(range(rows)), "num_samples": [600] * rows, "path": [f"{text}.wav" for text in texts],
        "transcription": texts, "raw_transcription": [text.title() for text in texts], "gender": [1] * rows,
        "lang_id": [FLEURS_LANGUAGES.index(language)] * rows, "language": ["Name"] * rows,
        "lang_group_id": [group] * rows,
    }  # fmt: skip


def covost2(texts: list[str], **more) -> dict:
    rows = len(texts)
    return {
        "client_id": ["c"] * rows, "file": [f"{text}.mp3" for text in texts],
        "sentence": [text.title() for text in texts], "translation": [f"{text} in english" for text in texts],
        "id": [f"id-{text}" for text in texts], **more,
    }  # fmt: skip


def test_covost2_has_the_columns_of_xtreme_s(tmp_path, caplog):
    root = tmp_path / "fixie-ai/covost2"
    for split in ("train", "validation", "test"):
        write(root / f"fr_en/{split}-00000-of-00001.parquet", covost2([f"{split} un", f"{split} deux"]))
    with caplog.at_level("INFO"):
        splits = load(tmp_path, ("train", "validation", "test"), task="covost2", language="fr")
    for name, split in splits.items():
        assert split.targets() == [f"{name} un in english", f"{name} deux in english"]
        assert split.languages == ["fr.en", "fr.en"] and split.clip_names == [f"{name} un.mp3", f"{name} deux.mp3"]
        assert {"path", "audio", "transcription", "translation", "lang_id"} <= set(split.dataset.column_names)
        assert split.dataset["transcription"][0] == f"{name} un".title() and split.label_names is None
        assert split.dataset.features["lang_id"].names == list(xtreme_s.LANGUAGES["covost2"])
        assert soundfile.info(io.BytesIO(split.audio(1))).samplerate == 16_000
    assert "fixie-ai/covost2, config fr_en, split train; sentence -> transcription, file -> path" in caplog.text


def test_covost2_trains_on_its_own_part_where_a_column_tells_it_apart(tmp_path):
    texts, parts = ["a", "b", "c", "d"], ["train", "dev", "train_covost", "test"]
    write(tmp_path / "fixie-ai/covost2/cy_en/train-0.parquet", covost2(texts, split=parts))
    split = load(tmp_path, ("train",), dataset_config_name="covost2.cy.en")["train"]
    assert split.targets() == ["a in english", "c in english"] and split.languages == ["cy.en"] * 2
    assert not copies_of_audio(tmp_path)


def test_all_directions_are_joined_and_the_missing_ones_named(tmp_path):
    held = xtreme_s.LANGUAGES["covost2"][:20]
    for name in held:
        source = name.removesuffix(".en")
        write(tmp_path / f"fixie-ai/covost2/{source}_en/validation/0000.parquet", covost2([source]))
    with pytest.raises(InputError, match=r"1 of 21 languages.*\n.*covost2.cy.en: no parquet files of split validation"):
        load(tmp_path, ("validation",), dataset_config_name="covost2.all")
    write(tmp_path / "fixie-ai/covost2/cy_en/validation/0000.parquet", covost2(["cy"] * 2))
    split = load(tmp_path, ("validation",), dataset_config_name="covost2.all")["validation"]
    assert split.languages == [*held, "cy.en", "cy.en"] and split.targets()[6] == "zh-CN in english"


KINDS = {
    "gender": datasets.ClassLabel(names=["male", "female", "other"]),
    "lang_id": datasets.ClassLabel(names=list(FLEURS_LANGUAGES)),
    "lang_group_id": datasets.ClassLabel(names=list(FLEURS_GROUPS)),
}


def archive(root: Path, language: str, split: str, texts: list[str], member: str = "{split}/{text}.wav") -> None:
    folder = root / "google/fleurs/data" / language
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"audio/{split}.tar.gz", "w:gz") as tar:
        for text in texts:
            data, info = clip("WAV"), tarfile.TarInfo(member.format(split=split, text=text))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    lines = [f'{row}\t{text}.wav\t"{text.title()}\t{text}\tc h\t600\tFEMALE' for row, text in enumerate(texts)]
    (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def test_fleurs_from_parquet_and_from_archives_is_the_same(tmp_path):
    write(tmp_path / "one/google/fleurs/fr_fr/validation/0000.parquet", fleurs("fr_fr", ["un", "deux"]), KINDS)
    archive(tmp_path / "two", "fr_fr", "dev", ["un", "deux"])
    one, two, again = (
        load(tmp_path / root, ("validation",), task="fleurs-lang_id", language="fr_fr")["validation"]
        for root in ("one", "two", "two")
    )
    for split in (one, two):
        assert split.targets() == [FLEURS_LANGUAGES.index("fr_fr")] * 2 and split.languages == ["fr_fr"] * 2
        assert split.label_names == list(FLEURS_LANGUAGES) and split.clip_names == ["un.wav", "deux.wav"]
        assert split.dataset["transcription"][:] == ["un", "deux"] and split.dataset["id"][:] == [0, 1]
    assert two.dataset["raw_transcription"][1] == '"Deux' and two.dataset["gender"][:] == [1, 1]
    assert soundfile.info(two.audio(1)).samplerate == 16_000
    assert two.audio(0) == again.audio(0), "the archive is unpacked once"


def test_a_group_of_fleurs_loads_only_its_languages(tmp_path):
    members = FLEURS_GROUPS["chinese_japanase_korean_cjk"]
    for language in (*members, "fr_fr"):
        write(tmp_path / f"google/fleurs/{language}/test/0000.parquet", fleurs(language, [language]), KINDS)
    split = load(tmp_path, ("test",), task="fleurs-asr", language_group="chinese_japanase_korean_cjk")["test"]
    assert split.languages == list(members) and split.targets() == list(members)


def test_a_broken_archive_or_one_that_reaches_outside_is_refused(tmp_path):
    archive(tmp_path, "fr_fr", "test", ["un"], member="../../{text}.wav")
    with pytest.raises(InputError, match="cannot be unpacked"):
        load(tmp_path, ("test",), task="fleurs-asr", language="fr_fr")
    path = tmp_path / "google/fleurs/data/fr_fr/audio/test.tar.gz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"test\.tar\.gz cannot be unpacked"):
        load(tmp_path, ("test",), task="fleurs-asr", language="fr_fr")


def test_archives_are_unpacked_whole_for_everybody_or_not_at_all(tmp_path):
    archive(tmp_path, "fr_fr", "test", ["un"])
    load(tmp_path, ("test",), task="fleurs-asr", language="fr_fr")
    (folder,) = (tmp_path / "cache/xtremes_jax_archives").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o755 and (folder / "test/un.wav").is_file()
    path = tmp_path / "google/fleurs/data/fr_fr/audio/test.tar.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="cannot be unpacked"):
        load(tmp_path, ("test",), task="fleurs-asr", language="fr_fr")
    assert list(folder.parent.iterdir()) == [folder], "nothing half unpacked is left"


def test_processes_that_unpack_at_the_same_time_share_one_folder(tmp_path, monkeypatch):
    archive(tmp_path, "fr_fr", "test", ["un"])
    path = tmp_path / "google/fleurs/data/fr_fr/audio/test.tar.gz"
    plain, folders = tarfile.TarFile.extractall, []

    def slow(members, folder, **options):
        plain(members, folder, **options)
        if not folders:
            folders.append(folder)
            folders.append(xtreme_s._unpack(path, tmp_path / "cache"))  # another process is quicker

    monkeypatch.setattr(tarfile.TarFile, "extractall", slow)
    assert xtreme_s._unpack(path, tmp_path / "cache") == folders[1]
    assert [folder.name for folder in folders[1].parent.iterdir()] == [folders[1].name]


@pytest.mark.parametrize(("old", "new", "said"), [("0\tun", "x\tun", "'x'"), ("600", "?", "'[?]'")])
def test_a_listing_without_numbers_is_refused(tmp_path, old, new, said):
    archive(tmp_path, "fr_fr", "test", ["un"])
    listing = tmp_path / "google/fleurs/data/fr_fr/test.tsv"
    listing.write_text(listing.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=f"test.tsv, line 1: {said} is no whole number"):
        load(tmp_path, ("test",), task="fleurs-asr", language="fr_fr")


class FakeHub:
    """Stands in for the hub's file system: remembers what was looked for, has files at one pattern.

    Like the hub's own it raises an error for a revision that is not there.
    """

    def __init__(self, holds: str, asked: list[str]):
        self.holds, self.asked = holds, asked

    def glob(self, pattern: str) -> list[str]:
        self.asked.append(pattern)
        if "@refs" in self.holds and "@main" in pattern:
            raise FileNotFoundError(f"{pattern} (revision not found)")
        return [pattern.replace("*", name) for name in ("0001", "0000")] if pattern == self.holds else []


def test_the_hub_is_asked_for_each_revision_and_layout(monkeypatch):
    asked: list[str] = []
    holds = "datasets/PolyAI/minds14@refs%2Fconvert%2Fparquet/de-DE/train/*.parquet"
    monkeypatch.setattr(xtreme_s.huggingface_hub, "HfFileSystem", lambda: FakeHub(holds, asked))
    files = xtreme_s.find_parquet(resolve("minds14.de-DE"), "train", None)
    address = "hf://datasets/PolyAI/minds14@refs%2Fconvert%2Fparquet/de-DE/train"
    assert files == [f"{address}/0000.parquet", f"{address}/0001.parquet"]
    assert xtreme_s.find_parquet(resolve("fleurs.de_de"), "train", None) == []
    del asked[asked.index(holds) + 1 :]
    assert asked[0] == "datasets/PolyAI/minds14@main/de-DE/train-*.parquet" and asked[-1] == holds


def test_without_network_the_person_is_told_of_the_mirror(monkeypatch, tmp_path):
    def unreachable():
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(xtreme_s.huggingface_hub, "HfFileSystem", unreachable)
    with pytest.raises(InputError, match="google/fleurs is not under --data_dir .* Name or service.*with a mirror"):
        load(tmp_path, task="fleurs-asr", language="fr_fr")
    with pytest.raises(InputError, match="--data_dir .*nowhere: no such directory"):
        load(tmp_path / "nowhere", task="mls", language="nl")


def test_an_unknown_split_is_listed(tmp_path):
    with pytest.raises(InputError, match="dev: no such split in mls.nl.*train, validation, test"):
        load(tmp_path, ("dev",), task="mls", language="nl")
