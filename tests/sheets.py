"""Small record folders for the tests of pages, audits and counts, a record that tries to break out of a page, and a reader of HTML."""

from html.parser import HTMLParser
from io import BytesIO

import numpy as np
from PIL import Image

from vital_jax.pipeline.records import Record, write_splits

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'text'"
TYPES = {"yesno": 1, "location": 2, "describe": 3, "reasoning": 4}


def png(pixels, **options):
    """Pixels as a PNG file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def record(number, modality="CT", kind="describe", source="kvasir_polyp", steps=None, split="train", **metadata):
    """A record with an image of its own: a bright block of 12 x 12 in a dark field of 40 x 60, marked by its mask."""
    image = np.random.default_rng(number).integers(20, 60, (40, 60, 3), np.uint8)
    image[8:20, 30:42] = 220
    mask = np.zeros((40, 60), np.uint8)
    mask[8:20, 30:42] = 255
    chain = tuple(f"Step {i} of picture {number}." for i in range(TYPES[kind] if steps is None else steps))
    facts = {"source": source, "modality": modality, "question_type": kind, "group": f"patient {number}"} | metadata
    return split, Record(f"{kind}/{number}", (png(image),), f"What of {number}?", "Block.", chain, masks=(png(mask),),
                         metadata=facts)  # fmt: skip


def hostile():
    """A record whose every text is markup."""
    _, plain = record(0)
    texts = {"source": HOSTILE, "modality": HOSTILE, "question_type": HOSTILE, "note": "https://example.org/x.js"}
    return "train", Record(HOSTILE, plain.images, HOSTILE, HOSTILE, (HOSTILE,), (HOSTILE, "b"), "A",
                           masks=plain.masks, metadata=texts)  # fmt: skip


def write(pairs, folder):
    """The records as the factory leaves them: OUT/records. Returns OUT."""
    write_splits(pairs, folder / "records")
    return folder


class Page(HTMLParser):
    """A page's tags with their attributes, and the text within each kind of tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        """Notes the tag; those without content do not stay open."""
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "input", "meta"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        """Closes the tag."""
        assert self._open.pop() == tag, f"{tag} closes another tag"

    def handle_data(self, data):
        """Text belongs to every tag that is open."""
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def all(self, tag):
        """Attributes of every such tag."""
        return [attributes for name, attributes in self.tags if name == tag]
