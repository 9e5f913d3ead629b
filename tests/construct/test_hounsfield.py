"""The unit of a CT's values, and what is shown where there is none; windows of values at and below zero."""

import json

import nibabel
import numpy as np
import pytest
from test_volumes import case, cut

from vital_jax.construct import factory, teacher
from vital_jax.construct.hounsfield import RELATIVE, SHIFTED, intensity
from vital_jax.construct.msd import Volumes
from vital_jax.construct.source import Rejected
from vital_jax.construct.teacher import Lesson
from vital_jax.construct.volumes import background_of, percentile_window
from vital_jax.pipeline.records import RecordSource

X, Y = np.indices((48, 64))
BODY, BALL = np.hypot((X - 24) / 20, (Y - 32) / 26) < 1, np.hypot(X - 22, Y - 22) < 9
NOISE = np.random.default_rng(0).normal(0, 12, (5, 48, 64))
HU = (np.where(BALL, 110, np.where(BODY, 40, -1000)) + NOISE).round()
SCALED = (HU + 1000) / 1110
CAPTURE = np.clip((HU + 160) / 400 * 255, 0, 255).round()
KINDS = {
    "Hounsfield": (HU, ""),
    "padded": (np.where(X == 0, -2048, HU), ""),
    "clipped as for training": (HU.clip(-160, 240), ""),
    "clipped at fat": (HU.clip(-100, 400), ""),
    "cropped to soft tissue": (HU[:, 10:38, 10:50], ""),
    "lung": (np.where(BODY, -850, 30) + NOISE.round(), ""),
    "lost intercept": (HU + 1024, SHIFTED),
    "lost intercept, no negative": ((HU + 1024).clip(0), SHIFTED),
    "clipped at zero": (HU.clip(0) * 3, RELATIVE),
    "8-bit capture": (CAPTURE, RELATIVE),
    "signed bytes": (np.where(X == 0, 255, CAPTURE) - 128, RELATIVE),
    "0 to 1": (SCALED.clip(0), RELATIVE),
    "-1 to 1": (2 * SCALED - 1, RELATIVE),
    "z-scored": ((HU - HU.mean()) / HU.std(), RELATIVE),
    "thousandths": (HU / 1000, RELATIVE),
    "16 bits stretched": ((HU - HU.min()) / np.ptp(HU) * 65535, RELATIVE),
    "offset of 32768": (HU + 32768, RELATIVE),
    "intercept twice": (HU - 1024, RELATIVE),
    "all equal": (HU * 0 + 30, ""),
    "nothing finite": (HU * np.nan, ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_unit_is_told_by_the_values(kind):
    values, told = KINDS[kind]
    assert intensity(values) == told


def labels():
    return np.broadcast_to(BALL, HU.shape).astype(np.uint8)


def shown(values, **options):
    samples, notes = cut(case(values.astype(np.float32), labels(), {"liver": [1]}, **options))
    return samples[2], notes


def test_a_lost_intercept_is_mended_and_noted():
    good, none = shown(HU)
    mended, notes = shown(HU + 1024)
    assert (good.image, good.window, none) == (mended.image, mended.window, [])
    assert [(note.code, note.file) for note in notes] == [("shifted-hounsfield", "image.nii.gz")]
    assert (good.intensity, mended.intensity) == ("", "shifted")


@pytest.mark.parametrize("kind", [kind for kind, (_, told) in KINDS.items() if told == RELATIVE])
def test_values_without_the_unit_keep_their_contrast_and_say_so(kind):
    sample, notes = shown(KINDS[kind][0])
    grey = np.asarray(sample.picture)[..., 0].astype(int)
    assert grey[BALL].mean() > 10 + grey[BODY & ~BALL].mean() > 20 + grey[~BODY & (X > 0)].mean()
    assert sample.intensity == "relative" and [note.code for note in notes] == ["not-hounsfield"]


MRI = np.where(BODY, np.where(BALL, 600, 350) + NOISE, 0)
MEAN, DEVIATION = MRI[:, BODY].mean(), MRI[:, BODY].std()


@pytest.mark.parametrize(
    "values",
    [
        np.where(
            BODY, (MRI - MEAN) / DEVIATION, 0
        ),  # z-scored over the body: the air keeps its 0, in the middle of the tissue
        (MRI - MRI.mean()) / MRI.std(),  # over everything
        MRI / 500 - 1,
        MRI - 450,
        np.where(BODY, MRI - 700, -700),  # nothing above zero
        np.where(BODY, MRI, -32768),  # padded
    ],
)
@pytest.mark.parametrize("modality", ["MRI", "ultrasound"])
def test_tissue_at_and_below_zero_is_shown_as_it_is_above(values, modality):
    plain, other = (shown(each, modality=modality)[0] for each in (MRI, values))
    first, second = (np.asarray(sample.picture)[..., 0].astype(int) for sample in (plain, other))
    assert np.abs(first - second).max() <= 3 and other.intensity == "" and (second[~BODY] == 0).all()


def test_a_few_negative_values_that_resampling_left_change_nothing():
    rung = MRI.copy()
    rung[:, 0, :20] = -40
    assert percentile_window(case(rung, labels()).stack) == percentile_window(case(MRI, labels()).stack)


def test_background_is_what_many_share():
    assert background_of(np.array([-1.0, 0, 0, 0, 2])) == 0 and background_of(np.array([0.0, 0, 3])) is None
    assert background_of(np.arange(-50.0, 50)) is None and background_of(np.array([])) is None
    with pytest.raises(Rejected, match="no-contrast"):
        percentile_window(case(HU * 0 - 3, labels()).stack)


# --- what is said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "noted"), [(HU, False), (HU / 1000, True)])
def test_nothing_is_said_about_density_without_the_unit(folder, tmp_path, monkeypatch, values, noted):
    original = teacher.teach

    def bold(question, *rest):
        lesson = original(question, *rest)
        return Lesson(("It is hypodense to its surroundings.", *lesson.chain[1:]), lesson.answer, lesson.slots)

    monkeypatch.setattr("vital_jax.construct.asking.teach", bold)
    folder({"label": {"liver": "l.nii.gz"}}, v=values, l=np.broadcast_to(BALL, HU.shape) * 1.0)
    settings = dict(shown=False, questions=3, val=0.0, test=0.0)
    if noted:
        with pytest.raises(ValueError, match="no record could be made"):
            factory.build(tmp_path / "out", [tmp_path / "set"], **settings)
    else:
        assert factory.build(tmp_path / "out", [tmp_path / "set"], **settings).set_aside == 0
    rows = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert {row["code"] for row in rows} == ({"not-hounsfield", "density-claim"} if noted else set())


def test_a_note_is_shown_and_kept_and_is_not_set_aside(folder, tmp_path, capsys):
    folder({"label": {"liver": "l.nii.gz"}}, v=HU + 1024, l=np.broadcast_to(BALL, HU.shape) * 1.0)
    out = tmp_path / "out"
    result = factory.build(out, [tmp_path / "set"], questions=3, val=0.0, test=0.0)
    assert result.set_aside == 0 and "v.nii.gz: values lie 1024 above Hounsfield units" in capsys.readouterr().err
    record = RecordSource(out / "records", "train")[0]
    assert record.metadata["intensity"] == "shifted" and record.metadata["window"] == [-15, 135]
    assert "| shifted-hounsfield |" in (out / "report.md").read_text()


# --- labels --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Writes a folder of one volume and its labels, and reads it."""
    tmp_path = tmp_path / "set"
    tmp_path.mkdir()
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])

    def write(row, **arrays):
        for name, values in {"v": HU, **arrays}.items():
            image = (
                values
                if isinstance(values, nibabel.Nifti1Image)
                else nibabel.Nifti1Image(values.T.astype(np.float32), affine)
            )
            nibabel.save(image, tmp_path / f"{name}.nii.gz")
        base = {"id": "a", "modality": "CT", "site": "abdomen", "image": "v.nii.gz"}
        (tmp_path / "manifest.jsonl").write_text(json.dumps(base | row))
        samples, rejected = [], []
        source = Volumes(tmp_path)
        for unit in source.units():
            try:
                for item in source.read(unit):
                    (rejected if isinstance(item, Rejected) else samples).append(item)
            except Rejected as reason:
                rejected.append(reason)
        return samples, rejected

    return write


