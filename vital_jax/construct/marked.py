"""An image and its masks become samples, or a reason why not: what all readers of flat data have in common.

Every part is looked at for itself. A mask that cannot be used is set aside with its reason, and its neighbours are used; only where the
image itself fails is nothing left. File names come from data, so they are checked to stay inside their folder before anything is opened.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vital_jax.construct.sample import Sample, png
from vital_jax.construct.shapes import meant_region, without_specks
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.targets import Targets
from vital_jax.pipeline.images import decode, image_size
from vital_jax.pipeline.masks import UnclearMask, check_value, decode_mask
from vital_jax.pipeline.tables import as_on_disk, read_json

MANIFEST = "manifest.jsonl"
_KEYS = ("id", "modality", "site", "image", "masks", "group", "source", "licence", "select", "split")
_MASK_KEYS = ("target", "file", "value", "outline")
_NOTES = (
    "area",
    "box",
    "id",
    "source",
    "licence",
    "annotator",
    "comment",
)  # keys of a mask that say nothing about its pixels
_MEANT = {
    "values": "value",
    "threshold": "value",
    "label": "value",
    "class": "value",
    "index": "value",
    "invert": "value",
}
# What must not be torn apart, by other names: as a mere note it would be lost, and the patient stand on two sides of the split.
_GROUPS = dict.fromkeys(("patient", "patient_id", "patientid", "subject", "subject_id", "case", "case_id"), "group")
_VOLUME_KEYS = ("labels", "label_set")  # beside `label`, and much like it
_DICOM = (".dcm", ".dicom", ".ima", "")  # files of a study often have no suffix, and neither has a folder of slices


@dataclass(frozen=True)
class Mask:
    """One target's mask.

    Attributes:
      target: as in the table of targets.
      file: what a rejection calls it.
      data: the encoded file, or why there is none.
      value: which of its values are the target, as in `decode_mask`. outline: whether its lines are to be filled, as in `meant_region`;
        None: by the rules there.
    """

    target: str
    file: str
    data: bytes | Rejected
    value: Any = None
    outline: bool | None = None


def inside(root: Path, name: Any, where: str) -> Path:
    """The file or folder that data names.

    Args:
      root: the folder it has to stay in, resolved. A folder in it that is a link counts as its own.
      name: relative to the root.
      where: what is blamed for a bad name: a file and its line.

    Raises:
      Rejected: bad-line, where it is no file name; path-escape; missing-file.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise Rejected("bad-line", where, f"{name!r} is no file name")
    try:
        # A folder of the root that is a link was put there by the user: a data set whose images lie on another disk.
        first = root / Path(name).parts[0]
        homes = [root, first.resolve()] if first.is_symlink() and first.is_dir() and first.parent == root else [root]
        path = (root / as_on_disk(root, name)).resolve()
        if not any(path.is_relative_to(home) for home in homes):
            raise Rejected("path-escape", where, f"{name!r} leads out of the folder")
        found = path.exists()
    except OSError as error:
        raise Rejected("bad-line", where, f"{name!r} is no file name ({error.strerror})") from error
    if not found:
        raise Rejected("missing-file", name, "not found")
    return path


def load(root: Path, name: Any, where: str, code: str) -> bytes:
    """The bytes of a file that data names. Raises: Rejected, as `inside`; `code`, where it cannot be opened."""
    path = inside(root, name, where)
    try:
        return path.read_bytes()
    except OSError as error:
        raise Rejected(code, name, f"cannot be read ({error.strerror})") from error


def check_image(data: bytes, file: str) -> dict:
    """Decodes an image to the last pixel. Returns what `decode` says about it. Raises: Rejected, unreadable-image."""
    try:
        return decode(data, "the image")[1]
    except ValueError as error:
        raise Rejected("unreadable-image", file, str(error)) from error


