import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ddae.masking import Masking
from ddae.models import blocks, kernels, linear, short_attention, vit
from ddae.models.blocks import Block, Blocks, ViTSpec, through_blocks
from ddae.models.gelu import ACTIVATIONS, gelu
from ddae.models.heads import Classifier, MaskedLinear, TapDecoder
from ddae.models.linear import Norm, NormedLinear
from ddae.models.positions import sincos
from ddae.models.vit import VIT_SPECS, Encoder, Features
from ddae.train.sharding import MeshSettings, batch_sharding, make_mesh

SMALL = ViTSpec(32, 3, 2)


def make(grid=(2, 4), patch_size=4, channels=3, spec=SMALL, **options):
    encoder = Encoder(spec, grid, patch_size, channels=channels, **options)
    shape = (2, grid[0] * patch_size, grid[1] * patch_size, channels)
    images = jax.random.normal(jax.random.key(1), shape)
    return encoder, images


def test_sizes_of_the_vit_table():
    # Widths, depths and heads of DeiT and ViT; parameters of a B/16 encoder at 224.
    assert VIT_SPECS["Ti"] == ViTSpec(192, 12, 3)
    assert VIT_SPECS["L"] == ViTSpec(1024, 24, 16)
    encoder = Encoder(VIT_SPECS["B"], (14, 14), 16)
    images = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), images)
    count = sum(x.size for x in jax.tree.leaves(shapes))
    # 85.80 M is ViT-B/16 without classifier, less its 197 x 768 learned positions.
    assert count == 85_798_656 - 197 * 768


def test_sincos_is_maes():
    table = sincos(16, (2, 3))
    # Patch 5 of a (2, 3) grid: row 1, column 2. Column first, sines before cosines.
    frequencies = 10000.0 ** -(np.arange(4) / 4)
    expected = np.concatenate(
        [f(p * frequencies) for p in (2, 1) for f in (np.sin, np.cos)]
    )
    np.testing.assert_allclose(table[5], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos(18, (2, 2))


@pytest.mark.parametrize("grid", [(2, 4), (3, 3), (1, 5)])
@pytest.mark.parametrize("patch_size, channels", [(4, 3), (2, 1), (3, 6)])
@pytest.mark.parametrize("layout", ["visible", "mask_token"])
def test_any_grid_patch_size_and_channel_count(grid, patch_size, channels, layout):
    encoder, images = make(grid, patch_size, channels)
    mask = Masking(ratio=0.5).draw(jax.random.split(jax.random.key(0), 2), grid)
    shapes = jax.eval_shape(
        lambda: encoder.init_with_output(
            jax.random.key(0), images, mask, layout, (1, 3)
        )[0]
    )
    n = grid[0] * grid[1]
    tokens = mask.ids_visible.shape[1] if layout == "visible" else n
    assert {k: v.patches.shape for k, v in shapes.items()} == dict.fromkeys(
        (1, 3), (2, tokens, 32)
    )
    assert shapes[3].prefix.shape == (2, 1, 32)


def test_layouts_see_only_visible_patches():
    encoder, images = make()
    mask = Masking(ratio=0.5).draw(jax.random.split(jax.random.key(0), 2), (2, 4))
    hidden = np.asarray(mask.is_masked).reshape(2, 2, 4).repeat(4, 1).repeat(4, 2)
    other = jnp.where(hidden[..., None], 7.0, images)
    for layout in ("visible", "mask_token"):
        variables = encoder.init(jax.random.key(0), images, mask, layout)
        seen = encoder.apply(variables, images, mask, layout)[3].patches
        changed = encoder.apply(variables, other, mask, layout)[3].patches
        np.testing.assert_array_equal(seen, changed)
        unmasked = encoder.apply(variables, images)[3].patches
        assert unmasked.shape == (2, 8, 32)


def test_visible_layout_keeps_the_positions_of_its_patches():
    # A one-layer view: tokens before any block equal the full image's at those ids.
    encoder = Encoder(ViTSpec(32, 1, 2), (2, 4), 4)
    _, images = make()
    mask = Masking(ratio=0.5).draw(jax.random.split(jax.random.key(0), 2), (2, 4))
    variables = encoder.init(jax.random.key(0), images)
    silent = jax.tree.map(jnp.zeros_like, variables["params"]["block_00"])
    variables["params"]["block_00"] = silent
    full = encoder.apply(variables, images)[1].patches
    some = encoder.apply(variables, images, mask)[1].patches
    picked = jnp.take_along_axis(full, mask.ids_visible[..., None], axis=1)
    np.testing.assert_allclose(some, picked, rtol=1e-6)


KINDS = {
    "plain": {},
    "shared": {"positions": "none", "relative_bias": "shared"},
    "block": {"relative_bias": "block", "layer_scale": 0.1},
    "drop_path": {"drop_path": 0.4},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(("dots", False), marks=pytest.mark.slow),
        pytest.param(("full", False), marks=pytest.mark.slow),
        pytest.param(("off", True), marks=pytest.mark.slow),
        ("dots", True),
    ],
)
def test_remat_and_scan_change_neither_values_nor_gradients(how, kind):
    remat, scan = how
    spec, taps = ViTSpec(32, 4, 2), (1, 4)
    encoder, images = make(spec=spec, **KINDS[kind])
    variables = jax.jit(encoder.init)(jax.random.key(0), images)
    again, _ = make(spec=spec, remat=remat, scan=scan, **KINDS[kind])
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(again.init, jax.random.key(0), images)
    )
    keys = jax.random.split(jax.random.key(3), 2) if kind == "drop_path" else None
    wanted = jax.random.normal(jax.random.key(2), (2, 8, 32))

    def total(model):
        def of(variables):
            found = model.apply(variables, images, taps=taps, keys=keys)
            return sum(((found[tap].patches - wanted) ** 2).sum() for tap in taps)

        return of

    assert (" scan[" in str(jax.make_jaxpr(total(again))(variables))) == scan
    for plain, other in zip(
        jax.tree.leaves(jax.jit(jax.value_and_grad(total(encoder)))(variables)),
        jax.tree.leaves(jax.jit(jax.value_and_grad(total(again)))(variables)),
        strict=True,
    ):
        size = np.abs(plain).max()
        np.testing.assert_allclose(plain, other, rtol=0, atol=2e-6 * size)


