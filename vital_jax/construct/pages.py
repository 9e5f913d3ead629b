"""Record folders as pages to look at: what every page about records needs, and the browsable page of `vital data inspect`.

A page is one HTML file that needs no network and no server: images, styles and script are inside, and its content security policy forbids
loading anything and running any script but its own. Whatever comes from records is text: templates escape it, scripts only ever set it as
text, so a record that holds markup shows markup. Images are shrunk to `SIDE` pixels, which bounds the size of a page; the outline of a mask
is a drawing of its own above the untouched image, so that one can look without it.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from vital_jax.construct.targets import load_targets
from vital_jax.pipeline.images import decode
from vital_jax.pipeline.masks import decode_mask
from vital_jax.pipeline.records import Record, RecordSource
from vital_jax.statistics import spread

TEMPLATES = Path(__file__).parent / "templates"
SIDE = 384  # longest side of a shown image in pixels: 15 to 40 kB as JPEG
QUALITY = 80
NOTICE = "For research use only. Not a medical device. Texts are generated and may be wrong."
NOTHING = "none"  # how filters and strata call a field that a record does not have
_PALETTE = (0, 0, 0, 255, 220, 0, 0, 0, 0)  # clear, the outline, its dark rim: visible on bright and on dark images


# --- the folder -----------------------------------------------------------------------------------


def records_folder(path: str | Path) -> Path:
    """The record folder that `path` is or, as the factory's output, holds as `records`.

    Raises:
      FileNotFoundError: neither is a finished record folder.
    """
    path = Path(path)
    for folder in (path, path / "records"):
        if (folder / "metadata.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{path}: no finished record folder, nor one in it as records/; run `vital data build` first"
    )


def named(path: str | Path) -> str:
    """What a page calls a folder: its name and its parent's. Where they lie is nobody's business who is sent the page."""
    path = Path(path).resolve()
    return f"{path.parent.name}/{path.name}".lstrip("/")


def open_splits(path: str | Path) -> dict[str, RecordSource]:
    """Every split of the record folder at `path`, by name. Raises: FileNotFoundError or ValueError as `RecordSource`, naming the folder."""
    folder = records_folder(path)
    return {name: RecordSource(folder, name) for name in sorted(_splits(folder))}


def record_splits(records: str | Path) -> list[str]:
    """The splits of a record folder; none where it is no such folder."""
    return sorted(path.stem.removeprefix("index-") for path in Path(records).glob("index-*.jsonl"))


def fingerprint(path: str | Path) -> str:
    """SHA-256 over the content of every split: two folders with the same records have the same. Raises: as `open_splits`."""
    splits = _splits(records_folder(path))
    lines = [f"{name} {splits[name]['sha256']}" for name in sorted(splits)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _splits(folder: Path) -> dict[str, dict]:
    path = folder / "metadata.json"
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))["splits"]
        return {name: {"sha256": split["sha256"]} for name, split in splits.items()}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: not the description of a record folder ({error!r}); copy the folder again"
        ) from error


def place(seed: int, record_id: str) -> str:
    """A key to sort records by: a random order that depends on the seed and the ids alone, not on what else is in the set."""
    return hashlib.sha256(f"{seed}\n{record_id}".encode()).hexdigest()


def family(metadata: dict) -> str:
    """The modality without its sequence (MRI-FLAIR -> MRI), as the table of targets has it; otherwise as the record says."""
    modality = metadata.get("modality", NOTHING)
    try:
        return load_targets().family(modality)
    except ValueError:
        return modality


def traits(row: dict, split: str) -> dict[str, str]:
    """What records are filtered and counted by, from a line of `RecordSource.index`: modality, type, steps, split and source."""
    metadata = row["metadata"]
    return {
        "modality": family(metadata),
        "type": metadata.get("question_type", NOTHING),
        "steps": NOTHING if row["latent_steps"] is None else str(row["latent_steps"]),
        "split": split,
        "source": metadata.get("source", NOTHING),
    }


# --- pictures -------------------------------------------------------------------------------------


def picture(
    data: bytes, name: str, side: int = SIDE, window: Sequence[float] | None = None
) -> tuple[str, tuple[int, int], dict]:
    """An encoded image as a data URL of a JPEG of at most `side` pixels, (width, height) to show it at, and `decode`'s info.

    An image smaller than `side` keeps its pixels and is shown enlarged; one deeper than 8 bits is shown in `window`, as it is trained on.
    Raises: ValueError as `pipeline.images.decode`, naming `name`.
    """
    image, info = decode(data, name, window)
    scale = side / max(image.size)
    shown = tuple(max(1, round(length * scale)) for length in image.size)
    if scale < 1:
        image = image.resize(shown, Image.Resampling.LANCZOS, reducing_gap=2)
    return _data_url(image, "JPEG", quality=QUALITY), shown, info


def outline(mask: np.ndarray, shown: tuple[int, int]) -> str:
    """The line around a mask as a data URL of a PNG, otherwise clear; it lies outside the region, however small that is.

    Args:
      mask: [H, W] bool. shown: (width, height) of the drawing.
    """
    # Enlarged by repeating pixels, shrunk by their mean of which nothing but zero is background: no region vanishes.
    grown = max(shown) >= max(mask.shape)
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        shown, Image.Resampling.NEAREST if grown else Image.Resampling.BOX
    )
    region = np.asarray(small) > 0
    line = _wider(region)
    drawing = np.where(region, 0, np.where(line, 1, np.where(_wider(line), 2, 0))).astype(np.uint8)
    image = Image.fromarray(drawing, "P")
    image.putpalette(_PALETTE)
    return _data_url(image, "PNG", transparency=0, optimize=True)


def _wider(region: np.ndarray) -> np.ndarray:
    wide = region.copy()
    wide[1:] |= region[:-1]
    wide[:-1] |= region[1:]
    wide[:, 1:] |= region[:, :-1]
    wide[:, :-1] |= region[:, 1:]
    return wide


def _data_url(image: Image.Image, kind: str, **options: Any) -> str:
    file = BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{b64encode(file.getvalue()).decode('ascii')}"


class Album:
    """Pictures of many records, each image shrunk and kept once however many records ask about it.

    Attributes:
      pictures: {"src": data URL, "width", "height"} of each distinct image, in the order of their coming.
    """

    def __init__(self):
        self.pictures: list[dict] = []
        self._seen: dict[tuple[bytes, str], tuple[int, dict]] = {}

    def show(self, record: Record) -> list[dict]:
        """Per image of a record {"picture": its number, "outline": data URL or "", "alt": words for who cannot see it}.

        Raises: ValueError for an image or mask that cannot be decoded; the message names the record.
        """
        return [self._one(record, number) for number in range(len(record.images))]

    def _one(self, record: Record, number: int) -> dict:
        name = f"record {record.id!r}: image {number + 1}"
        window = record.metadata.get("window")
        key = hashlib.sha256(record.images[number]).digest(), str(window)
        if key not in self._seen:
            source, (width, height), info = picture(record.images[number], name, window=window)
            self._seen[key] = len(self.pictures), info
            self.pictures.append({"src": source, "width": width, "height": height})
        at, info = self._seen[key]
        drawn = ""
        if record.masks:
            mask = decode_mask(record.masks[number], f"{name}: mask", info)
            drawn = outline(mask, (self.pictures[at]["width"], self.pictures[at]["height"]))
        return {"picture": at, "outline": drawn, "alt": alt_text(record, number)}


def alt_text(record: Record, number: int) -> str:
    """What a reader is told who cannot see the image: what kind it is and of what, not the answer."""
    metadata = record.metadata
    words = f"{metadata.get('modality', 'Medical')} image"
    if metadata.get("site"):
        words += f" of {metadata['site']}"
    return words + (f", {number + 1} of {len(record.images)}" if len(record.images) > 1 else "")


def card(record: Record, split: str) -> dict:
    """A record's words for a page: JSON values; pictures are the album's."""
    row = {"latent_steps": record.latent_steps, "metadata": record.metadata}
    return {
        "id": record.id,
        **traits(row, split),
        "question": record.question,
        "options": [f"{chr(ord('A') + i)}. {text}" for i, text in enumerate(record.options)],
        "gold": record.gold,
        "chain": list(record.chain),
        "answer": record.answer,
        "metadata": [[key, _words(value)] for key, value in sorted(record.metadata.items())],
    }


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- templates ------------------------------------------------------------------------------------


@cache
def _templates(folder: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """Fills a template of `folder`; every value is escaped."""
    return _templates(folder).get_template(template).render(**values)


def stylesheet(folder: Path = TEMPLATES) -> str:
    """The style of every page, and after it that of a folder of its own."""
    return "\n".join((each / "page.css").read_text(encoding="utf-8") for each in dict.fromkeys((TEMPLATES, folder)))


def page(name: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """A whole HTML page from `NAME.html` of `folder`, with `page.css` (after ours, another folder's own) and `NAME.js` inside and a policy
    that lets nothing else run or load. `notice` among the values takes the place of ours.
    """
    style = stylesheet(folder)
    script = (folder / f"{name}.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # Both files are ours and are inserted as they are: their hashes in the policy are of exactly these bytes.
    inside = {"style": style, "script": script, "policy": policy, "notice": NOTICE}
    return render(f"{name}.html", folder, **inside | values)


def _source_hash(text: str) -> str:
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def write_text(path: str | Path, text: str) -> Path:
    """Writes a file whole or not at all: beside its place first, then renamed. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# --- vital data inspect ---------------------------------------------------------------------------


def inspect_page(path: str | Path, limit: int = 200) -> tuple[str, int, int]:
    """A browsable page of records: filters, text search, keys, outlines.

    Args:
      path: the factory's output or a record folder.
      limit: how many records at most; of more, so many evenly spaced over the splits in their order.

    Returns:
      The page, how many records it shows and how many there are.

    Raises:
      FileNotFoundError, ValueError: as `open_splits`; a limit below 1; an image that cannot be decoded, naming the record.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    sources = open_splits(path)
    rows = [(split, number, row["id"]) for split, source in sources.items() for number, row in enumerate(source.index)]
    drawn = sorted(spread(rows, limit), key=lambda row: row[2])
    cards = list(_cards((sources[split][number], split) for split, number, _ in drawn))
    names = ("modality", "type", "steps", "split", "source")
    filters = {name: sorted({each[name] for each in cards}) for name in names}
    text = page("inspect", title=Path(path).resolve().name, cards=cards, filters=filters, count=len(rows), side=SIDE)
    return text, len(cards), len(rows)


def _cards(pairs: Iterable[tuple[Record, str]]) -> Iterator[dict]:
    for record, split in pairs:
        album = Album()
        shown = [part | album.pictures[part["picture"]] for part in album.show(record)]
        yield card(record, split) | {"images": shown}
