"""The walk of docs/adding_a_method.md, as it is written."""

import pathlib
import re

import jax
import numpy as np
import pytest
from test_configs import fake_data, shrink
from test_methods import AT_ZERO, loss_of

from configs import common
from ddae import analyse, tasks
from ddae.dds import with_dds
from ddae.methods import METHODS
from ddae.train import loop
from ddae.train.metrics import read_metrics

DOC = pathlib.Path(__file__).parents[1] / "docs" / "adding_a_method.md"


@pytest.fixture
def walked(monkeypatch):
    """What the four pieces of code define."""
    monkeypatch.setattr("ddae.methods.METHODS", METHODS)
    before = dict(METHODS)
    found = {}
    pieces = re.findall(r"```python\n(.+?)```", DOC.read_text(), re.S)
    assert len(pieces) == 4
    for piece in pieces:
        exec(compile(piece, str(DOC), "exec"), found)
    yield found
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.slow
def test_the_walk_adds_a_method_that_trains(walked, tmp_path, monkeypatch):
    config = shrink(walked["get_config"]("size=Two,dds"))
    assert config["method"]["dds"] is not None
    fake_data(config, monkeypatch)
    loop.run(config, str(tmp_path))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    (row,) = [row for row in rows if "train/loss" in row]
    assert row["train/loss/colour/block01"] > 0 and row["train/ess/colour/block02"] > 0
    assert analyse.main([str(tmp_path), "--num_images=8"]) == 0


def test_it_keeps_the_promises_of_every_method(walked):
    from make_method_goldens import make, values

    assert values("mean_colour")["loss"] > 0
    method = make("mean_colour")
    params, loss, _, _ = loss_of(method, gradients=False)
    _, same, _, _ = loss_of(with_dds(method, **AT_ZERO), gradients=False)
    assert np.asarray(loss).tobytes() == np.asarray(same).tobytes()
    # A head that answers the truth has no loss.
    (term,) = method.terms
    head = params["heads"][term.head]["colour"]
    assert jax.tree.map(np.shape, head) == {"kernel": (32, 1), "bias": (1,)}


def test_a_law_of_ones_own_has_ddaes_settings(walked):
    config = shrink(common.cifar10(None, plug_in=False))
    own = {"name": "ddae_exponential", "metric": "manhattan"}
    config["method"] = common.ddae().to_dict() | own
    terms = tasks.from_config(config).method.terms
    assert {term.difficulty.law for term in terms} == {walked["exponential"]}
    assert {term.difficulty.metric for term in terms} == {"manhattan"}
    weights = walked["exponential"](np.array([[1.0, 2.0, 4.0]]), -1.0, None)
    expected = np.exp(-np.array([[1.0, 2.0, 4.0]]))
    np.testing.assert_allclose(weights, expected / expected.mean(), rtol=1e-6)
