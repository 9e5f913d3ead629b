"""Question files and archives as strangers hand them over: bad names, broken lines, wrong forms, and what a row's values may be."""

import pickle
import re
import sys
import zipfile

import pytest
from benchmark_rows import pack, parquet, png, write

from vital_jax.evaluate.benchmarks import load
from vital_jax.evaluate.benchmarks.files import Archive, Files, Zipped, safe_name
from vital_jax.evaluate.benchmarks.reading import by_letter, by_text, closed_of, letters_of
from vital_jax.evaluate.benchmarks.rows import literal_list, options_of, plain, unlettered

ROW = {"id": "1", "image": "1.png", "question": "Which?", "answer": "x"}


@pytest.mark.parametrize(
    ("name", "safe"),
    [("a/b.png", "a/b.png"), ("./a//b.png ", "a/b.png"), ("a\\b.png", "a/b.png"), ("a..b/c", "a..b/c")],
)
def test_names_inside(name, safe):
    assert safe_name(name) == safe


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/passwd", "\\a", "C:\\a", "c:a", "a\\..\\b", "", " ", ".", "a\0b", None, 5]
)
def test_names_outside(name):
    with pytest.raises(ValueError, match=r"leads out of the folder|is no file name"):
        safe_name(name)


def test_an_image_name_that_leads_out_costs_its_row(tmp_path):
    (tmp_path / "secret.png").write_bytes(png(9))
    write(tmp_path / "d", {"test.jsonl": [ROW | {"image": "../secret.png"}, ROW | {"id": "2", "image": "ok.png"}]})
    loaded = load("file", tmp_path / "d")
    assert [item.id for item in loaded.items] == ["2"] and dict(loaded.dropped) == {"path-escape": 1}
    assert loaded.details == ("test.jsonl:1: '../secret.png' leads out of the folder [path-escape]",)


@pytest.mark.parametrize("member", ["../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png"])
def test_an_archive_with_a_bad_name_is_refused_whole(tmp_path, member):
    path = pack(tmp_path / "a.zip", {"test.json": [ROW], "1.png": png(1), member: png(2)})
    with pytest.raises(ValueError, match=r"a.zip: member .*leads out of the folder; do not use this archive"):
        load("file", path)


def test_an_archive_is_read_in_place(tmp_path):
    rows = [ROW, ROW | {"id": "2", "image": "gone.png"}]
    junk = {"__MACOSX/x/._test.json": b"\0", "x/._test.json": b"\0"}
    files = {"x/test.json": rows, "x/images/1.png": png(1)} | junk
    path = pack(tmp_path / "a.zip", files)
    one, two = load("file", path).items
    assert one.pictures() == (png(1),) and str(one.images[0]) == f"{path}:x/images/1.png"
    with pytest.raises(FileNotFoundError, match=r"item '2': .*a.zip:x/gone.png: not found"):
        two.pictures()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip"]
    # An archive that is replaced is read anew.
    pack(path, files | {"x/images/1.png": png(5)})
    assert one.pictures() == (png(5),)


def test_damaged_archives_are_named(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"a.zip: not a zip archive that can be read"):
        load("file", path)
    pack(path, {"test.json": [ROW], "1.png": png(1)})
    data = path.read_bytes()
    start = data.index(png(1))
    path.write_bytes(data[: start + 20] + b"\xff" * 5 + data[start + 25 :])
    with pytest.raises(ValueError, match=r"item '1': .*a.zip:1.png: .*CRC.*; download the archive again"):
        load("file", path).items[0].pictures()
    assert Zipped(path, "1.png") == load("file", path).items[0].images[0]


def test_an_archive_that_claims_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("vital_jax.evaluate.benchmarks.files.MAX_BYTES", 100)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big", bytes(101))
    with pytest.raises(ValueError, match=r"a.zip:big: claims 101 bytes, more than the 100"):
        Zipped(path, "big").read_bytes()


