"""A folder of scenes, or the zip that it came in, read in place."""

import os
import pathlib
import zipfile

from ddae.settings import UserError

RELEASE = "ADEChallengeData2016"
IMAGES = (".jpg", ".jpeg", ".png")

UNPACKED = (
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
)
"""How files may be packed in a zip; Deflate64, as of Windows, is not among them."""

ENCRYPTED = 1
"""The bit of a zip's entry that says so."""

Place = pathlib.Path | zipfile.Path
"""A folder or a file in it; of a zip, which is never unpacked, the same."""


def set_at(place: str) -> Place:
    """The set at `place`: its folder, its zip, or a folder that holds one of these."""
    if not place:
        raise UserError(
            "config.data.dir is empty; give the folder that holds images/ and"
            " annotations/, or its zip, with --config.data.dir=..."
        )
    for folder in (place, os.path.join(place, RELEASE)):
        if os.path.isdir(os.path.join(folder, "images")):
            return pathlib.Path(folder)
    for path in (place, os.path.join(place, f"{RELEASE}.zip")):
        if os.path.isfile(path):
            return _in_zip(path)
    raise UserError(
        f"no images/ in {place}, nor {RELEASE} or {RELEASE}.zip; expected"
        f" {os.path.join(place, 'images', 'training', '*.jpg')} and"
        f" {os.path.join(place, 'annotations', 'training', '*.png')}"
    )


def _in_zip(path: str) -> zipfile.Path:
    """The folder of a zip that holds images/."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a zip that can be read: {error}") from error
    for entry in archive.infolist():
        if entry.flag_bits & ENCRYPTED or entry.compress_type not in UNPACKED:
            raise UserError(
                f"{path}: {entry.filename} is encrypted, or packed otherwise than this"
                " Python unpacks; unpack the zip, and give its folder"
            )
    parts = (name.partition("images/") for name in archive.namelist())
    roots = {head for head, found, _ in parts if found and "__MACOSX" not in head}
    return zipfile.Path(archive, min(roots, key=len, default=""))


def by_stem(folder: Place) -> dict[str, str]:
    """{X: X.jpg} of the image files directly in `folder`, hidden ones left out; raises
    `UserError` for two of the same X."""
    found: dict[str, str] = {}
    for name in sorted(x.name for x in folder.iterdir()) if folder.is_dir() else ():
        stem, ending = os.path.splitext(name)
        if ending.lower() not in IMAGES or name.startswith("."):
            continue
        if found.setdefault(stem, name) != name:
            raise UserError(f"{folder} has both {found[stem]} and {name}; keep one")
    return found
