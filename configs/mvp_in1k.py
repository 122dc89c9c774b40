"""MVP on ImageNet-1K at 224, ViT-S/B/L/16: features of a frozen teacher.

python train.py --config=configs/mvp_in1k.py:model=B,epochs=300 \\
  --config.data.dir=DIR --config.method.teacher.workdir=TEACHER --workdir=runs/mvp_in1k

TEACHER is a workdir with a ViT-B/16: one of ours, or one that ddae.interop made of
other weights; config.method.teacher.model says what it is like.
DIR holds TFDS's copy of imagenet2012, as python -m ddae.data.prepare makes it; for a
folder of train/SYNSET/*.JPEG and val/SYNSET/*.JPEG add --config.data.name=folder
--config.data.eval_split=val. `:dds` adds deep dynamic supervision at taps.

Published for ViT-B, CLIP's teacher, 300 epochs: 84.4 % top-1 after fine-tuning. Not run
by us. Masks and optimiser are BEiT-v2's of 300 epochs.
"""

from configs import common


def get_config(text=None):
    config = common.imagenet(text, epochs=300)
    common.beit_model(config, layer_scale=0.1)
    common.beit_optimizer(config)
    config.method.name = "mvp"
    config.method.mask = common.beit_mask()
    config.method.teacher = common.teacher(config)
    del config.evaluators.reconstruct  # it predicts no pixels
    return config
