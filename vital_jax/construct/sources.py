"""Which reader takes a folder: one table of kinds, and the order in which they are asked.

A layout that is recognised as a whole (a Decathlon task, a pair of BiomedParse's folders, questions, exported records) has the folder to
itself. A `manifest.jsonl` may be shared: lines with masks, DICOM lines and lines with volumes each have their reader.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vital_jax.construct.biomedparse import BiomedParse
from vital_jax.construct.dicom import Dicom
from vital_jax.construct.exchange import Exchange
from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.instruct import Llava, Parquet
from vital_jax.construct.layouts import Coco, Pairs
from vital_jax.construct.msd import Msd, Volumes
from vital_jax.construct.nnunet import NnUnet
from vital_jax.construct.source import Source
from vital_jax.construct.vqa import Vqa

# In the order they are asked. BiomedParse comes before manifests, for some copies of it have one beside its own names; nnU-Net before the
# Decathlon, whose form its first version has but for the names of files; folders that say least come last.
KINDS = {
    "nnunet": NnUnet,
    "msd": Msd,
    "records": Exchange,
    "biomedparse": BiomedParse,
    "vqa": Vqa,
    "llava": Llava,
    "parquet": Parquet,
    "manifest": MaskFolder,
    "volumes": Volumes,
    "dicom": Dicom,
    "coco": Coco,
    "pairs": Pairs,
}
SHARED = ("manifest", "volumes", "dicom")
_TYPES = {bool: "true or false", int: "a whole number", str: "text"}  # of a reader's options
DEPTH = 3  # folders below the given one: BiomedParse keeps some sets in folders of sets
_LAYOUTS = (
    "dataset.json with imagesTr (msd, nnunet), records-*.jsonl (records), X beside X_mask (biomedparse), questions.jsonl or VQA-RAD's JSON "
    "(vqa), JSON with conversations (llava), *.parquet (parquet), manifest.jsonl (manifest, volumes, dicom), COCO's JSON (coco), images "
    "beside masks (pairs)"
)


def kinds_of(root: Path) -> list[str]:
    """The kinds of the readers that take a folder: none, one, or several of those that share a manifest."""
    claimed = [kind for kind, reader in KINDS.items() if reader.claims(root)]
    return claimed[:1] if claimed and claimed[0] not in SHARED else [kind for kind in claimed if kind in SHARED]


def open_source(path: str | Path, kind: str = "", options: Mapping[str, Any] | None = None) -> Source:
    """The reader of a folder.

    Args:
      path: the folder.
      kind: a key of `KINDS`; by default the one that claims the folder.
      options: arguments of the reader that a plan file can hold, such as {"licence": "CC0-1.0"}.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: an unknown kind or option, an option of another type, no reader for the folder, or several.
    """
    root = _folder(path)
    found = [kind] if kind else kinds_of(root)
    if not found:
        raise ValueError(f"{root}: no reader takes this folder; known are {_LAYOUTS}")
    if len(found) > 1:
        raise ValueError(f"{root}: lines for {' and '.join(found)} in one manifest; name one of these kinds")
    if found[0] not in KINDS:
        raise ValueError(f"unknown kind {kind!r} of source: use {', '.join(KINDS)}")
    reader = KINDS[found[0]]
    known = {item.name: type(item.default) for item in fields(reader) if item.init and type(item.default) in _TYPES}
    for name, value in (options or {}).items():
        if name not in known:
            raise ValueError(f"{root}: {found[0]} has no option {name!r}, only {', '.join(known)}")
        if type(value) is not known[name]:
            raise ValueError(f"{root}: option {name} is {_TYPES[known[name]]}, not {value!r}")
    return reader(root=root, **(options or {}))


def open_sources(path: str | Path, kind: str = "", options: Mapping[str, Any] | None = None) -> list[Source]:
    """As `open_source`; a manifest that readers share is opened by each of them, where nothing but a name is given.

    The first source is called as the folder is, the others by their kind too.
    """
    root = _folder(path)
    kinds = kinds_of(root)
    if kind or len(kinds) < 2 or set(options or ()) - {"name"}:
        return [open_source(root, kind, options)]
    name = (options or {}).get("name", root.name)
    names = [name, *(f"{name}-{kind}" for kind in kinds[1:])]
    return [open_source(root, kind, {"name": name}) for kind, name in zip(kinds, names, strict=True)]


def find_sources(*paths: str | Path) -> list[Source]:
    """All sources in the given folders; see `find_folders`."""
    return [source for sources in find_folders(*paths).values() for source in sources]


def find_folders(*paths: str | Path) -> dict[str, list[Source]]:
    """All folders of data in the given ones, in the order of their paths: name -> the sources that read it.

    A folder that no reader takes is searched for folders that one takes. It is called by its own name, or by the way to it where it lies
    deeper (amos22-CT). Two of one name get that of the folder above them.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: nothing found in one of them, or two that would have one name.
    """
    found: dict[Path, Path] = {}
    for root in map(_folder, paths):
        here = _search(root, DEPTH)
        if not here:
            raise ValueError(f"{root}: no reader takes this folder or one in it; known are {_LAYOUTS}")
        for folder in here:
            if folder in found:
                raise ValueError(f"{folder}: given twice")
            found[folder] = root
    names = {folder: "-".join(folder.relative_to(root).parts) or root.name for folder, root in found.items()}
    same = Counter(names.values())
    folders: dict[str, list[Source]] = {}
    for folder in found:
        name = names[folder] if same[names[folder]] == 1 else f"{folder.parent.name}-{names[folder]}"
        if name in folders:
            raise ValueError(f"{folder}: a second source called {name}; rename one of the folders")
        folders[name] = open_sources(folder, options={"name": name})
    return folders


def _folder(path: str | Path) -> Path:
    root = Path(path).resolve()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    return root


def _search(root: Path, depth: int) -> list[Path]:
    """The folder if a reader takes it, or else those in it, however deep, in the order of their names."""
    if kinds_of(root):
        return [root]
    inner = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".") if depth else []
    return [found for path in inner for found in _search(path, depth - 1)]
