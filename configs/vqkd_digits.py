"""A tokenizer of scanned digits, with the quickstart's encoder as its teacher.

python train.py --config=configs/vqkd_digits.py \\
  --config.tokenizer.teacher.workdir=runs/quickstart --workdir=runs/vqkd_digits

The second of three commands; examples/beit_v2_digits.sh has all. About two minutes on
two CPU cores: 75 % of 32 codes in use (docs/runs.md); it was 84 % when sums were taken
in another order.
"""

from configs import common


def get_config(text=None):
    common.arguments(text)
    config = common.vqkd()
    common.digits(config)
    config.batch_size = 128
    config.epochs = 60
    config.optimizer.base_lr = 2e-3
    config.optimizer.lr_batch = 128
    config.optimizer.warmup_epochs = 5.0
    config.tokenizer.codes = 32
    config.tokenizer.code_dim = 16
    config.tokenizer.decoder_depth = 1
    config.tokenizer.teacher = common.teacher(config)
    return config
