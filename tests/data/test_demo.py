"""The demo corpus: the same bytes every time, XTREME-S's columns, and a test split that training has not seen."""

import ctypes
import io
import os
import threading
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from xtremes_jax.data import demo, demo_text, espeak
from xtremes_jax.data.demo import CONFIG_LANGUAGES, SPLITS, SPOKEN, SYNTHETIC_MARKER, Sizes, build_demo
from xtremes_jax.errors import InputError
from xtremes_jax.tasks import FLEURS_GROUPS, TASKS

SMALL = Sizes(mls=(4, 1, 2), voxpopuli=(2, 1, 1), fleurs=(3, 1, 2), minds14=(2, 1, 1), covost2=(3, 1, 2))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_demo(tmp_path_factory.mktemp("demo"), SMALL)


def rows(corpus, config, split):
    """Rows of a split as the hub's library reads them; audio as it is stored."""
    table = datasets.load_dataset(str(corpus), config, split=split, cache_dir=str(corpus.parent / "datasets"))
    return table.cast_column("audio", datasets.Audio(decode=False))


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_two_builds_are_equal_to_the_byte(corpus, tmp_path):
    again = build_demo(tmp_path, SMALL)
    first, second = contents(corpus), contents(again)
    assert list(first) == list(second) and len(first) == 2 + (4 * 6 + 4) * 3
    assert [name for name in first if first[name] != second[name]] == []
    assert again.name == corpus.name and again != corpus


def test_it_is_built_once_and_named_after_its_contents(corpus, monkeypatch):
    monkeypatch.setattr(demo, "_build", lambda *_: pytest.fail("built again"))
    assert build_demo(corpus.parent, SMALL) == corpus
    with pytest.raises(BaseException, match="built again"):
        build_demo(corpus.parent, Sizes(mls=(5, 1, 2)))
    assert {path.name for path in corpus.parent.iterdir()} <= {corpus.name, "datasets"}  # nothing half-built remains


