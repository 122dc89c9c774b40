"""What it costs to read images from gs://, one by one or copied first.

python benchmarks/bucket.py --dir FOLDER [--delay=0.05] [--output=FILE.jsonl]

The images of FOLDER, in ArrayRecord and TFRecord files of sixteen each, are read once
in random order, as a run reads them, from a fake of Google's storage that takes --delay
seconds to answer (tests/fake_gcs.py). It is on this machine: requests and connections
are what they would be elsewhere, seconds are not.
"""

import argparse
import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import measure
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))
import fake_gcs

from ddae.commands import before_tensorflow
from ddae.data import images, tfds
from ddae.data.copies import copied
from ddae.data.decode import tensorflow

IN_A_FILE = 16
SOURCES = {"ArrayRecord": tfds.ArrayRecords, "TFRecord": tfds.TFRecords}


def images_of(folder):
    """The bytes of all files in a folder."""
    found = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file())
    return [path.read_bytes() for path in found]


def write(kind, records, paths):
    """Files at `paths` that have as many of `records` each; TFDS's word for them."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.utils.shard_utils import FileInstruction

    found = []
    for path, part in zip(
        paths, np.array_split(np.arange(len(records)), len(paths)), strict=True
    ):
        if kind == "TFRecord":
            writer = tensorflow().io.TFRecordWriter(path)
        else:
            writer = ArrayRecordWriter(path, "group_size:1")
        with contextlib.closing(writer):
            for index in part:
                writer.write(records[index])
        found.append(FileInstruction(path, 0, len(part), len(part)))
    return found


def put(bucket, folder, kind, records):
    """The same in the bucket, `IN_A_FILE` in each."""
    names = [f"{kind}/{i:05d}" for i in range(-(-len(records) // IN_A_FILE))]
    paths = [os.path.join(folder, name) for name in names]
    os.makedirs(os.path.join(folder, kind))
    files = write(kind, records, paths)
    for name, path in zip(names, paths, strict=True):
        bucket.put(name, pathlib.Path(path).read_bytes())
    return [
        dataclasses.replace(file, filename=f"gs://bucket/{name}")
        for file, name in zip(files, names, strict=True)
    ]


def read(records):
    """Reads all of `records` as `ImageSource` does."""
    order = np.random.default_rng(0).permutation(len(records))
    chunks = [order[i : i + images.CHUNK] for i in range(0, len(order), images.CHUNK)]
    with ThreadPoolExecutor(images.READERS) as pool:
        assert sum(map(len, pool.map(records.read_many, chunks))) == len(order)


def main():
    """Runs the benchmark and prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, help="with images, at any depth")
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--output", help="append lines of JSON here")
    args = parser.parse_args()
    kept, rows = images_of(args.dir), []
    before_tensorflow()
    with (
        tempfile.TemporaryDirectory() as folder,
        fake_gcs.running(folder) as (bucket, environment),
    ):
        os.environ |= environment | {"XDG_CACHE_HOME": folder}
        files = {kind: put(bucket, folder, kind, kept) for kind in SOURCES}
        bucket.delay = args.delay

        def cost(what, work):
            """A row of what `work` took, an image; gives what it gives."""
            before, begun = bucket.traffic.copy(), time.monotonic()
            made = work()
            seconds = (time.monotonic() - begun) / len(kept)
            names = ("requests", "connections")
            counts = {n: (bucket.traffic - before)[n] / len(kept) for n in names}
            row = {"what": what, "images": len(kept), "delay": args.delay}
            rows.append(row | {"seconds": seconds} | counts)
            measure.write({"benchmark": "bucket", **rows[-1]}, args.output)
            return made

        for kind, source in SOURCES.items():
            records = cost(f"{kind}, opened", functools.partial(source, files[kind]))
            cost(f"{kind}, read", functools.partial(read, records))
        own = files["ArrayRecord"]
        paths, here = [file.filename for file in own], os.path.join(folder, "here")
        copies = cost("ArrayRecord, copied", lambda: copied(paths, here))
        own = [
            dataclasses.replace(file, filename=copy)
            for file, copy in zip(own, copies, strict=True)
        ]
        cost("copies, read", lambda: read(tfds.ArrayRecords(own)))
    print(measure.table(rows))


if __name__ == "__main__":
    main()
