"""Real question files, read whole: how many items each gives, that nothing leaves without a reason, and the traps that they hold.

The counts are those of the files themselves, counted without the readers.
"""

import json
from collections import Counter

import pytest

from vital_jax.evaluate.benchmarks import load


@pytest.mark.parametrize(
    ("name", "path", "split", "items", "dropped"),
    [
        ("vqa_rad", "vqa_rad", "all", 1500, {}),
        ("vqa_rad", "vqa_rad", "test", 284, {}),
        ("vqa_rad", "vqa_rad", "train", 1216, {}),
        ("vqa_rad", "vqa_rad/testset.json", "test", 284, {}),
        ("vqa_rad", "vqa_rad/trainset.json", "train", 2047, {}),
        ("slake", "slake_qa", "train", 9834, {"no-answer": 1}),
        ("slake", "slake_qa", "validate", 2099, {}),
        ("slake_en", "slake_qa", "train", 4918, {"other-language": 4916, "no-answer": 1}),
        ("slake_zh", "slake_qa", "train", 4916, {"other-language": 4919}),
        ("slake_en", "slake_qa", "val", 1053, {"other-language": 1046}),
        ("pathvqa", "pathvqa_qa", "validation", 6279, {}),
        ("medxpertqa_mm", "medxpertqa_mm", "test", 1334, {}),
        ("mmmu_pro_health", "mmmu_health", "test", 193, {}),
    ],
)
def test_files_are_read_whole(real, name, path, split, items, dropped):
    folder, _, file = path.partition("/")
    loaded = load(name, real(folder) / file, split)
    assert (len(loaded.items), dict(loaded.dropped)) == (items, dropped)
    assert len({item.id for item in loaded.items}) == items
    assert {(item.benchmark, item.split) for item in loaded.items} == {(name, loaded.split)}


def test_vqa_rad_has_all_its_images(real):
    loaded = load("vqa_rad", real("vqa_rad"), "all", need_images=True)
    assert str(loaded) == "1500 items of vqa_rad all, nothing dropped"
    assert len({item.images for item in loaded.items}) == len({item.metadata["group"] for item in loaded.items}) == 209
    record = loaded.items[0].record()
    assert record.images[0][:2] == b"\xff\xd8"
    assert (record.question, record.answer) == ("Are regions of the brain infarcted?", "Yes")
    assert record.metadata["site"] == "head"


def test_vqa_rad_numbers_and_types(real):
    """Four answers are JSON numbers and one id is a string; the two test layouts hold the same questions and answers."""
    raw = json.loads((real("vqa_rad") / "VQA_RAD_Dataset_Public.json").read_text())
    items = load("vqa_rad", real("vqa_rad"), "all").items
    numbers = [item.answer for item, row in zip(items, raw, strict=True) if not isinstance(row["answer"], str)]
    assert len(numbers) == 4 and all(answer.isdigit() for answer in numbers)
    assert items[0].id == "public-0" and items[1].id == "public-1"
    assert Counter(item.closed for item in items) == {True: 845, False: 655}
    public, sets = (
        sorted(
            (item.question, item.answer.lower(), item.metadata["image_name"]) for item in load("vqa_rad", path).items
        )
        for path in (real("vqa_rad"), real("vqa_rad") / "testset.json")
    )
    # The later layout took some wordings from other fields, so a few differ.
    assert len(set(public) & set(sets)) > 180


def test_slake_languages(real):
    loaded = load("slake", real("slake_qa"), "train")
    raw = json.loads((real("slake_qa") / "train.json").read_text())
    kept = [row for row in raw if row["answer"].strip()]
    assert len(raw) - len(kept) == 1
    assert loaded.details == ("train.json[1622]: '1622' has no answer [no-answer]",) and raw[1622]["answer"] == ""
    for item, row in zip(loaded.items, kept, strict=True):
        assert (item.question, item.answer) == (row["question"].strip(), row["answer"].strip())
        assert item.metadata["language"] == row["q_lang"] and item.closed == (row["answer_type"] == "CLOSED")
    assert loaded.items[0].images[0] == real("slake_qa") / "imgs" / "xmlab1" / "source.jpg"
    with pytest.raises(FileNotFoundError, match=r"item '0': .*xmlab1/source.jpg: not found; add the images of slake"):
        loaded.items[0].record()
    with pytest.raises(ValueError, match=r"0 items of slake train, dropped: 9834 missing-file, 1 no-answer; the first"):
        load("slake", real("slake_qa"), "train", need_images=True)


