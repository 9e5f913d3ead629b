"""Tables: missing cells, Unicode's two forms, separators and headers, other trainers' placeholders."""

import json
import unicodedata

import pytest

from vital_jax.pipeline.tables import TableFile, as_on_disk, clean, named, read_json, read_rows, without_placeholders

NFD = unicodedata.normalize("NFD", "Jérôme")


def rows(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [row for _, row in read_rows(TableFile(path))]


def test_what_is_no_number_has_no_key():
    text = json.dumps(
        {"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": float("inf"), "e": 0}, "f": None, "g": ""}
    )
    assert read_json(text) == {"b": [1.5, None], "c": {"e": 0}, "g": ""}
    assert read_json('{"a": 1e999, "b": "nan", "c": "NaN", "d": "Nan", "e": "banana", "f": false}') == {
        "d": "Nan", "e": "banana", "f": False,
    }  # fmt: skip
    assert clean({NFD: [NFD, b"x"]}) == {"Jérôme": ["Jérôme", b"x"]}


@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_every_form_of_json_is_cleaned(tmp_path, name):
    row = {"q": float("nan"), "id": NFD}
    assert rows(tmp_path / name, json.dumps(row if name.endswith("l") else [row])) == [{"id": "Jérôme"}]


def test_parquet_is_cleaned_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pa.Table.from_pylist([{"q": float("nan"), "id": NFD}]), tmp_path / "t.parquet"
    )
    assert [row for _, row in read_rows(TableFile(tmp_path / "t.parquet"))] == [{"id": "Jérôme"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "id,question\n1,Is it; really?\n"),
        ("t.csv", "\ufeffid;question\r\n1;Is it; really?\r\n".replace("Is it; really?", '"Is it; really?"')),
        ("t.csv", 'sep=;\r\nid;question\r\n1;"Is it; really?"\r\n'),
        ("t.csv", "id|question\n1|Is it; really?\n"),
        ("t.csv", '"id","que;st;;ion"\n1,"Is it; really?"\n'),
        ("t.tsv", "id\tquestion\n1\tIs it; really?\n"),
    ],
)
def test_a_separator_is_found_in_the_header(tmp_path, name, text):
    (row,) = rows(tmp_path / name, text)
    assert list(row.values()) == ["1", "Is it; really?"]


def test_capitals_and_spaces_of_a_header_do_not_count():
    assert named({" Question": "q", "ANSWER": "a", "Other Column": 1}, ("question", "answer")) == {
        "question": "q", "answer": "a", "Other Column": 1,
    }  # fmt: skip
    for row in ({"Answer": "no", "answer": "yes"}, {"answer": "yes", "Answer": "no"}):
        assert named(row, ("answer",)) == {"answer": "yes"}


@pytest.mark.parametrize(
    ("text", "images", "expected"),
    [
        ("<image>\nWhat organ is this?", 1, "What organ is this?"),
        ("What organ is this?\n<image>", 1, "What organ is this?"),
        ("<image> <image>\nWhat changed?", 2, "What changed?"),
        ("<|vision_start|><|image_pad|><|vision_end|>What?", 1, "What?"),
        ("Picture 1: <img>scans/7.jpg</img>\nWhat?", 1, "What?"),
        ("(<image>./</image>)\nWhat?", 1, "What?"),
        ("<ImageHere>What? ", 1, "What?"),
        ("<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhat?", 1, "What?"),
        ("<im_start><im_patch><im_patch><im_end>What?", 1, "What?"),
        ("<|begin_of_image|><|endoftext|><|end_of_image|>What?", 1, "What?"),
        ("<|begin_of_image|><|image|><|end_of_image|>What?", 1, "What?"),
        ("<fake_token_around_image><image><fake_token_around_image>What?", 1, "What?"),
        ("Is < image /> old?", 1, "Is the image old?"),
        ("<image>, what is it?", 1, "what is it?"),
        ("<|image_1|>\n<|image_2|>\nWhat changed?", 2, "What changed?"),
        ("<start_of_image> What?", 1, "What?"),
        ("[IMG]What?", 1, "What?"),
        ("<im_start><image><im_end>\nWhat?", 1, "What?"),
        ("Look closely.\n<image>\nWhat is it?", 1, "Look closely.\n\nWhat is it?"),
        ("Where in <image> is the liver?", 1, "Where in the image is the liver?"),
        ("Where in the <image> is the liver?", 1, "Where in the image is the liver?"),
        ("Compare <image> with <image>, please.", 2, "Compare the first image with the second image, please."),
        ("Is it larger in <image 2> than in <image 1>, or not?", 2,
         "Is it larger in the second image than in the first image, or not?"),
        ("Is P < 0.05 and the imaged part > 3 mm?", 1, "Is P < 0.05 and the imaged part > 3 mm?"),
        ("What does the image show?", 1, "What does the image show?"),
    ],
)  # fmt: skip
def test_placeholders_are_taken_out_or_put_into_words(text, images, expected):
    assert without_placeholders(text, images) == expected


def test_placeholders_without_an_image_or_a_question_are_errors():
    with pytest.raises(ValueError, match="marks 2 images with '<image>', but comes with 1"):
        without_placeholders("<image><image>What changed?", 1)
    with pytest.raises(ValueError, match="nothing but '<image>'"):
        without_placeholders("<image>\n", 1)


def test_names_are_found_in_either_form_of_unicode(tmp_path):
    composed, apart = "Jérôme/Größe.png", unicodedata.normalize("NFD", "Jérôme/Größe.png")
    for root, held in ((tmp_path / "a", composed), (tmp_path / "b", apart)):
        (root / held).parent.mkdir(parents=True)
        (root / held).touch()
        assert as_on_disk(root, composed) == as_on_disk(root, apart) == held
    for name in ("größe.png", "../ö", "/ö", "ö\0", "ö" * 300, "plain.png"):
        assert as_on_disk(tmp_path, name) == name
