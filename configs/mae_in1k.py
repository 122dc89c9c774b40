"""MAE on ImageNet-1K at 224, ViT-S/B/L/16 (H takes patch 14), by the public recipe.

python train.py --config=configs/mae_in1k.py:model=B,epochs=800 \\
  --config.data.dir=DIR --workdir=runs/mae_in1k

DIR holds TFDS's copy of imagenet2012, as python -m ddae.data.prepare makes it; for a
folder of train/SYNSET/*.JPEG and val/SYNSET/*.JPEG add --config.data.name=folder
--config.data.eval_split=val.

`:dds` gives each of four taps MAE's decoder of 8 blocks, 2.7 times the FLOPs (B);
--config.method.decoder.depth=2, as DDAE has it, costs what MAE does.

Published for ViT-B at 800 epochs: 83.3 % top-1 after fine-tuning, 65.1 % linear. Not
run by us.
"""

from configs import common


def get_config(text=None):
    config = common.imagenet(text)
    config.method.update(common.mae())
    return config
