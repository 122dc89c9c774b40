"""The commands import and export, as timm, huggingface and official all have them."""

import argparse
import typing
from collections.abc import Callable
from typing import Any

from ddae import commands
from ddae.interop.convert import Hints, import_weights, write_workdir
from ddae.interop.names import Weights, flat
from ddae.models.gelu import Gelu


def main(
    argv: list[str] | None,
    prog: str,
    text: str | None,
    *,
    what: str,
    bring_in: Callable[[Any], None],
    where: str,
    export: Callable[[str, str, str | None], None],
) -> int:
    """The commands of ddae.interop.`prog`; returns the exit code.

    what: is imported, by `bring_in(args)`. where: exports go, by
    `export(workdir, path, head)`.
    """
    parser = commands.parser(f"ddae.interop.{prog}", text)
    choices = parser.add_subparsers(dest="command", required=True)
    _add_import(choices, what)
    _add_export(choices, where)

    def chosen(args: Any) -> None:
        if args.command == "import":
            return bring_in(args)
        return export(args.workdir, args.path, args.head)

    return commands.run(chosen, parser, argv)


def _add_import(choices: Any, what: str) -> None:
    """The command import: weights into a workdir of their own."""
    made = choices.add_parser("import", help=f"{what} into a workdir")
    made.add_argument("path", help=what)
    made.add_argument("--workdir", required=True, help="a new one")
    made.add_argument(
        "--image_size",
        type=commands.size,
        help="pixels it was trained at, HEIGHT,WIDTH, where arrays do not tell: oblong",
    )
    made.add_argument("--num_heads", type=int)
    made.add_argument("--mean", type=numbers, help="of the channels, 0.5,0.5,0.5")
    made.add_argument("--std", type=numbers)
    gelus = typing.get_args(Gelu)
    made.add_argument("--gelu", choices=gelus, help="how it is computed")


def _add_export(choices: Any, where: str) -> None:
    """The command export: a workdir's weights under other names."""
    made = choices.add_parser("export", help="a workdir's weights")
    made.add_argument("workdir")
    made.add_argument("path", help=where)
    made.add_argument("--head", help="which head of a sweep, lr_1")


def bring_in(
    weights: Weights,
    dialect: str,
    args: argparse.Namespace,
    class_names: tuple[str, ...] = (),
    assumed: bool = False,
    **known: Any,
) -> None:
    """Writes the workdir, after everything was checked. assumed: mean and std are
    those usual for the kind, as nothing beside the weights says them."""
    given = {
        key: getattr(args, key)
        for key in ("image_size", "num_heads", "mean", "std", "gelu")
        if getattr(args, key) is not None
    }
    params, config = import_weights(weights, dialect, Hints(**(known | given)))
    if len(class_names) != config.get("classifier", {}).get("num_classes"):
        class_names = ()  # of the classifier that these arrays are not
    write_workdir(args.workdir, params, config, class_names)
    model, arrays = config["model"], len(flat(params))
    method = config.get("method", {}).get("name", "")
    print(
        f"{args.workdir}: {arrays} arrays of {len(weights)}, ViT-{model['size']}, patch"
        f" {model['patch_size']}, {config['image_size']} px, {model['positions']}"
        f" positions, task {config['task']} {method}".rstrip()
    )
    data = config["data"]
    said = f"images standardised by mean {data['mean']}, std {data['std']}"
    unsure = assumed and args.mean is None
    print(said + (", which is assumed: see --mean and --std" if unsure else ""))


def numbers(text: str) -> tuple[float, ...]:
    """Of a flag, 0.5,0.5,0.5."""
    return tuple(float(part) for part in text.split(","))
