"""Images of parquet files, as Hugging Face keeps sets, into tar files to train on.

python -m ddae.data.parquet OUT/train DIR/train-*.parquet
python -m ddae.data.parquet OUT/test DIR/test-*.parquet

A parquet file cannot be read at random: for one image a whole group of rows is. So each
NAME.parquet becomes OUT/train/NAME.tar, the images' bytes as they are, and beside each
a .cls with the number of its class, as WebDataset has them. Then
--config.data.name=tar --config.data.dir=OUT. What an earlier run has written is kept,
unless the parquet file is newer. It needs pyarrow (pip install pyarrow).
Exit codes: 0; 2 wrong arguments or data.
"""

import contextlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress

from ddae import commands
from ddae.settings import UserError

BEGINNINGS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"RIFF": ".webp",
}
"""The ending of a file by its first bytes."""

MOST_CLASSES = 10**6
"""A number as large as that is a record's, not a class's."""

ROWS = 64
"""Read at a time."""


def write_tars(
    out: str, paths: Sequence[str], image: str = "", label: str = ""
) -> dict[str, tuple[int, str]]:
    """Writes a tar file below `out` for each of `paths`; {tar file: (images, column of
    the labels)}, of those that were written.

    image, label: names of columns; empty takes the only one it can be, and no labels
    where there is none, "none" no labels. Raises `UserError` naming the file, and the
    row, for what is no parquet file, has no images or several columns that may be
    meant, or a row without image or class.
    """
    pyarrow()
    targets: dict[str, str] = {}
    for path in paths:
        if not os.path.isfile(path):
            raise UserError(f"no file {path}")
        name = os.path.splitext(os.path.basename(path))[0]
        target = os.path.join(out, f"{name}.tar")
        if target in targets:
            raise UserError(f"{targets[target]} and {path} would both be {target}")
        targets[target] = path
    to_do = {
        target: path for target, path in targets.items() if not _newer(target, path)
    }
    counts = {path: _opened(path).metadata.num_rows for path in to_do.values()}
    columns = {path: _columns(path, image, label) for path in to_do.values()}
    os.makedirs(out, exist_ok=True)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(out, total=sum(counts.values()))
        for target, path in to_do.items():
            with commands.whole(target) as file:
                for _ in _write(file, path, *columns[path]):
                    progress.advance(bar)
    return {target: (counts[path], columns[path][1]) for target, path in to_do.items()}


def _newer(target: str, path: str) -> bool:
    """Whether `target` is there, and was written after `path`."""
    there = os.path.isfile(target)
    return there and os.path.getmtime(target) >= os.path.getmtime(path)


def _write(file: Any, path: str, images: str, labels: str) -> Iterator[None]:
    """Writes the tar file of `path`, and yields after each image. images, labels: the
    columns; no labels where that is empty."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, (data, number) in enumerate(_rows(path, images, labels)):
            where = f"{path}, row {row}"
            if not data:
                raise UserError(
                    f"{where}: {images!r} holds no bytes; write the files again with"
                    " the images in them (datasets: push_to_hub)"
                )
            ending = next((BEGINNINGS[b] for b in BEGINNINGS if data.startswith(b)), "")
            if not ending or (ending == ".webp" and data[8:12] != b"WEBP"):
                raise UserError(f"{where}: {images!r} begins as no image we read")
            _add(tar, f"{row:08d}{ending}", data)
            if labels:
                if number is None or not 0 <= number < MOST_CLASSES:
                    raise UserError(
                        f"{where}: {labels!r} is {number}, no class; --label=none"
                        " leaves them all out"
                    )
                _add(tar, f"{row:08d}.cls", str(number).encode())
            yield


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _rows(
    path: str, images: str, labels: str
) -> Iterator[tuple[bytes | None, int | None]]:
    """(the image's bytes, the number of its class) of each row."""
    columns = [images, labels] if labels else [images]
    with _named(path):
        for batch in _opened(path).iter_batches(ROWS, columns=columns):
            for row in batch.to_pylist():
                data = row[images]
                yield (
                    data["bytes"] if isinstance(data, dict) else data,
                    row[labels] if labels else None,
                )


def _columns(path: str, image: str, label: str) -> tuple[str, str]:
    """The names of the columns of images and of labels; the second empty for none."""
    schema, types = _opened(path).schema_arrow, pyarrow().types
    binary = [
        field.name
        for field in schema
        if types.is_binary(_bytes_type(field.type))
        or types.is_large_binary(_bytes_type(field.type))
    ]
    numbers = [field.name for field in schema if types.is_integer(field.type)]
    classes = [name for name in numbers if name in _class_labels(schema.metadata)]
    if not binary:
        raise UserError(f"{path} has no column of images, but {schema.names}")
    images = _only(path, "image", image, binary)
    if label == "none":
        return images, ""
    return images, _only(path, "label", label, numbers if label else classes or numbers)


def _class_labels(metadata: Mapping[bytes, bytes] | None) -> list[str]:
    """The columns that `datasets` calls classes in its note; none without one, or where
    it is not as we know it."""
    try:
        said = json.loads((metadata or {})[b"huggingface"])
        return [
            name
            for name, kind in said["info"]["features"].items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
        ]
    except (AttributeError, LookupError, TypeError, ValueError):
        return []


def _bytes_type(kind: Any) -> Any:
    """The type of the "bytes" of an image as Hugging Face keeps them, or `kind`."""
    if pyarrow().types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return kind.field("bytes").type
    return kind


def _only(path: str, what: str, wanted: str, possible: list[str]) -> str:
    """`wanted`, or else the only one that is possible; empty for none."""
    if wanted and wanted not in possible:
        raise UserError(f"--{what}={wanted} is none of {possible}, which {path} has")
    if not wanted and len(possible) > 1:
        raise UserError(f"{path} has {possible}; say which with --{what}=...")
    return wanted or "".join(possible)


def _opened(path: str) -> Any:
    """The parquet file at `path`; `UserError` for another kind of file."""
    import pyarrow.parquet

    with _named(path):
        return pyarrow.parquet.ParquetFile(path)


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Raises `UserError` for what pyarrow cannot read."""
    try:
        yield
    except (pyarrow().ArrowException, OSError) as error:
        said = str(error).partition("\n")[0]
        raise UserError(f"{path} is not a whole parquet file: {said}") from error


def pyarrow() -> Any:
    """The library, which training does without."""
    try:
        import pyarrow
        import pyarrow.types
    except ImportError as error:
        raise UserError("parquet files need pyarrow: pip install pyarrow") from error
    return pyarrow


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.parser("ddae.data.parquet", __doc__)
    parser.add_argument("out", help="the folder of the split's tar files")
    parser.add_argument("files", nargs="+", help="the split's parquet files")
    parser.add_argument("--image", default="", help="the column of images")
    parser.add_argument("--label", default="", help="that of class numbers, or none")
    return commands.run(_convert, parser, argv)


def _convert(args: Any) -> None:
    written = write_tars(args.out, args.files, args.image, args.label)
    for path, (count, label) in written.items():
        classes = f"classes by {label!r}" if label else "of no class"
        print(f"{path}: {count} images, {classes}")
    if kept := len(args.files) - len(written):
        print(f"{kept} files in {args.out} are kept as they are")


if __name__ == "__main__":
    sys.exit(main())
