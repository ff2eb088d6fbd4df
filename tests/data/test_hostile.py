"""Audio and data sets that lie about their size or point elsewhere."""

import gzip
import json
import tarfile

import datasets
import numpy as np
import pytest
import soundfile

from xtremes_jax.data import audio
from xtremes_jax.data.repository import open_repository, open_saved
from xtremes_jax.data.xtreme_s import _unpack
from xtremes_jax.errors import InputError


def test_a_small_file_of_very_many_samples_is_refused(tmp_path):
    with soundfile.SoundFile(tmp_path / "x.flac", "w", 655_350, 8, format="FLAC", subtype="PCM_16") as file:
        for _ in range(20):
            file.write(np.zeros((655_350, 8), np.int16))
    with pytest.raises(InputError, match=r"x.flac: it holds 104,856,000 samples \(8 channels at 655,350 Hz\)"):
        audio.decode(tmp_path / "x.flac")


def test_devices_by_address_are_refused():
    with pytest.raises(InputError, match="a pipe or a device"):
        audio.probe(audio.stored_source({"path": "file:///dev/zero"}))


def test_a_saved_data_set_stays_in_its_folder(tmp_path):
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(str(tmp_path / "saved"))
    state = tmp_path / "saved" / "state.json"
    content = json.loads(state.read_text()) | {"_data_files": [{"filename": "../elsewhere.arrow"}]}
    state.write_text(json.dumps(content))
    with pytest.raises(InputError, match="state.json names '../elsewhere.arrow', which is no plain name"):
        open_saved("saved", {"default": tmp_path / "saved"}).load("default", "train")


@pytest.mark.parametrize(("kind", "message"), [(tarfile.REGTYPE, "over 100 times its size"), (b"x", "claims")])
def test_an_archive_that_claims_gigabytes_is_refused(tmp_path, kind, message):
    info = tarfile.TarInfo("dev/0.wav")
    info.size, info.type = 2**31, kind
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16)))
    with pytest.raises(InputError, match=message):
        _unpack(tmp_path / "x.tar.gz", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.wav"))


@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_json_without_an_end_to_its_depth_is_refused(tmp_path, name):
    """Arrow's parser overflows its stack and takes the process along."""
    deep = "[" * 100_000 + "]" * 100_000
    rows = ('{"path": "a.wav", "transcription": "a [ b"}', '{"path": "b.wav", "transcription": ' + deep + "}")
    (tmp_path / name).write_text("\n".join(rows))
    source = open_repository(str(tmp_path))
    with pytest.raises(InputError, match="its values are nested more than 10,000 deep"):
        source.load(source.configs[0], "train")
