"""Decathlon folders and manifests of volumes: the ten tasks' tables, what real folders hold, and everything that can be wrong in one."""

import json
import logging

import numpy as np
import pytest

from vital_jax.construct.msd import Msd, Volumes
from vital_jax.construct.source import Rejected
from vital_jax.construct.volumes import load_tables
from vital_jax.pipeline.images import decode

nib = pytest.importorskip("nibabel")
PLACED = np.array([[1, 0, 0, 3], [0, 1, 0, 3], [0, 0, 5, 3], [0, 0, 0, 1.0]])


def write(path, values, affine=PLACED):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def labelled(values=(1, 2, 3), shape=(40, 30, 4)):
    """[X, Y, Z] uint8: blocks of 12 x 12, one value each, from the patient's left to the right."""
    found = np.zeros(shape, np.uint8)
    for number, value in enumerate(values):
        found[1 + 13 * number : 13 + 13 * number, 5:17, 1:3] = value
    return found


def image(shape=(40, 30, 4), seed=0):
    return np.random.default_rng(seed).integers(-200, 300, shape).astype(np.int16)


def decathlon(root, labels, modality=None, training=("a",), name="", **facts):
    """A folder of the Decathlon's form; `training`: names of volumes, or whole entries."""
    entries = [
        {"image": f"./imagesTr/{entry}.nii.gz", "label": f"./labelsTr/{entry}.nii.gz"}
        if isinstance(entry, str)
        else entry
        for entry in training
    ]
    (root / "imagesTr").mkdir(parents=True, exist_ok=True)
    table = {
        "name": name,
        "modality": modality or {"0": "CT"},
        "labels": {str(value): label for value, label in enumerate(["background", *labels])},
        "licence": "CC-BY-SA 4.0",
        "training": entries,
        **facts,
    }
    (root / "dataset.json").write_text(json.dumps(table))
    return root


def read(source):
    """(samples, {unit: code}) of a whole source."""
    samples, codes = [], {}
    for unit in source.units():
        try:
            for found in source.read(unit):
                if isinstance(found, Rejected):
                    codes.setdefault(unit.id, []).append(found.code)
                else:
                    samples.append(found)
        except Rejected as error:
            codes[unit.id] = error.code
    return samples, codes


# --- the Decathlon -------------------------------------------------------------------------------------

TASKS = [  # folder, labels as distributed, channels, the sources' own spelling of a name
    ("Task01_BrainTumour", ["edema", "non-enhancing tumor", "enhancing tumour"], ["FLAIR", "T1w", "t1gd", "T2w"]),
    ("Task02_Heart", ["left atrium"], ["MRI"]),
    ("Task03_Liver", ["liver", "cancer"], ["CT"]),
    ("Task04_Hippocampus", ["Anterior", "Posterior"], ["MRI"]),
    ("Task05_Prostate", ["PZ", "TZ"], ["T2", "ADC"]),
    ("Task06_Lung", ["cancer"], ["CT"]),
    ("Task07_Pancreas", ["pancreas", "cancer"], ["CT"]),
    ("Task08_HepaticVessel", ["Vessel", "Tumour"], ["CT"]),
    ("Task09_Spleen", ["spleen"], ["CT"]),
    ("Task10_Colon", ["colon cancer primaries"], ["CT"]),
]