def test_pathvqa_pairs_run_in_step(real):
    items = load("pathvqa", real("pathvqa_qa"), "val").items
    # 160 of the 992 images have no question.
    assert len({item.metadata["group"] for item in items}) == 832
    assert (items[0].id, items[0].question, items[0].answer) == (
        "val_0000/0", "What has pseudohyphae and budding yeasts?", "candida organism",
    )  # fmt: skip
    assert str(items[0].images[0]).endswith("images/val/val_0000.jpg")


def test_medxpertqa_options_leave_the_question(real):
    items = load("medxpertqa_mm", real("medxpertqa_mm")).items
    assert not any("Answer Choices" in item.question for item in items)
    assert Counter(item.gold for item in items) == {"A": 253, "B": 279, "C": 264, "D": 251, "E": 287}
    assert Counter(len(item.images) for item in items) == {1: 1044, 2: 170, 3: 37, 4: 16, 5: 50, 6: 17}
    assert Counter(item.metadata["question_type"] for item in items) == {"Reasoning": 976, "Understanding": 358}
    for item in items:
        choices = " ".join(f"({letter}) {text}" for letter, text in zip("ABCDE", item.options, strict=True))
        assert item.metadata["published_question"] == f"{item.question}\nAnswer Choices: {choices}"
        assert item.answer == item.options["ABCDE".index(item.gold)]


def test_mmmu_pro_options_and_images(real):
    loaded = load("mmmu_pro_health", real("mmmu_health"))
    by_id = {item.id: item for item in loaded.items}
    assert Counter(len(item.options) for item in loaded.items) == {
        10: 137, 9: 16, 4: 12, 3: 8, 5: 7, 2: 6, 6: 3, 7: 2, 8: 2,
    }  # fmt: skip
    assert sum(item.gold == "J" for item in loaded.items) == 9
    assert by_id["test_Pharmacy_287"].options == ("False", "True") and by_id["test_Pharmacy_287"].answer == "False"
    assert by_id["test_Clinical_Medicine_73"].options[-1] == "Paget's disease"
    # Its markers stand in the options alone, so their highest number says how many images there are.
    assert len(by_id["test_Pharmacy_280"].images) == 4 and len(by_id["test_Clinical_Medicine_127"].images) == 5
    seen = load("mmmu_pro_health", real("mmmu_health"), need_images=True)
    assert (len(seen.items), dict(seen.dropped)) == (4, {"missing-file": 189})
    assert {item.id for item in seen.items} == {
        "test_Clinical_Medicine_69", "test_Clinical_Medicine_118",
        "validation_Clinical_Medicine_2", "validation_Clinical_Medicine_23",
    }  # fmt: skip
    assert all(item.record().gold == item.gold for item in seen.items)


def test_what_is_not_there_says_where_it_is(real):
    with pytest.raises(
        FileNotFoundError, match=r"no question file of split 'test'.*BoKelvin/SLAKE \(licence: CC BY 4.0\)"
    ):
        load("slake", real("slake_qa"), "test")
    # Answers alone are no questions.
    with pytest.raises(FileNotFoundError, match=r"mmmu_health comes from Hugging Face MMMU/MMMU"):
        load("mmmu_health", real("mmmu_health"), "validation")
    with pytest.raises(
        ValueError, match=r"0 items of slake test, dropped: 284 bad-line; the first: .*no img_name or image"
    ):
        load("slake", real("vqa_rad") / "testset.json", "test")
