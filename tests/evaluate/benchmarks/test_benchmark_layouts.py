"""Readers of benchmarks against made files in the published layouts, images and archives included."""

import pytest
from benchmark_rows import arrow, hub_image, pack, parquet, png, write

from vital_jax.evaluate.benchmarks import BENCHMARKS, load
from vital_jax.pipeline.records import Record, write_splits

CSV_1 = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"
CSV_2 = "index,Figure_path,Caption,Question,Choice A,Choice B,Choice C,Choice D,Answer,split\n"


# --- PMC-VQA ----------------------------------------------------------------------------------------


def test_pmc_vqa_is_three_benchmarks(tmp_path):
    write(
        tmp_path,
        {
            "test.csv": CSV_1
            + "PMC1_F1.jpg,Uptake?,Focal uptake, A:Diffuse uptake , B:Focal uptake, C:None,D:Cannot tell,B\n"
            + '"PMC1_F2.jpg","Which, of these?",x,A:x,B:y,C:A:z,D:"q",A\n',
            "test_clean.csv": CSV_1 + "PMC1_F1.jpg,Uptake?,Focal uptake,A:Diffuse,B:Focal uptake,C:None,D:No,\n",
            "test_2.csv": CSV_2
            + '7,PMC2_Fig1_1.jpg,"a caption, long",What?, one, two,three,four,D,test\n'
            + "8,PMC2_Fig1_2.jpg,c,What?,one,two,three,four,E,test\n"
            + "9,PMC2_Fig1_2.jpg,c,What?,one,two,three\n",
        },
    )
    pack(tmp_path / "images.zip", {"images/PMC1_F1.jpg": png(1), "images/PMC1_F2.jpg": png(2)})
    pack(tmp_path / "images_2.zip", {"figures/PMC2_Fig1_1.jpg": png(3)})
    first = load("pmc_vqa", tmp_path, need_images=True)
    assert [(item.id, item.gold, item.answer) for item in first.items] == [
        ("test-0", "B", "Focal uptake"),
        ("test-1", "A", "x"),
    ]
    assert first.items[0].options == ("Diffuse uptake", "Focal uptake", "None", "Cannot tell")
    assert first.items[1].options == ("x", "y", "A:z", '"q"') and first.items[1].pictures() == (png(2),)
    assert first.items[1].question == "Which, of these?" and first.items[0].metadata["group"] == "PMC1"
    clean = load("pmc_vqa_clean", tmp_path).items
    assert [(item.id, item.gold) for item in clean] == [("test_clean-0", "B")]
    second = load("pmc_vqa_2", tmp_path)
    assert [(item.id, item.gold, item.answer, item.pictures()) for item in second.items] == [
        ("test_2-7", "D", "four", (png(3),))
    ]
    assert dict(second.dropped) == {"bad-line": 2}
    assert "answer 'E' is none of the letters" in second.details[0] and "fewer fields" in second.details[1]
    assert "caption" not in str(second.items[0])


# --- OmniMedVQA -------------------------------------------------------------------------------------


def omni(**changes):
    row = {
        "dataset": "ACRIMA", "question_id": "ACRIMA_0000", "question_type": "Modality Recognition", "question": "What modality?",
        "gt_answer": "Fundus", "image_path": "Images/ACRIMA/1.png", "option_A": "MR", "option_B": "Fundus",
        "modality_type": "Fundus Photography",
    }  # fmt: skip
    return {key: value for key, value in (row | changes).items() if value is not None}


OMNI = {
    "QA_information/Open-access/ACRIMA.json": [
        omni(),
        omni(question_id="ACRIMA_0001", gt_answer="A", option_C="CT", option_D=""),
        omni(question_id="ACRIMA_0002", gt_answer="fundus.", option_C="Fundus"),
        omni(question_id="ACRIMA_0003", gt_answer="PET"),
        omni(question_id="ACRIMA_0003"),
        omni(question_id="ACRIMA_0003"),
    ],
    "QA_information/Open-access/Chest CT Scan.json": [
        omni(modality_type=None, modality="CT", image_path="Images/2.png")
    ],
    "QA_information/Restricted-access/Other.json": [omni()],
    "Images/ACRIMA/1.png": png(1),
    "Images/2.png": png(2),
}