def loops_of(*taps):
    """The loops of an encoder of four blocks, forward and backward."""
    encoder, images = make(spec=ViTSpec(32, 4, 2), scan=True)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), images)

    def total(variables):
        found = encoder.apply(variables, images, taps=(*taps, 4))
        return found[4].patches.sum()

    found = jax.make_jaxpr(jax.grad(total))(variables).eqns
    return [eqn for eqn in found if eqn.primitive.name == "scan"]


def test_two_blocks_are_no_loop():
    assert (len(loops_of(2)), len(loops_of(3))) == (0, 2)


def test_a_loop_keeps_nothing_twice_for_its_gradient():
    kept = [math.prod(x.aval.shape[1:]) for x in loops_of()[0].outvars]
    # Two inputs of Linears behind norms, q, k, v, what attention gives; GELU's input
    # and what it gives.
    assert (kept.count(2 * 9 * 32), kept.count(2 * 9 * 128)) == (6, 2)


def test_bfloat16_compute_keeps_float32_parameters():
    encoder, images = make(dtype=jnp.bfloat16)
    tokens, variables = encoder.init_with_output(jax.random.key(0), images)
    assert tokens[3].patches.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_heads_predict_the_masked_patches_and_nothing_else():
    encoder, images = make()
    mask = Masking(ratio=0.5).draw(jax.random.split(jax.random.key(0), 2), (2, 4))
    outputs = {"pixels": 48, "features": 32}
    blocks, none = (
        Blocks(spec=ViTSpec(16, depth, 2), dtype=jnp.float32) for depth in (1, 0)
    )
    heads = {
        "visible": TapDecoder(blocks, (2, 4), outputs, input_norm=True),
        "mask_token": MaskedLinear(outputs, input_norm=True),
    }
    without = heads["visible"].clone(blocks=none)
    for layout, head in [*heads.items(), ("visible", without)]:
        tokens, _ = encoder.init_with_output(
            jax.random.key(0), images, mask, layout, (2,)
        )
        predictions, variables = head.init_with_output(
            jax.random.key(1), (tokens[2],), mask
        )
        m = mask.ids_masked.shape[1]
        assert {k: v.shape for k, v in predictions.items()} == {
            "pixels": (2, m, 48),
            "features": (2, m, 32),
        }
        assert "input_norm" in variables["params"]


