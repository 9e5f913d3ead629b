"""The table of targets: every name of the real corpora resolves, every row is sound, absence is offered only where it is certain."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest

from vital_jax.construct.build import build_records
from vital_jax.construct.checker import by_sample, check_records
from vital_jax.construct.questions import load_templates
from vital_jax.construct.targets import DATA, TYPES, load_targets
from vital_jax.construct.teacher import load_sentences
from vital_jax.demo.looks import LEXICONS
from vital_jax.demo.phantoms import phantoms

FIELDS = {
    "type",
    "modalities",
    "regions",
    "offered",
    "article",
    "plural",
    "generic",
    "sides",
    "noun",
    "wording",
    "aliases",
    "neutral",
}

# (site, label in the task's own dataset.json, what the table calls it)
MSD = [
    ("brain", "edema", "edema"),
    ("brain", "non-enhancing tumor", "non-enhancing tumor"),
    ("brain", "enhancing tumour", "enhancing tumor"),
    ("heart", "left atrium", "left heart atrium"),
    ("liver", "liver", "liver"),
    ("liver", "cancer", "liver tumor"),
    ("brain", "Anterior", "anterior hippocampus"),
    ("brain", "Posterior", "posterior hippocampus"),
    ("prostate", "PZ", "prostate peripheral zone"),
    ("prostate", "TZ", "prostate transitional zone"),
    ("lung", "cancer", "lung tumor"),
    ("pancreas", "pancreas", "pancreas"),
    ("pancreas", "cancer", "pancreatic tumor"),
    ("liver", "Vessel", "hepatic vessels"),
    ("liver", "Tumour", "liver tumor"),
    ("abdomen", "spleen", "spleen"),
    ("colon", "colon cancer primaries", "colon tumor"),
]
# Of "total", "total_mr" and the subtasks, as the files are named; with each side, and with each number.
_PAIRED = """
kidney adrenal_gland lung_upper_lobe lung_lower_lobe iliac_artery iliac_vena humerus scapula clavicula femur hip gluteus_maximus
gluteus_medius gluteus_minimus autochthon iliopsoas subclavian_artery common_carotid_artery brachiocephalic_vein kidney_cyst heart_atrium
heart_ventricle lung
"""
_SINGLE = """
spleen gallbladder liver stomach pancreas lung_middle_lobe_right esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder
prostate sacrum vertebrae_S1 heart aorta pulmonary_vein brachiocephalic_trunk atrial_appendage_left superior_vena_cava inferior_vena_cava
portal_vein_and_splenic_vein spinal_cord brain skull sternum costal_cartilages vertebrae intervertebral_discs heart_myocardium
pulmonary_artery
"""
TOTALSEGMENTATOR = [
    *_SINGLE.split(),
    *(f"{name}_{side}" for name in _PAIRED.split() for side in ("left", "right")),
    *(f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13)),
    *(f"vertebrae_{letter}{n}" for letter, last in (("C", 7), ("T", 12), ("L", 5)) for n in range(1, last + 1)),
]
# The long names, which the file names shorten.
_BIOMEDPARSE = """
brain tumor edema, whole brain tumor, brain tumor core, breast cancer cells, benign breast cancer cells, malignant breast cancer cells,
benign breast tumor, breast tumor, malignant breast tumor, retinal vessel, pulmonary embolism, colon glandular structure, lung nodule,
liver tumor, lung tumor, pancreas tumor, hepatic vessel, colon tumor, neoplastic colon polyp, colon polyp, non-neoplastic colon polyp,
cystoid macular edema, viral pneumonia, left lower lung lobe, right middle lung lobe, middle lung lobe, upper lung lobe, abdomen tumor,
kidney tumor, kidney cyst, pneumothorax, pleural effusion, cerebellum, brain ventricles
"""
BIOMEDPARSE = re.split(r",\s+", _BIOMEDPARSE.strip())


@pytest.fixture(scope="module")
def table():
    return load_targets()


def test_every_label_of_the_ten_decathlon_tasks_resolves(table):
    for site, label, name in MSD:
        assert table.canonical(label, site) == name
        assert name in table.rows


@pytest.mark.parametrize("names", [TOTALSEGMENTATOR, BIOMEDPARSE], ids=["totalsegmentator", "biomedparse"])
def test_every_published_name_resolves(table, names):
    for name in names:
        found = table.canonical(name)
        assert table.canonical(found) == found and table.row(name) is table.row(found), name
        assert not re.search(r"_|#| (left|right)$", found), found
    assert len({table.canonical(name) for name in names}) == len(names)


def test_every_mask_table_and_manifest_resolves(table, real):
    tables = json.loads((real("biomedparse_mask_stats") / "summary.json").read_text())
    asked = set()
    for entry in tables.values():
        for site in (place.split(" / ")[1].strip() for place in entry["modality_site"]):
            # Two targets of one image must not become one.
            assert len({table.canonical(name, site) for name in entry["targets"]}) == len(entry["targets"])
            asked.update((name, site) for name in entry["targets"])
    folders = [path.parent for path in sorted(real("biomedparse_mask_stats").parent.glob("*/manifest.jsonl"))]
    for folder in folders:
        for line in (folder / "manifest.jsonl").read_text().splitlines():
            row = json.loads(line)
            asked.update((mask["target"], row["site"]) for mask in row.get("masks", ()))
            asked.update((name, row["site"]) for key, name in row.get("labels", {}).items() if key != "0")
            labels = row["label"] if isinstance(row.get("label"), dict) else {}
            asked.update((name, row["site"]) for name in labels if name not in ("multilabel",))
    assert len(asked) > 100
    for name, site in asked:
        assert "#" not in table.canonical(name, site)
    assert (
        table.canonical("vessel", "retinal") == "retinal vessels"
        and table.canonical("public symphysis") == "pubic symphysis"
    )


def test_spellings(table):
    for name, found in [
        ("Tumour", "tumor"),
        ("  Left   Kidney ", "left kidney"),
        ("connective+tissue+cells", "connective tissue cells"),
        ("Foetal head", "fetal head"),
        ("retinal haemorrhage", None),
        ("haemorrhage", "hemorrhage"),
        ("vertebrae T12", "T12 vertebra"),
        ("vertebrae T#", "T# vertebra"),
        ("covid-19 infection", "COVID-19 infection"),
        ("malignant tumours", "malignant tumor"),
    ]:
        if found:
            assert table.canonical(name) == found
        else:
            with pytest.raises(ValueError, match=rf"'{name}' is not in .*targets\.json; add a row"):
                table.canonical(name)
    with pytest.raises(ValueError, match="not in"):
        table.canonical("anterior", "liver")
    assert table.canonical("vessel", "somewhere") == "vessel"
    assert {table.family(m) for m in ("MRI", "MRI-T1", "MRI-T1-Gd", "MRI-T2", "MRI-FLAIR", "MRI-ADC")} == {"MRI"}


def test_text_says_the_name_it_is_given(table):
    # A name that is not the row's own says nothing about its number: "the hepatic vessel run" would be wrong.
    assert (table.phrase("hepatic vessel"), table.plural("hepatic vessel")) == ("the hepatic vessel", False)
    assert (table.phrase("hepatic vessels"), table.plural("hepatic vessels")) == ("the hepatic vessels", True)
    assert (
        table.phrase("left kidney cyst") == "a left kidney cyst"
        and table.phrase("enhancing tumor") == "enhancing tumor"
    )
    assert table.noun("nuclei") == "cell structure" != table.noun("neoplastic cells") == "cell population"


def test_every_row_is_sound(table):
    written = json.loads((DATA / "targets.json").read_text())
    regions = {region for row in written["targets"].values() for region in row["regions"]}
    assert {row["type"] for row in written["targets"].values()} == set(TYPES) == set(written["types"])
    lists = [
        lists for kind in load_templates().values() for form in ("open", "closed") for lists in kind[form].values()
    ]
    known = {key.split("@")[0] for keyed in (*lists, *load_sentences().values()) for key in keyed}
    for name, row in written["targets"].items():
        assert row.keys() <= FIELDS, name
        assert row["modalities"] and set(row["modalities"]) <= written["modalities"].keys()
        assert row["regions"] and set(row.get("offered", ())) <= set(row["modalities"])
        assert row.get("wording", "any") in known, f"{name}: no list of wordings is for {row.get('wording')}"
        assert not ("#" in name or row.get("generic")) or "offered" not in row, name
        assert row["type"] != "cell" or row["modalities"] == ["pathology"]
        if row.get("plural"):
            assert row["type"] != "lesion" or row["article"] == "", f"{name}: a plural has no article a"
        if "neutral" in row:  # the wider name is of the same kind, and is no diagnosis itself
            wider = written["targets"][row["neutral"]]
            assert wider["type"] == row["type"] and set(row["modalities"]) <= set(wider["modalities"])
            assert "neutral" not in wider
        told = {"benign", "malignant", "neoplastic", "non-neoplastic", "lower-grade", "high-grade"} & set(name.split())
        assert not told or "neutral" in row or name == "neoplastic cells", f"{name} gives a diagnosis away"
    for places in (*written["sites"].values(), *written["shows"].values()):
        assert set(places) <= regions and len(set(places)) == len(places)
    assert all(set(row["modalities"]) & {"CT", "MRI", "X-Ray", "ultrasound", "endoscope"} or set(
        written["shows"][row["modalities"][0]]) <= set(row["regions"]) for row in written["targets"].values())  # fmt: skip


def test_absence_is_offered_only_where_it_is_certain(table):
    assert {"prostate", "brain"} <= set(table.never_at("CT", "liver"))
    for modality, site, may_show in [
        (
            "CT",
            "abdomen",
            {"heart", "lung", "uterus", "small bowel", "spinal cord", "sacrum", "right middle lung lobe"},
        ),
        ("CT", "chest", {"liver", "kidney", "esophagus", "thyroid gland", "aorta"}),
        ("MRI", "breast", {"heart", "liver", "lung", "myocardium", "breast tumor"}),
        ("ultrasound", "fetal", {"left heart ventricle", "kidney", "brain"}),
        ("pathology", "colon", {"nuclei", "epithelial cells", "glandular structure"}),
        ("pathology", "", {"nuclei"}),
        ("fundus", "anything", {"optic disc", "retinal vessels"}),
    ]:
        assert not may_show & set(table.never_at(modality, site)), (modality, site)
    assert {"liver", "fetal head"} <= set(table.never_at("ultrasound", "breast"))
    assert table.never_at("CT", "nowhere known") == [] == table.never_at("endoscope", "colon")
    everywhere = {
        name for modality in table.modalities for site in table.sites for name in table.never_at(modality, site)
    }
    assert not everywhere & {"tumor", "lesion", "vessel", "cyst", "edema", "nodule", "hemorrhage", "benign tumor"}


def test_drawn_images_keep_their_names_and_their_wording(table):
    for modality, names in LEXICONS.items():
        assert table.never_at(modality, "phantom") == []
        for name in names:
            assert table.canonical(name) == name == table.canonical(name, "phantom") and "wording" not in table.row(
                name
            )


RARE = {
    "pathology": ["nuclei", "neoplastic cells", "glandular structure", "inflammatory cells", "epithelial cells"],
    "OCT": ["choroid", "retinal pigment epithelium", "intraretinal fluid", "retinal drusen", "macular hole"],
    "fundus": ["retinal vessels", "optic cup", "hard exudates", "microaneurysms", "fovea"],
    "MRI": ["T9 vertebra", "left rib 9", "left iliac artery", "enhancing tumor", "portal and splenic vein"],
}


@pytest.mark.parametrize("modality", RARE)
def test_sentences_about_kinds_that_are_never_drawn_are_read_back(table, modality):
    # Drawn images under other names: what is said of them has to be as true and as readable.
    def renamed():
        for one in phantoms(14, seed=7, size=96):
            names = dict(zip(LEXICONS[one.modality], RARE[modality], strict=True))
            yield replace(
                one,
                id=f"{modality}/{one.id}",
                target=names[one.target],
                target_type=table.row(names[one.target])["type"],
                modality=modality,
                site="",
                present=tuple(names[name] for name in one.present),
                absent=tuple(names[name] for name in one.absent),
                neighbours=tuple((names[name], mask) for name, mask in one.neighbours),
                orientation="radiological" if modality == "MRI" else "image",
            )

    read = 0
    for one, records in by_sample(renamed(), partial(build_records, questions_per_sample=6, seed=0, form="both")):
        problems, seen = check_records(records, one, table)
        assert problems == []
        for _, sentence, slot, known in seen:
            assert known and "{" not in sentence, sentence
            assert slot.startswith("answer") or len(sentence.split()) <= 30, sentence
            read += 1
    assert read > 400


GOOD = {"type": "organ", "modalities": ["CT"], "regions": ["abdomen"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"liver": GOOD | {"aliases": ["spleen"]}, "spleen": GOOD}, "'spleen' names both 'liver' and 'spleen'"),
        ({"liver": GOOD | {"aliases": ["x@CT"]}, "spleen": GOOD | {"aliases": ["X@ct"]}}, "names both"),
        ({"kidney": GOOD | {"sides": True}, "kidney left": GOOD}, "names both 'left kidney' and 'kidney left'"),
        ({"liver": GOOD | {"regions": ["abdomn"]}}, r"lies in \['abdomn'\], which no site shows"),
        ({"liver": GOOD | {"offered": ["MRI"]}}, "offered in a modality in which it does not occur"),
        ({"liver": []}, "not a table of targets"),
    ],
)
def test_tables_with_two_meanings_or_typing_errors_are_refused(tmp_path, rows, message):
    path = tmp_path / "table.json"
    head = {"format_version": 1, "modalities": {"CT": "CT", "MRI": "MRI"}, "types": {"organ": "organ"}}
    path.write_text(json.dumps(head | {"sites": {"abdomen": ["abdomen"]}, "targets": rows}))
    with pytest.raises(ValueError, match=message):
        load_targets(path)


def test_pairs_need_one_row(tmp_path):
    path = tmp_path / "table.json"
    row = GOOD | {"sides": True, "aliases": ["nephros"], "offered": ["CT"]}
    sites = {"abdomen": ["abdomen"], "head": ["head"], "CT@leg": ["leg"]}
    head = {"format_version": 1, "modalities": {"CT": "CT"}, "types": {"organ": "organ"}, "sites": sites}
    path.write_text(json.dumps(head | {"targets": {"kidney": row}}))
    table = load_targets(path)
    assert list(table.rows) == ["kidney", "left kidney", "right kidney"]
    assert [table.canonical(name) for name in ("nephros", "Nephros_right")] == ["kidney", "right kidney"]
    assert (
        table.never_at("CT", "head") == list(table.rows) == table.never_at("CT", "leg")
        and table.never_at("CT", "abdomen") == []
    )


def test_what_is_a_part_or_a_kind_of_something_marked_is_not_excluded(table):
    related = [
        ("kidney", "left kidney"), ("tumor", "liver tumor"), ("polyp", "neoplastic polyp"), ("tumor core", "enhancing tumor"),
        ("brain tumor", "lower-grade glioma"), ("lesion", "kidney cyst"), ("vessel", "hepatic vessels"),
        ("hippocampus", "anterior hippocampus"), ("benign tumor", "malignant tumor"),
    ]  # fmt: skip
    apart = [
        ("left kidney", "right kidney"),
        ("liver", "spleen"),
        ("optic disc", "optic cup"),
        ("liver tumor", "liver cyst"),
    ]
    for one, other in related:
        assert table.related(one, other) and table.related(other, one), (one, other)
    for one, other in apart[:3]:
        assert not table.related(one, other) and not table.related(other, one), (one, other)


@pytest.mark.parametrize(
    ("modality", "site", "name"),
    [("ultrasound", "pelvis", "fetal head"), ("ultrasound", "abdomen", "fetal head"), ("CT", "pelvis", "lung"),
     ("CT", "bladder", "heart"), ("X-Ray", "pelvis", "knee joint"), ("MRI", "uterus", "myocardium")],
)  # fmt: skip
def test_what_an_image_of_a_site_may_show_is_never_called_absent(table, modality, site, name):
    assert name not in table.never_at(modality, site)
