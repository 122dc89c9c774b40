"""Fine-tuning on ImageNet-1K at 224 by MAE's recipe, ViT-S/B/L/16 (H takes patch 14).

python train.py --config=configs/finetune_in1k.py:model=B \\
  --config.init.workdir=runs/ddae_in1k --config.data.dir=DIR \\
  --workdir=runs/finetune_in1k

init.workdir: of a pretraining run, or made by ddae.interop of weights from elsewhere.
Data as in configs/ddae_in1k.py. At another size than the pretraining's, give
config.image_size, and config.model.position_grid=(14,14).

Published for MAE: 83.6 % top-1 (B, 1600 epochs of pretraining), 85.9 % (L); reported by
the paper for DDAE: 83.5 % (B, 100 epochs). Not run by us: it wants a pod or 8 GPUs.
"""

from configs import common

# Epochs, base learning rate, layer decay, drop path.
RECIPES = {
    "S": (100, 5e-4, 0.65, 0.1),
    "B": (100, 5e-4, 0.65, 0.1),
    "L": (50, 1e-3, 0.75, 0.2),
    "H": (50, 1e-3, 0.75, 0.3),
}


def get_config(text=None):
    model = common.arguments(text, model="B")["model"]
    if model not in RECIPES:
        raise ValueError(f"config argument model={model!r} is not one of {[*RECIPES]}")
    epochs, base_lr, layer_decay, drop_path = RECIPES[model]
    config = common.classification(num_classes=1000)
    config.epochs = epochs
    config.model.size = model
    config.model.patch_size = 14 if model == "H" else 16
    config.model.drop_path = drop_path
    config.optimizer.base_lr = base_lr
    config.optimizer.layer_decay = layer_decay
    return config
