"""Windows over long recordings: every frame of one pass is kept once, at its place, whatever the model's geometry."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.conftest import LAYOUTS
from models.family_models import variant

from xtremes_jax.errors import InputError
from xtremes_jax.models import (
    PRESETS,
    abstract_model,
    flatten_params,
    log_mel,
    merge,
    split_params,
    unflatten_params,
    windowing,
)
from xtremes_jax.models.windows import samples_per_frame

ADAPTERS = [
    {},
    {"add_adapter": True, "num_adapter_layers": 1},
    {"add_adapter": True, "num_adapter_layers": 3},
    {"add_adapter": True, "num_adapter_layers": 2, "adapter_kernel_size": 2, "adapter_stride": 3},
]
GEOMETRIES = {
    f"{name}-{number}": variant(name, **changes)
    for name in ("hubert-base", "data2vec", "bert")
    for number, changes in enumerate(ADAPTERS)
    if number != 3 or name.startswith("bert")
} | {
    f"wide-{kernel}-{stride}": dataclasses.replace(
        LAYOUTS["layer"], add_adapter=True, num_adapter_layers=2, adapter_kernel_size=kernel, adapter_stride=stride
    )
    for kernel, stride in [(1, 1), (1, 2), (2, 1), (7, 2), (5, 3)]
}  # fmt: skip


def kept(config, windows) -> list[int]:
    """Places in one pass of all frames that are kept, in the order of the windows."""
    hop = samples_per_frame(config)
    assert all(window.start % hop == 0 for window in windows)
    return [window.start // hop + frame for window in windows for frame in range(window.first, window.last)]


@pytest.mark.parametrize("name", GEOMETRIES)
@given(st.data())
def test_every_frame_is_kept_once_and_in_its_place(name, data):
    config = GEOMETRIES[name]
    hop = samples_per_frame(config)
    chunk = data.draw(st.integers(hop, 60 * hop)) / 16_000
    strides = data.draw(st.none() | st.floats(0, chunk) | st.tuples(st.floats(0, chunk), st.floats(0, chunk)))
    try:
        cut = windowing(config, chunk, strides)
    except InputError:
        return
    num_samples = data.draw(st.integers(0, 20 * cut.length) | st.integers(0, 20).map(lambda n: n * cut.step))
    windows = cut.plan(num_samples)
    assert kept(config, windows) == list(range(config.num_output_frames(num_samples)))
    for place, window in enumerate(windows):
        # A window's own frames are enough, and none but the last is shorter than the others.
        assert 0 <= window.first <= window.last <= config.num_output_frames(window.stop - window.start)
        assert window.stop - window.start == cut.length or place == len(windows) - 1
        assert place == 0 or window.start == windows[place - 1].start + cut.step
        # Beyond the frames at inner ends there are at least the strides.
        assert place == 0 or window.first == cut.left
        assert place == len(windows) - 1 or cut.length // hop - window.last == cut.right
    assert 0 <= num_samples - windows[-1].stop < hop + config.min_samples  # too few for another frame
    if num_samples <= cut.length:
        assert windows == [(0, num_samples, 0, config.num_output_frames(num_samples))]


def test_windows_of_a_base_model_are_those_of_the_pipeline():
    cut = windowing(PRESETS["base"], 30, (4, 2))
    assert (cut.length, cut.left, cut.right, cut.step) == (480_000, 200, 100, 384_000)
    assert cut.plan(1_000_000) == [(0, 480_000, 0, 1400), (384_000, 864_000, 200, 1400), (768_000, 1_000_000, 200, 724)]
    # A sample more makes no frame more, but 80 do: 400 samples make one, and the next begins at 479,680.
    assert [len(cut.plan(480_000 + more)) for more in (0, 1, 79, 80)] == [1, 1, 1, 2]
    assert cut.plan(480_080) == [(0, 480_000, 0, 1400), (384_000, 480_080, 200, 300)]
    halves = windowing(PRESETS["base"], 6)
    assert (halves.left, halves.right) == (50, 50)
    assert windowing(PRESETS["base"], 6, 1) == halves == windowing(PRESETS["base"], 6, [1.0, 1.0])


def test_frames_that_a_window_does_not_reach_are_cut_off_whatever_the_stride():
    cut = windowing(PRESETS["base"], 1, 0)
    assert (cut.left, cut.right) == (0, 1)
    wide = GEOMETRIES["wide-7-2"]
    assert samples_per_frame(wide) == 1280
    cut = windowing(wide, 1.6, 0)
    assert cut.length == 20 * 1280 and (cut.left, cut.right) == (0, 20 - wide.num_output_frames(20 * 1280)) == (0, 3)


@pytest.mark.parametrize(
    ("chunk", "strides", "said"),
    [
        (0, None, "chunk_length_s is 0"), (-1, None, "chunk_length_s is -1"), (True, None, "chunk_length_s is True"),
        (float("nan"), None, "chunk_length_s is nan"),
        (1, -1, "stride_length_s is -1"), (1, (0.1, 0.1, 0.1), r"stride_length_s is \(0.1, 0.1, 0.1\)"), (1, (), "one"),
        (1, 0.5, "50 frames of this model .0.02 s each., and its strides take 25 and 25 of them"),
        (0.01, 0, "is 0 frames"), (0.02, 0, "strides take 0 and 1"),
    ],
)  # fmt: skip
def test_lengths_that_make_no_windows_are_refused(chunk, strides, said):
    with pytest.raises(InputError, match=said):
        windowing(PRESETS["base"], chunk, strides)


def test_all_published_shapes_have_frames_of_a_fiftieth_of_a_second():
    assert {samples_per_frame(config) for config in PRESETS.values()} == {320}
    assert np.prod(PRESETS["base"].conv_stride) == 320


WITH_ADAPTER = {"add_adapter": True, "num_adapter_layers": 2}
NEARSIGHTED = {
    "wav2vec2": LAYOUTS["layer"],
    "adapter": variant("unispeech", num_hidden_layers=1, **WITH_ADAPTER),
    "data2vec": variant("data2vec", num_hidden_layers=1),
    "conformer": variant("conformer-none", num_hidden_layers=1),
    "bert": variant("bert", num_hidden_layers=1),
    "bert-adapter": variant("bert", num_hidden_layers=1, **WITH_ADAPTER),
}


@pytest.mark.parametrize("name", NEARSIGHTED)
def test_joined_logits_of_a_model_that_sees_no_farther_than_the_strides_are_those_of_one_pass(
    name, rng, random_params, monkeypatch
):
    """Attention adds nothing, and there are no statistics of a clip: a frame depends on some twenty others alone."""
    monkeypatch.setattr(log_mel, "_normalize", lambda x, counted: 0.1 * x)
    config = dataclasses.replace(NEARSIGHTED[name], head="ctc", normalize_waveform=False)
    graphdef, _ = split_params(abstract_model(config))
    params = flatten_params(random_params(config, rng))
    shut = [path for path in params if ".out_proj." in path or ".linear_out." in path]
    assert shut
    params = unflatten_params(params | {path: 0 * params[path] for path in shut})
    run = jax.jit(lambda params, audio, lengths: merge(graphdef, params)(audio, lengths).logits)

    hop = samples_per_frame(config)
    cut = windowing(config, 80 * hop / 16_000, (24 * hop / 16_000, 20 * hop / 16_000))
    clip = rng.integers(-9000, 9000, 301 * hop + 137).astype(np.int16)
    windows = cut.plan(len(clip))
    rows = np.zeros((len(windows), cut.length), np.int16)
    for row, window in zip(rows, windows, strict=True):
        row[: window.stop - window.start] = clip[window.start : window.stop]
    lengths = np.array([window.stop - window.start for window in windows], np.int32)
    logits = np.asarray(run(params, rows, lengths))
    joined = [row[window.first : window.last] for row, window in zip(logits, windows, strict=True)]
    expected = np.asarray(run(params, clip[None], np.array([len(clip)], np.int32)))[0]
    assert len(windows) == 8
    np.testing.assert_allclose(np.concatenate(joined), expected, atol=2e-5)
