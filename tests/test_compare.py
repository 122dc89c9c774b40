"""A run beside others: values at equal steps, what is expected, and the figure."""

import json

import pytest
from PIL import Image

from ddae import compare


def log(folder, name, rows, config=None):
    """A workdir with such a log."""
    workdir = folder / name
    workdir.mkdir()
    lines = [json.dumps(row) + "\n" for row in rows]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    if config is not None:
        (workdir / "config.json").write_text(json.dumps(config))
    return str(workdir)


def losses(values, every=10):
    return [
        {"step": every * (at + 1), "train/loss": value, "train/step_seconds": 1.0}
        for at, value in enumerate(values)
    ]


def test_runs_are_compared_at_the_last_step_of_all():
    run = {"train/loss": {10: 3.0, 20: 2.0, 30: 1.0, 60: 0.1}, "eval/miou": {60: 9.0}}
    early = {"train/loss": {15: 4.0, 35: 2.0}, "eval/miou": {0: 1.0, 30: 2.0}}
    long = {"train/loss": {10: 5.0, 30: 3.0, 90: 0.0}, "eval/miou": {0: 1.0, 90: 4.0}}
    found = compare.compare(run, [early, long])
    # early has no step 30, and none after 35; nothing of eval is at a step of all
    assert found == {"train/loss": (30, 1.0, [2.5, 3.0])}
    assert compare.compare(run, [long]) == {"train/loss": (60, 0.1, [1.5])}
    assert compare.compare({"train/loss": {10: 3.0}}, [early, long]) == {}  # too early
    run["eval/miou"] |= {30: 5.0, 90: 7.0}
    assert compare.compare(run, [long])["eval/miou"] == (90, 7.0, [4.0])
    assert "eval/miou" not in compare.compare(run, [early, long])  # not of both at 30


def test_expected_is_where_another_run_of_the_kind_would_lie(tmp_path, capsys):
    """For three values of deviation 1 about 10: within 4.303 sqrt(1 + 1/3) = 4.97."""
    others = [log(tmp_path, f"o{x}", losses([x])) for x in (9.0, 10.0, 11.0)]
    said = []
    for value in (14.9, 15.1, 5.1, 4.9):
        run = log(tmp_path, f"run{value}", losses([value]))
        figure = tmp_path / "figure.png"
        assert compare.main([run, *others, "--output", str(figure)]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert shown[0].split()[-3:] == ["mean", "of", "3"]
        (line,) = (x for x in shown if x.startswith("train/loss "))
        said.append(line.split("%, ")[1])
        assert line.split()[1:4] == ["10", f"{value:g}", "10"]
    above, below = (f"{side} what is expected" for side in ("above", "below"))
    assert said == ["as expected", above, "as expected", below]
    with Image.open(figure) as image:
        assert image.size[0] > 300


def test_values_below_zero_are_compared_by_their_difference():
    for value, other, says in (
        (-1.2, -1.0, "-0.2"),
        (1.2, 0.0, "+1.2"),
        (3.0, 2.0, "+50.0 %"),
    ):
        _, line = compare.lines({"train/loss": (10, value, [other])}, 1)
        assert line.endswith(f"  {says}")


def test_settings_that_differ_are_named(tmp_path, capsys):
    rows = losses([3.0, 2.0, 1.0])
    config = {"optimizer": {"base_lr": 0.1}, "seed": 0}
    run = log(tmp_path, "run", rows, config)
    other = log(tmp_path, "other", rows, {**config, "optimizer": {"base_lr": 0.2}})
    figure = tmp_path / "figure.png"
    # a log alone has no settings unless it begins with them, as those of docs/results/
    # do; speeds are compared where they are asked for
    kept = log(tmp_path, "kept", [{"config": {**config, "seed": 3}}, *rows])
    wanted = ["--output", str(figure), "--metrics", "train/(loss|step)"]
    paths = [run, other, f"{other}/metrics.jsonl", f"{kept}/metrics.jsonl"]
    assert compare.main([*paths, *wanted]) == 0
    shown = capsys.readouterr().out
    assert shown.count("config.") == 3
    assert f"config.optimizer.base_lr is 0.1, in {other} 0.2\n" in shown
    assert f"config.seed is 0, in {kept}/metrics.jsonl 3\n" in shown
    assert f"settings of {other}/metrics.jsonl are not known: it has no con" in shown
    assert "train/step_seconds " in shown
    assert shown.count("+0.0 %, as expected") == 2
    assert compare.main([*paths, *wanted[:2]]) == 0
    assert "train/step_seconds" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["{run}", "{none}"], "no rows in {none}; name a run's workdir"),
        (["{run}", "{run}", "--metrics=("], "--metrics=(: missing ), unterminated"),
        (["{run}", "{run}", "--metrics=eval"], "{run} and the others have no metric"),
        (["{run}", "{run}", "--output=a.pdf"], "--output=a.pdf does not end in .png"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, arguments, says):
    names = {"run": log(tmp_path, "run", losses([1.0])), "none": str(tmp_path / "none")}
    given = [argument.format(**names) for argument in arguments]
    assert compare.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {says.format(**names)}") and error.count("\n") == 1


