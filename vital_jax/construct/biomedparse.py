"""BiomedParse as distributed: a folder `X` of images beside a folder `X_mask`, where names say what is seen.

    train/hippocampus_001_17_MRI_brain.png
    train_mask/hippocampus_001_17_MRI_brain_anterior+hippocampus.png      [IMAGE]_[MODALITY]_[SITE]_[TARGET].png

[IMAGE] may hold `_`, spaces and brackets, [SITE] may hold `_` or be empty, so a name is read from the right by the modalities of the
targets table, and a mask belongs to the image whose whole name it starts with. Images and masks are RGBA; a mask's colour counts and its
alpha does not (`pipeline.masks.decode_mask`). A modality keeps its sequence (MRI-T2), as everywhere; `Targets.family` gives MRI.

`X.json`, where it is there and not a Git LFS pointer, may name masks and images in another way and states the source's own split; without
it the folder's name does (train, test). That split is kept. It does not always keep patients apart, and the report of a build says where it
does not: the group is derived from [IMAGE] by the rules in `data/biomedparse.json`. Where a data set does not publish patients, the rules
can only keep runs of numbers together.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from vital_jax.construct.marked import Mask, cut, load, refuse, refused
from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.targets import DATA, Targets, load_targets
from vital_jax.pipeline.tables import as_on_disk, composed, read_json

_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Name:
    """A file name's parts as they are spelt there; `target` is empty for an image. `str()` gives the name back."""

    image: str
    modality: str
    site: str
    target: str = ""

    def __str__(self) -> str:
        return "_".join((self.image, self.modality, self.site, *([self.target] if self.target else []))) + ".png"

    @property
    def group(self) -> str:
        """The patient, volume or film that [IMAGE] names."""
        for pattern in _group_rules():
            if found := pattern.fullmatch(self.image):
                return found[1]
        group = self.image
        while found := re.fullmatch(r"(.*\d.*)_\d+", group):
            group = found[1]
        return group


@cache
def _group_rules() -> list[re.Pattern]:
    table = json.loads((DATA / "biomedparse.json").read_text(encoding="utf-8"))
    return [re.compile(rule["pattern"]) for rule in table["groups"]]


def parse_name(file: str, targets: Targets | None = None, mask: bool = True) -> Name:
    """Reads the name of a mask, or of an image, by itself.

    Args:
      file: without folders.
      targets: whose modalities are looked for; the built-in table by default.

    Raises:
      Rejected: bad-name, or unknown-modality where only that is missing.
    """
    shape = "[IMAGE]_[MODALITY]_[SITE]" + "_[TARGET]" * mask + ".png"
    parts = file.removesuffix(".png").split("_")
    if not file.endswith(".png") or len(parts) < 3 + mask:
        raise Rejected("bad-name", file, f"is not named {shape}")
    target = parts.pop() if mask else ""
    known = [number for number in range(1, len(parts) - 1) if _is_modality(parts[number], targets or load_targets())]
    if not known:
        raise Rejected("unknown-modality", file, f"is not named {shape} with a modality of the targets table")
    at = known[-1]
    name = Name("_".join(parts[:at]), parts[at], "_".join(parts[at + 1 :]), target)
    if not name.image or (mask and not target):
        raise Rejected("bad-name", file, f"is not named {shape}")
    return name


def _is_modality(word: str, targets: Targets) -> bool:
    try:
        return bool(targets.family(word))
    except ValueError:
        return False


def _words(text: str) -> str:
    return text.replace("+", " ").replace("_", " ").strip()


