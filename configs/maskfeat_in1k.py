"""MaskFeat on ImageNet-1K at 224, ViT-S/B/L/16: histograms of oriented gradients.

python train.py --config=configs/maskfeat_in1k.py:model=B,epochs=300 \\
  --config.data.dir=DIR --workdir=runs/maskfeat_in1k

DIR holds TFDS's copy of imagenet2012, as python -m ddae.data.prepare makes it; for a
folder of train/SYNSET/*.JPEG and val/SYNSET/*.JPEG add --config.data.name=folder
--config.data.eval_split=val. `:dds` adds deep dynamic supervision at taps.

Published for ViT-B at 1600 epochs: 84.0 % top-1 after fine-tuning, 83.6 % at 300. Not
run by us. Positions are MAE's fixed ones and first weights BEiT's; the authors' learn
their positions (--config.model.positions=learned) and begin with larger branches.
"""

from configs import common


def get_config(text=None):
    config = common.imagenet(text, epochs=300)
    config.batch_size = 2048
    config.data.augment.scale = (0.5, 1.0)
    config.optimizer.base_lr = 1.6e-3
    config.optimizer.lr_batch = 2048
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 0.02
    config.optimizer.warmup_epochs = 30.0
    config.optimizer.final_lr = 1e-6
    config.method.name = "maskfeat"
    config.method.mask = {"kind": "block", "ratio": 78 / 196, "min_area": 15}
    del config.evaluators.reconstruct  # it predicts no pixels
    return config