@pytest.mark.parametrize("form", ["folder", "inner", "zip", "flat zip"])
def test_omnimedvqa_by_modality(tmp_path, form):
    if form == "folder":
        path = write(tmp_path, {f"OmniMedVQA/{name}": content for name, content in OMNI.items()})
    elif form == "inner":
        path = write(tmp_path, OMNI)
    else:
        prefix = "OmniMedVQA/" if form == "zip" else ""
        path = pack(tmp_path / "o.zip", {f"{prefix}{name}": content for name, content in OMNI.items()})
    loaded = load("omnimedvqa", path, need_images=True)
    assert [(item.id, item.gold, item.options) for item in loaded.items] == [
        ("ACRIMA/ACRIMA_0000", "B", ("MR", "Fundus")),
        ("ACRIMA/ACRIMA_0001", "A", ("MR", "Fundus", "CT")),
        ("ACRIMA/ACRIMA_0002", "B", ("MR", "Fundus", "Fundus")),
        ("ACRIMA/ACRIMA_0003", "B", ("MR", "Fundus")),
        ("Chest CT Scan/ACRIMA_0000", "B", ("MR", "Fundus")),
    ]
    assert dict(loaded.dropped) == {"bad-line": 1, "duplicate-id": 1}
    assert "'PET' is none of the options" in loaded.details[0]
    assert [item.metadata["modality"] for item in loaded.items[-2:]] == ["Fundus Photography", "CT"]
    assert [item.pictures() for item in loaded.items[-2:]] == [(png(1),), (png(2),)]


def test_omnimedvqa_says_where_an_image_should_be(tmp_path):
    write(tmp_path, {"o/QA_information/Open-access/A.json": [omni()]})
    item = load("omnimedvqa", tmp_path).items[0]
    assert item.images == (tmp_path / "o" / "Images" / "ACRIMA" / "1.png",)


# --- MMMU -------------------------------------------------------------------------------------------


def mmmu(name, **changes):
    row = {
        "id": name, "question": "Which? <image 1>", "options": "['x', \"y's\"]", "answer": "B", "question_type": "multiple-choice",
        "img_type": "['Diagrams']", "topic_difficulty": "Easy", "subfield": "s", "image_1": hub_image(1), "image_2": None, "image_3": None,
    }  # fmt: skip
    return row | changes


def test_mmmu_health_from_parquet(tmp_path):
    parquet(
        tmp_path / "Pharmacy" / "validation-00000-of-00001.parquet",
        [
            mmmu("validation_Pharmacy_1", image_2=hub_image(2)),
            mmmu("validation_Pharmacy_2", options="[]", answer="['2', 'two']", question_type="open"),
            mmmu("validation_Pharmacy_3", options="[]", answer="2.50", question_type="open"),
            mmmu("validation_Pharmacy_4", answer="?"),
            mmmu("validation_Pharmacy_5", image_3=hub_image(3)),
            mmmu("validation_Pharmacy_6", options="['x', __import__('os').system('false')]"),
            mmmu("validation_Pharmacy_7", options=str(list("abcdefghij")), answer="J"),
            mmmu("validation_Pharmacy_8", answer="C"),
        ],
    )
    parquet(tmp_path / "Math" / "validation-00000-of-00001.parquet", [mmmu("validation_Math_1")])
    loaded = load("mmmu_health", tmp_path, "validation", need_images=True)
    items = {item.id[-1]: item for item in loaded.items}
    assert sorted(items) == ["1", "2", "3", "7"]
    assert dict(loaded.dropped) == {"other-subject": 1, "no-answer": 1, "bad-line": 3}
    assert items["1"].pictures() == (png(1), png(2)) and items["1"].options == ("x", "y's")
    assert (items["1"].gold, items["1"].answer, items["1"].closed) == ("B", "y's", True)
    assert (items["2"].answer, items["2"].answers, items["2"].closed) == ("2", ("two",), False)
    assert items["3"].answer == "2.50" and items["7"].gold == "J"
    assert items["1"].metadata["subject"] == "Pharmacy" and items["1"].metadata["image_type"] == ["Diagrams"]
    text = "\n".join(loaded.details)
    assert "image_2 is empty, and one after it is not" in text and "no list that can be read" in text
    with pytest.raises(ValueError, match="no split 'test' that can be scored; there are validation, dev"):
        load("mmmu_health", tmp_path, "test")


