"""Images a CPU-second of the input pipeline, beside plain decoding and PyTorch.

python benchmarks/input_pipeline.py --dir=DIR [--tfds_dir=DIR] [--output=FILE.md]

DIR holds photographs of original size, DIR/train/CLASS/*.jpg. In one run, alternating:

- `decode`: every file read and decoded whole by tf.data, and nothing after it;
- `bare bilinear`: read, decoded, cut to a window drawn beforehand, resized and rounded
  by TensorFlow's operations, and nothing else: what a pipeline of them can reach;
- `ddae`: read in shuffled order, cropped, resized to 224, flipped and batched, for each
  resizing kernel; from the folder, and from a prepared imagenet2012 (`--tfds_dir`) too;
  as it is, the same whenever it runs, and in whatever order images are ready;
- `PyTorch`: DataLoader and Pillow doing the same work, if torch is installed.

Figures are medians over the rounds of images per CPU-second, all threads and worker
processes counted: wall-clock means little on a shared machine. Ratios are medians of
the ratios within a round. What two cores give over one is wall-clock, in processes of
their own (`--alone SECONDS`), which the system holds to so many cores.
"""

import argparse
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np
import psutil
from PIL import Image
from rich.progress import track

KERNELS = ("bilinear", "bicubic", "bicubic_antialias")
SIZE, BATCH, SCALE = 224, 64, (0.2, 1.0)

# Images a second that an accelerator takes: share of its peak, over FLOPs an image as
# ddae.flops counts them. The shares are our goals on a GPU, and what public JAX code
# reaches on a TPU v4: a model, no step rate that was measured.
METHODS = {"MAE": "mae_in1k", "DDAE": "ddae_in1k"}
H200 = {"S": 0.45 * 790e3, "B": 0.50 * 790e3, "L": 0.57 * 790e3}  # GFLOP/s, bf16 GEMM
TPU_V4 = dict.fromkeys("SBL", 0.45 * 275e3)
V4_128_CHIPS, V4_128_HOSTS = 64, 16
STEPS = pathlib.Path(__file__).parents[1] / "docs" / "results" / "performance.jsonl"


def cpu_seconds():
    """Of this process, all its threads, and its live worker processes."""
    total = time.process_time()
    for child in psutil.Process().children(recursive=True):
        spent = child.cpu_times()
        total += spent.user + spent.system
    return total


def bare_decode(data, _):
    """The whole image."""
    import tensorflow as tf

    return tf.io.decode_jpeg(data, channels=3)


def bare_bilinear(data, window):
    """The window, of its size or less."""
    from ddae.data.decode import resize, tensorflow

    image = tensorflow().io.decode_and_crop_jpeg(data, window, channels=3)
    return resize(image, (SIZE, SIZE), "bilinear")


def bare(image, files):
    """A function that makes `image` of each of `files` once, and how many they are."""
    import tensorflow as tf

    from ddae.data.augment import Augment, crop_window

    augment = Augment(crop="random_resized", scale=SCALE)
    shapes = [tf.io.extract_jpeg_shape(tf.io.read_file(path)) for path in files]
    windows = [
        crop_window(shape, (SIZE, SIZE), augment, (0, number))
        for number, shape in enumerate(shapes)
    ]

    def read(path, window):
        return image(tf.io.read_file(path), window)

    paths = tf.data.Dataset.from_tensor_slices((files, tf.stack(windows)))
    images = paths.map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)

    def once():
        # Counted within TensorFlow: no image ever reaches Python.
        assert int(images.reduce(0, lambda count, _: count + 1)) == len(files)
        return len(files)

    return once


def source(name, folder, kernel):
    """Splits of the folder or the prepared set, for pretraining with `kernel`."""
    from ddae import data

    augment = {
        "crop": "random_resized",
        "scale": SCALE,
        "flip": True,
        "resize": kernel,
    }
    section = {
        "name": name,
        "dir": folder,
        "eval_split": "train",
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "augment": augment,
    }
    return data.from_config({"data": section}, (SIZE, SIZE, 3))


