"""DDAE on scikit-learn's 1797 scanned digits, 8 x 8 pixels: minutes on a CPU.

python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Expected: kNN 53.9 % untrained, 89.7 % after its 1496 steps (docs/runs.md).
"""

from configs import common


def get_config(text=None):
    common.arguments(text)
    config = common.pretraining()
    common.digits(config)
    config.batch_size = 128
    config.epochs = 136

    config.method = common.ddae()
    # Of 16 patches MAE's 75 % would leave 4, too few to tell most digits from.
    config.method.mask.ratio = 0.5
    config.method.decoder.depth = 1
    config.method.decoder.width = 64
    config.method.decoder.num_heads = 4

    # A run of 1500 steps wants a teacher that moves faster than the default, and less
    # of it.
    config.method.features.weight = 0.1
    config.method.momentum.start = 0.98
    config.method.momentum.middle = 0.99
    config.method.momentum.end = 0.999

    config.optimizer.base_lr = 4e-3
    config.optimizer.warmup_epochs = 14.0
    config.evaluators.knn.k = 10
    return config