@dataclass
class BiomedParse:
    """A `Source` of one data set's pairs of folders, such as train and train_mask, test and test_mask.

    Args:
      root: the folder that holds the pairs.
      min_area: least foreground of a mask in pixels.
      licence: of the data; BiomedParse's own card says CC BY-NC-SA 4.0, the sets in it have their own.
      targets: another table than the built-in one.
      name: another name than the folder's, where two sources would have the same.
    """

    root: Path
    min_area: int = 100
    licence: str = ""
    targets: Targets = field(default_factory=load_targets)
    name: str = ""
    kind: ClassVar[str] = "biomedparse"

    def __post_init__(self):
        self.root = Path(self.root).resolve()
        self.name = self.name or self.root.name

    @classmethod
    def claims(cls, root: Path) -> bool:
        """Whether there is a folder `X` beside a folder `X_mask` with a PNG in it."""
        return any(next((root / f"{part}_mask").glob("*.png"), None) for part in _parts(root))

    def units(self) -> Sequence[Unit]:
        """One per image that has a mask, by name; and one per mask or annotation that belongs to no image.

        Raises: ValueError, no pair of folders.
        """
        parts = _parts(self.root)
        if not parts:
            raise ValueError(f"{self.root}: no folder X beside a folder X_mask, as BiomedParse is distributed")
        return [unit for part in parts for unit in self._part(part)]

    def _part(self, part: str) -> Iterator[Unit]:
        """The units of one pair of folders."""
        owned, splits, bad = _annotations(self.root, part)
        yield from bad
        images = {composed(path.name): path.name for path in (self.root / part).glob("*.png")}
        taken = {mask for masks in owned.values() for mask in masks}
        for file in sorted(path.name for path in (self.root / f"{part}_mask").glob("*.png")):
            if file in taken:
                continue
            # The longest name first, so that "1_CT_lung" does not take what belongs to "1_CT_lung_upper".
            words = file.removesuffix(".png").split("_")
            starts = (composed("_".join(words[:end]) + ".png") for end in range(len(words) - 1, 0, -1))
            if image := next((images[name] for name in starts if name in images), None):
                owned[image][file] = ""
            else:
                yield refused(f"{part}_mask/{file}", self._orphan(part, file))
        for image, masks in sorted(owned.items()):
            facts = {
                "part": part,
                "image": image,
                "split": splits.get(image, part),
                "masks": dict(sorted(masks.items())),
            }
            files = (f"{part}/{image}", *(f"{part}_mask/{mask}" for mask in facts["masks"]))
            yield Unit(f"{part}/{image.removesuffix('.png')}", files, facts)

    def _orphan(self, part: str, file: str) -> Rejected:
        """Why a mask has no image."""
        try:
            image = replace(parse_name(file, self.targets), target="")
            return Rejected("missing-file", f"{part}/{image}", f"not found; it is the image of {part}_mask/{file}")
        except Rejected as reason:
            return _moved(reason, f"{part}_mask/{file}")

    def read(self, unit: Unit) -> Iterator[Sample | Rejected]:
        """The samples of one image; a mask that cannot be used as a `Rejected`.

        Raises:
          Rejected: bad-name, unknown-modality, missing-file, path-escape, bad-line (of X.json) or unreadable-image.
        """
        refuse(unit)
        part, image = unit.facts["part"], unit.facts["image"]
        data = self._load(part, image, "unreadable-image")
        try:
            seen = parse_name(image, self.targets, mask=False)
        except Rejected as reason:
            raise _moved(reason, f"{part}/{image}") from reason
        masks = []
        for file, told in unit.facts["masks"].items():
            shown = f"{part}_mask/{file}"
            target = _words(
                told or composed(file).removesuffix(".png").removeprefix(composed(image).removesuffix(".png") + "_")
            )
            try:
                masks.append(Mask(target, shown, self._load(f"{part}_mask", file, "unreadable-mask")))
            except Rejected as reason:
                masks.append(Mask(target, shown, reason))
        fields = {
            "id": f"{self.name}/{unit.id}",
            "modality": seen.modality,
            "site": _words(seen.site),
            "group": f"{self.name}/{composed(seen.group)}",
            "source": self.name,
            "licence": self.licence,
        }
        yield from cut(fields, data, f"{part}/{image}", masks, self.min_area, self.targets)

    def _load(self, folder: str, file: str, code: str) -> bytes:
        """A file of one of the folders, which may themselves be links."""
        try:
            return load((self.root / folder).resolve(), file, file, code)
        except Rejected as reason:
            raise _moved(reason, f"{folder}/{file}") from reason


def _moved(reason: Rejected, file: str) -> Rejected:
    """The same reason, for a file as it is called from the root."""
    return Rejected(reason.code, file, reason.reason)


def _parts(root: Path) -> list[str]:
    found = (path.name.removesuffix("_mask") for path in root.glob("?*_mask") if path.is_dir())
    return sorted(part for part in found if (root / part).is_dir())


def _annotations(root: Path, part: str) -> tuple[dict[str, dict[str, str]], dict[str, str], list[Unit]]:
    """What `X.json` says: per image its masks, with the target where only a sentence tells it; per image the split; and the bad ones."""
    owned, splits, bad, path = defaultdict(dict), {}, [], root / f"{part}.json"
    data = path.read_bytes() if path.is_file() else _LFS
    if data.startswith(_LFS):
        return owned, splits, bad
    try:
        table = read_json(data)
        images = {image["id"]: image["file_name"] for image in table["images"]}
        rows = list(table["annotations"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"not BiomedParse's annotations ({error!r}); without this file the names of images and masks are read"
        return owned, splits, [refused(path.name, Rejected("bad-line", path.name, reason))]
    for number, row in enumerate(rows):
        where = f"{path.name}: annotations[{number}]"
        try:
            image = row["file_name"] if "file_name" in row else images[row["image_id"]]
            # As in BiomedParse's own reader, an image with a single mask may share its name.
            mask = row.get("mask_file", image)
            told = "" if mask.startswith(image.removesuffix(".png") + "_") else _target(row)
            if "\0" in image or not image.endswith(".png"):
                raise ValueError(f"{image!r} is no PNG file")
            image, mask = as_on_disk(root / part, image), as_on_disk(root / f"{part}_mask", mask)
            owned[image][mask] = told
            splits[image] = str(row.get("split", part))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            bad.append(refused(where, Rejected("bad-line", where, f"not an annotation ({error!r})")))
    return owned, splits, bad


def _target(row: Mapping[str, Any]) -> str:
    """The target of a prompt, "TARGET in SITE MODALITY"."""
    sentence = row["sentences"][0]
    return (sentence.get("raw") or sentence["sent"]).split(" in ")[0]