def ours(name, folder, kernel, images):
    """A function that takes the next `images` images of an endless pipeline."""
    from ddae.data.order import Order

    splits = source(name, folder, kernel)
    order = Order(len(splits.train), BATCH, seed=0)
    batches = splits.train.train_batches(order, 0, slice(None), splits.augment)
    next(batches)  # traced and filled

    def once():
        steps = images // BATCH
        for batch in itertools.islice(batches, steps):
            assert batch["image"].shape == (BATCH, SIZE, SIZE, 3)
        return steps * BATCH

    return once


class Photographs:
    """A PyTorch dataset: Pillow decodes, crops, resizes and flips."""

    def __init__(self, files, kernel, images):
        self.files, self.images = files, images
        self.kernel = getattr(Image.Resampling, kernel.upper())

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        with Image.open(self.files[index % len(self.files)]) as file:
            image = file.convert("RGB")
        width, height = image.size
        for _ in range(10):
            area = width * height * random.uniform(*SCALE)
            aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if w <= width and h <= height:
                break
        else:
            w, h = width, height
        left, top = random.integers(width - w + 1), random.integers(height - h + 1)
        box = (left, top, left + w, top + h)
        image = image.resize((SIZE, SIZE), self.kernel, box=box)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(image)


def pytorch(files, kernel, images, workers):
    """A function that takes `images` images from a DataLoader that stays alive."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Photographs(files, kernel, images // BATCH * BATCH),
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )

    def once():
        return sum(len(batch) for batch in loader)

    once()  # workers started
    return once


def in_any_order(make):
    """The function that `make` gives, of a pipeline that takes what is ready first."""
    import tensorflow as tf

    ordered = tf.data.Dataset.map

    def free(self, *given, **options):
        if "deterministic" in options:
            options["deterministic"] = False
        return ordered(self, *given, **options)

    with mock.patch.object(tf.data.Dataset, "map", free):
        return make()


def alone(folder, seconds):
    """Of the bilinear pipeline in this process: images and CPU-seconds, a second."""
    once = ours("folder", folder, "bilinear", BATCH)
    once()
    begun, spent, images = time.monotonic(), time.process_time(), 0
    while (elapsed := time.monotonic() - begun) < seconds:
        images += once()
    return images / elapsed, (time.process_time() - spent) / elapsed


def cores_over_one(folder, cores, rounds=5, seconds=6):
    """Of `cores` cores, of each of `rounds` rounds: images a second over those of one,
    cores that were busy, CPU-seconds an image over those of one; and over those of one
    the images a second of as many programs, each held to a core of its own, which
    share nothing but the machine."""
    found = []
    for _ in track(range(rounds), "one core and more"):
        ((rate, busy),) = on_cores(folder, seconds, [0])
        ((more, busier),) = on_cores(folder, seconds, range(cores))
        apart = on_cores(folder, seconds, *([core] for core in range(cores)))
        dearer = busier / more * rate / busy
        found.append((more / rate, busier, dearer, sum(r for r, _ in apart) / rate))
    return found


def on_cores(folder, seconds, *cores):
    """What `alone` finds in programs that run at once, each on some of the cores."""
    command = [sys.executable, __file__, f"--dir={folder}", f"--alone={seconds}"]
    piped = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | {"text": True}
    limits = [functools.partial(os.sched_setaffinity, 0, each) for each in cores]
    begun = [subprocess.Popen(command, preexec_fn=limit, **piped) for limit in limits]
    said = [program.communicate()[0] for program in begun]
    assert not any(program.returncode for program in begun)
    return [[float(word) for word in text.split()[-2:]] for text in said]


def restarts(folder):
    """Seconds to the first batch of a pipeline begun at several steps."""
    from ddae.data.order import Order

    splits = source("folder", folder, "bicubic")
    order = Order(len(splits.train), BATCH, seed=0)
    found = {}
    for step in (0, 0, 1000, 1_000_000):
        start = time.monotonic()
        next(splits.train.train_batches(order, step, slice(None), splits.augment))
        found[step] = time.monotonic() - start
    return found


def measure(contenders, rounds):
    """{name: [images per CPU-second, a round]}, taken in turn."""
    rates = {name: [] for name in contenders}
    for once in contenders.values():  # a round to warm up
        once()
        settle()
    for _ in track(range(rounds), "rounds"):
        for name, once in contenders.items():
            start = cpu_seconds()
            images = once()
            settle()
            rates[name].append(images / (cpu_seconds() - start))
    return rates


def settle():
    """Waits until pipelines have refilled their buffers: each pays for its own."""
    while True:
        start = cpu_seconds()
        time.sleep(0.1)
        if cpu_seconds() - start < 0.01:
            return


def speed_table(rates):
    """Medians, and ratios to plain decoding and to PyTorch of the nearest kernel."""
    lines = [
        "| pipeline | images / CPU-second | / plain decode | / PyTorch + Pillow |",
        "|---|---|---|---|",
    ]
    for name, values in rates.items():
        ratios = [ratio(values, rates["decode"]), "-"]
        kernel = "bilinear" if "bilinear" in name else "bicubic"
        other = rates.get(f"PyTorch {kernel}")
        if name.startswith("ddae") and other:
            ratios[1] = ratio(values, other)
        lines.append(
            f"| {name} | {statistics.median(values):.0f} | {' | '.join(ratios)} |"
        )
    return lines


def ratio(values, others):
    """The median of the ratios within a round, and their range."""
    found = [a / b for a, b in zip(values, others, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


@functools.cache
def gigaflops(name, size):
    """GFLOP an image, forward and backward, of configs/NAME.py."""
    from ddae import flops, tasks

    config = importlib.import_module(f"configs.{name}").get_config(f"model={size}")
    return flops.step_flops(tasks.from_config(config.to_dict())) / 1e9


def goals_table(rates, scaled):
    """What is asked of the pipeline, and what it gave."""
    bilinear, free = rates["ddae bilinear"], rates["ddae bilinear, in any order"]
    per_core = statistics.median(bilinear)
    cost = statistics.median(1 - a / b for a, b in zip(bilinear, free, strict=True))
    more, busy, dearer, apart = map(statistics.median, zip(*scaled, strict=True))
    two = f"{more:.2f} x: {busy:.2f} cores busy, {dearer:.2f} CPU-s an image for 1"
    two += f"; two programs, a core each: {apart:.2f} x"
    rows = [
        ("700 images a CPU-second, bilinear", f"{per_core:.0f}", per_core >= 700),
        ("a fixed order costs 2 % at the most", f"{100 * cost:.1f} %", cost <= 0.02),
        ("1.9 x with two cores, by the clock", two, more >= 1.9),
    ]
    lines = ["| goal | measured | |", "|---|---|---|"]
    words = {True: "met", False: "**missed**"}
    return lines + [f"| {goal} | {said} | {words[held]} |" for goal, said, held in rows]


def measured_rates():
    """Images a second that steps of one H100 took, by "MAE-B", the newest of each."""
    lines = STEPS.read_text().splitlines() if STEPS.exists() else []
    rows = [row for row in map(json.loads, lines) if row["benchmark"] == "step"]
    return {
        f"{row['method'].upper()}-{row['size']}": row["images_per_second"]
        for row in rows
        if "1 x NVIDIA H100" in row["machine"] and row["method"].upper() in METHODS
    }


def cores_table(rates):
    """Cores that keep an accelerator fed, by kernel."""
    per_core = [statistics.median(rates[f"ddae {kernel}"]) for kernel in KERNELS]
    lines = [
        "| accelerator | method | images/s | "
        + " | ".join(f"cores, {kernel}" for kernel in KERNELS)
        + " |",
        "|---|---|---|" + "---|" * len(KERNELS),
    ]
    for name, peak, count in (
        ("one H200", H200, 1),
        ("one TPU v4 chip", TPU_V4, 1),
        (f"v4-128, each of {V4_128_HOSTS} hosts", TPU_V4, V4_128_CHIPS / V4_128_HOSTS),
        (f"v4-128, {V4_128_CHIPS} chips", TPU_V4, V4_128_CHIPS),
    ):
        for method, config in METHODS.items():
            for size in "SBL":
                rate = count * peak[size] / gigaflops(config, size)
                cores = " | ".join(f"{rate / speed:.1f}" for speed in per_core)
                lines.append(f"| {name} | {method}-{size} | {rate:,.0f} | {cores} |")
    for name, rate in sorted(measured_rates().items()):
        cores = " | ".join(f"{rate / speed:.1f}" for speed in per_core)
        lines.append(f"| one H100, measured | {name} | {rate:,.0f} | {cores} |")
    return lines


def main():
    """Runs the benchmark and prints its page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True)
    parser.add_argument("--tfds_dir", default="")
    parser.add_argument("--images", type=int, default=512, help="a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2, help="of PyTorch")
    parser.add_argument("--output", help="also write the page here")
    parser.add_argument("--alone", type=float, help="only that, for so many seconds")
    args = parser.parse_args()
    if args.alone:
        print(*alone(args.dir, args.alone))
        return
    from ddae.data.folder import FolderRecords

    root = os.path.join(args.dir, "train")
    records = FolderRecords(root, "train")
    files = [records.key(i) for i in range(len(records))]
    few = list(itertools.islice(itertools.cycle(files), args.images))
    contenders = {
        "decode": bare(bare_decode, few),
        "bare bilinear": bare(bare_bilinear, few),
    }
    for kernel in KERNELS:
        contenders[f"ddae {kernel}"] = ours("folder", args.dir, kernel, args.images)
    contenders["ddae bilinear, in any order"] = in_any_order(
        lambda: ours("folder", args.dir, "bilinear", args.images)
    )
    if args.tfds_dir:
        builder = importlib.import_module("ddae.data.tfds").load_builder
        kind = builder("imagenet2012", args.tfds_dir).info.file_format.value
        contenders[f"ddae bicubic, {kind}"] = ours(
            "tfds/imagenet2012", args.tfds_dir, "bicubic", args.images
        )
    if importlib.util.find_spec("torch"):
        for kernel in ("bilinear", "bicubic"):
            name = f"PyTorch {kernel}"
            contenders[name] = pytorch(few, kernel, args.images, args.workers)
    else:
        print("torch is not installed: no comparison with its DataLoader")
    page = "\n".join(write_page(args, len(files), contenders))
    print(page)
    if args.output:
        pathlib.Path(args.output).write_text(page + "\n")


def write_page(args, num_files, contenders):
    """The lines of the page; runs the contenders."""
    rates = measure(contenders, args.rounds)
    scaled = cores_over_one(args.dir, 2)
    starts = ", ".join(
        f"{seconds:.2f} s at step {step:,}"
        for step, seconds in restarts(args.dir).items()
    )
    import tensorflow as tf
    from measure import machine

    command = functools.reduce(
        lambda text, folder: text.replace(folder, "DIR"),
        filter(None, (args.tfds_dir, args.dir)),
        " ".join(["python", *sys.argv]),
    )
    yield f"""# The input pipeline, measured

Generated by `{command}`
on {machine()["machine"]};
Python {platform.python_version()}, TensorFlow {tf.__version__}; {num_files} ImageNet
photographs of original size, {args.rounds} rounds of {args.images} images.
"""
    yield from goals_table(rates, scaled)
    yield ""
    yield from speed_table(rates)
    yield f"""
`bare bilinear` is TensorFlow's reading, decoding, cutting and resizing alone, of
windows drawn beforehand. Pillow always averages when it shrinks an image; of ours,
below a twofold shrink, only `bicubic_antialias` does. In parentheses: the range over
the rounds.

First batch of a pipeline begun anew: {starts}.

## Cores to feed an accelerator

The rates are a model, not a measurement, but for the H100's
([performance.md](performance.md)): 45, 50 and 57 % of the 790 TFLOP/s that a GEMM
reaches on an H200, for S, B and L, and 45 % of a TPU v4's 275. v4-128 counts
TensorCores: 64 chips on 16 hosts of 240 virtual cores. Where the terminal shows more
than a few per cent of data wait, take a cheaper kernel:
`--config.data.augment.resize=bilinear`.
"""
    yield from ["", *cores_table(rates)]


if __name__ == "__main__":
    from ddae.settings import UserError

    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