NARROW = {"tokens": 197, "head_width": 32}


@pytest.mark.parametrize(
    "changes, kernel",
    [
        ({}, "cudnn"),
        ({"chosen": "xla"}, "xla"),
        ({"dtype": jnp.float32}, "xla"),
        ({"biased": True}, "cudnn"),
        ({"biased": True, "capability": "8.0"}, "xla"),
        ({"capability": "8.0"}, "cudnn"),
        ({"capability": "7.5"}, "xla"),
        ({"head_width": 36}, "xla"),
        ({"head_width": 136}, "xla"),
        ({"chosen": "pallas"}, "pallas"),
        ({"chosen": "pallas", **NARROW, "capability": "8.0"}, "pallas"),
        ({"chosen": "pallas", **NARROW, "capability": "7.5"}, "xla"),
        ({"chosen": "pallas", "biased": True}, "xla"),
        ({"chosen": "pallas", "tokens": 65}, "xla"),
        ({"chosen": "pallas", "tokens": 257, "head_width": 32}, "xla"),
        ({"chosen": "pallas", "head_width": 8}, "xla"),
        ({"chosen": "auto"}, "pallas"),
        ({"chosen": "auto", **NARROW}, "pallas"),
        ({"chosen": "auto", **NARROW, "capability": "8.0"}, "cudnn"),
        ({"chosen": "auto", **NARROW, "capability": "10.0"}, "cudnn"),
        ({"chosen": "auto", **NARROW, "capability": "7.5"}, "xla"),
        ({"chosen": "auto", "tokens": 49}, "xla"),
        ({"chosen": "auto", "tokens": 197}, "cudnn"),
        ({"chosen": "auto", "tokens": 197, "biased": True}, "xla"),
    ],
)
def test_attention_has_the_kernel_that_can_run(changes, kernel, monkeypatch):
    asked = {
        "chosen": "cudnn",
        "tokens": 50,
        "head_width": 64,
        "dtype": jnp.bfloat16,
        "biased": False,
        "capability": "9.0",
    } | changes

    class Gpu:
        platform, compute_capability = "gpu", asked.pop("capability")

    assert kernels.attention_kernel(**asked) == "xla"  # on this machine
    monkeypatch.setattr(kernels.jax, "devices", lambda: [Gpu()])
    assert kernels.attention_kernel(**asked) == kernel


@pytest.mark.parametrize("found", [None, object()])  # before jax 0.10.2: no dot
def test_a_jax_without_triton_has_flash_attention(monkeypatch, found):
    assert short_attention.fits(50, 64)
    monkeypatch.setattr(short_attention, "triton", found)
    assert not short_attention.fits(50, 64)


def test_an_attention_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="'flash' is not one of auto, xla, cudnn, pal"):
        kernels.attention_kernel("flash", 50, 64, jnp.bfloat16, False)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [pytest.param(50, marks=pytest.mark.slow), 197])
def test_flash_attention_is_attention(tokens, biased):
    """Output and gradients, of an odd number of tokens too: by cuDNN where there is a
    GPU that can, else by jax's own, with lengths alike."""
    shapes = 3 * [(8, tokens, 4, 32)] + biased * [(1, 4, tokens, tokens)]
    operands = [
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
        for i, shape in enumerate([*shapes, shapes[0]])
    ]
    kernel = kernels.attention_kernel("cudnn", tokens, 32, jnp.bfloat16, biased)

    def flash(q, k, v, bias=None):
        more = ((0, 0), (0, tokens % 2), (0, 0), (0, 0))
        # What fills up is seen by none, be it as large as it may.
        q, k, v = (jnp.pad(x, more, constant_values=99.0) for x in (q, k, v))
        return kernels.flash(q, k, v, tokens, bias, implementation=kernel)[:, :tokens]

    for found, wanted in zip(
        with_gradients(flash, *operands),
        with_gradients(kernels.attend, *operands),
        strict=True,
    ):
        largest = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, atol=0.02 * largest)


