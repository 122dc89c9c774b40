"""MAE against transformers' ViTMAEForPreTraining: loss, predictions, gradients."""

import dataclasses
import pathlib

import hf_mae
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import make_mae_golden as golden

from ddae.masking import Mask, make_mask
from ddae.methods import Decoder, mae
from ddae.models.vit import Encoder, ViTSpec
from ddae.tasks.pretrain import Pretrain, Standardisation

# Agreement is promised to 1e-4. Both sides compute in float32 and differ by about 1e-6,
# and at 1e-5 a LayerNorm epsilon of 1e-5 is seen in the decoder too.
RTOL = 1e-5


@dataclasses.dataclass(frozen=True)
class GivenMask:
    """Stands in for `Masking`, so that both sides hide the same patches."""

    mask: Mask

    def draw(self, keys, grid):
        return self.mask


def make_task(grid, channels, standardise_pixels):
    spec = ViTSpec(golden.WIDTH, golden.DEPTH, golden.HEADS)
    method = mae(
        Encoder(spec, grid, golden.PATCH, channels=channels),
        decoder=Decoder(
            depth=golden.DECODER_DEPTH,
            width=golden.DECODER_WIDTH,
            num_heads=golden.DECODER_HEADS,
        ),
        standardise_pixels=standardise_pixels,
    )
    as_given = Standardisation(mean=(0.0,) * channels, std=(1.0,) * channels)
    return Pretrain(method, as_given)


def part(case, prefix):
    """The tensors below "state/" or "gradient/"."""
    return {
        name.removeprefix(prefix): value
        for name, value in case.items()
        if name.startswith(prefix)
    }


def relative_errors(case, grid, standardise_pixels=True):
    """|ours - theirs| / |theirs| of the loss, the predictions and every gradient."""
    image, is_masked = jnp.asarray(case["image"]), jnp.asarray(case["is_masked"])
    state = part(case, "state/")
    assert set(hf_mae.POSITIONS) <= set(state)
    params = jax.tree.map(jnp.asarray, hf_mae.from_hf(state, grid))

    task = make_task(grid, image.shape[-1], standardise_pixels)
    ours = jax.eval_shape(task.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, ours)
    num_masked = task.method.masking.num_masked(grid)
    assert num_masked == case["predictions"].shape[1]
    mask = make_mask(is_masked, num_masked)
    method = dataclasses.replace(task.method, masking=GivenMask(mask))
    task = dataclasses.replace(task, method=method)

    def loss_and_predictions(params):
        keys = jax.random.split(jax.random.key(0), image.shape[0])
        loss, _, _ = task.loss(params, {}, {"image": image}, jnp.zeros(()), keys)
        predictions, _ = task.predict(params, image, mask)
        ((head, outputs),) = predictions.items()
        return loss, outputs["pixels"]

    with jax.default_matmul_precision("highest"):
        (loss, predictions), gradients = jax.jit(
            jax.value_and_grad(loss_and_predictions, has_aux=True)
        )(params)
    theirs = hf_mae.from_hf(part(case, "gradient/"), grid)
    errors = jax.tree.map(relative_error, gradients, theirs)
    return {
        "loss": relative_error(loss, case["loss"]),
        "predictions": relative_error(predictions, case["predictions"]),
        **{
            "gradient" + jax.tree_util.keystr(path): error
            for path, error in jax.tree_util.tree_leaves_with_path(errors)
        },
    }


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def check(errors):
    worst = sorted(errors, key=lambda name: errors[name], reverse=True)[:3]
    report = ", ".join(f"{name} {errors[name]:.1e}" for name in worst)
    print(
        f"loss {errors['loss']:.1e}, predictions {errors['predictions']:.1e};", report
    )
    assert all(error < RTOL for error in errors.values()), f"the worst: {report}"


def load(name):
    with np.load(pathlib.Path(golden.__file__).with_name(f"{name}.npz")) as file:
        return dict(file)


@pytest.mark.parametrize("name", golden.CASES)
def test_loss_predictions_and_gradients_match_the_golden(name):
    check(relative_errors(load(name), golden.CASES[name]))


def test_no_tensor_is_dropped_or_made_up():
    grid = golden.CASES["mae_wide"]
    state = part(load("mae_wide"), "state/")
    with pytest.raises(ValueError, match="decoder.extra"):
        hf_mae.from_hf(state | {"decoder.extra": np.zeros(3)}, grid)
    with pytest.raises(ValueError, match="position_embeddings differs"):
        hf_mae.from_hf(state, grid[::-1])
    del state["vit.layers.1.attention.k_proj.bias"]
    with pytest.raises(KeyError, match="k_proj.bias"):
        hf_mae.from_hf(state, grid)


@pytest.mark.torch
@pytest.mark.parametrize(
    "grid, seed, options",
    [
        ((4, 4), 10, {"positions_from_hf": True}),
        ((3, 3), 11, {"positions_from_hf": True, "channels": 1}),
        ((4, 8), 12, {}),
        ((8, 4), 13, {"channels": 2}),
        ((2, 6), 14, {"norm_pix_loss": False}),
    ],
)
def test_loss_predictions_and_gradients_match_live(grid, seed, options):
    case = golden.make_case(grid, seed, **options)
    check(relative_errors(case, grid, options.get("norm_pix_loss", True)))


@pytest.mark.torch
def test_the_positions_of_the_golden_are_those_of_transformers():
    state = part(golden.make_case((4, 4), 0, positions_from_hf=True), "state/")
    for name in hf_mae.POSITIONS:
        table = golden.position_table(state[name].shape[-1], (4, 4))
        np.testing.assert_allclose(state[name], table, atol=1e-6)
