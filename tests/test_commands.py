"""What all commands have in common."""

import errno
import os
import subprocess
import sys

import pytest

from ddae import commands
from ddae.settings import UserError


def test_the_tilde_of_a_flag_is_the_home_that_a_shell_did_not_see(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--workdir=~/runs/a", "--set", "data.dir=~", "~", "--config.a=b~/c=~"]
    found = commands.at_home(given)
    assert found[:3] == ["--workdir=/home/me/runs/a", "--set", "data.dir=/home/me"]
    assert found[3:] == given[3:]


def test_a_size_is_a_square_or_height_and_width(capsys):
    made = commands.parser("ddae.name", None)
    made.add_argument("--size", type=commands.size)
    sizes = [made.parse_args([f"--size={x}"]).size for x in ("8", "8,16", "(8,16)")]
    assert sizes == [(8, 8), (8, 16), (8, 16)]
    for wrong in ("0", "8,-1", "1,2,3", "8x8"):
        with pytest.raises(SystemExit):
            made.parse_args([f"--size={wrong}"])
        assert f"--size: {wrong} is no size" in capsys.readouterr().err


def parser():
    made = commands.parser("ddae.name", "What it does.")
    made.add_argument("--out", default="")
    return made


def test_a_command_ends_with_its_own_code_or_with_0(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = []

    def work(args):
        given.append(args.out)
        return 75 if len(given) == 2 else None

    codes = [commands.run(work, parser(), ["--out=~/x"]) for _ in range(2)]
    assert codes == [0, 75] and given[0] == "/home/me/x"


@pytest.mark.parametrize("error", [UserError("a\n b"), OSError("a b")])
def test_what_is_wrong_with_what_was_given_is_one_line(error, capsys):
    def fails(args):
        raise error

    assert commands.run(fails, parser(), []) == 2
    assert capsys.readouterr().err == "error: a b\n"


def test_keys_of_a_config_are_called_as_the_flags_of_a_command():
    made = parser()
    for name in ("--channels", "--dir"):
        made.add_argument(name)
    made.add_argument("workdir")
    said = "set config.data.dir, config.model.channels=3 or config.data.dirs"
    told = "set --dir, --channels=3 or config.data.dirs"
    assert commands.in_flags(said, made) == told
    flag = "give --config.data.dir=..."  # as a config's keys are given to train.py
    assert commands.in_flags(flag, made) == "give --dir=..."
    others = "config.init.workdir, config.eval.dir"  # no flag; no key of data
    assert commands.in_flags(others, made) == others


@pytest.mark.parametrize("flag, key", [("data", "on_error"), ("set", "data.on_error")])
def test_a_flag_that_takes_keys_is_named_with_the_key(flag, key):
    made = parser()
    made.add_argument(f"--{flag}", action="append", metavar="KEY=VALUE")
    said = "pass over it with --config.data.on_error=skip; config.data has no such key"
    told = f"pass over it with --{flag} {key}=skip; config.data has no such key"
    assert commands.in_flags(said, made) == told


def test_a_full_disk_is_not_what_was_given(capsys):
    def fails(args):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert commands.run(fails, parser(), []) == 1
    assert "No space left" in capsys.readouterr().err


def test_a_file_is_there_when_all_of_it_is_written(tmp_path):
    path = tmp_path / "out.npz"
    with pytest.raises(OSError, match="full"), commands.whole(str(path)) as file:
        file.write(b"a part")
        raise OSError("the disk is full")
    assert not list(tmp_path.iterdir())
    with commands.whole(str(path)) as file:
        file.write(b"all")
        assert not path.exists()
    assert [x.name for x in tmp_path.iterdir()] == ["out.npz"]
    assert path.read_bytes() == b"all"
    with pytest.raises(UserError, match="out.npz cannot be written: there is no fo"):
        with commands.whole(str(tmp_path / "none" / "out.npz")):
            pass


def test_who_reads_no_further_is_told_nothing():
    code = "from ddae.commands import parser, run; import sys;"
    code += "sys.exit(run(lambda args: print('x' * 10**6), parser('a', ''), []))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as started:
        started.stdout.close()
        assert started.stderr.read() == b"" and started.wait() == 1


@pytest.mark.parametrize("before, after", [(None, "3"), ("1", "3"), ("0", "0")])
def test_tensorflow_is_quiet_though_jax_was_imported_first(monkeypatch, before, after):
    """jax sets 1 where nothing is set."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", before or "")
    if before is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    monkeypatch.delenv("GCS_READ_CACHE_BLOCK_SIZE_MB", raising=False)
    commands.before_tensorflow()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == after
    assert os.environ["GCS_READ_CACHE_BLOCK_SIZE_MB"] == "1"
