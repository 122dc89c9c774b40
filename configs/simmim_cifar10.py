"""SimMIM on CIFAR-10, 32 x 32 pixels, patch 4 (or 2); `:dds` for taps and weights.

python train.py --config=configs/simmim_cifar10.py:size=Ti,patch=4,epochs=100 \\
  --workdir=runs/simmim_cifar10

Data as in configs/ddae_cifar10.py.

Run short, in the study `others` (docs/results.md). Not run by us: the command above.
"""

from configs import common


def get_config(text=None):
    config = common.cifar10(text)
    common.beit_model(config, layer_scale=0.1)
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 5.0
    config.method.name = "simmim"
    # Cells of 2 x 2 patches, 10 of 16.
    config.method.mask = {"kind": "cell", "ratio": 0.6, "cell": 2}
    return config
