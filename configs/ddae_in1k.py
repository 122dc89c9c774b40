"""DDAE on ImageNet-1K at 224, ViT-S/B/L/16 (H takes patch 14).

python train.py --config=configs/ddae_in1k.py:model=B,epochs=100 \\
  --config.data.dir=DIR --workdir=runs/ddae_in1k

DIR holds TFDS's copy of imagenet2012, as python -m ddae.data.prepare makes it; for a
folder of train/SYNSET/*.JPEG and val/SYNSET/*.JPEG add --config.data.name=folder
--config.data.eval_split=val.

Reported by the paper for ViT-B at 100 epochs: 83.5 % top-1 after fine-tuning. Not run
by us.
"""

from configs import common


def get_config(text=None):
    config = common.imagenet(text, plug_in=False)
    config.method = common.ddae()
    # Meant for 800 epochs of ImageNet. In fewer, or of fewer images, the teacher is
    # behind by the same share of the run, about a fifth at its end.
    config.method.momentum.steps = 800 * (1_281_167 // 4096)
    return config
