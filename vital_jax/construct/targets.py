"""The table of targets: what each one is, what it is called, and where an image of a site cannot show it.

Question wording, pathology wording and true negatives all hang on these facts, so they stand as data in
`data/targets.json`, not in code. Another table of the same form can be given wherever one is read.

Corpora spell one structure in many ways ("postcava", "kidney_left", "vertebrae T9", "Tumour"). `Targets.canonical` gives
the row's name, which is the one that reads well in a sentence; text says whatever name it is given.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

DATA = Path(__file__).parent / "data"
TYPES = ("organ", "lesion", "vessel", "tissue", "cell", "retinal", "sub-structure")
SIDES = ("left", "right")
_KINDS = {"glioma": "tumor", "cancer": "tumor", "melanoma": "tumor"}  # words of findings, by the wider one


@dataclass(frozen=True)
class Targets:
    """A table of targets, as read by `load_targets`; `path` is named in errors.

    Attributes:
      modalities: how each is called before "image". types: how each is called in a question.
      sites: the body regions that one image of a site, or of modality@site, may show. shows: the same for modalities that show
        one region whatever the site.
      spellings: words that are replaced by another spelling before a name is looked up.
      rows: the facts about each target; docs/data_files.md explains the fields.
    """

    path: Path
    modalities: dict[str, str]
    types: dict[str, str]
    sites: dict[str, list[str]]
    rows: dict[str, dict]
    shows: dict[str, list[str]] = field(default_factory=dict)
    spellings: dict[str, str] = field(default_factory=dict)

    def row(self, target: str) -> dict:
        """The facts about a target, by its row's name or another of its names; digits in a name match `#`.

        Raises:
          ValueError: the table has no such row.
        """
        found = self._own(target)
        return self.rows[_numberless(self.canonical(target))] if found is None else found

    def canonical(self, name: str, site: str = "") -> str:
        """The row's name for a name as a data set spells it: kidney_left -> left kidney, vertebrae T9 -> T9 vertebra.

        A name that means something only at one site ("anterior" of a brain, "vessel" of a retina) is found with the site.

        Raises:
          ValueError: the table has no such row.
        """
        spelled = self._spelled(name)
        for key in (f"{spelled}@{site.lower()}", spelled):
            found = self.names.get(key) or self.names.get(_numberless(key))
            if found:
                for number in re.findall(r"\d+", spelled):
                    found = found.replace("#", number, 1)
                return found
        raise ValueError(
            f"target {name!r} is not in {self.path}; add a row with its type ({', '.join(TYPES)}), modalities and "
            "regions, or its name to the aliases of a row, or give a table of your own"
        )

    @cached_property
    def names(self) -> dict[str, str]:
        """Every spelling that can be looked up, in small letters and with `#` for numbers, and its row's name.

        Raises:
          ValueError: two rows claim one spelling.
        """
        found: dict[str, str] = {}
        for name, row in self.rows.items():
            for alias in (name, *row.get("aliases", ())):
                text, _, site = alias.partition("@")
                key = self._spelled(text) + (f"@{site.lower()}" if site else "")
                if found.setdefault(key, name) != name:
                    raise ValueError(f"{self.path}: {alias!r} names both {found[key]!r} and {name!r}")
        return found

    def _own(self, target: str) -> dict | None:
        return self.rows.get(target, self.rows.get(_numberless(target)))

    def _spelled(self, name: str) -> str:
        words = [self.spellings.get(word, word) for word in re.split(r"[\s_+]+", name.strip().lower())]
        if len(words) > 1 and words[-1] in SIDES:
            words = [words[-1], *words[:-1]]
        return " ".join(words)

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
        row = self.row(target)
        return row.get("noun", self.types[row["type"]])

    def phrase(self, target: str) -> str:
        """The target with its article: the liver, a polyp, retinal drusen."""
        row = self.row(target)
        default = "the" if row["type"] != "lesion" else "an" if target[0].lower() in "aeiou" else "a"
        return f"{row.get('article', default)} {target}".strip()

    def definite(self, target: str) -> str:
        """The target as something already spoken of: the liver, the polyp."""
        return f"the {target}"

    def plural(self, target: str) -> bool:
        """Whether verbs take the plural: a fact about the row's own name, not about its aliases."""
        return (self._own(target) or {}).get("plural", False)

    def neutral(self, target: str) -> str:
        """What a target is called where its name would give away a diagnosis that nobody asked for: malignant tumor -> tumor."""
        return (self._own(target) or {}).get("neutral", target)

    def related(self, one: str, other: str) -> bool:
        """Whether the one may be a part, a kind or the whole of the other: by words that their names share, or as a name for many."""
        rows = [self._own(name) or {} for name in (one, other)]
        words, others = ({_KINDS.get(w.rstrip("s"), w.rstrip("s")) for w in name.split()} for name in (one, other))
        same = rows[0].get("type") == rows[1].get("type")
        if words <= others or others <= words or (same and any(row.get("generic") for row in rows)):
            return True
        return same and rows[0].get("type") == "lesion" and not words.isdisjoint(others)

    def never_at(self, modality: str, site: str) -> list[str]:
        """Targets offered in this modality that an image of this site cannot show; none where the site is not in the table."""
        family = self.family(modality)
        here = set(self.shows.get(family) or self.sites.get(f"{family}@{site}") or self.sites.get(site, ()))
        return [
            name
            for name, row in self.rows.items()
            if here and family in row.get("offered", ()) and "#" not in name and not here & set(row["regions"])
        ]


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _both_sides(rows: dict[str, dict]) -> dict[str, dict]:
    """Adds the left and the right one of each target that comes in pairs; what is said of one is true of all three."""
    found = {}
    for name, row in rows.items():
        found[name] = row
        for side in SIDES if row.get("sides") else ():
            aliases = [f"{side} {alias}" for alias in row.get("aliases", ())]
            found[f"{side} {name}"] = row | ({"aliases": aliases} if aliases else {})
    return found


@cache
def load_targets(path: Path = DATA / "targets.json") -> Targets:
    """Reads and checks a table.

    Raises:
      ValueError: not such a table; a row with an unknown type, modality or region; a name that two rows claim.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        rows = _both_sides(table["targets"])
        more = table.get("shows", {}), table.get("spellings", {})
        targets = Targets(path, table["modalities"], table["types"], table["sites"], rows, *more)
        version = table["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a table of targets ({error!r})") from error
    if version != 1:
        raise ValueError(f"{path}: table format {version}, this vital_jax reads 1")
    regions = set().union(*targets.sites.values(), *targets.shows.values())
    for name, row in targets.rows.items():
        missing = {"type", "modalities", "regions"} - row.keys()
        if missing or row["type"] not in targets.types or set(row["modalities"]) - targets.modalities.keys():
            raise ValueError(f"{path}: row {name!r} lacks {sorted(missing)} or names an unknown type or modality")
        if row.get("neutral", name) not in targets.rows:
            raise ValueError(f"{path}: row {name!r} is asked about as {row['neutral']!r}, which is no row")
        if set(row.get("offered", ())) - set(row["modalities"]):
            raise ValueError(f"{path}: row {name!r} is offered in a modality in which it does not occur")
        if row["modalities"] and not row["regions"]:
            raise ValueError(
                f"{path}: row {name!r} has modalities but no regions, so it would count as absent everywhere"
            )
        if regions and (unknown := set(row["regions"]) - regions):
            raise ValueError(
                f"{path}: row {name!r} lies in {sorted(unknown)}, which no site shows, so it would count as absent everywhere"
            )
    targets.names  # noqa: B018 - built here, so that a name with two meanings is an error of the table, not of a sample
    return targets
