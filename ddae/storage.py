"""Where this package keeps things, and storage that fails: for good, or for a while."""

import errno
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from etils import epath

from ddae.settings import UserError

LASTING = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
)
"""Of a path that cannot be right: another start would find the same."""

PASSING = (
    "Unavailable|Deadline|Timeout|Aborted|Exhausted|Internal|Unknown|Connection|"
    "TooMany|Gateway|Transport|Retry|Corruption|Encoding|SSL"
)
"""In the names of a bucket's errors, which have no number of the system's."""

AGAIN = "; give the same command again"


def cache_folder() -> str:
    """The package's own, below $XDG_CACHE_HOME, or below ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "ddae")


def is_remote(path: str) -> bool:
    """Whether `path` is of a file system that only TensorFlow knows, like gs://."""
    return "://" in path


def absolute(path: epath.PathLike) -> epath.Path:
    """`path` from the root on; a bucket's, gs://, as it is. Raises `UserError` for a
    bucket where what Orbax asks it with is not installed."""
    text = os.fspath(path)
    if text.startswith("gs://"):
        try:
            import google.cloud.storage  # noqa: F401, and Orbax does not bring it
        except ImportError as error:
            mend = "pip install google-cloud-storage"
            raise UserError(f"{path} cannot be used: {mend}") from error
    return epath.Path(path) if is_remote(text) else epath.Path(path).resolve()


class Mirror:
    """A folder of this machine, `here`, whose files a bucket has too, in `there`, as of
    the last `push`.

    No object can grow: to append a line TensorFlow reads the whole object and uploads
    it anew, and an open file whole at every flush.
    """

    def __init__(self, there: epath.Path):
        self.here = epath.Path(tempfile.mkdtemp(prefix="ddae-"))
        self._there, self._pushed = there, {}
        self._at = time.monotonic()

    def age(self) -> float:
        """Seconds since the last push."""
        return time.monotonic() - self._at

    def push(self) -> str:
        """Uploads the files that are new or have changed. What a bucket says that does
        not take them, for they may go with the next push; else nothing."""
        self._at = time.monotonic()
        try:
            self._upload()
        except Exception as error:
            if not of_bucket(error):
                raise
            return str(error).partition("\n")[0]
        return ""

    def _upload(self) -> None:
        files = [p for p in pathlib.Path(self.here).rglob("*") if p.is_file()]
        for path in sorted(files):
            found = path.stat()
            as_now = (found.st_size, found.st_mtime_ns)
            if self._pushed.get(path) != as_now:
                target = self._there / path.relative_to(self.here).as_posix()
                if path not in self._pushed:
                    target.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(path).copy(target, overwrite=True)
                self._pushed[path] = as_now

    def close(self) -> str:
        """As `push`; then the folder goes, unless something in it is nowhere else."""
        if not (refused := self.push()):
            self.here.rmtree()
        return refused


class StorageError(RuntimeError):
    """Storage failed in a way that may pass: the same start is worth another try (exit
    code 1, after which what starts runs tries again)."""


def unusable(said: str, error: Exception) -> UserError | StorageError:
    """What to raise for `error`: `said`, and the cause, in one line."""
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    reason = reason.rstrip(":")
    if number is None:
        passing = re.search(PASSING, type(error).__name__)
    else:
        passing = number not in LASTING
    if passing:
        return StorageError(f"{said}: {reason}{AGAIN}")
    return UserError(f"{said}: {reason}")


def patiently(
    read: Callable[[], Any],
    pauses: Iterable[float],
    failing: Callable[[Exception], str],
) -> Any:
    """What `read` gives. Where the storage fails, and `failing` has a line for the
    error, it is read again after each of the `pauses`, seconds; other errors, and that
    after the last, are raised."""
    for seconds in pauses:
        try:
            return read()
        except Exception as error:  # Orbax, Pillow and the system raise many kinds
            if not (said := failing(error)):
                raise
            print(f"{said}; again in {seconds:g} s", file=sys.stderr, flush=True)
            time.sleep(seconds)
    return read()


def of_bucket(error: BaseException) -> bool:
    """Whether an error is of a library that reads buckets."""
    library = type(error).__module__.partition(".")[0]
    return library in ("google", "requests", "tensorflow")


def of_storage(error: BaseException | None) -> bool:
    """Whether an error is the system's or a bucket's, and not `LASTING`, as a missing
    file is; of TensorStore's and TensorFlow's there is only the text."""
    lasting = "|".join(map(str, LASTING))
    passing = (
        f"os_error_code='(?!({lasting})')|UNAVAILABLE|HTTP response code:? (429|5..)"
    )
    while error is not None:
        if isinstance(error, OSError) and error.errno not in LASTING:
            return True
        if re.search(passing, str(error)):
            return True
        error = error.__cause__
    return False