@pytest.mark.parametrize("whole", [b"{", b"[]", b"\xff\xfe"])
def test_a_config_that_was_cut_short_is_not_known(tmp_path, capsys, whole):
    one, two = (log(tmp_path, name, losses([2.0, 1.0]), {}) for name in "ab")
    (tmp_path / "b" / "config.json").write_bytes(whole)
    out = str(tmp_path / "figure.png")
    for pair in ([one, two], [two, one]):
        assert compare.main([*pair, f"--output={out}"]) == 0
        assert f"settings of {two} are not known" in capsys.readouterr().out


def test_rows_of_another_kind_in_a_log_are_passed_over(tmp_path):
    odd = [{"train/loss": 9.0}, {"step": "x", "train/loss": 9.0}, {"step": None}]
    odd += [{"step": 90, "train/loss": text} for text in ("9", [9], None)]
    curves = compare.read_curves(log(tmp_path, "run", odd + losses([2.0, 1.0])))
    assert curves == {"train/loss": {10: 2.0, 20: 1.0}}
    everything = compare.read_curves(str(tmp_path / "run"), "")
    assert set(everything) == {"train/loss", "train/step_seconds"}


def test_what_each_has_is_said_where_nothing_is_shared(tmp_path, capsys):
    run = log(tmp_path, "run", losses([2.0, 1.0]))
    probe = log(tmp_path, "probe", [{"step": 0, "eval/top1": 9.0}])
    assert compare.main([run, probe]) == 2
    said = capsys.readouterr().err
    assert f"; {run} has train/loss, of steps 10 to 20; {probe} has eval/top1" in said
    assert compare.main([run, run, "--metrics=train/lss"]) == 2
    assert f"at a step of both; {run} has none; " in capsys.readouterr().err


def test_a_curve_that_ended_early_or_has_no_late_row_is_in_the_figure(monkeypatch):
    """The height of the panel reaches to what each has at the run's end."""
    seen = []
    monkeypatch.setattr(compare, "to_array", lambda figure: seen.append(figure))
    run = {"train/loss": {40: 2.0, 400: 1.0}, "eval/top1": {0: 50.0, 60: 61.0}}
    other = {"train/loss": {5: 4.7, 20: 4.0}, "eval/top1": {0: 50.0, 120: 54.0}}
    compare.draw(run, {"other": other}, ["train/loss", "eval/top1"])
    loss, top1 = seen[0].axes[:2]
    assert loss.get_ylim()[0] < 1.0 and loss.get_ylim()[1] > 4.0
    assert top1.get_ylim()[0] < 52.0 and top1.get_ylim()[1] > 61.0


def test_a_run_of_any_name_is_in_the_legend(monkeypatch):
    seen = []
    monkeypatch.setattr(compare, "to_array", lambda figure: seen.append(figure))
    run = {"train/loss": {1: 2.0, 2: 1.0}}
    compare.draw(run, {"runs/_old": run, "runs/new/": run}, ["train/loss"])
    named = [text.get_text() for text in seen[0].legends[0].get_texts()]
    assert named == ["./_old", "new", "this run"]


def test_a_panel_has_its_own_metric_of_each_run_up_to_a_little_beyond_its_end(
    monkeypatch,
):
    seen = []
    monkeypatch.setattr(compare, "to_array", lambda figure: seen.append(figure))
    run = {"a": {1: 90.0, 50: 2.0, 100: 1.0}, "b": {20: 5.0, 40: 6.0}}
    others = {
        "x": {"a": {1: 80.0, 100: 3.0, 400: 0.5}, "b": {30: 7.0}},
        "y": {"a": {60: 4.0}, "b": {10: 8.0, 35: 9.0}},
    }
    compare.draw(run, others, ["a", "b"])
    for axis, name in zip(seen[0].axes, "ab", strict=True):
        assert axis.get_title() == name
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
        expected = {path: curves[name] for path, curves in others.items()}
        expected["this run"] = run[name]
        assert drawn == {k: [list(p) for p in v.items()] for k, v in expected.items()}
    a, b = seen[0].axes
    assert a.get_xlim() == (0, 125) and b.get_xlim() == (0, 40)
    assert a.get_ylim()[1] < 5  # the first tenth has no part in the height
