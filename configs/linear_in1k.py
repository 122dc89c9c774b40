"""Linear (or attentive) probe on ImageNet-1K at 224 by MAE's recipe.

python train.py --config=configs/linear_in1k.py:model=B \\
  --config.init.workdir=runs/ddae_in1k --config.data.dir=DIR --workdir=runs/linear_in1k

:model=B,head=attentive reads all tokens with one learned query. Several learning rates
side by side on the same frozen features: --config.classifier.rates="(0.3,1.0,3.0)".
Another block: --config.classifier.tap=8; mean of the patches:
--config.classifier.pool=mean. Data as in configs/ddae_in1k.py.

Published for MAE, ViT-B at 1600 epochs: 68.0 % top-1. Not run by us.
"""

from configs import common


def get_config(text=None):
    chosen = common.arguments(text, model="B", head="linear")
    config = common.probing(num_classes=1000)
    config.model.size = chosen["model"]
    config.model.patch_size = 14 if chosen["model"] == "H" else 16
    if chosen["head"] == "attentive":
        common.attentive(config)
    return config
