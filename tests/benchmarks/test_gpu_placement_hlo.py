"""Kernels of HLO that was written by hand, counted by hand."""

from __future__ import annotations

import pytest

from lookback.benchmarks.gpu_placement_hlo import launches

HEAD = "HloModule m, entry_computation_layout={(f32[8,4]{1,0})->f32[4]{0}}\n\n"
ADD = """add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT sum = f32[] add(a, b)
}

"""


def of(entry: str, computations: str = ADD):
    return launches(
        f"{HEAD}{computations}ENTRY main {{\n  x = f32[8,4]{{1,0}} parameter(0)\n{entry}}}\n"
    )


def test_products_are_kernels_and_views_are_none():
    found = of(
        "  w = f32[4,4]{1,0} constant({...})\n"
        "  y = f32[8,4]{1,0} dot(x, w), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n"
        "  ROOT z = f32[32]{0} bitcast(y)\n"
    )
    assert (found.alone, found.merged, found.kinds) == (1, 1, {"dot": 1})


def test_what_reads_the_same_or_one_another_may_be_one_kernel():
    found = of(
        "  a = f32[8,4]{1,0} tanh(x)\n"
        "  b = f32[8,4]{1,0} negate(x)\n"
        "  c = f32[8,4]{1,0} exponential(b)\n"
        "  ROOT t = (f32[8,4]{1,0}, f32[8,4]{1,0}) tuple(a, c)\n"
    )
    assert (found.alone, found.merged) == (3, 1)


def test_a_product_parts_what_is_in_front_of_it_from_what_is_behind():
    found = of(
        "  a = f32[8,4]{1,0} tanh(x)\n"
        "  y = f32[8,8]{1,0} dot(a, x), lhs_contracting_dims={1}, rhs_contracting_dims={1}\n"
        "  b = f32[8,8]{1,0} negate(y)\n"
        "  ROOT c = f32[8,4]{1,0} dot(b, a), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n"
    )
    assert (found.alone, found.merged) == (4, 4)


def test_other_sizes_are_other_kernels():
    found = of(
        "  a = f32[8,4]{1,0} tanh(x)\n"
        "  b = f32[2,4]{1,0} slice(x), slice={[0:2], [0:4]}\n"
        "  ROOT t = (f32[8,4]{1,0}, f32[2,4]{1,0}) tuple(a, b)\n"
    )
    assert (found.alone, found.merged) == (2, 2)


def test_a_tree_of_sums_is_one_kernel_with_what_it_adds_up_and_bars_its_readers():
    found = of(
        "  zero = f32[] constant(0)\n"
        "  a = f32[8,4]{1,0} tanh(x)\n"
        "  r = f32[2,4]{1,0} reduce-window(a, zero), window={size=4x1 stride=4x1}, to_apply=add\n"
        "  s = f32[4]{0} reduce(r, zero), dimensions={0}, to_apply=add\n"
        "  ROOT n = f32[4]{0} negate(s)\n"
    )
    assert found.kinds == {"fusion": 2, "reduce": 1}
    assert (found.alone, found.merged) == (3, 2)


def test_a_running_sum_is_a_kernel():
    found = of(
        "  zero = f32[] constant(0)\n"
        "  ROOT r = f32[8,4]{1,0} reduce-window(x, zero), window={size=8x1 pad=7_0x0_0}, "
        "to_apply=add\n"
    )
    assert found.kinds == {"reduce-window": 1}


def test_calls_and_fusions_are_what_is_in_them():
    inner = (
        "fused {\n  p = f32[8,4]{1,0} parameter(0)\n  ROOT n = f32[8,4]{1,0} negate(p)\n}\n\n"
        "threads {\n  q = f32[8,4]{1,0} parameter(0)\n"
        "  ROOT f = f32[8,4]{1,0} fusion(q), kind=kLoop, calls=fused\n}\n\n"
        "gathers {\n  g = f32[8,4]{1,0} parameter(0)\n  i = s32[2]{0} constant({0, 1})\n"
        "  ROOT o = f32[2,4]{1,0} gather(g, i)\n}\n\n"
    )
    found = of(
        "  a = f32[8,4]{1,0} call(x), to_apply=threads\n"
        "  ROOT b = f32[2,4]{1,0} fusion(a), kind=kLoop, calls=gathers\n",
        inner,
    )
    assert found.kinds == {"fusion": 1, "gather": 1}


def test_what_is_in_a_loop_counts_as_often_as_it_runs():
    loop = (
        "body {\n  s = (s32[], f32[8,4]{1,0}) parameter(0)\n"
        "  v = f32[8,4]{1,0} get-tuple-element(s), index=1\n"
        "  i = s32[] get-tuple-element(s), index=0\n"
        "  n = f32[8,4]{1,0} negate(v)\n"
        "  ROOT t = (s32[], f32[8,4]{1,0}) tuple(i, n)\n}\n\n"
        "cond {\n  s = (s32[], f32[8,4]{1,0}) parameter(0)\n"
        "  i = s32[] get-tuple-element(s), index=0\n  end = s32[] constant(7)\n"
        "  ROOT less = pred[] compare(i, end), direction=LT\n}\n\n"
    )
    found = of(
        "  zero = s32[] constant(0)\n  start = (s32[], f32[8,4]{1,0}) tuple(zero, x)\n"
        "  ROOT w = (s32[], f32[8,4]{1,0}) while(start), condition=cond, body=body\n",
        loop,
    )
    assert (found.alone, found.kinds) == (7, {"fusion": 7})


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match=r"expected a module of HLO with an ENTRY, received 'x'"):
        launches("x")
