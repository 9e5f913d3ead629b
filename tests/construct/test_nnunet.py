"""nnU-Net's raw folders, of either version: volumes and pictures, one file per channel, regions, and what nobody looked at."""

import json

import numpy as np
import pytest
from PIL import Image
from test_layouts import read_all

from vital_jax.construct.nifti import read_stack
from vital_jax.construct.source import Rejected
from vital_jax.construct.sources import kinds_of, open_source


@pytest.mark.parametrize("version", [1, 2])
def test_raw_folders_of_nnunet(tmp_path, version):
    nibabel = pytest.importorskip("nibabel")
    root = tmp_path / "Dataset005_Prostate"
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    label = np.zeros((40, 40, 4), np.uint8)
    label[10:30, 10:30, 1:3], label[15:27, 15:27, 1:3] = 1, 2
    rng = np.random.default_rng(0)
    for part, case in (("Tr", "case_1"), ("Tr", "case_2"), ("Ts", "case_9")):
        for channel in range(2):
            volume = (100 + 40 * label + rng.normal(0, 9, label.shape)).astype(np.float32)
            path = root / f"images{part}/{case}_{channel:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(volume, affine), path)
        (root / f"labels{part}").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(label, affine), root / f"labels{part}/{case}.nii.gz")
    channels = {"0": "T2", "1": "ADC"}
    if version == 1:
        table = {"modality": channels, "labels": {"0": "background", "1": "prostate", "2": "tumor"}, "training": []}
    else:
        labels = {"background": 0, "prostate": [1, 2], "tumor": 2, "ignore": 3}
        table = {"channel_names": channels, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(table))
    assert kinds_of(root) == ["nnunet"]
    source = open_source(root, options={"site": "prostate"})
    samples, bad = read_all(source)
    assert not bad and {(s.modality, s.target) for s in samples} == {
        (f"MRI-{name}", target) for name in ("T2", "ADC") for target in ("prostate", "tumor")
    }
    assert {s.group for s in samples} == {f"{root.name}/case_{n}" for n in (1, 2, 9)}
    assert len({s.id for s in samples}) == len(samples) == 3 * 2 * 2 * 2
    area = {s.target: int(s.region.sum()) for s in samples}
    assert area == {"prostate": 400 if version == 2 else 256, "tumor": 144}
    assert {u.facts["case"]: u.facts["split"] for u in source.units()} == {"case_1": "", "case_2": "", "case_9": "test"}
    (root / "imagesTr/case_1_0001.nii.gz").unlink()
    assert [code for _, code, _ in read_all(source)[1]] == ["missing-file"]
    (root / "dataset.json").write_text('{"labels": 3}')
    with pytest.raises(ValueError, match="not a table of nnU-Net's form"):
        source.units()


# --- the ignore label ---------------------------------------------------------------------------------


def folder(root, labels, **table):
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}} | table))
    return root


