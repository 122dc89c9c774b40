"""What every config has, at its usual value; an experiment states what it changes."""

from ml_collections import ConfigDict, config_dict

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.491, 0.482, 0.447)
CIFAR_STD = (0.247, 0.243, 0.262)


def training() -> ConfigDict:
    """What runs of every task have: MAE's pretraining recipe, ImageNet at 224."""
    config = ConfigDict()
    config.task = ""
    config.seed = 0
    config.batch_size = 4096
    config.epochs = 100.0
    config.total_steps = config_dict.placeholder(int)
    # A number, or (height, width): a flag may change which.
    config.image_size = config_dict.FieldReference(224, field_type=object)
    config.dtype = "bfloat16"
    config.log_every_steps = 50
    config.checkpoint_every_steps = 1000
    config.eval_every_steps = 5000
    config.keep_checkpoints = 3
    config.keep_every_steps = 0
    config.keep_best = ""
    config.max_nonfinite_steps = 10
    config.watchdog_seconds = 1800.0
    config.compile_cache = "auto"
    config.profile = ""
    config.steps_per_dispatch = 1

    # A workdir whose encoder this run begins with; "" begins fresh.
    config.init = ConfigDict()
    config.init.workdir = ""
    config.init.may_miss = ()
    config.init.may_leave = ("/mask_token$",)

    config.data = ConfigDict()
    config.data.name = "tfds/imagenet2012"
    config.data.dir = ""
    config.data.copy_to = ""
    config.data.train_split = "train"
    config.data.eval_split = "validation"
    config.data.eval_crop = 0.875
    config.data.on_error = "raise"
    config.data.max_bad = 100
    config.data.on_device = False
    config.data.mean = IMAGENET_MEAN
    config.data.std = IMAGENET_STD
    config.data.augment = ConfigDict()
    config.data.augment.crop = "random_resized"
    config.data.augment.scale = (0.2, 1.0)
    config.data.augment.resize = "bicubic"
    config.data.augment.flip = True
    config.data.augment.on_device = False

    config.model = ConfigDict()
    config.model.size = "B"
    config.model.patch_size = 16
    config.model.channels = 3
    config.model.remat = "off"
    config.model.scan = False
    config.model.positions = "sincos"
    config.model.position_grid = config_dict.placeholder(tuple)
    config.model.relative_bias = "none"
    config.model.layer_scale = 0.0
    config.model.drop_path = 0.0
    config.model.gelu = "erf"
    config.model.attention = "auto"

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.base_lr = 1.5e-4
    config.optimizer.lr_batch = 256
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.clip_norm = 0.0
    config.optimizer.accumulate = 1
    config.optimizer.schedule = "cosine"
    config.optimizer.step_at = 0.875
    config.optimizer.final_lr = 0.0
    config.optimizer.layer_decay = 1.0
    config.optimizer.no_decay = ()
    config.optimizer.frozen = ()

    config.mesh = ConfigDict()
    config.mesh.fsdp = 1

    config.evaluators = ConfigDict()
    return config


def pretraining() -> ConfigDict:
    """MAE's recipe: AdamW, cosine by step, random-resized crops and flips."""
    config = training()
    config.task = "pretrain"
    config.evaluators.knn = knn(k=20)
    config.evaluators.reconstruct = ConfigDict()
    config.evaluators.reconstruct.num_images = 8
    return config


def knn(k: int | tuple[int, ...]) -> ConfigDict:
    """The evaluator of nearest neighbours, over all images of both sets."""
    return ConfigDict(
        {
            "k": k,
            "temperature": 0.07,
            "pool": "mean",
            "linear": False,
            "num_train": 0,
            "num_held_out": 0,
        }
    )


def classification(num_classes: int) -> ConfigDict:
    """MAE's fine-tuning of ViT-B: AdamW, layer decay, mixup, cutmix, RandAugment."""
    config = training()
    config.task = "classify"
    config.batch_size = 1024
    config.keep_best = "eval/top1"
    # The classifier's own norm takes the place of the encoder's last.
    config.init.may_leave = ("/mask_token$", "^/encoder/norm/")
    config.data.augment.scale = (0.08, 1.0)
    config.data.augment.rand_augment = 2
    config.data.augment.magnitude = 9.0
    config.data.augment.magnitude_std = 0.5
    config.model.drop_path = 0.1
    config.optimizer.base_lr = 5e-4
    config.optimizer.final_lr = 1e-6
    config.optimizer.b2 = 0.999
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.layer_decay = 0.65
    config.optimizer.no_decay = ("/cls_token$",)
    config.classifier = ConfigDict()
    config.classifier.num_classes = num_classes
    config.classifier.tap = 0
    config.classifier.pool = "mean"
    config.classifier.norm = "layer"
    config.classifier.rates = (1.0,)
    config.classifier.kernel_deviation = 2e-5
    config.classifier.average = 0.0
    config.mixing = ConfigDict()
    config.mixing.mixup = 0.8
    config.mixing.cutmix = 1.0
    config.mixing.probability = 1.0
    config.mixing.switch = 0.5
    config.mixing.smoothing = 0.1
    config.mixing.erasing = 0.25
    config.evaluators.accuracy = ConfigDict()
    config.evaluators.accuracy.num_held_out = 0
    return config


