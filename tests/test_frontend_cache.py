"""Runs with `--cache_frontend`: the losses of runs without it, the front end computed once, new frames when it must."""

import dataclasses
import errno
import io
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from corpora import RATE, TINY, flac, write_corpus
from retrieval_corpus import write_retrieval_corpus
from runs import flags, parameters, rows, run_elsewhere

from xtremes_jax import train
from xtremes_jax.arguments import Arguments, parse_arguments
from xtremes_jax.corpus import SkippedClips, load_corpus
from xtremes_jax.data.prepare import PreparedSplit
from xtremes_jax.errors import InputError
from xtremes_jax.frontend_cache import store_name
from xtremes_jax.models import PRESETS
from xtremes_jax.starting import starting_point

EPOCHS = dict(
    freeze_feature_encoder=True, do_eval=None, save_strategy="no", max_steps=None, num_train_epochs=3,
    hidden_dropout=0.1, mask_time_prob=0.3, lr_scheduler_type="constant", max_buckets=1,
)  # fmt: skip
"""Three epochs of six steps with all the randomness there is."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The clips that are decoded, one after the other."""
    clips, read = [], PreparedSplit.read_audio
    monkeypatch.setattr(PreparedSplit, "read_audio", lambda split, clip: clips.append(clip) or read(split, clip))
    return clips


def losses(output: Path) -> list[float]:
    return [row["loss"] for row in rows(output / "metrics.jsonl")]


def run(corpus: Path, output: Path, cache: Path | None, config: str = "mls.all", **changes) -> list[float]:
    cached = {} if cache is None else {"cache_frontend": True, "frontend_cache_dir": cache}
    assert train.main(flags(corpus, output, config, **(EPOCHS | cached | changes))) == 0
    return losses(output)


def stores(cache: Path) -> set[str]:
    return {folder.name for folder in cache.iterdir()}


@pytest.fixture(scope="module")
def first(corpus, tmp_path_factory) -> Path:
    """A folder with the output of a cached run ("run") and its store ("cache")."""
    folder = tmp_path_factory.mktemp("first")
    run(corpus, folder / "run", folder / "cache")
    return folder


def test_losses_are_those_of_a_run_without_a_cache(corpus, first, tmp_path):
    plain, cached = run(corpus, tmp_path / "plain", None), losses(first / "run")
    assert len(cached) == len(plain) == 18 and cached != plain
    # In float32 the frames are rounded to bfloat16: by at most a 256th, each to its own side.
    np.testing.assert_allclose(cached, plain, rtol=1e-3)


def test_in_bfloat16_the_frames_are_what_they_were(corpus, tmp_path):
    plain = run(corpus, tmp_path / "plain", None, bf16=True)
    cached = run(corpus, tmp_path / "cached", tmp_path / "cache", bf16=True)
    np.testing.assert_allclose(cached, plain, rtol=1e-3)


def test_every_clip_is_decoded_once_and_never_in_a_second_run(corpus, first, tmp_path, decoded):
    changes = dict(max_buckets=2, per_device_train_batch_size=3)
    cached = run(corpus, tmp_path / "run", tmp_path / "cache", **changes)
    assert sorted(decoded) == list(range(24))
    decoded.clear()
    assert run(corpus, tmp_path / "again", tmp_path / "cache", **changes) == cached
    assert not decoded and len(stores(tmp_path / "cache")) == 1
    for name, value in parameters(tmp_path / "run").items():
        np.testing.assert_array_equal(parameters(tmp_path / "again")[name], value)
    for name in ("run", "again"):
        results = json.loads((tmp_path / name / "all_results.json").read_text())
        assert results["train_compilations"] == results["train_buckets"] == 2


def test_workers_read_the_same_frames(corpus, first, tmp_path):
    shutil.copytree(first / "cache", tmp_path / "cache")
    assert run(corpus, tmp_path / "run", tmp_path / "cache", dataloader_num_workers=1) == losses(first / "run")


def test_a_run_stopped_in_its_first_epoch_goes_on_with_what_is_stored(corpus, first, tmp_path, decoded):
    stopped = dict(num_train_epochs=None, max_steps=3, save_strategy="steps", save_steps=3)
    assert run(corpus, tmp_path / "run", tmp_path / "cache", **stopped) == losses(first / "run")[:3]
    (store,) = (tmp_path / "cache").iterdir()
    samples = np.fromfile(store / "index.bin", "<u4").reshape(24, 3)[:, 0]
    early = set(np.flatnonzero(samples).tolist())
    assert len(early) == 12
    decoded.clear()
    assert run(corpus, tmp_path / "run", tmp_path / "cache", save_strategy="steps", save_steps=3) == losses(
        first / "run"
    )
    assert sorted(decoded) == sorted(set(range(24)) - early)


