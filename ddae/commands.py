"""What all commands of this package have in common: `python -m ddae.NAME`."""

import argparse
import ast
import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from ddae.settings import UserError
from ddae.storage import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)


def literal(text: str) -> Any:
    """A number, a tuple, True, None and so on as Python writes them; any other text as
    it is."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Of the module `name`, whose docstring `text` is its help."""
    return argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def size(text: str) -> tuple[int, int]:
    """(height, width) of a flag that has both, or one number; a `type` of argparse."""
    sides = re.fullmatch(r"\(?([1-9]\d*)(?:, *([1-9]\d*))?\)?", text)
    if sides is None:
        raise argparse.ArgumentTypeError(
            f"{text} is no size; give SIDE or HEIGHT,WIDTH"
        )
    return int(sides[1]), int(sides[2] or sides[1])


def run(
    function: Callable[[Any], int | None],
    made: argparse.ArgumentParser,
    argv: list[str] | None,
) -> int:
    """Calls `function` with the arguments as `made` reads them (None: the command
    line's); returns the exit code: its own, 0 for None, 2 after one line that says what
    is wrong with what was given, 1 for a full disk or one that may be well again, or
    where nobody reads on, as behind `| head`."""
    before_tensorflow()
    args = made.parse_args(at_home(sys.argv[1:] if argv is None else argv))
    try:
        return function(args) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, StorageError, OSError) as error:
        said = in_flags(" ".join(str(error).split()), made)
        print(f"error: {said}", file=sys.stderr)
        passing = isinstance(error, StorageError)
        return 1 if passing or getattr(error, "errno", 0) in FULL else 2


def in_flags(said: str, made: argparse.ArgumentParser) -> str:
    """What was `said` of a config's keys, of the flags of `made` where it has them."""
    usage = made.format_usage()
    for flag, keys in (("data", "data."), ("set", "")):  # that take any key of these
        if f"--{flag} KEY=VALUE" in usage:
            said = said.replace(f"--config.{keys}", f"--{flag} ")
    flags = re.findall(r"(?<=--)\w+\b(?! KEY=)", usage)
    return re.sub(
        r"(?:--|\b)config\.(?:data\.|model\.)?(\w+)",
        lambda key: f"--{key[1]}" if key[1] in flags else key[0],
        said,
    )


def before_tensorflow() -> None:
    """Sets what TensorFlow reads when it is imported: it prints no notices (oneDNN's is
    its own, and goes with it), and of a bucket's object it fetches 1 MB where it is
    asked for a record, not 64."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # jax's import sets 1
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    os.environ.setdefault("GCS_READ_CACHE_BLOCK_SIZE_MB", "1")


@contextlib.contextmanager
def whole(path: str) -> Iterator[BinaryIO]:
    """A file to write to; it is at `path` once all is written, and nowhere before."""
    part, folder = f"{path}.part", os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise UserError(f"{path} cannot be written: there is no folder {folder}")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(part)


def at_home(arguments: Iterable[str]) -> list[str]:
    """Arguments of a command; a shell leaves the ~ of --workdir=~/runs as it is."""
    parts = (text.partition("=") for text in arguments)
    return [f"{key}{equals}{os.path.expanduser(path)}" for key, equals, path in parts]


def in_file(error: Exception) -> str:
    """What a config file raised, and where."""
    name, line = getattr(error, "filename", None), getattr(error, "lineno", None)
    if line is None:
        *_, last = traceback.extract_tb(error.__traceback__)
        name, line = last.filename, last.lineno
    said = getattr(error, "msg", None) or error
    return f"{name}:{line}: {type(error).__name__}: {said}"


def unknown_key(argv: list[str], text: str) -> str:
    """Names the flag that sets a key the config does not have, and the nearest key."""
    if "'get_config'" in text:
        return f"{next(a for a in argv[1:] if '.py' in a)}: it has no get_config()"
    key = re.search(r"\w+", text)
    near = re.search(r'mean "(\w+)"', text)
    wanted = f".{key.group()}" if key else ""
    flag = next((a for a in argv if wanted in a), text).partition("=")[0]
    mend = "set it in a config file, as docs/config.md says"
    if near:
        mend = f"did you mean {near.group(1)!r}?"
    return f"{flag}: the config has no such key; {mend}"
