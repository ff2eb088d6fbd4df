"""Reading compiled programs: on texts whose counts are known by hand, and on programs that XLA has counted itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtremes_jax.planning.hlo import ArrayShape, Program

TEXT = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p.1: (s32[], bf16[4,3])) -> (s32[], bf16[4,3]) {
  %p.1 = (s32[], bf16[4,3]{1,0}) parameter(0)
  %g = bf16[4,3]{1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=1
  %all-gather.1 = bf16[4,24]{1,0:T(8,128)} all-gather(%g), channel_id=3, replica_groups=[2,4]<=[8], dimensions={1}
  %dot.1 = f32[4,4]{1,0} dot(%g, %g), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %t = (s32[], bf16[4,3]{1,0}) tuple(%p.1)
}

%outer (p.2: (s32[], bf16[4,3])) -> (s32[], bf16[4,3]) {
  %p.2 = (s32[], bf16[4,3]{1,0}) parameter(0)
  %all-reduce.1 = (f32[10]{0}, /*index=1*/f32[2,5]{1,0:T(8,128)}) all-reduce(%p.2, %p.2), channel_id=1, replica_groups=mesh['a'=4,'b'=2] {'b'}, to_apply=%add, metadata={op_name="jit(step)/while/psum"}
  ROOT %w.1 = (s32[], bf16[4,3]{1,0}) while(%p.2), condition=%never, body=%inner, backend_config={"known_trip_count":{"n":"3"},"x":1}
}

%unused (p.3: f32[4]) -> f32[8] {
  %p.3 = f32[4]{0} parameter(0)
  ROOT %all-gather.2 = f32[32]{0} all-gather(%p.3), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

ENTRY %main (p: bf16[4,3]) -> f32[6] {
  %p = bf16[4,3]{1,0} parameter(0)
  %w.2 = (s32[], bf16[4,3]{1,0}) while(%p), condition=%never, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %reduce-scatter.1 = f32[6]{0} reduce-scatter(%p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, to_apply=%add
  %all-gather-start.1 = (f32[2]{0}, f32[16]{0}) all-gather-start(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %all-gather-done.1 = f32[16]{0} all-gather-done(%all-gather-start.1)
  %alone = f32[6]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  ROOT %all-reduce.2 = f32[6]{0} all-reduce(%reduce-scatter.1), replica_groups={}, to_apply=%add
}
"""  # noqa: E501


def test_collectives_count_as_often_as_their_loops_run():
    program = Program(TEXT)
    assert program.devices == 8
    found = {(c.kind, c.group): c for c in program.collectives()}
    assert {key: (c.times, c.payload, c.sent) for key, c in found.items()} == {
        ("all-gather", 4): (15, 15 * 192, 15 * 192 * 3 / 4),
        ("all-reduce", 2): (5, 5 * 80, 5 * 80.0),
        ("reduce-scatter", 2): (1, 48, 24.0),
        ("all-gather", 8): (1, 64, 56.0),
        ("all-reduce", 8): (1, 24, 42.0),
    }
    assert len(program.collectives()) == 5
    reduced = found["all-reduce", 2]
    assert reduced.arrays == (ArrayShape("f32", (10,)), ArrayShape("f32", (2, 5)))
    assert reduced.source == "jit(step)/while/psum"
    assert str(reduced).startswith("all-reduce of f32[10], f32[2,5] over 2 devices x5")


def test_products_count_as_often_as_their_loops_run():
    assert Program(TEXT).product_flops() == 15 * 2 * 4 * 4 * 3


def test_a_loop_that_does_not_say_its_rounds_counts_to_its_limit():
    bare = TEXT.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    assert bare != TEXT and Program(bare).times["inner"] == 3  # nothing is known: one round
    condition = """%never (p: (s32[], bf16[4,3])) -> pred[] {
  %limit = s32[]{:T(128)} constant(11)
  %p.4 = (s32[], bf16[4,3]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p.4), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%inner"""
    assert Program(bare.replace("%inner", condition, 1)).times["inner"] == 33


def test_a_loop_that_was_unrolled_counts_by_its_counters_stride():
    text = """HloModule unrolled, num_partitions=1

%body (p: (u32[], f32[4,4])) -> (u32[], f32[4,4]) {
  %two = u32[]{:T(128)} constant(2)
  %p = (u32[], f32[4,4]{1,0}) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %x = f32[4,4]{1,0} get-tuple-element(%p), index=1
  %first = f32[4,4]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %second = f32[4,4]{1,0} dot(%first, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %next = u32[] add(%i, %two)
  ROOT %t = (u32[], f32[4,4]{1,0}) tuple(%next, %second)
}

%condition (p.1: (u32[], f32[4,4])) -> pred[] {
  %limit = u32[] constant(7)
  %p.1 = (u32[], f32[4,4]{1,0}) parameter(0)
  %i.1 = u32[] get-tuple-element(%p.1), index=0
  ROOT %lt = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (p.2: (u32[], f32[4,4])) -> (u32[], f32[4,4]) {
  %p.2 = (u32[], f32[4,4]{1,0}) parameter(0)
  ROOT %w = (u32[], f32[4,4]{1,0}) while(%p.2), condition=%condition, body=%body
}
"""
    assert Program(text).times["body"] == 4
    assert Program(text).product_flops() == 4 * 2 * 2 * 4 * 4 * 4
    by_one = text.replace("constant(2)", "constant(1)")
    assert Program(by_one).times["body"] == 7
    assert Program(text.replace("add(%i, %two)", "multiply(%i, %two)")).times["body"] == 7  # no stride is known