def test_mmmu_pro_settings_are_kept_apart(tmp_path):
    for setting, count in (("standard (10 options)", 10), ("standard (4 options)", 4)):
        row = mmmu("test_Pharmacy_1", options=str([f"o{k}" for k in range(count)]), answer="D", subject="Pharmacy")
        parquet(tmp_path / setting / "test-00000-of-00001.parquet", [row, mmmu("test_Math_1", subject="Math")])
    parquet(tmp_path / "vision" / "test-00000-of-00001.parquet", [{"id": "test_Pharmacy_1", "image": hub_image(1)}])
    for name, count in (("mmmu_pro_health", 10), ("mmmu_pro_health_4", 4)):
        loaded = load(name, tmp_path)
        assert [len(item.options) for item in loaded.items] == [count]
        assert dict(loaded.dropped) == {"other-subject": 1}


# --- MedXpertQA -------------------------------------------------------------------------------------


def test_medxpertqa_of_the_hub(tmp_path):
    options = {"A": "C", "B": "D", "C": "None", "D": "A", "E": "B"}
    choices = "(A) C (B) D (C) None (D) A (E) B"
    row = {"id": "MM-1", "question": f"Which artery?\nAnswer Choices: {choices}", "options": options, "label": "C",
           "images": ["MM-1-a.jpeg", "MM-1-b.jpeg"], "medical_task": "Diagnosis"}  # fmt: skip
    write(
        tmp_path,
        {
            "MM/test.jsonl": [
                row,
                row | {"id": "MM-2", "question": "Other?\nAnswer Choices: (A) p (B) q", "label": ["E"]},
                row | {"id": "MM-3", "options": {"A": "x", "C": "y"}},
                row | {"id": "MM-4", "label": []},
            ],
            "MM/dev.jsonl": [row | {"id": "MM-2000"}],
            "Text/test.jsonl": [{"id": "Text-1"}],
        },
    )
    pack(tmp_path / "images.zip", {"images/MM-1-a.jpeg": png(1), "images/MM-1-b.jpeg": png(2)})
    loaded = load("medxpertqa_mm", tmp_path, need_images=True)
    assert [(item.id, item.gold, item.answer, item.question) for item in loaded.items] == [
        ("MM-1", "C", "None", "Which artery?"),
        ("MM-2", "E", "B", "Other?\nAnswer Choices: (A) p (B) q"),
    ]
    assert loaded.items[0].pictures() == (png(1), png(2))
    assert dict(loaded.dropped) == {"bad-line": 2}
    assert [item.id for item in load("medxpertqa_mm", tmp_path, "dev").items] == ["MM-2000"]


# --- GEMeX ------------------------------------------------------------------------------------------


