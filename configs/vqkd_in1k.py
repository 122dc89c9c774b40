"""VQ-KD on ImageNet-1K at 224: the tokenizer of BEiT-v2, ViT-B/16, 8192 codes.

python train.py --config=configs/vqkd_in1k.py:epochs=100 --config.data.dir=DIR \\
  --config.tokenizer.teacher.workdir=TEACHER --workdir=runs/vqkd_in1k

TEACHER is a workdir with a ViT-B/16: one that this project pretrained (which makes the
chain need nothing from outside), or one that ddae.interop made of DINO's weights;
config.tokenizer.teacher says what it is like. Data as in configs/ddae_in1k.py.

lr 5e-5 is for 128 images, as the public code scales it: 2e-4 at the batch of 512.
Expected: 97 to 100 % of the codes in use. Not run by us.
"""

from configs import common


def get_config(text=None):
    epochs = common.arguments(text, epochs=100)["epochs"]
    config = common.vqkd()
    config.epochs = epochs
    config.data.augment.scale = (0.08, 1.0)
    config.optimizer.lr_batch = 128
    config.optimizer.final_lr = 1e-5
    config.optimizer.no_decay = ("/cls_token$",)
    config.tokenizer.teacher = common.teacher(config)
    return config