def test_slices_that_nobody_finished_are_left_out_and_counted(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    root = folder(tmp_path / "Dataset001_Liver", {"background": 0, "liver": 1, "ignore": 2})
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    label = np.zeros((40, 40, 4), np.uint8)
    label[20:35, 10:30] = 1  # on the image's left, where a liver is
    label[0:2, 0:2, 1], label[:, :, 3] = 2, 2
    volume = np.where(label == 1, 100, np.where(np.indices(label.shape)[0] < 3, -1000, 20)).astype(np.float32)
    for case, marks in (("a", label), ("b", np.full_like(label, 2))):
        nibabel.save(nibabel.Nifti1Image(volume, affine), root / f"imagesTr/{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(marks, affine), root / f"labelsTr/{case}.nii.gz")
    samples, bad = read_all(open_source(root, options={"site": "abdomen", "orientation": "RAS"}))
    assert [s.id.split("/")[2] for s in samples] == ["0", "2"] and all(s.region.sum() == 300 for s in samples)
    assert [(code, file) for _, code, file in bad] == [("partly-marked", f"labelsTr/{c}.nii.gz") for c in "ab"]


# --- pictures -----------------------------------------------------------------------------------------

LABELS = {"background": 0, "optic disc": [1, 2], "optic cup": 2, "ignore": 3}


@pytest.fixture
def pictures(tmp_path):
    root = folder(
        tmp_path / "Dataset120_Eyes", LABELS, file_ending=".png", channel_names={"0": "R", "1": "G", "2": "B"}
    )
    label = np.zeros((60, 50), np.uint8)
    label[10:40, 10:40], label[20:30, 20:34] = 1, 2
    rng = np.random.default_rng(0)
    for case in "abcd":
        Image.fromarray(rng.integers(0, 255, (60, 50, 3), np.uint8)).save(root / f"imagesTr/{case}_0000.png")
        marks = np.minimum(label, 1) if case == "b" else np.zeros_like(label) if case == "d" else label.copy()
        marks[0, 0] = 3 if case == "c" else 0
        Image.fromarray(marks).save(root / f"labelsTr/{case}.png")
    return root


FUNDUS = {"site": "retina", "modality": "fundus"}


def test_pictures_in_colours(pictures):
    assert kinds_of(pictures) == ["nnunet"]
    samples, bad = read_all(open_source(pictures, options=FUNDUS | {"complete": True}))
    assert {s.id: int(s.region.sum()) for s in samples} == {
        "Dataset120_Eyes/a/optic disc": 900,
        "Dataset120_Eyes/a/optic cup": 140,
        "Dataset120_Eyes/b/optic disc": 900,
    }
    assert [s.absent for s in samples] == [(), (), ("optic cup",)] and samples[0].picture.mode == "RGB"
    assert [(code, file) for _, code, file in bad] == [
        ("partly-marked", "labelsTr/c.png"),
        ("empty-mask", "labelsTr/d.png"),
    ]
    assert {code for _, code, _ in read_all(open_source(pictures))[1]} >= {"unknown-modality"}
    (pictures / "imagesTr/a_0000.png").unlink()
    Image.fromarray(np.full((60, 50), 7, np.uint8)).save(pictures / "labelsTr/b.png")
    codes = [code for _, code, _ in read_all(open_source(pictures, options=FUNDUS))[1]]
    assert codes == ["missing-file", "unknown-label", "partly-marked", "empty-mask"]


def test_grey_pictures_of_one_file_per_channel(tmp_path):
    names = {"0": "ultrasound", "1": "ultrasound"}  # two looks at one thing
    root = folder(tmp_path / "Dataset121_Two", {"background": 0, "liver": 1}, file_ending=".tif", channel_names=names)
    for number in range(2):
        Image.fromarray(np.random.default_rng(number).integers(0, 65535, (40, 40), np.uint16)).save(
            root / f"imagesTr/case_0_000{number}.tif"
        )
    Image.fromarray(np.pad(np.ones((20, 20), np.uint8), 10)).save(root / "labelsTr/case_0.tif")
    samples, bad = read_all(open_source(root, options={"site": "abdomen"}))
    assert not bad and [s.id for s in samples] == [f"{root.name}/case_0-000{n}/liver" for n in range(2)]
    assert {(s.modality, s.group, int(s.region.sum())) for s in samples} == {("ultrasound", f"{root.name}/case_0", 400)}


# --- other endings ------------------------------------------------------------------------------------


def test_endings_that_are_not_read_are_named(tmp_path, monkeypatch):
    root = folder(tmp_path / "Dataset002_X", {"background": 0, "liver": 1}, file_ending=".b2nd")
    with pytest.raises(ValueError, match=r"ending in '.b2nd' are not read, only .nii.gz, .nii, .mha"):
        open_source(root, "nnunet").units()
    root = folder(tmp_path / "Dataset003_X", {"background": 0, "liver": 1}, file_ending=".mha")
    monkeypatch.setattr("vital_jax.construct.nifti.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^.mha is read by SimpleITK; pip install SimpleITK"):
        open_source(root, "nnunet").units()


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_volumes_of_itk_lie_as_nifti_does(tmp_path, ending):
    itk = pytest.importorskip("SimpleITK")
    values = np.random.default_rng(0).integers(-900, 900, (7, 6, 5)).astype(np.int16)
    image = itk.GetImageFromArray(values)
    image.SetSpacing((2.0, 1.5, 3.0))
    image.SetDirection((1, 0, 0, 0, 0, -1, 0, 1, 0))
    image.SetOrigin((3, 4, 5))
    for name in (f"b{ending}", "b.nii.gz"):
        itk.WriteImage(image, str(tmp_path / name), useCompression=True)
    found, wanted = (read_stack(tmp_path / name, name) for name in (f"b{ending}", "b.nii.gz"))
    np.testing.assert_array_equal(found.voxels, wanted.voxels)
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-5)
    data = (tmp_path / f"b{ending}").read_bytes()
    (tmp_path / f"c{ending}").write_bytes(data[: len(data) // 2])
    (tmp_path / f"d{ending}").write_bytes(
        data.replace(b"LOCAL", b"/etc/passwd")
        if ending == ".mha"
        else data.replace(b"endian:", b"data file: /etc/passwd\nendian:")
    )
    for name, reason in ((f"c{ending}", "cannot be read"), (f"d{ending}", "holds no values of its own")):
        with pytest.raises(Rejected, match=reason):
            read_stack(tmp_path / name, name)
