"""How fast a training set's images come, by the way that its files are read.

python benchmarks/reading.py --dir FOLDER [--images=2000] [--output=FILE.jsonl]

The images of FOLDER, again and again, lie in 64 ArrayRecord and 64 TFRecord files, and
are read at random, cropped to 224 px and flipped, as a run has them: their records by
ArrayRecord's own way to read many, one after the other, and as it is. Where a row has a
delay each record comes so many seconds later, as from a network's disk. Medians of
rounds in turn; CPU-seconds mean more where others share the cores.
"""

import argparse
import collections
import itertools
import statistics
import tempfile
import time

import bucket
import measure

from ddae.data import DataSettings, images, tfds
from ddae.data.augment import Augment
from ddae.data.decode import tensorflow
from ddae.data.order import Order

FILES, BATCH, SIZE = 64, 100, 224
LIBRARYS, LOOP, NOW = "the library's way", "one by one", "as it is"


class Records:
    """`Records` of the examples in `files`, read in one of three ways."""

    num_classes, class_names, identity = 1, (), {"split": "train"}
    _image, _label = "image", None
    parse = tfds.TfdsRecords.parse

    def __init__(self, files, way, delay):
        self._files, self._way, self._delay = files, way, delay

    def __len__(self):
        return len(self._files)

    def read(self, index):
        """A record, late."""
        if self._delay:
            time.sleep(self._delay)
        return self._files.read(index)

    def read_many(self, indices):
        """Those of a chunk."""
        if self._way == LIBRARYS:
            return self._files._source.__getitems__(indices.tolist())
        if self._way == LOOP:
            return [self.read(index) for index in indices.tolist()]
        return self._files._read_all(self.read, indices)


def examples(kept):
    """TFDS's records of images."""
    train = tensorflow().train

    def example(image):
        feature = train.Feature(bytes_list=train.BytesList(value=[image]))
        features = train.Features(feature={"image": feature})
        return train.Example(features=features).SerializeToString()

    return [example(image) for image in kept]


def cost(records, seed, batches):
    """(seconds, CPU-seconds) of an image."""
    data = DataSettings(name="tfds/x", mean=(0.5,) * 3, std=(0.5,) * 3)
    source = images.ImageSource(records, (SIZE, SIZE, 3), data)
    order = Order(len(records), BATCH, seed)
    crops = Augment(crop="random_resized", resize="bilinear", flip=True)
    found = source.train_batches(order, 0, slice(None), crops)
    for _ in range(4):  # what was read ahead
        next(found)
    begun, cpu = time.monotonic(), time.process_time()
    for _ in range(batches):
        next(found)
    spent = time.monotonic() - begun, time.process_time() - cpu
    found.close()
    return tuple(seconds / (BATCH * batches) for seconds in spent)


def main():
    """Runs the benchmark and prints its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", required=True, help="with images, at any depth")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--delay", type=float, default=0.001)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", help="append lines of JSON here")
    args = parser.parse_args()
    found = itertools.cycle(bucket.images_of(args.dir))
    kept = examples(itertools.islice(found, args.images))
    costs, rows = collections.defaultdict(list), []
    with tempfile.TemporaryDirectory() as folder:
        files = {
            kind: source(
                bucket.write(kind, kept, [f"{folder}/{kind}{n}" for n in range(FILES)])
            )
            for kind, source in bucket.SOURCES.items()
        }
        delays = (0.0, args.delay)
        work = [*itertools.product(files, (LOOP, NOW), delays)]
        work.insert(0, ("ArrayRecord", LIBRARYS, 0.0))
        for seed in range(args.rounds):
            for kind, way, delay in work:
                records = Records(files[kind], way, delay)
                costs[kind, way, delay].append(cost(records, seed, args.images // 200))
    for (kind, way, delay), each in costs.items():
        seconds, cpu = (statistics.median(x) for x in zip(*each, strict=True))
        row = {"files": kind, "what": way, "delay": delay, "rounds": args.rounds}
        row |= {"images_per_second": 1.0 / seconds, "images_per_cpu_second": 1.0 / cpu}
        rows.append(row)
        measure.write({"benchmark": "reading", **row}, args.output)
    print(measure.table(rows))


if __name__ == "__main__":
    main()
