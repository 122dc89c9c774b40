"""Linear (or attentive) probe on CIFAR-10, 32 x 32 pixels, patch 4 (or 2).

python train.py --config=configs/linear_cifar10.py:size=Ti,patch=4,epochs=20 \\
  --config.init.workdir=runs/ddae_cifar10 --workdir=runs/linear_cifar10

Five learning rates side by side; :head=attentive for the attentive probe. Data as in
configs/ddae_cifar10.py.

Run short, size=Nano, 10,000 images, 5 epochs: top-1 38.9 % (docs/runs.md). Not run by
us: the command above.
"""

from configs import common


def get_config(text=None):
    chosen = common.arguments(text, size="Ti", patch=4, epochs=20, head="linear")
    config = common.probing(num_classes=10)
    common.small_images(config, chosen["size"], chosen["patch"])
    config.batch_size = 512
    config.epochs = chosen["epochs"]
    config.eval_every_steps = 2000
    config.data.augment.crop = "shift"
    config.data.augment.pad = 4
    config.optimizer.warmup_epochs = 0.1 * chosen["epochs"]
    config.classifier.pool = "mean"
    config.classifier.rates = (1.0, 3.0, 10.0, 30.0, 100.0)
    if chosen["head"] == "attentive":
        common.attentive(config)
    return config
