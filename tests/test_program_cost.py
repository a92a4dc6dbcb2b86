"""Operations and bytes are those that can be counted by hand, or that XLA counts where it can."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.program_cost import products_flop, program_bytes


def test_operations_are_counted_in_loops_and_in_the_costlier_branch():
    def function(x, kernel, flag):
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        square = y[0, ..., 0] @ y[0, ..., 0].T  # [4, 4] from [4, 5]
        square, _ = jax.lax.scan(lambda carry, _: (carry @ carry, None), square, length=7)
        return jax.lax.cond(flag, lambda s: s @ s @ s, lambda s: s @ s, square)

    shapes = (jnp.zeros((2, 9, 11, 3)), jnp.zeros((3, 3, 3, 6)), jnp.array(True))
    convolution = 2 * (2 * 4 * 5 * 6) * (3 * 3 * 3)
    expected = convolution + 2 * 4 * 4 * 5 + (7 + 2) * 2 * 4**3
    assert products_flop(jax.make_jaxpr(jax.jit(function))(*shapes)) == expected


GPU_PROGRAM = """HloModule jit_f, is_scheduled=true

%fused_update (p1: f32[1,16], p0: f32[5,16], p2: s32[]) -> f32[5,16] {
  %p1 = f32[1,16]{1,0} parameter(1)
  %p0 = f32[5,16]{1,0} parameter(0)
  %p2 = s32[] parameter(2)
  ROOT %update = f32[5,16]{1,0} dynamic-update-slice(%p0, %p1, %p2, %p2)
}

%body (state: (s32[], f32[5,16])) -> (s32[], f32[5,16]) {
  %state = (s32[], f32[5,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = f32[5,16]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,16]{1,0} dynamic-slice(%stack, %i, %i), dynamic_slice_sizes={1,16}
  %updated = f32[5,16]{1,0} fusion(%stack, %row, %i), kind=kLoop, calls=%fused_update
  ROOT %next = (s32[], f32[5,16]{1,0}) tuple(%i, %updated)
}

ENTRY %main (x: bf16[4,8,8,32], w: bf16[64,32], stack.1: f32[5,16]) -> (bf16[4,8,8,64], f32[5,16]) {
  %x = bf16[4,8,8,32]{3,2,1,0} parameter(0)
  %w = bf16[64,32]{1,0} parameter(1)
  %stack.1 = f32[5,16]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %conv = (bf16[4,8,8,64]{3,2,1,0}, u8[1000000]{0}) custom-call(%x, %w), custom_call_target="__cudnn$convForward"
  %y = bf16[4,8,8,64]{3,2,1,0} get-tuple-element(%conv), index=0
  %gemm = (f32[256,64]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm"
  %start = (s32[], f32[5,16]{1,0}) tuple(%zero, %stack.1)
  %loop = (s32[], f32[5,16]{1,0}) while(%start), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %z = f32[5,16]{1,0} get-tuple-element(%loop), index=1
  ROOT %out = (bf16[4,8,8,64]{3,2,1,0}, f32[5,16]{1,0}) tuple(%y, %z)
}
"""


def test_bytes_of_library_calls_loops_and_slices():
    operands, output = 2 * (4 * 8 * 8 * 32 + 64 * 32), 4 * 8 * 8 * 64
    library = (operands + 2 * output) + (operands + 4 * output)  # scratch space left out; bfloat16, then float32
    row = 4 * 16
    one_turn = (row + row + 4 + 4) + (row + 4 + row)  # the slice, with two indices; then the update, with one
    assert program_bytes(GPU_PROGRAM) == library + 5 * one_turn
    with pytest.raises(ValueError, match="ENTRY"):
        program_bytes("HloModule jit_f")


def test_bytes_as_xla_counts_them_where_it_can():
    def function(x, kernel):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(y - y.mean((1, 2), keepdims=True))

    compiled = jax.jit(function).lower(jnp.zeros((2, 32, 32, 8)), jnp.zeros((3, 3, 8, 8))).compile()
    np.testing.assert_allclose(program_bytes(compiled.as_text()), compiled.cost_analysis()["bytes accessed"], rtol=0.02)