def test_builders_at_the_same_time_do_not_disturb_each_other(tmp_path, monkeypatch):
    barrier = threading.Barrier(2)

    def build(out, sizes):
        (out / "file").write_text("whole")
        barrier.wait(timeout=30)  # both have found no corpus, and built one

    monkeypatch.setattr(demo, "_build", build)
    results = []
    threads = [threading.Thread(target=lambda: results.append(build_demo(tmp_path, SMALL))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and results[0] == results[1]
    assert [path.name for path in tmp_path.iterdir()] == [results[0].name]
    assert (results[0] / "file").read_text() == "whole"


def test_it_is_marked_synthetic(corpus):
    assert "Synthetic" in (corpus / SYNTHETIC_MARKER).read_text()
    assert "SYNTHETIC" in (corpus / "README.md").read_text()


COLUMNS = {
    "mls": "path audio transcription lang_id",
    "voxpopuli": "id path audio transcription lang_id",
    "fleurs": "id num_samples path audio transcription raw_transcription gender lang_id language lang_group_id",
    "minds14": "path audio transcription english_transcription intent_class lang_id",
    "covost2": "path audio transcription translation lang_id",
}


@pytest.mark.parametrize("dataset", COLUMNS)
def test_columns_labels_and_audio(dataset, corpus):
    languages, task = CONFIG_LANGUAGES[dataset], {"fleurs": "fleurs-asr"}.get(dataset, dataset)
    per_language = dict(zip(SPLITS, getattr(SMALL, dataset), strict=True))
    for split, count in per_language.items():
        table = rows(corpus, f"{dataset}.all", split)
        assert table.column_names == COLUMNS[dataset].split()
        labels = table.features["lang_id"]
        assert tuple(labels.names) == TASKS[task].languages
        count *= 14 if dataset == "minds14" else 1
        assert [labels.names[i] for i in table["lang_id"]] == [name for name in languages for _ in range(count)]
        for stored in table["audio"]:
            info = soundfile.info(io.BytesIO(stored["bytes"]))
            assert (info.format, info.subtype, info.channels) == ("FLAC", "PCM_16", 1)
            assert info.samplerate == (8000 if dataset == "minds14" else 16_000)
            assert 0.5 < info.duration < 8
    one = rows(corpus, f"{dataset}.{languages[3]}", "test")
    whole = rows(corpus, f"{dataset}.all", "test")
    place = [labels.names[i] for i in whole["lang_id"]].index(languages[3])
    assert one[:] == whole[place : place + len(one)]


def test_clips_are_loud_enough_and_differ(corpus):
    peaks, seen = [], set()
    for stored in rows(corpus, "mls.all", "train")["audio"]:
        samples, _ = soundfile.read(io.BytesIO(stored["bytes"]), dtype="int16")
        peaks.append(np.abs(samples.astype(int)).max())
        seen.add(samples.tobytes())
    assert len(seen) == 4 * 6 and min(peaks) > 9000 and max(peaks) < 32_000


def test_fleurs_sentences_are_shared_across_languages(corpus):
    for split, count in zip(SPLITS, SMALL.fleurs, strict=True):
        table = rows(corpus, "fleurs.all", split)
        ids = np.array(table["id"]).reshape(6, count)
        assert (ids == ids[0]).all() and len(set(ids[0])) == count
        for row in table:
            number = CONFIG_LANGUAGES["fleurs"].index(table.features["lang_id"].names[row["lang_id"]])
            language = demo_text.LANGUAGES[number]
            assert row["raw_transcription"] == demo_text.parallel_sentences(language)[row["id"]]
            assert row["transcription"] == row["raw_transcription"].lower().rstrip(".")
            group = table.features["lang_group_id"].names[row["lang_group_id"]]
            assert CONFIG_LANGUAGES["fleurs"][number] in FLEURS_GROUPS[group]
            assert row["num_samples"] == soundfile.info(io.BytesIO(row["audio"]["bytes"])).frames
            assert Path(row["path"]).name.startswith("mf"[row["gender"]])


def test_a_sentence_to_be_found_is_spoken_in_english_and_in_every_other_language(corpus):
    """What retrieval needs in each split: one utterance of a sentence in every language, English among them."""
    for split, count in zip(SPLITS, SMALL.fleurs, strict=True):
        table = rows(corpus, "fleurs.all", split)
        names = table.features["lang_id"].names
        speakers = {}
        for row in table:
            speakers.setdefault(row["id"], []).append(names[row["lang_id"]])
        assert len(speakers) == count and all(
            sorted(who) == sorted(CONFIG_LANGUAGES["fleurs"]) for who in speakers.values()
        )


def test_translations_are_the_same_sentence_in_english(corpus):
    seen = set()
    for split, count in zip(SPLITS, SMALL.covost2, strict=True):
        table = rows(corpus, "covost2.all", split)
        names = table.features["lang_id"].names
        assert len(table) == 4 * count
        english = demo_text.parallel_sentences("en")
        for row in table:
            spoken = demo_text.parallel_sentences(names[row["lang_id"]].removesuffix(".en"))
            assert spoken.index(row["transcription"]) == english.index(row["translation"])
        by_direction = {name: [] for name in CONFIG_LANGUAGES["covost2"]}
        for row in table:
            by_direction[names[row["lang_id"]]].append(row["translation"])
        assert len({tuple(texts) for texts in by_direction.values()}) == 1, "every sentence in every language"
        seen |= set(table["translation"])
        heard = {english[number] for number in rows(corpus, "fleurs.all", split)["id"]}
        assert not heard & set(table["translation"])
    assert len(seen) == sum(SMALL.covost2)


def test_intents(corpus):
    for split, count in zip(SPLITS, SMALL.minds14, strict=True):
        table = rows(corpus, "minds14.all", split)
        names = table.features["intent_class"].names
        assert names == sorted(names) and len(names) == 14  # XTREME-S has them in this order
        assert np.bincount(table["intent_class"]).tolist() == [6 * count] * 14
        english = [row for row in table if row["path"].startswith("minds14/en-US/")]
        assert len(english) == 14 * count
        assert all(row["transcription"] == row["english_transcription"] for row in english)


def test_covost2_comes_last_so_that_the_voices_of_all_else_stay_as_they_were():
    order = [dataset for dataset, *_ in demo._rows("es", SMALL)]
    assert list(dict.fromkeys(order)) == ["mls", "voxpopuli", "fleurs", "minds14", "covost2"]


@pytest.mark.parametrize("language", demo_text.LANGUAGES)
def test_at_full_size_every_test_sentence_is_new_and_made_of_known_words(language):
    texts = {}
    for dataset, split, _, row in demo._rows(language, Sizes()):
        texts.setdefault((dataset, split), []).append(row["transcription"])
    for dataset in (name for name, spoken in SPOKEN.items() if language in spoken):
        train, validation, test = (texts[dataset, split] for split in SPLITS)
        assert len({*train, *validation, *test}) == len(train) + len(validation) + len(test)
        words = {word for text in train for word in text.split()}
        assert {word for text in test + validation for word in text.split()} <= words, dataset
    commands = texts["mls", "train"]
    assert len(commands) == Sizes().mls[0] and 40 <= len({w for text in commands for w in text.split()}) <= 65
    assert {len(text.split()) for text in commands} <= set(range(3, 10))


def test_grammars_are_parallel_and_without_repetition():
    for language in demo_text.LANGUAGES:
        parallel, banking = demo_text.parallel_sentences(language), demo_text.banking_sentences(language)
        assert len(parallel) == len(set(parallel)) == 6 * 6 * 8 * 6
        assert [len(set(sentences)) for sentences in banking] == [32] * 14
        everything = [text for pattern in demo_text.command_sentences(language) for text in pattern]
        assert len(everything) == len(set(everything))
    assert demo_text.parallel_sentences("de")[-1] == "Ihre Tante zeigt nach dem Essen zwei Zitronen."
    assert demo_text.parallel_sentences("en")[-1] == "Her aunt shows two lemons after lunch."
    assert demo_text.banking_sentences("pl")[0][1] == "mam pytanie o użycie karty za granicą teraz"


def test_speech_is_the_same_whatever_was_spoken_before_it_elsewhere():
    sentence = espeak.Utterance("zażółć gęślą jaźń", "pl+f2", 160, 50)
    rate, (first,) = espeak.speak([sentence])
    _, (same, other) = espeak.speak([sentence, sentence._replace(voice="pl+m1")])
    assert rate == 22_050 and first.dtype == np.int16 and rate < len(first) < 3 * rate
    np.testing.assert_array_equal(first, same)
    assert len(other) != len(first) or (other != first).any()


def test_a_long_installation_path_is_no_obstacle(tmp_path, monkeypatch):
    """libespeak-ng cuts its data path at 160 bytes without a word."""
    import espeakng_loader

    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    package = Path(espeakng_loader.__file__).parent
    os.symlink(package, deep / "espeakng_loader")
    utterance = espeak.Utterance("uno dos tres", "es", 160, 50)
    expected = espeak.speak([utterance])[1][0]
    monkeypatch.setenv("PYTHONPATH", str(deep))
    np.testing.assert_array_equal(espeak.speak([utterance])[1][0], expected)


def test_failures_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="no espeak-ng voice is called 'xx-nowhere'"):
        espeak.speak([espeak.Utterance("a", "xx-nowhere", 160, 50)])
    monkeypatch.setattr(espeak, "speak", lambda _: (_ for _ in ()).throw(RuntimeError("no library")))
    with pytest.raises(InputError, match="no library.*espeakng-loader"):
        build_demo(tmp_path / "cache", SMALL)
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--cache_dir"):
        build_demo(tmp_path / "file", SMALL)


def test_the_default_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_build", lambda out, sizes: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build_demo(sizes=SMALL).parent == tmp_path / "cache" / "xtremes_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build_demo(sizes=SMALL).parent == tmp_path / "home" / ".cache" / "xtremes_jax"


def test_parquet_files_carry_the_hubs_features(corpus):
    schema = pq.read_schema(corpus / "mls" / "es" / "train.parquet")
    assert b'"_type": "Audio"' in schema.metadata[b"huggingface"]
    assert ctypes.sizeof(ctypes.c_short) == 2  # what espeak-ng's samples are
