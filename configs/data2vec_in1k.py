"""data2vec on ImageNet-1K at 224, ViT-S/B/L/16: the mean of the teacher's top layers.

python train.py --config=configs/data2vec_in1k.py:model=B,epochs=800 \\
  --config.data.dir=DIR --workdir=runs/data2vec_in1k

DIR holds TFDS's copy of imagenet2012, as python -m ddae.data.prepare makes it; for a
folder of train/SYNSET/*.JPEG and val/SYNSET/*.JPEG add --config.data.name=folder
--config.data.eval_split=val. `:dds` adds deep dynamic supervision at taps.

Published for ViT-B at 800 epochs: 84.2 % top-1 after fine-tuning (finetune_in1k.py with
family=data2vec). Not run by us.
The teacher's momentum is the public code's, which also drops attention; we do not.
"""

from configs import common


def get_config(text=None):
    config = common.imagenet(text, epochs=800)
    large = config.model.size == "L"
    common.beit_model(config, layer_scale=1e-5 if large else 1e-4)
    config.model.drop_path = 0.2 if large else 0.25
    config.batch_size = 4096 if large else 2048
    config.data.augment.color_jitter = 0.4
    config.data.augment.scale = (0.08, 1.0)
    config.optimizer.base_lr = 1e-3 if large else 2e-3
    config.optimizer.lr_batch = config.batch_size
    config.optimizer.final_lr = 1e-5
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 3.0
    config.optimizer.warmup_epochs = 80.0 if large else 10.0
    config.optimizer.no_decay = ("/cls_token$",)
    config.method.name = "data2vec"
    config.method.mean_of = 6
    config.method.mask = {"kind": "block", "ratio": 120 / 196}
    config.method.momentum = common.momentum(0.9998, 0.9998, 0.9998)
    del config.evaluators.reconstruct  # it predicts no pixels
    return config
