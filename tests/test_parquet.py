"""Images of parquet files, as Hugging Face writes them, into tar files."""

import io
import json
import os
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_config
from PIL import Image

from ddae import data
from ddae.data import parquet

# TensorFlow's own Python, not ours, warns while it traces a function.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(seed, kind="JPEG"):
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(images):
    return pa.array([{"bytes": each, "path": "x.jpg"} for each in images], IMAGE)


def write(path, group=3, classes=(), **columns):
    """A parquet file in groups of rows, with the note that `datasets` leaves in it."""
    features = {"words": [{"_type": "Value"}]}  # a list, as it writes some
    features |= {name: {"_type": "ClassLabel"} for name in classes}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(note), path, row_group_size=group)
    return str(path)


def labels_of(source):
    batches = source.batches(np.arange(len(source)), 4)
    return np.concatenate([batch["label"] for batch in batches]).tolist()


def run(*arguments):
    return parquet.main([str(argument) for argument in arguments])


def test_a_set_of_parquet_files_trains_as_tar_files(tmp_path, capsys):
    kinds = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "JPEG", "JPEG", "PNG"]
    images = [encoded(i, kind) for i, kind in enumerate(kinds)]
    labels = [3, 1, 0, 2, 1, 4, 0, 3]
    train = [
        write(
            tmp_path / f"hub/train-0000{i}-of-00002.parquet",
            image=rows(images[part]),
            label=pa.array(labels[part]),
        )
        for i, part in enumerate((slice(0, 5), slice(5, 7)))
    ]
    test = write(
        tmp_path / "hub/test.parquet", image=rows(images[7:]), label=pa.array([3])
    )
    assert run(tmp_path / "tars/train", *train) == 0
    assert run(tmp_path / "tars/test", test) == 0
    assert "train-00000-of-00002.tar: 5 images" in capsys.readouterr().out
    config = tiny_config(data__name="tar", data__dir=str(tmp_path / "tars"))
    splits = data.from_config(config, (16, 16, 3))
    assert labels_of(splits.train) == labels[:7]
    assert labels_of(splits.held_out) == labels[7:]
    records = splits.train.records
    assert [records.read(i) for i in range(7)] == images[:7]
    # The shards say how many they are: one that is missing is missed.
    (tmp_path / "tars/train/train-00001-of-00002.tar").unlink()
    with pytest.raises(data.UserError, match="1 of 2 files are missing: number 1"):
        data.from_config(config, (16, 16, 3))


def test_what_is_written_is_kept_until_its_source_is_newer(tmp_path, capsys):
    one, two = (
        write(tmp_path / f"{name}.parquet", image=rows([encoded(i)]))
        for i, name in enumerate("ab")
    )
    assert run(tmp_path / "out", one) == 0
    before = (tmp_path / "out/a.tar").stat().st_ino
    assert run(tmp_path / "out", one, two) == 0
    assert "1 files in" in capsys.readouterr().out
    assert (tmp_path / "out/a.tar").stat().st_ino == before
    os.utime(one, (2**32, 2**32))
    assert run(tmp_path / "out", one, two) == 0
    assert (tmp_path / "out/a.tar").stat().st_ino != before


def test_a_file_that_breaks_off_leaves_no_tar_file(tmp_path, capsys):
    path = write(tmp_path / "a.parquet", image=rows([encoded(0), b""]))
    assert run(tmp_path / "out", path) == 2
    assert "a.parquet, row 1: 'image' holds no bytes" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_columns_are_found_or_asked_for(tmp_path, capsys):
    """A class is what `datasets` calls one, or else the only whole number."""
    images, numbers = rows([encoded(0), encoded(1)]), pa.array([1, 0])
    columns = {"img": images, "fine": numbers, "coarse": pa.array([5, 6])}
    two = write(tmp_path / "two.parquet", **columns)
    assert run(tmp_path / "out", two) == 2
    said = capsys.readouterr().err
    assert "has ['fine', 'coarse']; say which with --label=..." in said
    assert run(tmp_path / "out", two, "--label=coarse") == 0
    assert members(tmp_path / "out/two.tar")["00000001.cls"] == b"6"
    known = write(tmp_path / "known.parquet", classes=["fine"], **columns)
    assert run(tmp_path / "out", known) == 0
    assert members(tmp_path / "out/known.tar")["00000001.cls"] == b"0"
    bare = write(tmp_path / "bare.parquet", **columns)
    assert run(tmp_path / "out", bare, "--label=none") == 0
    assert list(members(tmp_path / "out/bare.tar")) == ["00000000.jpg", "00000001.jpg"]


