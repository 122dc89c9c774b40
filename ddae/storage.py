"""Where this package keeps things, and storage that fails: for good, or for a while."""

import errno
import os
import re

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
    "TooMany|Gateway|Transport"
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


class StorageError(RuntimeError):
    """Storage failed in a way that may pass: the same start is worth another try (exit
    code 1, after which what starts runs tries again)."""


def unusable(said: str, error: Exception) -> UserError | StorageError:
    """What to raise for `error`: `said`, and the cause, in one line."""
    number = getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    if number is None:
        passing = re.search(PASSING, type(error).__name__)
    else:
        passing = number not in LASTING
    if passing:
        return StorageError(f"{said}: {reason}{AGAIN}")
    return UserError(f"{said}: {reason}")


def of_bucket(error: BaseException) -> bool:
    """Whether an error is of a library that reads buckets."""
    library = type(error).__module__.partition(".")[0]
    return library in ("google", "requests", "tensorflow")


def of_storage(error: BaseException | None) -> bool:
    """Whether an error is the system's or a bucket's, and no missing file's; of
    TensorStore's and TensorFlow's there is only the text."""
    of_file = FileNotFoundError | IsADirectoryError | NotADirectoryError
    passing = "os_error_code='(?!2')|UNAVAILABLE|HTTP response code:? (429|5..)"
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, of_file):
            return True
        if re.search(passing, str(error)):
            return True
        error = error.__cause__
    return False