def test_lost_and_damaged_frames_are_computed_again(corpus, first, tmp_path, decoded, capsys):
    shutil.copytree(first / "cache", tmp_path / "cache")
    (name,) = stores(tmp_path / "cache")
    with open(tmp_path / "cache" / name / "index.bin", "r+b") as file:
        file.write(bytes(12))  # the first clip's record
    with open(tmp_path / "cache" / name / "frames.bin", "r+b") as file:
        file.seek(32 * 8)  # in the first two clips
        file.write(b"\x7f\xff\x00" * 800)
    assert run(corpus, tmp_path / "run", tmp_path / "cache") == losses(first / "run")
    assert 4 <= len(decoded) <= 12 and {0, 1} <= set(decoded)
    assert "the frames of clip 1 are damaged" in capsys.readouterr().err
    whole, mended = (
        {file.name: file.read_bytes() for file in (folder / "cache" / name).iterdir()} for folder in (first, tmp_path)
    )
    assert mended["index.bin"] == whole["index.bin"] and mended.keys() == whole.keys()


def prepared(corpus: Path, output: Path, config: str | None = "mls.all", **changes) -> tuple[Arguments, PreparedSplit]:
    arguments = parse_arguments(flags(corpus, output, config, **(EPOCHS | {"cache_frontend": True} | changes)))
    output.mkdir(exist_ok=True)
    data = load_corpus(arguments, starting_point(arguments.model), SkippedClips(output, 0))
    return arguments, data.splits["train"]


def test_what_the_frames_depend_on_names_the_store(corpus, tmp_path, rng):
    frozen = {f"encoder.feature_extractor.{name}": rng.normal(size=5).astype(np.float32) for name in "ab"}
    state = SimpleNamespace(trainable={"lm_head.kernel": rng.normal(size=3)}, frozen=frozen)
    config = PRESETS["tiny"]

    def name(config=config, state=state, **changes):
        arguments, split = prepared(corpus, tmp_path / "run", **changes)
        return store_name(arguments, config, split, state)

    expected = name()
    same = dict(learning_rate=1e-5, hidden_dropout=0.0, data_seed=9, num_train_epochs=7, max_buckets=3)
    assert name(**same) == expected
    assert name(state=SimpleNamespace(trainable={}, frozen=frozen | {"encoder.x": rng.normal(size=2)})) == expected
    other = {key: value + (key[-1] == "a") * np.float32(1e-7) for key, value in frozen.items()}
    names = [expected, name(state=SimpleNamespace(trainable={}, frozen=other))]
    names += [name(dataclasses.replace(config, **{field: value})) for field, value in (
        ("feat_extract_activation", "relu"), ("conv_stride", (5, 2, 2, 2, 2, 2, 1)), ("normalize_waveform", False),
    )]  # fmt: skip
    names += [name(bf16=True), name(fp16=True), name(max_train_samples=23), name(max_duration_in_seconds=1.0)]
    with jax.default_matmul_precision("float32"):
        names.append(name())
    assert len(set(names)) == len(names)
    trained = SimpleNamespace(trainable=frozen, frozen={})
    with pytest.raises(InputError, match="encoder.feature_extractor.a is trained"):
        name(state=trained)