@pytest.mark.parametrize(
    "note", ["", "null", "[]", '{"info": null}', '{"info": {"features": null}}', "7"]
)
def test_a_note_that_is_none_of_datasets_is_passed_over(tmp_path, note):
    table = pa.table({"image": rows([encoded(0)]), "label": pa.array([3])})
    table = table.replace_schema_metadata({"huggingface": note})
    pq.write_table(table, tmp_path / "a.parquet")
    assert run(tmp_path / "out", tmp_path / "a.parquet") == 0
    assert members(tmp_path / "out/a.tar")["00000000.cls"] == b"3"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_may_lie_alone_or_in_a_struct_and_be_large(tmp_path, kind):
    struct = pa.array([{"bytes": encoded(0)}], pa.struct([("bytes", kind)]))
    for name, image in (("alone", pa.array([encoded(0)], kind)), ("struct", struct)):
        path = write(tmp_path / f"{name}.parquet", image=image)
        assert run(tmp_path / "out", path) == 0
        found = members(tmp_path / f"out/{name}.tar")
        assert found == {"00000000.jpg": encoded(0)}


def test_it_is_said_where_the_classes_come_from(tmp_path, capsys):
    """Those in words are passed over, and a number may be no class."""
    words = pa.array(["cat"])
    for name, columns in (("number", {"n": pa.array([3])}), ("word", {"n": words})):
        path = write(tmp_path / f"{name}.parquet", image=rows([encoded(0)]), **columns)
        assert run(tmp_path / "out", path) == 0
    said = capsys.readouterr().out
    assert "number.tar: 1 images, classes by 'n'\n" in said
    assert "word.tar: 1 images, of no class\n" in said


def members(path):
    with tarfile.open(path) as tar:
        return {name: tar.extractfile(name).read() for name in tar.getnames()}


@pytest.mark.parametrize(
    "columns, flags, said",
    [
        ({"text": ["a"]}, (), "has no column of images, but ['text']"),
        ({"image": [b"BM"]}, ("--image=jpg",), "--image=jpg is none of ['image']"),
        ({"image": [b"RIFX"]}, (), "row 0: 'image' begins as no image we read"),
        ({"image": [b"RIFF\0\0\0\0WAVE"]}, (), "row 0: 'image' begins as no image we"),
        (
            {"image": [b"BM"], "id": [2**40]},
            (),
            "row 0: 'id' is 1099511627776, no class",
        ),
        ({"image": [None], "n": [0]}, (), "row 0: 'image' holds no bytes"),
        ({"a": [b"GIF8"], "b": [b"BM"]}, (), "has ['a', 'b']; say which with --image"),
        ({"image": [b"BM"], "n": [-1]}, (), "row 0: 'n' is -1, no class"),
        ({"image": [b"BM"] * 2, "n": [1, None]}, (), "row 1: 'n' is None, no class"),
        ({"image": [b"BM"], "n": ["x"]}, ("--label=n",), "--label=n is none of []"),
    ],
)
def test_what_cannot_be_read_is_named(columns, flags, said, tmp_path, capsys):
    kinds = {"image": pa.binary()} if columns.get("image") == [None] else {}
    arrays = {name: pa.array(v, kinds.get(name)) for name, v in columns.items()}
    path = write(tmp_path / "x.parquet", **arrays)
    assert run(tmp_path / "out", path, *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert said in error and path in error


def test_files_that_are_none_or_broken_are_named(tmp_path, capsys):
    path = tmp_path / "x.parquet"
    assert run(tmp_path / "out", path) == 2
    assert f"no file {path}" in capsys.readouterr().err
    write(path, image=rows([encoded(0)] * 9))
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert run(tmp_path / "out", path) == 2
    assert f"{path} is not a whole parquet file: " in capsys.readouterr().err
    other = tmp_path / "other/x.parquet"
    write(other, image=rows([encoded(0)]))
    assert run(tmp_path / "out", path, other) == 2
    assert "would both be" in capsys.readouterr().err


def test_without_pyarrow_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(tmp_path / "out", tmp_path / "x.parquet") == 2
    assert "pip install pyarrow" in capsys.readouterr().err
