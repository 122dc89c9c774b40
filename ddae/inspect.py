"""What a workdir holds: python -m ddae.inspect WORKDIR.

Method, model, data, how far it has come, its figures, and every checkpoint; the weights
of the newest, or of WORKDIR/checkpoints/STEP, are read and their checksums verified.
Exit codes: 0; 2 nothing to see.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from clu import parameter_overview

from ddae import commands
from ddae.train.loading import describe, load_params, run_of
from ddae.train.metrics import read_metrics


def lines(workdir: str, parameters: bool) -> Iterator[str]:
    """The page, line by line; `UserError` where there is no checkpoint."""
    found = describe(workdir)
    config, data = found["config"], found["data"]
    params, _ = load_params(workdir)
    count = parameter_overview.count_parameters(params)
    encoder = parameter_overview.count_parameters(params.get("encoder", {}))
    yield f"workdir     {workdir}"
    step, steps = found["step"], ", ".join(map(str, found["steps"]))
    yield f"checkpoints {steps} ({step} is whole)"
    rows = read_metrics(os.path.join(run_of(workdir)[0], "metrics.jsonl"))
    if scores := _scores(found, rows):
        best = max(scores, key=lambda at: (scores[at], at))
        yield f"best        {best}, by {found['best']['name']}: {scores[best]:.4g}"
    method = config.get("method", {}).get("name")
    yield f"task        {config['task']}" + (f", method {method}" if method else "")
    if begun := config.get("init", {}).get("workdir"):
        yield f"begun with  the encoder of {begun}"
    elif "epochs" not in config:
        yield "begun with  imported weights"
    model = config["model"]
    yield (
        f"model       ViT-{model['size']}, patch {model['patch_size']},"
        f" {config['image_size']} px, {count:,} parameters, {encoder:,} of the encoder"
    )
    heads = sorted(params.get("heads", {}).items())
    said = "; ".join(_head(*head) for head in heads) or "none: the encoder alone"
    yield f"heads       {said}"
    mean, std = (tuple(config["data"][key]) for key in ("mean", "std"))
    yield f"images      standardised by mean {mean}, std {std}"
    if data:
        epochs = found["step"] * data["batch_size"] / data["examples"]
        yield (
            f"trained     {found['step']} steps of {data['batch_size']}, {epochs:.2f}"
            f" epochs of {data['examples']} images"
        )
        yield f"data        {data['name']}, split {data['split']}, seed {data['seed']}"
    for row in rows:
        values = {k: v for k, v in row.items() if k.startswith("eval/")}
        if values:
            shown = ", ".join(
                f"{k[5:]} {v:.4g}" for k, v in values.items() if v is not None
            )
            yield f"step {row['step']:>6} {shown}"
    if parameters:
        yield parameter_overview.get_parameter_overview(params, include_stats=False)


def _scores(found: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[int, float]:
    """{step: its value of keep_best} of the checkpoints up to the one `found`.

    That one knows the values of those before it; it was saved before its own
    evaluation, which is among the `rows` of the log.
    """
    best = found.get("best", {})
    values = {int(at): value for at, value in best.get("values", {}).items()}
    for row in rows:
        value = row.get(best.get("name"))
        if value is not None and row["step"] <= found["step"]:
            values[row["step"]] = value
    return {at: value for at, value in values.items() if at in found["steps"]}


def _head(name: str, head: Mapping[str, Any]) -> str:
    """Its name, and its outputs: the matrices that are not within something."""
    parts = [k for k, v in head.items() if isinstance(v, Mapping) and "kernel" in v]
    outputs = ", ".join(part for part in parts if part != "embedding")
    return f"{name}: {outputs}" if outputs else name


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.parser("ddae.inspect", __doc__)
    parser.add_argument("workdir")
    parser.add_argument("--parameters", action="store_true", help="list each of them")
    return commands.run(_inspect, parser, argv)


def _inspect(args: Any) -> None:
    for line in lines(args.workdir, args.parameters):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
