"""Folders without a manifest that everybody has: `images/` beside `masks/`, and COCO.

    images/17.png, masks/17.png                        one target: the option `target`
    images/17.png, masks/liver/17.png                  a folder for each target
    images/17.png, masks/17_liver.png                  a mask for each target, named after it
    train/images/17.png, train/masks/17.png            with a split of its own, likewise images/train, masks/train
    annotations/instances_train2017.json               COCO: polygons, or run lengths with or without compression; one file per side
    train/_annotations.coco.json, train/17.jpg         COCO as Roboflow writes it

Such folders do not say what kind of image they hold, so a plan file does, with the options `modality` and `site`. A COCO category is a
target by its name; all its annotations in an image are one mask. Coordinates are those of the stored picture.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageDraw

from vital_jax.construct.marked import Mask, cut, load, refuse, refused
from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.splits import official
from vital_jax.construct.targets import Targets, load_targets
from vital_jax.pipeline.tables import as_on_disk, composed, read_json

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_IMAGES, _MASKS = ("images", "image", "imgs"), ("masks", "mask", "labels")
_HEAD = 1 << 16  # bytes of a file that show whether it is COCO


@dataclass
class _Folder:
    """What both readers share.

    Args:
      root: the folder. modality, site: of all its images, as in the table of targets.
      min_area: least foreground of a mask in pixels. licence: of the data. name: another than the folder's.
    """

    root: Path
    modality: str = ""
    site: str = ""
    min_area: int = 100
    licence: str = ""
    targets: Targets = field(default_factory=load_targets)
    name: str = ""

    def __post_init__(self):
        self.root = Path(self.root).resolve()
        self.name = self.name or self.root.name

    def _stated(self, *options: str) -> None:
        """Raises: ValueError, where the folder leaves something to be said and the options do not say it."""
        if missing := [option for option in ("modality", *options) if not getattr(self, option)]:
            raise ValueError(
                f"{self.root}: nothing says its {' and '.join(missing)}; give [[source]] path, {', '.join(missing)} in a plan file (--plan)"
            )

    def _cut(self, unit: Unit, masks: Sequence[Mask]) -> Iterator[Sample | Rejected]:
        file = unit.files[0]
        fields = {
            "id": f"{self.name}/{unit.id}",
            "modality": self.modality,
            "site": self.site,
            "group": f"{self.name}/{composed(unit.facts.get('group', unit.id))}",
            "source": self.name,
            "licence": self.licence,
        }
        yield from cut(
            fields, load(self.root, file, file, "unreadable-image"), file, masks, self.min_area, self.targets
        )


@dataclass
class Pairs(_Folder):
    """A `Source` of `images/` beside `masks/`.

    Args:
      target: what masks show whose name or folder says nothing. Others as `_Folder`.
    """

    target: str = ""
    kind: ClassVar[str] = "pairs"

    @classmethod
    def claims(cls, root: Path) -> bool:
        """Whether a folder of images stands beside one of masks."""
        return any(True for _ in _pairs(root))

    def units(self) -> Sequence[Unit]:
        """One per image that has a mask, and one per mask without an image. Raises: ValueError, no such folders, or options missing."""
        self._stated()
        units, pairs = [], list(_pairs(self.root))
        if not pairs:
            raise ValueError(f"{self.root}: no folder images beside a folder masks")
        for split, images, masks in pairs:
            pictures = {composed(path.stem): path for path in _pictures(images)}
            owned = defaultdict(list)
            for path in _pictures(masks) + [file for folder in _folders(masks) for file in _pictures(folder)]:
                told = path.parent.name if path.parent != masks else ""
                name = composed(path.stem)
                stem = next((name[:end] for end in _ends(name) if name[:end] in pictures), None)
                file = path.relative_to(self.root).as_posix()
                if stem is None:
                    reason = f"no image of this name in {images.relative_to(self.root)}"
                    units.append(refused(file, Rejected("missing-file", file, reason)))
                    continue
                rest = re.sub(r"^[_-]|[_-]?(mask|seg|segmentation|label)$", "", name[len(stem) :])
                target = told or rest.replace("_", " ").replace("+", " ").strip()
                if not (target and not target.isdigit()):
                    self._stated("target")
                    target = self.target
                owned[stem].append([target, file])
            for stem, marks in sorted(owned.items()):
                image = pictures[stem].relative_to(self.root).as_posix()
                number = f"{split}/{stem}" if split else stem
                units.append(Unit(number, (image, *(file for _, file in marks)), {"masks": marks, "split": split}))
        return units

    def read(self, unit: Unit) -> Iterator[Sample | Rejected]:
        """The samples of one image. Raises: Rejected, as `marked.cut`."""
        refuse(unit)
        masks = []
        for target, file in unit.facts["masks"]:
            try:
                masks.append(Mask(target, file, load(self.root, file, file, "unreadable-mask")))
            except Rejected as reason:
                masks.append(Mask(target, file, reason))
        yield from self._cut(unit, masks)


def _ends(name: str) -> list[int]:
    """Where an image's name may end in a mask's: the whole, then before each _ or -."""
    return [len(name), *(found.start() for found in reversed(list(re.finditer("[_-]", name))))]


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES and not p.name.startswith("."))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _pairs(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """(side, folder of images, folder of masks)."""
    if not root.is_dir():
        return
    for split, base in [("", root), *((path.name, path) for path in _folders(root) if official(path.name))]:
        images = next((base / name for name in _IMAGES if (base / name).is_dir()), None)
        masks = next((base / name for name in _MASKS if (base / name).is_dir()), None)
        if not images or not masks:
            continue
        if _pictures(images) and (_pictures(masks) or any(_pictures(folder) for folder in _folders(masks))):
            yield split, images, masks
        for path in _folders(images) if not split else ():
            if official(path.name) and (masks / path.name).is_dir() and _pictures(path):
                yield path.name, path, masks / path.name


@dataclass
class Coco(_Folder):
    """A `Source` of the images and annotations of COCO files."""

    kind: ClassVar[str] = "coco"

    @classmethod
    def claims(cls, root: Path) -> bool:
        """Whether there is a COCO file."""
        return bool(_coco(root))

    def units(self) -> Sequence[Unit]:
        """One per annotated image; and one per annotation that cannot be used. Raises: ValueError, no COCO file, or no modality stated."""
        self._stated()
        found = [unit for path in _coco(self.root) for unit in self._file(path)]
        if not found:
            raise ValueError(f"{self.root}: no COCO file with images, annotations and categories")
        return found

    def _file(self, path: Path) -> Iterator[Unit]:
        file = path.relative_to(self.root).as_posix()
        try:
            table = read_json(path.read_bytes())
            images = {image["id"]: image for image in table["images"] if isinstance(image, Mapping) and "id" in image}
            names = {category["id"]: str(category["name"]) for category in table["categories"]}
            annotations = list(table["annotations"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: not a COCO file ({error!r})") from error
        for number, image in enumerate(table["images"]):
            if not isinstance(image, Mapping) or "id" not in image:
                where = f"{file}:images[{number}]"
                yield refused(
                    where, Rejected("bad-line", where, "an image without an id, to which no annotation can belong")
                )
        owned = defaultdict(lambda: defaultdict(list))
        for number, row in enumerate(annotations):
            where = f"{file}:annotations[{number}]"
            try:
                target, shape = names[row["category_id"]], row["segmentation"]
                if not shape:
                    raise ValueError("no segmentation, perhaps a box alone")
                owned[images[row["image_id"]]["id"]][target].append(shape)
            except (KeyError, TypeError, ValueError) as error:
                yield refused(where, Rejected("bad-line", where, f"not an annotation of a region ({error!r})"))
        split = next((word for word in re.split(r"[_.\-/]", file) if official(word)), "")
        for key, shapes in sorted(owned.items(), key=lambda item: str(item[0])):
            image = images[key]
            name = self._place(path, str(image.get("file_name")), split)
            facts = {"size": [image.get("height"), image.get("width")], "shapes": dict(shapes), "split": split}
            stem = composed(Path(name).with_suffix("").as_posix())
            yield Unit(f"{split}/{stem}" if split and split not in stem else stem, (name,), facts)

    def _place(self, path: Path, name: str, split: str) -> str:
        """Where an image is, from the root; the name itself where it is nowhere."""
        bases = [path.parent, self.root, self.root / "images", *([self.root / split] if split else [])]
        bases += [
            self.root / "images" / split,
            *(folder for folder in _folders(self.root) if split and split in folder.name),
        ]
        for base in bases:
            spelt = as_on_disk(base, name)
            if ".." not in name.split("/") and (base / spelt).is_file():
                return (base / spelt).relative_to(self.root).as_posix()
        return name

    def read(self, unit: Unit) -> Iterator[Sample | Rejected]:
        """The samples of one image. Raises: Rejected, as `marked.cut`."""
        refuse(unit)
        masks = []
        for target, shapes in unit.facts["shapes"].items():
            try:
                masks.append(Mask(target, f"{unit.files[0]} ({target})", draw(shapes, unit.facts["size"])))
            except (ValueError, TypeError, IndexError) as error:
                reason = Rejected("unreadable-mask", unit.files[0], f"{target}: {error}")
                masks.append(Mask(target, unit.files[0], reason))
        yield from self._cut(unit, masks)


def _coco(root: Path) -> list[Path]:
    found = []
    for path in sorted(
        [*root.glob("*.json"), *root.glob("annotations/*.json"), *root.glob("*/_annotations.coco.json")]
    ):
        with path.open("rb") as file:
            head = file.read(_HEAD)
        tail = path.name.endswith(".coco.json") or path.parent.name == "annotations"
        if (
            b'"images"' in head
            and (tail or b'"annotations"' in head or b'"categories"' in head)
            and b"mask_file" not in head
        ):
            found.append(path)
    return found


def draw(shapes: Sequence[Any], size: Sequence[int]) -> bytes:
    """A mask of COCO's shapes, as PNG of 0 and 255.

    Args:
      shapes: lists of polygons [x1, y1, x2, y2, ...], or {"counts", "size"} with run lengths. size: (height, width).

    Raises: ValueError, a shape that is none or of another size.
    """
    height, width = size
    if not all(type(side) is int and side > 0 for side in (height, width)):
        raise ValueError(f"the image's height and width are {height!r} and {width!r}")
    image = Image.new("1", (width, height))
    brush = ImageDraw.Draw(image)
    runs = np.zeros((height, width), bool)
    for shape in shapes:
        if isinstance(shape, Mapping):
            if list(shape["size"]) != [height, width]:
                raise ValueError(f"run lengths of {shape['size']} for an image of {[height, width]}")
            runs |= run_lengths(shape["counts"], height, width)
            continue
        for polygon in shape:
            if len(polygon) < 6 or len(polygon) % 2 or not all(isinstance(v, int | float) for v in polygon):
                raise ValueError(f"a polygon of {len(polygon)} numbers, of which {polygon.count(None)} are missing")
            # A pixel's center is at .5 there, and at whole numbers here.
            brush.polygon([(x - 0.5, y - 0.5) for x, y in zip(polygon[::2], polygon[1::2], strict=True)], fill=1)
    data = BytesIO()
    Image.fromarray((np.asarray(image) | runs).astype(np.uint8) * 255).save(data, "PNG")
    return data.getvalue()


def run_lengths(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """[H, W] bool of COCO's run lengths, column by column, beginning with background; text is COCO's compressed form.

    Raises: ValueError, runs that do not fill the image.
    """
    if isinstance(counts, str):
        counts = _uncompressed(counts)
    counts = np.asarray(counts, np.int64)
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"run lengths of {int(counts.sum())} pixels in an image of {height * width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def _uncompressed(text: str) -> list[int]:
    """Numbers of 5 bits a letter, lowest first, bit 5 for more to come; from the third on the difference to the one before the last."""
    counts, number, shift = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{letter!r} is no part of compressed run lengths")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number = shift = 0
    return counts
