"""Images in tar files: the same as in a folder, and what is broken is named."""

import io
import itertools
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

from ddae import data
from ddae.data import files, tar
from ddae.data.augment import Augment
from ddae.data.order import Order
from ddae.settings import UserError

ALL = slice(None)
CROPS = Augment(crop="random_resized", flip=True)
# TensorFlow's own Python, not ours, warns while it traces a function.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def jpeg(seed, height=30, width=40):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path, members):
    """`members`: (name, bytes) in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def numbered(*labels, first=0):
    """A WebDataset shard's members: KEY.cls, KEY.json and KEY.jpg for each label."""
    found = []
    for i, label in enumerate(labels, start=first):
        found.append((f"./{i:06d}.cls", str(label).encode()))
        found.append((f"./{i:06d}.json", b"{}"))
        found.append((f"./{i:06d}.jpg", jpeg(i)))
    return found


def splits(root, **changes):
    config = tiny_config(data__name="tar", data__dir=str(root), **changes)
    return data.from_config(config, (16, 16, 3))


def labels_of(source):
    batches = source.batches(np.arange(len(source)), 4)
    return np.concatenate([batch["label"] for batch in batches]).tolist()


@pytest.fixture
def shards(tmp_path):
    """Seven images of classes 0 to 11 in three training files, and one held-out."""
    root = tmp_path / "shards"
    write_tar(root / "train-000000.tar", numbered(3, 11, 0))
    write_tar(root / "train-000001.tar", numbered(7, 7, first=3))
    write_tar(root / "train-000002.tar", numbered(2, 1, first=5))
    write_tar(root / "test-000000.tar", numbered(10, first=9))
    write_tar(root / "training.tar", numbered(500))  # another split
    return root


def test_shards_have_the_numbers_that_lie_beside_the_images(shards):
    both = splits(shards)
    assert both.train.num_classes == both.held_out.num_classes == 12
    assert labels_of(both.train) == [3, 11, 0, 7, 7, 2, 1]
    assert labels_of(both.held_out) == [10]
    assert both.train.records.read(4) == jpeg(4)
    assert both.train.records.key(4).endswith("train-000001.tar, ./000004.jpg")


def test_capitals_and_leading_zeros_are_a_class_number_too(tmp_path):
    for split in ("train", "test"):
        members = [("a.JPG", jpeg(0)), ("a.CLS", b" 03\n")]
        write_tar(tmp_path / f"{split}.tar", members)
    assert labels_of(splits(tmp_path).train) == [3]


def test_files_of_a_shard_that_may_be_images_are_counted(tmp_path, capsys):
    names = [
        "a/0.jpg",
        "a/1.jfif",
        "a/2.JPE",
        "b/3.tif",
        "b/4.TIF",
        "b/5.arw",
        "a.json",
    ]
    for split in ("train", "test"):
        members = [(name, jpeg(i)) for i, name in enumerate(names)]
        write_tar(tmp_path / f"{split}.tar", members)
    for _ in range(2):  # of a kept index, too
        assert labels_of(splits(tmp_path).train) == [0, 0, 0]
        said = "/train.tar 2 end in .tif, 1 end in .arw, which is not read (.jpg,"
        assert said in capsys.readouterr().err
    for split in ("train", "test"):
        write_tar(tmp_path / f"{split}.tar", members[3:])
    with pytest.raises(
        UserError, match="no images in .*; 2 end in .tif, 1 end in .arw"
    ):
        splits(tmp_path)


def test_hidden_files_of_a_shard_are_no_images(shards):
    """What a Mac lays beside a file, and a viewer into a folder."""
    hidden = [("./._000000.jpg", b"no image"), ("./.thumbs/000009.jpg", jpeg(9))]
    hidden += [("./..000000.jpg", b"no image")]
    write_tar(shards / "test-000000.tar", hidden + numbered(3, first=20))
    assert labels_of(splits(shards).held_out) == [3]