def probing(num_classes: int) -> ConfigDict:
    """MAE's linear probe of the frozen cls token: LARS, BatchNorm without affine."""
    config = classification(num_classes)
    config.batch_size = 16384
    config.epochs = 90.0
    config.init.may_leave = ("/mask_token$",)
    config.data.augment.rand_augment = 0
    config.model.drop_path = 0.0
    config.optimizer.name = "lars"
    config.optimizer.base_lr = 0.1
    config.optimizer.final_lr = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.layer_decay = 1.0
    config.optimizer.frozen = ("/encoder/",)
    config.classifier.pool = "cls"
    config.classifier.norm = "batch"
    config.classifier.kernel_deviation = 0.01
    config.mixing.mixup = 0.0
    config.mixing.cutmix = 0.0
    config.mixing.smoothing = 0.0
    config.mixing.erasing = 0.0
    return config


def attentive(config: ConfigDict) -> None:
    """Makes a linear probe an attentive one: one learned query, AdamW."""
    config.classifier.pool = "attention"
    config.classifier.norm = "none"
    config.optimizer.name = "adamw"
    config.optimizer.base_lr = 1e-3
    config.optimizer.lr_batch = config.batch_size
    config.optimizer.weight_decay = 0.05


def small_images(config: ConfigDict, size: str, patch: int) -> None:
    """CIFAR-10 at 32 pixels."""
    config.image_size = 32
    config.data.name = "tfds/cifar10"
    config.data.eval_split = "test"
    config.data.eval_crop = 1.0
    config.data.mean = CIFAR_MEAN
    config.data.std = CIFAR_STD
    config.model.size = size
    config.model.patch_size = patch


def cifar10(text: str | None, plug_in: bool = True) -> ConfigDict:
    """Pretraining at 32 pixels; arguments size, patch, epochs, and where deep dynamic
    supervision may be plugged in, dds."""
    extra = {"dds": False} if plug_in else {}
    chosen = arguments(text, size="Ti", patch=4, epochs=100.0, **extra)
    config = pretraining()
    config.method = ConfigDict({"name": "", "dds": dds(chosen.get("dds", False))})
    small_images(config, chosen["size"], chosen["patch"])
    config.batch_size = 512
    config.epochs = chosen["epochs"]
    config.eval_every_steps = 2000
    config.optimizer.base_lr = 5e-4
    config.optimizer.warmup_epochs = 0.1 * chosen["epochs"]
    config.evaluators.knn.num_train = 10000
    config.evaluators.knn.num_held_out = 2000
    return config


def digits(config: ConfigDict) -> None:
    """scikit-learn's scanned digits, which need no download; 4 blocks of width 64."""
    config.image_size = 8
    config.dtype = "float32"
    config.log_every_steps = 50
    config.checkpoint_every_steps = 500
    config.eval_every_steps = 500
    config.data.name = "digits"
    config.data.mean = (0.305,)
    config.data.std = (0.376,)
    config.data.augment.crop = "shift"
    config.data.augment.pad = 1
    config.data.augment.flip = False
    config.model.size = "Pico"
    config.model.patch_size = 2
    config.model.channels = 1


def imagenet(
    text: str | None, epochs: float = 100.0, plug_in: bool = True
) -> ConfigDict:
    """Pretraining at 224 pixels; arguments model (S, B, L, H), epochs, and where deep
    dynamic supervision may be plugged in, dds."""
    extra = {"dds": False} if plug_in else {}
    chosen = arguments(text, model="B", epochs=float(epochs), **extra)
    config = pretraining()
    config.method = ConfigDict({"name": "", "dds": dds(chosen.get("dds", False))})
    config.epochs = chosen["epochs"]
    config.model.size = chosen["model"]
    config.model.patch_size = 14 if chosen["model"] == "H" else 16
    warmup = min(10.0, chosen["epochs"] / 10) if chosen["epochs"] <= 100 else 40.0
    config.optimizer.warmup_epochs = warmup
    config.evaluators.knn.num_train = 100000
    config.evaluators.knn.num_held_out = 10000
    return config


def dds(on: bool) -> ConfigDict | None:
    """The section method.dds: deep dynamic supervision of any method; None without."""
    if not on:
        return config_dict.placeholder(dict)
    return ConfigDict(
        {
            "taps": config_dict.placeholder(tuple),
            "tap_weight": 0.25,
            "metric": "euclidean",
            "beta": beta(),
        }
    )


def beta() -> ConfigDict:
    """The exponent over phase and depth; its defaults are ours and provisional.

    Kept after study 1 (docs/results.md, three seeds): under block masks near to far
    came out ahead of a constant, and deeper taps that look nearer (depth_tilt < 0)
    ahead of those that look farther; no difference was shown between near to far and
    far to near, nor of anything under random masks.
    """
    return ConfigDict(
        {"start": -1.0, "end": 1.0, "phase": "linear", "depth_tilt": -0.5}
    )


