"""Bytes moved to and from main memory, on a text whose counts are known by hand."""

import pytest

from xtremes_jax.planning.hlo import Program
from xtremes_jax.planning.traffic import buffer_bytes, moved_bytes

TEXT = """HloModule jit_step, is_scheduled=true

%slices (param_0.1: f32[9,8,128], param_1.1: s32[], param_2.1: f32[8,128]) -> f32[8,128] {
  %param_0.1 = f32[9,8,128]{2,1,0:T(8,128)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  %b.1 = f32[9,1024]{1,0} bitcast(%param_0.1)
  %s.1 = f32[1,1024]{1,0} dynamic-slice(%b.1, %param_1.1, %param_1.1), dynamic_slice_sizes={1,1024}
  %param_2.1 = f32[8,128]{1,0:T(8,128)} parameter(2)
  ROOT %a.1 = f32[8,128]{1,0:T(8,128)} add(%s.1, %param_2.1)
}

%updates (param_0.2: f32[9,8,128], param_1.2: f32[8,128], param_2.2: s32[]) -> f32[9,8,128] {
  %param_0.2 = f32[9,8,128]{2,1,0:T(8,128)} parameter(0)
  %param_1.2 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %param_2.2 = s32[]{:T(128)} parameter(2)
  %b.2 = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%param_1.2)
  ROOT %u.2 = f32[9,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%param_0.2, %b.2, %param_2.2)
}

%body (p: (f32[9,8,128], f32[8,128], s32[])) -> (f32[9,8,128], f32[8,128], s32[]) {
  %p = (f32[9,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:T(128)S(1)}) parameter(0)
  %all = f32[9,8,128]{2,1,0:T(8,128)} get-tuple-element(%p), index=0
  %one = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  %i = s32[]{:T(128)S(1)} get-tuple-element(%p), index=2
  %f.1 = f32[8,128]{1,0:T(8,128)} fusion(%all, %i, %one), kind=kLoop, calls=%slices
  %f.2 = f32[9,8,128]{2,1,0:T(8,128)} fusion(%all, %f.1, %i), kind=kLoop, calls=%updates
  ROOT %t = (f32[9,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%f.2, %f.1, %i)
}

ENTRY %main (x: bf16[3,130], y: f32[9,8,128]) -> bf16[3,130] {
  %x = bf16[3,130]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[9,8,128]{2,1,0:T(8,128)} parameter(1)
  %w = (f32[9,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, s32[]{:T(128)}) while(%y), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"9"}}
  ROOT %n = bf16[3,130]{1,0:T(8,128)(2,1)} negate(%x)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("bf16[3,130]{1,0:T(8,128)(2,1)}", 8 * 256 * 2),
        ("bf16[3,130]{0,1:T(8,128)(2,1)}", 128 * 136 * 2),  # the first axis is the minor one
        ("f32[2,25]{1,0:T(2,128)S(1)}", 0),  # not in main memory
        ("f32[2,25]{1,0:T(2,128)}", 2 * 128 * 4),
        ("(f32[10]{0}, pred[3,5])", 40 + 15),
        ("s32[]", 4),
    ],
)
def test_arrays_are_rounded_up_to_their_tiles(shape, expected):
    assert buffer_bytes(shape) == expected


def test_slices_and_updates_in_place_count_what_they_touch():
    layer, edge = 8 * 128 * 4, 8 * 256 * 2
    # In every round a layer is read and written by the first fusion, read and written by the second.
    assert moved_bytes(Program(TEXT)) == 9 * 4 * layer + 2 * edge
