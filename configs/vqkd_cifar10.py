"""A tokenizer of CIFAR-10, with another run's encoder as its teacher.

python train.py --config=configs/vqkd_cifar10.py:size=Ti,patch=4,epochs=50 \\
  --config.tokenizer.teacher.workdir=runs/mae_cifar10 --workdir=runs/vqkd_cifar10

Data as in configs/ddae_cifar10.py.

Run short, size=Pico: 72 % of 64 codes in use (docs/runs.md). Not run by us: the command
above.
"""

from configs import common


def get_config(text=None):
    chosen = common.arguments(text, size="Ti", patch=4, epochs=50)
    config = common.vqkd()
    common.small_images(config, chosen["size"], chosen["patch"])
    config.epochs = chosen["epochs"]
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_epochs = 0.1 * chosen["epochs"]
    config.tokenizer.codes = 512
    config.tokenizer.code_dim = 16
    config.tokenizer.decoder_depth = 1
    config.tokenizer.teacher = common.teacher(config)
    return config
