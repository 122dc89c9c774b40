"""The house rule: a module imports only from its own room's files and rooms above."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

ROOMS = {
    "settings": 0,
    "storage": 0,
    "commands": 0,
    "patches": 1,
    "masking": 1,
    "mixing": 1,
    "cropping": 1,
    "difficulty": 1,
    "losses": 1,
    "schedules": 1,
    "models": 2,
    "targets": 3,
    "objective": 3,
    "dds": 3,
    "methods": 3,
    "networks": 3,
    "tasks": 4,
    "flops": 5,
    "data": 5,
    "eval": 6,
    "train": 7,
    "interop": 8,
    "inspect": 8,
    "study": 9,
    "features": 8,
    "analyse": 8,
    "compare": 8,
}
MAY_NOT = {"data": {"models", "targets", "objective", "dds", "methods", "tasks"}}
FLAX = {"models"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = sorted((ROOT / "ddae").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_the_rooms_above(path):
    parts = path.relative_to(ROOT / "ddae").with_suffix("").parts
    if parts == ("__init__",):
        return
    room = parts[0]
    for name in imports_of(path):
        top, *rest = name.split(".")
        if top == "ddae" and rest and rest[0] in ROOMS:
            assert ROOMS[rest[0]] <= ROOMS[room], f"{path} imports {name}"
            assert rest[0] not in MAY_NOT.get(room, ()), f"{path} imports {name}"
        if ROOMS[room] <= 1:
            assert top not in ("flax", "optax", "orbax", "tensorflow", "clu"), name
        if top == "flax":
            assert room in FLAX, f"{path} imports {name}: Flax lives in models/"
        assert top not in ("transformers", "timm"), name
        if top == "torch":  # where it is asked for: it writes files of its own
            assert parts == ("interop", "files"), name
        if top == "tensorflow":
            assert room == "data", name


def test_every_room_is_in_the_plan():
    found = {p.name.removesuffix(".py") for p in (ROOT / "ddae").iterdir()}
    assert found - {"__init__", "__pycache__"} <= ROOMS.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_configs_import_only_configs(path):
    for name in imports_of(path):
        assert name.split(".")[0] in ("ml_collections", "configs"), name


def test_import_ddae_brings_in_neither_tensorflow_nor_torch():
    code = (
        "import sys, ddae, ddae.train.loop\n"
        "found = {'tensorflow', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_import_ddae_alone_brings_in_no_jax_and_has_its_names():
    code = (
        "import sys, ddae\n"
        "assert not {'jax', 'numpy'} & set(sys.modules), 'imported'\n"
        "assert set(ddae.__all__) <= set(dir(ddae))\n"
        "found = [getattr(ddae, name) for name in ddae.__all__]\n"
        "assert [one.__name__ for one in found] == ddae.__all__, found\n"
        "assert not hasattr(ddae, 'load_encoders')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_train_py_is_under_a_hundred_lines():
    assert len((ROOT / "train.py").read_text().splitlines()) < 100