def marked_pixels(data: bytes, file: str, info: Mapping[str, Any], value: Any = None) -> np.ndarray:
    """As `decode_mask`. Raises: Rejected, unreadable-mask, size-mismatch or unclear-mask."""
    code = "unreadable-mask"
    try:
        if image_size(data, "the mask") != tuple(info["size"]):
            code = "size-mismatch"
        return decode_mask(data, "the mask", dict(info), value)
    except ValueError as error:
        raise Rejected("unclear-mask" if isinstance(error, UnclearMask) else code, file, str(error)) from error


def read_mask(mask: Mask, target: str, info: Mapping[str, Any], min_area: int, targets: Targets) -> np.ndarray:
    """What a mask means, on its image's stored pixel grid, without specks.

    Args:
      target: the name that the table of targets has for the mask's.
      info: what `decode` said about its image.

    Returns:
      [H, W] bool.

    Raises:
      Rejected: unreadable-mask, size-mismatch, unclear-mask or ring-mask.
    """
    if isinstance(mask.data, Rejected):
        raise mask.data
    region = marked_pixels(mask.data, mask.file, {**info, "orientation": 1}, mask.value)
    if mask.value is None or mask.outline is not None:
        region = meant_region(region, target, targets, mask.file, mask.outline)
    return without_specks(region, min_area)


def cut(
    fields: Mapping[str, Any],
    image: bytes,
    file: str,
    masks: Sequence[Mask],
    min_area: int,
    targets: Targets,
    size: tuple[int, int] | None = None,
) -> Iterator[Sample | Rejected]:
    """One image's samples, in the order of its masks, each under the name that the table of targets has for its target.

    Args:
      fields: of `Sample`, the same for all targets; `id` is that of the image.
      image: the encoded image. file: what a rejection calls it.
      masks: one per target.
      min_area: least foreground in pixels.
      size: (height, width) to which image and masks are resampled once they have been read.

    Yields:
      A `Sample` per mask, or a `Rejected` with unknown-target, unreadable-mask, size-mismatch, unclear-mask, ring-mask, empty-mask,
      small-mask, or duplicate-id for a second mask of a target. The note exif-turned, where the image is stored turned and a mask might
      have been drawn on it as it is seen.

    Raises:
      Rejected: unknown-modality or unreadable-image, where no mask can be used.
    """
    try:
        targets.family(fields["modality"])
    except ValueError as error:
        raise Rejected("unknown-modality", file, str(error)) from error
    info = check_image(image, file)
    regions, outcomes = {}, []
    for mask in masks:
        try:
            try:
                target = targets.canonical(mask.target, fields["site"])
            except ValueError as error:
                raise Rejected("unknown-target", mask.file, str(error)) from error
            if target in regions:
                raise Rejected("duplicate-id", mask.file, f"a second mask of {target!r} in {file}; unite them")
            regions[target] = read_mask(mask, target, info, min_area, targets)
            outcomes.append((mask, target))
        except Rejected as reason:
            outcomes.append((mask, reason))
    if size:
        shape = Image.open(BytesIO(image)).resize(size[::-1], Image.Resampling.BICUBIC)
        image = png(np.asarray(shape))
    # What is too small to be asked about is too small to be compared with.
    data = {
        target: png(region.astype(np.uint8) * 255, size)
        for target, region in regions.items()
        if region.sum() >= max(1, min_area)
    }
    present = tuple(dict.fromkeys(target_name(targets, mask.target, fields["site"]) for mask in masks))
    if info["orientation"] != 1 and masks:
        reason = (
            f"is stored turned (EXIF orientation {info['orientation']}); its masks are read on the stored pixel grid"
        )
        yield Rejected(
            "exif-turned", file, f"{reason}, so where they were drawn upright, save the image without the tag"
        )
    for mask, outcome in outcomes:
        if isinstance(outcome, Rejected):
            yield outcome
        elif not (area := int(regions[outcome].sum())):
            yield Rejected("empty-mask", mask.file, "marks nothing")
        elif area < min_area:
            yield Rejected("small-mask", mask.file, f"marks {area} pixels, fewer than {min_area}")
        else:
            yield Sample(
                **{**fields, "id": f"{fields['id']}/{outcome}"},
                image=image,
                mask=data[outcome],
                target=outcome,
                target_type=targets.row(outcome)["type"],
                present=present,
                neighbours=tuple(pair for pair in data.items() if pair[0] != outcome),
            )


