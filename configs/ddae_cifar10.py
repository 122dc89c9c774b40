"""DDAE on CIFAR-10, 32 x 32 pixels, patch 4 (or 2), from a folder split/class/*.jpg.

python train.py --config=configs/ddae_cifar10.py:size=Ti,patch=4,epochs=100 \\
  --config.data.dir=DIR --workdir=runs/ddae_cifar10
"""

from configs import common


def get_config(text=None):
    config = common.cifar10(text)
    config.method = common.ddae()
    config.method.decoder.width = 192
    config.method.decoder.num_heads = 6
    # A run of thousands of steps wants a teacher that moves faster than the default.
    config.method.momentum.start = 0.99
    config.method.momentum.middle = 0.998
    config.method.momentum.end = 0.9998
    return config