@pytest.mark.parametrize("prefix", ["", "./", "train/"])
def test_a_folder_in_a_tar_file_is_the_folder_pixel_for_pixel(tmp_path, prefix):
    names = ["cat/0.jpg", "cat/1.v2.jpg", "dog/0.jpg", "dog/2.png", "elk/5.JPEG"]
    contents = [jpeg(seed, 20 + seed, 50 - seed) for seed in range(len(names))]
    for split in ("train", "test"):
        for name, content in zip(names, contents, strict=True):
            path = tmp_path / "folder" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        members = [(prefix + n, c) for n, c in zip(names, contents, strict=True)]
        write_tar(tmp_path / "tars" / f"{split}.tar", [("notes.txt", b"-"), *members])
    own = splits(tmp_path / "tars").train
    config = tiny_config(data__name="folder", data__dir=str(tmp_path / "folder"))
    theirs = data.from_config(config, (16, 16, 3)).train
    assert own.class_names == ("cat", "dog", "elk") == theirs.class_names
    order = Order(5, 4, seed=3)
    for step in (0, 7):  # a run may begin anywhere
        pairs = zip(
            itertools.islice(own.train_batches(order, step, ALL, CROPS), 3),
            itertools.islice(theirs.train_batches(order, step, ALL, CROPS), 3),
            strict=True,
        )
        for mine, other in pairs:
            np.testing.assert_array_equal(mine["image"], other["image"])
            np.testing.assert_array_equal(mine["label"], other["label"])


@pytest.mark.parametrize("prefix", ["", "./", "{split}/"])
def test_images_without_a_class_are_enough_to_pretrain(tmp_path, prefix):
    for split in ("train", "test"):
        here = prefix.format(split=split)
        members = [(f"{here}0.jpg", jpeg(0)), (f"{here}1.jpg", jpeg(1))]
        write_tar(tmp_path / split / "a.tar", members)
        write_tar(tmp_path / split / "b.tar", [("2.jpg", jpeg(2))] * (prefix == ""))
    both = splits(tmp_path)
    assert (both.train.num_classes, both.train.class_names) == (1, ())
    assert labels_of(both.held_out) == [0] * len(both.train)


@pytest.mark.parametrize("made", [("-C", "train", "."), ("train",), ("../set/train",)])
def test_folders_within_those_of_the_classes_are_no_classes(tmp_path, made):
    """As in the folder that the tar file was made of."""
    for split in ("train", "test"):
        for number, name in enumerate(["a/adult/0", "a/young/1", "b/adult/2", "b/3"]):
            path = tmp_path / "set" / split / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))
        words = ["tar", "-cf", tmp_path / f"{split}.tar", "--sort=name"]
        words += [word.replace("train", split) for word in made]
        subprocess.run(words, cwd=tmp_path / "set", check=True, stderr=-3)
    both = splits(tmp_path)
    assert both.train.class_names == ("a", "b")
    assert labels_of(both.train) == labels_of(both.held_out) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "shards, says",
    [
        (
            ["x/a", "x/b"],
            "a-0.tar, x/a/0.jpg and .*a-0.tar, x/b/1.jpg: is 'x' their cl",
        ),
        (["a-0/cat", "a-0/dog", "b"], "a-0/cat/0.jpg and .*/dog/1.jpg: is 'a-0' their"),
        (["x/a", "y/b"], ("x", "y")),
        (["n1/images", "n2/images"], ("n1", "n2")),
        (["x", "x/y", "x/z"], ("x",)),
    ],
)
def test_a_folder_that_holds_all_others_may_be_a_class_or_hold_them(
    tmp_path, shards, says
):
    members = [(f"{where}/{i}.jpg", jpeg(i)) for i, where in enumerate(shards)]
    for split in ("train", "test"):
        write_tar(tmp_path / split / "a-0.tar", members[:2])
        write_tar(tmp_path / split / "b.tar", members[2:])
    if isinstance(says, tuple):
        assert splits(tmp_path).train.class_names == says
        return
    with pytest.raises(UserError, match=says):
        splits(tmp_path)


