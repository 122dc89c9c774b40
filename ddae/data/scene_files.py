"""A folder of scenes, or the zip that it came in, read in place."""

import collections
import os
import zipfile
from typing import IO, Protocol

from ddae.settings import UserError

RELEASE = "ADEChallengeData2016"
IMAGES = (".jpg", ".jpeg", ".png")


class Files(Protocol):
    """A tree of files: a folder, or a zip that is never unpacked."""

    def names(self, folder: str) -> list[str]:
        """Of the files directly in `folder`, in alphabetical order."""
        ...

    def open(self, path: str) -> IO[bytes]: ...

    def where(self, path: str) -> str:
        """What a user would look for."""
        ...


class FolderFiles:
    """`Files` below `root`."""

    def __init__(self, root: str):
        self.root = root

    def names(self, folder: str) -> list[str]:
        path = self.where(folder)
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def open(self, path: str) -> IO[bytes]:
        return open(self.where(path), "rb")

    def where(self, path: str) -> str:
        return os.path.join(self.root, *path.split("/"))


class ZipFiles:
    """`Files` of a zip, below the folder that holds images/; read in place."""

    def __init__(self, path: str):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a zip that can be read: {error}") from error
        parts = (n.partition("images/") for n in self._zip.namelist())
        roots = {head for head, found, _ in parts if found and "__MACOSX" not in head}
        self.root = min(roots, key=len, default="")
        self._names = collections.defaultdict(list)
        for name in self._zip.namelist():
            folder, _, file = name.removeprefix(self.root).rpartition("/")
            if file and name.startswith(self.root):
                self._names[folder].append(file)

    def names(self, folder: str) -> list[str]:
        return sorted(self._names.get(folder, []))

    def open(self, path: str) -> IO[bytes]:
        return self._zip.open(self.root + path)

    def where(self, path: str) -> str:
        return f"{self.path}:{self.root}{path}"


def files_at(place: str) -> Files:
    """The set at `place`: its folder, its zip, or a folder that holds one of these."""
    if not place:
        raise UserError(
            "config.data.dir is empty; give the folder that holds images/ and"
            " annotations/, or its zip, with --config.data.dir=..."
        )
    for folder in (place, os.path.join(place, RELEASE)):
        if os.path.isdir(os.path.join(folder, "images")):
            return FolderFiles(folder)
    for path in (place, os.path.join(place, f"{RELEASE}.zip")):
        if os.path.isfile(path):
            return ZipFiles(path)
    raise UserError(
        f"no images/ in {place}, nor {RELEASE} or {RELEASE}.zip; expected"
        f" {os.path.join(place, 'images', 'training', '*.jpg')} and"
        f" {os.path.join(place, 'annotations', 'training', '*.png')}"
    )


def by_stem(files: Files, folder: str) -> dict[str, str]:
    """{X: X.jpg} of the image files directly in `folder`, hidden ones left out; raises
    `UserError` for two of the same X."""
    found: dict[str, str] = {}
    for name in files.names(folder):
        stem, ending = os.path.splitext(name)
        if ending.lower() not in IMAGES or name.startswith("."):
            continue
        if found.setdefault(stem, name) != name:
            raise UserError(
                f"{files.where(folder)} has both {found[stem]} and {name}; keep one"
            )
    return found
