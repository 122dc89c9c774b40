"""Fine-tuning on CIFAR-10, 32 x 32 pixels, patch 4 (or 2).

python train.py --config=configs/finetune_cifar10.py:size=Ti,patch=4,epochs=50 \\
  --config.init.workdir=runs/ddae_cifar10 --workdir=runs/finetune_cifar10

Data as in configs/ddae_cifar10.py.

Run short, size=Nano, 10,000 images, 200 steps: top-1 33.7 % (docs/runs.md). Not run by
us: the command above.
"""

from configs import common


def get_config(text=None):
    chosen = common.arguments(text, size="Ti", patch=4, epochs=50)
    config = common.classification(num_classes=10)
    common.small_images(config, chosen["size"], chosen["patch"])
    config.batch_size = 256
    config.epochs = chosen["epochs"]
    config.eval_every_steps = 2000
    config.data.augment.crop = "shift"
    config.data.augment.pad = 4
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_epochs = 0.1 * chosen["epochs"]
    config.optimizer.layer_decay = 0.75
    return config
