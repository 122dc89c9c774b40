"""Files of weights, read as arrays and nothing else: no code in them is ever run."""

import json
import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from ddae import commands
from ddae.interop.names import Weights
from ddae.settings import UserError
from ddae.storage import unusable

TORCH = (".pth", ".pt", ".bin")
"""Endings of files that torch.save wrote."""

STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
"""PyTorch's storage classes, which a pickle names."""


def read_weights(path: str) -> Weights:
    """A .safetensors file, a Hugging Face folder, or a PyTorch .pth, .pt or .bin file.

    Floating-point arrays come as float32. Raises `UserError`, in one line, for a file
    that is missing, cut short, of another format, or that holds code.
    """
    if os.path.isdir(path):
        return _folder(path)
    if not os.path.isfile(path):
        raise UserError(f"no file {path}")
    if path.endswith(".safetensors"):
        try:
            found = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged or no safetensors: {error}") from error
        except AttributeError as error:  # NumPy has no such kind
            raise UserError(f"{path} has arrays that are not read: {error}") from error
    elif path.endswith(TORCH):
        found = _flat_state(read_torch(path), path)
    else:
        raise UserError(
            f"{path}: unknown format; give a .safetensors, .pth, .pt or .bin file, or a"
            " Hugging Face folder"
        )
    return {
        name: x.astype(np.float32) if x.dtype.kind in "fV" else x
        for name, x in found.items()
    }


def _folder(path: str) -> Weights:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if os.path.isfile(os.path.join(path, name)):
            return read_weights(os.path.join(path, name))
    index, ending = os.path.join(path, "model.safetensors.index.json"), ".safetensors"
    if not os.path.isfile(index):
        index, ending = os.path.join(path, "pytorch_model.bin.index.json"), ".bin"
    if not os.path.isfile(index):
        raise UserError(f"no model.safetensors or pytorch_model.bin in {path}")
    places = read_json(index).get("weight_map")
    parts = places.values() if isinstance(places, dict) else ()
    found: Weights = {}
    for part in sorted({str(part) for part in parts}):
        if os.path.basename(part) != part:
            raise UserError(f"{index} names {part!r}, which lies outside its folder")
        if not part.endswith(ending):  # "." is the folder, which is read now
            raise UserError(f"{index} names {part!r}, which is no {ending} file")
        found |= read_weights(os.path.join(path, part))
    return found


def read_json(path: str) -> dict[str, Any]:
    """A JSON file of a Hugging Face folder; `UserError` where it is none."""
    try:
        with open(path) as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


def write_weights(
    path: str, weights: Weights, beside: Mapping[str, str] | None = None
) -> None:
    """A .safetensors file of float32 arrays, with what is said `beside` them;
    `UserError` where it cannot be written, `StorageError` where it may be later."""
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in weights.items()}
    try:
        with commands.whole(path) as file:
            file.write(save(arrays, metadata={"format": "pt", **(beside or {})}))
    except (SafetensorError, OSError) as error:
        raise unusable(f"{path} cannot be written", error) from error


def new_file(path: str, ending: str) -> None:
    """`UserError` where `path` has another ending, or is there already."""
    if not path.endswith(ending):
        raise UserError(f"{path} does not end in {ending}")
    if os.path.exists(path):
        raise UserError(f"{path} exists already; give another name")


def write_torch(path: str, weights: Weights, beside: Mapping[str, str]) -> None:
    """{"model": {name: tensor}, "ddae": `beside`} as torch.save writes it, of float32
    arrays; `UserError` where that is not installed, or where the file cannot be
    written."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            "torch writes .pth files and is not installed: pip install torch; the same"
            " names without a decoder: python -m ddae.interop.timm export"
        ) from error
    tensors = {k: torch.from_numpy(np.array(x, np.float32)) for k, x in weights.items()}
    try:
        with commands.whole(path) as file:
            torch.save({"model": tensors, "ddae": dict(beside)}, file)
    except (RuntimeError, OSError) as error:
        raise unusable(f"{path} cannot be written", error) from error


def read_beside(path: str) -> dict[str, Any]:
    """What a .safetensors file, or a .pth file of ours, says beside its arrays; {} of
    any other."""
    if path.endswith(TORCH):
        found = read_torch(path, _Beside)
        said = found.get("ddae") if isinstance(found, dict) else None
        return said if isinstance(said, dict) else {}
    if not path.endswith(".safetensors"):
        return {}
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def read_torch(path: str, reader: "type[_Arrays] | None" = None) -> Any:
    """What torch.save wrote since PyTorch 1.6: containers, numbers, arrays alone."""
    reader = reader or _Arrays
    try:
        with zipfile.ZipFile(path) as archive:
            # Else a small file could unpack to more than the memory there is.
            if any(entry.compress_type for entry in archive.infolist()):
                raise UserError(
                    "it is compressed, as torch.save leaves no file; load and save it"
                    " anew with torch"
                )
            (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            with archive.open(name) as file:
                return reader(file, archive, name.removesuffix("data.pkl")).load()
    except UserError as error:
        raise UserError(f"{path} is refused: {error}") from error
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is cut short, or older than PyTorch 1.6; load and save it anew"
            " with torch, or take a .safetensors file"
        ) from error
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{path} is damaged: {error}") from error


class _Arrays(pickle.Unpickler):
    """An unpickler that knows PyTorch's tensors and refuses every other name."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("argparse", "Namespace"):
            return _Inert
        raise UserError(
            f"it holds {module}.{name}, and only arrays are loaded; save its state_dict"
            " alone"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, size = pid
        data = self._archive.read(f"{self._root}data/{key}")
        if len(data) < size * np.dtype(dtype).itemsize:
            raise UserError(f"array {key} is cut short")
        return np.frombuffer(data, dtype, size)


class _Beside(_Arrays):
    """The same, with None for every array: none is read."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        return (lambda *_: None) if module == "torch._utils" else found

    def persistent_load(self, pid: Any) -> None:
        return None


class _Inert:
    """Stands for arguments that a training script saved; nothing is done with them."""

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *_: Any
) -> np.ndarray:
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if (
        min((offset, *shape, *stride)) < 0
        or last >= max(len(storage), 1)
        or math.prod(shape) > len(storage)
    ):
        raise UserError("an array reaches beyond its data")
    strides = tuple(s * storage.itemsize for s in stride)
    view = np.lib.stride_tricks.as_strided(storage[offset:], shape, strides)
    return np.array(view)


def _flat_state(found: Any, path: str) -> Weights:
    for key in ("model", "state_dict", "module", "teacher"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no state_dict")
    arrays = {str(k): v for k, v in found.items() if isinstance(v, np.ndarray)}
    if not arrays:
        raise UserError(f"{path} holds no arrays")
    for prefix in ("module.", "backbone."):
        if all(name.startswith(prefix) for name in arrays):
            arrays = {k.removeprefix(prefix): v for k, v in arrays.items()}
    return arrays
