"""The step as XLA compiles it for GPUs, of which none is here."""

import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from test_classify import classify_config
from tiny import tiny_config, wide_config

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import measure  # noqa: E402
import plan  # noqa: E402
import scaling  # noqa: E402

pytestmark = pytest.mark.cuda

APART = {"xla_gpu_dot_merger_threshold_mb": 0}
"""XLA makes one of small products, as these are and a ViT-B's are not."""


@pytest.fixture(scope="module", autouse=True)
def compiler():
    if said := plan.missing("h100:1"):
        pytest.fail(said, pytrace=False)


def compiled_for(name, config, batch=64, **options):
    """(work, text of the program) for GPUs that are not there."""
    devices = list(plan.devices_of(name))
    work = measure.make_work(config, batch, devices)
    with plan.as_if_there(devices):
        compiled = work.lower().compile(plan.UNTRIED | options)
    return work, compiled.as_text()


def test_the_state_is_written_over_and_never_copied():
    work, text = compiled_for("h100:1", wide_config())
    assert " conditional(" not in text, "the host would wait for it"
    matrices = [x.shape for x in jax.tree.leaves(work.shapes.params) if x.ndim == 2]
    copied = {
        tuple(int(n) for n in re.match(r"f32\[([\d,]+)\]", result)[1].split(","))
        for _, result, kind, *_ in scaling.instructions(text)
        if kind == "copy" and re.match(r"f32\[\d", result)
    }
    assert len(matrices) > 20 and not copied & set(matrices)


def test_attention_is_flash_from_where_it_pays_and_stays_with_its_rows():
    """65 tokens in teacher and decoder, an odd number; the student's 17 are too few."""
    config = wide_config()
    _, text = compiled_for("h100:4", config)
    calls = re.findall(r'= (.*?) custom-call\(.*"__cudnn\$fmhaSoftmax"', text)
    assert len(calls) == 4 and all("bf16[16,2,66," in call for call in calls), calls
    assert {kind for kind, *_ in scaling.collectives(text)} == {"all-reduce"}
    config["model"]["attention"] = "xla"
    assert "fmha" not in compiled_for("h100:4", config)[1]


def test_flash_attention_learns_a_bias_where_it_is_asked_to():
    config = wide_config(method={"name": "simmim"})
    config["model"] |= {"relative_bias": "shared", "attention": "cudnn"}
    _, text = compiled_for("h100:4", config)
    calls = re.findall(r'= (.*?) custom-call\(.*"__cudnn\$fmhaScaleBias(\w+)"', text)
    assert (
        sorted(kind for _, kind in calls) == ["Softmax"] * 2 + ["SoftmaxBackward"] * 2
    )
    backward = [made for made, kind in calls if kind == "SoftmaxBackward"]
    assert all("[1,2,66,66]" in made for made in backward), "its own gradient"
    assert {kind for kind, *_ in scaling.collectives(text)} == {"all-reduce"}


def test_flash_attention_takes_what_products_wrote():
    """Queries, keys and values are neither cut from one array nor padded for it, nor
    are the gradients of what it gave: each is written once."""
    _, text = compiled_for("h100:1", wide_config(), **APART)
    made = {name: rest for name, *rest in scaling.instructions(text)}

    def source(name):
        _, kind, operands, _ = made[name]
        return source(operands[0]) if kind in ("bitcast", "get-tuple-element") else kind

    calls = re.findall(r'%(\S+) = .*"__cudnn\$fmhaSoftmax(\w*)"', text)
    assert sorted(which for _, which in calls) == [""] * 4 + ["Backward"] * 2
    for name, _ in calls:
        arrays = [x for x in made[name][2] if made[x][0].startswith("bf16")]
        assert len(arrays) >= 3
        assert {source(x) for x in arrays} == {"custom-call"}, name


@pytest.mark.parametrize("name, fsdp", [("h100:4", 4), ("a100:2x4", 4)])
def test_fsdp_scatters_what_it_sums_and_gathers_kernels_in_half_precision(name, fsdp):
    work, text = compiled_for(name, wide_config(mesh__fsdp=fsdp), **APART)
    found = scaling.collectives(text)
    wanted = {"all-reduce", "all-gather", "reduce-scatter"}
    assert {kind for kind, *_ in found} == wanted
    cut = [
        shape.size
        for shape, sharding in zip(
            jax.tree.leaves(work.shapes.params),
            jax.tree.leaves(work.shardings.params),
            strict=True,
        )
        if not sharding.is_fully_replicated
    ]
    elements = {
        kind: sum(np.prod(shape) for op in found if op[0] == kind for _, shape in op[1])
        for kind in ("all-gather", "reduce-scatter")
    }
    assert elements["reduce-scatter"] * fsdp == sum(cut)
    assert elements["all-gather"] == 2 * sum(cut), "the student's and the teacher's"
    assert {kind for op in found if op[0] == "all-gather" for kind, _ in op[1]} == {
        "bf16"
    }


def test_a_plan_has_what_a_device_holds():
    row = plan.plan(wide_config(), 64, "rtx4090:2")
    assert (row["chips"], row["hosts"]) == (2, 1)
    assert row["state_bytes"] < row["planned_bytes"] < row["chip_bytes"] < 24 * 2**30
    assert "| rtx4090:2 | 2 | 1 | 64 | 1 |" in measure.table([plan.shown(row)])


@pytest.mark.parametrize(
    "config",
    [classify_config(), tiny_config(method={"name": "simmim"})],
    ids=["classify", "simmim"],
)
def test_other_steps_compile_too(config):
    """Fine-tuning mixes images with those of other devices, and sends them there."""
    _, text = compiled_for("h100:2", config | {"dtype": "bfloat16"}, 16)
    kinds = {kind for kind, *_ in scaling.collectives(text)}
    assert kinds - {"collective-permute"} == {"all-reduce"}
