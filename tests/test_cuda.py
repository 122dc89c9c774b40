"""The step as XLA compiles it for GPUs, of which none is here."""

import collections
import pathlib
import re
import sys

import jax
import numpy as np
import pytest
from test_classify import classify_config
from tiny import tiny_config, wide_config

from ddae.models.vit import VIT_SPECS, ViTSpec

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import measure  # noqa: E402
import plan  # noqa: E402
import scaling  # noqa: E402

pytestmark = pytest.mark.cuda

APART = {"xla_gpu_dot_merger_threshold_mb": 0}
"""XLA makes one of small products, as these are and a ViT-B's are not."""

NARROW = {"depth": 1, "width": 32, "num_heads": 2}
"""A decoder whose heads fit Pallas's kernel."""


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


@pytest.fixture(scope="module")
def wide(compiler):
    return compiled_for("h100:1", wide_config())


def test_the_gradient_of_a_norm_is_one_kernel(wide):
    """With the addition to that of the branch beside it."""
    name = r'op_name="[^"]*transpose[^"]*/block_\d+/norm_\w+/'
    kernels = [
        line
        for _, _, kind, _, line in scaling.instructions(wide[1])
        if kind not in scaling.NO_KERNEL and re.search(name, line)
    ]
    of_triton = ["__triton" in line for line in kernels]
    if jax.__version_info__ < (0, 12):
        assert of_triton == 8 * [True], "two blocks, two heads of one, two norms each"
    else:  # the first blocks' go on to what cuts the tokens, and are called after that
        assert sorted(of_triton) == [False, *5 * [True]], "an addition is left alone"


def test_the_state_is_written_over_and_never_copied(wide):
    """Nor what enters a norm: the sum of a branch is written over it; were it needed
    again, it would be copied first."""
    work, text = wide
    tokens = [
        result
        for _, result, kind, *_ in scaling.instructions(text)
        if kind == "copy" and re.match(r"bf16\[(64,|\d{4,},)", result)
    ]
    assert len(tokens) <= 1, "those of a tap, which a head reads too"
    assert " conditional(" not in text, "the host would wait for it"
    matrices = [x.shape for x in jax.tree.leaves(work.shapes.params) if x.ndim == 2]
    copied = {
        tuple(int(n) for n in re.match(r"f32\[([\d,]+)\]", result)[1].split(","))
        for _, result, kind, *_ in scaling.instructions(text)
        if kind == "copy" and re.match(r"f32\[\d", result)
    }
    assert len(matrices) > 20 and not copied & set(matrices)


def test_the_heads_of_four_taps_need_no_more_memory_than_those_of_two(monkeypatch):
    """They take turns, though devices sum their gradients."""
    monkeypatch.setitem(VIT_SPECS, "Four", ViTSpec(128, 4, 2))
    config = wide_config(model__size="Four", image_size=64)
    config["model"]["patch_size"] = 4
    config["method"]["decoder"] = {"depth": 1, "width": 128, "num_heads": 4}
    devices, needed = list(plan.devices_of("h100:4")), []
    for taps in ((3, 4), (1, 2, 3, 4)):
        config["method"]["taps"] = taps
        work = measure.make_work(config, 256 * len(devices), devices)
        with plan.as_if_there(devices):
            compiled = work.lower().compile(plan.UNTRIED)
        needed.append(compiled.memory_analysis().temp_size_in_bytes)
    assert needed[1] < 1.2 * needed[0]


def test_attention_has_its_kernels_where_they_pay_and_stays_with_its_rows():
    """65 tokens, an odd number: the teacher's wide heads by flash attention, the
    decoder's narrow ones by Pallas; the student's 17 are too few."""
    config = wide_config(method__decoder=NARROW)
    _, text = compiled_for("h100:4", config)
    flashes = re.findall(r'= (.*?) custom-call\(.*"__cudnn\$fmhaSoftmax"', text)
    assert len(flashes) == 2 and all("bf16[16,2,66,64]" in call for call in flashes)
    calls = re.findall(r'= (.*?) custom-call\(.*"__gpu\$xla.gpu.triton"', text)
    results = sorted(re.findall(r"\w+\[[\d,]+\]", call) for call in calls)
    gradients = ["bf16[16,65,3,2,16]", "f32[16,3,2,16]"]
    assert results == 2 * [["bf16[16,65,2,16]"]] + 2 * [gradients]
    assert {kind for kind, *_ in scaling.collectives(text)} == {"all-reduce"}
    config["model"]["attention"] = "xla"
    assert not re.search("fmha|xla.gpu.triton", compiled_for("h100:4", config)[1])


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


@pytest.mark.parametrize(
    "attention, target, calls, arrays",
    [("cudnn", "__cudnn$fmhaSoftmax", 10, 3), ("auto", "__gpu$xla.gpu.triton", 4, 1)],
)
def test_attention_takes_what_products_wrote(attention, target, calls, arrays):
    """Queries, keys and values are neither cut from an array nor padded for it, nor are
    the gradients of what it gave: each is written once. What Pallas's kernel gives of
    theirs products alone read: it has summed the bias's itself."""
    config = wide_config(method__decoder=NARROW)
    config["model"]["attention"] = attention
    _, text = compiled_for("h100:1", config, **APART)
    made = {name: rest for name, *rest in scaling.instructions(text)}

    def source(name):
        _, kind, operands, line = made[name]
        if kind in ("bitcast", "get-tuple-element"):
            return source(operands[0])
        return re.search(r'custom_call_target="([^"]*)"|$', line)[1]

    found = re.findall(rf'%(\S+) = .*"{re.escape(target)}(?:Backward)?"', text)
    assert len(found) == calls
    for name in found:
        batches = [x for x in made[name][2] if made[x][0].startswith("bf16[64,")]
        assert len(batches) >= arrays
        for kind in map(source, batches):
            assert re.match(r"__cublas|__cudnn", kind), f"{name} reads {kind}"
    if attention == "auto":
        readers = [
            line
            for _, kind, operands, line in made.values()
            if kind not in scaling.NO_KERNEL
            and any(
                made[x][0].startswith("bf16[") and source(x) == target for x in operands
            )
        ]
        assert len(readers) == 8 and all("__cublas" in line for line in readers)


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
    matrices = [
        (op[0], number, np.prod(shape))
        for op in found
        for number, shape in op[1]
        if op[0] == "reduce-scatter" or len(shape) == 2  # and norms' gradients, vectors
    ]
    elements = {
        kind: sum(size for one, _, size in matrices if one == kind)
        for kind in ("all-gather", "reduce-scatter")
    }
    assert elements["reduce-scatter"] * fsdp == sum(cut)
    assert elements["all-gather"] == 2 * sum(cut), "the student's and the teacher's"
    assert {number for kind, number, _ in matrices if kind == "all-gather"} == {"bf16"}


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


def test_products_end_in_a_gelu_by_tanh():
    """The teacher's with it alone, the others' with their own result beside it."""
    config = wide_config(model__gelu="tanh")
    _, text = compiled_for("h100:1", config)
    ends = collections.Counter(re.findall(r'"epilogue":"(\w*GELU\w*)"', text))
    assert ends == {"BIAS_GELU": 2, "BIAS_GELU_AUX": 4}