def test_gemex_has_four_forms(tmp_path):
    base = {
        "question": "Which?",
        "image_path": "p10/p1/s5/a.jpg",
        "type": "finding",
        "visual_locations": [[1, 2, 3, 4]],
    }
    choices = ["A: effusion", "B: edema", "C: none", "D: mass"]
    write(
        tmp_path,
        {
            "open_ended_question.jsonl": [base | {"q_id": 1, "answer": "The heart is large."}],
            "closed_ended_question.jsonl": [
                base | {"q_id": 1, "answer": "Yes."},
                base | {"q_id": 2, "answer": ["No."]},
            ],
            "single_choice_question.jsonl": [
                base | {"q_id": 1, "choices": choices, "answer": "C"},
                base | {"q_id": 2, "choices": choices, "answer": ["A", "B"]},
            ],
            "multi_choice_question.jsonl": [
                base | {"q_id": 1, "choices": choices, "answer": ["D", "A"]},
                base | {"q_id": 2, "choices": choices, "answer": "A,B, D"},
                base | {"q_id": 3, "choices": choices, "answer": ["B"]},
                base | {"q_id": 4, "choices": choices, "answer": ["B"], "image_path": "../../secret.jpg"},
            ],
            "files/p10/p1/s5/a.jpg": png(1),
        },
    )
    loaded = load("gemex", tmp_path, need_images=True)
    assert {item.id: (item.gold, item.answer, item.closed) for item in loaded.items} == {
        "open_ended_1": ("", "The heart is large.", False),
        "closed_ended_1": ("", "Yes", True),
        "closed_ended_2": ("", "No", True),
        "single_choice_1": ("C", "none", True),
        "multi_choice_1": ("AD", "effusion; mass", True),
        "multi_choice_2": ("ABD", "effusion; edema; mass", True),
        "multi_choice_3": ("B", "edema", True),
    }
    assert dict(loaded.dropped) == {"bad-line": 1, "path-escape": 1}
    assert "names 2 options where one is right" in loaded.details[1]
    assert loaded.items[0].metadata["locations"] == [[1, 2, 3, 4]]


# --- the hub's Parquet, saved data sets -------------------------------------------------------------

ROWS = [
    {"image": hub_image(1), "question": "Is it normal?", "answer": "yes "},
    {"image": hub_image(1), "question": "Which organ?", "answer": "liver"},
    {"image": hub_image(2), "question": "Empty?", "answer": ""},
    {"image": {"bytes": None, "path": None}, "question": "No image?", "answer": "no"},
]


@pytest.mark.parametrize("name", ["vqa_rad", "slake", "pathvqa"])
@pytest.mark.parametrize("form", ["parquet", "saved", "file form", "cache", "zip"])
def test_hub_forms_of_question_and_image(tmp_path, name, form):
    if form == "parquet":
        parquet(tmp_path / "data" / "test-00000-of-00002.parquet", ROWS[:1])
        parquet(tmp_path / "data" / "test-00001-of-00002.parquet", ROWS[1:])
        parquet(tmp_path / "data" / "train-00000-of-00001.parquet", ROWS[:1])
    elif form == "zip":
        inner = parquet(tmp_path / "x" / "p", ROWS).read_bytes()
        pack(tmp_path / "a.zip", {"data/test-00000-of-00001.parquet": inner})
    elif form == "cache":
        arrow(tmp_path / f"{name}-test.arrow", ROWS)
    else:
        write(tmp_path, {"dataset_dict.json": "{}", "test/state.json": "{}"})
        arrow(tmp_path / "test" / "data-00000-of-00001.arrow", ROWS, stream=form == "saved")
    loaded = load(name, tmp_path, need_images=True)
    assert [(item.question, item.answer, item.closed) for item in loaded.items] == [
        ("Is it normal?", "yes", None),
        ("Which organ?", "liver", None),
    ]
    assert len({item.id for item in loaded.items}) == 2
    assert dict(loaded.dropped) == {"no-answer": 1, "bad-line": 1}
    one, two = loaded.items
    assert one.pictures() == (png(1),) and one.images[0] is two.images[0]
    assert one.metadata["group"] == two.metadata["group"]


def test_one_saved_split_is_no_other(tmp_path):
    arrow(tmp_path / "train" / "data-00000-of-00001.arrow", ROWS)
    with pytest.raises(FileNotFoundError, match="no question file of split 'test'"):
        load("pathvqa", tmp_path)
    # A data set saved alone does not say which split it is: the user does.
    assert len(load("pathvqa", tmp_path / "train").items) == 2


def test_slake_images_lie_in_imgs(tmp_path):
    row = {
        "img_name": "xmlab1/source.jpg",
        "question": "器官?",
        "answer": "肝",
        "q_lang": "zh",
        "answer_type": "OPEN",
        "qid": 1,
    }
    write(tmp_path, {"Slake1.0/test.json": [row], "Slake1.0/imgs/xmlab1/source.jpg": png(1)})
    assert load("slake", tmp_path, need_images=True).items[0].pictures() == (png(1),)
    write(tmp_path / "hub", {"test.json": [row]})
    pack(tmp_path / "hub" / "imgs.zip", {"imgs/xmlab1/source.jpg": png(2)})
    assert load("slake_zh", tmp_path / "hub", need_images=True).items[0].pictures() == (png(2),)


