"""Folders of labelled volumes: the Medical Segmentation Decathlon as distributed, and a manifest for everything else.

`Msd` reads a folder such as Task09_Spleen (`dataset.json`, imagesTr, labelsTr). The ten tasks of the Decathlon (Antonelli et al. 2022) are
known by what their dataset.json says, and read by the tables in `data/volumes.json`: modality, site, what the label values mean, and
which channels of a 4-D image show which targets. Any other folder of that form is read by its own labels, which must be in the table of
targets.

`Volumes` reads the lines of a `manifest.jsonl` that name a label instead of masks:

    {"id": "7", "modality": "CT", "site": "abdomen", "image": "7.nii.gz", "label": "7_seg.nii.gz",
     "labels": {"0": "background", "1": "liver"}, "group": "patient-3"}

`label` may also name several files, {"liver": "liver.nii.gz", "all": "multilabel.nii.gz"}: one that holds only 0 and 1 and is named after a
target shows it; for others `label_set` says whose ids they hold ("total" or "total_mr" of TotalSegmentator, `data/volumes.json`), or
`labels` holds their table under their name. `channel` chooses one of a 4-D image.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vital_jax.construct.marked import check_keys, inside, line_kinds, lines_of, refuse, refused
from vital_jax.construct.nifti import Stack, check_orientation, read_labels, read_stack
from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.volumes import Case, Channel, Cutter, Labels, load_tables, mirrored
from vital_jax.pipeline.tables import as_on_disk, read_json

_LOG = logging.getLogger(__name__)
_KEYS = (
    "id",
    "modality",
    "site",
    "image",
    "label",
    "labels",
    "label_set",
    "kind",
    "channel",
    "group",
    "licence",
    "split",
)


@dataclass(frozen=True)
class VolumeFolder(Cutter):
    """What all readers of labelled volumes share.

    Args:
      root: the folder. orientation: what the axes of its arrays run towards ("LPS"), in place of what the files say.
      site, licence: of volumes for which nothing else is stated. name: another than the folder's.
      min_area, max_slices, stride, complete, targets: as in `Cutter`.
    """

    root: Path
    orientation: str = ""
    site: str = ""
    licence: str = ""
    name: str = ""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "root", Path(self.root).resolve())
        object.__setattr__(self, "name", self.name or self.root.name)
        check_orientation(self.orientation)

    def _known(self, name: str, site: str = "") -> str:
        """A name as the table of targets has it; empty where it has none."""
        try:
            return self.targets.canonical(name, site)
        except ValueError:
            return ""

    def _values(self, labels: Mapping[str, str], site: str) -> dict[str, list[int]]:
        """Which values make up each target, by {value: label}, background left out."""
        found = {}
        for value, name in labels.items():
            if int(value):
                found.setdefault(self._known(name, site) or name, []).append(int(value))
        return found

    def _samples(self, case: Case) -> Iterator[Sample | Rejected]:
        """A case's samples. Directions that the user gave are not doubted: some patients do have their liver on the left."""
        if not self.orientation and (what := mirrored(case.labels)):
            reason = f"its affine puts {what}; give orientation: the true one, or the file's own if this is how the patient is"
            raise Rejected("mirrored", case.file, reason)
        yield from self.cut(case, self.name)


