"""Writes docs/runs.md from finished runs: python docs/runs.py WORKDIR [WORKDIR ...].

Runs that are not given stay in the page as they are.

Every figure in that page is read from a run's own metrics.jsonl and config.json; the
log is kept under docs/results/NAME/. The commands below are the ones that were run;
data.name=folder was the default then, and is said here since it is no longer.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics

import flax
import jax

DOCS = pathlib.Path(__file__).parent
FIGURES = ("reconstruction.png", "loss_by_distance.png")

CIFAR = (
    " --config.data.name=folder --config.data.dir=data/cifar10"
    " --config.batch_size=128 --config.total_steps=900"
    " --config.dtype=float32 --config.optimizer.base_lr=2e-3"
    " --config.log_every_steps=20 --config.eval_every_steps=450"
    " --config.checkpoint_every_steps=200"
    " --config.method.decoder.width=96 --config.method.decoder.num_heads=4"
)
# Ten thousand of the training images, a thousand of each class.
SMALL = (
    "--config.init.workdir=runs/ddae_cifar10 --config.data.name=folder"
    " --config.data.dir=data/cifar10_small --config.eval_every_steps=0"
    " --config.dtype=float32 --config.log_every_steps=10"
)
COMMANDS = {
    "quickstart": "python train.py --config=configs/quickstart.py"
    " --workdir=runs/quickstart",
    "ddae_cifar10": "python train.py --config=configs/ddae_cifar10.py:size=Nano"
    f"{CIFAR} --config.method.decoder.depth=1 '--config.method.taps=(4,6)'"
    " --config.method.features.weight=0.1"
    " --config.method.momentum.start=0.98 --config.method.momentum.middle=0.99"
    " --config.method.momentum.end=0.999 --workdir=runs/ddae_cifar10",
    "mae_cifar10": "python train.py --config=configs/mae_cifar10.py:size=Nano"
    f"{CIFAR} --config.method.decoder.depth=2 --workdir=runs/mae_cifar10",
    "knn_cifar10": "python train.py --config=configs/knn.py:data=cifar10,model=Nano,"
    "patch=4 --config.init.workdir=runs/ddae_cifar10 --config.data.name=folder"
    " --config.data.dir=data/cifar10 --workdir=runs/knn_cifar10",
    "linear_cifar10": "python train.py"
    " --config=configs/linear_cifar10.py:size=Nano,epochs=5"
    f" {SMALL} --workdir=runs/linear_cifar10",
    "finetune_cifar10": "python train.py --config=configs/finetune_cifar10.py:size=Nano"
    f" {SMALL} --config.batch_size=128 --config.total_steps=200"
    " --workdir=runs/finetune_cifar10",
    "vqkd_digits": "python train.py --config=configs/vqkd_digits.py"
    " --config.tokenizer.teacher.workdir=runs/quickstart --workdir=runs/vqkd_digits",
    "vqkd_cifar10": "python train.py --config=configs/vqkd_cifar10.py:size=Pico"
    " '--config.tokenizer.teacher.workdir=runs/study_epochs/runs/mae,3200/seed0'"
    " --config.tokenizer.teacher.model.size=Pico --config.tokenizer.codes=64"
    " --config.data.name=npz --config.data.dir=data/cifar10_arrays"
    " --config.dtype=float32 --config.batch_size=64 --config.total_steps=800"
    " --config.optimizer.base_lr=8e-3 --config.log_every_steps=25"
    " --config.checkpoint_every_steps=200 --workdir=runs/vqkd_cifar10",
    "beit_v2_digits": "python train.py --config=configs/beit_v2_digits.py"
    " --config.method.tokenizer.workdir=runs/vqkd_digits --workdir=runs/beit_v2_digits",
}


def summary(workdir):
    """First and last values of a run, and medians of its speed."""
    config = json.loads((workdir / "config.json").read_text())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    train = [row for row in rows if "train/loss" in row]
    evals = [row for row in rows if any(key.startswith("eval/") for key in row)]
    return {
        "config": config,
        "steps": train[-1]["step"] if train else 0,
        "train": train,
        "evals": evals,
    }


def page(name, run):
    """One run as Markdown."""
    config = run["config"]
    lines = [
        f"## {name}",
        "",
        "```sh",
        COMMANDS[name],
        "```",
        "",
        f"ViT-{config['model']['size']}, patch {config['model']['patch_size']},"
        f" {config['image_size']} px, {run['steps']} steps of {config['batch_size']}"
        f" images{speed(run['train'])}. One seed.",
        "",
        "| step | " + " | ".join(k.removeprefix("eval/") for k in keys(run)) + " |",
        "|---|" + "---|" * len(keys(run)),
    ]
    for row in run["evals"]:
        lines.append(
            f"| {row['step']} | "
            + " | ".join(f"{row[k]:.4g}" for k in keys(run))
            + " |"
        )
    lines += ["", *losses(run["train"]), ""]
    for figure in FIGURES:
        if (DOCS / "results" / name / figure).exists():
            lines += [f"![{name}: {figure}](results/{name}/{figure})", ""]
    return "\n".join(lines)


def speed(train):
    """Medians, where there was training."""
    if len(train) < 2:
        return ""
    images, wait = (
        statistics.median(row[f"train/{key}"] for row in train[1:])
        for key in ("images_per_second", "data_wait")
    )
    return f"; median {images:,.0f} images/s, data wait {100 * wait:.0f} %"


def losses(train):
    """What was learned, first and last."""
    if not train:
        return
    first, last = train[0], train[-1]
    pixels = sorted(k for k in last if k.startswith("train/loss/pixels"))
    key = pixels[-1] if pixels else "train/loss"
    what = "Pixel loss of the last tap" if pixels else "Loss"
    yield (
        f"{what}, mean over the interval: {first[key]:.3f} at step {first['step']},"
        f" {last[key]:.3f} at step {last['step']}."
    )
    spread = [key for key in last if key.startswith("train/teacher_std")]
    if spread:
        values = ", ".join(
            f"{key.rsplit('/', 1)[1]} {first[key]:.3f} to {last[key]:.3f}"
            for key in spread
        )
        yield f"Deviation of the teacher's features, first to last: {values}."


def keys(run):
    """The numbers of an evaluation."""
    return [key for key in run["evals"][-1] if key != "step" and key.count("/") == 1]


def main():
    """Copies the evidence and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    header = (
        "# Runs\n\n"
        "Generated by `docs/runs.py` from the logs under `docs/results/`; no number is"
        " typed by hand. Machine:"
        f" {os.cpu_count()} shared {platform.machine()} CPU cores, no accelerator;"
        f" Python {platform.python_version()}, jax {jax.__version__}, flax"
        f" {flax.__version__}. Other work shared the cores: compare no speeds."
        " data/cifar10 is CIFAR-10 in folders, train/CLASS/* and test/CLASS/*;"
        " data/cifar10_small has a thousand of its training images of each class.\n"
    )
    written = DOCS / "runs.md"
    before = written.read_text() if written.exists() else ""
    sections = {
        part.partition("\n")[0]: f"## {part}" for part in before.split("\n## ")[1:]
    }
    for workdir in parser.parse_args().workdirs:
        kept = DOCS / "results" / workdir.name
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(workdir / "metrics.jsonl", kept / "metrics.jsonl")
        for figure in FIGURES:
            if (workdir / "figures" / figure).exists():
                shutil.copy(workdir / "figures" / figure, kept / figure)
        sections[workdir.name] = page(workdir.name, summary(workdir))
    pages = [sections[name].rstrip() + "\n" for name in COMMANDS if name in sections]
    written.write_text("\n".join([header, *pages]))


if __name__ == "__main__":
    main()
