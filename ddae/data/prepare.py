"""Makes the prepared copy of a TFDS set that training reads.

python -m ddae.data.prepare imagenet2012 --manual_dir=DIR [--data_dir=DIR]

DIR of imagenet2012 holds ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, as
image-net.org gives them; cifar10, cifar100 and most others are downloaded. TFDS's own
builder does the work: downloads and finished copies are kept, what an interrupted run
left half written is removed, and at the end every record is counted. Exit codes: 0 the
copy is whole; 2 wrong arguments or data.
"""

import contextlib
import fcntl
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from ddae import commands
from ddae.data.tfds import TfdsRecords, errors_alone, is_prepared, load_builder
from ddae.settings import UserError
from ddae.storage import is_remote

MANUAL = {
    "imagenet2012": {
        "train": ("ILSVRC2012_img_train.tar", 1281167),
        "validation": ("ILSVRC2012_img_val.tar", 50000),
    }
}
"""Archives that a builder passes over in silence where they are missing, by split, and
how many images the whole of each has."""


def prepare(
    name: str, data_dir: str, manual_dir: str | None, file_format: str | None
) -> dict[str, int]:
    """Prepares the set and counts its records; {split: records}.

    file_format: None keeps that of a finished copy, and else is array_record. Raises
    `UserError` for an unknown set, missing or broken archives, a run that is at work on
    the same folder, a finished copy in the other format, or one whose counts do not
    hold.
    """
    import tensorflow_datasets as tfds

    builder = load_builder(name, data_dir)
    expected = MANUAL.get(builder.name, {})
    if is_prepared(builder):
        found = builder.info.file_format.value
        if file_format not in (None, found):
            raise UserError(
                f"{builder.data_dir} has a finished copy in {found}, not {file_format};"
                " leave out --file_format, or take another --data_dir"
            )
    else:
        builder = load_builder(name, data_dir, file_format or "array_record")
        for archive, _ in expected.values():
            path = os.path.join(manual_dir or "MANUAL_DIR", archive)
            if not os.path.isfile(path):
                raise UserError(f"no file {path}; give its folder with --manual_dir")
        with _alone(builder), errors_alone(), _broken_named(expected, manual_dir):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
            )
        builder = load_builder(name, data_dir)
    found = str(builder.info.file_format.value)
    print(f"{builder.info.full_name} in {builder.data_dir} ({found})")
    counts = {
        split: TfdsRecords(builder, split).count() for split in builder.info.splits
    }
    for split, count in counts.items():
        said = builder.info.splits[split].num_examples
        if count != said:
            raise UserError(f"{split} has {count} records, not {said}; remove the copy")
        whole = expected.get(split, ("", count))[1]
        note = "" if count == whole else f" of {whole} that the whole set has"
        print(f"  {split}: {count} records{note}")
    return counts


@contextlib.contextmanager
def _broken_named(
    expected: Mapping[str, tuple[str, int]], manual_dir: str | None
) -> Iterator[None]:
    """Raises `UserError` for an archive that is cut off, and a version that this TFDS
    no longer makes."""
    try:
        yield
    except tarfile.TarError as error:
        names = " or ".join(archive for archive, _ in expected.values())
        said = str(error).partition("\n")[0].rstrip(":")
        raise UserError(
            f"{names or 'an archive'} in {manual_dir} is cut off, or no tar file"
            f" ({said}); fetch it again"
        ) from error
    except ValueError as error:
        if "too old" not in str(error):
            raise
        raise UserError(str(error)) from error


@contextlib.contextmanager
def _alone(builder: Any) -> Iterator[None]:
    """Holds the set's folder, and clears it of what an interrupted run left there."""
    folder = os.path.dirname(builder.data_dir)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".prepare.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another run is preparing {folder}; wait for it"
            ) from error
        for entry in os.scandir(folder):
            if entry.name.startswith("incomplete.") and entry.is_dir():
                print(f"removing what an interrupted run left: {entry.path}")
                shutil.rmtree(entry.path)
        yield


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.parser("ddae.data.prepare", __doc__)
    parser.add_argument("name", help="the TFDS set: imagenet2012, cifar10, ...")
    parser.add_argument("--data_dir", default="", help="default: ~/tensorflow_datasets")
    parser.add_argument("--manual_dir", help="where archives that you fetched lie")
    parser.add_argument(
        "--file_format",
        choices=["array_record", "tfrecord"],
        help="default: array_record, or that of a finished copy",
    )
    return commands.run(_prepare, parser, argv)


def _prepare(args: Any) -> None:
    if is_remote(args.data_dir):
        raise UserError(
            f"--data_dir={args.data_dir} is no folder of this machine; prepare in one,"
            " then copy it there"
        )
    prepare(args.name, args.data_dir, args.manual_dir, args.file_format)


if __name__ == "__main__":
    sys.exit(main())
