"""Runs of several processes, and runs that are killed, stopped, or fail."""

import errno
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import QUICK, tiny_config
from jax.experimental import multihost_utils
from PIL import Image
from sklearn.datasets import load_sample_images

from ddae.settings import UserError
from ddae.train import cluster
from ddae.train.checkpoint import Checkpoints
from ddae.train.metrics import read_metrics

WORKER = pathlib.Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two real photographs cut into 96 JPEGs of 48 x 48."""
    root = tmp_path_factory.mktemp("photographs")
    for number, image in enumerate(load_sample_images().images):
        for split, columns in (("train", range(8)), ("test", range(8, 10))):
            (root / split / str(number)).mkdir(parents=True)
            for row in range(6):
                for column in columns:
                    tile = image[48 * row :, 48 * column :][:48, :48]
                    path = root / split / str(number) / f"{row}_{column}.jpg"
                    Image.fromarray(tile).save(path)
    return root


def config_of(photographs, **changes):
    given = {
        "image_size": 16,
        "model__channels": 3,
        "model__patch_size": 4,
        "data": {
            "name": "folder",
            "dir": str(photographs),
            "mean": (0.5,) * 3,
            "std": (0.25,) * 3,
            "augment": {"crop": "random_resized", "flip": True},
        },
        "mesh__fsdp": 4,
        "log_every_steps": 1,
        "checkpoint_every_steps": 5,
        "watchdog_seconds": 300.0,
    }
    return tiny_config(**(given | changes))


class Run:
    """Processes that train together in one workdir."""

    def __init__(self, folder, config, processes=1, devices=4, fault="", env=None):
        self.workdir = folder / "run"
        folder.mkdir(exist_ok=True, parents=True)
        path = folder / "config.json"
        path.write_text(json.dumps(config))
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        flags = f"--xla_force_host_platform_device_count={devices}{QUICK}"
        self.started = []
        # Not pipes: who is read last would stand still when its own is full.
        self._outputs = [folder / f"said{number}.txt" for number in range(processes)]
        for number in range(processes):
            command = [sys.executable, str(WORKER), str(path), str(self.workdir), fault]
            if processes > 1:
                command += [f"localhost:{port}", str(processes), str(number)]
            with open(self._outputs[number], "w") as output:
                self.started.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | {"XLA_FLAGS": flags} | (env or {}),
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self, timeout=600):
        """Exit codes; `said` is then what each process printed."""
        deadline = time.monotonic() + timeout
        try:
            for process in self.started:
                process.wait(timeout=max(1.0, deadline - time.monotonic()))
        finally:
            for process in self.started:
                process.kill()
        self.said = [output.read_text(errors="replace") for output in self._outputs]
        return [process.returncode for process in self.started]

    def losses(self):
        rows = read_metrics(self.workdir / "metrics.jsonl")
        return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def state_of(run, step):
    """Every array of the checkpoint of `step`, and its digests."""
    with Checkpoints(str(run.workdir)) as checkpoints:
        assert checkpoints.latest() == step
        meta = checkpoints._meta(step)
        found = checkpoints._manager.item_metadata(step)
        targets = {
            name: jax.tree.map(
                lambda x: np.empty(x.shape, x.dtype),
                getattr(found[name], "tree", found[name]),
                is_leaf=lambda x: hasattr(x, "shape"),
            )
            for name in ("params", "training")
        }
        import orbax.checkpoint as ocp

        args = {k: ocp.args.StandardRestore(v) for k, v in targets.items()}
        restored = checkpoints._manager.restore(step, args=ocp.args.Composite(**args))
    arrays = jax.tree.leaves({name: restored[name] for name in targets})
    return meta["digests"], arrays


def assert_same_state(one, two, step):
    digests, arrays = state_of(one, step)
    others, other_arrays = state_of(two, step)
    assert digests == others
    assert len(arrays) > 50
    for a, b in zip(arrays, other_arrays, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def straight(photographs, tmp_path_factory):
    """Thirty steps in one go, FSDP on four devices of one process."""
    run = Run(
        tmp_path_factory.mktemp("straight"), config_of(photographs, total_steps=30)
    )
    assert run.wait() == [0], run.said
    return run


@pytest.mark.slow
def test_thirty_steps_are_fifteen_and_a_restart_and_fifteen(
    straight, photographs, tmp_path
):
    config = config_of(photographs, total_steps=30)
    fault = "kill:0:18"  # after the save at 15
    first = Run(tmp_path, config, fault=fault)
    assert first.wait() == [-signal.SIGKILL], first.said
    second = Run(tmp_path, config)
    assert second.wait() == [0], second.said
    assert "resuming at step 15" in second.said[0]
    assert second.losses() == straight.losses()
    assert_same_state(straight, second, 30)


@pytest.mark.slow
def test_killed_at_twelve_random_moments_it_ends_in_the_same_state(
    photographs, tmp_path
):
    config = config_of(photographs, total_steps=300, checkpoint_every_steps=10)
    whole = Run(tmp_path / "straight", config)
    assert whole.wait() == [0], whole.said
    random.seed(0)
    kills, attempts = 0, 0
    while True:
        attempts += 1
        assert attempts < 40
        run = Run(tmp_path / "killed", config)
        if kills == 12:
            break
        begun = time.monotonic()
        before = newest(run)
        # From the start to a few saves on: in imports, compilation, steps and saves.
        moment = random.uniform(2.0, 12.0)
        while time.monotonic() - begun < moment or newest(run) == before:
            if run.started[0].poll() is not None or time.monotonic() - begun > 60:
                break
            if time.monotonic() - begun >= moment and kills % 3 == 2:
                break  # every third kill does not wait for progress
            time.sleep(0.02)
        if run.started[0].poll() is None:
            kills += 1
        run.started[0].kill()
        run.wait()
        if run.started[0].returncode == 0:
            break
    assert run.wait() == [0], run.said
    assert kills >= 6
    assert run.losses() == whole.losses()
    assert_same_state(whole, run, 300)


def newest(run):
    steps = run.workdir.glob("checkpoints/*/commit_success.txt")
    return max((int(path.parent.name) for path in steps), default=None)


# Processes x devices; every one of the three follows on each of the others.
CHAIN = [(1, 4), (2, 2), (4, 1), (1, 4), (4, 1), (2, 2), (1, 4)]


@pytest.mark.slow
def test_processes_and_devices_make_no_difference(straight, photographs, tmp_path):
    """One run of thirty steps, handed on six times by SIGTERM after a few steps; where
    two processes have two devices each, these lie in the mesh as on a pod's torus."""
    config = config_of(photographs, total_steps=30)
    stopped = None
    for number, (processes, devices) in enumerate(CHAIN):
        last = number == len(CHAIN) - 1
        fault = "" if last else f"term:{processes - 1}:1"
        env = {"INTERLEAVE": "1"} if processes == devices else {}
        run = Run(tmp_path, config, processes, devices, fault=fault, env=env)
        assert run.wait() == [0 if last else 75] * processes, run.said
        assert stopped is None or f"resuming at step {stopped}" in run.said[0]
        stopped = newest(run)
        assert last or stopped < 5 * (number + 1)
    losses, expected = run.losses(), straight.losses()
    assert set(losses) == set(expected)
    for step, loss in losses.items():
        np.testing.assert_allclose(loss, expected[step], rtol=1e-5)


