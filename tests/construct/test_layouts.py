"""Folders as others keep them: conversations, Parquet, images beside masks, COCO, nnU-Net's raw folders."""

import json
from io import BytesIO

import numpy as np
import pytest
from drawn import read_all
from PIL import Image

from vital_jax.construct.instruct import Llava
from vital_jax.construct.layouts import Coco, draw, run_lengths
from vital_jax.construct.source import Rejected
from vital_jax.construct.sources import kinds_of, open_source
from vital_jax.pipeline.masks import decode_mask
from vital_jax.pipeline.records import Record

CT = {"modality": "CT", "site": "abdomen"}


def png(pixels):
    file = BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))


def square(top=10, left=20, side=15, size=(50, 60)):
    mask = np.zeros(size, np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


def grey(value=90, size=(50, 60)):
    return np.full(size, value)


def records(source):
    found, bad = [], []
    for unit in source.units():
        try:
            for item in source.read(unit):
                (found if isinstance(item, Record) else bad).append(item)
        except Rejected as reason:
            bad.append(reason)
    return found, bad


def talk(*said, asker="from", text="value", names=("human", "gpt")):
    return [{asker: names[turn % 2], text: words} for turn, words in enumerate(said)]


# --- conversations -------------------------------------------------------------------------------------


def test_conversations_of_llava_and_sharegpt(tmp_path):
    root = tmp_path / "chats"
    for number in range(2):
        save(root / f"images/{number}.png", grey(40 * number + 20))
    llava = [
        {"id": "x", "image": "0.png", "conversations": talk("<image>\nWhich organ?", "Liver.", "Is it large?", "No.")},
        {"id": "x", "image": "0.png", "conversations": talk("Where is it?", "Left.")},
        {"id": "y", "conversations": talk("Hello?", "Hello.")},
        {"id": "z", "image": "1.png", "conversations": talk("Which?")},
    ]
    shared = {"role": "system", "content": "You are a doctor."}
    messages = talk("Compare <image> with <image>.", "Same.", asker="role", text="content", names=("user", "assistant"))
    (root / "train.json").write_text(json.dumps(llava))
    (root / "test.jsonl").write_text(json.dumps({"messages": [shared, *messages], "images": ["0.png", "images/1.png"]}))
    (root / "other.json").write_text('{"conversations": 3}')
    assert kinds_of(root) == ["llava"]
    found, bad = records(open_source(root))
    told = {(r.question, r.answer, len(r.images), r.metadata["source_split"]) for r in found}
    assert told == {
        ("Which organ?", "Liver.", 1, "train"), ("Is it large?", "No.", 1, "train"), ("Where is it?", "Left.", 1, "train"),
        ("Compare the first image with the second image.", "Same.", 2, "test"),
    }  # fmt: skip
    assert len({r.id for r in found}) == 4
    assert sorted((reason.code, reason.file) for reason in bad) == [
        ("bad-line", "train.json[2]"),
        ("bad-line", "train.json[3]"),
    ]
    assert [source.kind for source in [Llava(root, file="train.json")]] == ["llava"]
    assert len(records(Llava(root, file="train.json"))[0]) == 3


def test_parquet_as_the_hub_has_it(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = tmp_path / "hub"
    (root / "data").mkdir(parents=True)
    image = {"bytes": png(grey()), "path": "a.png"}
    rows = [{"image": image, "question": f"<image> Is it {n}?", "answer": "yes"} for n in range(5)]
    rows[3]["answer"] = None
    rows[4] = {"image": {"bytes": b"no image", "path": None}, "question": "Is it?", "answer": "no"}
    pq.write_table(pa.Table.from_pylist(rows), root / "data/train-00000-of-00001.parquet", row_group_size=2)
    chats = [{"images": [image, {"bytes": png(grey(9)), "path": ""}], "conversations": talk("What?", "That.")}]
    pq.write_table(pa.Table.from_pylist(chats), root / "data/test-00000-of-00001.parquet")
    assert kinds_of(root) == ["parquet"]
    source = open_source(root)
    units = source.units()
    assert [unit.id.rpartition(":")[2] for unit in units] == ["0", "0", "1", "2"] and units == source.units()
    found, bad = records(source)
    assert [(r.question, r.metadata["source_split"]) for r in found] == [
        ("What?", "test"), ("Is it 0?", "train"), ("Is it 1?", "train"), ("Is it 2?", "train"),
    ]  # fmt: skip
    assert [reason.code for reason in bad] == ["bad-line", "unreadable-image"] and "[3]" in bad[0].file
    assert len({r.metadata["group"] for r in found[1:]}) == 1 != len({r.id for r in found})
    # Another content of the same length is another unit.
    rows[0]["question"] = "<image> Is it 9?"
    pq.write_table(pa.Table.from_pylist(rows), root / "data/train-00000-of-00001.parquet", row_group_size=2)
    assert [old == new for old, new in zip(units, source.units(), strict=True)][:1] == [True]
    assert units[1] != source.units()[1]
    pq.write_table(pa.Table.from_pylist([{"text": "a"}]), root / "data/train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="columns text, but image"):
        source.units()


# --- images and masks ----------------------------------------------------------------------------------


def test_images_beside_masks(tmp_path):
    one, many, named = (tmp_path / name for name in ("one", "many", "named"))
    for number in range(2):
        save(one / f"images/{number}.png", grey())
        save(one / f"masks/{number}_mask.png", square())
        save(many / f"train/images/{number}.png", grey())
        save(many / f"train/masks/liver/{number}.png", square())
        save(many / f"test/images/t{number}.png", grey())
        save(many / f"test/masks/left_kidney/t{number}.png", square())
        save(named / f"imgs/p_{number}.png", grey())
        save(named / f"masks/p_{number}_liver.png", square())
    save(named / "masks/p_1_left+kidney.png", square(30))
    save(named / "masks/q_1_liver.png", square(30))
    assert [kinds_of(root) for root in (one, many, named)] == [["pairs"]] * 3
    with pytest.raises(ValueError, match="nothing says its modality"):
        open_source(many).units()
    with pytest.raises(ValueError, match="nothing says its target"):
        open_source(one, options=CT).units()
    samples, bad = read_all(open_source(one, options=CT | {"target": "liver", "licence": "CC0-1.0"}))
    assert [(s.id, s.target, s.licence) for s in samples] == [(f"one/{n}/liver", "liver", "CC0-1.0") for n in "01"]
    assert not bad and samples[0].region.sum() == 225
    source = open_source(many, options=CT)
    assert {(u.id, u.facts["split"]) for u in source.units()} == {
        ("test/t0", "test"), ("test/t1", "test"), ("train/0", "train"), ("train/1", "train"),
    }  # fmt: skip
    assert {s.target for s in read_all(source)[0]} == {"liver", "left kidney"}
    samples, bad = read_all(open_source(named, options=CT))
    assert sorted(s.id for s in samples) == ["named/p_0/liver", "named/p_1/left kidney", "named/p_1/liver"]
    assert [(code, file) for _, code, file in bad] == [("missing-file", "masks/q_1_liver.png")]


def test_a_manifest_goes_before_the_folders_beside_it(tmp_path):
    save(tmp_path / "set/images/0.png", grey())
    save(tmp_path / "set/masks/0.png", square())
    row = CT | {"id": "a", "image": "images/0.png", "masks": [{"target": "liver", "file": "masks/0.png"}]}
    (tmp_path / "set/manifest.jsonl").write_text(json.dumps(row))
    assert kinds_of(tmp_path / "set") == ["manifest"]


# --- COCO ----------------------------------------------------------------------------------------------


def compressed(counts):
    """COCO's compressed run lengths, by the description of its format."""
    text = ""
    for place, count in enumerate(counts):
        number = count - (counts[place - 2] if place > 2 else 0)
        while True:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text += chr(bits + 32 * more + 48)
            if not more:
                break
    return text


def runs(mask):
    flat = (mask.T.ravel() > 0).astype(int)
    edges = np.flatnonzero(np.diff(np.r_[0, flat, 1 - flat[-1]]))
    return np.diff(np.r_[0, edges]).tolist()


def test_run_lengths_with_and_without_compression():
    rng = np.random.default_rng(0)
    for mask in (square(), square(0, 0, 50), rng.random((40, 30)) > 0.6, np.ones((3, 5)), np.zeros((3, 5))):
        counts = runs(mask)
        for given in (counts, compressed(counts)):
            np.testing.assert_array_equal(run_lengths(given, *mask.shape), mask > 0)
    with pytest.raises(ValueError, match="run lengths of 5 pixels in an image of 15"):
        run_lengths([2, 3], 3, 5)
    with pytest.raises(ValueError, match="no part of compressed"):
        run_lengths("\x10", 3, 5)


def test_polygons_and_runs_are_drawn_where_they_are():
    size = [50, 60]
    region = decode_mask(draw([[[20, 10, 35, 10, 35, 25, 20, 25]]], size), "m", {"size": (50, 60), "orientation": 1})
    assert (region ^ (square() > 0)).sum() <= 31  # but for the border, whose pixels are half in
    both = draw([[[0, 0, 8, 0, 8, 8]], {"counts": runs(square()), "size": size}], size)
    assert (decode_mask(both, "m", {"size": (50, 60), "orientation": 1}) >= (square() > 0)).all()
    for shape, text in (([[1, 2, 3]], "polygon of 3"), ({"counts": [1], "size": [1, 1]}, "run lengths of")):
        with pytest.raises(ValueError, match=text):
            draw([shape], size)


def coco(images, annotations):
    return json.dumps(
        {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "liver"}, {"id": 7, "name": "Spleen"}],
        }
    )


def test_coco_in_its_own_layout_and_roboflows(tmp_path):
    root = tmp_path / "coco"
    image = {"id": 5, "file_name": "a.png", "height": 50, "width": 60}
    marks = [
        {"image_id": 5, "category_id": 1, "segmentation": [[20, 10, 35, 10, 35, 25, 20, 25]]},
        {"image_id": 5, "category_id": 1, "segmentation": {"counts": compressed(runs(square(30))), "size": [50, 60]}},
        {"image_id": 5, "category_id": 7, "segmentation": {"counts": runs(square(5, 40)), "size": [50, 60]}},
        {"image_id": 5, "category_id": 7, "segmentation": [], "bbox": [1, 2, 3, 4]},
        {"image_id": 6, "category_id": 7, "segmentation": [[1, 2, 3, 4, 5, 6]]},
    ]
    for side in ("train2017", "val2017"):
        save(root / side / "a.png", grey(90 if side[0] == "t" else 20))
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{side}.json").write_text(coco([image], marks))
    assert kinds_of(root) == ["coco"]
    with pytest.raises(ValueError, match="nothing says its modality"):
        Coco(root).units()
    source = open_source(root, options=CT)
    samples, bad = read_all(source)
    assert {s.target for s in samples} == {"liver", "spleen"} and len(samples) == 4 == len({s.id for s in samples})
    liver = next(s for s in samples if s.target == "liver")
    assert abs(liver.region.sum() - 2 * 225) <= 31 and [name for name, _ in liver.neighbours] == ["spleen"]
    assert sorted({u.facts["split"] for u in source.units() if u.files}) == ["train2017", "val2017"]
    assert [code for _, code, _ in bad] == ["bad-line"] * 4
    lost = [{"file_name": "b.png"}, image | {"id": float("nan")}, image]
    holed = marks[0] | {"segmentation": [[1, 2, 30, float("nan"), 30, 40]]}
    (root / "annotations/instances_val2017.json").write_text(coco(lost, [*marks[:1], holed | {"category_id": 7}]))
    bad = [(code, reason) for _, code, reason in read_all(source)[1]]
    assert [code for code, _ in bad].count("bad-line") == 4 and ("unreadable-mask", "val2017/a.png") in bad
    robo = tmp_path / "robo"
    save(robo / "valid/a.png", grey())
    (robo / "valid/_annotations.coco.json").write_text(coco([image], marks[:1]))
    (sample,), bad = read_all(open_source(robo, options=CT))
    assert sample.id == "robo/valid/a/liver" and not bad