@pytest.mark.parametrize(("folder", "labels", "channels"), TASKS, ids=[task[0] for task in TASKS])
def test_each_task_is_known_as_distributed(tmp_path, folder, labels, channels):
    root = decathlon(tmp_path / folder, labels, {str(n): name for n, name in enumerate(channels)})
    values = image((40, 30, 4, len(channels)) if len(channels) > 1 else (40, 30, 4))
    affine = np.eye(4) if folder.startswith("Task01") else PLACED
    write(root / "imagesTr/a.nii.gz", values, affine)
    # From the patient's left, where the spleen is; the liver is moved to the right.
    marks = labelled(range(1, len(labels) + 1))
    write(root / "labelsTr/a.nii.gz", marks[::-1] if "Liver" in folder else marks, affine)
    samples, codes = read(Msd(root))
    row = load_tables()["tasks"][folder]
    assert {sample.target for sample in samples} | {"x"} == {*row["targets"], "x"} and not codes
    assert {sample.site for sample in samples} == {row["site"]}
    assert {sample.modality for sample in samples} == (
        {channel["modality"] for channel in row["channels"].values()} if len(channels) > 1 else {row["modality"]}
    )
    for sample in samples:
        assert sample.region.sum() == 144 * len(row["targets"][sample.target])
        assert sample.licence == "CC-BY-SA 4.0" and sample.group == f"{folder}/a" and sample.source == folder


def test_an_organ_holds_its_tumor(tmp_path):
    root = decathlon(tmp_path / "Task07_Pancreas", ["pancreas", "cancer"])
    write(root / "imagesTr/a.nii.gz", image())
    write(root / "labelsTr/a.nii.gz", labelled((1, 2)))
    by_id = {sample.id: sample for sample in read(Msd(root))[0]}
    organ, tumor = (by_id[f"Task07_Pancreas/a/1/{name}"] for name in ("pancreas", "pancreatic tumor"))
    assert organ.region.sum() == 288 and (organ.region & tumor.region).sum() == tumor.region.sum() == 144
    assert organ.present == ("pancreas", "pancreatic tumor") and list(organ.others) == ["pancreatic tumor"]


def test_brains_without_an_affine_are_read_as_the_table_says_and_others_refused(tmp_path):
    """Task01 ships identity affines: its arrays run to the left, back and head."""
    labels, channels = (
        ["edema", "non-enhancing tumor", "enhancing tumour"],
        {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    )
    root = decathlon(tmp_path / "Task01_BrainTumour", labels, channels)
    values, marks = image((40, 30, 4, 4)), np.zeros((40, 30, 4), np.uint8)
    marks[25:37, 3:15, 2] = 1  # the last of 40 columns to the left, the first of 30 rows to the back
    write(root / "imagesTr/a.nii.gz", values, np.eye(4))
    write(root / "labelsTr/a.nii.gz", marks, np.eye(4))
    (sample,) = read(Msd(root))[0]
    assert sample.id == "Task01_BrainTumour/a-MRI-FLAIR/2/edema"
    rows, columns = np.nonzero(sample.region)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 14, 25, 36)
    other = decathlon(tmp_path / "mine", ["liver"])
    write(other / "imagesTr/a.nii.gz", image(), np.eye(4))
    write(other / "labelsTr/a.nii.gz", labelled((1,)), np.eye(4))
    assert read(Msd(other))[1] == {"a": "no-affine"}
    assert read(Msd(other, orientation="LPS", min_area=50))[0]


def test_a_spleen_on_the_wrong_side_is_read_as_its_task_usually_is(tmp_path, caplog):
    root = decathlon(tmp_path / "Task09_Spleen", ["spleen"])
    wrong = PLACED.copy()
    wrong[0, 0] = -1  # the array runs to the right, the affine says to the left
    write(root / "imagesTr/a.nii.gz", image(), wrong)
    write(root / "labelsTr/a.nii.gz", labelled((1,)), wrong)
    with caplog.at_level(logging.INFO):
        samples, codes = read(Msd(root))
    assert not codes and all(np.nonzero(sample.region)[1].min() > 20 for sample in samples)
    assert "spleen on the wrong side" in caplog.text
    # Who states the directions is believed: a patient may be like that.
    told, _ = read(Msd(root, orientation="LAS"))
    assert all(np.nonzero(sample.region)[1].max() < 20 for sample in told)


def test_a_liver_on_the_wrong_side_is_refused_where_nothing_says_better(tmp_path):
    root = decathlon(tmp_path / "mine", ["liver"])
    write(root / "imagesTr/a.nii.gz", image())
    write(root / "labelsTr/a.nii.gz", labelled((1,)))
    assert read(Msd(root))[1] == {"a": "mirrored"}
    assert read(Msd(root, orientation="LAS"))[0]