def target_name(targets: Targets, name: str, site: str) -> str:
    """The name that the table has for a target, or the given one where it has none."""
    try:
        return targets.canonical(name, site)
    except ValueError:
        return name


# --- manifests ----------------------------------------------------------------------------------------------------


def line_kind(row: Mapping[str, Any]) -> str:
    """Which reader a manifest line is for: volumes, where it has a label; dicom or manifest, by its image's name, where it has masks; ""
    where it has neither."""
    if "masks" not in row:
        return "volumes" if "label" in row else ""
    image = row.get("image")
    return "dicom" if isinstance(image, str) and is_dicom(image) else "manifest"


def is_dicom(name: str) -> bool:
    """Whether a file is a DICOM file, or a folder of them, by its name."""
    return Path(name).suffix.lower() in _DICOM


def line_kinds(root: Path) -> set[str]:
    """The readers that a folder's manifest has lines for; "manifest" where no line can be read, so that one reader says so."""
    if not (root / MANIFEST).is_file():
        return set()
    kinds = {line_kind(row) for _, row in json_lines(root / MANIFEST) if isinstance(row, dict)}
    return kinds - {""} or {"manifest"}


def lines_of(root: Path, kind: str) -> Iterator[tuple[str, dict | Rejected]]:
    """As `json_lines`, of a folder's manifest: the lines of one kind, and those that are of none, which every reader of the folder gives.

    Raises: FileNotFoundError, no manifest.
    """
    if not (root / MANIFEST).is_file():
        raise FileNotFoundError(f"{root / MANIFEST}: not found; images with masks and volumes need one line each there")
    for where, row in json_lines(root / MANIFEST):
        if isinstance(row, Rejected):
            yield where, row
        elif line_kind(row) == kind:
            yield where, _on_disk(root, row)
        elif not line_kind(row):
            unknown = [key for key in row if key not in _VOLUME_KEYS]
            close = next(
                ((key, word) for word in ("masks", "label") for key in get_close_matches(word, unknown, 1)), None
            )
            near = f"; {close[0]!r} is perhaps meant as {close[1]!r}" if close else ""
            yield where, Rejected("bad-line", where, f"neither masks (of an image) nor label (of a volume){near}")


def _on_disk(root: Path, row: dict) -> dict:
    """The line with its files' names as the file system spells them, so that their sizes and times are found."""

    def spelt(name: Any) -> Any:
        return as_on_disk(root, name) if isinstance(name, str) else name

    for key in ("image", "label"):
        if key in row:
            row[key] = {k: spelt(v) for k, v in row[key].items()} if isinstance(row[key], dict) else spelt(row[key])
    for mask in row.get("masks", ()) if isinstance(row.get("masks"), list) else ():
        if isinstance(mask, dict) and "file" in mask:
            mask["file"] = spelt(mask["file"])
    return row


