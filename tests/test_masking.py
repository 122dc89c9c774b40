import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddae import masking
from ddae.masking import (
    Masking,
    _rectangle,
    block_mask,
    make_mask,
    part_of,
    random_mask,
)

GRIDS = [(14, 14), (4, 4), (7, 14), (8, 8)]


@pytest.mark.parametrize("kind", ["random", "block", "cell"])
@pytest.mark.parametrize("grid", [(14, 14), (4, 4), (8, 16)])
def test_counts_are_exact_and_ids_agree_with_the_booleans(kind, grid, keys):
    masking = Masking(kind=kind, ratio=0.6)
    mask = masking.draw(keys, grid)
    n, count = grid[0] * grid[1], masking.num_masked(grid)
    is_masked = np.asarray(mask.is_masked)
    assert (is_masked.sum(axis=1) == count).all()
    for row in range(len(keys)):
        assert list(mask.ids_masked[row]) == list(np.flatnonzero(is_masked[row]))
        assert list(mask.ids_visible[row]) == list(np.flatnonzero(~is_masked[row]))
    assert mask.ids_visible.shape[1] + mask.ids_masked.shape[1] == n


def test_counts_of_the_recipes():
    assert Masking(kind="random", ratio=0.75).num_masked((14, 14)) == 147  # MAE
    assert Masking(kind="cell", ratio=0.6).num_masked((14, 14)) == 120  # SimMIM


@pytest.mark.parametrize("kind", ["random", "block", "cell"])
def test_masks_are_per_sample_and_do_not_depend_on_the_batch(kind, keys):
    masking = Masking(kind=kind, ratio=0.6)
    whole = np.asarray(masking.draw(keys, (8, 8)).is_masked)
    halves = [
        np.asarray(masking.draw(k, (8, 8)).is_masked) for k in (keys[:4], keys[4:])
    ]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert len({row.tobytes() for row in whole}) > 1


def test_random_mask_hides_every_patch_equally_often():
    keys = jax.random.split(jax.random.key(1), 4000)
    share = np.asarray(random_mask(keys, (4, 4), 12).is_masked).mean(axis=0)
    # Binomial deviation is 0.007; six of them.
    np.testing.assert_allclose(share, 0.75, atol=0.042)


def test_cells_are_hidden_whole(keys):
    mask = Masking(kind="cell", ratio=0.6, cell=2).draw(keys, (8, 8))
    cells = np.asarray(mask.is_masked).reshape(-1, 4, 2, 4, 2)
    assert (cells.all(axis=(2, 4)) == cells.any(axis=(2, 4))).all()


def test_block_mask_is_blocky_with_the_recipe_of_beit():
    keys = jax.random.split(jax.random.key(0), 500)
    draw = jax.jit(lambda keys: block_mask(keys, (14, 14), 75, min_area=16))
    hidden = np.asarray(draw(keys).is_masked).reshape(-1, 14, 14)
    assert (hidden.sum(axis=(1, 2)) == 75).all()
    # Share of hidden patches whose right neighbour is hidden too: 75 / 196 = .38 at
    # random, far more in blocks.
    neighbours = (hidden[:, :, :-1] & hidden[:, :, 1:]).sum() / hidden[:, :, :-1].sum()
    assert neighbours > 0.7


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.01, 0.999])
def test_nothing_visible_or_nothing_masked_is_an_error(ratio):
    if ratio == 0.01:
        # 16 - int(15.84) = 1 patch: small ratios still hide one.
        assert Masking(ratio=ratio).num_masked((4, 4)) == 1
        return
    with pytest.raises(ValueError, match="visible|masked|between 0 and 1"):
        Masking(ratio=ratio).num_masked((4, 4))


def test_blocks_want_a_grid_that_they_fit_in():
    masking = Masking(kind="block", ratio=0.5)
    with pytest.raises(ValueError, match="3 x 3 patches or more, not 2 x 16"):
        masking.num_masked((2, 16))
    assert masking.num_masked((3, 16)) == 24


@pytest.mark.parametrize("count, says", [(0, "would be masked"), (4, "stay visible")])
def test_make_mask_refuses_degenerate_counts(count, says):
    with pytest.raises(ValueError, match=says):
        make_mask(jnp.full((1, 4), count == 4), count)


