"""BEiT against transformers: forward, relative position bias, masked loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae import tasks
from ddae.interop.convert import Hints, import_weights
from ddae.interop.files import read_weights
from ddae.masking import make_mask
from ddae.models.blocks import RelativePositionBias, ViTSpec
from ddae.models.vit import VIT_SPECS
from ddae.objective import evaluate_terms
from ddae.targets import TargetContext

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


def test_forward_and_loss(theirs, tmp_path, monkeypatch):
    import torch

    monkeypatch.setitem(VIT_SPECS, "Three", ViTSpec(WIDTH, DEPTH, HEADS))
    theirs.save_pretrained(tmp_path)
    weights = read_weights(str(tmp_path))
    hints = Hints(image_size=24, mean=(0.0,) * 3, std=(1.0,) * 3)
    params, config = import_weights(weights, "hf_beit", hints)
    task = tasks.from_config(config)

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
