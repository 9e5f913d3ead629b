"""The table of targets: what each one is, what it is called, and where an image of a site cannot show it.

Question wording, pathology wording and true negatives all hang on these facts, so they stand as data in
`data/targets.json`, not in code. Another table of the same form can be given wherever one is read.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA = Path(__file__).parent / "data"
TYPES = ("organ", "lesion", "vessel", "tissue", "cell", "retinal", "sub-structure")


@dataclass(frozen=True)
class Targets:
    """A table of targets, as read by `load_targets`; `path` is named in errors."""

    path: Path
    modalities: dict[str, str]
    types: dict[str, str]
    sites: dict[str, list[str]]
    rows: dict[str, dict]

    def row(self, target: str) -> dict:
        """The facts about a target; digits in its name match `#`.

        Raises:
          ValueError: the table has no such row.
        """
        for key in (target, re.sub(r"\d+", "#", target)):
            if key in self.rows:
                return self.rows[key]
        raise ValueError(
            f"target {target!r} is not in {self.path}; add a row with its type ({', '.join(TYPES)}), "
            "modalities and regions, or give a table of your own"
        )

    def family(self, modality: str) -> str:
        """The modality without its sequence: MRI-FLAIR -> MRI.

        Raises:
          ValueError: unknown modality.
        """
        for name in self.modalities:
            if modality == name or modality.startswith(name + "-"):
                return name
        raise ValueError(f"modality {modality!r} is not in {self.path}; known are {', '.join(self.modalities)}")

    def modality_words(self, modality: str) -> str:
        """The modality as it stands before "image": endoscope -> endoscopy, MRI-FLAIR stays."""
        return modality.replace(self.family(modality), self.modalities[self.family(modality)], 1)

    def noun(self, target: str) -> str:
        """What kind of thing the target is, in words."""
        return self.types[self.row(target)["type"]]

    def phrase(self, target: str) -> str:
        """The target with its article: the liver, a polyp, retinal drusen."""
        row = self.row(target)
        default = "the" if row["type"] != "lesion" else "an" if target[0].lower() in "aeiou" else "a"
        return f"{row.get('article', default)} {target}".strip()

    def definite(self, target: str) -> str:
        """The target as something already spoken of: the liver, the polyp."""
        return f"the {target}"

    def plural(self, target: str) -> bool:
        """Whether verbs take the plural."""
        return self.row(target).get("plural", False)

    def never_at(self, modality: str, site: str) -> list[str]:
        """Targets of this modality that an image of this site cannot show; none where the site is not in the table."""
        here, family = set(self.sites.get(site, ())), self.family(modality)
        return [
            name
            for name, row in self.rows.items()
            if here and family in row["modalities"] and "#" not in name and not here & set(row["regions"])
        ]


@cache
def load_targets(path: Path = DATA / "targets.json") -> Targets:
    """Reads and checks a table.

    Raises:
      ValueError: not such a table, or a row with an unknown type, modality or region.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        targets = Targets(path, table["modalities"], table["types"], table["sites"], table["targets"])
        version = table["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a table of targets ({error!r})") from error
    if version != 1:
        raise ValueError(f"{path}: table format {version}, this vital_jax reads 1")
    for name, row in targets.rows.items():
        missing = {"type", "modalities", "regions"} - row.keys()
        if missing or row["type"] not in targets.types or set(row["modalities"]) - targets.modalities.keys():
            raise ValueError(f"{path}: row {name!r} lacks {sorted(missing)} or names an unknown type or modality")
        if row["modalities"] and not row["regions"]:
            raise ValueError(
                f"{path}: row {name!r} has modalities but no regions, so it would count as absent everywhere"
            )
    return targets
