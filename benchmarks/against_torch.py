"""Our MAE step beside transformers' ViTMAEForPreTraining, alternating in one run.

python benchmarks/against_torch.py --model=S --batch=16 [--output=FILE.jsonl]

Each has a process of its own, as its users run it: in one process the memory that each
takes and gives back makes both slower, ours by half. Both begin with equal weights,
which go through the name table of ddae.interop, and see the same uint8 images; before
anything is timed, the masks are asserted to be equal and the losses to agree. Then
rounds of steps in turn: ours is the step of a run (masks, metrics, the guard against
non-finite steps included), theirs standardises, draws its masks, and takes an AdamW
step. On a CPU theirs is float32, with eager attention and with SDPA; on a GPU bfloat16
autocast, eager, and with SDPA and torch.compile.

Figures are medians over the rounds; a ratio is the median of theirs over ours within a
round, above 1 where ours is faster, in parentheses its range. On a shared machine
CPU-seconds, and the best round of each, say more than the clock.
"""

import argparse
import dataclasses
import multiprocessing
import os
import tempfile
import time
import traceback

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
# Threads of torch that wait must not count as work, least of all beside other programs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import measure
import numpy as np
import torch
import transformers
from rich.progress import track
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from ddae.interop import huggingface
from ddae.interop.names import fixed_positions
from ddae.models.vit import VIT_SPECS
from ddae.tasks.backbone import stream
from ddae.train.loading import load_params

CUDA = torch.cuda.is_available()
VARIANTS = {
    "eager": {"attention": "eager", "compiled": False},
    "SDPA": {"attention": "sdpa", "compiled": False},
}
if CUDA:
    VARIANTS["SDPA, compiled"] = {"attention": "sdpa", "compiled": True}
    del VARIANTS["SDPA"]


def their_model(config, attention):
    """ViTMAEForPreTraining of the config's shape, its first weights by seed."""
    spec = VIT_SPECS[config["model"]["size"]]
    decoder = config["method"]["decoder"]
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=spec.width,
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.num_heads,
            intermediate_size=int(spec.width * spec.mlp_ratio),
            image_size=config["image_size"],
            patch_size=config["model"]["patch_size"],
            decoder_hidden_size=decoder["width"],
            decoder_num_hidden_layers=decoder["depth"],
            decoder_num_attention_heads=decoder["num_heads"],
            decoder_intermediate_size=4 * decoder["width"],
            norm_pix_loss=config["method"]["standardise_pixels"],
            layer_norm_eps=1e-6,
            attn_implementation=attention,
        )
    )
    # transformers 5 leaves the positions of a model made from a config at zero.
    grid = (config["image_size"] // config["model"]["patch_size"],) * 2
    for name, parameter in model.named_parameters():
        if name.endswith(("position_embeddings", "decoder_pos_embed")):
            fixed = fixed_positions(parameter.shape[-1], grid)
            parameter.data = torch.from_numpy(fixed)
    return model.to("cuda" if CUDA else "cpu").train()


class Side:
    """A contender in a process of its own. make, args: what builds it there."""

    def __init__(self, name, make, *args):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        context.Process(target=serve, args=(there, make, args), daemon=True).start()
        there.close()

    def ask(self, method, *args):
        """What the contender's method gives."""
        self.begin(method, *args)
        return self.end()

    def begin(self, method, *args):
        """Has the contender do something while others do."""
        try:
            self.pipe.send((method, args))
        except BrokenPipeError:
            raise SystemExit(f"the process of {self.name} has died") from None

    def end(self):
        """What came of it."""
        try:
            fine, result = self.pipe.recv()
        except EOFError:
            raise SystemExit(f"the process of {self.name} has died") from None
        if not fine:
            raise SystemExit(f"{self.name}: {result}")
        return result


def serve(pipe, make, args):
    """Builds a contender and answers what is asked of it, until nobody asks."""
    contender = None
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        try:
            contender = contender or make(*args)
            if method == "time":
                wall, cpu = time.perf_counter(), time.process_time()
                contender.steps(*given)
                result = time.perf_counter() - wall, time.process_time() - cpu
            else:
                result = getattr(contender, method)(*given)
            pipe.send((True, result))
        except (Exception, SystemExit):
            pipe.send((False, traceback.format_exc()))


class Theirs:
    """Their step: standardise, forward, backward, AdamW."""

    def __init__(self, config, images, attention, compiled):
        self.model = their_model(config, attention)
        self.run = torch.compile(self.model) if compiled else self.model
        options = config["optimizer"]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=1e-6,
            betas=(options["b1"], options["b2"]),
            weight_decay=options["weight_decay"],
            fused=CUDA,
        )
        device = "cuda" if CUDA else "cpu"
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
        shape = (1, 3, 1, 1)
        self.mean = torch.tensor(config["data"]["mean"], device=device).view(shape)
        self.std = torch.tensor(config["data"]["std"], device=device).view(shape)
        half = config["dtype"] == "bfloat16"
        self.cast = torch.autocast(device, dtype=torch.bfloat16, enabled=half)

    def check(self, noise):
        """(loss, mask) of the masks that `noise` [b, n] gives, nothing learned."""
        device = self.mean.device
        with torch.no_grad():
            noise = torch.from_numpy(noise).float().to(device)
            # Not what is compiled, which would be compiled for noise alone.
            loss, mask = self.loss(self.model, noise=noise)
        return float(loss), mask.cpu().numpy().astype(bool)

    def loss(self, model, **given):
        """The loss, and the mask, 1 where a patch is hidden."""
        pixels = (self.images.float() / 255.0 - self.mean) / self.std
        with self.cast:
            found = model(pixels, **given)
        return found.loss, found.mask

    def steps(self, number):
        """Takes `number` steps and waits for the last."""
        for _ in range(number):
            self.optimizer.zero_grad(set_to_none=True)
            loss, _ = self.loss(self.run)
            loss.backward()
            self.optimizer.step()
        return float(loss.detach())