SCATTERED = """HloModule scattered, num_partitions=16

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (p: f32[64,16]) -> f32[64,2] {
  %p = f32[64,16]{1,0} parameter(0)
  %all-reduce.1 = f32[64,16]{1,0} all-reduce(%p), channel_id=1, replica_groups=mesh['axis_0'=1,'axis_1'=8,'axis_2'=2], device_ids=([2,8]T(1,0)) {'axis_1'}, to_apply=%add
  %zero = u32[] constant(0)
  %mine = u32[] partition-id()
  ROOT %slice = f32[64,2]{1,0} dynamic-slice(%all-reduce.1, %zero, %mine), dynamic_slice_sizes={64,2}
}

%several (p.1: f32[16], p.2: f32[32]) -> (f32[2], f32[4]) {
  %p.1 = f32[16]{0} parameter(0)
  %p.2 = f32[32]{0} parameter(1)
  %all-reduce.2 = (f32[16]{0}, f32[32]{0}) all-reduce(%p.1, %p.2), channel_id=2, replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
  %one = f32[16]{0} get-tuple-element(%all-reduce.2), index=0
  %two = f32[32]{0} get-tuple-element(%all-reduce.2), index=1
  %mine.1 = u32[] partition-id()
  %slice.1 = f32[2]{0} dynamic-slice(%one, %mine.1), dynamic_slice_sizes={2}
  %slice.2 = f32[4]{0} dynamic-slice(%two, %mine.1), dynamic_slice_sizes={4}
  ROOT %t = (f32[2]{0}, f32[4]{0}) tuple(%slice.1, %slice.2)
}

%summed (p.3: f32[16]) -> f32[16] {
  %p.3 = f32[16]{0} parameter(0)
  %all-reduce.3 = f32[16]{0} all-reduce(%p.3), channel_id=3, replica_groups=mesh['axis_0'=1,'axis_1'=8,'axis_2'=2], device_ids=([2,8]T(1,0)) {'axis_2'}, to_apply=%add
  ROOT %twice = f32[16]{0} add(%all-reduce.3, %all-reduce.3)
}

ENTRY %main (a: f32[64,16], b: f32[16], c: f32[32]) -> f32[64,2] {
  %a = f32[64,16]{1,0} parameter(0)
  %b = f32[16]{0} parameter(1)
  %c = f32[32]{0} parameter(2)
  %f.2 = (f32[2]{0}, f32[4]{0}) fusion(%b, %c), kind=kCustom, calls=%several
  %f.3 = f32[16]{0} fusion(%b), kind=kCustom, calls=%summed
  ROOT %f.1 = f32[64,2]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


def test_a_sum_of_which_a_fusion_keeps_a_slice_is_scattered():
    """As libtpu writes it; and groups along one axis of a mesh whose devices are in an order of their own."""
    found = [(c.kind, c.group, c.payload, c.sent) for c in Program(SCATTERED).collectives()]
    assert sorted(found) == [
        ("all-reduce", 2, 64, 64.0),
        ("reduce-scatter", 8, 4 * 48, 4 * 48 * 7 / 8),
        ("reduce-scatter", 8, 4 * 1024, 4 * 1024 * 7 / 8),
    ]


def test_bytes_of_types():
    sizes = {"f32": 4, "bf16": 2, "f8e4m3fn": 1, "pred": 1, "s64": 8, "u8": 1, "c64": 8, "token": 0}
    assert {name: ArrayShape(name, ()).bytes for name in sizes} == sizes
    assert ArrayShape("s4", (6, 5)).bytes == 15


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        Program("HloModule empty\n")


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


@pytest.mark.parametrize(
    ("padding", "stride", "spread", "dilation", "groups"),
    [((0, 0), 2, 1, 1, 1), ((3, 2), 1, 1, 1, 2), ((2, 2), 3, 1, 2, 1), ((3, 4), 1, 3, 1, 1), ((4, 1), 2, 2, 2, 4)],
)
def test_convolutions_are_counted_as_xla_counts_them(padding, stride, spread, dilation, groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,), [padding], (spread,), (dilation,), ("NWC", "WIO", "NWC"), groups
        )

    program = compiled(convolve, (3, 17, 8), (4, 8 // groups, 12))
    # An oracle of its own: every output counts the true inputs that a kernel of ones meets.
    ones = np.ones((3, 17, 8), np.float32), np.ones((4, 8 // groups, 12), np.float32)
    assert Program(program.as_text()).product_flops() == 2 * float(jax.jit(convolve)(*ones).sum())


def test_a_scan_over_layers_costs_all_its_layers():
    def layers(x, kernels):
        return jnp.sum(jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0])

    forward = Program(compiled(layers, (6, 5), (7, 5, 5)).as_text())
    assert forward.product_flops() == 7 * 2 * 6 * 5 * 5
    gradient = Program(compiled(jax.grad(layers, (0, 1)), (6, 5), (7, 5, 5)).as_text())
    assert gradient.product_flops() == 3 * 7 * 2 * 6 * 5 * 5


@pytest.mark.parametrize("is_first", [True, False])
def test_of_two_branches_the_dearer_one_counts(is_first):
    """Wherever it stands, and with what it calls in turn."""

    def once(x):
        return x @ x

    def thrice(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ x), None), x, length=3)[0]

    branches = (thrice, once) if is_first else (once, thrice)
    program = compiled(lambda flag, x: jax.lax.cond(flag[0] > 0, *branches, x) @ x, (1,), (8, 8))
    assert Program(program.as_text()).product_flops() == 4 * 2 * 8**3
