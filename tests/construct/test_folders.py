"""Folders of masks: areas as the manifests state them, true targets, refusal of every kind of bad line."""

import json
import unicodedata
from io import BytesIO

import numpy as np
import pytest
from drawn import area_without_specks, read_all
from PIL import Image
from rules import FLAT
from scipy import ndimage

from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.source import Unit
from vital_jax.construct.targets import load_targets


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Two images: a cyst and a vessel in the first, a mask of 30 and an empty mask in the second."""
    root = tmp_path / "set"
    square = np.zeros((40, 50), np.uint8)
    square[5:25, 10:30] = 255
    save(root / "images/one.png", np.full((40, 50, 3), 90))
    save(root / "images/two.png", np.full((40, 50), 20))
    save(root / "masks/tumor.png", square)
    save(root / "masks/vessel.png", square[::-1])
    save(root / "masks/small.png", np.eye(40, 50)[:, :] * (np.arange(40) < 30)[:, None] * 255)
    save(root / "masks/none.png", np.zeros((40, 50)))
    common = {"modality": "CT", "site": "abdomen"}
    rows = [
        common
        | {
            "id": "one",
            "image": "images/one.png",
            "group": 7,
            "source": "clinic",
            "masks": [
                {"target": "kidney cyst", "file": "masks/tumor.png"},
                {"target": "aorta", "file": "masks/vessel.png"},
            ],
        },
        common
        | {
            "id": "two",
            "image": "images/two.png",
            "masks": [
                {"target": "kidney cyst", "file": "masks/small.png"},
                {"target": "liver", "file": "masks/none.png"},
            ],
        },
        common | {"id": "three", "image": "images/two.png", "masks": []},
        common | {"id": "four", "image": "volume.nii.gz", "label": "label.nii.gz"},
    ]

    def write(changed=rows):
        (root / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in changed))
        return root

    write()
    return root, rows, write


@pytest.mark.parametrize("name", FLAT)
def test_every_mask_of_the_real_folders_has_the_area_its_manifest_states(real, name):
    """But for specks (pieces under 100 pixels and under a fiftieth of the largest), the fetal heads (outlines), and the cups (rings)."""
    root = real(name)
    rows = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    known, areas, rings, small = load_targets().canonical, {}, 0, 0
    for row in rows:
        for mask in row["masks"]:
            drawn = np.asarray(Image.open(root / mask["file"]).convert("RGB")).any(2)
            assert drawn.sum() == mask["area"]
            if name == "hc18_fetal_head":
                drawn = ndimage.binary_fill_holes(drawn)
                assert drawn.sum() > 20 * mask["area"]
            area = area_without_specks(drawn)
            is_ring = name == "drishti_optic_disc_cup" and mask["target"] == "optic cup"
            rings, small = rings + is_ring, small + (area < 100)
            if area >= 100 and not is_ring:
                areas[f"{name}/{row['id']}/{known(mask['target'], row['site'])}"] = area
    folder, seen = MaskFolder(root), {}
    for sample in folder:
        seen[sample.id] = int(sample.region.sum())
        assert sample.region.shape == (sample.picture.height, sample.picture.width)
        assert sample.target in sample.present and sample.group.startswith(name + "/")
    assert seen == areas
    assert (folder.counts["masks under 100 pixels"], folder.counts["rings"]) == (small, rings)


def test_volumes_are_passed_over_and_counted(real):
    folder = MaskFolder(real("msd_task04_hippocampus"))
    assert list(folder) == []
    assert "passed over: 60 volumes" in folder.summary()


def test_every_biomedparse_target_is_in_the_table(real):
    summary = json.loads((real("biomedparse_mask_stats") / "summary.json").read_text())
    targets = load_targets()
    for row in summary.values():
        for name in row["targets"]:
            assert targets.row(name)["type"] in targets.types


def test_fields_counts_and_thresholds(folder):
    root, _, _ = folder
    reader = MaskFolder(root, licence="CC0-1.0")
    samples = list(reader)
    assert [s.id for s in samples] == ["set/one/kidney cyst", "set/one/aorta"]
    tumor = samples[0]
    assert (tumor.group, tumor.source, tumor.licence, tumor.site) == ("set/7", "clinic", "CC0-1.0", "abdomen")
    assert (tumor.target_type, samples[1].target_type) == ("lesion", "vessel")
    assert tumor.present == ("kidney cyst", "aorta") and tumor.absent == ()
    assert tumor.picture.mode == "RGB" and tumor.region.sum() == 400
    assert dict(reader.counts) == {
        "samples": 2,
        "masks under 100 pixels": 1,
        "empty masks": 1,
        "images without a mask": 1,
        "volumes (a reader of volumes cuts their slices)": 1,
    }
    small = list(MaskFolder(root, min_area=30))[-1]
    assert small.id == "set/two/kidney cyst" and small.group == "set/two" and small.source == "set"
    # A second pass starts its counts anew.
    list(reader)
    assert reader.counts["samples"] == 2


def test_neighbours_are_the_other_marked_targets(folder):
    root, _, _ = folder
    samples = {s.id: s for s in MaskFolder(root, min_area=30)}
    tumor, vessel = samples["set/one/kidney cyst"], samples["set/one/aorta"]
    assert tumor.neighbours == (("aorta", vessel.mask),) and vessel.neighbours == (("kidney cyst", tumor.mask),)
    np.testing.assert_array_equal(tumor.others["aorta"], vessel.region)
    np.testing.assert_array_equal(vessel.others["kidney cyst"], tumor.region)
    # What marks nothing, or too little to be asked about, is nothing to be compared with; it is present all the same.
    assert samples["set/two/kidney cyst"].neighbours == () and "liver" in samples["set/two/kidney cyst"].present


def test_a_complete_folder_knows_what_is_absent(folder):
    samples = list(MaskFolder(folder[0], min_area=30, complete=True))
    assert [s.absent for s in samples] == [("liver",), ("liver",), ("aorta",)]


def test_rgba_masks_are_their_colours_not_their_alpha(folder):
    root, _, _ = folder
    opaque = np.zeros((40, 50, 4), np.uint8)
    opaque[..., 3] = 255
    opaque[3:20, 3:20, 1] = 1
    save(root / "masks/tumor.png", opaque)
    assert next(iter(MaskFolder(root))).region.sum() == 17 * 17


def change_mask(rows, **fields):
    rows[0] = rows[0] | {"masks": [rows[0]["masks"][0] | fields]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r: change_mask(r, file="../secret.png"), ValueError, r"manifest.jsonl:1: '../secret.png' leads out"),
        (lambda r: change_mask(r, file="/etc/hostname"), ValueError, r"'/etc/hostname' leads out of the folder"),
        (
            lambda r: change_mask(r, file="masks/lost.png"),
            FileNotFoundError,
            r"manifest.jsonl:1: .*lost.png: not found",
        ),
        (lambda r: change_mask(r, target="unicorn"), ValueError, r"'unicorn' is not in .*targets.json; add a row"),
        (lambda r: r[0].update(modality="sonar"), ValueError, r"modality 'sonar' is not in .*targets.json"),
        (lambda r: r[0].pop("site"), ValueError, r"manifest.jsonl:1: site missing"),
        (lambda r: r[0]["masks"][0].pop("file"), ValueError, r":1: every mask needs a target and a file"),
        (lambda r: r.insert(1, r[0]), ValueError, r"manifest.jsonl:2: id 'one' comes twice"),
        (lambda r: r[0]["masks"].append(r[0]["masks"][0]), ValueError, r":1: a target has two masks; unite them"),
        (
            lambda r: change_mask(r, file="images/two.jpg"),
            ValueError,
            r":1: images/one.png with images/two.jpg: the mask",
        ),
        (lambda r: r[0].update(image="manifest.jsonl"), ValueError, r":1: manifest.jsonl with .*: the image"),
    ],
)
def test_bad_lines_name_file_and_line(folder, change, error, message):
    root, rows, write = folder
    save(root / "images/two.jpg", np.zeros((40, 50, 3)))
    rows = json.loads(json.dumps(rows))
    change(rows)
    with pytest.raises(error, match=message):
        list(MaskFolder(write(rows)))


def test_broken_and_absent_manifests(folder, tmp_path):
    root, _, _ = folder
    for text in ('{"id": ', "[]", "3"):
        (root / "manifest.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"manifest.jsonl:1: not a JSON object"):
            list(MaskFolder(root))
    with pytest.raises(FileNotFoundError, match=r"manifest.jsonl: not found"):
        list(MaskFolder(tmp_path))


def test_links_that_lead_out_are_refused(folder, tmp_path):
    root, rows, write = folder
    (tmp_path / "outside.png").write_bytes((root / "masks/tumor.png").read_bytes())
    (root / "masks/link.png").symlink_to(tmp_path / "outside.png")
    change_mask(rows, file="masks/link.png")
    with pytest.raises(ValueError, match="leads out of the folder"):
        list(MaskFolder(write(rows)))


def test_as_a_source_it_gives_the_same_samples_and_reasons(folder):
    root, _, _ = folder
    source = MaskFolder(root, licence="CC0-1.0", complete=True)
    assert (source.name, source.kind, source.licence) == ("set", "manifest", "CC0-1.0") and MaskFolder.claims(root)
    units = source.units()
    assert [unit.id for unit in units] == ["one", "two", "three"]
    assert units[0].files == ("images/one.png", "masks/tumor.png", "masks/vessel.png")
    samples, rejected = read_all(source)
    assert samples == list(source)
    assert rejected == [("two", "small-mask", "masks/small.png"), ("two", "empty-mask", "masks/none.png")]
    # What a unit holds can be written down and read by another process.
    again = [Unit(u.id, u.files, json.loads(json.dumps(u.facts))) for u in units]
    assert list(source.read(again[0])) == samples
    assert next(iter(MaskFolder(root, name="other").read(again[0]))).id == "other/one/kidney cyst"


def test_real_folders_give_the_same_both_ways(real):
    source = MaskFolder(real("kvasir_polyp"))
    assert read_all(source) == (list(source), [])


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-60])


BROKEN = {
    "unreadable-image": lambda root, rows: cut_short(root / "images/two.png"),
    "missing-file": lambda root, rows: (root / "images/two.png").unlink(),
    "path-escape": lambda root, rows: rows[1].update(image="../two.png"),
    "unknown-modality": lambda root, rows: rows[1].update(modality="sonar"),
    "bad-line": lambda root, rows: rows[1].update(modality=["CT"]),
    "duplicate-id": lambda root, rows: rows[1].update(id="one"),
}
BROKEN_MASKS = {
    "unreadable-mask": lambda root, rows: cut_short(root / "masks/vessel.png"),
    "size-mismatch": lambda root, rows: save(root / "masks/vessel.png", np.ones((40, 51))),
    "missing-file": lambda root, rows: (root / "masks/vessel.png").unlink(),
    "path-escape": lambda root, rows: rows[0]["masks"][1].update(file="/etc/hostname"),
    "unknown-target": lambda root, rows: rows[0]["masks"][1].update(target="unicorn"),
    "empty-mask": lambda root, rows: save(root / "masks/vessel.png", np.zeros((40, 50))),
    "small-mask": lambda root, rows: save(root / "masks/vessel.png", np.eye(40, 50)),
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_image_costs_only_itself(folder, code):
    root, rows, write = folder
    rows = json.loads(json.dumps(rows[:2]))
    r = np.random.default_rng(0)
    save(root / "images/two.png", r.integers(0, 255, (40, 50, 3)))
    BROKEN[code](root, rows)
    samples, rejected = read_all(MaskFolder(write(rows)))
    assert [sample.id for sample in samples] == ["set/one/kidney cyst", "set/one/aorta"]
    assert [c for _, c, _ in rejected] == [code]
    by_line = code in ("path-escape", "bad-line", "duplicate-id")
    assert rejected[0][2] == ("manifest.jsonl:2" if by_line else "images/two.png")


@pytest.mark.parametrize("code", BROKEN_MASKS)
def test_a_broken_mask_costs_only_itself(folder, code):
    root, rows, write = folder
    rows = json.loads(json.dumps(rows[:1]))
    r = np.random.default_rng(0)
    save(root / "masks/vessel.png", r.integers(0, 2, (40, 50)) * 255)
    BROKEN_MASKS[code](root, rows)
    (sample,), ((unit, found, file),) = read_all(MaskFolder(write(rows)))
    assert (sample.id, unit, found) == ("set/one/kidney cyst", "one", code)
    assert file == ("manifest.jsonl:1" if code == "path-escape" else "masks/vessel.png")
    # What cannot be looked at is no neighbour to be compared with; what was marked is present all the same.
    assert len(sample.present) == 2
    assert sample.neighbours == () and sample.others == {}


@pytest.mark.parametrize(
    "line",
    [
        '{"id": ',
        "[]",
        "3",
        '{"masks": 3}',
        '{"id": 1}',
        '{"id": 1, "mask": []}',
        "\x80",
        '{"a":' * 100000,
        '{"id": "a\\u0000b", "masks": []}',
    ],
)
def test_a_broken_line_costs_only_itself(folder, line):
    root, _, write = folder
    write()
    with (root / "manifest.jsonl").open("ab") as file:
        file.write(b"\n" + line.encode("latin-1") + b"\n")
    samples, rejected = read_all(MaskFolder(root, min_area=1))
    assert len(samples) == 3
    broken = [reason for reason in rejected if reason[1] != "empty-mask"]
    assert broken == [("manifest.jsonl:5", "bad-line", "manifest.jsonl:5")]


@pytest.mark.parametrize(("typo", "meant"), [({"mask": []}, "masks"), ({"labels": {}, "lable": "l.nii"}, "label")])
def test_a_line_that_is_nobodys_says_what_it_may_mean(folder, typo, meant):
    root, rows, write = folder
    write([{key: value for key, value in rows[0].items() if key != "masks"} | typo])
    said = rf"jsonl:1: neither masks \(of an image\) nor label.*; '{list(typo)[-1]}' is perhaps meant as '{meant}'"
    with pytest.raises(ValueError, match=said):
        list(MaskFolder(root))


def test_claims_tell_the_lines_apart(folder, tmp_path):
    root, rows, write = folder
    assert not MaskFolder.claims(tmp_path)
    write(rows[3:])
    assert not MaskFolder.claims(root)
    write([rows[0] | {"image": "scan.dcm"}])
    assert not MaskFolder.claims(root) and MaskFolder(root).units() == []
    (root / "manifest.jsonl").write_text("no JSON at all")
    assert MaskFolder.claims(root)


def test_tables_are_checked(tmp_path):
    targets = load_targets()
    assert targets.family("MRI-T1-Gd") == "MRI" and targets.family("X-Ray") == "X-Ray"
    assert targets.modality_words("endoscope") == "endoscopy" and targets.modality_words("MRI-ADC") == "MRI-ADC"
    assert targets.row("vertebrae T9") == targets.row("vertebrae T#")
    assert [targets.phrase(t) for t in ("liver", "polyp", "intraretinal cyst", "edema")] == [
        "the liver",
        "a polyp",
        "an intraretinal cyst",
        "edema",
    ]
    good = {"type": "organ", "modalities": ["CT"], "regions": ["abdomen"]}
    table = {"format_version": 1, "modalities": {"CT": "CT"}, "types": {"organ": "organ"}, "sites": {}}
    path = tmp_path / "table.json"
    for number, (row, message) in enumerate(
        [
            (good | {"type": "thing"}, "unknown type"),
            (good | {"modalities": ["sonar"]}, "unknown type or modality"),
            (good | {"regions": []}, "absent everywhere"),
            ({"type": "organ"}, r"lacks \['modalities', 'regions'\]"),
        ]
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(table | {"targets": {"liver": row}}))
        with pytest.raises(ValueError, match=message):
            load_targets(path)
    path.write_text(json.dumps(table | {"targets": {}, "format_version": 2}))
    load_targets.cache_clear()
    with pytest.raises(ValueError, match="table format 2"):
        load_targets(path)


def test_orientation_of_the_image_turns_the_mask(folder):
    root, rows, write = folder
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown turned clockwise
    picture = np.zeros((40, 50, 3), np.uint8)
    picture[5:25, 10:30] = 200
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG", exif=exif)
    (root / "images/one.png").write_bytes(file.getvalue())
    sample = next(iter(MaskFolder(write(rows[:1]))))
    assert sample.region.shape == (50, 40)
    np.testing.assert_array_equal(sample.region, np.asarray(sample.picture)[..., 0] == 200)


def test_names_in_either_form_of_unicode_and_cells_without_a_number(folder):
    root, rows, write = folder
    name = unicodedata.normalize("NFD", "Bärbel")
    (root / "images/one.png").rename(root / f"images/{name}.png")
    write([rows[0] | {"image": "images/Bärbel.png", "group": float("nan"), "licence": float("nan")}])
    unit, *_ = MaskFolder(root).units()
    assert unit.files[0] == f"images/{name}.png" and (root / unit.files[0]).is_file()
    sample = next(iter(MaskFolder(root)))
    assert (sample.group, sample.licence) == ("set/one", "")
