"""An image and its masks become samples, or a reason why not: what all readers of flat data have in common.

Every part is looked at for itself. A mask that cannot be used is set aside with its reason, and its neighbours are used; only where the
image itself fails is nothing left. File names come from data, so they are checked to stay inside their folder before anything is opened.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vital_jax.construct.sample import Sample, region_of
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.targets import Targets
from vital_jax.pipeline.images import decode, image_size
from vital_jax.pipeline.tables import as_on_disk, read_json

MANIFEST = "manifest.jsonl"
_VOLUME_KEYS = ("labels", "label_set")  # beside `label`, and much like it
_DICOM = (".dcm", ".dicom", ".ima", "")  # files of a study often have no suffix, and neither has a folder of slices


@dataclass(frozen=True)
class Mask:
    """One target's mask.

    Attributes:
      target: as in the table of targets.
      file: what a rejection calls it.
      data: the encoded file, or why there is none.
    """

    target: str
    file: str
    data: bytes | Rejected


def inside(root: Path, name: Any, where: str) -> Path:
    """The file or folder that data names.

    Args:
      root: the folder it has to stay in, resolved.
      name: relative to the root.
      where: what is blamed for a bad name: a file and its line.

    Raises:
      Rejected: bad-line, where it is no file name; path-escape; missing-file.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise Rejected("bad-line", where, f"{name!r} is no file name")
    try:
        path = (root / as_on_disk(root, name)).resolve()
        if not path.is_relative_to(root):
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


def check_mask(data: bytes, file: str, info: Mapping[str, Any]) -> int:
    """The area of a mask in pixels.

    Args:
      data: the encoded mask. file: what a rejection calls it.
      info: what `decode` said about its image.

    Raises:
      Rejected: unreadable-mask, size-mismatch.
    """
    code = "unreadable-mask"
    try:
        if image_size(data, "the mask") != tuple(info["size"]):
            code = "size-mismatch"
        return int(region_of(data, tuple(info["size"]), info["orientation"]).sum())
    except ValueError as error:
        raise Rejected(code, file, str(error)) from error


def cut(
    fields: Mapping[str, Any], image: bytes, file: str, masks: Sequence[Mask], min_area: int, targets: Targets
) -> Iterator[Sample | Rejected]:
    """One image's samples, in the order of its masks, each under the name that the table of targets has for its target.

    Args:
      fields: of `Sample`, the same for all targets; `id` is that of the image.
      image: the encoded image. file: what a rejection calls it.
      masks: one per target.
      min_area: least foreground in pixels.

    Yields:
      A `Sample` per mask, or a `Rejected` with unknown-target, unreadable-mask, size-mismatch, empty-mask, small-mask, or duplicate-id
      for a second mask of a target.

    Raises:
      Rejected: unknown-modality or unreadable-image, where no mask can be used.
    """
    try:
        targets.family(fields["modality"])
    except ValueError as error:
        raise Rejected("unknown-modality", file, str(error)) from error
    info = check_image(image, file)
    areas, outcomes = {}, []
    for mask in masks:
        try:
            if isinstance(mask.data, Rejected):
                raise mask.data
            try:
                target = targets.canonical(mask.target, fields["site"])
            except ValueError as error:
                raise Rejected("unknown-target", mask.file, str(error)) from error
            if target in areas:
                raise Rejected("duplicate-id", mask.file, f"a second mask of {target!r} in {file}; unite them")
            areas[target] = check_mask(mask.data, mask.file, info)
            outcomes.append((mask, target))
        except Rejected as reason:
            outcomes.append((mask, reason))
    # What is too small to be asked about is too small to be compared with.
    good = [(outcome, mask.data) for mask, outcome in outcomes if areas.get(outcome, 0) >= max(1, min_area)]
    present = tuple(dict.fromkeys(target_name(targets, mask.target, fields["site"]) for mask in masks))
    for mask, outcome in outcomes:
        if isinstance(outcome, Rejected):
            yield outcome
        elif areas[outcome] == 0:
            yield Rejected("empty-mask", mask.file, "marks nothing")
        elif areas[outcome] < min_area:
            yield Rejected("small-mask", mask.file, f"marks {areas[outcome]} pixels, fewer than {min_area}")
        else:
            yield Sample(
                **{**fields, "id": f"{fields['id']}/{outcome}"},
                image=image,
                mask=mask.data,
                target=outcome,
                target_type=targets.row(outcome)["type"],
                present=present,
                neighbours=tuple(pair for pair in good if pair[0] != outcome),
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
    return "dicom" if isinstance(image, str) and Path(image).suffix.lower() in _DICOM else "manifest"


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
    good = isinstance(masks, list) and all(
        isinstance(mask, dict) and all(isinstance(mask.get(key), str) for key in ("target", "file")) for mask in masks
    )
    check(good, "every mask needs a target and a file")
    check(len({mask["target"] for mask in masks}) == len(masks), "a target has two masks; unite them")


def refused(unit: str, reason: Rejected) -> Unit:
    """A unit that stands for what could not be listed; `refuse` rejects it when it is read."""
    return Unit(unit, (), {"rejected": [reason.code, reason.file, reason.reason]})


def refuse(unit: Unit) -> None:
    """Raises: Rejected, for a unit made by `refused`."""
    if "rejected" in unit.facts:
        raise Rejected(*unit.facts["rejected"])