def test_the_place_of_an_image(tmp_path):
    write(tmp_path, {"q/test.json": [ROW], "q/1.png": png(1), "images/1.png": png(2), "deep/images/1.png": png(3)})
    files = Files(tmp_path)
    (entry,) = files.find(["test.json"])
    assert files.picture(entry, "1.png", ("images", "")).read_bytes() == png(1)  # beside the file before above it
    assert files.picture(entry, "1.png", ("images",)).read_bytes() == png(2)
    assert str(files.picture(entry, "2.png", ("images",))) == str(tmp_path / "q" / "images" / "2.png")
    assert Files(tmp_path).find(["./test.json"]) == [] and files.find(["nothing", "*.json"]) == [entry]
    pack(tmp_path / "z.zip", {"p/images/9.png": png(9), "r/9.png": png(8)})
    assert Archive(tmp_path / "z.zip").picture("images/9.png").member == "p/images/9.png"
    assert Archive(tmp_path / "z.zip").picture("ges/9.png") is None
    assert Files(tmp_path).picture(entry, "9.png", ("images",)).read_bytes() == png(9)


def test_broken_lines_cost_themselves_only(tmp_path):
    lines = ['{"id": "1", "question": "q", "answer": "a"}', '{"id": "2", "question"', "[1]", "", "null", "\udcff"]
    path = tmp_path / "test.jsonl"
    path.write_bytes("\n".join([*lines, lines[0].replace('"1"', '"3"')]).encode("utf-8", "surrogateescape"))
    loaded = load("file", path)
    assert [item.id for item in loaded.items] == ["1", "3"] and dict(loaded.dropped) == {"bad-line": 4}
    assert [detail.split(": ")[0] for detail in loaded.details] == [f"test.jsonl:{n}" for n in (2, 3, 5, 6)]
    assert "not a JSON object (" in loaded.details[0] and "not a JSON object but list" in loaded.details[1]


def test_an_id_twice_keeps_the_first(tmp_path):
    write(tmp_path, {"test.jsonl": [ROW, ROW | {"answer": "y"}, ROW | {"id": 1}]})
    loaded = load("file", tmp_path)
    assert [item.answer for item in loaded.items] == ["x"] and dict(loaded.dropped) == {"duplicate-id": 2}
    assert loaded.details[0] == "test.jsonl:2: id '1' is that of test.jsonl:1 too [duplicate-id]"
    assert str(loaded) == "1 items of file test, dropped: 2 duplicate-id"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"question": None}, "no question; the row has"),
        ({"question": ["a"]}, "question must be text or a number, not list"),
        ({"answer": {"a": 1}}, "answer must be text or a number, not dict"),
        ({"answer": True}, "answer must be text or a number, not bool"),
        ({"id": {"a": 1}}, "id must be text"),
        ({"options": ["x", "y"], "answer": "z"}, "answer 'z' is none of the letters"),
        ({"options": ["x", "y"], "answer": "zz"}, "answer 'zz' is none of the options"),
        ({"options": ["x", "y"], "gold": "C"}, r"is none of the letters \['A', 'B'\]"),
        ({"options": ["x", "", "y"], "answer": "x"}, "option B must be text"),
        ({"options": 5, "answer": "x"}, "options must be a list"),
        ({"options": "x or y", "answer": "x"}, "options must be a list"),
        ({"options": {"1": "x"}, "answer": "x"}, "options have the letters"),
        ({"options": [["x"]], "answer": "x"}, "options must be text"),
        ({"options": ["o"] * 27, "answer": "o"}, "has no letter"),
        ({"image": 5.5, "closed": "perhaps"}, "closed must be true or false"),
        ({"image": {"bytes": None}}, "holds neither bytes nor a path"),
        ({"image": True}, "image must be text"),
    ],
)
def test_wrong_values_are_named(tmp_path, change, text):
    write(tmp_path, {"test.jsonl": [ROW | {"id": "0"}, ROW | change]})
    loaded = load("file", tmp_path)
    assert dict(loaded.dropped) == {"bad-line": 1}
    assert re.search(text, loaded.details[0]), loaded.details[0]


