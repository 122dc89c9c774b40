"""What a pretrained encoder gives: as a library call, at any size, and as a command."""

import jax
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

import ddae
from ddae import features, tasks
from ddae.data import DataSettings
from ddae.interop import timm
from ddae.interop.convert import write_workdir
from ddae.models.vit import Features
from ddae.settings import UserError
from ddae.train import loop
from ddae.train.encoder import _mend
from ddae.train.loading import load_params


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run"))
    # In memory, of which evaluations cut nothing.
    loop.run(tiny_config(total_steps=1, data__eval_crop=0.5), folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Six grey images of other sizes, in folders, one of them no image."""
    random = np.random.default_rng(0)
    for number, size in enumerate([(8, 8), (16, 8), (9, 21), (30, 30), (8, 9)]):
        path = tmp_path / "pictures" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, size).astype(np.uint8)).save(path)
    return tmp_path / "pictures"


def test_encoder_reads_any_block_and_never_masks(workdir, digit_images):
    encoder = ddae.load_encoder(workdir)
    last, same = encoder(digit_images), encoder(digit_images, tap=2)
    np.testing.assert_array_equal(last.patches, same.patches)
    np.testing.assert_array_equal(last.patches, encoder(digit_images).patches)
    first = encoder(digit_images, tap=1)
    assert first.patches.shape == (16, 16, 32)
    assert np.abs(first.patches - last.patches).max() > 0.1
    with pytest.raises(UserError, match="tap 3 is not among blocks 1 to 2"):
        encoder(digit_images, tap=3)
    with pytest.raises(UserError, match=r"are \(16, 4, 8, 1\), the encoder takes"):
        encoder(digit_images[:, :4])


@pytest.mark.parametrize(
    "images, says",
    [
        (np.full((1, 8, 8, 1), 255.0), "are float64 from 255 to 255; give uint8"),
        (np.full((1, 8, 8, 1), -0.7), "not standardised: the encoder does that"),
        (np.full((1, 8, 8, 1), np.nan), "from nan to nan"),
        (np.ones((1, 8, 8, 1), int), "are int64 from 1 to 1"),
        (np.zeros((8, 8, 1)), r"images are \(8, 8, 1\), the encoder takes \('b', 8"),
        ([Image.new("L", (8, 8)), Image.new("L", (9, 8))], "of several sizes"),
        ([], "there is no image in the list"),
        (Image.new("L", (8, 8)), "one image is no batch"),
        (np.zeros((0, 8, 8, 1)), r"images are \(0, 8, .* give one image or more"),
        (np.zeros((2, 8, 9, 3)), r"another size is load_encoder\("),
        ([Image.new("RGB", (8, 8))], r"channels=1; PIL's .* after .convert\(\"L\"\)"),
    ],
)
def test_encoder_says_which_images_it_does_not_take(workdir, images, says):
    with pytest.raises(UserError, match=says):
        ddae.load_encoder(workdir)(images)


@pytest.mark.parametrize(
    "given, says",
    [
        ((8, 8, 3), "one image is no batch; give images[None]"),
        ((5, 3, 8, 8), "channels come last here; give images.transpose(0, 2, 3, 1)"),
        ((5, 8, 8), "another size is load_encoder(..., image_size=...)"),
    ],
)
def test_axes_that_are_wanting_or_in_another_order_are_named(given, says):
    assert _mend(given, (8, 8, 3)) == says


def test_grey_images_want_an_axis_of_channels():
    assert _mend((5, 8, 8), (8, 8, 1)) == "give images[..., None]"


def test_within_jit_images_of_whole_numbers_are_refused_too(workdir, digit_images):
    encoder = ddae.load_encoder(workdir)
    traced = jax.jit(lambda images: encoder(images).patches)
    bytes_ = (np.asarray(digit_images) * 255).round().astype(np.uint8)
    wanted = encoder(bytes_).patches
    np.testing.assert_allclose(traced(bytes_), wanted, atol=1e-5)
    with pytest.raises(UserError, match="images are int32; give uint8, or floats"):
        traced(bytes_.astype(np.int32))


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_pictures_are_to_be_converted(channels):
    assert '.convert("RGB")' in _mend((2, 8, 8, channels), (8, 8, 3))
    assert _mend((2, 8, 8, channels), (8, 8, 5)) == "give images of channels=5"


def test_encoder_takes_pictures(workdir, digit_images):
    bytes_ = (np.asarray(digit_images) * 255).round().astype(np.uint8)
    pictures = [Image.fromarray(image[..., 0]) for image in bytes_]
    encoder = ddae.load_encoder(workdir)
    np.testing.assert_array_equal(encoder(pictures).patches, encoder(bytes_).patches)


def test_features_of_half_precision_are_float32_too(workdir, digit_images, tmp_path):
    """As scikit-learn and np.save want them."""
    params, config = load_params(workdir)
    half = config | {"dtype": "bfloat16"}
    write_workdir(str(tmp_path / "half"), params, half)
    found = ddae.load_encoder(str(tmp_path / "half"))(digit_images, tap=1)
    wanted = ddae.load_encoder(workdir)(digit_images, tap=1)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=0.05)


def test_encoder_at_another_size(workdir, digit_images):
    same = ddae.load_encoder(workdir, image_size=8)
    np.testing.assert_array_equal(
        same(digit_images).patches, ddae.load_encoder(workdir)(digit_images).patches
    )
    wide = ddae.load_encoder(workdir, image_size=(6, 12))
    assert wide(np.zeros((2, 6, 12, 1), np.float32)).patches.shape == (2, 18, 32)


def test_positions_stay_those_of_the_first_pretraining(workdir, digit_images, tmp_path):
    """Of a run at 12 pixels that began with one at 8, asked at 8 again."""
    params, config = load_params(workdir)
    config |= {"image_size": 12, "model": config["model"] | {"position_grid": (4, 4)}}
    write_workdir(str(tmp_path / "later"), params, config)
    found = ddae.load_encoder(str(tmp_path / "later"), image_size=8)(digit_images)
    wanted = ddae.load_encoder(workdir)(digit_images)
    np.testing.assert_allclose(found.patches, wanted.patches, atol=1e-5)


def test_encoder_at_a_size_that_its_masks_do_not_fit(tmp_path, digit_images):
    """Cells of 2 x 2 patches do not divide a grid of 5 x 5; nothing is masked here."""
    mask = {"kind": "cell", "cell": 2, "ratio": 0.5}
    loop.run(tiny_config(total_steps=0, method__mask=mask), str(tmp_path))
    encoder = ddae.load_encoder(str(tmp_path), image_size=10)
    assert encoder(np.zeros((1, 10, 10, 1))).patches.shape == (1, 25, 32)


@pytest.mark.parametrize("pool, shape", [("mean", (5, 32)), ("none", (5, 16, 32))])
def test_command_writes_the_features_of_a_folder(
    workdir, pictures, tmp_path, capsys, pool, shape
):
    out = tmp_path / "features.npz"
    command = [workdir, str(pictures), str(out), "--pool", pool]
    assert features.main(command) == 0
    assert "of 5 images" in capsys.readouterr().out
    with np.load(out) as found:
        assert found["features"].shape == shape
        assert found["files"].tolist() == [
            "0/0.png",
            "0/2.png",
            "0/4.png",
            "1/1.png",
            "1/3.png",
        ]
        first = np.asarray(Image.open(pictures / "0" / "0.png"))[None, ..., None]
        params, config = load_params(workdir)
        expected = tasks.from_config(config).encode(params, first).patches
        expected = expected.mean(axis=1) if pool == "mean" else expected
        np.testing.assert_allclose(
            found["features"][0], expected[0], rtol=1e-4, atol=1e-5
        )


def test_as_many_files_as_cannot_be_decoded_are_left_out(workdir, pictures):
    for number in range(DataSettings.max_bad + 1):  # of the run, which names no other
        (pictures / f"{number}.png").write_bytes(b"no image")
    found, files = features.extract(workdir, str(pictures), on_error="skip")
    assert len(found) == len(files) == 5


def test_a_workdir_that_an_import_made_gives_features_of_a_folder(
    workdir, pictures, tmp_path
):
    """Its config says nothing of a crop."""
    out, back = str(tmp_path / "out.safetensors"), str(tmp_path / "back")
    assert timm.main(["export", workdir, out]) == 0
    assert timm.main(["import", out, f"--workdir={back}"]) == 0
    assert "eval_crop" not in load_params(back)[1]["data"]
    found, files = features.extract(back, str(pictures))
    expected, same = features.extract(workdir, str(pictures))
    assert files == same
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({0: "/nowhere"}, "no checkpoint in /nowhere"),
        ({1: "/nowhere"}, "no folder /nowhere"),
        ({2: "out.txt"}, "out.txt does not end in .npz"),
    ],
)
def test_wrong_arguments_are_one_line(
    workdir, pictures, tmp_path, capsys, changes, says
):
    command = [workdir, str(pictures), str(tmp_path / "out.npz")]
    for place, value in changes.items():
        command[place] = value
    assert features.main(command) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.strip().splitlines()) == 1


def test_a_block_that_is_not_there_is_refused_before_images_are_read(
    workdir, tmp_path, capsys
):
    (tmp_path / "0.png").write_bytes(b"no image")
    command = [workdir, str(tmp_path), str(tmp_path / "out.npz"), "--tap=3"]
    assert features.main(command) == 2
    assert "tap 3 is not among blocks 1 to 2" in capsys.readouterr().err


def test_features_are_pooled_as_they_are_told():
    found = Features(prefix=np.ones((2, 1, 3)), patches=np.full((2, 4, 3), 5.0))
    assert (found.pooled("cls") == np.ones((2, 3))).all()
    assert (found.pooled("mean") == np.full((2, 3), 5.0)).all()
    with pytest.raises(UserError, match="pool='max' is neither 'mean' nor 'cls'"):
        found.pooled("max")


@pytest.mark.parametrize(
    "given, says",
    [
        ({"image_size": 8.0}, "image_size=8.0 is no size; give SIDE or"),
        ({"image_size": "8"}, "image_size='8' is no size"),
        ({"image_size": (8, 8, 8)}, "is no size"),
        ({"tap": 1.5}, "tap=1.5 is no block's number"),
        ({"tap": None}, "tap=None is no block's number"),
        ({"images": [Image.new("P", (8, 8))]}, "mode P has numbers of colours"),
    ],
)
def test_arguments_of_another_kind_are_one_line(workdir, given, says):
    with pytest.raises(UserError) as error:
        encoder = ddae.load_encoder(workdir, given.get("image_size"))
        images = given.get("images", [Image.new("L", (8, 8))])
        encoder(images, tap=given.get("tap", 0))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_size_may_be_of_numpy(workdir):
    encoder = ddae.load_encoder(workdir, np.int64(10))
    assert encoder(np.zeros((1, 10, 10, 1))).patches.shape == (1, 25, 32)