def evaluated_config(photographs):
    return config_of(
        photographs,
        total_steps=30,
        eval_every_steps=10,
        checkpoint_every_steps=50,
        evaluators={"knn": {"k": 3}},
    )


@pytest.fixture(scope="module")
def straight_in_two(photographs, tmp_path_factory):
    """The same thirty steps in two processes, with evaluations."""
    folder = tmp_path_factory.mktemp("straight_in_two")
    run = Run(folder, evaluated_config(photographs), 2, 2)
    assert run.wait() == [0, 0], run.said
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["term:1:6", "hup:1:6", "term-eval:1:10", "term-compile:1:0"]
)
def test_sigterm_to_one_of_two_processes_saves_one_step_and_exits_75(
    straight_in_two, photographs, tmp_path, where
):
    config = evaluated_config(photographs)
    first = Run(tmp_path, config, 2, 2, fault=where)
    assert first.wait() == [75, 75], first.said
    lines = [line for said in first.said for line in said.splitlines()]
    said = {line for line in lines if "saved at step" in line}
    assert said == {
        f"stopped: asked to stop; saved at step {newest(first)} of 30: run the same"
        " command again"
    }
    second = Run(tmp_path, config, 2, 2)
    assert second.wait() == [0, 0], second.said
    assert second.losses() == straight_in_two.losses()
    rows = read_metrics(second.workdir / "metrics.jsonl")
    evaluated = [row["step"] for row in rows if "eval/knn3_top1" in row]
    assert evaluated == [0, 10, 20, 30]
    assert_same_state(straight_in_two, second, 30)


