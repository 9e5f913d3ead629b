"""Is a single look right? What a captioning backbone says of boards it has never seen, fact by fact, and with the images exchanged.

    python benchmarks/single_look.py [FOLDER] [--captions 512]

Captions of held-out boards are read with teacher forcing; counted are the tokens that only the image can tell (the structure that another
flows to, the side that one lies on), the likeliest token against the true one. A chain of looks can be no better than its links: at .98 a
look, four are right in .92 of cases, at .83 in .47. With another board's image every number should fall to chance.
"""

import argparse
import re
from collections import Counter
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vital_jax.demo.flow import caption_records
from vital_jax.hub.load import load_backbone
from vital_jax.methods import base
from vital_jax.methods.direct import Direct
from vital_jax.pipeline.batch import Encoder, Layout, collate
from vital_jax.pipeline.segments import Segment, Suffix

HERE = Path(__file__).resolve().parents[1]
SEED = 1001  # of no experiment and no training
BATCH = 64
TRACED = "traced"  # every word of a caption that is a trace
# What stands before the token that is counted, within its sentence.
FACTS = {
    "next in the list": r"^Flow:( \w+)+$",
    "side, listed": r"^Sides: (.*, )?\w+$",
    "half of the rows, listed": r"^Quarters: (.*, )?\w+$",
    "light, listed": r"^Light: (.*, )?\w+$",
    "name, row by row": r"^Rows:",
    "flows to": r"flows to the$",
    "name at a place": r"shows the$",
    "half of the rows": r"lies in the$",
    "half of the columns": r"lies in the (upper|lower)$",
    "side": r"is on the$",
}


def facts(text: str) -> list[tuple[int, str]]:
    """(place of the character where a counted word begins, its fact) in a caption."""
    found, start = [], 0
    for sentence in re.split(r"(?<=\.) ", text):
        if sentence == text:  # of all captions, traces alone are one sentence
            return [(word.start(), TRACED) for word in re.finditer(r"(?:^| )\w+", text)]
        for word in re.finditer(r" \w+", sentence):
            before = sentence[: word.start()]
            found += [(start + word.start(), name) for name, pattern in FACTS.items() if re.search(pattern, before)]
        start += len(sentence) + 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=HERE / "runs/pretrain/weights/backbone")
    parser.add_argument("--captions", type=int, default=512, help="how many, two of each board; default 512")
    arguments = parser.parse_args()
    model, params = load_backbone(arguments.folder, param_dtype=np.float32)
    encoder = Encoder.from_folder(arguments.folder, 128 * 128)
    suffix = Suffix((Segment("tokens", "answer", 96, source="answer", supervised=True),))
    layout = Layout(44, 64, suffix)
    records = list(islice(caption_records(arguments.captions, SEED), arguments.captions))
    rows = [encoder.encode(record, layout, number) for number, record in enumerate(records)]
    method, tree = Direct(model), {"base": params}

    @jax.jit
    def likeliest(batch):
        columns = base.read(method, tree, batch, suffix)
        h = model.apply({"params": params}, columns.reads["answer"], method="head_input")
        return jnp.argmax(model.apply({"params": params}, method="head")(h), -1)[:, 0]

    asked, right, blind = Counter(), Counter(), Counter()
    for start in range(0, len(rows) // BATCH * BATCH, BATCH):
        batch = collate(rows[start : start + BATCH])
        exchanged = batch | {"patches": np.roll(batch["patches"], 2, axis=0)}
        seen, unseen = (np.asarray(likeliest(b)) for b in (batch, exchanged))
        for row, record in enumerate(records[start : start + BATCH]):
            ids, place, at = batch["answer"][row][batch["answer_mask"][row]].tolist(), 0, {}
            for column, token in enumerate(ids):
                at[place] = column
                place += len(encoder.prompter.decode([token]))
            for place, name in facts(record.answer):
                column = at[place]
                asked[name] += 1
                right[name] += int(seen[row, column] == ids[column])
                blind[name] += int(unseen[row, column] == ids[column])
    print(f"{arguments.folder}: {sum(asked.values()):,} facts in {len(rows)} captions")
    for name, count in asked.items():
        print(f"  {name:20s} {count:6d}  right {right[name] / count:.3f}  image exchanged {blind[name] / count:.3f}")


if __name__ == "__main__":
    main()
