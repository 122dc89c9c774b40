"""Writes mae_square.npz and mae_wide.npz: MAE as transformers' ViTMAE computes it.

python tests/goldens/make_mae_golden.py

Needs torch and transformers 5. `make_case` is also what the live test calls, so that a
golden and a live comparison are the same experiment with other seeds.
"""

import pathlib

import numpy as np

PATCH = 8
WIDTH, DEPTH, HEADS = 24, 2, 4
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 16, 2, 2
BATCH = 2
CASES = {"mae_square": (4, 4), "mae_wide": (4, 8)}


def make_case(
    grid: tuple[int, int],
    seed: int,
    *,
    channels: int = 3,
    norm_pix_loss: bool = True,
    positions_from_hf: bool = False,
) -> dict[str, np.ndarray]:
    """Loss, predictions and gradients of a small random ViTMAEForPreTraining.

    state/<name> and gradient/<name>: under transformers' names. image: standardised,
    [b, height, width, c]. is_masked: [b, n]. predictions: of the masked patches alone,
    in ascending order, [b, m, k]. positions_from_hf: take the position table of
    transformers' own initialiser, which can only make one for a square grid.
    """
    import torch

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = _make_model(grid, channels, norm_pix_loss, positions_from_hf)
    # A zero bias, a unit scale or a zero token would hide its own absence.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # The cls token stays small, so that its first LayerNorm feels epsilon.
                scale = 0.02 if name.endswith("cls_token") else 0.15
                noise = rng.normal(scale=scale, size=parameter.shape)
                value = _rounded(parameter.numpy() + noise)
                parameter.copy_(torch.as_tensor(value))
    h, w = grid
    image = rng.normal(size=(BATCH, h * PATCH, w * PATCH, channels))
    image[:, :PATCH] *= 0.001  # all but flat patches: their target feels its epsilon
    image = _rounded(image)
    output = model(
        torch.as_tensor(image.transpose(0, 3, 1, 2).copy()),
        noise=torch.as_tensor(rng.random((BATCH, h * w))),
        interpolate_pos_encoding=not positions_from_hf,
    )
    output.loss.backward()
    is_masked = output.mask.numpy() == 1
    logits = output.logits.detach().numpy()
    case = {
        "image": image,
        "is_masked": is_masked,
        "loss": output.loss.detach().numpy(),
        "predictions": logits[is_masked].reshape(BATCH, -1, logits.shape[-1]),
    }
    for name, tensor in model.state_dict().items():
        case[f"state/{name}"] = tensor.numpy()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            case[f"gradient/{name}"] = parameter.grad.numpy()
    return case


def _rounded(values: np.ndarray) -> np.ndarray:
    """To steps of 1/1024, which makes for a smaller file."""
    return (np.round(values * 1024) / 1024).astype(np.float32)


def position_table(width: int, grid: tuple[int, int]) -> np.ndarray:
    """MAE's positions, written entry by entry apart from ours, [1, 1 + n, width].

    Channels: sines then cosines of the column, then the same of the row; zeros for cls.
    """
    h, w = grid
    quarter = width // 4
    table = np.zeros((1, 1 + h * w, width))
    for patch in range(h * w):
        for i in range(quarter):
            for half, coordinate in enumerate((patch % w, patch // w)):
                angle = coordinate / 10000.0 ** (i / quarter)
                channel = 2 * half * quarter + i
                table[0, 1 + patch, channel] = np.sin(angle)
                table[0, 1 + patch, channel + quarter] = np.cos(angle)
    return table.astype(np.float32)


def _make_model(grid, channels, norm_pix_loss, positions_from_hf):
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    side = max(grid)
    config = ViTMAEConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        decoder_hidden_size=DECODER_WIDTH,
        decoder_num_hidden_layers=DECODER_DEPTH,
        decoder_num_attention_heads=DECODER_HEADS,
        decoder_intermediate_size=4 * DECODER_WIDTH,
        image_size=side * PATCH,
        patch_size=PATCH,
        num_channels=channels,
        mask_ratio=0.75,
        norm_pix_loss=norm_pix_loss,
        layer_norm_eps=1e-6,  # MAE's; the config's own default is 1e-12
        attn_implementation="eager",
    )
    model = ViTMAEForPreTraining(config)
    embeddings, decoder = model.vit.embeddings, model.decoder
    if positions_from_hf:
        # transformers 5.23 leaves the positions of a model made from a config at zero,
        # since it takes them for initialised. Its initialisers are right when called.
        embeddings.patch_embeddings.projection._is_hf_initialized = False
        embeddings.initialize_weights()
        decoder.initialize_weights(side * side)
        return model
    # Its initialisers and its interpolation take the grid for square. Only the fixed
    # table is replaced, and the interpolation, which is from the grid to itself here.
    outside = torch.nn.Parameter(torch.as_tensor(position_table(WIDTH, grid)), False)
    inside = torch.nn.Parameter(
        torch.as_tensor(position_table(DECODER_WIDTH, grid)), False
    )
    embeddings.position_embeddings = outside
    embeddings.interpolate_pos_encoding = lambda *_: outside
    decoder.decoder_pos_embed = inside
    decoder.interpolate_pos_encoding = lambda *_: inside
    return model


if __name__ == "__main__":
    for number, (name, grid) in enumerate(CASES.items()):
        case = make_case(grid, seed=number, positions_from_hf=grid[0] == grid[1])
        path = pathlib.Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **case)
        print(f"{path.name}: loss {case['loss']:.6f}, {path.stat().st_size} bytes")
