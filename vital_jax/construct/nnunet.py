"""nnU-Net's raw folders, of its first and its second version: `Task005_Prostate`, `Dataset005_Prostate`.

    dataset.json, version 1       "labels": {"0": "background", "1": "liver"}, "modality": {"0": "CT"}
    dataset.json, version 2       "labels": {"background": 0, "liver": 1, "whole": [1, 2], "ignore": 3},
                                  "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"
    imagesTr/liver_001_0000.nii.gz, labelsTr/liver_001.nii.gz      one file per channel
    imagesTs, labelsTs                                             where labels of the test set are there, they are its test side

Every channel of a case is shown; a picture in colours (.png, .bmp, .tif) is one file for all its channels. A channel's name is its modality
where the table of targets has it, or a sequence of MRI; any other needs the option `modality`. Slices and pictures with pixels of the
ignore label are left out, for nobody said what is there.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vital_jax.construct.marked import Mask, cut, inside, load, refuse, refused
from vital_jax.construct.msd import VolumeFolder
from vital_jax.construct.nifti import ENDINGS, check_readable, read_labels, read_stack
from vital_jax.construct.sample import Sample, png
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.volumes import Case, Channel, Labels
from vital_jax.pipeline.images import read
from vital_jax.pipeline.tables import read_json

_PICTURES = (".png", ".bmp", ".tif", ".tiff")
_CODES = ("unreadable-image", "unreadable-mask")
_SIDES = {"Tr": "", "Ts": "test"}
_SEQUENCE = re.compile(r"(mri?|t1|t2|flair|adc|dwi|pd|swi|dce|lge|cine)\b.*|t[12].*", re.IGNORECASE)


@dataclass(frozen=True)
class NnUnet(VolumeFolder):
    """The labelled cases of a raw folder of nnU-Net.

    Args:
      modality: of all channels, in place of their names. Others as for all folders of volumes.

    Raises (by `units`):
      FileNotFoundError, ValueError: no dataset.json, or one that is not of either version; files of an ending that is not read.
      ImportError: what reads files of its ending is not installed.
    """

    modality: str = ""
    kind: ClassVar[str] = "nnunet"

    @staticmethod
    def claims(root: Path) -> bool:
        """Whether there is a dataset.json with images whose names end in a channel's number."""
        images = Path(root) / "imagesTr"
        return (Path(root) / "dataset.json").is_file() and any(images.glob("*_0000.*")) if images.is_dir() else False

    def units(self) -> list[Unit]:
        table, units = self._table(), []
        for part, side in _SIDES.items():
            folder = self.root / f"labels{part}"
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                ending = next((ending for ending in table["endings"] if path.name.endswith(ending)), "")
                if not path.name.startswith(".") and ending:
                    units += self._case(table, part, path.name.removesuffix(ending), ending, side)
        if not units:
            raise ValueError(f"{self.root}: no labels as {' or '.join(table['endings'])} in labelsTr")
        return units

    def _case(self, table: Mapping[str, Any], part: str, case: str, ending: str, side: str) -> Iterator[Unit]:
        """One unit per channel of a case."""
        label, names = f"labels{part}/{case}{ending}", table["channels"]
        images = [f"images{part}/{case}_{number:04d}{ending}" for number in range(len(names))]
        if ending in _PICTURES and not any((self.root / image).is_file() for image in images[1:]):
            images, names = images[:1], [", ".join(names)]
        for number, (image, name) in enumerate(zip(images, names, strict=True)):
            if not (self.root / image).is_file():
                yield refused(image, Rejected("missing-file", image, f"not found; it is an image of {label}"))
                continue
            told = "" if len(names) == 1 else f"-{name}" if names.count(name) == 1 else f"-{number:04d}"
            facts = {key: table[key] for key in ("targets", "ignored", "licence")}
            yield Unit(case + told, (image, label), facts | {"case": case, "channel": name, "split": side})

    def read(self, unit: Unit) -> Iterator[Sample | Rejected]:
        refuse(unit)
        modality = self.modality or _modality(unit.facts["channel"], self.targets)
        licence = self.licence or unit.facts["licence"]
        if unit.files[0].endswith(_PICTURES):
            yield from self._picture(unit, modality, licence)
            return
        image, label = (inside(self.root, name, "dataset.json") for name in unit.files)
        stack = read_stack(image, unit.files[0], orientation=self.orientation)
        labels = self._labels(unit, read_labels(label, unit.files[1], stack))
        case = unit.facts["case"]
        yield from self._samples(
            Case(unit.id, unit.files[0], stack, [labels], [Channel(None, modality)], self.site, case, licence)
        )

    def _picture(self, unit: Unit, modality: str, licence: str) -> Iterator[Sample | Rejected]:
        """The samples of a picture. Raises: Rejected, as `marked.cut`; unreadable-mask, unknown-label, partly-marked or empty-mask."""
        image, data = (load(self.root, *each) for each in zip(unit.files, ("dataset.json",) * 2, _CODES, strict=True))
        labels = self._labels(unit, _label_map(data, unit.files[1])[None])
        labels.check()
        if reason := labels.left_out():
            raise Rejected(reason.code, reason.file, "holds its ignore label, where a target may go on unmarked")
        here = [target for target in labels.targets if labels.area(target)[0]]
        if not here:
            raise Rejected("empty-mask", unit.files[1], "no pixel is labelled")
        fields = {
            "id": f"{self.name}/{unit.id}",
            "modality": modality,
            "site": self.site,
            "group": f"{self.name}/{unit.facts['case']}",
            "source": self.name,
            "licence": licence,
            "absent": tuple(target for target in labels.targets if target not in here) if self.complete else (),
        }
        masks = [Mask(target, unit.files[1], png(labels.mask(target, 0) * np.uint8(255))) for target in here]
        yield from cut(fields, image, unit.files[0], masks, self.min_area, self.targets)

    @staticmethod
    def _labels(unit: Unit, values: np.ndarray) -> Labels:
        return Labels(unit.files[1], values, unit.facts["targets"], unit.facts["ignored"])

    def _table(self) -> dict[str, Any]:
        """{"channels": names, "targets": {target: values}, "licence"} of dataset.json."""
        path = self.root / "dataset.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; a raw folder of nnU-Net has one")
        try:
            table = read_json(path.read_text(encoding="utf-8-sig"))
            channels = table["channel_names"] if "channel_names" in table else table["modality"]
            names = [str(channels[key]) for key in sorted(channels, key=int)]
            targets, ignored = self._meanings(table["labels"])
            endings = [table["file_ending"]] if "file_ending" in table else list(ENDINGS)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a table of nnU-Net's form ({error!r})") from error
        if not names or not targets:
            raise ValueError(f"{path}: names no {'label' if names else 'channel'}")
        if unknown := [ending for ending in endings if ending not in (*ENDINGS, *_PICTURES)]:
            read = ", ".join((*ENDINGS, *_PICTURES))
            raise ValueError(
                f"{path}: files ending in {unknown[0]!r} are not read, only {read}; convert them (SimpleITK can)"
            )
        if "file_ending" in table:
            check_readable(endings[0])
        licence = str(table.get("licence", ""))
        return {"channels": names, "targets": targets, "ignored": ignored, "licence": licence, "endings": endings}

    def _meanings(self, labels: Mapping[str, Any]) -> tuple[dict[str, list[int]], int | None]:
        """Which values make up each target, in either version's form, and which is the ignore label."""
        first = all(str(key).isdigit() for key in labels)
        found, ignored = {}, None
        for name, values in ((name, value) for value, name in labels.items()) if first else labels.items():
            values = [int(value) for value in (values if isinstance(values, list) else [values])]
            if name == "ignore":
                (ignored,) = values
            elif values != [0]:
                found.setdefault(self._known(name, self.site) or name, []).extend(values)
        return found, ignored


def _label_map(data: bytes, file: str) -> np.ndarray:
    """[H, W] whole numbers of an image. Raises: Rejected, unreadable-mask."""
    try:
        found = read(data, "the label map")
    except ValueError as error:
        raise Rejected("unreadable-mask", file, str(error)) from error
    values = np.asarray(found.image) if found.values is None else found.values
    if values.ndim != 2 or values.dtype.kind not in "iub" or values.min() < 0 or values.max() > 65535:
        raise Rejected(
            "unreadable-mask", file, f"{values.dtype} values of shape {values.shape}; labels are grey whole numbers"
        )
    return values.astype(np.uint16)


def _modality(name: str, targets: Any) -> str:
    """A channel's name as a modality; as it is where it is none, so that the reject names it."""
    for modality in targets.modalities:
        if name.lower() == modality.lower():
            return modality
    if re.fullmatch("ct.*", name, re.IGNORECASE):
        return "CT"
    if found := _SEQUENCE.fullmatch(name):
        return (
            "MRI"
            if found[0].lower() in ("mr", "mri")
            else f"MRI-{re.sub(r'^mri?[ _-]*', '', name, flags=re.IGNORECASE)}"
        )
    return name
