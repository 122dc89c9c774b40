"""UperNet's heads and BEiT's neck against transformers', with the same weights."""

import jax
import numpy as np
import pytest

from ddae.models.segmenter import FCNHead, Rescale, UPerHead

pytestmark = pytest.mark.torch

# The promise is 1e-4 of the logits; float32 on both sides differs by about 1e-6.
RTOL = 1e-5
WIDTHS = (24, 24, 24, 24)


def statistics(torch, module, seed):
    """Weights, biases and running statistics that no layer has by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            value = torch.randn(tensor.shape, generator=generator)
            scale = 1.0 / max(1, tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.3
            value = scale * value
            if name.endswith(("running_var", "norm.weight", "1.weight")):
                value = 1.0 + value.abs()
            tensor.copy_(value)
    return module


def tensors(module):
    return {
        name: value.detach().numpy()
        for name, value in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def batch_norm(left, name):
    places = {
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "variance": "running_var",
    }
    return {ours: left.pop(f"{name}.{theirs}") for ours, theirs in places.items()}


def conv_norm(left, name):
    kernel = left.pop(f"{name}.conv.weight").transpose(2, 3, 1, 0)
    return {
        "conv": {"kernel": kernel},
        "batch_norm": batch_norm(left, f"{name}.batch_norm"),
    }


def classifier(left):
    kernel = left.pop("classifier.weight")[:, :, 0, 0].T
    return {"kernel": kernel, "bias": left.pop("classifier.bias")}


def deconv(left, name):
    weight = left.pop(f"{name}.weight")  # [in, out, row, column]
    kernel = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)
    return {"linear": {"kernel": kernel}, "bias": left.pop(f"{name}.bias")}


def difference(ours, theirs):
    theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def maps_of(torch, sides, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn((2, width, *side), generator=generator)
        for width, side in zip(WIDTHS, sides, strict=True)
    ]


def as_ours(maps):
    return [np.asarray(x).transpose(0, 2, 3, 1) for x in maps]


def upernet(torch, training=False):
    from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=list(WIDTHS),
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=20,
        pool_scales=[1, 2, 3, 6],
        auxiliary_channels=12,
        auxiliary_in_channels=WIDTHS[2],
        num_labels=7,
    )
    whole = UperNetForSemanticSegmentation(config).eval()
    return (
        statistics(torch, whole.decode_head, 1).train(training),
        statistics(torch, whole.auxiliary_head, 2).train(training),
    )


def decode_params(head):
    left = tensors(head)
    params = {}
    for number, bins in enumerate((1, 2, 3, 6)):
        params[f"pool_{bins}"] = conv_norm(left, f"psp_modules.{number}.1")
    for level in range(3):
        params[f"lateral_{level}"] = conv_norm(left, f"lateral_convs.{level}")
        params[f"fpn_{level}"] = conv_norm(left, f"fpn_convs.{level}")
    params["bottleneck"] = conv_norm(left, "bottleneck")
    params["fpn_bottleneck"] = conv_norm(left, "fpn_bottleneck")
    params["classifier"] = classifier(left)
    # A module list and attributes of it name the same tensors twice.
    assert all(".blocks." in name or ".layers." in name for name in left), left
    return params


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "sides",
    [
        [(32, 32), (16, 16), (8, 8), (4, 4)],
        [(24, 40), (12, 20), (6, 10), (3, 5)],
    ],
)
def test_upernet_gives_the_logits_of_transformers(torch, sides, training):
    """In training both normalise by the batch: a flip of ReLU costs more there."""
    decode, auxiliary = upernet(torch, training)
    params = decode_params(decode)
    maps = maps_of(torch, sides)
    head = UPerHead(7, 20, (1, 2, 3, 6), 0.0, np.float32)
    with jax.default_matmul_precision("highest"):
        ours, observed = head.apply({"params": params}, as_ours(maps), training)
        left = tensors(auxiliary)
        own = {"conv_0": conv_norm(left, "convs.0"), "classifier": classifier(left)}
        assert not left
        second, _ = FCNHead(7, 12, 0.0, np.float32).apply(
            {"params": own}, as_ours(maps)[2], training
        )
    limit = 1e-4 if training else RTOL
    assert difference(ours, decode(maps)) < limit
    assert difference(second, auxiliary(maps)) < limit
    assert bool(observed) == training


def test_every_tensor_of_the_head_counts(torch):
    """A weight that is read from the wrong place would change the logits."""
    decode, _ = upernet(torch)
    params = decode_params(decode)
    maps = maps_of(torch, [(16, 16), (8, 8), (4, 4), (2, 2)])
    head = UPerHead(7, 20, (1, 2, 3, 6), 0.0, np.float32)
    leaves, structure = jax.tree.flatten(params)
    expected = decode(maps)
    apply = jax.jit(lambda p: head.apply({"params": p}, as_ours(maps), False)[0])
    for number, leaf in enumerate(leaves):
        changed = [*leaves]
        changed[number] = leaf + 0.2
        found = apply(jax.tree.unflatten(structure, changed))
        assert difference(found, expected) > 1e-4


def test_running_statistics_follow_as_in_torch(torch):
    from ddae.models.heads import absorb

    decode, _ = upernet(torch, training=True)
    params = decode_params(decode)
    maps = maps_of(torch, [(16, 16), (8, 8), (4, 4), (2, 2)])
    head = UPerHead(7, 20, (1, 2, 3, 6), 0.0, np.float32)
    _, observed = head.apply({"params": params}, as_ours(maps), True)
    ours = absorb(params, observed)
    decode(maps)
    theirs = decode_params(decode)
    for found, expected in zip(
        jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_neck_is_that_of_beit(torch):
    from transformers import BeitConfig
    from transformers.models.beit import modeling_beit

    config = BeitConfig(hidden_size=24)
    block = modeling_beit.BeitFPNUpBlock(config.hidden_size).eval()
    left = tensors(statistics(torch, block, 3))
    norm = next(name for name in left if name.endswith("running_mean"))
    params = {
        "deconv": deconv(left, "conv_transpose1"),
        "batch_norm": batch_norm(left, norm.removesuffix(".running_mean")),
        "deconv_again": deconv(left, "conv_transpose2"),
    }
    assert not left
    (x, *_) = maps_of(torch, [(6, 8)] * 4, seed=4)
    (ours,) = as_ours([x])
    found, _ = Rescale(16, 4, np.float32).apply({"params": params}, ours, False)
    assert difference(found, block(x)) < RTOL
    twice = torch.nn.ConvTranspose2d(24, 24, 2, 2)
    left = {f"up.{name}": value for name, value in tensors(twice).items()}
    found, _ = Rescale(16, 8, np.float32).apply(
        {"params": {"deconv": deconv(left, "up")}}, ours, False
    )
    assert difference(found, twice(x)) < RTOL
    found, _ = Rescale(16, 16, np.float32).apply({}, ours, False)
    np.testing.assert_array_equal(found, ours)
    for stride, side in ((32, 2), (64, 4)):
        pool = torch.nn.MaxPool2d(side, side)
        found, _ = Rescale(16, stride, np.float32).apply({}, ours, False)
        assert difference(found, pool(x)) == 0.0