def test_changed_clips_are_other_clips(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", train=6, other=1)
    before = prepared(corpus, tmp_path / "run")[1].fingerprint
    assert prepared(corpus, tmp_path / "run")[1].fingerprint == before
    table = pq.read_table(corpus / "mls.all" / "train.parquet")
    clips = table.to_pylist()
    waveform, rate = sf.read(io.BytesIO(clips[3]["audio"]["bytes"]), dtype="int16")
    clips[3]["audio"]["bytes"] = flac(waveform[::-1])  # as long as before
    pq.write_table(pa.Table.from_pylist(clips, schema=table.schema), corpus / "mls.all" / "train.parquet")
    for folder in (corpus / "cache").iterdir():
        if folder.name != "xtremes_jax":  # `datasets` would go on with its own copy of the old ones
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    after = prepared(corpus, tmp_path / "run")[1]
    np.testing.assert_array_equal(after.read_audio(3), waveform[::-1])
    assert after.fingerprint != before


def test_a_changed_file_outside_the_data_set_is_another_clip(tmp_path, rng):
    lines = ["path,transcription"]
    for number in range(4):
        sf.write(tmp_path / f"{number}.wav", rng.normal(0, 0.1, 8_000 + 900 * number), RATE)
        lines.append(f"{tmp_path / f'{number}.wav'},{'abcd'[: number + 1]}")
    manifest = tmp_path / "train.csv"
    manifest.write_text("\n".join(lines))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    changes = dict(config=None, dataset_name=manifest, task="mls", audio_column_name="path")
    before = prepared(tmp_path, tmp_path / "run", **changes)[1].fingerprint
    assert prepared(tmp_path, tmp_path / "run", **changes)[1].fingerprint == before
    sf.write(tmp_path / "2.wav", rng.normal(0, 0.1, 9_800), RATE)  # as long as before
    assert prepared(tmp_path, tmp_path / "run", **changes)[1].fingerprint != before


def test_a_store_is_made_afresh_where_that_is_asked_for(corpus, first, tmp_path, decoded, capsys):
    shutil.copytree(first / "cache", tmp_path / "cache")
    (tmp_path / "cache" / "of another model").mkdir()
    (tmp_path / "cache" / "of another model" / "frames.bin").write_bytes(bytes(2**20))
    changes = dict(num_train_epochs=None, max_steps=1, overwrite_cache=True)
    assert run(corpus, tmp_path / "run", tmp_path / "cache", **changes) == losses(first / "run")[:1]
    assert len(stores(tmp_path / "cache")) == 2 and len(decoded) >= 4
    error = capsys.readouterr().err
    assert "0 of 24 clips are there already" in error and "also holds 1 stores of other data or models" in error


def test_a_disk_that_fills_up_does_not_stop_the_run(corpus, first, tmp_path, monkeypatch, capsys, decoded):
    write, calls = os.pwrite, []

    def full(handle, data, offset):
        calls.append(offset)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    np.testing.assert_allclose(run(corpus, tmp_path / "run", tmp_path / "cache"), losses(first / "run"), rtol=1e-5)
    error = capsys.readouterr().err
    assert "No more frames are stored" in error and "No space left" in error
    assert len(decoded) > 24 and len(calls) == 10


def test_no_room_and_front_ends_that_train_are_refused(corpus, tmp_path, monkeypatch, capsys):
    arguments = flags(corpus, tmp_path / "run", "mls.all", cache_frontend=True, frontend_cache_dir=tmp_path / "cache")
    assert train.main(arguments) == 2
    assert "--cache_frontend keeps what the convolutional front end computes" in capsys.readouterr().err
    for given in ("mls.all", "minds14.all"):
        assert parse_arguments(flags(corpus, tmp_path, given, cache_frontend=True, freeze_encoder=True))
    translation = dict(cache_frontend=True, freeze_encoder=True, decoder_config_name="tiny")
    assert parse_arguments(flags(corpus, tmp_path, "covost2.all", **translation)).model.cache_frontend
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    arguments = flags(corpus, tmp_path / "run", "mls.all", **EPOCHS, cache_frontend=True)
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert "--cache_frontend needs 0.00 GiB more in" in error and "--frontend_cache_dir" in error


def test_several_processes_are_refused_before_anything_is_looked_for(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(train, "starting_point", lambda *_, **__: pytest.fail("a model is downloaded"))
    arguments = flags(corpus, tmp_path / "run", "mls.all", **EPOCHS, cache_frontend=True)
    assert train.main(arguments) == 2
    assert "--cache_frontend works in one process, and this run has 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_pairs_for_retrieval_in_micro_batches(tmp_path, decoded):
    corpus = write_retrieval_corpus(tmp_path / "corpus")
    changes = dict(
        task="fleurs-retrieval", embedding_dim=24, per_device_train_batch_size=8, num_train_epochs=4,
        gradient_accumulation_steps=2, learning_rate=0,
    )  # fmt: skip
    plain = run(corpus, tmp_path / "plain", None, "fleurs.all", **changes)
    decoded.clear()
    cached = run(corpus, tmp_path / "run", tmp_path / "cache", "fleurs.all", **changes)
    # The temperature makes more of a difference.
    np.testing.assert_allclose(cached, plain, rtol=1e-2, atol=1e-4)
    assert len(decoded) < 60  # of 4 epochs of 50 clips; the 12 keys come twice in the first


def test_translation(tmp_path, decoded):
    corpus = write_corpus(tmp_path / "corpus")
    changes = dict(decoder_config_name="tiny", translation_vocab_size=40, freeze_encoder=True)
    plain = run(corpus, tmp_path / "plain", None, "covost2.all", **changes)
    decoded.clear()
    cached = run(corpus, tmp_path / "run", tmp_path / "cache", "covost2.all", **changes)
    np.testing.assert_allclose(cached, plain, rtol=1e-3)
    assert sorted(decoded) == list(range(24))


def test_four_devices_fill_the_store_of_one(corpus, first, tmp_path):
    changes = dict(cache_frontend=True, frontend_cache_dir=tmp_path / "cache", fsdp_devices=2)
    arguments = flags(corpus, tmp_path / "run", "mls.all", **(EPOCHS | changes), per_device_train_batch_size=1)
    done = run_elsewhere(arguments, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4")
    assert done.returncode == 0 and "24 of 24 clips are stored" in done.stderr, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(first / "run"), rtol=1e-4)
    assert stores(tmp_path / "cache") == stores(first / "cache")
    (ours,), (theirs,) = ((folder / "cache").iterdir() for folder in (tmp_path, first))
    ours, theirs = (np.fromfile(store / "frames.bin", jnp.bfloat16).astype(np.float32) for store in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=2**-7, atol=1e-4)