def test_files_that_are_not_what_they_say(tmp_path, monkeypatch):
    write(
        tmp_path,
        {"a.json": "{", "b.json": '{"a": 1}', "c.txt": "x", "d.csv": b"id,question,answer\n1,\xff,x\n", "e.json": "[]"},
    )
    for name, text in (
        ("a.json", "a.json: not JSON"),
        ("b.json", "holds no list of questions"),
        ("c.txt", "cannot read .txt; give .json"),
        ("d.csv", "not UTF-8 text"),
        ("e.json", "0 items of file test, nothing dropped"),
    ):
        with pytest.raises(ValueError, match=text):
            load("file", tmp_path / name)
    (tmp_path / "f.pkl").write_bytes(pickle.dumps([ROW]))
    with pytest.raises(ValueError, match="pickles are not read"):
        load("file", tmp_path / "f.pkl")
    for name in ("g.parquet", "g.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 no table")
        with pytest.raises(ValueError, match=f"{name}: not an? .* file that can be read"):
            load("file", tmp_path / name)
    path = parquet(tmp_path / "h.parquet", [{"id": "1", "question": "q", "answer": "a"}])
    assert len(load("file", path).items) == 1
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"h.parquet: reading .parquet needs pyarrow: pip install pyarrow"):
        load("file", path)


def test_csv_fields(tmp_path):
    write(tmp_path, {"test.csv": 'id,question,answer\n1,"two\nlines",a\n2,q\n3,q,a,b\n4,q,a\n'})
    loaded = load("file", tmp_path)
    assert [(item.id, item.question) for item in loaded.items] == [("1", "two\nlines"), ("4", "q")]
    assert loaded.details == (
        "test.csv:4: fewer fields than the header has names [bad-line]",
        "test.csv:5: more fields than the header has names [bad-line]",
    )


def test_images_that_cannot_be_read_are_counted(tmp_path):
    rows = [
        ROW | {"id": str(n), "image": name}
        for n, name in enumerate(("1.png", "text.png", "gone.png", "folder", ["1.png", "gone.png"]))
    ]
    write(tmp_path, {"test.jsonl": rows, "1.png": png(1), "text.png": "no image", "folder/x": b""})
    assert len(load("file", tmp_path).items) == 5
    loaded = load("file", tmp_path, need_images=True)
    assert [item.id for item in loaded.items] == ["0"]
    assert dict(loaded.dropped) == {"unreadable-image": 2, "missing-file": 2}
    assert loaded.details[0].startswith("test.jsonl:2: ") and "text.png" in loaded.details[0]


# --- values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "letters"),
    [("B", "B"), (" b ", "B"), ("(B)", "B"), ("B.", "B"), ("C,A", "AC"), ("A C", "AC"), (["C", "A"], "AC"), (["B"], "B"), ("['B']", "B")],
)  # fmt: skip
def test_letters(value, letters):
    assert letters_of(value, 3) == letters


@pytest.mark.parametrize("value", ["D", "", None, "yes", [], ["A", "x"], "AB", 1])
def test_no_letters(value):
    with pytest.raises(ValueError, match="is none of the letters"):
        letters_of(value, 3)


def test_options_from_every_form():
    ten = [f"o{number}" for number in range(10)]
    lettered = dict(zip("ABCDEFGHIJ", ten, strict=True))
    for value in (ten, str(ten), lettered, [{"letter": key, "content": text} for key, text in lettered.items()]):
        assert options_of(value) == tuple(ten)
    assert options_of({"B": "y", "A": "x", "C": None}) == ("x", "y") == options_of(["x ", "y", "", None])
    assert options_of(None) == options_of("") == options_of("[]") == ()
    assert options_of([1, 2.5]) == ("1", "2.5")
    assert unlettered(("A:x", " B : y".strip(), "(C): z", "A: w")) == ("x", "y", "z", "A: w")
    assert unlettered(("A:", "Bright")) == ("A:", "Bright")


@pytest.mark.parametrize("text", ["['a', f()]", "[a]", "[1", "[" * 9999 + "]" * 9999, "['" + "a" * 200_000 + "']"])
def test_lists_are_literals(text):
    if text == "[1":
        assert literal_list(text, "options") == "[1"
        return
    with pytest.raises(ValueError, match=r"options .* is no list that can be read"):
        literal_list(text, "options")


def test_answers_by_letter_and_text():
    options = ("C", "a  tumour.", "A tumour")
    assert by_letter(options, "A")["answer"] == "C"
    assert by_text(options, "C")["gold"] == "A"
    assert by_text(options, "A tumour")["gold"] == "C"  # the same text before one that is alike
    assert by_text(options, "a TUMOUR")["gold"] == "B"
    assert [closed_of(value) for value in ("CLOSED ", "open", None, "")] == [True, False, None, None]
    assert [plain(value, "x") for value in (5, 1.5, " a ", None, float("nan"))] == ["5", "1.5", "a", "", ""]