def test_a_file_that_goes_on_after_its_end_is_refused(shards, tmp_path):
    """What cat a.tar b.tar makes; zeros without end are what tar -b makes."""
    path, content = (
        shards / "train-000001.tar",
        (shards / "test-000000.tar").read_bytes(),
    )
    path.write_bytes(path.read_bytes() + bytes(2**20 + 5120))
    assert len(splits(shards).train) == 7
    path.write_bytes(path.read_bytes() + content)
    with pytest.raises(UserError, match="train-000001.tar holds several tar files one"):
        splits(shards)


def test_files_are_walked_once_and_again_when_they_change(shards, monkeypatch):
    walked = []
    walk = tar._walk
    monkeypatch.setattr(
        tar, "_walk", lambda path, size: walked.append(path) or walk(path, size)
    )
    first = splits(shards).train
    assert len(walked) == 4
    assert splits(shards).train.identity == first.identity
    assert len(walked) == 4
    write_tar(shards / "train-000001.tar", numbered(8, 8, first=3))  # as many bytes
    assert labels_of(splits(shards).train) == [3, 11, 0, 8, 8, 2, 1]
    assert splits(shards).train.identity != first.identity
    for kept in (shards.parent / "cache" / "ddae").iterdir():
        whole = kept.read_bytes()
        at = whole.index(b"PK\1\2") + 10  # how it is compressed, as the zip says
        kept.write_bytes(whole[:at] + b"\77\0" + whole[at + 2 :])
    assert splits(shards).train.identity == splits(shards).train.identity
    for kept in (shards.parent / "cache" / "ddae").iterdir():
        kept.write_bytes(b"damaged")
    assert splits(shards).train.identity == splits(shards).train.identity


@pytest.mark.parametrize(
    "names, says",
    [
        (
            ["train.tar", "train-000.tar"],
            r"/train-000.tar and .*/train.tar are both tra",
        ),
        (
            ["train-0.tar", "train/0.tar"],
            r"/train-0.tar and .*/train/0.tar are both tr",
        ),
        (["train-0.tar", "train-1.tar.gz"], "train-1.tar.gz is compressed, .* move it"),
        (
            ["train/0.tar", "train/1.tar.part"],
            "1.tar.part is a tar file that is not fi",
        ),
        (["train-0.tar", "train-0.tar.md5", "train-0.tar.idx"], None),
        (
            ["train-00-of-03.tar", "train-02-of-03.tar"],
            r"/train-\*-of-03.tar: 1 of 3 files are missing: number 1$",
        ),
        (["train/a_1_of_9.tar"], "a_.*9 files are missing: number 0, 2, 3, 4, 5, ...$"),
        (["train-1-of-2.tar", "train-2-of-2.tar"], None),
        (["train/a.tar", "train/._a.tar", "train/b-3.tar"], None),
        (["train-9.tar", "train-10.tar"], None),
        (["train.tar", "train/a/0.jpg"], None),  # unpacked beside it
    ],
)
def test_no_shard_is_read_twice_or_missing_unnoticed(tmp_path, names, says):
    for name in [*names, "test.tar"]:
        write_tar(tmp_path / name, [("a/0.jpg", jpeg(0))])
    if says is None:
        shards = sum(name.endswith(".tar") and "._" not in name for name in names)
        assert len(splits(tmp_path).train) == shards
        return
    with pytest.raises(UserError, match=says):
        splits(tmp_path)