@pytest.mark.slow
def test_a_process_that_dies_in_an_evaluation_loses_no_step(
    straight_in_two, photographs, tmp_path
):
    """What was due to be saved at that step is; it is evaluated by the next start."""
    config = evaluated_config(photographs) | {"keep_best": "eval/knn3_top1"}
    config |= {"checkpoint_every_steps": 10, "keep_checkpoints": 1}
    first = Run(tmp_path, config, 2, 2, fault="kill-eval:1:20")
    assert all(first.wait()), first.said
    assert newest(first) == 20
    second = Run(tmp_path, config, 2, 2)
    assert second.wait() == [0, 0], second.said
    assert "resuming at step 20" in second.said[0]
    assert second.losses() == straight_in_two.losses()
    rows = read_metrics(second.workdir / "metrics.jsonl")
    scores = {r["step"]: r["eval/knn3_top1"] for r in rows if "eval/knn3_top1" in r}
    assert list(scores) == [0, 10, 20, 30]
    kept = {int(path.name) for path in (second.workdir / "checkpoints").iterdir()}
    before = max((10, 20), key=lambda step: (scores[step], step))
    assert kept == {before, 30}
    assert_same_state(straight_in_two, second, 30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, cause",
    [
        ("raise:1:3", "process 1: ValueError: a fault of the test"),
        ("raise:0:3", "process 0: ValueError: a fault of the test"),
        ("hang:1:3", "nothing was done in 60 s"),
        ("kill:1:3", ""),
    ],
)
def test_one_process_that_fails_ends_all_with_the_cause(
    photographs, tmp_path, fault, cause
):
    config = config_of(photographs, total_steps=100_000, watchdog_seconds=300.0)
    if fault.startswith("hang"):
        # Longer than a start on a busy machine, which must not be taken for the hang.
        config["watchdog_seconds"] = 60.0
    run = Run(tmp_path, config, 2, 2, fault=fault)
    begun = time.monotonic()
    codes = run.wait()
    assert all(code != 0 for code in codes)
    waited = config["watchdog_seconds"] if fault.startswith("hang") else 0.0
    # 60 s from the moment the fault is seen, and the start.
    assert time.monotonic() - begun - waited < 120
    survivors = run.said[:1] if fault.startswith("kill") else run.said
    for said in survivors:
        last = "\n".join(said.strip().splitlines()[-5:])
        assert "first failure:" in last and cause in last, said
    if fault.startswith("hang"):
        assert " in strike" in run.said[1], run.said  # where the hanging one stands


