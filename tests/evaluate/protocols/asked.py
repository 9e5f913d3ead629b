"""Items for the tests of protocols, and the scoring of one answer."""

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols import apply, get


def item(answer="yes", name="q1", benchmark="vqa_rad", question="Is it?", image="", options=(), gold="", **more):
    """An item without files; keywords that an item does not have go to its metadata."""
    fields = {key: more.pop(key) for key in ("closed", "answers", "split") if key in more}
    metadata = more | ({"image_name": image} if image else {})
    return Item(name, (), question, answer, options, gold, benchmark=benchmark, metadata=metadata, **fields)


def choice(gold="B", options=("Uterus", "Left lung", "Liver cyst", "Spleen"), benchmark="pmc_vqa_2", **more):
    """An item with options."""
    return item(options[ord(gold[0]) - ord("A")], options=options, gold=gold, benchmark=benchmark, **more)


def row(protocol, asked, text, **more):
    """The judged row of one answer; `protocol` is a name, or a name and its options as "medevalkit compat judge"."""
    name, *options = protocol.split()
    scored = apply(get(name, **dict.fromkeys(options, True)), [asked], [{"id": asked.id, "prediction": text, **more}])
    return scored.rows[0]


def right(protocol, asked, text, **more):
    """Whether an answer is right."""
    return row(protocol, asked, text, **more)["correct"]


def scores(protocol, asked, text, **more):
    """The measures of one answer."""
    return row(protocol, asked, text, **more)["measures"]
