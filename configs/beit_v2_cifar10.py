"""BEiT-v2 on CIFAR-10, with the tokenizer of configs/vqkd_cifar10.py.

python train.py --config=configs/beit_v2_cifar10.py:size=Ti,patch=4,epochs=100 \\
  --config.method.tokenizer.workdir=runs/vqkd_cifar10 --workdir=runs/beit_v2_cifar10

`:dds` adds deep dynamic supervision at taps. Data as in configs/ddae_cifar10.py.

Run short, in the study `others` (docs/results.md). Not run by us: the command above.
"""

from configs import common


def get_config(text=None):
    config = common.cifar10(text)
    common.beit_model(config, layer_scale=0.1)
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 3.0
    config.optimizer.no_decay = ("/cls_token$",)
    config.method.name = "beit_v2"
    config.method.mask = common.beit_mask()
    config.method.mask.ratio = 0.4
    config.method.mask.min_area = 5
    config.method.tokenizer = common.tokenizer(config)
    config.method.tokenizer.codes = 512
    config.method.tokenizer.code_dim = 16
    del config.evaluators.reconstruct
    return config