def started(code, numbers):
    """`code` with its {port} and {number} filled in, as processes of these numbers."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(port=port, number=number)],
            cwd=WORKER.parents[1],
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in numbers
    ]
    return port, processes


@pytest.mark.slow
def test_it_says_for_whom_it_waits_and_gives_up():
    code = (
        "from ddae.train import cluster\n"
        "cluster.start('auto', 'localhost:{port}', 3, {number}, 9)\n"
    )
    port, processes = started(code, (0, 1))
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert all(process.returncode == 1 for process in processes)
    assert "waiting for 1 of 3 processes" in said[0]
    # Process 1 may have given up just before.
    assert re.search("error: gave up waiting for [12] of 3 processes", said[0])
    assert f"waiting for process 0 and the others at localhost:{port}" in said[1]


@pytest.mark.slow
def test_a_process_that_is_long_at_the_end_is_waited_for():
    """As one that uploads its log, while the others are done."""
    code = (
        "import time\nfrom ddae.train import cluster\n"
        "cluster.HEARTBEAT_SECONDS = 8\n"
        "cluster.start('auto', 'localhost:{port}', 2, {number}, 60)\n"
        "time.sleep(0 if {number} else cluster.HEARTBEAT_SECONDS + 3)\n"
    )
    _, processes = started(code, (0, 1))
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said


@pytest.mark.parametrize("where", ["localhost", "localhost:x", ":8476"])
def test_a_coordinator_has_a_port(where):
    with pytest.raises(UserError, match=f"{where} is not HOST:PORT of process 0"):
        cluster.start("auto", where, 2, 0, 10)


# For 30 seconds nothing of Python runs in the end, as in a compile.
INTERRUPTED = """\
import ctypes, os, signal

from ddae.train.signals import Signals

signals, before = Signals(), signal.getsignal(signal.SIGINT)
with signals.listening():
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.stop_requested
assert signal.getsignal(signal.SIGINT) is before
with signals.listening():
    os.kill(os.getpid(), signal.SIGINT)
    print("asked", flush=True)
    libc, until = ctypes.CDLL(None), ctypes.c_int(30)
    while left := libc.sleep(until):
        until = ctypes.c_int(left)
"""


def test_ctrl_c_asks_once_and_a_second_ends():
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert said.count("Ctrl-C again ends at once") == 2 and "Traceback" not in said


# In a terminal of its own, which becomes the one that it hears of.
IN_TERMINAL = """\
import fcntl, signal, sys, termios, time

from ddae.train.signals import Signals

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever began the tests
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signals = Signals()
with signals.listening():
    print("ready", flush=True)
    until = time.monotonic() + 30
    while not signals.stop_requested and time.monotonic() < until:
        time.sleep(0.01)
    print("a line of the log", flush=True)
