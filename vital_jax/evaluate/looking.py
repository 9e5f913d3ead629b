"""What can be seen of questions before a model is opened: that their images are there and decode, and that they suit how they are asked.

A question that cannot be asked would otherwise stop a run hours in, and a mistyped path cost the time that a model takes to load.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from vital_jax.evaluate.items import Item, Picture, read_picture
from vital_jax.evaluate.protocols.core import SHOWN, Protocol
from vital_jax.pipeline.images import decode

Looked = dict[
    str, list[tuple[str, str]]
]  # per item ("", digest) of each image, or (code, why) where it cannot be shown
Faults = list[tuple[str, str, str]]  # code, the item's id, why


def window_of(item: Item) -> list[float] | None:
    """The grey window of images deeper than 8 bits, where the item names one."""
    window = item.metadata.get("window")
    return window if isinstance(window, list) and len(window) == 2 else None


def steps_of(item: Item) -> int | None:
    """The latent steps that the item itself states."""
    steps = item.metadata.get("latent_steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0 else None


def suits(items: Sequence[Item], protocol: Protocol, eval_k: str) -> None:
    """Raises: ValueError, items that the protocol cannot score, or steps per sample where no item states its own."""
    if protocol.needs and (wrong := [item.id for item in items if not protocol.needs[1](item)]):
        raise ValueError(
            f"{protocol.name} scores only items with {protocol.needs[0]}: {len(wrong)} of {len(items)} are not so, the first "
            f"{wrong[0]!r}; name another protocol"
        )
    if eval_k == "per_sample" and not any(steps_of(item) for item in items):
        raise ValueError("no item states its own latent steps, as records do: give a fixed K in place of per_sample")


def look(items: Sequence[Item]) -> Looked:
    """Decodes every image once. The codes of what cannot be shown: missing-file, unreadable-image and no-image."""
    windows = {picture: window_of(item) for item in items for picture in item.images}
    with ThreadPoolExecutor() as pool:
        found = dict(zip(windows, pool.map(_look, windows, windows.values()), strict=True))
    return {item.id: [found[picture] for picture in item.images] or [("no-image", "has no image")] for item in items}


def faults(looked: Looked) -> Faults:
    """The first fault of each item that has one."""
    bad = ((name, next((one for one in found if one[0]), None)) for name, found in looked.items())
    return [(one[0], name, one[1]) for name, one in bad if one]


def named(found: Faults, total: int) -> str:
    """How many of `total` questions cannot be asked, and why the first ones cannot."""
    counts = ", ".join(f"{n} {code}" for code, n in sorted(Counter(code for code, _, _ in found).items()))
    first = "; ".join(f"{name}: {why}" for _, name, why in found[:SHOWN])
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{len(found)} of {total} questions cannot be asked ({counts}): {first}{more}"


def _look(picture: Picture, window: list[float] | None) -> tuple[str, str]:
    """("", digest) of an image, or (code, why) where it cannot be shown."""
    try:
        data = read_picture(picture)
        decode(data, "the image" if isinstance(picture, bytes) else str(picture), window)
    except FileNotFoundError as error:
        return "missing-file", str(error)
    except ValueError as error:
        return "unreadable-image", str(error)
    return "", hashlib.sha256(data).hexdigest()