def test_a_cell_that_does_not_divide_the_grid_is_an_error(keys):
    with pytest.raises(ValueError, match="does not divide the grid"):
        Masking(kind="cell", cell=3, ratio=0.5).draw(keys, (8, 8))


def test_a_block_has_a_patch_at_the_least():
    with pytest.raises(ValueError, match="min_area=0 is not 1 or more"):
        Masking(kind="block", min_area=0)


def test_a_share_of_the_patches_is_so_many():
    counts = range(1, 195)
    assert all(Masking(ratio=k / 196).num_masked((14, 14)) == k for k in counts)
    assert Masking(ratio=0.9).num_masked((10, 10)) == 90


def test_blocks_are_as_small_as_they_may_be(keys):
    for min_area, expected in ((40, 40), (None, 16)):
        masking = Masking(kind="block", ratio=0.4, min_area=min_area)
        np.testing.assert_array_equal(
            masking.draw(keys, (14, 14)).is_masked,
            block_mask(keys, (14, 14), 79, min_area=expected).is_masked,
        )


def test_the_smallest_block_grows_with_the_grid(keys):
    found = Masking(kind="block", ratio=0.4).draw(keys, (28, 28)).is_masked
    expected = block_mask(keys, (28, 28), 314, min_area=64).is_masked
    np.testing.assert_array_equal(found, expected)


def test_blocks_are_beits_unless_told_otherwise(keys):
    """Ten attempts, sides as 3 to 10."""
    found, expected = (
        block_mask(keys, (14, 14), 75, min_area=16, **given).is_masked
        for given in ({}, {"attempts": 10})
    )
    np.testing.assert_array_equal(found, expected)
    assert masking.ASPECTS == (0.3, 1 / 0.3)


def test_a_part_is_drawn_evenly_and_for_each_example_anew():
    hidden = jnp.arange(16) % 4 != 1
    mask = make_mask(jnp.broadcast_to(hidden, (2000, 16)), 12)
    keys = jax.random.split(jax.random.key(1), 2000)
    seen = ~np.asarray(part_of(mask, keys, 4).is_masked)
    assert (seen.sum(axis=1) == 4).all() and not seen[:, ~np.asarray(hidden)].any()
    # Binomial deviation is .0105; five of them.
    np.testing.assert_allclose(seen[:, hidden].mean(axis=0), 1 / 3, atol=0.053)


@pytest.mark.parametrize("grid", [(5, 12), (12, 5)])
def test_rectangles_reach_all_four_sides_and_span_none(grid, monkeypatch):
    monkeypatch.setattr(masking, "ASPECTS", (0.2, 5.0))
    limit = jnp.int32(20)
    keys = jax.random.split(jax.random.key(2), 4000)
    draw = jax.vmap(lambda key: _rectangle(key, grid, 2, limit))
    blocks = np.asarray(jax.jit(draw)(keys))
    blocks = blocks[blocks.any(axis=(1, 2))]
    rows, columns = blocks.any(axis=2), blocks.any(axis=1)
    sides = rows.sum(axis=1).max(), columns.sum(axis=1).max()
    assert min(sides) == 4 and max(sides) < 12
    for side in (rows, columns):
        first, last = side[:, 0].mean(), side[:, -1].mean()
        assert first > 0.1 and abs(first - last) < 0.05
    # Where it lies down says nothing of where it lies across.
    top, left = rows.argmax(axis=1), columns.argmax(axis=1)
    small = (rows.sum(axis=1) < 4) & (columns.sum(axis=1) < 4)
    assert abs(np.corrcoef(top[small], left[small])[0, 1]) < 0.1


def test_every_round_draws_rectangles_of_its_own():
    """Of one attempt a round: the same one again would add nothing, and single patches
    fill the mask up."""
    keys = jax.random.split(jax.random.key(0), 500)
    draw = lambda keys: block_mask(keys, (14, 14), 75, min_area=16, attempts=1)  # noqa: E731
    hidden = np.asarray(jax.jit(draw)(keys).is_masked).reshape(-1, 14, 14)
    neighbours = (hidden[:, :, :-1] & hidden[:, :, 1:]).sum() / hidden[:, :, :-1].sum()
    assert neighbours > 0.74
