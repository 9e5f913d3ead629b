"""Question files and images where people have them: a folder, a zip archive, one file, or a folder with its archives beside.

Nothing is unpacked. Names that come from data are checked before they are used: an absolute name or one with `..` leads nowhere. A link
inside the folder is followed, for the cache of the Hugging Face hub is made of links. An archive that holds one bad name is refused whole.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import BadZipFile, ZipFile

from vital_jax.evaluate.items import Picture
from vital_jax.pipeline.tables import as_on_disk, composed

# An archive may claim any size for a member; no question file or image of these benchmarks comes near this.
MAX_BYTES = 2 * 2**30
DEPTH = 2  # folders that a download may add above the layout


def safe_name(name: str) -> str:
    """A file's name inside its folder, with forward slashes and without "." parts.

    Raises: ValueError, it is no file name or leads out of the folder.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"{name!r} is no file name")
    plain = name.strip().replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or ".." in parts or re.match("[A-Za-z]:", plain) or not parts:
        raise ValueError(f"{name!r} leads out of the folder")
    return "/".join(parts)


@dataclass(frozen=True)
class Zipped:
    """A file inside a zip archive, read where it lies.

    Attributes:
      archive: the archive's path. member: the file's name within it, as the archive writes it.
    """

    archive: Path
    member: str

    def read_bytes(self) -> bytes:
        """The file's bytes. Raises: FileNotFoundError, no such archive or member; ValueError, damaged, encrypted or too large."""
        try:
            archive = _archive(self.archive)
            info = archive.getinfo(self.member)
            if info.file_size > MAX_BYTES:
                raise ValueError(f"claims {info.file_size} bytes, more than the {MAX_BYTES} that are read")
            return archive.read(info)
        except KeyError as error:
            raise FileNotFoundError(f"{self}: not in the archive") from error
        except (BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise ValueError(f"{self}: {error}; download the archive again") from error

    def __str__(self) -> str:
        return f"{self.archive}:{self.member}"


def _archive(path: Path) -> ZipFile:
    """An archive kept open, for its list of members is long; one per process, because two must not share a file position."""
    return _opened(path, path.stat().st_mtime_ns, os.getpid())


@lru_cache(maxsize=8)
def _opened(path: Path, stamp: int, process: int) -> ZipFile:
    del stamp, process
    return ZipFile(path)


@dataclass(frozen=True)
class Folder:
    """A folder as a place of files. `root` is its path; what it holds is listed once, for image sets have 100,000 files."""

    root: Path
    _listings: dict[str, dict[str, str]] = field(default_factory=dict, compare=False, repr=False)

    def find(self, pattern: str) -> list[str]:
        """Names that fit the pattern here or in folders below, the least deep only; one that starts with "./" here only."""
        for depth in range(1 if pattern.startswith("./") else DEPTH + 1):
            found = sorted(path for path in self.root.glob("*/" * depth + pattern) if path.is_file())
            if names := [path.relative_to(self.root).as_posix() for path in found if not _junk(path.name)]:
                return names
        return []

    def open(self, name: str) -> IO[bytes]:
        return (self.root / name).open("rb")

    def picture(self, name: str) -> Picture | None:
        """The file of this name, None where it is not there."""
        folder, _, file = name.rpartition("/")
        if folder not in self._listings:
            path = self.root / as_on_disk(self.root, folder)
            try:
                self._listings[folder] = {composed(child.name): f"{path}/{child.name}" for child in path.iterdir()}
            except OSError:
                self._listings[folder] = {}
        found = self._listings[folder].get(composed(file))
        return Path(found) if found else None

    def missing(self, name: str) -> Picture:
        """What stands for a file that is not there: an error when it is read."""
        return self.root / name

    def __str__(self) -> str:
        return str(self.root)


@dataclass(frozen=True)
class Archive:
    """A zip archive as a place of files. `root` is its path."""

    root: Path

    @cached_property
    def names(self) -> dict[str, str]:
        """Name with forward slashes -> name as the archive writes it. Raises: ValueError, no archive, or one with a bad name."""
        try:
            members = _archive(self.root).infolist()
        except (BadZipFile, NotImplementedError) as error:
            raise ValueError(f"{self.root}: not a zip archive that can be read ({error}); download it again") from error
        try:
            return {composed(safe_name(info.filename)): info.filename for info in members if not info.is_dir()}
        except ValueError as error:
            raise ValueError(f"{self.root}: member {error}; do not use this archive") from error

    @cached_property
    def _by_file(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in sorted(self.names):
            found[name.rpartition("/")[2]].append(name)
        return found

    def find(self, pattern: str) -> list[str]:
        """Names that end in the pattern, the least deep only; one that starts with "./" has to be the whole name."""
        whole = pattern.startswith("./")
        fits = [
            name
            for name in self.names
            if PurePosixPath(f"/{name}" if whole else name).match(f"/{pattern[2:]}" if whole else pattern)
            and not _junk(name.rpartition("/")[2])
            and "__MACOSX" not in name
        ]
        least = min((name.count("/") for name in fits), default=0)
        return sorted(name for name in fits if name.count("/") == least)

    def open(self, name: str) -> IO[bytes]:
        return BytesIO(Zipped(self.root, self.names[name]).read_bytes())

    def picture(self, name: str) -> Picture | None:
        """The member of this name, or one whose name ends in it: archives are packed with and without their folder."""
        fits = [full for full in self._by_file.get(name.rpartition("/")[2], ()) if f"/{full}".endswith(f"/{name}")]
        return Zipped(self.root, self.names[min(fits, key=lambda full: (full != name, full))]) if fits else None

    def missing(self, name: str) -> Picture:
        return Zipped(self.root, name)

    def __str__(self) -> str:
        return str(self.root)


def _junk(file: str) -> bool:
    """Whether a file is one that a Mac leaves beside the true one."""
    return file.startswith("._")


@dataclass(frozen=True)
class Entry:
    """A question file. `place` is the folder or archive, `name` the file's name in it."""

    place: Folder | Archive
    name: str

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()

    def open(self) -> IO[bytes]:
        """The file from its start. Raises: OSError, ValueError: it cannot be read."""
        return self.place.open(self.name)

    def __str__(self) -> str:
        return f"{self.place}{'/' if isinstance(self.place, Folder) else ':'}{self.name}"


class Files:
    """What lies under a path that the user gives.

    Args:
      path: a folder, a zip archive, or the question file itself; images are then looked for beside it.
    Raises: FileNotFoundError, nothing is there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: not found")
        self._only: Entry | None = None
        if self.path.is_dir():
            root = self.path
        elif self.path.suffix.lower() == ".zip":
            self.places: list[Folder | Archive] = [Archive(self.path)]
            return
        else:
            root = self.path.parent
            self._only = Entry(Folder(root), self.path.name)
        # Images often stay in the archives that they came in, beside the question files.
        self.places = [Folder(root), *(Archive(path) for path in sorted(root.glob("*.zip")) if not _junk(path.name))]

    def find(self, patterns: Iterable[str], one: bool = False) -> list[Entry]:
        """The files of the first pattern that fits any, in a folder before its archives; the file itself where the path names one.

        Args:
          patterns: glob patterns of the names, without the folders above. one: only the first file.
        """
        if self._only:
            return [self._only]
        for place in self.places:
            for pattern in patterns:
                if found := [Entry(place, name) for name in place.find(pattern)]:
                    return found[:1] if one else found
        return []

    def picture(self, entry: Entry, name: str, folders: Sequence[str] = ("",), up: int = 0) -> Picture:
        """The image that a question file names, looked for beside the file and upwards, in each of the folders.

        Args:
          entry: the question file. name: as it stands there.
          folders: where images lie, seen from the question file or from above it; in the first a missing one should have been.
          up: how many folders above the question file the search starts.
        Returns: a place to read it from; one that raises FileNotFoundError when read, where the image is nowhere.
        Raises: ValueError, the name is none or leads out of the folder.
        """
        name = composed(safe_name(name))
        parts = entry.name.split("/")[:-1]
        start = max(len(parts) - up, 0)
        above = ["/".join(parts[:depth]) for depth in range(start, -1, -1)]  # "a/b/q.json" -> a/b, a, ""
        tried = ["/".join(filter(None, (base, folder, name))) for base in above for folder in folders]
        here = len(above) == 1
        for place in self.places:
            for candidate in tried if here or place == entry.place else tried[-len(folders) :]:
                if found := place.picture(candidate):
                    return found
        return entry.place.missing(tried[0])
