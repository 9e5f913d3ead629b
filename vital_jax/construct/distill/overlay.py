"""The teacher's view: the target tinted red inside a yellow contour (VITAL A.2); the student only ever sees the plain image.

The contour lies on the pixels just outside the target, so that a vessel two pixels wide keeps its look. Tint and contour are drawn after
the picture got its size, so that shrinking cannot swallow them. Small pictures are enlarged: a contour of one pixel on a 35-pixel slice
would cover what it should point at.
"""

from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

from vital_jax.pipeline.images import decode
from vital_jax.pipeline.masks import decode_mask

LONGEST = 768  # pixels; larger pictures are shrunk to it
SHORTEST = 384  # pixels of the longer side; smaller pictures are enlarged to it
ALPHA = 0.4
RED, YELLOW = (255, 0, 0), (255, 255, 0)


def teacher_view(image: bytes, mask: bytes, name: str) -> bytes:
    """The picture a teacher gets, as JPEG.

    Args:
      image, mask: encoded files; an empty mask (the target is not in the image) leaves the picture plain.
      name: what errors call them.

    Raises:
      ValueError: the image or the mask cannot be read, their sizes differ, or nothing is marked.
    """
    picture, info = decode(image, f"{name}: the image")
    size = view_size(picture.height, picture.width)[::-1]
    region = decode_mask(mask, f"{name}: the mask", info) if mask else None
    if region is not None and not region.any():
        raise ValueError(f"{name}: the mask is empty; give no mask where the target is absent")
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if region is not None:
        picture = tint(picture, _resize(region, size))
    file = BytesIO()
    picture.save(file, "JPEG", quality=90, subsampling=0)  # shared colors would smear a thin contour
    return file.getvalue()


def view_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the teacher's view of an image."""
    longer = max(height, width)
    scale = min(1.0, LONGEST / longer) if longer >= SHORTEST else SHORTEST / longer
    return max(1, round(height * scale)), max(1, round(width * scale))


def tint(picture: Image.Image, region: np.ndarray) -> Image.Image:
    """The picture with a target marked.

    Args:
      picture: RGB of height H and width W.
      region: [H, W] bool.
    """
    pixels = np.asarray(picture).astype(np.float32)
    pixels[region] = (1 - ALPHA) * pixels[region] + ALPHA * np.array(RED, np.float32)
    grown = np.asarray(Image.fromarray(region.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(3))) > 0
    pixels[grown & ~region] = YELLOW
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _resize(region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The region at another (width, height): where half of a pixel is covered, or any of it if that leaves nothing."""
    if region.shape[::-1] == size:
        return region
    cover = np.asarray(Image.fromarray(region.astype(np.float32)).resize(size, Image.Resampling.BOX))
    return cover >= 0.5 if (cover >= 0.5).any() else cover > 0
