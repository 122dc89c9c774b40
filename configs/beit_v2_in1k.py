"""BEiT-v2 on ImageNet-1K at 224, ViT-S/B/L/16: BEiT, and the [CLS] branch.

python train.py --config=configs/beit_v2_in1k.py:model=B,epochs=300 \\
  --config.data.dir=DIR --config.method.tokenizer.workdir=runs/vqkd_in1k \\
  --workdir=runs/beit_v2_in1k

The tokenizer is configs/vqkd_in1k.py's.
DIR holds TFDS's copy of imagenet2012, as python -m ddae.data.prepare makes it; for a
folder of train/SYNSET/*.JPEG and val/SYNSET/*.JPEG add --config.data.name=folder
--config.data.eval_split=val. `:dds` adds deep dynamic supervision at taps.

Published for ViT-B: 85.0 % top-1 after fine-tuning at 300 epochs, 85.5 % at 1600. Not
run by us. The two blocks of the [CLS] branch drop no path.
"""

from configs import common


def get_config(text=None):
    config = common.imagenet(text, epochs=300)
    large = config.model.size == "L"
    common.beit_model(config, layer_scale=1e-5 if large else 0.1)
    common.beit_optimizer(config)
    if config.epochs > 300:  # the recipe's long schedule, of 1600
        config.model.drop_path = 0.1
        config.optimizer.b2 = 0.999
    config.method.name = "beit_v2"
    config.method.mask = common.beit_mask()
    config.method.tokenizer = common.tokenizer(config)
    config.method.early = 21 if large else 9
    del config.evaluators.reconstruct  # it predicts no pixels
    return config