def test_vqa_rad_trap_values(tmp_path):
    row = {"qid": 1, "qid_linked_id": "x", "image_name": "1.jpg", "image_organ": "ABD", "phrase_type": "test_para",
           "question": " Where?\t", "answer": " left\tlobe ", "answer_type": "CLOSED ", "question_type": "POS, PRES"}  # fmt: skip
    write(
        tmp_path,
        {
            "VQA_RAD Dataset Public.json": [
                row,
                row | {"qid": "2", "answer": 5, "answer_type": "OPEN"},
                row | {"qid": 3, "answer": ["a", "b"]},
                row | {"qid": 4, "answer": True},
                row | {"qid": 5, "answer_type": "MAYBE"},
                row | {"qid": 2},
                row | {"qid": 6, "image_name": "/etc/passwd"},
                row | {"qid": 7, "phrase_type": "freeform"},
                "no object",
            ],
            "VQA_RAD Image Folder/1.jpg": png(1),
        },
    )
    loaded = load("vqa_rad", tmp_path, need_images=True)
    assert [(item.id, item.question, item.answer, item.closed) for item in loaded.items] == [
        ("public-1", "Where?", "left\tlobe", True),
        ("public-2", "Where?", "5", False),
    ]
    assert loaded.items[0].metadata | {"site": "abdomen", "question_type": "POS, PRES"} == loaded.items[0].metadata
    assert dict(loaded.dropped) == {"bad-line": 4, "duplicate-id": 1, "path-escape": 1}
    assert [detail.split(":")[0] for detail in loaded.details] == [
        f"VQA_RAD Dataset Public.json[{number}]" for number in (2, 3, 4, 5, 6, 8)
    ]


def test_pathvqa_lists_out_of_step(tmp_path):
    def row(name, questions, answers):
        return {"img_id": name, "sentf": {"pvqa": questions}, "labelf": {"pvqa": answers}}

    write(
        tmp_path,
        {
            "pvqa_test.json": [
                row("test_0", ["a?", " ", "c?"], [{"x": 0.3, "y": 1}, {"no": 1}, {}]),
                row("test_1", ["a?"], []),
            ],
            "images/test/test_0.jpg": png(1),
        },
    )
    loaded = load("pathvqa", tmp_path, need_images=True)
    assert [(item.id, item.answer, item.answers) for item in loaded.items] == [("test_0/0", "y", ("x",))]
    assert dict(loaded.dropped) == {"bad-line": 2, "no-answer": 1}


# --- one's own --------------------------------------------------------------------------------------


def test_own_records(tmp_path):
    one = Record("a", (png(1), png(2)), "Where?", "left", chain=("x", "y"), metadata={"form": "open", "group": "p1"})
    two = Record("b", (png(3),), "Which?", "no", options=("yes", "no"), gold="B", metadata={"form": "closed"})
    write_splits([("test", one), ("test", two), ("train", Record("c", (png(4),), "q", "a"))], tmp_path / "r")
    items = load("records", tmp_path / "r", need_images=True).items
    assert [(item.id, item.closed, item.gold) for item in items] == [("a", False, ""), ("b", True, "B")]
    assert items[0].pictures() == (png(1), png(2)) and items[0].metadata["latent_steps"] == 2
    assert "record 1, image 1" in str(items[1].images[0])
    back = items[1].record()
    assert (back.images, back.options, back.gold, back.answer) == (two.images, two.options, two.gold, two.answer)
    with pytest.raises(ValueError, match="no split 'validation'"):
        load("records", tmp_path / "r", "validation")
    with pytest.raises(FileNotFoundError, match=r"no finished record folder, nor one in it as records/"):
        load("records", tmp_path)
    (tmp_path / "r").rename(tmp_path / "records")
    assert [item.id for item in load("records", tmp_path).items] == ["a", "b"]  # an OUT of a build


