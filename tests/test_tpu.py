"""The step as XLA compiles it for TPU slices, of which none is here."""

import pathlib
import sys

import jax
import numpy as np
import pytest
from tiny import wide_config

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import measure  # noqa: E402
import plan  # noqa: E402
import scaling  # noqa: E402

from ddae.eval.knn import make_votes  # noqa: E402
from ddae.train.sharding import (  # noqa: E402
    MeshSettings,
    batch_sharding,
    make_mesh,
    replicated,
)

pytestmark = pytest.mark.tpu


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if said := plan.missing("v4:2x2x1"):
        pytest.fail(said, pytrace=False)


def test_a_host_of_four_chips_scatters_what_it_sums():
    row = plan.plan(wide_config(mesh__fsdp=4), 64, "v4:2x2x1")
    assert (row["chips"], row["hosts"]) == (4, 1)
    assert row["counts"]["all-gather"] > 0 and row["counts"]["reduce-scatter"] > 0
    assert row["state_bytes"] < row["planned_bytes"] < row["chip_bytes"]
    assert "| v4:2x2x1 | 4 | 1 | 64 | 4 |" in measure.table([plan.shown(row)])


def test_two_hosts_compile_the_same_step():
    row = plan.plan(wide_config(mesh__fsdp=4), 64, "v4:2x2x2")
    assert (row["chips"], row["hosts"]) == (8, 2)
    assert row["counts"]["all-gather"] > 0 and row["counts"]["all-reduce"] > 0


@pytest.mark.parametrize("fsdp", [1, 2, 8, 64])
def test_any_divisor_of_a_pod_is_a_mesh(fsdp):
    """Its torus is 4 x 4 x 4: to cut over 2, 8 or 32 chips splits an axis."""
    chips = list(plan.devices_of("v4:4x4x4"))
    mesh = make_mesh(MeshSettings(fsdp=fsdp), 4096, 1, chips)
    assert mesh.devices.shape == (64 // fsdp, fsdp)
    assert len(set(mesh.devices.flat)) == 64


def test_data_parallel_sums_its_gradients_at_once():
    work = measure.make_work(wide_config(), 16, list(plan.devices_of("v5e:2x2")))
    found = scaling.collectives(work.lower().compile().as_text())
    assert {kind for kind, *_ in found} == {"all-reduce"}
    matrices = {x.shape for x in jax.tree.leaves(work.shapes.params) if x.ndim == 2}
    summed = [op for op in found if any(shape in matrices for _, shape in op[1])]
    assert len(summed) == 1


def test_nearest_neighbours_compile_and_stay_in_float32():
    chips = list(plan.devices_of("v4:2x2x2"))
    mesh = make_mesh(MeshSettings(), 8, 1, chips)
    votes = make_votes(mesh, (10, 20), 0.07, 10)
    rows = batch_sharding(mesh)
    compiled = votes.lower(
        jax.ShapeDtypeStruct((64, 128), np.float32, sharding=replicated(mesh)),
        jax.ShapeDtypeStruct((4096, 128), np.float32, sharding=rows),
        jax.ShapeDtypeStruct((4096,), np.int32, sharding=rows),
    ).compile()
    assert "operand_precision={highest,highest}" in compiled.as_text()
