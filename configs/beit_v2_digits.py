"""BEiT-v2 on scanned digits, with the tokenizer of configs/vqkd_digits.py.

python train.py --config=configs/beit_v2_digits.py \\
  --config.method.tokenizer.workdir=runs/vqkd_digits --workdir=runs/beit_v2_digits

The last of three commands; examples/beit_v2_digits.sh has all. About two minutes on
two CPU cores. `:dds` adds deep dynamic supervision at taps.

Expected: kNN 21.1 % untrained, 56.4 % pretrained (docs/runs.md); on other processors
the three runs ended at 52.8 to 56.4, as sums in another order choose other codes.
"""

from configs import common


def get_config(text=None):
    config = common.pretraining()
    chosen = common.arguments(text, dds=False)
    common.digits(config)
    common.beit_model(config, layer_scale=0.1)
    common.beit_optimizer(config)
    config.batch_size = 128
    config.epochs = 70
    config.optimizer.base_lr = 4e-3
    config.optimizer.lr_batch = 256
    config.optimizer.clip_norm = 3.0
    config.optimizer.final_lr = 0.0
    config.data.augment.color_jitter = 0.0
    config.method = common.ConfigDict()
    config.method.name = "beit_v2"
    config.method.mask = common.beit_mask()
    config.method.mask.ratio = 0.4
    config.method.mask.min_area = 2
    config.method.tokenizer = common.tokenizer(config)
    config.method.tokenizer.codes = 32
    config.method.tokenizer.code_dim = 16
    config.method.early = 3
    config.method.dds = common.dds(chosen["dds"])
    config.evaluators.knn.k = 10
    del config.evaluators.reconstruct
    return config
