"""A fine-tuned run and its export, side by side: the same top-1 in transformers?

python -m ddae.interop.huggingface export runs/finetune exported
python examples/compare_with_transformers.py runs/finetune exported [--images=1000]

Reads that many held-out images of the run's data, scores them with the run's newest
checkpoint and with the folder as transformers loads it, and prints top-1 of both and
the largest difference of a logit. Exit code 1 where top-1 differs, or a logit by more
than 1e-3. Wants torch and transformers: pip install -e ".[torch]".
"""

import argparse
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import numpy as np

from ddae import commands, data, tasks
from ddae.data import sample
from ddae.eval.accuracy import topk
from ddae.settings import UserError
from ddae.train.loading import load_params


def compare(workdir, folder, number):
    """(ours [n, classes], theirs [n, classes], labels [n]) of n held-out images."""
    try:
        import torch
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise UserError(f"{error}; pip install -e '.[torch]'") from error
    params, config = load_params(workdir)
    if config["task"] != "classify":
        raise UserError(f"{workdir} classifies nothing; give a fine-tuned run")
    task = tasks.from_config(config)
    held_out = data.from_config(config, task.image_shape).held_out
    with open(os.path.join(folder, "preprocessor_config.json")) as file:
        said = json.load(file)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    logits = jax.jit(task.logits)
    mean, std = np.float32(said["image_mean"]), np.float32(said["image_std"])
    ours, theirs, labels = [], [], []
    for batch in held_out.batches(sample(held_out, number), batch_size=100):
        (scores,) = logits(params, batch["image"]).values()
        ours.append(np.asarray(scores))
        images = batch["image"] / np.float32(255 if batch["image"].dtype == "u1" else 1)
        pixels = torch.tensor(((images - mean) / std).transpose(0, 3, 1, 2))
        with torch.no_grad():
            theirs.append(model(pixels).logits.numpy())
        labels.append(batch["label"])
    return tuple(np.concatenate(part) for part in (ours, theirs, labels))


def main(argv=None):
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir")
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=1000)
    return commands.run(_compare, parser, argv)


def _compare(args):
    ours, theirs, labels = compare(args.workdir, args.folder, args.images)
    apart = float(np.abs(ours - theirs).max())
    top1 = topk(ours, labels, 1), topk(theirs, labels, 1)
    print(
        f"{len(labels)} images: top-1 {top1[0]:.2f} here, {top1[1]:.2f} in"
        f" transformers; logits up to {np.abs(ours).max():.3g} differ by"
        f" {apart:.1g} at the most"
    )
    return int(top1[0] != top1[1] or not apart <= 1e-3)


if __name__ == "__main__":
    sys.exit(main())
