"""The sample: one target in one image, the common coin of all sources of training data."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO

import numpy as np
from PIL import Image

from vital_jax.pipeline.images import decode
from vital_jax.pipeline.masks import decode_mask


@dataclass(frozen=True)
class Sample:
    """One target in one image: what every source of training data gives.

    Attributes:
      id: unique; also the seed of everything that is drawn for this sample.
      image, mask: encoded files; the mask on the image's stored pixel grid.
      target, target_type: what the mask shows.
      modality, site: as in the targets table; site may be empty.
      group: what must stay on one side of a split, unique over all sources.
      source, licence: where it is from; licence may be empty.
      present: every target that has a mask in this image, whatever became of that mask.
      absent: targets that the source guarantees not to be in the image.
      neighbours: (target, encoded mask) of the other marked targets of the image.
      orientation: the image-space convention. "image": as stored; "radiological": the patient's left on the image's right.
      window: (lowest, highest) stored value shown, black and white, where the image was cut from other values than grey; otherwise empty.
        It has been applied (`pipeline.records.METADATA_TYPES`).
      intensity: of a CT's values, as `hounsfield.intensity`: empty (Hounsfield units, and every other modality), shifted (mended), or
        relative (not Hounsfield units: nothing may be said of their density).
      split: the side of the source's own split that it is on: train, val, test, or empty where it has none.
      spacing: millimeters from row to row and from column to column; empty where not known.
    """

    id: str
    image: bytes
    mask: bytes
    target: str
    target_type: str
    modality: str
    site: str
    group: str
    source: str
    licence: str = ""
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, bytes], ...] = ()
    orientation: str = "image"
    window: tuple[float, ...] = ()
    intensity: str = ""
    spacing: tuple[float, ...] = ()
    split: str = ""

    @property
    def picture(self) -> Image.Image:
        """The upright RGB image."""
        return _decode(self.image)[0]

    @property
    def info(self) -> dict:
        """What `pipeline.images.decode` says about the image."""
        return _decode(self.image)[1]

    @cached_property
    def region(self) -> np.ndarray:
        """[H, W] bool, where the target is in `picture`."""
        return region_of(self.mask, tuple(self.info["size"]), self.info["orientation"])

    @cached_property
    def others(self) -> dict[str, np.ndarray]:
        """[H, W] bool per neighbour, where it is in `picture`; one with nothing in its mask is left out."""
        regions = {name: decode_mask(mask, f"the mask of {name}", self.info) for name, mask in self.neighbours}
        return {name: region for name, region in regions.items() if region.any()}


@lru_cache(maxsize=1)
def _decode(data: bytes) -> tuple[Image.Image, dict]:
    """The targets of one image follow each other; it is decoded once for all of them."""
    return decode(data, "the image")


@lru_cache(maxsize=16)
def region_of(mask: bytes, size: tuple[int, int], orientation: int) -> np.ndarray:
    """[H, W] bool, read-only: `decode_mask` by what it needs of an image, remembered while a mask is checked and then used."""
    region = decode_mask(mask, "the mask", {"size": size, "orientation": orientation})
    region.setflags(write=False)
    return region


def png(
    pixels: np.ndarray, size: tuple[int, int] | None = None, resample: Image.Resampling = Image.Resampling.NEAREST
) -> bytes:
    """8-bit pixels [H, W] or [H, W, 3] as PNG, of `size` (height, width) where it is given."""
    image = Image.fromarray(pixels)
    if size and size != pixels.shape[:2]:
        image = image.resize(size[::-1], resample)
    data = BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
