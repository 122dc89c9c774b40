"""MAE on CIFAR-10, 32 x 32 pixels, patch 4 (or 2): the control beside ddae_cifar10.

python train.py --config=configs/mae_cifar10.py:size=Ti,patch=4,epochs=100 \\
  --workdir=runs/mae_cifar10

Once before: python -m ddae.data.prepare cifar10 (or cifar100, and here
--config.data.name=tfds/cifar100). For a folder of train/CLASS/*.jpg and
test/CLASS/*.jpg: --config.data.name=folder --config.data.dir=DIR.

Run short, size=Nano and 900 steps: kNN 30.8 % untrained, 39.9 % pretrained
(docs/runs.md). Not run by us: the command above.
"""

from configs import common


def get_config(text=None):
    config = common.cifar10(text)
    config.method.update(common.mae())
    config.method.decoder.depth = 4
    config.method.decoder.width = 192
    config.method.decoder.num_heads = 6
    return config
