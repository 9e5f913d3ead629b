"""BiomedParse as distributed: every real name of its tables, the demo against its manifest, its own annotations, broken sets."""

import csv
import json
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
from drawn import area_without_specks, read_all
from PIL import Image

from vital_jax.construct.biomedparse import BiomedParse, Name, parse_name
from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.source import Rejected, Unit
from vital_jax.construct.targets import load_targets


def save(path, pixels):
    """RGBA with full alpha, as BiomedParse writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.repeat(np.asarray(pixels, np.uint8)[..., None], 4, -1)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(path)


SQUARE = np.zeros((40, 50))
SQUARE[5:25, 10:30] = 255


@pytest.fixture
def root(tmp_path):
    """A data set with both halves, one volume in both, and every kind of name."""
    root = tmp_path / "Set"
    names = {
        "train/hippocampus_001_17_MRI_brain": ["anterior+hippocampus", "posterior+hippocampus"],
        "train/hippocampus_001_18_MRI_brain": ["anterior+hippocampus"],
        "train/benign (10)_ultrasound_breast": ["benign+tumor"],
        "train/Part_2_72_pathology_adrenal_gland": ["neoplastic+cells"],
        "train/C3_EndoCV2021_00145_endoscope_": ["polyp"],
        "train/1_CT_lung": ["lung+nodule"],
        "train/1_CT_lung_upper": ["lung+nodule"],
        "test/prostate_02_9_MRI-T2_prostate": ["prostate+peripheral+zone"],
        "test/hippocampus_001_19_MRI_brain": ["anterior+hippocampus"],
    }
    for number, (name, targets) in enumerate(names.items()):
        save(root / f"{name}.png", np.full((40, 50), 20 * number + 10))
        part, stem = name.split("/")
        for target in targets:
            save(root / f"{part}_mask/{stem}_{target}.png", SQUARE)
    return root


# --- names --------------------------------------------------------------------------------------------------------


def tables(real):
    root = real("biomedparse_mask_stats")
    for path in sorted(root.glob("*.csv")):
        with path.open(newline="") as lines:
            yield path.stem, [row["fname"] for row in csv.DictReader(lines)]


def test_every_real_name_parses_and_comes_back(real):
    targets, count = load_targets(), 0
    summary = json.loads((real("biomedparse_mask_stats") / "summary.json").read_text())
    for data_set, files in tables(real):
        sites = {pair.replace(" / ", "/") for pair in summary[data_set]["modality_site"]}
        for file in files:
            name = parse_name(file)
            assert str(name) == file
            assert name.target.replace("+", " ") in summary[data_set]["targets"]
            # The tables' own split at each _ goes wrong for this one site.
            told = "adrenal/gland" if name.site == "adrenal_gland" else f"{name.modality}/{name.site}"
            assert told in sites
            assert targets.family(name.modality) == name.modality.partition("-")[0] or name.modality == "X-Ray"
            count += 1
    assert count > 8000


def test_every_real_target_is_in_the_table_of_targets(tmp_path, real):
    """Through the reader, so with repaired spellings."""
    names = {(parse_name(file).modality, parse_name(file).target) for _, files in tables(real) for file in files}
    for number, (modality, target) in enumerate(sorted(names)):
        save(tmp_path / f"x/{number}_{modality}_site.png", np.eye(20) * 255)
        save(tmp_path / f"x_mask/{number}_{modality}_site_{target}.png", np.ones((20, 20)))
    samples, rejected = read_all(BiomedParse(tmp_path))
    assert rejected == [] and len(samples) == len(names)
    assert "public symphysis" not in {sample.target for sample in samples}


GROUPS = {
    "hippocampus_001_17_MRI_brain_anterior+hippocampus.png": "hippocampus_001",
    "prostate_39_3_MRI-ADC_prostate_prostate+peripheral+zone.png": "prostate_39",
    "patient090_frame11_0_MRI_heart_myocardium.png": "patient090",
    "H4I2T8_sa_24_4_MRI_heart_left+heart+ventricle.png": "H4I2T8_sa",
    "TCGA_DU_A5TS_19970726_6_MRI-FLAIR_brain_tumor.png": "TCGA_DU_A5TS",
    "LIDC-IDRI-0332_332_71_CT_lung_lung+nodule.png": "LIDC-IDRI-0332",
    "radiopaedia_14_85914_0_71_CT_lung_COVID-19+infection.png": "radiopaedia_14",
    "0773652_70_CT_pelvis_uterus.png": "0773652",
    "livechallenge_test_data-Case07_8_MRI_prostate_prostate.png": "livechallenge_test_data-Case07",
    "sub-S10524_ses-E25051_run-1_bp-chest_vp-pa_dx_X-Ray_chest_COVID-19+infection.png": "sub-S10524",
    "CHNCXR_0224_0_X-Ray_chest_left+lung.png": "CHNCXR_0224",
    "dermquest_D10_1_dermoscopy_skin_lesion.png": "dermquest_D10",
    "177DME_as_F_OCT_retinal_edema.png": "177DME",
    "102OLCV1_100H0006_endoscope__polyp.png": "102OLCV1",
    "10_endocv2021_positive_950_endoscope__polyp.png": "10_endocv2021_positive",
    "C3_EndoCV2021_00329_endoscope__polyp.png": "C3_EndoCV2021_003",
    "EndoCV2021_C6_0100067_endoscope__polyp.png": "EndoCV2021_C6_01000",
    "02779_ultrasound_transperineal_fetal+head.png": "027",
    # One number only: it is the image's, not a slice's.
    "benign (45)_ultrasound_breast_tumor.png": "benign (45)",
    "covid_629_X-Ray_chest_lung.png": "covid_629",
    "ISIC_0009915_dermoscopy_skin_lesion.png": "ISIC_0009915",
    "testB_6_pathology_colon_glandular+structure.png": "testB_6",
    "Part_2_72_pathology_adrenal_gland_neoplastic+cells.png": "Part_2_72",
    "835cf877e004e8bfb905b78a91391adc_endoscope_colon_polyp.png": "835cf877e004e8bfb905b78a91391adc",
}


@pytest.mark.parametrize("file", GROUPS)
def test_groups_are_patients_where_names_tell(file):
    assert parse_name(file).group == GROUPS[file]


def test_no_data_set_falls_into_a_few_groups_and_no_volume_apart(real):
    for data_set, files in tables(real):
        groups = Counter(parse_name(file).group for file in files)
        assert groups.most_common(1)[0][1] < 0.15 * len(files), data_set
        slices = defaultdict(set)
        for file in files:
            # What stands before the last number is the same for all slices of a volume.
            start, _, last = parse_name(file).image.rpartition("_")
            if last.isdigit() and data_set.startswith(
                ("MSD", "LGG", "LIDC", "ACDC", "MMs", "BTCV", "COVID-19", "PROMISE")
            ):
                slices[start].add(parse_name(file).group)
        assert all(len(found) == 1 for found in slices.values())


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("scan.png", "bad-name"),
        ("scan_CT.png", "bad-name"),
        ("1_CT_lung_nodule.jpg", "bad-name"),
        ("_CT_lung_nodule.png", "bad-name"),
        ("1_CT_lung_.png", "bad-name"),
        ("7_PET_brain_tumor.png", "unknown-modality"),
        ("7_brain_CT_tumor.png", "unknown-modality"),
    ],
)
def test_names_that_say_too_little(file, code):
    with pytest.raises(Rejected, match=r"\[MODALITY\]") as caught:
        parse_name(file)
    assert (caught.value.code, caught.value.file) == (code, file)


def test_a_modality_within_the_image_or_target_is_none():
    assert parse_name("OCT_9_CT_CT_lung_nodule.png") == Name("OCT_9_CT", "CT", "lung", "nodule")
    assert parse_name("CT_lung_CT_x_y.png", mask=False) == Name("CT_lung", "CT", "x_y")


# --- folders ------------------------------------------------------------------------------------------------------


def test_the_demo_gives_what_its_manifest_lists(real):
    root = real("biomedparse_demo")
    assert BiomedParse.claims(root)
    samples, rejected = read_all(BiomedParse(root))
    rows = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    name = load_targets().canonical
    listed = {(r["id"], name(m["target"], r["site"])): (m, r) for r in rows for m in r["masks"]}
    assert rejected == [] and len(samples) == len(listed) == 42
    plain = {(sample.image, sample.target): sample for sample in MaskFolder(root)}
    for sample in samples:
        _, part, image, target = sample.id.split("/")
        mask, row = listed[image, target]
        drawn = np.asarray(Image.open(root / mask["file"]).convert("RGB")).any(2)
        assert drawn.sum() == mask["area"] and sample.region.sum() == area_without_specks(drawn) and part == "demo"
        assert (sample.modality, sample.site) == (row["modality"], row["site"])
        other = plain[sample.image, sample.target]
        assert (sample.mask, sample.present, sample.target_type) == (other.mask, other.present, other.target_type)
        assert sample.neighbours == other.neighbours


def test_both_halves_odd_names_and_groups(root):
    source = BiomedParse(root, licence="CC BY-NC-SA 4.0")
    assert BiomedParse.claims(root) and not BiomedParse.claims(root / "train")
    units = source.units()
    assert [unit.id for unit in units] == sorted(unit.id for unit in units) and len(units) == 9
    assert [unit.id for unit in units] == [unit.id for unit in BiomedParse(root).units()]
    assert {unit.facts["split"] for unit in units} == {"train", "test"}
    samples, rejected = read_all(source)
    assert rejected == [] and len(samples) == 10
    found = {sample.id: sample for sample in samples}
    polyp = found["Set/train/C3_EndoCV2021_00145_endoscope_/polyp"]
    cells = found["Set/train/Part_2_72_pathology_adrenal_gland/neoplastic cells"]
    zone = found["Set/test/prostate_02_9_MRI-T2_prostate/prostate peripheral zone"]
    assert (polyp.modality, polyp.site, polyp.licence) == ("endoscope", "", "CC BY-NC-SA 4.0")
    assert (cells.site, cells.target_type, cells.source) == ("adrenal gland", "cell", "Set")
    assert (zone.modality, load_targets().family(zone.modality)) == ("MRI-T2", "MRI")
    upper, lung = found["Set/train/1_CT_lung_upper/lung nodule"], found["Set/train/1_CT_lung/lung nodule"]
    assert (lung.site, upper.site) == ("lung", "lung upper") and lung.image != upper.image
    assert int(lung.region.sum()) == 400  # the mask's alpha is full everywhere
    # One volume, although the source has it on both sides of its own split.
    assert {s.group for s in samples if "hippocampus" in s.id} == {"Set/hippocampus_001"}
    assert [name for name, _ in found["Set/train/hippocampus_001_17_MRI_brain/anterior hippocampus"].neighbours] == [
        "posterior hippocampus"
    ]
    again = Unit(units[0].id, units[0].files, json.loads(json.dumps(units[0].facts)))
    assert list(source.read(again)) == list(source.read(units[0]))


def annotate(root, part, rows):
    names = sorted({row["file_name"] for row in rows if "file_name" in row})
    table = {
        "images": [{"id": i, "file_name": n, "height": 40, "width": 50} for i, n in enumerate(names)],
        "annotations": rows,
    }
    (root / f"{part}.json").write_text(json.dumps(table))


def test_its_own_annotations_are_followed(root):
    shutil.copy(root / "train_mask/1_CT_lung_lung+nodule.png", root / "train_mask/1_CT_lung.png")
    save(root / "train_mask/odd.png", SQUARE)
    say = lambda text: [{"raw": text, "sent": text, "sent_id": 0}]  # noqa: E731
    rows = [
        {"mask_file": "1_CT_lung_lung+nodule.png", "file_name": "1_CT_lung.png", "image_id": 0, "split": "split_0",
         "category_id": 3, "sentences": say("lung nodule in lung CT")},
        {"mask_file": "odd.png", "file_name": "1_CT_lung.png", "image_id": 0, "split": "split_0",
         "sentences": say("COVID-19 infection in lung CT")},
        {"image_id": 0, "file_name": "1_CT_lung.png", "split": "split_0", "sentences": say("left lung in lung CT")},
        {"mask_file": "../secret.png", "file_name": "1_CT_lung_upper.png", "image_id": 1, "sentences": say("tumor in lung CT")},
        {"mask_file": "gone.png", "file_name": "1_CT_lung_upper.png", "image_id": 1, "sentences": say("liver in lung CT")},
        {"mask_file": 3, "file_name": "1_CT_lung_upper.png", "image_id": 1},
        {"mask_file": "x.png", "file_name": "../1_CT_lung.png", "image_id": 1, "sentences": say("liver in lung CT")},
    ]  # fmt: skip
    annotate(root, "train", rows)
    samples, rejected = read_all(BiomedParse(root))
    here = {sample.target: sample for sample in samples if sample.id.startswith("Set/train/1_CT_lung/")}
    assert set(here) == {"lung nodule", "COVID-19 infection", "left lung"}
    units = {unit.id: unit for unit in BiomedParse(root).units()}
    assert (
        units["train/1_CT_lung"].facts["split"] == "split_0"
        and units["train/1_CT_lung_upper"].facts["split"] == "train"
    )
    assert sorted((code, file) for _, code, file in rejected) == [
        ("bad-line", "train.json: annotations[5]"),
        ("missing-file", "train_mask/gone.png"),
        ("path-escape", "train/../1_CT_lung.png"),
        ("path-escape", "train_mask/../secret.png"),
    ]
    assert len(samples) == 12  # the rest of the set is there too


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 3}', '{"images": [3], "annotations": []}'])
def test_broken_annotations_cost_only_themselves(root, text):
    (root / "train.json").write_text(text)
    samples, rejected = read_all(BiomedParse(root))
    assert rejected == [("train.json", "bad-line", "train.json")] and len(samples) == 10
    (root / "train.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert read_all(BiomedParse(root))[1] == []


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-40])


BROKEN = {
    ("unreadable-image", "train/1_CT_lung.png"): lambda r: cut_short(r / "train/1_CT_lung.png"),
    ("missing-file", "train/1_CT_lung.png"): lambda r: (r / "train/1_CT_lung.png").unlink(),
    ("unreadable-mask", "train_mask/1_CT_lung_lung+nodule.png"): lambda r: cut_short(r / "train_mask/1_CT_lung_lung+nodule.png"),
    ("size-mismatch", "train_mask/1_CT_lung_lung+nodule.png"): lambda r: save(r / "train_mask/1_CT_lung_lung+nodule.png", SQUARE.T),
    ("empty-mask", "train_mask/1_CT_lung_lung+nodule.png"): lambda r: save(r / "train_mask/1_CT_lung_lung+nodule.png", 0 * SQUARE),
    ("small-mask", "train_mask/1_CT_lung_lung+nodule.png"): lambda r: save(r / "train_mask/1_CT_lung_lung+nodule.png", np.eye(40, 50)),
    ("unknown-target", "train_mask/1_CT_lung_unicorn.png"): lambda r: save(r / "train_mask/1_CT_lung_unicorn.png", SQUARE),
    ("bad-name", "train_mask/scan.png"): lambda r: save(r / "train_mask/scan.png", SQUARE),
    ("unknown-modality", "train_mask/7_PET_lung_nodule.png"): lambda r: save(r / "train_mask/7_PET_lung_nodule.png", SQUARE),
    ("bad-name", "train/a_b.png"): lambda r: (save(r / "train/a_b.png", SQUARE), save(r / "train_mask/a_b_liver.png", SQUARE)),
}  # fmt: skip


@pytest.mark.parametrize(("code", "file"), BROKEN)
def test_broken_files_cost_only_themselves(root, code, file):
    save(root / "train/1_CT_lung.png", np.random.default_rng(0).integers(0, 255, (40, 50)))
    BROKEN[code, file](root)
    samples, rejected = read_all(BiomedParse(root))
    assert [reason[1:] for reason in rejected] == [(code, file)]
    spoilt = file not in ("train/a_b.png",) and "1_CT_lung" in file and code != "unknown-target"
    assert len(samples) == 10 - spoilt


def test_two_spellings_of_one_target_and_links(root, tmp_path):
    save(root / "train/1_ultrasound_transperineal.png", SQUARE + 1)
    for spelling in ("public+symphysis", "pubic+symphysis"):
        save(root / f"train_mask/1_ultrasound_transperineal_{spelling}.png", SQUARE)
    _, rejected = read_all(BiomedParse(root))
    assert [reason[1:] for reason in rejected] == [
        ("duplicate-id", "train_mask/1_ultrasound_transperineal_public+symphysis.png")
    ]
    (root / "train_mask/1_ultrasound_transperineal_public+symphysis.png").unlink()
    # A folder may be a link, made by whoever keeps the data; a file that leads out may not.
    (root / "test").rename(tmp_path / "elsewhere")
    (root / "test").symlink_to(tmp_path / "elsewhere")
    assert read_all(BiomedParse(root))[1] == []
    (root / "train/1_CT_lung.png").unlink()
    (root / "train/1_CT_lung.png").symlink_to(tmp_path / "elsewhere/hippocampus_001_19_MRI_brain.png")
    assert [reason[1:] for reason in read_all(BiomedParse(root))[1]] == [("path-escape", "train/1_CT_lung.png")]


def test_a_folder_without_pairs(tmp_path):
    (tmp_path / "train").mkdir()
    assert not BiomedParse.claims(tmp_path)
    with pytest.raises(ValueError, match="no folder X beside a folder X_mask"):
        BiomedParse(tmp_path).units()
