"""A record folder on disk and a feed over it for the toy backbone: an image's bytes make its patches, a question's text its tokens."""

import io
import zlib
from dataclasses import replace

import numpy as np
import toy
from PIL import Image

from vital_jax.pipeline.features import FeatureSpec, RoiFeatures, write_features
from vital_jax.pipeline.feed import Feed
from vital_jax.pipeline.records import Record, RecordSource, write_splits
from vital_jax.pipeline.segments import steps_taken

END, S, P, C = 60, 14, 16, 6
SPEC = FeatureSpec("toy", "block", 0.2, 0.05, "")


class Prompter:
    """Words are numbers."""

    end_token_id, end_token_ids = END, (END,)

    def literal(self, text):
        return [int(word) for word in text.split()]

    def banned(self, vocabulary, allowed=()):
        return np.isin(np.arange(vocabulary), (57, 58, 59)) & ~np.isin(np.arange(vocabulary), allowed)

    def decode(self, ids):
        ids = [int(i) for i in ids]
        return " ".join(map(str, ids[: ids.index(END)] if END in ids else ids))


class Encoder:
    """The part of pipeline.batch.Encoder that a feed asks for."""

    prompter, chain_prompter = Prompter(), None

    def measure(self, record):
        return S, P

    def measure_text(self, record):
        return 4, C

    def encode(self, record, layout, index, *regions):
        row = toy.row(toy.batch(1, seed=zlib.crc32(record.question.encode()), S=S, P=P), 0)
        patches = np.random.default_rng(zlib.crc32(record.images[0])).normal(size=(P, toy.CONFIG.vision.patch_width))
        asked = {"answer": "answer" in layout.suffix, "chain": layout.chain, "roi": layout.roi}
        row = {name: value[0] for name, value in row.items() if asked.get(name.partition("_")[0], True)}
        row |= {"patches": 3 * patches.astype(np.float32), "index": np.int32(index)}
        own = len(record.chain) or record.metadata.get("latent_steps", 99)
        return row | {
            f"{s.name}_steps": np.int32(steps_taken(replace(s, cut=True), own)) for s in layout.suffix.of_kind("latent")
        }


def png(shade: int) -> bytes:
    """A small image that only its shade tells from others."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def records(split: str, images: int):
    """Two modalities; per image two targets, and of each a closed question about the region and one about its absence."""
    for number in range(images):
        for target, name in enumerate(("spleen", "kidney")):
            for ask in ("side", "presence"):
                seen = ask == "side"
                yield Record(
                    id=f"{split}{number}/{name}/{ask}/closed",
                    images=(png(number + 100 * (split == "test")),),
                    question=f"{ask} of the {name}?",
                    answer=("Left.", "Right.")[(number + target) % 2] if seen else "No.",
                    chain=("One.", "Two.", "Three.")[: 1 + number % 3],
                    masks=(png(target),) if seen else (),
                    metadata={
                        "modality": ("CT", "MRI")[number % 2],
                        "group": f"{split}{number}",
                        "target_name": name,
                        "question_type": "location_choice" if seen else "yesno",
                        "form": "closed" if number or not seen else "open",
                        "ask": ask,
                    },
                )


def feeds(folder) -> tuple[Feed, Feed]:
    """(train, test), 16 and 8 images, with region features."""
    pairs = [(split, r) for split, n in (("train", 16), ("test", 8)) for r in records(split, n)]
    write_splits(pairs, folder)
    return tuple(_feed(folder, split) for split in ("train", "test"))


def _feed(folder, split):
    source = RecordSource(folder, split)
    rng = np.random.default_rng(len(source))
    rows = []
    for record in source:
        roi = rng.normal(size=toy.ROI)
        roi = roi / np.linalg.norm(roi)
        rows.append((roi, roi, "crop", np.zeros(5)) if record.masks else None)
    write_features(folder, SPEC, source.ids, rows, split)
    features = RoiFeatures(folder / SPEC.name / split, source.ids)
    return Feed(source, Encoder(), features, ((S, P),), answer=4, chain=C)
