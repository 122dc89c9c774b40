"""AdamW by path rules: which parameters decay, and how each learns."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, Int

from ddae.schedules import warmup_cosine
from ddae.settings import UserError

Params = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters whose path matches `pattern` (a regex, searched)."""

    pattern: str
    decays: bool


# MAE: no weight decay on one-dimensional parameters.
GROUPS = (
    Group(pattern=r"/(bias|scale)$", decays=False),
    Group(pattern=r"/(kernel|cls_token|mask_token)$", decays=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW and its schedule.

    base_lr: learning rate per `lr_batch` images a batch; the peak is base_lr *
    batch_size / lr_batch. warmup_epochs: a share of config.epochs, so that it scales
    where total_steps overrides the length. clip_norm: of the whole gradient; 0 is off.
    accumulate: micro-batches an update.
    """

    base_lr: float = 1.5e-4
    lr_batch: int = 256
    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.95
    warmup_epochs: float = 40.0
    clip_norm: float = 0.0
    accumulate: int = 1


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`init` and `update` over trees; the learning rate is `schedule(step)`.

    peak: the largest learning rate, at the end of the warmup.
    """

    transform: optax.GradientTransformation
    schedule: Callable[[Int[Array, ""]], Float[Array, ""]]
    peak: float

    def init(self, params: Params) -> Any:
        return self.transform.init(params)

    def update(
        self, grads: Params, state: Any, params: Params, step: Int[Array, ""]
    ) -> tuple[Params, Any]:
        """(new params, new state) after one step at the learning rate of `step`."""
        direction, state = self.transform.update(grads, state, params)
        rate = self.schedule(step)
        params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
        return params, state


def make_optimizer(
    settings: OptimizerSettings, batch_size: int, warmup_steps: int, total_steps: int
) -> Optimizer:
    """AdamW with decoupled decay (lr * weight_decay), as in MAE's recipe."""
    peak = settings.base_lr * batch_size / settings.lr_batch
    # Clipping or not, the state has one shape: a resumed run may change its mind.
    clips = settings.clip_norm > 0
    transforms = [
        optax.clip_by_global_norm(settings.clip_norm) if clips else optax.identity(),
        optax.scale_by_adam(b1=settings.b1, b2=settings.b2),
        optax.add_decayed_weights(settings.weight_decay, mask=decay_mask),
    ]

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        return warmup_cosine(
            step, peak=peak, warmup_steps=warmup_steps, total_steps=total_steps
        )

    return Optimizer(optax.chain(*transforms), schedule, peak)


def decay_mask(params: Params) -> Params:
    """True where a parameter decays; `UserError` for one that no group covers."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: group_of(path).decays, params
    )


def group_of(path: Any) -> Group:
    """The first group of GROUPS that matches a parameter's path."""
    name = path_name(path)
    for group in GROUPS:
        if re.search(group.pattern, name):
            return group
    raise UserError(
        f"parameter {name} is in no optimiser group; add a pattern to GROUPS"
    )


def path_name(path: Any) -> str:
    """A tree path as "/encoder/block_00/norm/scale"."""
    return "".join(f"/{getattr(key, 'key', getattr(key, 'name', key))}" for key in path)


def group_table(params: Params) -> list[str]:
    """One line a group: its pattern, whether it decays, its parameter count."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    lines = []
    for group in GROUPS:
        sizes = [leaf.size for path, leaf in leaves if group_of(path) is group]
        decay = "weight decay" if group.decays else "no decay"
        lines.append(
            f"{decay:12s} {len(sizes):4d} arrays {sum(sizes):>12,d}  {group.pattern}"
        )
    return lines