def test_a_folder_of_ones_own_is_read_by_its_own_labels(tmp_path):
    """Labels alone make no Decathlon task: a name has to say so too, and other names are looked up in the table of targets."""
    root = decathlon(tmp_path / "own", ["gizmo", "Kidney_Left", "Vertebrae T12", "left kidney"], name="Breast")
    write(root / "imagesTr/a.nii.gz", image((60, 30, 4)))
    write(root / "labelsTr/a.nii.gz", labelled((2, 3, 4, 1), (60, 30, 4)))
    samples, codes = read(Msd(root, site="abdomen"))
    assert codes == {"a": ["unknown-target"]}
    found = {sample.target: sample for sample in samples}
    assert set(found) == {"left kidney", "T12 vertebra"}
    assert found["left kidney"].region.sum() == 288 and found["left kidney"].site == "abdomen"


def test_bad_entries_cost_only_themselves(tmp_path):
    root = tmp_path / "deep" / "Task09_Spleen"
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    training = ["a", "small", "text", "short", "none", "four", "empty", "nolabel", entry, {"image": "x.nii.gz"}, "._a"]
    training += [{"image": "../../out.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    decathlon(root, ["spleen"], training=training)
    for name in ("a", "small", "text", "short", "four", "empty", "nolabel"):
        write(root / f"imagesTr/{name}.nii.gz", image())
        write(root / f"labelsTr/{name}.nii.gz", labelled((1,)))
    write(root / "labelsTr/small.nii.gz", labelled((1,), (40, 30, 3)))
    (root / "imagesTr/text.nii.gz").write_text("no volume")
    data = (root / "labelsTr/short.nii.gz").read_bytes()
    (root / "labelsTr/short.nii.gz").write_bytes(data[: len(data) // 2])
    write(root / "labelsTr/four.nii.gz", labelled((1, 4)))
    write(root / "labelsTr/empty.nii.gz", labelled(()))
    (root / "labelsTr/nolabel.nii.gz").unlink()
    write(tmp_path / "out.nii.gz", image())
    (root / "imagesTr/._a.nii.gz").write_bytes(b"Mac OS X")
    samples, codes = read(Msd(root))
    assert {sample.group for sample in samples} == {"Task09_Spleen/a"} and len(samples) == 2
    assert codes == {
        "small": "size-mismatch",
        "text": "unreadable-volume",
        "short": "unreadable-mask",
        "none": "missing-file",
        "four": "unknown-label",
        "empty": "empty-mask",
        "nolabel": "missing-file",
        "dataset.json:training[8]": "duplicate-id",
        "dataset.json:training[9]": "bad-line",
        "out": "path-escape",
    }
    units = Msd(root).units()
    assert len({unit.id for unit in units}) == len(units) and units == Msd(root).units()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a table"),
        ("[]", "not a table"),
        ('{"training": [], "labels": {"background": 0}, "modality": {"0": "CT"}}', "form"),
        ('{"training": {}, "labels": {"0": "background"}, "modality": {"0": "CT"}}', "form"),
        ('{"labels": {"0": "background"}, "modality": {"0": "CT"}}', "training"),
    ],
)
def test_a_dataset_json_of_another_form_is_an_error_that_names_it(tmp_path, text, says):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=f"dataset.json.*{says}"):
        Msd(tmp_path).units()


def test_folders_are_claimed_by_one_reader(tmp_path):
    both = decathlon(tmp_path / "both", ["spleen"])
    (both / "manifest.jsonl").write_text('{"image": "a.nii.gz"}\n')
    assert Msd.claims(both) and not Volumes.claims(both)
    volumes, flat, empty = (tmp_path / name for name in ("volumes", "flat", "empty"))
    for folder, line in (
        (volumes, '{"image": "a.nii.gz", "label": "b.nii.gz"}\n'),
        (flat, '{"image": "a.png", "masks": []}\n'),
    ):
        folder.mkdir()
        (folder / "manifest.jsonl").write_text(line)
    empty.mkdir()
    assert [Volumes.claims(folder) for folder in (volumes, flat, empty)] == [True, False, False]
    assert not any(Msd.claims(folder) for folder in (volumes, flat, empty))
    for reader in (Msd, Volumes):
        with pytest.raises(FileNotFoundError, match="empty"):
            reader(empty).units()


# --- manifests -----------------------------------------------------------------------------------------


def manifest(root, *rows):
    root.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return root


def row(name="a", label="l.nii.gz", **more):
    return {"id": name, "modality": "CT", "site": "abdomen", "image": "a.nii.gz", "label": label, **more}


@pytest.fixture
def folder(tmp_path):
    """A folder with an image and label maps; the patient's right has value 1."""
    root = tmp_path / "set"
    write(root / "a.nii.gz", image())
    write(root / "l.nii.gz", labelled((3, 2, 1)))
    write(root / "one.nii.gz", (labelled((3, 2, 1)) == 1).astype(np.float32))
    return root


def test_a_table_of_labels_says_what_values_mean(folder):
    table = {"0": "background", "1": "Liver", "2": "stomach", "3": "spleen"}
    samples, codes = read(Volumes(manifest(folder, row(labels=table, group="p1", licence="CC0-1.0"), "")))
    assert {sample.target for sample in samples} == {"liver", "stomach", "spleen"} and not codes
    assert {(sample.group, sample.licence) for sample in samples} == {("set/p1", "CC0-1.0")}


@pytest.mark.parametrize(
    "more", [{"label_set": "total_mr"}, {"kind": 'ids are TotalSegmentator v2 "total_mr" class ids'}]
)
def test_a_label_set_names_published_ids(folder, more):
    write(folder / "l.nii.gz", labelled((3, 1, 2)))
    samples, codes = read(Volumes(manifest(folder, row(**more))))
    assert {sample.target for sample in samples} == {"spleen", "right kidney", "left kidney"} and not codes


def test_several_label_files_and_files_that_are_named_after_their_target(folder):
    files = {"all": "l.nii.gz", "kidney_right": "one.nii.gz", "rest": "l.nii.gz"}
    tables = {
        "all": {"3": "spleen", "2": "stomach", "1": "liver"},
        "rest": {"1": "colon", "2": "pancreas", "3": "liver"},
    }
    samples, codes = read(Volumes(manifest(folder, row(label=files, labels=tables))))
    found = {sample.target: sample for sample in samples}
    assert set(found) == {"spleen", "stomach", "liver", "right kidney", "colon", "pancreas"} and not codes
    np.testing.assert_array_equal(found["liver"].region, found["right kidney"].region)


def test_bad_lines_cost_only_themselves(folder):
    good = row(labels={"1": "liver", "2": "stomach", "3": "spleen"})
    manifest(
        folder,
        good,
        good,
        {"id": "flat", "modality": "CT", "site": "abdomen", "image": "a.png", "masks": []},
        "{",
        {"id": "b"},
        row("c"),
        row("d", labels={"1": "liver"}),
        row("e", labels={"one": "liver"}),
        row("f", label="../l.nii.gz", labels={"1": "liver"}),
        row("g", label=7),
        row("h", labels={"1": "liver", "2": "stomach", "3": "spleen"}, channel=0),
        row("i", label={}),
        row("j", labels=[1]),
        "17",
        {key: value for key, value in row("k").items() if key != "labels"} | {"lables": {"1": "liver"}},
    )
    samples, codes = read(Volumes(folder))
    assert {sample.group for sample in samples} == {"set/a"}
    assert codes == {
        "manifest.jsonl:2": "duplicate-id",
        "manifest.jsonl:4": "bad-line",
        "manifest.jsonl:5": "bad-line",
        "c": "unknown-label",
        "d": "unknown-label",
        "e": "bad-line",
        "f": "path-escape",
        "manifest.jsonl:10": "bad-line",
        "h": "unreadable-volume",
        "manifest.jsonl:12": "bad-line",
        "manifest.jsonl:13": "bad-line",
        "manifest.jsonl:14": "bad-line",
        "manifest.jsonl:15": "bad-line",
    }


# --- real volumes --------------------------------------------------------------------------------------


def middle(sample):
    """(row, column) of the region's middle as shares of the image."""
    return tuple(
        (v.mean() + 0.5) / size for v, size in zip(np.nonzero(sample.region), sample.region.shape, strict=True)
    )


def test_all_real_hippocampus_volumes_are_read_the_right_way_up(real):
    source = Msd(real("msd_task04_hippocampus"))
    samples, codes = read(source)
    assert len(source.units()) == 60 == len({sample.group for sample in samples})
    assert set(map(str, codes.values())) <= {"['small-mask']"}
    places = {}
    for sample in samples:
        z = int(sample.id.split("/")[2])
        places.setdefault((sample.group, sample.target), []).append((*middle(sample), z))
    both = [
        group
        for group, target in places
        if target == "posterior hippocampus" and (group, "anterior hippocampus") in places
    ]
    assert len(both) >= 55
    for group in both:
        head, tail = (np.mean(places[group, f"{part} hippocampus"], axis=0) for part in ("anterior", "posterior"))
        # The front of the hippocampus is nearer to the face, so higher up in the image, and nearer to the feet.
        assert head[0] < tail[0] and head[2] < tail[2], group
    for sample in samples[:20]:
        assert decode(sample.image, "a slice")[0].size == sample.picture.size
        assert sample.region.sum() >= 100 and sample.picture.size[0] < 60 and sample.spacing == (1, 1)


def test_real_spleen_is_on_the_images_right(real):
    samples, codes = read(Msd(real("msd_task09_spleen")))
    assert len(samples) == 8 and not codes
    for sample in samples:
        assert middle(sample)[1] > 0.6 and sample.picture.size == (512, 512) and sample.window == (-160, 240)
        assert sample.spacing == pytest.approx((0.785, 0.785), abs=0.01)
        grey = np.asarray(sample.picture)[..., 0]
        assert 100 < grey[sample.region].mean() < 240
        # The table that the patient lies on is below.
        assert (grey[-80:] > 0).sum() > (grey[:40] > 0).sum()


def test_real_trunks_have_their_organs_in_place(real):
    samples, codes = read(Volumes(real("totalsegmentator_reference")))
    assert {sample.modality for sample in samples} == {"CT", "MRI"}
    assert {code for found in codes.values() for code in found} <= {"small-mask", "unknown-target"}
    left, right = {"liver", "right kidney"}, {"spleen", "left kidney"}
    seen = set()
    for sample in samples:
        row, column = middle(sample)
        if sample.target in left | right:
            seen.add((sample.modality, sample.target))
            assert (column < 0.5) == (sample.target in left), sample.id
        if sample.target.endswith((" vertebra", "back muscle")):
            assert row > 0.5, sample.id
    assert len(seen) == 8
    assert any(sample.id == "totalsegmentator_reference/ct_spine/74/L3 vertebra" for sample in samples)


def test_real_cord_in_another_array_order_is_cut_across(real):
    root = real("sct_spinal_cord")
    assert read(Volumes(root))[1] == {"t2": ["small-mask"]}  # at 1 mm a cord has less than 100 pixels
    samples, codes = read(Volumes(root, min_area=40))
    assert len(samples) == 8 and not codes
    for sample in samples:
        assert sample.picture.size == (52, 60)
        rows, columns = np.nonzero(sample.region)
        # Cut across, a cord is a small oval that is wider than deep.
        assert columns.max() - columns.min() > rows.max() - rows.min() and 40 <= len(rows) < 100
        assert middle(sample)[1] == pytest.approx(0.5, abs=0.1)
