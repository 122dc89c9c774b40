"""Which patches are hidden: a fixed count for every sample, a mask of its own for each.

Every mask function takes one random key a sample, so that the mask of an example does
not depend on how a batch is cut into devices or micro-batches.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ddae.patches import Grid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The hidden and the visible patches of a batch; v + m = n, both at least 1.

    The ids are ascending. Shapes are static, so patches are gathered by id and never
    by boolean indexing.
    """

    ids_visible: Int[Array, "b v"]
    ids_masked: Int[Array, "b m"]
    is_masked: Bool[Array, "b n"]


ASPECTS = (0.3, 1 / 0.3)
"""Height over width of the rectangles of a block mask (BEiT)."""


def make_mask(is_masked: Bool[Array, "b n"], num_masked: int) -> Mask:
    """The `Mask` of boolean rows that each have exactly `num_masked` True entries.

    Raises `ValueError` where nothing would be visible or nothing masked.
    """
    n = is_masked.shape[-1]
    check_num_masked(num_masked, n)
    order = jnp.argsort(is_masked, axis=-1, stable=True)
    num_visible = n - num_masked
    return Mask(order[:, :num_visible], order[:, num_visible:], is_masked)


def part_of(mask: Mask, keys: Key[Array, " b"], count: int) -> Mask:
    """The mask under which `count` of the hidden patches, at random, are all that is
    visible. `count` is at most m."""
    n = mask.is_masked.shape[-1]

    def hidden(key: Key[Array, ""], is_masked: Bool[Array, " n"]) -> Bool[Array, " n"]:
        order = jnp.where(is_masked, jax.random.uniform(key, (n,)), 2.0)
        return jnp.argsort(jnp.argsort(order)) >= count

    return make_mask(jax.vmap(hidden)(keys, mask.is_masked), n - count)


def check_num_masked(num_masked: int, num_patches: int) -> None:
    """Raises `ValueError` unless at least one patch is masked and one visible."""
    if num_masked <= 0:
        raise ValueError(
            f"no patch of {num_patches} would be masked; raise the mask ratio"
        )
    if num_masked >= num_patches:
        raise ValueError(
            f"no patch of {num_patches} would stay visible; lower the mask ratio"
        )


def check_cell(cell: int, grid: Grid) -> None:
    """Raises `ValueError` unless cells of `cell` x `cell` patches tile the grid."""
    if cell < 1 or grid[0] % cell or grid[1] % cell:
        raise ValueError(f"a cell of {cell} patches does not divide the grid {grid}")


def random_mask(keys: Key[Array, " b"], grid: Grid, num_masked: int) -> Mask:
    """Patches hidden uniformly at random (MAE)."""
    n = grid[0] * grid[1]
    return make_mask(
        jax.vmap(lambda key: _hide_randomly(key, n, num_masked))(keys), num_masked
    )


def _hide_randomly(key: Key[Array, ""], n: int, num_masked: int) -> Bool[Array, " n"]:
    ranks = jnp.argsort(jax.random.permutation(key, n))
    return ranks < num_masked


