"""launch_tpu.sh against a fake gcloud, whose workers are folders of this machine."""

import contextlib
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "launch_tpu.sh"
TPU = ["--name=tpu", "--zone=z"]
ARGUMENTS = ["--config=configs/x.py", "--workdir=gs://bucket/run"]

# Notes its arguments; then does what the plan says of this attempt: an exit code (one
# for all workers or a list), "preempt" or "vanish" (the TPU is taken away while it
# trains), "wait" (until the file `go` is there), or "save" (wait for SIGTERM, and end
# with 75).
TRAIN = """\
import json, os, pathlib, signal, sys, time

root, home = pathlib.Path(os.environ["FAKE_GCLOUD"]), pathlib.Path(os.environ["HOME"])
worker = int(home.name[-1])
with open(root / f"argv-{worker}.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
attempt = len((root / f"argv-{worker}.jsonl").read_text().splitlines())
print(f"attempt {attempt} trains", flush=True)
does = json.loads((root / "plan.json").read_text())["train"][attempt - 1]
does = does[worker] if isinstance(does, list) else does
end = time.monotonic() + 20
if does == "save":
    signal.signal(signal.SIGTERM, lambda *_: time.sleep(0.2) or sys.exit(75))
print("en", end="", flush=True)
if does in ("preempt", "vanish") and worker == 0:
    state = json.loads((root / "state.json").read_text()) | {"tpu-vm": "PREEMPTED"}
    if does == "vanish":
        del state["tpu-vm"]
    (root / "part").write_text(json.dumps(state))
    (root / "part").replace(root / "state.json")
while isinstance(does, str) and time.monotonic() < end:
    if does == "wait" and (root / "go").exists():
        does = 0
    time.sleep(0.02)
print("ds", flush=True)
sys.exit(does)
"""

STUBS = {
    "hostname": "#!/bin/bash\nbasename ~\n",
    # `python3.12 -m venv DIR`: its python installs nothing and runs train.py.
    "python3.12": f"""\
#!/bin/bash
mkdir -p "$3/bin"
cat >"$3/bin/python" <<'END'
#!/bin/bash
[[ $1 != -m ]] || {{ echo "$@" >>~/pip.log; exit; }}
exec {shlex.quote(sys.executable)} -S "$@"
END
chmod +x "$3/bin/python"
""",
    "python3.13": '#!/bin/bash\nexec python3.12 "$@"\n',
}