def test_a_moved_set_is_the_same_set_and_one_of_other_images_is_not(shards, tmp_path):
    before = splits(shards).train.identity
    shutil.move(shards, tmp_path / "elsewhere")
    assert splits(tmp_path / "elsewhere").train.identity == before
    (number, note, (name, _)) = numbered(7)
    members = [number, note, (name, jpeg(0, 31, 41))]
    found = []
    for content in (numbered(7), members):
        write_tar(tmp_path / "elsewhere" / "train-000001.tar", content)
        found.append(splits(tmp_path / "elsewhere").train.identity)
    assert found[0] != found[1]


def test_a_broken_image_in_a_shard_is_named_or_left_out(shards):
    write_tar(shards / "train-000001.tar", [("4.cls", b"1"), ("4.jpg", b"no image")])
    with pytest.raises(UserError, match="train-000001.tar, 4.jpg: no image that can"):
        labels_of(splits(shards).train)
    train = splits(shards, data__on_error="skip").train
    assert labels_of(train) == [3, 11, 0, 2, 1] and len(train.bad) == 1


def cut(path, content):
    path.write_bytes(content[:-12_000])  # the end, and some of the last image


def garbled(path, content):
    path.write_bytes(content[:1024] + b"x" * 512 + content[1536:])


def endless(path, content):
    """The second file has -512 bytes: behind them lies its own header."""
    with tarfile.open(path) as file:
        at = file.getmembers()[1].offset
    header = bytearray(content[at : at + 512])
    header[124:136] = (256**12 - 512).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(content[:at] + header + content[at + 512 :])


def no_number(path, _):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("cat/a.jpg")
        info.pax_headers = {"GNU.sparse.size": "x"}
        file.addfile(info)


def removed(path, _):
    path.unlink()


def compressed(path, content):
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    (path.parent / "train-000000.tar.gz").write_bytes(content)


@pytest.mark.parametrize(
    "harm, says",
    [
        (cut, "train-000001.tar is not a whole tar file .*; copy it again"),
        (garbled, "train-000001.tar is not a whole tar file .*; copy it again"),
        (no_number, "train-000001.tar is not a whole tar file .*; copy it again"),
        (endless, "train-000001.tar is not a whole tar file .*; copy it again"),
        (compressed, "train-000000.tar.gz is compressed, .*; unpack it to a .tar"),
        (lambda path, _: shutil.rmtree(path.parent), "no tar files .*train.tar, "),
        (lambda path, _: write_tar(path, []), None),
        (lambda path, _: write_tar(path, [("a.cls", b"x")]), "holds no class number"),
        (
            lambda path, _: write_tar(path, [("a.cls", b"999999999")]),
            "a.cls holds no class number, but b'999999999'",
        ),
        (
            lambda path, _: write_tar(path, [("a.jpg", b""), *numbered(1)]),
            "a.jpg has no .cls beside it, as others have",
        ),
        (
            lambda path, _: write_tar(path, [("./000000.mask.png", b""), *numbered(1)]),
            "000000 has several images beside one .cls",
        ),
        (
            lambda path, _: write_tar(path, [("cat/a.jpg", b"")]),
            "some tar files have .cls files, and some have none",
        ),
        (
            lambda path, _: write_tar(path.parent / "test-000000.tar", numbered(12)),
            "test has a class '12', which the training set has not .*'0' to '11'",
        ),
    ],
)
def test_what_is_wrong_with_a_shard_is_said(shards, harm, says):
    path = shards / "train-000001.tar"
    harm(path, path.read_bytes())
    if says is None:  # an empty shard is no error
        assert labels_of(splits(shards).train) == [3, 11, 0, 2, 1]
        return
    with pytest.raises(UserError, match=says):
        splits(shards)


def test_a_set_of_no_images_is_named(tmp_path):
    for split in ("train", "test"):
        write_tar(tmp_path / f"{split}.tar", [("a.txt", b"text")])
    with pytest.raises(UserError, match="no images in .*train.tar"):
        splits(tmp_path)
    config = tiny_config(data__name="tar")
    with pytest.raises(UserError, match="config.data.dir is empty"):
        data.from_config(config, (16, 16, 3))