def cell_mask(keys: Key[Array, " b"], grid: Grid, num_masked: int, cell: int) -> Mask:
    """Square cells of `cell` x `cell` patches hidden at random (SimMIM's 32-px cells).

    `num_masked` counts patches and is a whole number of cells; the cell divides the
    grid. Raises `ValueError` otherwise.
    """
    h, w = grid
    check_cell(cell, grid)
    if num_masked % cell**2:
        raise ValueError(f"{num_masked} patches are not whole cells of {cell**2}")

    def one(key: Key[Array, ""]) -> Bool[Array, " n"]:
        cells = _hide_randomly(key, (h // cell) * (w // cell), num_masked // cell**2)
        cells = cells.reshape(h // cell, w // cell)
        return cells.repeat(cell, axis=0).repeat(cell, axis=1).reshape(-1)

    return make_mask(jax.vmap(one)(keys), num_masked)


def block_mask(
    keys: Key[Array, " b"],
    grid: Grid,
    num_masked: int,
    *,
    min_area: int,
    attempts: int = 10,
) -> Mask:
    """Rectangles hidden until exactly `num_masked` patches are (BEiT-v2's block mask).

    A round draws `attempts` rectangles, area U(min_area, left) and log-uniform aspect
    (height over width) in ASPECTS, and takes the first that fits the grid and adds
    between 1 and `left` new patches, where `left` are still to be hidden. When a round
    takes none, the count is filled up with single patches at random, where BEiT's
    first code leaves it, on average half a patch short of 75.
    """
    h, w = grid

    def rectangle(key: Key[Array, ""], left: Int[Array, ""]) -> Bool[Array, "h w"]:
        return _rectangle(key, grid, min_area, left)

    def round_(carry):
        hidden, key, _ = carry
        key, key_round = jax.random.split(key)
        left = num_masked - hidden.sum()
        blocks = jax.vmap(rectangle, (0, None))(
            jax.random.split(key_round, attempts), left
        )
        added = (blocks & ~hidden).sum(axis=(1, 2))
        taken = (added > 0) & (added <= left)
        block = blocks[jnp.argmax(taken)] & taken.any()
        return hidden | block, key, taken.any()

    def one(key: Key[Array, ""]) -> Bool[Array, " n"]:
        key_rounds, key_fill = jax.random.split(key)
        hidden, _, _ = jax.lax.while_loop(
            lambda carry: carry[2] & (carry[0].sum() < num_masked),
            round_,
            (jnp.zeros((h, w), bool), key_rounds, jnp.array(True)),
        )
        hidden = hidden.reshape(-1)
        priority = jnp.where(hidden, -1.0, jax.random.uniform(key_fill, (h * w,)))
        return jnp.argsort(jnp.argsort(priority)) < num_masked

    return make_mask(jax.vmap(one)(keys), num_masked)


def _rectangle(
    key: Key[Array, ""],
    grid: Grid,
    min_area: int,
    max_area: Int[Array, ""],
) -> Bool[Array, "h w"]:
    """A random rectangle in the grid; all False where the one drawn does not fit."""
    h, w = grid
    key_area, key_aspect, key_top, key_left = jax.random.split(key, 4)
    area = min_area + jax.random.uniform(key_area) * (max_area - min_area)
    low, high = map(math.log, ASPECTS)
    aspect = jnp.exp(jax.random.uniform(key_aspect, minval=low, maxval=high))
    height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    top = jax.random.randint(key_top, (), 0, jnp.maximum(h - height, 0) + 1)
    left = jax.random.randint(key_left, (), 0, jnp.maximum(w - width, 0) + 1)
    rows, columns = jnp.arange(h)[:, None], jnp.arange(w)[None, :]
    inside = (rows >= top) & (rows < top + height)
    inside &= (columns >= left) & (columns < left + width)
    return inside & (height < h) & (width < w)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """How masks are drawn, independent of the grid.

    kind: "random" (MAE), "block" (BEiT) or "cell" (SimMIM).
    ratio: share of hidden patches, in (0, 1); the count is n - int(n * (1 - ratio)) as
      in MAE, and for cells the ratio rounded up to whole cells as in SimMIM.
    min_area: smallest rectangle of a block mask, in patches; None scales BEiT's 16 of
      196 to the grid. Far above the number of hidden patches it leaves few blocks.
    cell: side of a cell in patches.
    """

    kind: Literal["random", "block", "cell"] = "random"
    ratio: float = 0.75
    min_area: int | None = None
    cell: int = 2

    def __post_init__(self):
        if self.kind not in ("random", "block", "cell"):
            raise ValueError(f"mask kind {self.kind!r} is not random, block or cell")
        if self.min_area is not None and self.min_area < 1:
            raise ValueError(f"min_area={self.min_area} is not 1 or more")

    def num_masked(self, grid: Grid) -> int:
        """Hidden patches a sample on this grid. Raises `ValueError` for none or all, or
        a grid that is too thin for blocks."""
        n = grid[0] * grid[1]
        if not 0.0 < self.ratio < 1.0:
            raise ValueError(
                f"mask ratio {self.ratio} is not between 0 and 1, exclusive"
            )
        if self.kind == "cell":
            check_cell(self.cell, grid)
            num_cells = n // self.cell**2
            count = math.ceil(num_cells * self.ratio) * self.cell**2
        else:
            # Not one more where 1 - k / n comes out a little below what it is.
            count = n - int(n * (1 - self.ratio) + 1e-6)
        if self.kind == "block" and min(grid) < 3:
            raise ValueError(
                f"block masks want a grid of 3 x 3 patches or more, not {grid[0]} x"
                f" {grid[1]}: use random ones"
            )
        check_num_masked(count, n)
        return count

    def draw(self, keys: Key[Array, " b"], grid: Grid) -> Mask:
        """One mask for each key."""
        count = self.num_masked(grid)
        if self.kind == "block":
            scaled = max(1, round(grid[0] * grid[1] * 16 / 196))
            min_area = scaled if self.min_area is None else self.min_area
            return block_mask(keys, grid, count, min_area=min_area)
        if self.kind == "cell":
            return cell_mask(keys, grid, count, self.cell)
        return random_mask(keys, grid, count)


def gather_patches(
    patches: Float[Array, "b n *k"] | Int[Array, "b n *k"], ids: Int[Array, "b t"]
) -> Float[Array, "b t *k"] | Int[Array, "b t *k"]:
    """The patches at `ids`, sample by sample.

    ids: in [0, n), ascending, each once, as a `Mask` has them. XLA is told so: the
    gradient then writes where a GPU would otherwise add one by one.
    """

    def of_one(rows: Array, index: Array) -> Array:
        return rows.at[index].get(
            mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True
        )

    return jax.vmap(of_one)(patches, ids)
