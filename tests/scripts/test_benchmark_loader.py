"""The loader benchmark as it is run, both sides on a few clips: its figures are of the same audio, and all there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_loader.py"


def test_both_sides_read_the_same_audio_alone_and_with_workers(tmp_path):
    pytest.importorskip("torch")
    command = [sys.executable, str(SCRIPT), "--formats", "flac", "--rates", "16000", "--clips", "16", "--batch", "4"]
    command += ["--parts", "throughput", "--workers", "1", "--seconds", "0.01", "--repeats", "1"]
    command += ["--json", str(tmp_path / "rates.json")]

    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert finished.returncode == 0, finished.stderr
    modes = json.loads((tmp_path / "rates.json").read_text())["throughput"]
    assert set(modes) == {"core", "workers"}
    for mode in modes.values():
        (row,) = mode.values()
        assert row["largest_difference"] == 0  # both decode 16 kHz FLAC, which is lossless
        assert row["ours"]["bytes_per_audio_s"] < row["torch"]["bytes_per_audio_s"]  # int16 beside float32
        assert row["ours"]["audio_s_per_s"] > 0 < row["torch"]["audio_s_per_s"]
