"""Writes finetune_vit_b.txt: how each parameter of ViT-B learns in fine-tuning.

python tests/goldens/make_rule_table.py

A table to read, against MAE's recipe: the layer that a parameter counts for, its share
of the learning rate, whether weight decay pulls it. `test_classify.py` compares.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
PATH = ROOT / "tests" / "goldens" / "finetune_vit_b.txt"


def table(name, text=None):
    """One line a parameter of configs/NAME.py."""
    import importlib

    import jax

    from ddae import settings, tasks
    from ddae.train.optimizer import OptimizerSettings, layer_of, path_name, rules_of

    config = importlib.import_module(f"configs.{name}").get_config(text).to_dict()
    task = tasks.from_config(config)
    chosen = settings.build(OptimizerSettings, config["optimizer"], "optimizer.")
    params = jax.eval_shape(task.init, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    rules = jax.tree.leaves(rules_of(params, chosen))
    lines = [f"{'parameter':44s} {'shape':16s} layer  rate    decay"]
    for (path, x), rule in zip(leaves, rules, strict=True):
        name = path_name(path)
        layer = layer_of(name, task.encoder.spec.depth)
        rate = "frozen" if rule.frozen else f"{rule.scale:.4f}"
        shape = "x".join(map(str, x.shape))
        lines.append(
            f"{name:44s} {shape:16s} {layer:5d}  {rate:6s}  {int(rule.decays)}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PATH.write_text(table("finetune_in1k", "model=B"))
    PATH.with_name("linear_vit_b.txt").write_text(table("linear_in1k", "model=B"))