OWN = [
    {"id": "1", "image": "1.png", "question": "Plane?", "options": ["axial", "coronal"], "answer": "Axial", "modality": "CT"},
    {"id": "2", "image": "images/2.png", "question": "Which?", "options": "['C', 'A', 'B']", "answer": "A"},
    {"id": "3", "images": ["1.png", "2.png"], "question": "Sites?", "options": {"A": "x", "B": "y", "C": "z"}, "gold": "CA"},
    {"id": "4", "question": "Organ?", "answer": ["liver", "hepar"], "closed": False, "group": "p7"},
    {"question": "How many?", "answer": 3, "closed": True},
    {"id": "6", "question": "Which?", "options": ["x", "y"], "answer": "b)"},
    {"id": "7", "question": "Which?", "options": ["x", "y"]},
    {"id": "8", "question": "Which?", "options": ["x", "y"], "answer": ["y", "x"]},
    {"id": "9", "question": "Which?", "options": "['x', 'y'", "answer": "x"},
]  # fmt: skip


@pytest.mark.parametrize("name", ["test.jsonl", "questions.json", "own.jsonl"])
def test_a_file_of_ones_own(tmp_path, name):
    write(tmp_path, {name: OWN, "1.png": png(1), "images/2.png": png(2)})
    loaded = load("file", tmp_path / name if name.startswith("own") else tmp_path)
    assert {item.id: (item.gold, item.answer, item.answers) for item in loaded.items} == {
        "1": ("A", "axial", ()),
        "2": ("B", "A", ()),  # an option's text goes before a letter
        "3": ("AC", "x; z", ()),
        "4": ("", "liver", ("hepar",)),
        "row-4": ("", "3", ()),
        "6": ("B", "y", ()),
        "8": ("AB", "x; y", ()),
    }
    assert dict(loaded.dropped) == {"no-answer": 1, "bad-line": 1}
    items = {item.id: item for item in loaded.items}
    assert items["3"].pictures() == (png(1), png(2)) and items["2"].pictures() == (png(2),)
    assert items["1"].metadata == {"group": "1.png", "modality": "CT"} and items["4"].metadata["group"] == "p7"
    assert [items[number].closed for number in ("1", "4", "row-4")] == [None, False, True]
    assert dict(load("file", tmp_path / name, need_images=True).dropped) == {
        "no-answer": 1,
        "bad-line": 1,
        "no-image": 4,
    }


def test_tables_of_ones_own(tmp_path):
    text = "id{0}image{0}question{0}answer{0}options{0}closed\n1{0}1.png{0}Which?{0}B{0}\"['x', 'y']\"{0}\n2{0}{0}Sex?{0}m{0}{0}true\n"
    write(tmp_path, {"a/test.csv": "\ufeff" + text.format(","), "b/test.tsv": text.format("\t")})
    parquet(
        tmp_path / "c" / "test.parquet",
        [{"id": 1, "image": hub_image(1), "question": "Which?", "answer": "B", "options": ["x", "y"]}],
    )
    for folder in "ab":
        items = load("file", tmp_path / folder).items
        assert [(item.id, item.gold, item.answer, item.closed) for item in items] == [
            ("1", "B", "y", None),
            ("2", "", "m", True),
        ]
        assert items[0].options == ("x", "y")
    item = load("file", tmp_path / "c", need_images=True).items[0]
    assert (item.gold, item.pictures()) == ("B", (png(1),))


# --- the table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.where])
def test_every_benchmark_says_where_it_comes_from(tmp_path, name):
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError) as caught:
            load(name, path, BENCHMARKS[name].splits[0])
        assert f"{name} comes from {BENCHMARKS[name].where} (licence: {BENCHMARKS[name].licence})" in str(caught.value)
        assert str(caught.value).startswith(f"{path}: no") and "\n" not in str(caught.value)


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError, match="no benchmark 'vqarad'; there are vqa_rad, slake"):
        load("vqarad", tmp_path)
    with pytest.raises(
        ValueError, match="vqa_rad: no split 'validation' that can be scored; there are test, train, all"
    ):
        load("vqa_rad", tmp_path, "val")
