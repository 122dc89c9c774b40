"""DDAE on CIFAR-10, 32 x 32 pixels, patch 4 (or 2).

python train.py --config=configs/ddae_cifar10.py:size=Ti,patch=4,epochs=100 \\
  --workdir=runs/ddae_cifar10

Once before: python -m ddae.data.prepare cifar10 (or cifar100, and here
--config.data.name=tfds/cifar100). For a folder of train/CLASS/*.jpg and
test/CLASS/*.jpg: --config.data.name=folder --config.data.dir=DIR.

Run short, size=Nano and 900 steps: kNN 30.8 % untrained, 39.5 % pretrained
(docs/runs.md). Not run by us: the command above.
"""

from configs import common


def get_config(text=None):
    config = common.cifar10(text, plug_in=False)
    config.method = common.ddae()
    config.method.decoder.width = 192
    config.method.decoder.num_heads = 6
    # A run of thousands of steps wants a teacher that moves faster than the default.
    config.method.momentum.start = 0.99
    config.method.momentum.middle = 0.998
    config.method.momentum.end = 0.9998
    return config
