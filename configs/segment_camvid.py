"""CamVid street scenes, 11 classes, on a CPU: UPerNet on a small encoder.

python train.py --config=configs/segment_camvid.py:size=Nano,patch=8,steps=600 \\
  --config.data.dir=DIR --config.init.workdir=runs/camvid_encoder \\
  --workdir=runs/segment_camvid

DIR holds images/{training,validation} and annotations/{training,validation} in ADE20K's
layout; any set of that layout goes with its own num_classes and names. The encoder was
pretrained at 96 pixels; without config.init the same command trains from scratch. Two
cores take about 20 minutes; docs/segmentation.md has both curves, of 300 steps.
"""

from configs import common, segment_ade20k

NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "cyclist",
)


def get_config(text=None):
    chosen = common.arguments(text, size="Nano", patch=8, steps=600)
    config = segment_ade20k.get_config()
    config.total_steps = chosen["steps"]
    config.epochs = 100
    config.optimizer.warmup_epochs = 5.0
    config.image_size = 96
    config.dtype = "float32"
    config.checkpoint_every_steps = 200
    config.eval_every_steps = 200
    # Half the size of the files: a crop of 96 then shows a quarter of the street.
    config.data.scenes = {
        "num_classes": 11,
        "names": NAMES,
        "scale": (240, 180),
        "ratio": (0.5, 2.0),
        "max_share": 0.75,
        "photometric": True,
    }
    config.model.size = chosen["size"]
    config.model.patch_size = chosen["patch"]
    config.model.positions = "sincos"
    config.model.relative_bias = "none"
    config.model.drop_path = 0.0
    config.segmenter.num_classes = 11
    config.segmenter.channels = 96
    config.segmenter.auxiliary_channels = 64
    config.optimizer.base_lr = 5e-4
    config.optimizer.warmup_lr = 1e-6
    config.optimizer.layer_decay = 0.75
    config.evaluators.miou.stride = 64
    config.evaluators.miou.scale = (240, 180)
    config.evaluators.miou.images_a_device = 8
    return config
