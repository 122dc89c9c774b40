"""Parameters of one run, put to use in another."""

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ddae import tasks
from ddae.models.positions import resize_positions, resize_relative_bias, sincos
from ddae.models.vit import VIT_SPECS, Encoder
from ddae.networks import FrozenNetwork
from ddae.patches import Grid
from ddae.settings import UserError
from ddae.tasks.backbone import encoder_from_config
from ddae.train.loading import load_params
from ddae.train.optimizer import path_name
from ddae.train.stored import shapes_of

Resize = Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray | None]
"""(path, stored array, wanted shape) -> the array as it is wanted; None: as it is."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Which leaves came (`matched`, `resized`), kept their own value (`missing`), or
    were left behind (`unexpected`): paths."""

    matched: list[str]
    resized: list[str]
    missing: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        counts = (
            f"{len(found)} {name}" + (f" ({found[0]}, ...)" if found else "")
            for name, found in vars(self).items()
        )
        return "loaded weights: " + ", ".join(counts)


def load_into(
    wanted: Any,
    stored: Any,
    *,
    may_miss: Sequence[str] = (),
    may_leave: Sequence[str] = (),
    resize: Resize | None = None,
) -> tuple[Any, Loaded]:
    """`wanted` with the values of `stored` at the same paths, and what became of each.

    may_miss, may_leave: patterns of paths that `stored` may lack, or have beyond
    `wanted`. Raises `UserError` for any other, and for a shape that `resize` does not
    fit: a weight is never left out in silence.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(wanted)
    own = {path_name(path): leaf for path, leaf in leaves}
    given = {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(stored)
    }
    missing = [path for path in own if path not in given]
    unexpected = [path for path in given if path not in own]
    _refuse(missing, may_miss, "are not among the weights, among them")
    _refuse(unexpected, may_leave, "of the weights have no place, among them")
    shared = [path for path in own if path in given]  # in order: errors name the first
    taken, resized = dict(own), []
    for path in shared:
        shape, value = tuple(own[path].shape), given[path]
        fitted = resize(path, value, shape) if resize else None
        if fitted is not None:
            value = fitted
            resized.append(path)
        elif value.shape != shape:
            raise UserError(f"weight {path} has shape {value.shape}, wanted is {shape}")
        taken[path] = value.astype(own[path].dtype)
    matched = [path for path in shared if path not in resized]
    tree = jax.tree_util.tree_unflatten(structure, list(taken.values()))
    return tree, Loaded(matched, sorted(resized), missing, unexpected)


def _refuse(paths: list[str], allowed: Sequence[str], what: str) -> None:
    wrong = [p for p in paths if not any(re.search(rule, p) for rule in allowed)]
    if wrong:
        raise UserError(f"{len(wrong)} parameters {what} {wrong[0]}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitSettings:
    """Where a run begins that is no resume: the encoder of another run's workdir.

    may_miss, may_leave: patterns of paths of this encoder that the workdir need not
    have, and of those it has that find no place here.
    """

    workdir: str = ""
    may_miss: tuple[str, ...] = ()
    may_leave: tuple[str, ...] = ("/mask_token$",)


LEARNT = (("positions", "sincos", "learned"), ("relative_bias", "shared", "block"))
"""(key of config.model, the earlier run's value, this run's) that may differ: this run
learns what was fixed there (MAE's fine-tuning), or learns for each block what all of
them shared (BEiT's)."""

ENCODERS = ("encoder", "frozen")
"""Parts of a run's parameters that are no heads."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Encoder parameters for a run's beginning, None where they begin fresh, the `rest`
    of what their run has, heads above all, its config, and where they are from."""

    encoder: Any
    rest: dict[str, Any]
    config: Mapping[str, Any]
    loaded: Loaded
    workdir: str
    other_standardisation: str

    def __str__(self) -> str:
        lines = [f"encoder of {self.workdir}, {self.loaded}"]
        if self.other_standardisation:
            lines.append(f"warning: {self.other_standardisation}")
        return "\n".join(lines)


def load_pretrained(
    init: InitSettings, config: Mapping[str, Any], params: Any
) -> Pretrained | None:
    """What config.init names, at the shapes of `params`; None where it names nothing.

    Learned positions and relative biases are resized to another grid; positions that
    learn from here on begin with the fixed ones. Raises `UserError` where there is no
    checkpoint, where a weight does not fit, and for fixed positions of another grid
    than config.model.position_grid says.
    """
    if not init.workdir:
        return None
    stored, theirs = load_params(init.workdir)
    old, new = encoder_from_config(theirs), encoder_from_config(config)
    extras = _differing_extras(init.workdir, config, old, new)
    weights = _as_here(stored["encoder"], old, new)
    try:
        tree, loaded = load_into(
            {"encoder": params["encoder"]},
            {"encoder": weights},
            may_miss=init.may_miss,
            may_leave=init.may_leave,
            resize=_resizer(old.grid, new.grid),
        )
    except UserError as error:
        flags = _flags("config.model", extras)
        flags += _without_norm(init, params["encoder"], weights)
        said = f"{init.workdir}: {error}"
        raise UserError(f"{said}; set {flags.strip()}" if flags else said) from error
    encoder = jax.tree.map(
        lambda x: x if isinstance(x, np.ndarray) else None, tree["encoder"]
    )
    rest = {name: x for name, x in stored.items() if name not in ENCODERS}
    others = _other_standardisation(theirs, config)
    return Pretrained(encoder, rest, theirs, loaded, init.workdir, others)


def _differing_extras(
    workdir: str, config: Mapping[str, Any], old: Encoder, new: Encoder
) -> dict[str, Any]:
    """Of `EXTRAS` those that `old`, the encoder in `workdir`, has otherwise than `new`,
    by their keys in config.model. Raises `UserError` where anything else differs that
    is no part of `LEARNT`, and for fixed positions of another grid than `new` names."""
    differs = _differing(old, new)
    for key, was, now in LEARNT:
        if (getattr(old, key), getattr(new, key)) == (was, now):
            del differs[key]
    if other := [key for key in differs if key not in EXTRAS]:
        raise UserError(
            f"{workdir} was trained with config.model.{other[0]}={differs[other[0]]},"
            f" here it is {config['model'].get(other[0])}; set"
            f" {_flags('config.model', differs)}"
        )
    known = old.position_grid or old.grid
    fixed = old.positions == new.positions == "sincos"
    if fixed and known != (new.position_grid or new.grid):
        raise UserError(
            f"{workdir} learned with sine-cosine positions of grid {known}; set"
            f" config.model.position_grid={known} to have them resized to {new.grid}"
        )
    return differs


def _other_standardisation(theirs: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """How it differs between two configs; empty where it does not."""
    found = []
    for key in ("mean", "std"):
        one, two = (tuple(c["data"].get(key, ())) for c in (theirs, config))
        if one != two:
            found.append(f"pretrained with data.{key} {one}, this run has {two}")
    return "; ".join(found)


def _as_here(weights: dict[str, Any], old: Encoder, new: Encoder) -> dict[str, Any]:
    """Weights of `old` with what `new` learns of it: fixed positions, zeros for cls,
    and in each block the bias that all shared."""
    weights = dict(weights)
    if (old.positions, new.positions) == ("sincos", "learned"):
        known = old.position_grid or old.grid
        fixed = resize_positions(sincos(old.spec.width, known), known, old.grid)
        weights["positions"] = np.pad(fixed, ((1, 0), (0, 0)))[None]
    if (old.relative_bias, new.relative_bias) == ("shared", "block"):
        shared = weights.pop("relative_bias")
        blocks = [name for name in weights if name.startswith("block_")]
        weights |= {name: weights[name] | {"relative_bias": shared} for name in blocks}
    return weights


def _without_norm(
    init: InitSettings, encoder: Mapping[str, Any], weights: Mapping[str, Any]
) -> str:
    """What to set where `weights` have no last norm and this encoder has: fine-tuning
    by the mean of the patches trains one of the head's own in its place."""
    path = "/encoder/norm/"
    may_miss = any(re.search(rule, f"{path}scale") for rule in init.may_miss)
    if may_miss or "norm" in weights or "norm" not in encoder:
        return ""
    return f' --config.init.may_miss="{(*init.may_miss, path)}"'


def rest_of(
    pretrained: Pretrained, config: Mapping[str, Any], params: Any
) -> tuple[dict[str, Any], str]:
    """(its rest, for all of `params` that is no encoder and no frozen network, if it is
    the very same, else None in its places; what became of it).

    For a run that trains nothing. Raises `UserError` where this config reads heads of
    the same shapes as others than they were trained as.
    """
    own = {name: x for name, x in params.items() if name not in ENCODERS}
    if shapes_of(own) == shapes_of(pretrained.rest):
        if differs := _other_meaning(pretrained.config, config):
            raise UserError(
                f"the heads of {pretrained.workdir} were trained with other settings"
                f" than this config reads them with; set {_flags('config', differs)}"
            )
        return pretrained.rest, f"heads of {pretrained.workdir}"
    return jax.tree.map(lambda _: None, own), (
        f"warning: {pretrained.workdir} has other heads than this config, or none: they"
        " are random and stay so"
    )


def _other_meaning(
    theirs: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of the config `theirs` by which heads of the same shapes are others."""
    old, new = (tasks.from_config(c).meaning() for c in (theirs, config))
    differs = {key: value for key, value in old.items() if new.get(key) != value}
    names = [c.get("method", {}).get("name") for c in (theirs, config)]
    if differs and names[0] != names[1]:
        differs = {"method.name": names[0], **differs}
    return differs


def load_frozen(
    networks: Mapping[str, FrozenNetwork], config: Mapping[str, Any], params: Any
) -> tuple[dict[str, Any], list[str]]:
    """(params["frozen"] from the workdirs of `networks`, a line on each).

    Learned positions and relative biases are resized to another grid. Raises
    `UserError` where a network has no workdir, is not what that run trained, or where
    not all of its weights are there.
    """
    found, lines = {}, []
    for name, network in networks.items():
        sections = (s for s in ("method", "tokenizer") if name in config.get(s, {}))
        section = f"config.{next(sections, '*')}.{name}"
        workdir = network.workdir
        if not workdir:
            raise UserError(
                f"the frozen network {name!r} has no weights; give its workdir,"
                f" --{section}.workdir=DIR"
            )
        stored, theirs = load_params(workdir)
        if network.quantiser is not None and theirs.get("task") != "tokenize":
            raise UserError(
                f"{workdir}, {section}.workdir, is a run of task {theirs.get('task')},"
                " not tokenize: it has no codes; configs/vqkd_*.py train a tokenizer"
            )
        _check_patches(network, theirs, workdir)
        if flags := _frozen_flags(network, theirs, section):
            raise UserError(
                f"the run of {workdir} trained another network than {section} says; set"
                f" {flags}"
            )
        try:
            found[name], loaded = load_into(
                params["frozen"][name],
                stored,
                may_leave=("^/heads/", "^/frozen/", "/mask_token$"),
                resize=_resizer(encoder_from_config(theirs).grid, network.encoder.grid),
            )
        except UserError as error:
            raise UserError(f"{name} of {workdir}: {error}") from error
        resized = [f", {path} resized" for path in loaded.resized[:1]]
        lines.append(
            f"{name} of {workdir}, frozen: {len(loaded.matched)} arrays"
            + "".join(resized)
        )
    return found, lines


def _check_patches(
    network: FrozenNetwork, theirs: Mapping[str, Any], workdir: str
) -> None:
    """Raises `UserError` for a run of other patches than the student's, which those of
    `network` are: no setting of the frozen network alone could mend it."""
    old, new = (
        f"patches of {encoder.patch_size} pixels and {encoder.channels} channels"
        for encoder in (encoder_from_config(theirs), network.encoder)
    )
    if old != new:
        raise UserError(
            f"{workdir} is of {old}, this run of {new}: its config.model has to be so"
            " too, or the frozen network of another run"
        )


def _frozen_flags(
    network: FrozenNetwork, theirs: Mapping[str, Any], section: str
) -> str:
    """What to set for `network` to be the one that the run of config `theirs` has."""
    old, new = encoder_from_config(theirs), network.encoder
    differs = _differing(old, new)
    known = old.position_grid or old.grid
    if old.positions == "sincos" and known != (new.position_grid or new.grid):
        differs["position_grid"] = known
    own_keys: dict[str, Any] = {
        key: tuple(theirs["data"][key])
        for key, own in (("mean", network.mean), ("std", network.std))
        if not np.array_equal(theirs["data"][key], np.resize(own, new.channels))
    }
    if network.quantiser is not None:
        said, new = theirs.get("tokenizer", {}), vars(network.quantiser)
        for key in ("codes", "code_dim"):
            if said.get(key, new[key]) != new[key]:
                own_keys[key] = said[key]
    parts = (_flags(f"{section}.model", differs), _flags(section, own_keys))
    return " ".join(part for part in parts if part)


EXTRAS = {"relative_bias", "layer_scale"}
"""Settings of a model that add parameters to it, which may be left or begin fresh."""


ALIKE = ("patch_size", "channels", "positions", "relative_bias", "style", "gelu")
"""Settings that an encoder shares with that whose weights it takes."""


def _differing(old: Encoder, new: Encoder) -> dict[str, Any]:
    """Settings of `old`, by their keys in config.model, that `new` has otherwise."""
    found = {
        key: getattr(old, key)
        for key in ALIKE
        if getattr(old, key) != getattr(new, key)
    }
    if bool(old.layer_scale) != bool(new.layer_scale):
        found["layer_scale"] = old.layer_scale
    if old.spec != new.spec:
        found["size"] = next(n for n, spec in VIT_SPECS.items() if spec == old.spec)
    return found


def _flags(section: str, values: Mapping[str, Any]) -> str:
    """--section.key=value for each, as a shell takes them."""
    return " ".join(
        f"--{section}.{key}={shlex.quote(str(value))}" for key, value in values.items()
    )


def _resizer(old: Grid, new: Grid) -> Resize:
    def resize(
        path: str, value: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray | None:
        fitted = None
        if old == new:  # and not by shape: 2 x 8 and 4 x 4 have as many patches
            return None
        if path == "/encoder/positions":
            patches = resize_positions(value[0, 1:], old, new)
            fitted = np.concatenate([value[:, :1], patches[None]], axis=1)
        elif path.endswith("/relative_bias/table"):
            fitted = resize_relative_bias(value, old, new)
        return fitted if fitted is not None and fitted.shape == shape else None

    return resize
