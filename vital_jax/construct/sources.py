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
from vital_jax.construct.msd import Msd, Volumes
from vital_jax.construct.source import Source
from vital_jax.construct.vqa import Vqa

# In the order they are asked. BiomedParse comes before manifests, for some copies of it have one beside its own names.
KINDS = {
    "msd": Msd,
    "records": Exchange,
    "biomedparse": BiomedParse,
    "vqa": Vqa,
    "manifest": MaskFolder,
    "volumes": Volumes,
    "dicom": Dicom,
}
SHARED = ("manifest", "volumes", "dicom")
_TYPES = {bool: "true or false", int: "a whole number", str: "text"}  # of a reader's options
DEPTH = 3  # folders below the given one: BiomedParse keeps some sets in folders of sets
_LAYOUTS = (
    "dataset.json with imagesTr (msd), records-*.jsonl (records), X beside X_mask (biomedparse), questions.jsonl or VQA-RAD's JSON (vqa), "
    "manifest.jsonl (manifest, volumes, dicom)"
)


def kinds_of(root: Path) -> list[str]:
    """The kinds of the readers that take a folder: none, one, or several of those that share a manifest."""
    claimed = [kind for kind, reader in KINDS.items() if reader.claims(root)]
    return claimed[:1] if claimed and claimed[0] not in SHARED else claimed


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


def find_sources(*paths: str | Path) -> list[Source]:
    """All sources in the given folders, in the order of their paths, each under a name of its own.

    A folder that no reader takes is searched for folders that one takes. A source is called like its folder, or by the way to it where it
    lies deeper (amos22-CT); the second source of one folder by its kind too. Two of one name get that of the folder above them.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: nothing found in one of them, or two that would have one name.
    """
    found = []
    for root in map(_folder, paths):
        here = [(folder, root, kind) for folder in _search(root, DEPTH) for kind in kinds_of(folder)]
        if not here:
            raise ValueError(f"{root}: no reader takes this folder or one in it; known are {_LAYOUTS}")
        found += here
    names = {folder: "-".join(folder.relative_to(root).parts) or root.name for folder, root, _ in found}
    same = Counter(names.values())
    sources = {}
    for folder, _, kind in found:
        name = names[folder] if same[names[folder]] == 1 else f"{folder.parent.name}-{names[folder]}"
        others = [source for source in sources.values() if source.root == folder]
        if any(source.kind == kind for source in others):
            raise ValueError(f"{folder}: given twice")
        name = f"{name}-{kind}" if others else name
        if name in sources:
            raise ValueError(f"{folder}: a second source called {name}; rename one of the folders")
        sources[name] = open_source(folder, kind, {} if name == folder.name else {"name": name})
    return list(sources.values())


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
