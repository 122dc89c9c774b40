"""ADE20K (SceneParsing), 150 classes: UPerNet on a pretrained ViT, crops of 512.

python train.py --config=configs/segment_ade20k.py:model=B \\
  --config.data.dir=DIR --config.init.workdir=runs/ddae_in1k \\
  --workdir=runs/segment_ade20k

DIR holds ADEChallengeData2016.zip, or what was unpacked from it. Single-scale mIoU 48.1
of ViT-B and 53.6 of ViT-L is what MAE's paper reports after 1600 epochs of pretraining;
nobody has run this config at full length. Rate, layer decay, drop path and length are
those of mmsegmentation's config for MAE, which has a layer scale too, from 1; the paper
gives 100 epochs, 126,000 steps. Global batch 16: one or two accelerators of 80 GB, or
eight of 16 GB. ViT-L's layer decay and drop path are ours.
As in MAE's every block learns a relative position bias, from zero, and the fixed
positions learn on; --config.model.relative_bias=none goes without the bias and faster.
"""

from configs import common


def get_config(text=None):
    chosen = common.arguments(text, model="B")
    large = chosen["model"] == "L"
    config = common.training()
    config.task = "segment"
    config.batch_size = 16
    config.total_steps = 160_000
    # Thousands of steps, of which the warmup is a share.
    config.epochs = 160
    config.optimizer.warmup_epochs = 1.5
    config.image_size = 512
    config.checkpoint_every_steps = 4000
    config.eval_every_steps = 16_000
    config.keep_best = "eval/miou"
    # UPerNet reads blocks without the encoder's last norm.
    config.init.may_leave = ("/mask_token$", "^/encoder/norm/")
    config.init.may_miss = ("/relative_bias/table$",)

    config.data.name = "scenes"
    config.data.train_split = "training"
    config.data.eval_split = "validation"
    config.data.eval_crop = 1.0
    config.data.augment = {"crop": "none", "flip": True}
    config.data.scenes = {
        "num_classes": 150,
        "scale": (2048, 512),
        "ratio": (0.5, 2.0),
        "max_share": 0.75,
        "photometric": True,
    }

    config.model.size = chosen["model"]
    config.model.drop_path = 0.2 if large else 0.1
    config.model.positions = "learned"
    config.model.relative_bias = "block"
    config.segmenter = {
        "head": "upernet",
        "num_classes": 150,
        "taps": (),
        "channels": 1024 if large else 768,
        "pool_scales": (1, 2, 3, 6),
        "auxiliary_channels": 256,
        "auxiliary_weight": 0.4,
        "dropout": 0.1,
    }

    config.optimizer.base_lr = 1e-4
    config.optimizer.lr_batch = 16
    config.optimizer.b2 = 0.999
    config.optimizer.schedule = "poly"
    config.optimizer.warmup_lr = 1e-10  # a millionth of the peak
    config.optimizer.layer_decay = 0.75 if large else 0.65
    config.optimizer.no_decay = ("/cls_token$",)

    # Windows of 512, 341 apart, of images whose short side is 512, as the published
    # figures are measured; scale=(0, 0) cuts them of the images as they are.
    config.evaluators.miou = {
        "stride": 341,
        "scale": (2048, 512),
        "images_a_device": 2,
        "num_held_out": 0,
        "num_figures": 4,
    }
    return config
