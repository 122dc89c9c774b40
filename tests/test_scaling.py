"""What the step says to other devices, read in its compiled program."""

import functools
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from conftest import tiny_config

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import measure  # noqa: E402
import scaling  # noqa: E402

from ddae.train.optimizer import path_name  # noqa: E402
from ddae.train.sharding import bytes_a_device  # noqa: E402

DEVICES = 4


@functools.cache
def found_in_step(fsdp):
    config = tiny_config(mesh__fsdp=fsdp)
    work = measure.make_work(config, 16)
    compiled = work.lower().compile()
    return work, scaling.collectives(compiled.as_text())


def test_data_parallel_is_one_combined_all_reduce_of_the_gradients():
    """Metrics travel along, a number or a channel's mean each. Those of norms in blocks
    do not: they come of their Linear's, once that is summed."""
    work, found = found_in_step(fsdp=1)
    ((kind, _, size, _),) = found
    gradients = sum(
        x.size * 4
        for path, x in jax.tree_util.tree_leaves_with_path(work.shapes.params)
        if not re.search("norm_(attention|mlp)", path_name(path))
    )
    assert kind == "all-reduce" and gradients <= size < gradients + 2048


def test_fsdp_gathers_parameters_and_nothing_of_the_batch():
    """On CPU, where this runs, XLA leaves a sum and its slice an all-reduce; for GPUs
    and TPUs it makes a reduce-scatter (tests/test_cuda.py, tests/test_tpu.py)."""
    work, found = found_in_step(fsdp=DEVICES)
    assert {kind for kind, *_ in found} <= {
        "all-gather",
        "all-reduce",
        "reduce-scatter",
    }
    shapes = {x.shape for x in jax.tree.leaves(work.shapes.params)}
    gathered = [shape for op in found if op[0] == "all-gather" for _, shape in op[1]]
    assert gathered and set(gathered) <= shapes
    batch = work.batch_size
    summed = [shape for op in found if op[0] != "all-gather" for _, shape in op[1]]
    assert all(shape[:1] != (batch,) or shape in shapes for shape in summed)


@pytest.mark.parametrize("relative_bias", ["shared", "block"])
def test_of_a_relative_bias_devices_sum_the_gradient_of_its_table(relative_bias):
    """[entries, heads], and not that of the bias, [heads, tokens, tokens]."""
    config = tiny_config(model__relative_bias=relative_bias, mesh__fsdp=1)
    config["method"] = {"name": "simmim"}
    work = measure.make_work(config, 16)
    found = scaling.collectives(work.lower().compile().as_text())
    shapes = [shape for op in found for _, shape in op[1]]
    assert not any(shape[-2:] == (17, 17) for shape in shapes), shapes
    heads = 2
    tables = [shape for shape in shapes if sorted(shape)[-2:] == [heads, 7 * 7 + 3]]
    assert len(tables) == {"shared": 1, "block": 2}[relative_bias], shapes


def test_nothing_of_masks_or_distance_maps_leaves_its_device():
    for fsdp in (1, DEVICES):
        _, found = found_in_step(fsdp=fsdp)
        assert all(kind == "f32" for op in found for kind, _ in op[1]), "ids travel"


@pytest.mark.parametrize("size", ["S", "B"])
def test_a_device_holds_its_part_of_the_state(size):
    config = measure.read_config(f"ddae_in1k:model={size}")
    work = measure.make_work({**config, "mesh": {"fsdp": DEVICES}}, 16)
    shard, whole = bytes_a_device(work.shapes, work.shardings)
    np.testing.assert_allclose(shard, whole / DEVICES, rtol=0.05)


PROGRAM = """\
ENTRY %main (p: f32[4,8]) -> f32[4] {
  %p = f32[4,8]{1,0} parameter(0)
  %cut = f32[2,8]{1,0} fusion(%p), kind=kLoop, calls=%a
  %sum = (f32[4]{0}, /*index=1*/bf16[4,8]{1,0}) fusion(%p, %cut), kind=kInput, calls=%b
  %one = f32[4]{0} get-tuple-element(%sum), index=0
  %c.1 = bf16[2,2]{1,0} custom-call(%cut, %cut), custom_call_target="__cublas$lt$matmul"
  ROOT %copy = f32[4]{0} copy(%one)
}
"""


def test_what_kernels_read_and_write_is_counted():
    cut, summed, copied = 64 + 64, 16 + 64 + 128 + 64, 16 + 16
    assert scaling.traffic(PROGRAM) == {
        "kernels": 4,
        "copies": 1,
        "copied_bytes": 16,
        "other_bytes": cut + summed + copied,
    }