@dataclass(frozen=True)
class Msd(VolumeFolder):
    """The labelled volumes (`training`) of a Decathlon task, or of a folder of that form.

    Raises (by `units` and `read`):
      FileNotFoundError, ValueError: no dataset.json, or one that is not of the Decathlon's form; the message names what is wrong.
    """

    kind: ClassVar[str] = "msd"

    @staticmethod
    def claims(root: Path) -> bool:
        """Whether a folder looks like a Decathlon task, by file names only."""
        return (Path(root) / "dataset.json").is_file() and (Path(root) / "imagesTr").is_dir()

    def units(self) -> list[Unit]:
        table, units, seen = self._table(), [], set()
        facts = {key: table.get(key, "") for key in ("name", "labels", "modality", "licence")}
        for number, entry in enumerate(table["training"]):
            where = f"dataset.json:training[{number}]"
            if not (isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "label"))):
                units.append(refused(where, Rejected("bad-line", where, "not an image with a label")))
                continue
            files = tuple(as_on_disk(self.root, entry[key].removeprefix("./")) for key in ("image", "label"))
            volume = Path(files[0]).name.removesuffix(".gz").removesuffix(".nii")
            # macOS leaves such files beside the real ones when it packs an archive; they hold no image.
            if volume.startswith("._"):
                continue
            if volume in seen:
                units.append(
                    refused(where, Rejected("duplicate-id", where, f"{volume!r} comes twice; the first is read"))
                )
                continue
            seen.add(volume)
            units.append(Unit(volume, files, facts))
        return units

    def read(self, unit: Unit) -> Iterator[Sample | Rejected]:
        refuse(unit)
        task = self._task(unit.facts)
        usual = task.get("orientation", "")
        stack, labels = self._open(unit, task, self.orientation, usual)
        if usual and not self.orientation and (what := mirrored([labels])):
            _LOG.info("%s: its affine puts %s; read as %s", unit.files[0], what, usual)
            stack, labels = self._open(unit, task, usual, "")
        site, licence = self.site or task["site"], self.licence or str(unit.facts["licence"])
        case = Case(unit.id, unit.files[0], stack, [labels], self._channels(task), site, unit.id, licence)
        yield from self._samples(case)

    def _open(self, unit: Unit, task: dict, orientation: str, fallback: str) -> tuple[Stack, Labels]:
        image, label = (inside(self.root, name, "dataset.json") for name in unit.files)
        stack = read_stack(image, unit.files[0], orientation=orientation, fallback=fallback)
        return stack, Labels(unit.files[1], read_labels(label, unit.files[1], stack), task["targets"])

    def _table(self) -> dict:
        path = self.root / "dataset.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; a folder of the Decathlon's form has one")
        try:
            table = read_json(path.read_text(encoding="utf-8-sig"))
            lists = isinstance(table["training"], list)
            names = [*table["labels"].values(), *table["modality"].values()]
            whole = all(key.isdigit() for key in (*table["labels"], *table["modality"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a table of the Decathlon's form ({error!r})") from error
        if not (lists and whole and names and all(isinstance(name, str) for name in names)):
            form = '"labels" {"0": "background", ...}, "modality" {"0": "CT"} and a list "training"'
            raise ValueError(f"{path}: not a table of the Decathlon's form: {form}")
        return table

    def _task(self, facts: Mapping[str, Any]) -> dict:
        """The row of `data/volumes.json`, or one of the same form from the folder's own labels."""
        labels = {int(value): _plain(name) for value, name in facts["labels"].items()}
        folder = {_letters(self.root.name), _letters(str(facts["name"]))}
        for key, row in load_tables()["tasks"].items():
            names = [_letters(key.partition("_")[2]), *row["names"]]
            if labels == dict(enumerate(row["labels"])) and any(name in text for name in names for text in folder):
                return row
        channels = {number: {"modality": name} for number, name in facts["modality"].items()}
        kinds = {"modality": channels.popitem()[1]["modality"]} if len(channels) == 1 else {"channels": channels}
        return {"site": "", "targets": self._values(facts["labels"], self.site), **kinds}

    @staticmethod
    def _channels(task: dict) -> list[Channel]:
        if "channels" not in task:
            return [Channel(None, task["modality"])]
        return [Channel(int(n), row["modality"], tuple(row.get("targets", ()))) for n, row in task["channels"].items()]


@dataclass(frozen=True)
class Volumes(VolumeFolder):
    """The volumes of a folder with a `manifest.jsonl` (see this file's head). Lines with masks are another reader's.

    Raises (by `units`):
      FileNotFoundError: no manifest.
    """

    kind: ClassVar[str] = "volumes"

    @staticmethod
    def claims(root: Path) -> bool:
        """Whether a folder's manifest has lines without masks, and no other reader of volumes takes it."""
        return not Msd.claims(root) and Volumes.kind in line_kinds(Path(root))

    def units(self) -> list[Unit]:
        units, seen = [], set()
        for where, row in lines_of(self.root, self.kind):
            try:
                if isinstance(row, Rejected):
                    raise row
                _check_line(row, where)
                if row["id"] in seen:
                    raise Rejected("duplicate-id", where, f"id {row['id']!r} comes twice; the first is read")
                seen.add(row["id"])
                facts = {"where": where, "row": row} | ({"split": row["split"]} if "split" in row else {})
                units.append(Unit(row["id"], (row["image"], *_files(row).values()), facts))
            except Rejected as reason:
                units.append(refused(where, reason))
        return units

    def read(self, unit: Unit) -> Iterator[Sample | Rejected]:
        refuse(unit)
        row, where = unit.facts["row"], unit.facts["where"]
        site, group = row["site"] or self.site, row.get("group", row["id"])
        image = inside(self.root, row["image"], where)
        stack, labels, failed = read_stack(image, row["image"], orientation=self.orientation), [], []
        for key, name in _files(row).items():
            try:
                values = read_labels(inside(self.root, name, where), name, stack)
                labels.append(Labels(name, values, self._meaning(row, key, site, where, int(values.max()))))
            except Rejected as reason:
                failed.append(reason)
        if failed and not labels:
            raise failed[0]
        yield from failed
        licence = row.get("licence", self.licence)
        channels = [Channel(row.get("channel"), row["modality"])]
        yield from self._samples(Case(row["id"], row["image"], stack, labels, channels, site, group, licence))

    def _meaning(self, row: Mapping[str, Any], key: str, site: str, where: str, highest: int) -> dict[str, list[int]]:
        """What the values of a label file make up."""
        table = row.get("labels", {})
        table = table.get(key, {}) if key else table
        if table:
            try:
                return self._values(table, site)
            except (ValueError, AttributeError) as error:
                reason = f'labels must be like {{"0": "background", "1": "liver"}}, not {table!r}'
                raise Rejected("bad-line", where, reason) from error
        target = self._known(key, site) if key else ""
        if target and highest <= 1:
            return {target: [1]}
        for name, known in load_tables()["label_sets"].items():
            if row.get("label_set") == name or known["stated"] in row.get("kind", ""):
                return {target: [value] for value, target in enumerate(known["targets"], 1)}
        reason = f"nothing says what its values mean (up to {highest}); give labels, or label_set"
        raise Rejected("unknown-label", _files(row)[key], f"{reason}: {', '.join(load_tables()['label_sets'])}")


def _files(row: Mapping[str, Any]) -> dict[str, str]:
    """A manifest line's label files by their names; one alone has no name."""
    return row["label"] if isinstance(row["label"], dict) else {"": row["label"]}


_TEXTS = ("id", "modality", "site", "image", "group", "licence", "kind", "split")


def _check_line(row: Mapping[str, Any], where: str) -> None:
    """Raises: Rejected (bad-line), where a manifest line is not what this file's head says."""
    missing = {"id", "modality", "site", "image", "label"} - row.keys()
    if missing:
        raise Rejected("bad-line", where, f"{', '.join(sorted(missing))} missing")
    check_keys(row, _KEYS, where)
    texts = {key: row[key] for key in _TEXTS if key in row}
    for key, value in {**texts, **{f"label {name}".strip(): file for name, file in _files(row).items()}}.items():
        if not isinstance(value, str) or (key == "id" and not (value and value.isprintable())):
            raise Rejected("bad-line", where, f"{key} must be text, not {value!r}")
    if not _files(row) or not isinstance(row.get("labels", {}), dict) or type(row.get("channel", 0)) is not int:
        raise Rejected("bad-line", where, "label needs a file, labels a table and channel a whole number")


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("tumour", "tumor").replace("_", " ").split())


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
