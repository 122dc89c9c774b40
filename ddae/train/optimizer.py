"""AdamW and LARS by path rules: which parameters learn, decay, and how fast."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax
from jaxtyping import Array, Float, Int

from ddae.schedules import warmup_cosine, warmup_poly, warmup_step
from ddae.settings import UserError

Params = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters whose path matches `pattern` (a regex, searched)."""

    pattern: str
    decays: bool = False
    frozen: bool = False


# MAE: no weight decay on one-dimensional parameters.
GROUPS = (
    Group(pattern=r"^/frozen/", frozen=True),
    Group(
        pattern=r"/(batch_norm/(mean|variance)|codebook/(codes|counts))$", frozen=True
    ),
    Group(pattern=r"/(bias|scale|scale_attention|scale_mlp|positions)$"),
    Group(pattern=r"/(kernel|cls_token|mask_token|query|table)$", decays=True),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimiser and its schedule.

    name: adamw, or lars (You et al. 2017; b1 is its momentum). base_lr: learning rate
    per `lr_batch` images a batch; the peak is base_lr * batch_size / lr_batch.
    schedule: cosine; poly, a straight line from the first step on (UPerNet's); or
    step, the peak and from `step_at` of the run on a tenth of it (SimMIM's). final_lr:
    where it ends, of parameters with no layer decay. warmup_epochs: a share
    of config.epochs, so that it scales where total_steps overrides the length.
    warmup_lr: where poly's warmup begins; cosine's begins at 0. clip_norm: of the whole
    gradient; 0 is off. accumulate: micro-batches an update.

    layer_decay: the rate of block i of L, from 1 on, is multiplied by
    layer_decay^(L + 1 - i), that of the embedding by one power more than the first
    block's (BEiT, MAE). no_decay, frozen: patterns of paths
    that have no weight decay, or do not learn at all. A path with a part lr_X, as in
    a probe's /heads/lr_0.3, learns at X times the rate.
    """

    name: Literal["adamw", "lars"] = "adamw"
    base_lr: float = 1.5e-4
    lr_batch: int = 256
    schedule: Literal["cosine", "poly", "step"] = "cosine"
    step_at: float = 0.875
    final_lr: float = 0.0
    warmup_lr: float = 0.0
    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.95
    warmup_epochs: float = 40.0
    clip_norm: float = 0.0
    accumulate: int = 1
    layer_decay: float = 1.0
    no_decay: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        if self.warmup_lr and self.schedule != "poly":
            raise ValueError("warmup_lr is of schedule=poly")
        for name in (
            "base_lr",
            "final_lr",
            "warmup_lr",
            "weight_decay",
            "warmup_epochs",
            "clip_norm",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0.0 <= self.step_at <= 1.0:
            raise ValueError(
                f"step_at={self.step_at} is not a share of the run, 0 to 1"
            )
        for name in ("b1", "b2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1)")
        if self.lr_batch <= 0:
            raise ValueError(f"lr_batch={self.lr_batch} must be positive")
        for pattern in (*self.no_decay, *self.frozen):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no pattern: {error}") from error
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay={self.layer_decay} is not in (0, 1]")


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one parameter learns: its rate times `scale`."""

    decays: bool
    frozen: bool
    scale: float


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """`init` and `update` over trees; the learning rate is `schedule(step)`.

    peak: the largest learning rate, at the end of the warmup.
    """

    settings: OptimizerSettings
    transform: optax.GradientTransformation
    schedule: Callable[[Int[Array, ""]], Float[Array, ""]]
    peak: float

    def split(self, params: Params) -> tuple[Params, Params]:
        """(what learns, what is frozen), each with None in the other's places."""
        rules = rules_of(params, self.settings)
        return (
            jax.tree.map(lambda x, rule: None if rule.frozen else x, params, rules),
            jax.tree.map(lambda x, rule: x if rule.frozen else None, params, rules),
        )

    def init(self, params: Params) -> Any:
        """params: whole; the state has no part of what is frozen."""
        trained, _ = self.split(params)
        return self.transform.init(trained)

    def update(
        self, grads: Params, state: Any, trained: Params, step: Int[Array, ""]
    ) -> tuple[Params, Any]:
        """(new parameters, new state) after one step at the learning rate of `step`.

        grads, trained: what `split` gave first.
        """
        direction, state = self.transform.update(grads, state, trained)
        rate = self.schedule(step)
        trained = jax.tree.map(
            lambda p, d, rule: p - rate * rule.scale * d,
            trained,
            direction,
            rules_of(trained, self.settings),
        )
        return trained, state


def make_optimizer(
    settings: OptimizerSettings, batch_size: int, warmup_steps: int, total_steps: int
) -> Optimizer:
    """AdamW with decoupled decay (lr * weight_decay), as in MAE's recipe, or LARS."""
    peak = settings.base_lr * batch_size / settings.lr_batch
    # Clipping or not, the state has one shape: a resumed run may change its mind.
    clips = settings.clip_norm > 0
    clip = optax.clip_by_global_norm(settings.clip_norm) if clips else optax.identity()

    def decay_mask(params: Params) -> Params:
        rules = rules_of(params, settings)
        return jax.tree.map(lambda rule: rule.decays, rules)

    decay = optax.add_decayed_weights(settings.weight_decay, mask=decay_mask)
    if settings.name == "adamw":
        transforms = [clip, optax.scale_by_adam(b1=settings.b1, b2=settings.b2), decay]
    else:
        # MAE's probes: the trust ratio of matrices alone, momentum after it.
        trust = optax.scale_by_trust_ratio(trust_coefficient=0.001)
        matrices = optax.masked(trust, lambda tree: jax.tree.map(_is_matrix, tree))
        transforms = [clip, decay, matrices, optax.trace(settings.b1)]

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        shape = {
            "peak": peak,
            "warmup_steps": warmup_steps,
            "total_steps": total_steps,
            "final": settings.final_lr,
        }
        if settings.schedule == "poly":
            return warmup_poly(step, start=settings.warmup_lr, **shape)
        if settings.schedule == "step":
            return warmup_step(step, at=settings.step_at, **shape)
        return warmup_cosine(step, **shape)

    return Optimizer(settings, optax.chain(*transforms), schedule, peak)


def _is_matrix(x: Array) -> bool:
    return x.ndim > 1


def merge(one: Params, other: Params) -> Params:
    """The tree that `Optimizer.split` has split."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, one, other, is_leaf=lambda x: x is None
    )


def rules_of(params: Params, settings: OptimizerSettings) -> Params:
    """The `Rule` of each parameter, by its path and the depth of the encoder alone.

    Raises `UserError` for a parameter that no group covers.
    """
    # Of all blocks: where some are frozen, None is in the place of their parameters.
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: x is None)
    blocks = [_block_of(path_name(path)) for path, _ in leaves]
    depth = max((block for block in blocks if block is not None), default=0)

    def rule(path: Any, _: Any) -> Rule:
        name = path_name(path)
        group = _group_of(name)
        power = depth + 1 - layer_of(name, depth)
        multiple = re.search(r"/lr_([^/]+)/", name)
        return Rule(
            decays=group.decays and not _matches(settings.no_decay, name),
            frozen=group.frozen or _matches(settings.frozen, name),
            scale=settings.layer_decay**power * float(multiple[1] if multiple else 1),
        )

    return jax.tree_util.tree_map_with_path(rule, params)


def check_patterns(params: Params, settings: OptimizerSettings) -> None:
    """Raises `UserError` for a pattern of `frozen` or `no_decay` that no path matches,
    and where nothing would learn."""
    paths = [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    for key in ("frozen", "no_decay"):
        for pattern in getattr(settings, key):
            if not any(re.search(pattern, path) for path in paths):
                raise UserError(
                    f"config.optimizer.{key}: {pattern!r} matches no parameter; their"
                    f" paths are like {paths[0]}"
                )
    if all(rule.frozen for rule in jax.tree.leaves(rules_of(params, settings))):
        raise UserError(
            f"config.optimizer.frozen={settings.frozen} leaves nothing to learn"
        )


def layer_of(name: str, depth: int) -> int:
    """Where a parameter stands for layer decay: the embedding at 0, block i of `depth`
    at i from 1 on, all else at depth + 1."""
    block = _block_of(name)
    if block is not None:
        return block
    embedding = (
        r"^/encoder/(patch_embedding/|cls_token$|mask_token$|positions$|norm_emb)"
    )
    return 0 if re.search(embedding, name) else depth + 1


def _block_of(name: str) -> int | None:
    found = re.match(r"/encoder/block_(\d+)/", name)
    return int(found[1]) + 1 if found else None


def _group_of(name: str) -> Group:
    for group in GROUPS:
        if re.search(group.pattern, name):
            return group
    raise UserError(
        f"parameter {name} is in no optimiser group; add a pattern to GROUPS"
    )


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def path_name(path: Any) -> str:
    """A tree path as "/encoder/block_00/norm/scale"."""
    return "".join(f"/{getattr(key, 'key', getattr(key, 'name', key))}" for key in path)


def rule_table(params: Params, settings: OptimizerSettings) -> list[str]:
    """One line a kind of rule: frozen or decaying, rates, arrays, parameters."""
    kinds: dict[str, list[tuple[float, int]]] = {}
    rules = jax.tree.leaves(rules_of(params, settings))
    for rule, x in zip(rules, jax.tree.leaves(params), strict=True):
        kind = "weight decay" if rule.decays else "no decay"
        kind = "frozen" if rule.frozen else kind
        kinds.setdefault(kind, []).append((rule.scale, x.size))
    lines = []
    for kind, found in sorted(kinds.items()):
        scales, sizes = zip(*found, strict=True)
        line = f"{kind:12s} {len(found):4d} arrays {sum(sizes):>12,d} parameters"
        if kind != "frozen" and min(scales) < max(scales):
            line += f", {min(scales):.3g} to {max(scales):.3g} times the rate"
        lines.append(line)
    return lines