def json_lines(path: Path) -> Iterator[tuple[str, dict | Rejected]]:
    """Per line that is not blank: "name:number", and the JSON object (`read_json`) or why there is none. One line is held at a time."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                row = read_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                yield where, row if isinstance(row, dict) else Rejected("bad-line", where, "not a JSON object")
            except ValueError as error:
                yield where, Rejected("bad-line", where, f"not a JSON object ({error})")
            except RecursionError:
                yield where, Rejected("bad-line", where, "not a JSON object (nested too deeply)")


def manifest_units(root: Path, kind: str, facts: Callable[[dict], dict] = lambda row: {}) -> list[Unit]:
    """The units of a manifest's lines of one kind. A line that cannot be used is a unit that `refuse` rejects.

    Args:
      facts: more facts for a line's unit.

    Raises:
      FileNotFoundError: no manifest.
    """
    units, seen = [], set()
    for where, row in lines_of(root, kind):
        try:
            if isinstance(row, Rejected):
                raise row
            _check_line(row, where)
            if str(row["id"]) in seen:
                raise Rejected("duplicate-id", where, f"id {row['id']!r} comes twice")
            files = (row["image"], *(mask["file"] for mask in row["masks"]))
            split = {"split": row["split"]} if "split" in row else {}
            units.append(Unit(str(row["id"]), files, {"where": where, "row": row, **split, **facts(row)}))
            seen.add(str(row["id"]))
        except Rejected as reason:
            units.append(refused(where, reason))
    return units


def check_keys(row: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """A line may say anything about an image; but a key that is nearly one of ours was meant to be read.

    Raises:
      Rejected: bad-line, for such a key, where the one that is meant is not there too.
    """
    for key in row.keys() - set(known):
        word = key.strip().lower()
        meant = _GROUPS.get(word) or next(iter(get_close_matches(word, known, 1, 0.82)), "")
        meant = "value of a mask" if word in ("value", *_MEANT) and word not in known else meant
        if meant and meant not in row:
            raise Rejected("bad-line", where, f"{key!r} is not read; it is perhaps meant as {meant!r}")


def _check_line(row: dict, where: str) -> None:
    def check(ok: bool, reason: str) -> None:
        if not ok:
            raise Rejected("bad-line", where, reason)

    missing = {"id", "modality", "site", "image"} - row.keys()
    check(not missing, f"{', '.join(sorted(missing))} missing")
    check(
        type(row["id"]) in (str, int) and str(row["id"]).isprintable() and row["id"] != "",
        f"id {row['id']!r} is no name",
    )
    for key in ("modality", "site", "image", "source", "licence", "split"):
        check(isinstance(row.get(key, ""), str), f"{key} must be text, not {row.get(key)!r}")
    check(type(row.get("group", "")) in (str, int), f"group must be text or a number, not {row.get('group')!r}")
    masks = row["masks"]
    good = isinstance(masks, list) and all(_is_mask(mask, line_kind(row)) for mask in masks)
    check(good, "every mask needs a target and a file")
    check_keys(row, _KEYS, where)
    select = row.get("select", {})
    tags = isinstance(select, dict) and all(isinstance(v, str | int | float) for v in select.values())
    check(tags, f'select must be like {{"TemporalPositionIdentifier": 1}}, not {select!r}')
    for mask in masks:
        for key in mask.keys() - {*_MASK_KEYS, *_NOTES}:
            near = _MEANT.get(key) or next(iter(get_close_matches(key, _MASK_KEYS, 1)), "")
            known = f"a mask has {', '.join(_MASK_KEYS)}, and notes under {', '.join(_NOTES)}"
            check(False, f"{key!r} of a mask is not read{f'; it is perhaps meant as {near!r}' * bool(near)}; {known}")
        check(type(mask.get("outline", True)) is bool, f"outline must be true or false, not {mask.get('outline')!r}")
        if "value" in mask:
            try:
                check_value(mask["value"], f"mask {mask['file']!r}")
            except ValueError as error:
                raise Rejected("bad-line", where, str(error)) from error
    names = [mask["target"] for mask in masks if "target" in mask]
    check(len(set(names)) == len(names), "a target has two masks; unite them")


def _is_mask(mask: Any, kind: str) -> bool:
    """Whether it has a file and a target; the segments of a DICOM file have names of their own."""
    if not isinstance(mask, dict) or not isinstance(mask.get("file"), str):
        return False
    named = kind == "dicom" and is_dicom(mask["file"]) and "target" not in mask
    return named or isinstance(mask.get("target"), str)


def refused(unit: str, reason: Rejected) -> Unit:
    """A unit that stands for what could not be listed; `refuse` rejects it when it is read."""
    return Unit(unit, (), {"rejected": [reason.code, reason.file, reason.reason]})


def refuse(unit: Unit) -> None:
    """Raises: Rejected, for a unit made by `refused`."""
    if "rejected" in unit.facts:
        raise Rejected(*unit.facts["rejected"])