def momentum(start: float, middle: float, end: float) -> ConfigDict:
    """The teacher's: `start` to `middle` over an eighth of the run, then to `end`."""
    values = {"start": start, "middle": middle, "end": end}
    return ConfigDict(values | {"rise": 0.125, "steps": 0})


def beit_model(config: ConfigDict, layer_scale: float) -> None:
    """BEiT's ViT: a shared relative position bias, no other positions, layer scale."""
    config.model.positions = "none"
    config.model.relative_bias = "shared"
    config.model.layer_scale = layer_scale


def beit_optimizer(config: ConfigDict) -> None:
    """BEiT-v2's recipe."""
    config.batch_size = 2048
    config.data.augment.color_jitter = 0.4
    config.optimizer.base_lr = 1.5e-3
    config.optimizer.lr_batch = 2048
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 3.0
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.final_lr = 1e-5
    config.optimizer.no_decay = ("/cls_token$",)


def beit_mask() -> ConfigDict:
    """Blocks of at least 16 patches, 75 of 196 in all."""
    return ConfigDict({"kind": "block", "ratio": 75 / 196, "min_area": 16})


def vqkd() -> ConfigDict:
    """The tokenizer's training; with what vqkd_in1k changes, BEiT-v2's recipe."""
    config = training()
    config.task = "tokenize"
    config.batch_size = 512
    config.model.positions = "learned"
    config.optimizer.base_lr = 5e-5
    config.optimizer.lr_batch = 512
    config.optimizer.weight_decay = 1e-4
    config.optimizer.b2 = 0.99
    config.tokenizer = ConfigDict()
    config.tokenizer.codes = 8192
    config.tokenizer.code_dim = 32
    config.tokenizer.decoder_depth = 3
    config.tokenizer.commitment = 1.0
    config.evaluators.codes = ConfigDict({"num_held_out": 0})
    return config


def tokenizer(config: ConfigDict) -> ConfigDict:
    """A trained tokenizer of the same image and patch size as the pretraining's."""
    found = frozen(config, positions="learned")
    found.codes = 8192
    found.code_dim = 32
    return found


def teacher(config: ConfigDict) -> ConfigDict:
    """Another run's encoder, of the same image and patch size."""
    return frozen(config, positions="sincos")


def frozen(config: ConfigDict, positions: str) -> ConfigDict:
    """A network that is asked and never trained; what it is like must be its run's."""
    size = "B" if config.image_size == 224 else config.model.size
    model = {"size": size, "patch_size": config.model.patch_size}
    model |= {"channels": config.model.channels, "positions": positions}
    model |= {"relative_bias": "none", "layer_scale": 0.0, "style": "vit"}
    model |= {"gelu": "erf"}
    return ConfigDict(
        {
            "workdir": "",
            "model": model,
            "mean": config.data.mean,
            "std": config.data.std,
        }
    )


def mae() -> ConfigDict:
    """The section `method` of a masked autoencoder."""
    method = ConfigDict()
    method.name = "mae"
    method.layout = "visible"
    method.standardise_pixels = True
    method.mask = mask()
    method.decoder = decoder(depth=8)
    return method


def ddae() -> ConfigDict:
    """The section `method` of DDAE; its defaults are ours and provisional.

    features.weight (lambda) is 1: by docs/results.md a teacher that weighs as much as
    the pixels is what gains most in runs of thousands of steps. In one of hundreds,
    whose teacher has learned little, it costs more than all the rest gains: .1 there.
    """
    method = ConfigDict()
    method.name = "ddae"
    method.layout = "visible"
    method.standardise_pixels = True
    method.mask = mask()
    method.decoder = decoder(depth=2)
    method.taps = config_dict.placeholder(tuple)
    method.tap_weight = 0.25
    method.metric = "euclidean"
    method.beta = beta()
    method.features = ConfigDict(
        {
            "weight": 1.0,
            "ramp": 0.25,
            "target": "same_depth",
            "loss": "mse",
            "share": 1.0,
            "shrink": 1,
        }
    )
    method.momentum = momentum(0.999, 0.9999, 0.99999)
    return method


def decoder(depth: int) -> ConfigDict:
    """MAE's decoder; its dtype is config.dtype where it says nothing else."""
    return ConfigDict({"depth": depth, "width": 512, "num_heads": 16, "dtype": ""})


def mask() -> ConfigDict:
    """Random masks of three quarters of the patches."""
    return ConfigDict({"kind": "random", "ratio": 0.75})


def arguments(text: str | None, **defaults):
    """The arguments of --config=FILE:key=value,..., typed as `defaults`."""
    values = dict(defaults)
    for pair in filter(None, (text or "").split(",")):
        key, _, value = pair.partition("=")
        if key not in defaults:
            known = f" is not one of {', '.join(sorted(defaults))}"
            known = known if defaults else ": it takes none"
            raise ValueError(f"config argument {key!r}{known}")
        kind = type(defaults[key])
        switches = {"": True, "1": True, "true": True, "0": False, "false": False}
        try:
            values[key] = switches[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"config argument {key}={value!r} is not like {defaults[key]!r}"
            ) from error
    return values