@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
@pytest.mark.parametrize("high", [2, 3, 60, 104])
def test_a_label_map_that_was_saved_as_an_image_keeps_its_labels(folder, dtype, high):
    values = np.where(BALL, 1, np.where(BODY, high, 0)) * np.ones(HU.shape)
    image = nibabel.Nifti1Image(values.T, np.diag([-1.0, -1.0, 3.0, 1.0]))
    image.set_data_dtype(dtype)  # what loading and saving does: floats into whole numbers, by a slope
    row = {"label": "l.nii.gz", "labels": {"1": "liver", str(high): "spleen"}}
    samples, rejected = folder(row, l=image)
    assert rejected == [] and {sample.target for sample in samples} == {"liver", "spleen"}
    for sample in samples:
        assert sample.region.sum() == (BALL if sample.target == "liver" else BODY & ~BALL).sum()


def test_probabilities_are_no_labels_whatever_their_slope(folder):
    for dtype in (np.int16, np.uint8, np.float32):
        image = nibabel.Nifti1Image(np.linspace(0, 2, HU.size).reshape(HU.T.shape), np.diag([-1.0, -1.0, 3.0, 1.0]))
        image.set_data_dtype(dtype)
        samples, rejected = folder({"label": "l.nii.gz", "labels": {"1": "liver", "2": "spleen"}}, l=image)
        assert samples == [] and [r.code for r in rejected] == ["unknown-label"]


@pytest.mark.parametrize("fault", ["value", "meaning", "shape", "half", "absent"])
def test_one_label_file_that_cannot_be_used_costs_only_itself(folder, fault):
    good = np.broadcast_to(BALL, HU.shape) * 1.0
    bad = {"value": good * 3, "meaning": good * 3, "shape": good[:4], "half": good / 2, "absent": good}[fault]
    row = {"label": {"liver": "l.nii.gz", "spleen": "s.nii.gz"}}
    if fault == "value":
        row["labels"] = {"spleen": {"1": "spleen"}, "liver": {"1": "liver"}}
    if fault == "absent":
        row["label"]["spleen"] = "nowhere.nii.gz"
    samples, rejected = folder(row, l=good, s=bad)
    assert samples and {sample.target for sample in samples} == {"liver"}
    codes = {"shape": "size-mismatch", "absent": "missing-file"}
    assert [r.code for r in rejected] == [codes.get(fault, "unknown-label")] and rejected[0].file != "l.nii.gz"