print("stopped", file=sys.stderr)
sys.exit(75 if signals.stop_requested else 0)
"""


@pytest.mark.parametrize("output", ["terminal", "tee"])
def test_a_closed_terminal_asks_to_stop_and_is_printed_to_no_more(output):
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL],
        cwd=WORKER.parents[1],
        stdin=theirs,
        stdout=theirs if output == "terminal" else subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        reads = process.stdout.fileno() if process.stdout else ours
        assert os.read(reads, 5) == b"ready"
        if process.stdout:
            process.stdout.close()
        os.close(ours)
        assert process.wait(60) == 75


def test_a_file_is_printed_to_after_its_terminal_was_closed(tmp_path):
    path = tmp_path / "log"
    ours, theirs = os.openpty()
    with path.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL],
            cwd=WORKER.parents[1],
            stdin=theirs,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    os.close(theirs)
    until = time.monotonic() + 60
    while path.read_text() != "ready\n" and time.monotonic() < until:
        time.sleep(0.05)
    os.close(ours)
    assert process.wait(60) == 75
    assert path.read_text() == "ready\na line of the log\nstopped\n"


def test_a_run_under_nohup_is_not_asked_to_stop():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = cluster.Signals()
        with signals.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.stop_requested
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("error", [AssertionError(), MemoryError(), OSError("a\nb")])
def test_a_failure_without_words_ends_all_processes_too(tmp_path, monkeypatch, error):
    ended = []

    def fails(*_):
        raise error

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(cluster, "_end", ended.append)
    monkeypatch.setattr(cluster, "_attempt", "5a")
    assert cluster.run_to_end(fails, {}, str(tmp_path)) == 1 and ended == [1]
    said = (tmp_path / "first_failure.txt").read_text()
    assert type(error).__name__ in said and said.endswith("\nattempt 5a\n")
    # What another attempt says of itself is nothing to this one, nor is it removed.
    monkeypatch.setattr(cluster, "_attempt", "5b")
    assert cluster._word(str(tmp_path)) == ""
    cluster.note_failure(str(tmp_path), "a reason")
    cluster.note_failure(str(tmp_path), "a later one")
    assert cluster._word(str(tmp_path)) == "process 0: a reason"


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
GONE = OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/at/run/metrics.jsonl")


@pytest.mark.parametrize("error", [FULL, GONE], ids=["full", "gone"])
def test_a_workdir_that_fails_is_one_line(error, capsys):
    def fails(*_):
        raise error

    assert cluster.run_to_end(fails, {}, "/at/run") == 1
    mend = "give the same command again when /at/run can be written"
    assert capsys.readouterr().err == f"error: {error}; {mend}\n"


@pytest.mark.parametrize("workdir", ["/at/other", "/at/r"])
def test_a_file_elsewhere_that_is_gone_is_shown_with_its_place_in_the_code(workdir):
    def fails(*_):
        raise GONE

    with pytest.raises(FileNotFoundError):
        cluster.run_to_end(fails, {}, workdir)


def test_processes_with_other_configs_are_refused(photographs, tmp_path, monkeypatch):
    gathered = np.array([1, 1, 7], np.uint32)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda mine: gathered)
    with pytest.raises(UserError, match="process 2 of 3 has another config"):
        cluster.check_together({}, str(tmp_path))
    with pytest.raises(UserError, match="belong together"):
        cluster.start("auto", "localhost:1", None, 0, 1)


@pytest.mark.slow
def test_a_second_start_is_refused_and_leaves_the_first_alone(tmp_path):
    config = tiny_config(total_steps=60, checkpoint_every_steps=60, log_every_steps=1)
    first = Run(tmp_path, config, processes=2, devices=1)
    until = time.monotonic() + 120
    while not (first.workdir / "metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.1)
    second = Run(tmp_path, config, processes=2, devices=1)
    codes = second.wait()
    assert codes == [2, 2], second.said
    assert "another run is at work" in second.said[1].splitlines()[-1]
    assert first.wait() == [0, 0], first.said
    assert not (first.workdir / cluster.FAILURE).exists()


@pytest.mark.slow
def test_a_full_disk_in_one_process_ends_all_with_its_cause(tmp_path):
    config = tiny_config(total_steps=100_000, checkpoint_every_steps=10, mesh__fsdp=2)
    env = {"SHARDED": "256"}
    fault = "full:1:15"
    run = Run(tmp_path, config, processes=2, devices=1, fault=fault, env=env)
    assert run.wait(240) == [1, 1], run.said
    reasons = [said.splitlines()[-1].partition("error: ")[2] for said in run.said]
    assert reasons[0] == reasons[1]
    for said in run.said:
        last = said.splitlines()[-1]
        cause = "process 1: Failed to write .*: File too large; the last .* step 10$"
        assert re.match(f"first failure: process .: error: .*: {cause}", last)
        assert "Event loop is closed" not in said  # once for each array


@pytest.mark.slow
def test_a_full_disk_under_log_and_checkpoint_ends_all_soon(tmp_path):
    config = tiny_config(total_steps=100_000, checkpoint_every_steps=10, mesh__fsdp=2)
    fault, env = "full-log:0:15", {"SHARDED": "256"}
    run = Run(tmp_path, config, processes=2, devices=1, fault=fault, env=env)
    begun = time.monotonic()
    assert run.wait(240) == [1, 1], run.said
    assert time.monotonic() - begun < 200  # and not watchdog_seconds
    assert "No space left on device" in run.said[0].splitlines()[-1]


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    config = tiny_config(checkpoint_every_steps=2)
    run = Run(tmp_path_factory.mktemp("four"), config, processes=2, devices=1)
    assert run.wait() == [0, 0], run.said
    return run


def resumed(four_steps, folder, fault):
    """As `four_steps` goes on to step 6 with a fault."""
    shutil.copytree(four_steps.workdir, folder / "run")
    config = tiny_config(checkpoint_every_steps=2, total_steps=6)
    run = Run(folder, config, processes=2, devices=1, fault=fault)
    return run, run.wait()


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_checkpoint_that_one_process_sees_late_is_waited_for(
    four_steps, tmp_path, process
):
    run, codes = resumed(four_steps, tmp_path, f"late:{process}:4")
    assert codes == [0, 0] and "resuming at step 4" in run.said[0], run.said


@pytest.mark.slow
def test_a_checkpoint_that_one_process_never_sees_is_refused_by_all(
    four_steps, tmp_path
):
    said = "error: process 1 of 2 does not see step 4 in "
    run, codes = resumed(four_steps, tmp_path / "resumed", "blind:1:4")
    assert codes == [2, 2] and all(said in text for text in run.said), run.said
    init = {"workdir": str(four_steps.workdir)}
    fault = "blind:1:4"
    run = Run(tmp_path / "begun", tiny_config(init=init), 2, devices=1, fault=fault)
    assert run.wait() == [2, 2] and all(said in text for text in run.said), run.said


@pytest.mark.slow
def test_a_checksum_that_differs_in_one_process_sends_all_to_the_step_before(
    four_steps, tmp_path
):
    run, codes = resumed(four_steps, tmp_path, "flip:1:4")
    assert codes == [0, 0] and "resuming at step 2" in run.said[0], run.said
    assert "damaged checkpoint: process 1: " in run.said[0]


@pytest.mark.slow
def test_an_evaluation_of_other_images_in_one_process_is_refused_by_all(
    photographs, tmp_path
):
    config = config_of(photographs, total_steps=0, evaluators={"knn": {"k": 3}})
    config["data"]["on_error"] = "skip"
    run = Run(tmp_path, config, processes=2, devices=2, fault="unread:1:5")
    assert run.wait() == [2, 2], run.said
    assert "have read different images" in run.said[0].splitlines()[-1]


@pytest.mark.slow
def test_damage_that_one_process_meets_is_damage_for_all(tmp_path):
    config = tiny_config(checkpoint_every_steps=2, mesh__fsdp=2)
    env = {"SHARDED": "256"}
    first = Run(tmp_path, config, processes=2, devices=1, env=env)
    assert first.wait() == [0, 0], first.said
    folder = first.workdir / "checkpoints" / "4" / "params" / "ocdbt.process_1" / "d"
    for file in folder.iterdir():
        os.truncate(file, 10)
    config["total_steps"] = 6
    again = Run(tmp_path, config, processes=2, devices=1, env=env)
    assert again.wait() == [0, 0], again.said
    assert re.search("damaged checkpoint: process 1: .*4, array .*: ", again.said[0])
    assert "resuming at step 2" in again.said[0]
    assert "Event loop is closed" not in again.said[1]  # once for each array
    assert (again.workdir / "damaged_checkpoints" / "4").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("other", ["workdir", "data"])
def test_all_processes_have_one_workdir_and_the_same_data(other, tmp_path, monkeypatch):
    """The second process runs in a folder of its own, and paths are relative."""
    for name, count in (("a", 32), ("b", 32 if other == "workdir" else 16)):
        for split in ("train", "test"):
            (tmp_path / name / "data").mkdir(parents=True, exist_ok=True)
            images = np.zeros((count, 8, 8, 1), np.uint8)
            path = tmp_path / name / "data" / f"{split}.npz"
            np.savez(path, images=images, labels=np.arange(count) % 2)
    config = tiny_config(data__name="npz", data__dir="data", mesh__fsdp=1)
    start = subprocess.Popen
    folders = iter("ab")

    def popen(command, **given):
        if other == "workdir":
            command[3] = "run"
        return start(command, cwd=tmp_path / next(folders), **given)

    monkeypatch.setattr(subprocess, "Popen", popen)
    run = Run(tmp_path / "one", config, processes=2, devices=1)
    assert run.wait() == [2, 2], run.said
    says = {"workdir": "of its own; it must be one folder", "data": "has other data"}
    assert f"process 1 of 2 has {'a' if other == 'workdir' else ''}" in run.said[0]
    assert says[other] in run.said[0] and says[other] in run.said[1]
