"""The script of docs/gpu.md for SLURM, beside an srun and an scontrol that are none."""

import os
import pathlib
import re
import subprocess

import pytest

DOC = pathlib.Path(__file__).parents[1] / "docs" / "gpu.md"
(SCRIPT,) = re.findall(r"```sh\n(#!/bin/bash\n.+?)```", DOC.read_text(), re.S)

SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
read -r code < "$CODES"
sed -i 1d "$CODES"
exit "$code"
"""
SCONTROL = '#!/bin/bash\necho "scontrol $*" >> "$CALLS"\n'


def ran(folder, codes):
    """(exit code, what was called) where train.py ends with `codes`, one a start."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "script").write_text(SCRIPT)
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "CODES": str(folder / "codes"),
        "SLURM_CPUS_PER_TASK": "12",
        "SLURM_JOB_ID": "7",
    }
    found = subprocess.run(
        ["bash", folder / "script"], env=environment, timeout=60, check=False
    )
    calls = (folder / "calls").read_text().splitlines()
    return found.returncode, [call.split()[0] for call in calls], calls


@pytest.mark.parametrize("code", [0, 2, 3])
def test_what_another_start_would_not_mend_ends_the_job(tmp_path, code):
    assert ran(tmp_path, [code])[:2] == (code, ["srun"])


@pytest.mark.parametrize("code", [75, 143])
def test_a_run_that_was_preempted_is_queued_again(tmp_path, code):
    found, names, calls = ran(tmp_path, [code])
    assert (found, names) == (code, ["srun", "scontrol"])
    assert calls[1] == "scontrol requeue 7"
    assert "--cpus-per-task=12 python train.py --distributed=on --config=" in calls[0]


def test_a_crash_starts_it_again_three_times(tmp_path):
    assert ran(tmp_path, [1, 137, 1, 1])[:2] == (1, ["srun"] * 4)


def test_a_run_goes_on_after_a_crash(tmp_path):
    assert ran(tmp_path, [1, 75])[:2] == (75, ["srun", "srun", "scontrol"])
