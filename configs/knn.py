"""k nearest neighbours with a frozen encoder; trains nothing.

python train.py --config=configs/knn.py:data=imagenet,model=B \\
  --config.init.workdir=runs/ddae_in1k --config.data.dir=DIR --workdir=runs/knn

:data=cifar10,model=Ti,patch=4 for CIFAR-10. Exact, over the whole training set, for
k = 10, 20, 100 and 200 (the DINO protocol), but of the mean of the patches:
--config.evaluators.knn.pool=cls reads the cls token, as DINO does. Data as in
configs/ddae_in1k.py and configs/ddae_cifar10.py.

Of the short run of configs/ddae_cifar10.py, on all of CIFAR-10: k = 20 42.7 %
(docs/runs.md). ImageNet: not run by us.
"""

from configs import common


def get_config(text=None):
    chosen = common.arguments(text, data="imagenet", model="B", patch=16)
    if chosen["data"] not in ("imagenet", "cifar10"):
        raise ValueError(
            f"config argument data={chosen['data']!r} is not imagenet or cifar10; a"
            " folder of images is --config.data.name=folder --config.data.dir=DIR"
        )
    config = common.probing(num_classes=1000)
    config.model.size = chosen["model"]
    config.model.patch_size = chosen["patch"]
    if chosen["data"] == "cifar10":
        common.small_images(config, chosen["model"], chosen["patch"])
        config.classifier.num_classes = 10
    config.batch_size = 256
    config.total_steps = 0
    config.keep_best = ""
    config.data.augment.crop = "none"
    config.data.augment.flip = False
    del config.evaluators.accuracy
    config.evaluators.knn = common.knn(k=(10, 20, 100, 200))
    return config
