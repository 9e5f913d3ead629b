"""Counts, lengths, licences and bars against sets that were counted by hand; the table of licences against the paper's table."""

import csv
import json
import re
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sheets import HOSTILE, hostile, record, write

from vital_jax.construct import stats
from vital_jax.construct.licences import UNKNOWN, dataset_of, load_licences
from vital_jax.pipeline.records import Record

CITATIONS = Path(__file__).parents[2] / "data" / "vital_five_tuples" / "CITATIONS.bib"
# The rows of the paper's Table 6 but MSD.
SUBSETS = re.split(
    r"\s+",
    """Radiography amos22 CAMUS COVID-QU-Ex ACDC MMs CXR_Masks_and_Labels NeoPolyp kits23 ISIC PanNuke PolypGen LGG FH-PS-AOP
LIDC-IDRI BreastUS QaTa-COV19 G1020 siim-acr-pneumothorax UWaterlooSkinCancer COVID-19_CT OCT-CME REFUGE GlaS LiverUS""",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Every table, by name, of a set counted by hand."""
    pairs = [
        record(1, "CT", "yesno", "Task09_Spleen", licence="CC-BY-SA-4.0", teacher="measured-2"),
        record(2, "CT", "location", "msd_task04_hippocampus", split="val", teacher="measured-2"),
        record(3, "MRI-T2", "describe", "amos22/MRI", target_type="organ"),
        record(4, "MRI", "describe", "amos22", steps=2, split="val", target_type="organ"),
        record(5, "MRI-FLAIR", "reasoning", "amos22", split="test"),
        record(6, "sonar", "reasoning", "my lab"),
    ]
    same = pairs[0][1]
    again = Record("again", same.images, same.question, "A longer answer.", same.chain, metadata=same.metadata)
    bare = record(7, "CT", "yesno", "slake", steps=0)
    out = write([*pairs, ("train", again), bare], tmp_path_factory.mktemp("stats") / "OUT")
    return {table.name: table for table in stats.tables(stats.collect(out))}


def rows(table):
    """A table's rows by their first cell."""
    return {row[0]: row[1:] for row in table.rows}


def test_tables_six_and_seven(found):
    table = found["by_source"]
    assert table.header == ("source", "K=1", "K=2", "K=3", "K=4", "none", "Total")
    assert table.rows == (
        ("MSD", 2, 1, 0, 0, 0, 3),  # before larger ones, as in the paper; its tasks are one
        ("amos22", 0, 1, 1, 1, 0, 3),
        ("SLAKE", 0, 0, 0, 0, 1, 1),
        ("my lab", 0, 0, 0, 1, 0, 1),
        ("Total", 2, 2, 1, 2, 1, 8),
    )
    assert found["by_modality"].rows == (
        ("CT", 2, 1, 0, 0, 1, 4),
        ("MRI", 0, 1, 1, 1, 0, 3),  # all sequences together
        ("sonar", 0, 0, 0, 1, 0, 1),
        ("Total", 2, 2, 1, 2, 1, 8),
    )
    assert "Table 6" in table.title and "Table 7" in found["by_modality"].title


def test_the_papers_order():
    """MSD before all, the rest by size, then by name."""
    counted = stats.Stats()
    counted.steps["source"].update({("b", "1"): 5, ("a", "2"): 5, ("MSD", "1"): 1, ("c", "4"): 7})
    assert [row[0] for row in stats.tables(counted)[0].rows] == ["MSD", "c", "a", "b", "Total"]


def test_the_other_counts(found):
    assert [row[0] for row in found["by_split"].rows] == ["train", "val", "test", "Total"]
    assert rows(found["by_split"])["train"] == (2, 0, 1, 1, 1, 5)
    assert rows(found["by_type"])["describe"] == (0, 1, 1, 0, 0, 2)
    assert rows(found["by_target_type"]) == {
        "organ": (0, 1, 1, 0, 0, 2),
        "none": (2, 1, 0, 2, 1, 6),
        "Total": (2, 2, 1, 2, 1, 8),
    }
    assert rows(found["by_teacher"])["measured-2"] == (2, 1, 0, 0, 0, 3)
    # Two records of the training split share image and patient.
    assert rows(found["splits"])["train"] == (5, 62.5, 4, 4)
    assert rows(found["splits"])["test"] == (1, 12.5, 1, 1)


def test_lengths_and_distinct_texts(found):
    lengths, distinct = rows(found["lengths"]), rows(found["distinct"])
    # Every step has five words; chains have 1, 1, 2, 2, 3, 4 and 4 steps.
    assert lengths["step"] == (17, 5, 5, 5, 5, 5)
    assert lengths["chain"] == (7, pytest.approx(85 / 7), 5, 10, 20, 20)
    assert lengths["answer"] == (8, pytest.approx(10 / 8), 1, 1, 3, 3)
    assert distinct["question"] == (8, 7, 87.5) and distinct["answer"] == (8, 2, 25)
    assert distinct["step"] == (17, 16, pytest.approx(100 * 16 / 17)) and distinct["chain"] == (
        7,
        6,
        pytest.approx(600 / 7),
    )


def test_licences_of_records_and_data_sets(found):
    assert found["licences"].rows == (
        ("MSD", 1, "none", "CC-BY-SA-4.0 (file)", "antonelli2022msd"),
        ("MSD", 2, "CC-BY-SA-4.0", "CC-BY-SA-4.0 (file)", "antonelli2022msd"),
        ("amos22", 3, "none", "CC-BY-4.0 (page)", "ji2022amos"),
        ("SLAKE", 1, "none", "CC-BY-4.0 (page)", "liu2021slake"),
        ("my lab", 1, "none", "unknown", "none"),
    )


def test_csv_and_markdown_cells(found):
    read = list(csv.reader(StringIO(stats.to_csv(found["by_source"]))))
    assert tuple(read[0]) == found["by_source"].header and read[1] == ["MSD", "2", "1", "0", "0", "0", "3"]
    table = stats.Table("t", "T", ("a", "b", "c"), (("x|y\n<b>", 12345, 2.25),))
    assert table.cells() == [["x\\|y &lt;b>", "12,345", "2.2"]]


def test_bars_are_as_long_as_their_counts(found):
    drawn = stats.pictures(list(found.values()))
    assert drawn.keys() == {"by_source", "by_modality", "by_split"}
    tree = ElementTree.fromstring(drawn["by_source"])
    parts = [
        (rect[0].text, float(rect.get("x")), float(rect.get("width")))
        for rect in tree.iter("{http://www.w3.org/2000/svg}rect")
        if len(rect)
    ]
    widths = {name: width for name, _, width in parts}
    assert widths["MSD, K=1: 2"] == pytest.approx(2 * widths["MSD, K=2: 1"], abs=0.02)
    assert widths["MSD, K=2: 1"] == pytest.approx(widths["SLAKE, none: 1"], abs=0.02)
    assert set(widths) == {"MSD, K=1: 2", "MSD, K=2: 1", "amos22, K=2: 1", "amos22, K=3: 1", "amos22, K=4: 1",
                           "SLAKE, none: 1", "my lab, K=4: 1"}  # fmt: skip
    start = {name: x for name, x, _ in parts}
    assert start["MSD, K=2: 1"] == pytest.approx(start["MSD, K=1: 2"] + widths["MSD, K=1: 2"], abs=0.02)
    assert max(x + width for _, x, width in parts) <= stats.WIDTH - stats.NUMBERS + 0.02
    # The axis: whole records at the places where the bars end.
    texts = list(tree.iter("{http://www.w3.org/2000/svg}text"))
    ticks = {each.text: float(each.get("x")) for each in texts if float(each.get("y")) == float(texts[-1].get("y"))}
    ends = start["MSD, K=1: 2"] + widths["MSD, K=1: 2"]
    assert texts[-1].text == "records" and ticks["0"] == stats.LABELS and ticks["2"] == pytest.approx(ends, abs=0.1)


def test_hostile_names_stay_text(tmp_path):
    tables = stats.tables(stats.collect(write([hostile()], tmp_path)))
    for svg in stats.pictures(tables).values():
        tree = ElementTree.fromstring(svg)
        assert {each.tag.rpartition("}")[2] for each in tree.iter()} <= {"svg", "rect", "text", "title"}
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", svg)
    assert f"{HOSTILE}, K=1: 1" in [
        each.text for each in ElementTree.fromstring(stats.pictures(tables)["by_source"]).iter()
    ]
    assert all("<" not in cell and "\n" not in cell for table in tables for row in table.cells() for cell in row)


# --- the table of licences --------------------------------------------------------------------------


def test_the_papers_sources_are_in_the_table():
    table = {row.name: row for row in load_licences()}
    assert len(SUBSETS) == 25 and set(SUBSETS) <= table.keys()
    for name in SUBSETS:
        assert table[name].corpus == "BiomedParse"
        assert dataset_of(name) is dataset_of(f"BiomedParseData/{name}") is table[name]
    for task in (
        "Task01_BrainTumour",
        "Task10_Colon",
        "msd_task08_hepaticvessel_2d",
        "MSD/Task02_Heart",
        "MSD__Task03_Liver",
    ):
        assert dataset_of(task).name == "MSD"
    assert dataset_of("my own hospital") is None and dataset_of("lggx") is None


def test_the_fixtures_folders_are_in_the_table(real):
    folders = [path.name for path in real(".").iterdir() if path.is_dir() and path.name != "model_configs"]
    assert len(folders) > 20 and [name for name in folders if dataset_of(name) is None] == []
    names = [path.stem for path in real("biomedparse_mask_stats").glob("*.csv")]
    assert len(names) == 30 and [name for name in names if dataset_of(name) is None] == []


def test_what_is_cited_can_be_found():
    keys = re.findall(r"^@\w+\{([\w-]+),$", CITATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(set(keys)) == len(keys)
    cited = {key for row in load_licences() for key in row.cite}
    assert cited <= set(keys) and set(keys) - cited == {"li2026vital"}


def test_a_licence_has_a_basis(tmp_path):
    assert all(row.url.startswith("http") or row.url == "" for row in load_licences())
    assert sum(row.licence == UNKNOWN for row in load_licences()) > 5
    good = {"name": "a", "corpus": "other", "match": ["a*"], "licence": "MIT", "basis": "file"}
    for rows_, message in (
        ([good, good], "'a' comes twice"),
        ([good | {"basis": "rumour"}], "row 'a' has licence 'MIT' on the basis of 'rumour'"),
        ([good | {"basis": UNKNOWN}], "on the basis of 'unknown'"),
        ([good | {"licence": UNKNOWN}], "has licence 'unknown'"),
        ([good | {"colour": "red"}], "not a table of licences"),
        ("x", "not a table of licences"),
    ):
        file = tmp_path / "table.json"
        file.write_text(json.dumps({"format_version": 1, "datasets": rows_}))
        load_licences.cache_clear()
        with pytest.raises(ValueError, match=message):
            load_licences(file)
    file.write_text(json.dumps({"format_version": 2, "datasets": []}))
    with pytest.raises(ValueError, match="table format 2"):
        load_licences(file)


def test_one_source_that_is_nearly_all_is_told(tmp_path):
    pairs = [record(i, source="hippocampus" if i else "kvasir_polyp") for i in range(33)]
    (line,) = stats.collect(write(pairs, tmp_path / "lop")).warnings()
    assert line.startswith("hippocampus is 97.0 % of the records")
    assert stats.collect(write(pairs[:5], tmp_path / "even")).warnings() == []  # four of five
    assert stats.collect(write(pairs[1:], tmp_path / "one")).warnings() == []  # one source is meant to be all


def test_test_questions_in_training_are_told_of_any_set(tmp_path):
    # As sets were built before official splits were kept: nothing says what overlaps.
    pairs = [record(i, source="vqa_rad", source_split="test", split="test" if i else "train") for i in range(4)]
    same = pairs[1][1]
    metadata = same.metadata | {"source_split": "train"}
    pairs.append(("train", Record("again", same.images, "What else?", "That.", metadata=metadata)))
    found = stats.collect(write(pairs, tmp_path / "old"))
    (line,) = found.warnings()
    assert line == (
        "VQA-RAD: 4 official test questions about 4 images (3 in test, 1 in train); 1 of these questions are in training and "
        "2 of these images are in training: a score on it is no score on unseen images"
    )
    table = {each.name: each for each in stats.tables(found)}["official_test_sets"]
    assert table.rows == (("VQA-RAD", 1, 0, 3, 4, 2, 0),)