class Ours:
    """The step of a run. folder: weights that transformers wrote."""

    def __init__(self, config, batch, folder):
        self.work = measure.make_work(config, batch, 1)
        self.batch = self.work.batch()
        self.root = jax.random.key(0)
        with tempfile.TemporaryDirectory() as ours:
            if huggingface.main(["import", folder, f"--workdir={ours}/run"]):
                raise SystemExit("the weights could not be read")
            self.params = jax.tree.map(jnp.asarray, load_params(f"{ours}/run")[0])
        self.run = None

    def begin(self):
        """A state at step 0 with the given weights."""
        state = self.work.state()
        # Copies: the step takes its state's buffers over.
        params = jax.tree.map(jnp.copy, self.params)
        params = jax.tree.map(jax.device_put, params, self.work.shardings.params)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, state.params)
        self.state = dataclasses.replace(state, params=params)

    def images(self):
        """uint8 [b, h, w, 3] of every step."""
        return np.asarray(self.batch["image"])

    def mask(self):
        """What the next step hides: bool [b, n]."""
        rngs = jax.random.split(
            jax.random.fold_in(self.root, self.state.step), self.work.batch_size
        )
        method = self.work.task.method
        mask = method.masking.draw(stream(rngs, "mask"), method.encoder.grid)
        return np.asarray(mask.is_masked)

    def steps(self, number):
        """Takes `number` steps and waits for the last."""
        if self.run is None:
            lowered = self.work.step.lower(self.state, self.batch, self.root)
            self.run = lowered.compile()
        for _ in range(number):
            self.state, metrics = self.run(self.state, self.batch, self.root)
        return float(metrics["loss"][0])


def check(ours, theirs, dtype):
    """Asserts that masks are equal and losses agree; {name: relative difference}.

    On a GPU every contender then takes steps at once, for what it has to compile.
    """
    ours.ask("begin")
    hidden = ours.ask("mask")
    # Ascending within the visible and the hidden ones, as ours are.
    noise = hidden + np.arange(hidden.shape[1]) * 1e-6
    losses = {}
    for side in theirs:
        losses[side.name], mask = side.ask("check", noise)
        np.testing.assert_array_equal(mask, hidden)
    ours.begin("steps", 1)
    if CUDA:
        for side in theirs:
            side.begin("steps", 3)
    own = ours.end()
    if CUDA:
        [side.end() for side in theirs]
    differences = {name: abs(own - x) / x for name, x in losses.items()}
    bound = 1e-4 if dtype == "float32" else 1e-2
    assert max(differences.values()) < bound, f"loss {own} of ours, {losses} of theirs"
    return differences


def measure_rounds(sides, rounds, steps):
    """{name: [(seconds, CPU-seconds) a step, of each round]}."""
    found = {side.name: [] for side in sides}
    for side in sides:
        side.ask("steps", 1 if not CUDA else 10)
    for _ in track(range(rounds), "rounds"):
        for side in sides:
            spent = side.ask("time", steps)
            found[side.name].append(tuple(s / steps for s in spent))
    return found


def ratios(theirs, ours, which):
    """Median, least and largest of theirs over ours within a round."""
    found = [a[which] / b[which] for a, b in zip(theirs, ours, strict=True)]
    return measure.median(found), min(found), max(found)


def main():
    """Runs the benchmark and prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="S")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20 if CUDA else 1, help="a round")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", help="append lines of JSON here")
    args = parser.parse_args()
    dtype = "bfloat16" if CUDA else "float32"
    changes = [f"dtype={dtype}", *args.set]
    config = measure.read_config(f"mae_in1k:model={args.model}", changes)
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "theirs")
        ours = Side("ours", Ours, config, args.batch, weights)
        their_model(config, "eager").save_pretrained(weights)
        images = ours.ask("images")
        theirs = [
            Side(name, Theirs, config, images, *options.values())
            for name, options in VARIANTS.items()
        ]
        differences = check(ours, theirs, config["dtype"])
        found = measure_rounds([ours, *theirs], args.rounds, args.steps)
    rows = []
    for name in VARIANTS:
        row = {
            "size": args.model,
            "batch": args.batch,
            "dtype": config["dtype"],
            "theirs": name,
            "loss_difference": differences[name],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        for which, unit in enumerate(("seconds", "cpu_seconds")):
            for side, key in (("ours", "ours"), ("theirs", name)):
                row[f"{side}_{unit}"] = measure.median([x[which] for x in found[key]])
            row[f"ratio_{unit}"] = ratios(found[name], found["ours"], which)
            best = [min(x[which] for x in found[key]) for key in (name, "ours")]
            row[f"ratio_best_{unit}"] = best[0] / best[1]
        measure.write({"benchmark": "against_torch", **row}, args.output)
        rows.append(measure.torch_row(row))
    print(measure.table(rows))


if __name__ == "__main__":
    main()
