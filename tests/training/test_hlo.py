"""Collective bytes from HLO: programs compiled here for eight devices, and lines as the TPU's compiler writes them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vital_jax.training.hlo import collectives, sent, size
from vital_jax.training.sharding import make_mesh

# A TPU program: no trip count is recorded, types carry tilings, a started collective's type holds its operand, and fused ones are called.
TPU = """\
HloModule jit_step, entry_computation_layout={(bf16[8,128]{1,0:T(8,128)(2,1)})->bf16[8,128]{1,0:T(8,128)(2,1)}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%scattered (p: f32[64,128]) -> f32[16,128] {
  %p = f32[64,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %reduced = f32[64,128]{1,0:T(8,128)} all-reduce(%p), channel_id=4, replica_groups=[4,4]<=[16], to_apply=%add
  ROOT %part = f32[16,128]{1,0:T(8,128)} dynamic-slice(%reduced, %zero, %zero), dynamic_slice_sizes={16,128}
}

%finished (m: f32[64,128]) -> f32[16,128] {
  %m = f32[64,128]{1,0:T(8,128)} parameter(0)
  %zeroth = s32[]{:T(128)} constant(0)
  %reduced.2 = f32[64,128]{1,0:T(8,128)} all-reduce(%m), channel_id=4, replica_groups=[4,4]<=[16], to_apply=%add
  ROOT %part.2 = f32[16,128]{1,0:T(8,128)} dynamic-slice(%reduced.2, %zeroth, %zeroth), dynamic_slice_sizes={16,128}
}

%compared (x: s32[], y: s32[]) -> pred[] {
  %x = s32[]{:T(128)} parameter(0)
  %y = s32[]{:T(128)} parameter(1)
  ROOT %less = pred[]{:T(512)} compare(%x, %y), direction=LT
}

%condition (c: (s32[], bf16[8,128])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %turns = s32[]{:T(128)} constant(3)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %go = pred[]{:T(512)} fusion(%i, %turns), kind=kLoop, calls=%compared
}

%body (w: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %w = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%w), index=0
  %v = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%w), index=1
  %begun = (bf16[8,128]{1,0:T(8,128)(2,1)}, /*index=1*/bf16[32,128]{1,0:T(8,128)(2,1)}) all-gather-start(%v), channel_id=1, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, metadata={op_name="jit(step)/latent_loop/while/body/dot"}
  %done = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather-done(%begun)
  %moved = bf16[8,128]{1,0:T(8,128)(2,1)} collective-permute(%v), channel_id=2, source_target_pairs={{0,1},{1,0}}
  ROOT %next = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%j, %moved)
}

ENTRY %main (arg: bf16[8,128]) -> bf16[8,128] {
  %arg = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %start = s32[]{:T(128)} constant(0)
  %init = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%start, %arg)
  %loop = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) while(%init), condition=%condition, body=%body, \
metadata={op_name="jit(step)/latent_loop/while"}
  %wide = f32[64,128]{1,0:T(8,128)} parameter(1)
  %small = f32[16,128]{1,0:T(8,128)} fusion(%wide), kind=kCustom, calls=%scattered
  %rest = f32[16,128]{1,0:T(8,128)} fusion(%wide), kind=kCustom, calls=%finished
  ROOT %out = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""


def test_a_tpu_program_with_a_loop_a_started_and_a_fused_collective():
    found = collectives(TPU)
    # The all-reduce is spread over two fusions, as its channel says.
    assert [(c.kind, c.sent, c.times) for c in found] == [
        ("all-gather", 32 * 128 * 2 * 3 / 4, 3),
        ("collective-permute", 8 * 128 * 2, 3),
        ("all-reduce", 64 * 128 * 4 * 3 / 4, 1),  # and a slice: half of what an all-reduce sends
    ]
    assert sent(found, "latent_loop") == 3 * (6144 + 2048)
    assert sent(found) == 3 * (6144 + 2048) + 24576


@pytest.mark.parametrize(
    "change, words",
    [
        (
            ("constant(3)", "parameter(2)"),
            "loop loop: no trip count, and its condition condition compares with no constant",
        ),
        (("ENTRY ", ""), "no ENTRY computation"),
        (
            ("(%p), channel_id=4, replica_groups=[4,4]<=[16]", "(%p), replica_groups=everyone"),
            "collective reduced: its groups are written in a way that is not read",
        ),
    ],
)
def test_what_cannot_be_read_is_an_error_not_a_zero(change, words):
    with pytest.raises(ValueError, match=words):
        collectives(TPU.replace(*change))


def test_a_loop_without_collectives_needs_no_trip_count():
    quiet = (
        TPU.replace("constant(3)", "parameter(2)")
        .replace("all-gather-start", "copy")
        .replace("collective-permute", "copy")
    )
    assert [c.kind for c in collectives(quiet)] == ["all-reduce"]


def test_a_program_compiled_for_eight_devices(uncached):
    """Five turns of a product whose kernel is split over fsdp, and one sum over everything."""
    mesh = make_mesh(data=2, fsdp=4)
    kernel = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, P("data")))

    def program(kernel, x):
        def step(x, _):
            y = jnp.tanh(x @ kernel)
            return jax.lax.with_sharding_constraint(y, NamedSharding(mesh, P("data"))), None

        with jax.named_scope("steps"):
            x, _ = jax.lax.scan(step, x, length=5)
        return jnp.sum(x)

    found = collectives(jax.jit(program).lower(kernel, x).compile().as_text())
    assert sent(found, "steps") == 5 * 4 * 64 * 4 * 3 / 4, (
        "four rows of 64 float32, gathered from four devices, five times"
    )
    assert sent(found) > sent(found, "steps") > 0


@pytest.mark.parametrize(
    "shape, expected",
    [
        ("bf16[8,128]{1,0:T(8,128)(2,1)}", 2048),
        ("(f32[2]{0}, (s8[3]{0}, pred[]), u32[])", 8 + 3 + 1 + 4),
        ("s4[10]{0}", 5),
        ("f8e4m3fn[7]{0}", 7),
        ("token[]", 0),
    ],
)
def test_sizes_of_types(shape, expected):
    assert size(shape) == expected
