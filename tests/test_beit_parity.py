"""BEiT against transformers: forward, relative position bias, masked loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae.masking import make_mask
from ddae.methods import beit
from ddae.models.vit import Encoder, RelativePositionBias, ViTSpec
from ddae.networks import TokenizerSettings
from ddae.objective import evaluate_terms
from ddae.targets import TargetContext
from ddae.tasks.pretrain import Pretrain, Standardisation

pytestmark = pytest.mark.torch

GRID, PATCH, WIDTH, DEPTH, HEADS, CODES = (6, 6), 4, 32, 3, 4, 11
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def theirs():
    import torch
    from transformers import BeitConfig, BeitForMaskedImageModeling

    config = BeitConfig(
        vocab_size=CODES,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=GRID[0] * PATCH,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
        use_mask_token=True,
        use_absolute_position_embeddings=False,
        use_shared_relative_position_bias=True,
        use_relative_position_bias=False,
        use_mean_pooling=True,
        layer_scale_init_value=0.1,
        drop_path_rate=0.0,
    )
    torch.manual_seed(0)
    model = BeitForMaskedImageModeling(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def converted(model):
    """Their weights at our paths."""
    weights = {name: x.detach().numpy() for name, x in model.state_dict().items()}
    dense = lambda name: {  # noqa: E731
        "kernel": weights[f"{name}.weight"].T,
        "bias": weights[f"{name}.bias"],
    }
    norm = lambda name: {  # noqa: E731
        "scale": weights[f"{name}.weight"],
        "bias": weights[f"{name}.bias"],
    }
    patch = weights["beit.embeddings.patch_embeddings.projection.weight"]
    encoder = {
        "cls_token": weights["beit.embeddings.cls_token"],
        "mask_token": weights["beit.embeddings.mask_token"],
        "patch_embedding": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, WIDTH),
            "bias": weights["beit.embeddings.patch_embeddings.projection.bias"],
        },
        "relative_bias": {
            "table": weights["beit.shared_position_bias.relative_position_bias_table"]
        },
    }
    for number in range(DEPTH):
        own = f"beit.layers.{number}"
        inner = f"{own}.attention"
        qkv = [
            weights[f"{inner}.{name}.weight"].T
            for name in ("q_proj", "k_proj", "v_proj")
        ]
        zero = np.zeros(WIDTH, np.float32)  # BEiT's keys have no bias
        biases = [
            weights[f"{inner}.q_proj.bias"],
            zero,
            weights[f"{inner}.v_proj.bias"],
        ]
        encoder[f"block_{number:02d}"] = {
            "attention": {
                "qkv": {
                    "kernel": np.concatenate(qkv, axis=1),
                    "bias": np.concatenate(biases),
                },
                "out": dense(f"{inner}.o_proj"),
            },
            "mlp": {
                "up": dense(f"{own}.mlp.fc1"),
                "down": dense(f"{own}.mlp.fc2"),
            },
            "norm_attention": norm(f"{own}.layernorm_before"),
            "norm_mlp": norm(f"{own}.layernorm_after"),
            "scale_attention": weights[f"{own}.lambda_1"],
            "scale_mlp": weights[f"{own}.lambda_2"],
        }
    last = f"block{DEPTH:02d}"
    head = {"input_norm": norm("layernorm"), "tokens": dense("lm_head")}
    return {"encoder": encoder, "heads": {last: head}}


def ours():
    encoder = Encoder(
        ViTSpec(WIDTH, DEPTH, HEADS),
        GRID,
        PATCH,
        positions="none",
        relative_bias="shared",
        layer_scale=0.1,
    )
    # A tokenizer that is never asked: the ids are given.
    settings = TokenizerSettings(codes=CODES)
    network = "ddae.networks.TokenizerSettings.network"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(network, lambda self, student: None)
        method = beit(encoder, tokenizer=settings)
    return Pretrain(method, Standardisation(mean=(0,) * 3, std=(1,) * 3))


def test_forward_and_loss(theirs):
    import torch

    random = np.random.default_rng(0)
    images = random.normal(size=(3, 24, 24, 3)).astype(np.float32)
    is_masked = np.argsort(random.random((3, 36)), axis=1) < 14
    ids = random.integers(0, CODES, (3, 36))
    with torch.no_grad():
        found = theirs(
            torch.tensor(images.transpose(0, 3, 1, 2)),
            bool_masked_pos=torch.tensor(is_masked),
            labels=torch.tensor(ids[is_masked]),
        )
    task, params = ours(), converted(theirs)
    shapes = jax.eval_shape(task.method.encoder.init, jax.random.key(0), images)
    del params["encoder"]["mask_token"]
    assert jax.tree.map(np.shape, params["encoder"]) == jax.tree.map(
        lambda x: x.shape, shapes["params"]
    )
    params = converted(theirs)
    mask = make_mask(jnp.asarray(is_masked), 14)
    predictions, _ = jax.jit(task.predict)(params, images, mask)
    logits = predictions[f"block{DEPTH:02d}"]["tokens"]
    expected = found.logits.numpy().reshape(-1, 36, CODES)
    expected = np.stack([row[m] for row, m in zip(expected, is_masked, strict=True)])
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    context = TargetContext(
        image=jnp.asarray(images),
        standardised=jnp.asarray(images),
        mask=mask,
        teacher={},
        frozen={"tokenizer": jnp.asarray(ids)},
        grid=GRID,
        patch_size=PATCH,
    )
    loss, metrics = evaluate_terms(
        task.method.terms, predictions, context, jnp.zeros(())
    )
    np.testing.assert_allclose(loss, found.loss.item(), rtol=TOLERANCE)
    hits = expected.argmax(-1) == np.stack(
        [r[m] for r, m in zip(ids, is_masked, strict=True)]
    )
    total, count = metrics[f"accuracy/tokens/block{DEPTH:02d}"]
    np.testing.assert_allclose(total / count, 100 * hits.mean(), rtol=1e-5)


def test_relative_position_bias(theirs):
    module = theirs.beit.shared_position_bias
    expected = module(window_size=GRID).detach().numpy()
    table = module.relative_position_bias_table.detach().numpy()
    bias = RelativePositionBias(HEADS, GRID, jnp.float32).apply(
        {"params": {"table": table}}
    )
    np.testing.assert_allclose(bias, expected.reshape(bias.shape), atol=1e-6)
