"""The official .pth files: python -m ddae.interop.official import FILE --workdir=DIR

Or export WORKDIR OUT.pth, which wants torch. MAE's (facebookresearch/mae: pretrained
with or without the decoder, fine-tuned) and BEiT's (microsoft/unilm: BEiT and BEiT-v2,
pretrained or fine-tuned); to import, DINO's and DINOv2's too, whose names are timm's.
Exit codes: 0; 2 wrong arguments or weights, nothing written.
"""

import sys
from typing import Any

from ddae.interop import command
from ddae.interop.beside import hints_of, said_of
from ddae.interop.convert import HALF, IMAGENET
from ddae.interop.files import new_file, read_beside, read_weights, write_torch
from ddae.interop.timm import named, names_of_beit, said_of_gelu


def export(workdir: str, path: str, head: str | None) -> None:
    """As those files are, {"model": state_dict}: a MAE or DDAE with the decoder of its
    last layer as MAE's, what has a relative bias or layer scale as BEiT's. Beside that
    what imports here want to know (`beside`)."""
    new_file(path, ".pth")
    weights, name, config = named(workdir, head, decoder=True)
    write_torch(path, weights, said_of(config, name == "mae", head))
    print(f"{path}: {len(weights)} arrays, {name}{said_of_gelu(config)}")


def bring_in(args: Any) -> None:
    """The command import."""
    weights = read_weights(args.path)
    known: dict[str, Any] = hints_of(read_beside(args.path))
    dialect, told = "timm_vit", bool(known)
    if names_of_beit(weights):
        # BEiT-v2's pretraining, which has blocks for cls alone, takes ImageNet's.
        mean, std = IMAGENET if any("cls_pt_layers" in k for k in weights) else HALF
        dialect = "timm_beit"
        known = {"mean": mean, "std": std} | known
    elif any(k.startswith("decoder_") for k in weights):
        dialect = "mae"
    command.bring_in(weights, dialect, args, assumed=not told, **known)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command.main(
        argv,
        "official",
        __doc__,
        what="a .pth file",
        bring_in=bring_in,
        where="OUT.pth",
        export=export,
    )


if __name__ == "__main__":
    sys.exit(main())
