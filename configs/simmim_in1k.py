"""SimMIM on ImageNet-1K, ViT-S/B/L/16, by the public recipe.

python train.py --config=configs/simmim_in1k.py:model=B,epochs=800 \\
  --config.data.dir=DIR --workdir=runs/simmim_in1k

DIR holds TFDS's copy of imagenet2012, as python -m ddae.data.prepare makes it; for a
folder of train/SYNSET/*.JPEG and val/SYNSET/*.JPEG add --config.data.name=folder
--config.data.eval_split=val. `:dds` adds deep dynamic supervision at taps.

Published for ViT-B at 800 epochs: 83.8 % top-1 after fine-tuning. Not run by us.
"""

from configs import common


def get_config(text=None):
    config = common.imagenet(text, epochs=800)
    common.beit_model(config, layer_scale=0.1)
    config.model.drop_path = 0.1
    config.batch_size = 2048
    config.data.augment.scale = (0.67, 1.0)
    config.data.augment.resize = "bilinear"
    config.optimizer.base_lr = 1e-4
    config.optimizer.lr_batch = 512
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 5.0
    config.optimizer.no_decay = ("/cls_token$",)
    config.optimizer.warmup_epochs = min(10.0, config.epochs / 10)
    config.optimizer.schedule = "step"
    config.optimizer.step_at = 700 / 800
    config.method.name = "simmim"
    # Cells of 32 pixels, 30 of 49.
    config.method.mask = {"kind": "cell", "ratio": 0.6, "cell": 2}
    return config