def test_a_shard_that_shrinks_under_a_run_is_a_bad_record(shards):
    train = splits(shards, data__on_error="skip").train
    path = shards / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:700])
    assert labels_of(train) == [3, 11, 0, 7, 7]
    assert "the file has become shorter" in next(iter(train.bad.values()))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_no_link_leads_out_of_a_shard(shards, tmp_path, kind):
    (tmp_path / "secret.jpg").write_bytes(jpeg(0))
    with tarfile.open(shards / "train-000003.tar", "w") as file:
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = kind, str(tmp_path / "secret.jpg")
        file.addfile(info)
    with pytest.raises(UserError, match="link.jpg is a link; make the tar file of wh"):
        splits(shards)


@pytest.mark.parametrize("kind", ["gnu", "posix"])
def test_an_image_whose_zeros_tar_left_out_is_refused(shards, tmp_path, kind):
    """Its bytes do not lie in one piece: those of other files would be read for some
    of them."""
    (tmp_path / "images").mkdir()
    with open(tmp_path / "images" / "black.bmp", "wb") as file:
        file.write(b"BM")
        file.truncate(200_000)
    words = ["tar", "-S", f"--format={kind}", "-cf", shards / "train-000003.tar", "-C"]
    subprocess.run([*words, tmp_path / "images", "black.bmp"], check=True)
    with pytest.raises(UserError, match="black.bmp lies there without its zeros; make"):
        splits(shards)


def test_a_file_that_tar_has_met_before_is_read_where_it_was(tmp_path):
    folder = tmp_path / "images"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    (folder / "a" / "0.jpg").write_bytes(jpeg(0))
    (folder / "b" / "1.jpg").hardlink_to(folder / "a" / "0.jpg")
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as file:
            file.add(folder / "a", "a")
            file.add(folder / "b", "b")
    records = splits(tmp_path).train.records
    assert records.read(0) == records.read(1) == jpeg(0)
    assert records.class_names == ("a", "b")


def test_paths_that_are_no_text_are_paths(shards, tmp_path):
    folder = tmp_path / os.fsdecode(b"s\xfc")
    shutil.move(shards, folder)
    (folder / os.fsdecode(b"n\xf6.txt")).touch()
    train = splits(folder).train
    assert labels_of(train) == [3, 11, 0, 7, 7, 2, 1]
    assert "s\\udcfc/train-000000.tar, ./000000.jpg" in train.key(0)


def test_class_numbers_that_are_links_are_followed_or_refused(tmp_path):
    """Equal files are often one with many names."""
    for number, name in enumerate(("0.cls", "0.jpg", "1.cls", "1.jpg")):
        (tmp_path / name).write_bytes(jpeg(number) if number % 2 else b"7")
    for kind, file in ((os.link, "train.tar"), (os.symlink, "test.tar")):
        (tmp_path / "1.cls").unlink()
        kind(tmp_path / "0.cls", tmp_path / "1.cls")
        with tarfile.open(tmp_path / file, "w") as tar:
            for name in ("0.cls", "0.jpg", "1.cls", "1.jpg"):
                tar.add(tmp_path / name, name)
    with pytest.raises(UserError, match="test.tar: 1.cls is a link; make the tar file"):
        splits(tmp_path)
    shutil.copy(tmp_path / "train.tar", tmp_path / "test.tar")
    assert labels_of(splits(tmp_path).train) == [7, 7]


def test_an_index_that_a_full_disk_cuts_off_is_not_left_there(shards, monkeypatch):
    def full(path, **_):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert len(splits(shards).train) == 7
    assert list((shards.parent / "cache" / "ddae").iterdir()) == []


def test_an_index_that_cannot_be_kept_is_made_again(shards, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert len(splits(shards).train) == 7
    assert files.is_remote("gs://bucket/a.tar") and not files.is_remote("/a.tar")