@pytest.mark.parametrize("b, rows", [(4, (0, 0, 1, 1)), (3, (0, 0, 0))])
def test_each_part_of_a_batch_has_its_own_bias(b, rows):
    """Where it has no such parts, the first one."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, b, 5, 2, 4))
    bias = jax.random.normal(jax.random.key(1), (2, 2, 5, 5))
    found = kernels.attend(q, k, v, bias)
    for i, row in enumerate(rows):
        one = slice(i, i + 1)
        alone = kernels.attend(q[one], k[one], v[one], bias[row : row + 1])
        np.testing.assert_allclose(found[one], alone, atol=1e-6)


@pytest.mark.parametrize(
    "kernel, relative_bias",
    [("cudnn", "none"), ("cudnn", "shared"), ("cudnn", "block"), ("pallas", "none")],
)
def test_a_stack_with_a_kernel_is_the_one_without(kernel, relative_bias, monkeypatch):
    """Every tap and gradient; 9 tokens: for flash attention one more goes through all
    blocks."""
    encoder, images = make(dtype=jnp.float32, relative_bias=relative_bias)
    params = jax.jit(encoder.init)(jax.random.key(0), images)["params"]
    key = jax.random.key(1)
    params = jax.tree.map(lambda x: x + jax.random.normal(key, x.shape) / 4, params)
    seen = []

    def flash(q, k, v, tokens, bias):
        seen.append((q.shape[1], tokens))
        return kernels.flash(q, k, v, tokens, bias, implementation="xla")

    def short(qkv, bias):
        seen.append(qkv.shape[1:3])
        return short_attention.short_attention(qkv, bias, True)

    def taps(params):
        found = encoder.apply({"params": params}, images, taps=(0, 1, 3))
        return jax.tree.map(jnp.sin, found)

    def both():
        found, pull = jax.vjp(taps, params)
        return found, pull(found)

    wanted = both()
    monkeypatch.setattr(blocks, "attention_kernel", lambda *_: kernel)
    monkeypatch.setattr(blocks, "flash", flash)
    monkeypatch.setattr(blocks, "short_attention", short)
    found = both()
    # Newer XLA rounds more on a CPU: 2e-6 of an array's largest, for 2e-7 before.
    close = 1e-5 if jax.__version_info__ < (0, 11) else 3e-5
    # Pallas's softmax is to base 2, of a product scaled after its sum.
    shape, atol = {"cudnn": ((10, 9), close), "pallas": ((9, 3), 1e-4)}[kernel]
    assert seen == 3 * [shape]
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(
    "tokens, width",
    [
        (50, 64),
        *(
            pytest.param(*few, marks=pytest.mark.slow)
            for few in ((5, 16), (64, 64), (65, 32), (197, 32), (256, 16))
        ),
    ],
)
def test_short_attention_is_attention(tokens, width):
    """Output and gradients, the bias's too, by Triton where there is a GPU, else as
    Pallas interprets it; held to float32, and no further from it than XLA's own."""
    assert short_attention.fits(tokens, width)
    shapes = [(2, tokens, 3, 2, width), (3, 2, width), (2, tokens, 2, width)]
    operands = [
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16)
        for i, shape in enumerate(shapes)
    ]
    interpret = jax.default_backend() != "gpu"

    def short(qkv, bias):
        return short_attention.short_attention(qkv, bias, interpret)

    def wide(qkv, bias):
        return kernels.attend(*jnp.unstack(qkv + bias, axis=2))

    with jax.default_matmul_precision("float32"):
        wanted = with_gradients(wide, *(x.astype(jnp.float32) for x in operands))
    theirs = with_gradients(wide, *operands)
    for own, xla, exact in zip(
        with_gradients(short, *operands), theirs, wanted, strict=True
    ):
        far, further = (np.linalg.norm(x - exact) for x in (own, xla))
        assert far <= 1.1 * further <= 0.01 * np.linalg.norm(exact)


