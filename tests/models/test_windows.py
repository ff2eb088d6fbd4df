"""Windows over long recordings: every frame of one pass is kept once, at its place, whatever the model's geometry."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models.conftest import LAYOUTS
from models.family_models import variant

from xtremes_jax.errors import InputError
from xtremes_jax.models import PRESETS, windowing
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