class Cloud:
    """A folder with a checkout to launch from, a gcloud, and what that recorded."""

    def __init__(self, folder):
        self.folder, self.checkout = folder, folder / "checkout"

    def fill(self):
        (self.folder / "bin").mkdir(parents=True)
        for name, text in STUBS.items():
            (self.folder / "bin" / name).write_text(text)
        shutil.copy(ROOT / "tests" / "fake_gcloud", self.folder / "bin" / "gcloud")
        for path in (self.folder / "bin").iterdir():
            path.chmod(0o755)
        self.checkout.mkdir()
        shutil.copy(SCRIPT, self.checkout)
        (self.checkout / "train.py").write_text(TRAIN)
        git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
            subprocess.run([*git, *words], cwd=self.checkout, check=True)
        self.plan(train=[0])

    def plan(self, **parts):
        (self.folder / "plan.json").write_text(json.dumps(parts))

    def start(self, command, *arguments, pause="0.02"):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        given = {"PATH": path, "FAKE_GCLOUD": str(self.folder)}
        return subprocess.Popen(
            ["bash", str(self.checkout / "launch_tpu.sh"), command, *arguments],
            env=os.environ | given | {"LAUNCH_TPU_PAUSE": pause},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def launch(self, command, *arguments, pause="0.02"):
        """(exit code, stdout, stderr)."""
        with self.start(command, *arguments, pause=pause) as process:
            return self.end(process)

    def end(self, process):
        """(exit code, stdout, stderr) of a launch."""
        try:
            out, err = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, out, err

    def calls(self, *words):
        """The gcloud calls so far that have all these words."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [c for c in calls if set(words) <= set(c)]

    def attempts(self, worker=0):
        """The arguments of train.py, once for each time it was started."""
        path = self.folder / f"argv-{worker}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def kill(self, worker, sent=signal.SIGKILL):
        """Kills train.py on a worker, and what would have noted its exit code; or
        sends both another signal."""
        home = self.folder / f"worker-{worker}" / "ddae"
        with contextlib.suppress(OSError, ValueError):
            process = int((home / "run/pid").read_text())
            if os.readlink(f"/proc/{process}/cwd") == str(home / "code"):
                os.killpg(os.getpgid(process), sent)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folders to copy: with no TPU, and with one that is ready and set up."""
    folder = tmp_path_factory.mktemp("prepared")
    Cloud(folder / "empty").fill()
    shutil.copytree(folder / "empty", folder / "ready")
    for command in ("create", "setup"):
        assert Cloud(folder / "ready").launch(command, *TPU)[0] == 0
    return folder


@contextlib.contextmanager
def copied(source, folder):
    cloud = Cloud(shutil.copytree(source, folder / "cloud"))
    yield cloud
    for worker in range(2):
        cloud.kill(worker)


@pytest.fixture
def cloud(prepared, tmp_path):
    """No TPU yet."""
    with copied(prepared / "empty", tmp_path) as cloud:
        yield cloud


@pytest.fixture
def tpu(prepared, tmp_path):
    """A TPU that is ready and set up."""
    with copied(prepared / "ready", tmp_path) as cloud:
        yield cloud


# ---- Arguments.


def test_shellcheck_has_no_remarks():
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_help_names_every_command_flag_and_exit_code():
    done = subprocess.run(["bash", SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    words = (
        "create setup run retry status logs delete --type --runtime --project --spot"
    )
    words += " --queued --wait --restarts --worker --follow --dry-run"
    words += " LAUNCH_TPU_PAUSE LAUNCH_TPU_HOUR"
    for word in words.split():
        assert word in done.stdout, word
    codes = done.stdout.partition("exit codes")[2]
    assert [line.split()[0] for line in codes.splitlines() if line[2:3].isdigit()] == [
        "0",
        "1",
        "2",
        "3",
        "75",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "--zone=z"], "--name is missing"),
        (["create", "--name=tpu"], "--zone is missing"),
        (["create", *TPU, "--tpye=v4-8"], "unknown flag '--tpye=v4-8'"),
        (["create", *TPU, "v4-8"], "unknown flag 'v4-8'"),
        (["create", "--name=-x", "--zone=z"], "--name=-x"),
        (["create", *TPU, "--wait=soon"], "are numbers"),
        (["create", *TPU, "--wait=08"], "are numbers"),
        (["create", *TPU, "--restarts="], "are numbers"),
        (["fly", *TPU], "unknown command 'fly'"),
        (["run", *TPU], "nothing to run"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(cloud, words, said):
    code, out, err = cloud.launch(*words)
    assert code == 2 and said in err and len(err.splitlines()) == 1 and not out
    assert not cloud.calls()


CREATE = "tpu-vm create tpu --accelerator-type=v4-128 --version=tpu-ubuntu2204-base"
DESCRIBE = "tpu-vm describe tpu --format=value(state)"
TYPE = "tpu-vm describe tpu --format=value(acceleratorType)"
SSH = "tpu-vm ssh tpu --worker=all --command="
DRY_RUNS = {
    "create": [DESCRIBE, CREATE],
    "setup": ["tpu-vm scp ", SSH + "rm -rf ddae/new "],
    "run": [TYPE, SSH + "bash ", SSH + "bash ", "tpu-vm ssh tpu --worker=0 "],
    "status": ["tpu-vm describe tpu --format=value(state,", SSH + "bash "],
    "logs": ["tpu-vm ssh tpu --worker=0 --command=tail -n 100 ddae/run/log "],
    "delete": ["queued-resources delete tpu --force ", "tpu-vm delete tpu "],
}
DRY_RUNS["retry"] = (
    DRY_RUNS["create"] + [SSH + "bash "] + DRY_RUNS["setup"] + DRY_RUNS["run"][1:]
)


@pytest.mark.parametrize("command", DRY_RUNS)
def test_dry_run_prints_the_commands_one_a_line_and_runs_none(cloud, command):
    flags = [*TPU, "--project=p", "--dry-run"]
    code, out, _ = cloud.launch(command, *flags, "--", *ARGUMENTS)
    assert code == 0 and not cloud.calls()
    lines = [" ".join(shlex.split(line)) for line in out.splitlines()]
    assert len(lines) == len(DRY_RUNS[command])
    for line, begins in zip(lines, DRY_RUNS[command], strict=True):
        assert line.startswith(f"gcloud compute tpus {begins}"), line
        assert line.endswith(" --zone=z --quiet --project=p")


def test_a_dry_run_prints_what_a_run_does(tpu):
    flags = ["run", *TPU]
    _, out, _ = tpu.launch(*flags, "--dry-run", "--", *ARGUMENTS, "--x=(1, 'b')")
    before = len(tpu.calls())
    assert tpu.launch(*flags, "--", *ARGUMENTS, "--x=(1, 'b')")[0] == 0

    def untagged(call):
        return [w if i != 4 else w[:50] for i, w in enumerate(call)]

    printed = [shlex.split(line)[1:] for line in out.splitlines()]
    done = tpu.calls()[before:]
    assert printed[0] == done[0]
    for words, real in zip(printed[1], done[1], strict=True):
        if words.startswith("--command="):  # all but the tag of the attempt
            words, real = (shlex.split(w) for w in (words, real))
            assert words[:4] + words[5:] == real[:4] + real[5:]
        else:
            assert words == real


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_the_software_goes_by_the_type(cloud, kind, runtime):
    flags = [*TPU, f"--type={kind}", "--dry-run"]
    assert f"--version={runtime} " in cloud.launch("create", *flags)[1]
    _, out, _ = cloud.launch("create", *flags, "--runtime=mine", "--queued", "--spot")
    assert " --runtime-version=mine --spot " in out and " --node-id=tpu " in out


def test_a_workdir_on_one_host_of_several_is_warned_of(cloud):
    for kind, workdir, warned in [
        ("v4-128", "--workdir=/mnt/x", True),
        ("v4-128", "--workdir=gs://b/x", False),
        ("v4-8", "--workdir=/mnt/x", False),
    ]:
        flags = [*TPU, f"--type={kind}"]
        _, _, err = cloud.launch("run", *flags, "--", "--config=c", workdir)
        assert ("not on gs://" in err) == warned


@pytest.mark.parametrize("workdir", [["--workdir=runs/x"], ["--workdir", "x"]])
@pytest.mark.parametrize("command", ["run", "retry"])
def test_a_workdir_in_the_code_that_setup_replaces_is_refused(cloud, command, workdir):
    flags = [*TPU, "--type=v4-8", "--", *workdir, "--config=c"]
    code, _, err = cloud.launch(command, *flags)
    assert code == 2 and "would lie in the code, which setup replaces" in err
    assert "gs://BUCKET/FOLDER" in err


# ---- Making and deleting.


def test_create_waits_for_a_queued_resource_a_line_a_poll(cloud):
    cloud.plan(queued=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    code, _, err = cloud.launch("create", *TPU, "--queued")
    assert code == 0
    said = [line.split(": ")[-1] for line in err.splitlines()]
    assert said == ["NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "READY"]


def test_create_gives_up_on_a_queue_after_its_time(cloud):
    cloud.plan(queued=["WAITING_FOR_RESOURCES"])
    code, _, err = cloud.launch("create", *TPU, "--queued", "--wait=0")
    assert code == 75 and "gave up after 0 s" in err


def test_create_ends_at_once_without_capacity(cloud):
    cloud.plan(create=["capacity"])
    code, _, err = cloud.launch("create", *TPU)
    assert code == 75 and "no more capacity" in err
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize("error", ["denied", "unknown_type", "no_quota"])
@pytest.mark.parametrize("command", ["create", "retry"])
def test_what_waiting_does_not_mend_ends_at_once(cloud, command, error):
    cloud.plan(create=[error])
    code, _, err = cloud.launch(command, *TPU, "--", *ARGUMENTS)
    assert code == 1 and len(cloud.calls("create")) == 1
    said = {"denied": "tpu.nodes.create", "unknown_type": "v9-8", "no_quota": "TPUV4"}
    assert said[error] in err


def test_without_a_project_nothing_is_asked_for_twice(cloud):
    cloud.plan(describe=["no_project"] * 9)
    code, _, err = cloud.launch("create", *TPU)
    assert code == 1 and "attribute [project]" in err
    assert not cloud.calls("create") and len(cloud.calls("describe")) <= 2


def test_retry_waits_for_capacity(cloud):
    cloud.plan(create=["capacity", "quota", "ok"], train=[0])
    code, out, err = cloud.launch("retry", *TPU, "--", *ARGUMENTS)
    assert code == 0 and "attempt 1 trains" in out
    assert len(cloud.calls("create")) == 3
    assert "asking again in 60 s" in err and "asking again in 120 s" in err
    assert "paid for until it is deleted" in err


def test_retry_gives_up_after_its_time(cloud):
    cloud.plan(create=["capacity"] * 9)
    code, _, err = cloud.launch("retry", *TPU, "--wait=0", "--", *ARGUMENTS)
    assert code == 75 and "gave up" in err and len(cloud.calls("create")) == 1


def test_a_queued_resource_that_failed_is_deleted_and_asked_for_again(cloud):
    cloud.plan(queued=["FAILED", "RESOURCE_EXHAUSTED: later", "ACTIVE"], train=[0])
    code, _, err = cloud.launch("retry", *TPU, "--queued", "--", *ARGUMENTS)
    assert code == 0 and "RESOURCE_EXHAUSTED: later" in err
    assert len(cloud.calls("create", "queued-resources")) == 2
    assert len(cloud.calls("delete", "queued-resources", "--force")) == 1


def test_a_tpu_of_another_type_is_refused(tpu):
    for command in ("create", "run", "retry"):
        code, _, err = tpu.launch(command, *TPU, "--type=v4-8", "--", *ARGUMENTS)
        assert code == 2 and "tpu is a v4-128, and --type says v4-8" in err
    assert not tpu.attempts()


def test_delete_takes_the_queued_resource_too_and_minds_nothing_missing(cloud):
    assert cloud.launch("create", *TPU, "--queued")[0] == 0
    for _ in range(2):
        code, _, err = cloud.launch("delete", *TPU)
        assert code == 0 and not err
    assert json.loads((cloud.folder / "state.json").read_text()) == {"type": "v4-128"}


# ---- Setting up.


def test_setup_copies_the_commit_to_every_worker_and_installs_it(cloud):
    assert cloud.launch("create", *TPU)[0] == 0
    (cloud.checkout / "train.py").write_text("not committed")
    cloud.plan(scp=["refused", "ok"], ssh=["refused", "ok"])
    code, _, err = cloud.launch("setup", *TPU)
    assert code == 0 and "not committed are not copied" in err
    assert err.count("try 1 of 5") == 2 and "try 2" not in err
    for worker in ("worker-0", "worker-1"):
        home = cloud.folder / worker
        assert (home / "ddae/code/train.py").read_text() == TRAIN
        assert "install --quiet ./code[tpu]" in (home / "pip.log").read_text()


def test_setup_gives_up_after_five_refusals(cloud):
    assert cloud.launch("create", *TPU)[0] == 0
    cloud.plan(scp=["refused"] * 9)
    code, _, err = cloud.launch("setup", *TPU)
    assert code == 1 and "Connection refused" in err
    assert len(cloud.calls("scp")) == 5


def test_a_run_without_setup_says_so(cloud):
    assert cloud.launch("create", *TPU)[0] == 0
    code, _, err = cloud.launch("run", *TPU, "--", *ARGUMENTS)
    assert code == 2 and "setup comes first" in err


# ---- Running.


def test_arguments_reach_train_py_on_every_worker_as_they_are(tpu):
    given = [
        *ARGUMENTS,
        "--config.method.taps=(4,6)",
        "two  words and ' \" quotes",
        "; rm -rf ~/ddae",
        "$(touch ran) `touch ran` $HOME \\ * ~ & | > ran",
        "a\nnew line\tand a tab ",
        "",
        "ä€",
    ]
    assert tpu.launch("run", *TPU, "--", *given)[0] == 0
    assert tpu.attempts(0) == tpu.attempts(1) == [given]
    assert not list(tpu.folder.rglob("ran"))


def test_run_follows_the_log_and_ends_with_train_py(tpu):
    code, out, _ = tpu.launch("run", *TPU, "--", *ARGUMENTS)
    assert code == 0 and out.splitlines() == ["attempt 1 trains", "ends"]
    assert tpu.launch("logs", *TPU)[1] == out
    code, out, _ = tpu.launch("status", *TPU)
    assert code == 0 and out.splitlines() == [
        "TPU: READY HEALTHY v4-128",
        "worker worker-0 exit 0",
        "worker worker-1 exit 0",
    ]


def test_75_and_143_are_run_again_at_once_without_limit(tpu):
    tpu.plan(train=[75, 143, [143, 75], [0, 75], 0])
    code, out, _ = tpu.launch("run", *TPU, "--restarts=0", "--", *ARGUMENTS)
    assert code == 0 and out.count("trains") == 5 == len(tpu.attempts(1))


@pytest.mark.parametrize("code", [2, 3])
def test_2_and_3_are_returned_and_not_retried(tpu, code):
    tpu.plan(train=[code, 0])
    assert tpu.launch("run", *TPU, "--", *ARGUMENTS)[0] == code
    assert len(tpu.attempts()) == 1


def test_a_crash_is_retried_up_to_the_limit(tpu):
    tpu.plan(train=[1, 134, 1, 0])
    assert tpu.launch("run", *TPU, "--restarts=2", "--", *ARGUMENTS)[0] == 1
    assert len(tpu.attempts()) == 3
    tpu.plan(train=[None] * 3 + [1, 0])
    assert tpu.launch("run", *TPU, "--restarts=2", "--", *ARGUMENTS)[0] == 0


def test_a_crash_after_an_hour_of_work_is_a_first_one(tpu, monkeypatch):
    monkeypatch.setenv("LAUNCH_TPU_HOUR", "0")
    tpu.plan(train=[1, 1, 1, 0])
    code, _, err = tpu.launch("run", *TPU, "--restarts=1", "--", *ARGUMENTS)
    assert code == 0 and err.count("crash 1; again") == 3
    tpu.plan(train=[None] * 4 + [1, 0])
    assert tpu.launch("run", *TPU, "--restarts=0", "--", *ARGUMENTS)[0] == 1


@pytest.mark.parametrize(
    ("codes", "code"),
    [([1, 2], 2), ([3, 1], 3), ([75, 1], 1), ([143, 1], 1), ([0, 1], 1)],
)
def test_where_workers_differ_the_cause_wins(tpu, codes, code):
    tpu.plan(train=[codes])
    assert tpu.launch("run", *TPU, "--restarts=0", "--", *ARGUMENTS)[0] == code


def test_a_worker_that_was_killed_counts_as_a_crash(tpu):
    tpu.plan(train=["wait", 0])
    with tpu.start("run", *TPU, "--", *ARGUMENTS) as process:
        while not tpu.attempts(1):
            time.sleep(0.01)
        tpu.kill(1)
        (tpu.folder / "go").touch()
        code, _, err = tpu.end(process)
    assert code == 0 and "worker-1 exit unknown" in err
    assert len(tpu.attempts()) == 2


@pytest.mark.parametrize(("does", "noted"), [("save", 75), ("wait", 143)])
def test_sigterm_to_all_of_a_worker_is_no_crash(tpu, does, noted):
    """143: train.py did not listen yet."""
    tpu.plan(train=[does, 0])
    with tpu.start("run", *TPU, "--restarts=0", "--", *ARGUMENTS) as process:
        for worker in range(2):
            log = tpu.folder / f"worker-{worker}/ddae/run/log"
            while not log.exists() or not log.read_text().endswith("\nen"):
                time.sleep(0.01)
        for worker in range(2):
            tpu.kill(worker, signal.SIGTERM)
        code, _, err = tpu.end(process)
    assert f"worker-0 exit {noted};worker worker-1 exit {noted}\n" in err
    assert code == 0 and len(tpu.attempts(0)) == len(tpu.attempts(1)) == 2


@pytest.mark.parametrize("command", ["run", "retry"])
def test_a_launcher_that_was_killed_ends_nothing_and_can_follow_again(tpu, command):
    tpu.plan(train=["wait"])
    with tpu.start("run", *TPU, "--", *ARGUMENTS) as process:
        assert process.stdout.readline() == "attempt 1 trains\n"
        os.killpg(process.pid, signal.SIGKILL)
    code, out, _ = tpu.launch("status", *TPU)
    assert code == 0 and out.count(" running") == 2
    code, _, err = tpu.launch("setup", *TPU)
    assert code == 2 and "its code is left as it is" in err
    with tpu.start(command, *TPU, "--", *ARGUMENTS) as process:
        assert process.stdout.readline() == "attempt 1 trains\n"
        (tpu.folder / "go").touch()
        code, out, err = tpu.end(process)
    assert code == 0 and out == "ends\n" and "at work already" in err
    assert len(tpu.attempts(0)) == len(tpu.attempts(1)) == 1


def test_retry_follows_what_is_at_work_though_an_ssh_is_refused(tpu):
    tpu.plan(train=["wait"])
    with tpu.start("run", *TPU, "--", *ARGUMENTS) as process:
        assert process.stdout.readline() == "attempt 1 trains\n"
        os.killpg(process.pid, signal.SIGKILL)
    tpu.plan(train=["wait"], ssh=["refused"])
    with tpu.start("retry", *TPU, "--", *ARGUMENTS) as process:
        assert process.stdout.readline() == "attempt 1 trains\n"
        (tpu.folder / "go").touch()
        code, out, _ = tpu.end(process)
    assert code == 0 and out == "ends\n" and len(tpu.attempts()) == 1


def test_a_download_of_pips_that_stops_is_tried_again(cloud):
    """pip ends with 2 then, which of ours means wrong arguments."""
    assert cloud.launch("create", *TPU)[0] == 0
    stub = cloud.folder / "bin" / "python3.12"
    once = "[[ -e ~/failed ]] || { touch ~/failed; exit 2; }; exit; }"
    text = stub.read_text().replace("exit; }", once)
    assert once in text
    stub.write_text(text)
    code, _, err = cloud.launch("setup", *TPU)
    assert code == 0 and "try 1 of 5" in err and "installed on every worker" in err


def test_a_start_whose_ssh_was_lost_starts_once(tpu):
    tpu.plan(train=[0], ssh=["lost", "ok", "refused", "refused"])
    code, out, err = tpu.launch("run", *TPU, "--", *ARGUMENTS)
    assert code == 0 and "no answer from the workers: ERROR: (gcloud) ssh:" in err
    assert out.count("trains") == 1 == len(tpu.attempts(1))


def test_what_is_typed_is_not_for_the_workers(tpu):
    """A terminal stops a job in the background that reads from it."""
    path = f"{tpu.folder / 'bin'}:{os.environ['PATH']}"
    found = subprocess.run(
        ["bash", "-c", f"bash launch_tpu.sh status {shlex.join(TPU)} && cat"],
        cwd=tpu.checkout,
        env=os.environ | {"PATH": path, "FAKE_GCLOUD": str(tpu.folder)},
        input="typed\n",
        capture_output=True,
        text=True,
    )
    assert found.stdout.splitlines()[-2:] == ["worker worker-1 none", "typed"]


@pytest.mark.parametrize(
    ("refused", "last"), [(1, ["attempt 1 trains", "ends"]), (3, [])]
)
def test_the_last_lines_of_the_log_are_asked_for_again(tpu, refused, last):
    tpu.plan(train=[2], ssh=["lost", "ok", "ok"] + ["refused"] * refused)
    code, out, err = tpu.launch("run", *TPU, "--", *ARGUMENTS)
    assert code == 2 and out.splitlines() == last
    assert err.count("no log, try") == refused
    assert len(tpu.calls("ssh", "--worker=0")) == min(refused + 1, 3)


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        (["--spot"], "preempt"),
        (["--queued"], "vanish"),
        (["--spot", "--queued"], "preempt"),
    ],
)
def test_a_preempted_tpu_is_made_again_set_up_and_run(cloud, flags, how):
    assert cloud.launch("create", *TPU, *flags)[0] == 0
    assert cloud.launch("setup", *TPU, *flags)[0] == 0
    cloud.plan(train=[how, 0], create=["capacity", "ok"])
    code, out, err = cloud.launch("run", *TPU, *flags, "--", *ARGUMENTS)
    assert code == 0 and "attempt 2 trains" in out and "tpu is no more" in err
    assert len(cloud.calls("create")) == 3 and len(cloud.calls("scp")) == 2
    assert cloud.attempts(0) == cloud.attempts(1) == [ARGUMENTS] * 2


@pytest.mark.parametrize("how", ["preempt", "vanish"])
def test_a_lost_tpu_that_was_not_to_be_lost_is_left_to_its_owner(tpu, how):
    tpu.plan(train=[how])
    code, _, err = tpu.launch("run", *TPU, "--", *ARGUMENTS)
    assert code == 75 and "tpu is no more" in err
    assert len(tpu.calls("create")) == 1 and not tpu.calls("delete")


def test_retry_makes_any_lost_tpu_again(cloud):
    cloud.plan(train=["preempt", 0])
    assert cloud.launch("retry", *TPU, "--", *ARGUMENTS)[0] == 0
    assert len(cloud.calls("create")) == 2
