"""Which reader takes which folder: every folder of the real data, mixtures, names, and what is said where none does."""

import json
import shutil

import pytest

from vital_jax.construct.folders import MaskFolder
from vital_jax.construct.sample import Sample
from vital_jax.construct.source import Rejected
from vital_jax.construct.sources import KINDS, find_sources, kinds_of, open_source
from vital_jax.pipeline.records import Record

EXPECTED = {
    "biomedparse_demo": "biomedparse",
    "busi_breast_ultrasound": "manifest",
    "chase_db1_vessel": "manifest",
    "drishti_optic_disc_cup": "manifest",
    "dsb2018_histology_nuclei": "manifest",
    "hc18_fetal_head": "manifest",
    "isic2017_dermoscopy": "manifest",
    "kvasir_polyp": "manifest",
    "msd_task04_hippocampus": "msd",
    "msd_task08_hepaticvessel_2d": "manifest",
    "msd_task09_spleen": "msd",
    "oct_retina_polygons": "manifest",
    "sam_med2d_demo": "manifest",
    "sct_spinal_cord": "volumes",
    "shenzhen_cxr_lung": "manifest",
    "totalsegmentator_reference": "volumes",
    "vqa_rad": "vqa",
}
PICTURES = (".png", ".jpg", ".nii.gz", ".dcm")


def test_every_real_folder_has_exactly_its_reader(real):
    root = real("vqa_rad").parent
    with_pictures = {
        path.relative_to(root).parts[0] for path in root.rglob("*") if path.is_file() and path.name.endswith(PICTURES)
    }
    # Four pictures of a benchmark whose questions name none of them.
    assert with_pictures - {"mmmu_health"} == set(EXPECTED)
    found = find_sources(root)
    assert {source.name: source.kind for source in found} == EXPECTED and len(found) == len(EXPECTED)
    for folder in root.iterdir():
        if folder.is_dir():
            assert kinds_of(folder) == ([EXPECTED[folder.name]] if folder.name in EXPECTED else [])


@pytest.mark.parametrize("name", ["kvasir_polyp", "vqa_rad", "msd_task09_spleen", "busi_breast_ultrasound"])
def test_real_folders_are_digested_whole(real, name):
    source = open_source(real(name))
    items = [item for unit in source.units() for item in source.read(unit)]
    kinds = {type(item) for item in items} - {Rejected}
    assert kinds == ({Record} if name == "vqa_rad" else {Sample}) and items
    assert {item.code for item in items if isinstance(item, Rejected)} <= {"small-mask"}
    ids = [item.id for item in items if not isinstance(item, Rejected)]
    assert len(set(ids)) == len(ids) and all(key.startswith(f"{name}/") for key in ids)
    if name == "vqa_rad":
        assert len(items) == 1500


def lines(root, *rows):
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.jsonl").write_text(
        "\n".join(json.dumps({"modality": "CT", "site": "liver"} | row) for row in rows)
    )


IMAGE = {"id": "1", "image": "1.png", "masks": [{"target": "liver", "file": "m.png"}]}
SLICE = {"id": "2", "image": "2.dcm", "masks": [{"target": "liver", "file": "m.nii.gz"}]}
VOLUME = {"id": "3", "image": "3.nii.gz", "label": "3_seg.nii.gz", "labels": {"1": "liver"}}


@pytest.mark.parametrize(
    ("rows", "kinds"),
    [
        ([IMAGE], ["manifest"]),
        ([SLICE], ["dicom"]),
        ([VOLUME], ["volumes"]),
        ([IMAGE, SLICE], ["manifest", "dicom"]),
        ([VOLUME, IMAGE, SLICE], ["manifest", "volumes", "dicom"]),
    ],
)
def test_a_manifest_may_be_shared(tmp_path, rows, kinds):
    lines(tmp_path / "mixed", *rows)
    found = find_sources(tmp_path)
    assert [source.kind for source in found] == kinds
    names = [source.name for source in found]
    # The images keep their ids when volumes are added to their manifest.
    assert names == ["mixed", *(f"mixed-{kind}" for kind in kinds[1:])]
    assert [len([unit for unit in source.units() if unit.files]) for source in found] == [1] * len(kinds)
    if len(kinds) > 1:
        with pytest.raises(ValueError, match=rf"lines for {' and '.join(kinds)} in one manifest; name one"):
            open_source(tmp_path / "mixed")
    assert open_source(tmp_path / "mixed", kinds[-1]).kind == kinds[-1]


def test_folders_within_folders_and_their_names(tmp_path):
    lines(tmp_path / "amos22/CT", IMAGE)
    lines(tmp_path / "other/MRI", IMAGE)
    lines(tmp_path / "plain", IMAGE)
    lines(tmp_path / "plain/inside", IMAGE)
    lines(tmp_path / ".hidden", IMAGE)
    (tmp_path / "set/train").mkdir(parents=True)
    (tmp_path / "set/train_mask").mkdir()
    (tmp_path / "set/train_mask/x.png").touch()
    found = find_sources(tmp_path)
    assert [(source.name, source.kind) for source in found] == [
        ("amos22-CT", "manifest"), ("other-MRI", "manifest"), ("plain", "manifest"), ("set", "biomedparse"),
    ]  # fmt: skip
    assert [s.root for s in find_sources(tmp_path / "plain", tmp_path / "set")] == [found[2].root, found[3].root]
    with pytest.raises(ValueError, match="plain: given twice"):
        find_sources(tmp_path / "plain", tmp_path)
    shutil.copytree(tmp_path / "plain", tmp_path / "more/plain")
    names = [source.name for source in find_sources(tmp_path / "plain", tmp_path / "more/plain")]
    assert names == [f"{tmp_path.name}-plain", "more-plain"]
    shutil.copytree(tmp_path / "plain", tmp_path / "far/more/plain")
    with pytest.raises(ValueError, match="a second source called more-plain"):
        find_sources(tmp_path / "far/more/plain", tmp_path / "more/plain")


def test_options_and_what_is_said(tmp_path):
    lines(tmp_path / "set", IMAGE)
    source = open_source(tmp_path / "set", options={"licence": "CC0-1.0", "min_area": 5})
    assert isinstance(source, MaskFolder) and (source.licence, source.min_area) == ("CC0-1.0", 5)
    with pytest.raises(ValueError, match=r"manifest has no option 'window', only min_area, complete, licence, name"):
        open_source(tmp_path / "set", options={"window": 1})
    with pytest.raises(ValueError, match=r"unknown kind 'zip' of source: use nnunet, msd, records"):
        open_source(tmp_path / "set", "zip")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_sources(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for door in (open_source, find_sources):
        with pytest.raises(ValueError, match=r"empty: no reader takes this folder.*imagesTr.*X_mask.*manifest.jsonl"):
            door(tmp_path / "empty")


def test_every_reader_is_a_source():
    for kind, reader in KINDS.items():
        assert reader.kind == kind
        assert all(callable(getattr(reader, name)) for name in ("claims", "units", "read"))
