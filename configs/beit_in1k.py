"""BEiT on ImageNet-1K at 224, ViT-S/B/L/16: ids of a frozen tokenizer.

python train.py --config=configs/beit_in1k.py:model=B,epochs=800 \\
  --config.data.dir=DIR --config.method.tokenizer.workdir=runs/vqkd_in1k \\
  --workdir=runs/beit_in1k

The tokenizer is configs/vqkd_in1k.py's, where BEiT's own was DALL-E's.
DIR holds TFDS's copy of imagenet2012, as python -m ddae.data.prepare makes it; for a
folder of train/SYNSET/*.JPEG and val/SYNSET/*.JPEG add --config.data.name=folder
--config.data.eval_split=val. `:dds` adds deep dynamic supervision at taps.

Published for ViT-B at 800 epochs: 83.2 % top-1 after fine-tuning. Not run by us.
"""

from configs import common


def get_config(text=None):
    config = common.imagenet(text, epochs=800)
    large = config.model.size == "L"
    common.beit_model(config, layer_scale=1e-5 if large else 0.1)
    common.beit_optimizer(config)
    config.model.drop_path = 0.1
    config.data.augment.scale = (0.08, 1.0)
    config.optimizer.b2 = 0.999
    config.method.name = "beit"
    config.method.mask = common.beit_mask()
    config.method.tokenizer = common.tokenizer(config)
    del config.evaluators.reconstruct  # it predicts no pixels
    return config