def test_short_attention_stays_on_its_devices():
    """Each computes its own examples; only the bias's gradient is summed over them."""
    rows = batch_sharding(make_mesh(MeshSettings(), 8, 1))
    qkv, out = (
        jax.device_put(jax.random.normal(jax.random.key(0), shape), rows)
        for shape in ((8, 9, 3, 2, 16), (8, 9, 2, 16))
    )
    bias = jnp.ones((3, 2, 16))

    def gradients(attention, qkv, bias):
        return jax.vjp(attention, qkv, bias)[1](out)

    own = functools.partial(
        gradients, lambda *x: short_attention.short_attention(*x, True)
    )
    wide = functools.partial(
        gradients, lambda x, y: kernels.attend(*jnp.unstack(x + y, axis=2))
    )
    compiled = jax.jit(own).lower(qkv, bias).compile()
    found = compiled(qkv, bias)
    assert found[0].sharding.is_equivalent_to(rows, 5)
    kinds = set(
        re.findall(r" (all-\w+|reduce-scatter|collective-\w+)\(", compiled.as_text())
    )
    assert kinds == {"all-reduce"}
    for one, other in zip(found, wide(qkv, bias), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def with_gradients(function, *operands):
    """What `function` gives of all but the last, and its gradients by the last."""
    *given, weights = operands
    out, gradients = jax.vjp(function, *given)
    return [np.asarray(x, np.float32) for x in (out, *gradients(weights))]


class Plain(nn.Module):
    """A LayerNorm and a Linear layer, with the names of `Norm` and `NormedLinear`."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(24, name="up")(nn.LayerNorm(epsilon=1e-6, name="norm")(x))


class Taken(nn.Module):
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x):
        normed = Norm(self.dtype, name="norm")(x)
        return NormedLinear(24, self.dtype, name="up")(normed)


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("dtype, off", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_a_linear_that_takes_its_norm_in_is_the_two_of_them(
    dtype, off, in_turn, monkeypatch
):
    monkeypatch.setattr(linear, "sums_in_turn", lambda: in_turn)
    x, out = (
        jax.random.normal(jax.random.key(i), (3, 5, k)) for i, k in ((0, 16), (1, 24))
    )
    x = 3.0 * x + 1.0
    params = Plain().init(jax.random.key(2), x)["params"]
    moved = jax.random.normal(jax.random.key(3), (4, 16))
    params["norm"] = {"scale": 1.0 + 0.3 * moved[0], "bias": 0.3 * moved[1]}
    params["up"]["bias"] = params["up"]["bias"] + 0.5
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, Taken().init(jax.random.key(2), x)["params"]
    )

    def through(network, x):
        def both(params, x):
            made, pull = jax.vjp(
                lambda p, x: network.apply({"params": p}, x), params, x
            )
            return made, pull(out.astype(made.dtype))

        return jax.tree.leaves(jax.jit(both)(params, x))

    found = through(Taken(dtype), x.astype(dtype))
    for one, two in zip(found, through(Plain(), x), strict=True):
        assert jnp.linalg.norm(one - two) < off * jnp.linalg.norm(two)


def test_gelu_is_exact_and_so_is_its_gradient():
    x = np.linspace(-9.0, 9.0, 2001)
    cdf = scipy.stats.norm.cdf(x)
    slope = cdf + x * scipy.stats.norm.pdf(x)
    narrow = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(gelu(narrow), x * cdf, atol=1e-6)
    (gradient,) = jax.vjp(gelu, narrow)[1](jnp.ones_like(narrow))
    np.testing.assert_allclose(gradient, slope, atol=1e-6)
    half = narrow.astype(jnp.bfloat16)
    found, pull = jax.vjp(gelu, half)
    (gradient,) = pull(jnp.ones_like(half))
    assert found.dtype == gradient.dtype == jnp.bfloat16
    # One rounding at the end alone.
    exact = np.asarray(half, np.float64)
    exact = exact * scipy.stats.norm.cdf(exact)
    found = np.asarray(found, np.float64)
    np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-6)


def test_gelu_by_tanh_is_close_to_it_and_its_gradient_is_its_own():
    tanh, x = ACTIVATIONS["tanh"], jnp.linspace(-9.0, 9.0, 2001)
    assert 3e-4 < jnp.abs(tanh(x) - gelu(x)).max() < 5e-4
    (gradient,) = jax.vjp(tanh, x)[1](jnp.ones_like(x))
    (wanted,) = jax.vjp(lambda x: nn.gelu(x, approximate=True), x)[1](jnp.ones_like(x))
    np.testing.assert_allclose(gradient, wanted, atol=2e-6)
    half = x.astype(jnp.bfloat16)
    found = np.asarray(tanh(half), np.float32)
    wide = np.asarray(nn.gelu(half.astype(jnp.float32), approximate=True))
    np.testing.assert_allclose(found, wide, rtol=2**-8, atol=1e-6)


def test_small_layer_scales_are_not_lost_in_half_precision():
    given = {"layer_scale": 1e-4, "final_norm": False}
    images = jax.random.normal(jax.random.key(0), (2, 8, 16, 3))
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        encoder = Encoder(ViTSpec(32, 2, 2), (2, 4), 4, dtype=dtype, **given)
        params = jax.jit(encoder.init)(jax.random.key(0), images)
        taps = encoder.apply(params, images, taps=(0, 2))
        found[dtype] = taps[2].patches - taps[0].patches
    exact, half = found.values()
    assert jnp.linalg.norm(half - exact) < 0.1 * jnp.linalg.norm(exact)


def test_drop_path_rises_from_block_to_block(monkeypatch):
    encoder, images = make(drop_path=0.6, final_norm=False)
    rates = []

    def record(owner, blocks, layers, x, bias, keys, drop_path, taps):
        rates.extend(drop_path)
        return dict.fromkeys(taps, x)

    monkeypatch.setattr(vit, "through_blocks", record)
    encoder.init(jax.random.key(0), images, taps=(1, 3))
    np.testing.assert_allclose(rates, [0.0, 0.3, 0.6])


def test_a_branch_that_is_kept_makes_up_for_those_that_are_dropped():
    block = Block(SMALL, jnp.float32)
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 3, 32)), (64, 3, 32))
    params = block.init(jax.random.key(1), x)["params"]
    params["mlp"]["down"] = jax.tree.map(jnp.zeros_like, params["mlp"]["down"])
    branch = block.apply({"params": params}, x) - x
    keys = jax.random.split(jax.random.key(2), 64)
    found = block.apply({"params": params}, x, None, keys, 0.25) - x
    kept = (np.abs(found) > 1e-6).any(axis=(1, 2))
    assert 32 < kept.sum() < 64
    np.testing.assert_allclose(found[kept], branch[kept] / 0.75, rtol=1e-3, atol=1e-5)


def test_a_classifier_begins_as_small_as_it_is_told():
    features = Features(prefix=jnp.zeros((1, 1, 64)), patches=jnp.zeros((1, 4, 64)))
    head = Classifier(50, "mean", "none", num_heads=2, kernel_deviation=0.5)
    kernel = head.init(jax.random.key(0), features)["params"]["linear"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), 0.5, rtol=0.05)


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_classifier_pools_what_it_is_told(pool):
    random = np.random.default_rng(0)
    prefix, patches = random.normal(size=(2, 1, 8)), random.normal(size=(2, 4, 8))
    features = Features(
        prefix=jnp.asarray(prefix, jnp.float32),
        patches=jnp.asarray(patches, jnp.float32),
    )
    head = Classifier(3, pool, "none", num_heads=2, kernel_deviation=0.5)
    (found, _), made = head.init_with_output(jax.random.key(0), features)
    x = patches.mean(axis=1) if pool == "mean" else prefix[:, 0]
    expected = x @ np.asarray(made["params"]["linear"]["kernel"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_branches_and_blocks_drop_by_draws_of_their_own():
    spec = VIT_SPECS["Two"]

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x, keys=None):
            blocks = Blocks(spec=spec, dtype=jnp.float32)
            layers, rates = range(1, 3), [0.5, 0.5]
            return through_blocks(self, blocks, layers, x, None, keys, rates, (1,))

    x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 3, 32)), (64, 3, 32))
    params = jax.jit(Stack().init)(jax.random.key(1), x)
    keys = jax.random.split(jax.random.key(2), 64)
    found = jax.jit(Stack().apply)(params, x, keys)
    # Each of two branches kept or not; of two blocks each in four ways.
    one, both = (np.asarray(found[tap]).round(3) for tap in (1, 2))
    assert len({x.tobytes() for x in one}) == 4
    assert len({x.tobytes() for x in both}) > 12
