"""nnU-Net's raw folders, of its first and its second version: `Task005_Prostate`, `Dataset005_Prostate`.

    dataset.json        "labels": {"0": "background", "1": "liver"} and "modality": {"0": "CT"}        (version 1)
                        "labels": {"background": 0, "liver": 1, "whole": [1, 2]}, "channel_names": {"0": "CT"}, "file_ending"   (version 2)
    imagesTr/liver_001_0000.nii.gz, labelsTr/liver_001.nii.gz      one file per channel
    imagesTs, labelsTs                                             where labels of the test set are there, they are its test side

Every channel of a case is shown. A channel's name is its modality where the table of targets has it, or a sequence of MRI; any other needs
the option `modality`. Only NIfTI is read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vital_jax.construct.marked import inside, refuse, refused
from vital_jax.construct.msd import VolumeFolder
from vital_jax.construct.nifti import read_labels, read_stack
from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.volumes import Case, Channel, Labels
from vital_jax.pipeline.tables import read_json

_ENDINGS = (".nii.gz", ".nii")
_SIDES = {"Tr": "", "Ts": "test"}
_SEQUENCE = re.compile(r"(mri?|t1|t2|flair|adc|dwi|pd|swi|dce|lge|cine)\b.*|t[12].*", re.IGNORECASE)


@dataclass(frozen=True)
class NnUnet(VolumeFolder):
    """The labelled cases of a raw folder of nnU-Net.

    Args:
      modality: of all channels, in place of their names. Others as for all folders of volumes.

    Raises (by `units`):
      FileNotFoundError, ValueError: no dataset.json, or one that is not of either version; files that are no NIfTI.
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
                ending = next((ending for ending in _ENDINGS if path.name.endswith(ending)), "")
                if path.name.startswith(".") or not ending:
                    continue
                case = path.name.removesuffix(ending)
                label = f"labels{part}/{path.name}"
                for number, name in enumerate(table["channels"]):
                    image = f"images{part}/{case}_{number:04d}{ending}"
                    unit = case if len(table["channels"]) == 1 else f"{case}-{name}"
                    if not (self.root / image).is_file():
                        lost = Rejected("missing-file", image, f"not found; it is an image of {label}")
                        units.append(refused(image, lost))
                        continue
                    facts = {"case": case, "channel": name, "targets": table["targets"], "licence": table["licence"]}
                    units.append(Unit(unit, (image, label), facts | {"split": side}))
        if not units:
            raise ValueError(
                f"{self.root}: no labels as {' or '.join(_ENDINGS)} in labelsTr; other file endings of nnU-Net are not read"
            )
        return units

    def read(self, unit: Unit) -> Iterator[Sample | Rejected]:
        refuse(unit)
        image, label = (inside(self.root, name, "dataset.json") for name in unit.files)
        stack = read_stack(image, unit.files[0], orientation=self.orientation)
        labels = Labels(unit.files[1], read_labels(label, unit.files[1], stack), unit.facts["targets"])
        channels = [Channel(None, self.modality or _modality(unit.facts["channel"], self.targets))]
        licence = self.licence or unit.facts["licence"]
        yield from self._samples(
            Case(unit.id, unit.files[0], stack, [labels], channels, self.site, unit.facts["case"], licence)
        )

    def _table(self) -> dict[str, Any]:
        """{"channels": names, "targets": {target: values}, "licence"} of dataset.json."""
        path = self.root / "dataset.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; a raw folder of nnU-Net has one")
        try:
            table = read_json(path.read_text(encoding="utf-8-sig"))
            channels = table["channel_names"] if "channel_names" in table else table["modality"]
            names = [str(channels[key]) for key in sorted(channels, key=int)]
            targets = self._meanings(table["labels"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a table of nnU-Net's form ({error!r})") from error
        if not names or not targets:
            raise ValueError(f"{path}: names no {'label' if names else 'channel'}")
        return {"channels": names, "targets": targets, "licence": str(table.get("licence", ""))}

    def _meanings(self, labels: Mapping[str, Any]) -> dict[str, list[int]]:
        """Which values make up each target, in either version's form."""
        if all(str(key).isdigit() for key in labels):
            return self._values(labels, self.site)
        found = {}
        for name, values in labels.items():
            values = [int(value) for value in (values if isinstance(values, list) else [values])]
            if values != [0] and name != "ignore":
                found.setdefault(self._known(name, self.site) or name, []).extend(values)
        return found


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
