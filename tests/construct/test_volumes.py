"""Slices, windows and masks cut from volumes, on stacks made here; the tables that they are cut by."""

import io

import numpy as np
import pytest
from PIL import Image

from vital_jax.construct.nifti import Stack
from vital_jax.construct.source import Rejected
from vital_jax.construct.targets import load_targets
from vital_jax.construct.volumes import (
    Case,
    Channel,
    Cutter,
    Labels,
    ct_window,
    load_tables,
    mirrored,
    percentile_window,
)

BOTH = {"liver": [1, 2], "spleen": [3], "kidney": [4]}


def stack(values, spacing=(5, 1, 1), slope=1.0, intercept=0.0):
    return Stack(np.asarray(values), slope, intercept, np.diag([*spacing, 1.0]))


def case(values, labels, targets=BOTH, modality="CT", site="abdomen", channels=None, **options):
    maps = [Labels("labels.nii.gz", np.asarray(labels), targets)]
    channels = channels or [Channel(None, modality)]
    return Case("case", "image.nii.gz", stack(values, **options), maps, channels, site, "patient", "CC0-1.0")


@pytest.fixture
def labels():
    """[6, 40, 60] uint8: a liver (1) with a part of another value (2) on the left, a spleen (3) on the right in few slices."""
    found = np.zeros((6, 40, 60), np.uint8)
    found[:, 5:25, 5:25] = 1
    found[2:, 10:14, 10:14] = 2
    found[3, 10:20, 45:56] = 3
    found[4, 10:20, 45:54] = 3
    return found


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(-200, 300, (6, 40, 60)).astype(np.int16)


def cut(what, **options):
    found = list(Cutter(**options).cut(what, "set"))
    return [x for x in found if not isinstance(x, Rejected)], [x for x in found if isinstance(x, Rejected)]


def refused(code, what, **options):
    with pytest.raises(Rejected) as caught:
        cut(what, **options)
    assert caught.value.code == code, caught.value
    return str(caught.value)


# --- windows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "site", "window"),
    [
        ("left upper lung lobe", "trunk", (-1350, 150)),
        ("right lung", "trunk", (-1350, 150)),
        ("lung tumor", "lung", (-1350, 150)),
        ("liver", "trunk", (-15, 135)),
        ("hepatic vessels", "liver", (-15, 135)),
        ("T12 vertebra", "trunk", (-500, 1300)),
        ("left rib 3", "chest", (-500, 1300)),
        ("brain tumor", "brain", (0, 80)),
        ("heart", "chest", (-160, 240)),
        ("spleen", "abdomen", (-160, 240)),
        ("spleen", "nowhere", (-160, 240)),
    ],
)
def test_ct_window_is_that_of_the_organ(target, site, window):
    assert ct_window(target, site) == window


def test_percentiles_are_of_the_whole_foreground():
    values = np.zeros((4, 100, 100), np.int16)
    values[1:3] = np.arange(1, 10_001).reshape(100, 100)
    low, high = percentile_window(stack(values))
    assert low == pytest.approx(50.5, rel=0.02) and high == pytest.approx(9950.5, rel=0.001)
    assert percentile_window(stack(values, slope=2.0)) == pytest.approx((2 * low, 2 * high), rel=0.001)
    assert percentile_window(stack(np.stack([values, values * 0], -1)), 0) == pytest.approx((low, high))
    with pytest.raises(Rejected, match="no-contrast"):
        percentile_window(stack(values * 0 + 7))


def test_percentiles_of_a_large_volume_come_from_a_part_of_every_slice():
    values = np.random.default_rng(0).normal(1000, 100, (40, 400, 400)).astype(np.float32)
    low, high = percentile_window(stack(values))
    exact = np.percentile(values, (0.5, 99.5))
    assert (low, high) == pytest.approx(tuple(exact), rel=0.005)


def test_image_shows_the_window_and_says_so(values, labels):
    samples, _ = cut(case(values, labels))
    for sample in samples:
        low, high = sample.window
        expected = np.rint(np.clip((values[int(sample.id.split("/")[2])] - low) / (high - low), 0, 1) * 255)
        np.testing.assert_array_equal(np.asarray(sample.picture)[..., 0], expected)
        assert Image.open(io.BytesIO(sample.image)).mode == "L"
    assert {sample.target: sample.window for sample in samples} == {"liver": (-15, 135), "spleen": (-160, 240)}


def test_mri_takes_percentiles_and_values_that_are_none_are_black(values, labels):
    values = values.astype(np.float32) + 400
    values[:, 0, 0] = np.nan
    sample = cut(case(values, labels, modality="MRI"))[0][0]
    assert sample.window == pytest.approx((202, 697), abs=3) and sample.picture.getpixel((0, 0)) == (0, 0, 0)


# --- slices and masks ----------------------------------------------------------------------------------


def test_a_sample_per_target_and_slice_with_everything_that_is_marked(values, labels):
    samples, rejects = cut(case(values, labels))
    assert not rejects and len({sample.id for sample in samples}) == len(samples)
    assert [sample.id for sample in samples if sample.target == "spleen"] == ["set/case/3/spleen"]
    assert [sample.id for sample in samples if sample.target == "liver"] == [f"set/case/{z}/liver" for z in range(6)]
    by_id = {sample.id: sample for sample in samples}
    spleen, liver = by_id["set/case/3/spleen"], by_id["set/case/4/liver"]
    np.testing.assert_array_equal(spleen.region, labels[3] == 3)
    # An organ holds its parts; one that is too small for a sample of its own is present, but nothing is measured against it.
    np.testing.assert_array_equal(liver.region, (labels[4] == 1) | (labels[4] == 2))
    assert liver.present == ("liver", "spleen") and not liver.others
    np.testing.assert_array_equal(by_id["set/case/3/liver"].others["spleen"], labels[3] == 3)
    assert by_id["set/case/0/liver"].present == ("liver",) and not by_id["set/case/0/liver"].neighbours
    assert (spleen.group, spleen.source, spleen.licence) == ("set/patient", "set", "CC0-1.0")
    assert (spleen.target_type, spleen.modality, spleen.site) == ("organ", "CT", "abdomen")
    assert (spleen.orientation, spleen.spacing, spleen.absent) == ("radiological", (1, 1), ())


def test_absence_is_only_stated_where_the_source_is_complete(values, labels):
    by_id = {sample.id: sample for sample in cut(case(values, labels), complete=True)[0]}
    assert by_id["set/case/0/liver"].absent == ("spleen", "kidney")
    assert by_id["set/case/4/liver"].absent == ("kidney",)


def test_kept_slices_are_few_and_evenly_spread():
    area = np.full(100, 150)
    area[:10] = 99
    assert Cutter().pick(area) == [15, 26, 38, 49, 60, 71, 83, 94]
    assert Cutter(max_slices=0, stride=30).pick(area) == [10, 40, 70]
    assert Cutter(max_slices=2, stride=30).pick(area) == [10, 70]
    assert len(Cutter(max_slices=0, min_area=99).pick(area)) == 100
    assert Cutter().pick(np.array([99, 100, 5])) == [1]
    with pytest.raises(ValueError, match="stride 0"):
        Cutter(stride=0)


def test_pixels_become_squares_only_where_they_are_far_from_it(values, labels):
    near = cut(case(values, labels, spacing=(5, 1.04, 1)))[0][0]
    assert near.picture.size == (60, 40) and near.spacing == (1.04, 1)
    sample = next(s for s in cut(case(values, labels, spacing=(5, 3, 1)))[0] if s.id == "set/case/0/liver")
    assert sample.picture.size == (60, 120) and sample.spacing == (1, 1)
    np.testing.assert_array_equal(sample.region, np.repeat(labels[0] == 1, 3, axis=0))


def test_channels_show_their_own_targets():
    labels = np.zeros((1, 20, 20), np.uint8)
    labels[0, :12, :12] = 1
    values = np.zeros((1, 20, 20, 2), np.float32)
    values[..., 0] = np.arange(400).reshape(20, 20)
    values[0, ..., 1] = values[0, ..., 0].T
    channels = [Channel(0, "MRI-FLAIR", ("edema",)), Channel(1, "MRI-T2")]
    samples, _ = cut(case(values, labels, {"edema": [1], "spinal cord": [1]}, channels=channels))
    assert [sample.id for sample in samples] == [
        "set/case-MRI-FLAIR/0/edema",
        "set/case-MRI-T2/0/edema",
        "set/case-MRI-T2/0/spinal cord",
    ]
    first, second = (np.asarray(sample.picture)[..., 0].astype(int) for sample in samples[:2])
    np.testing.assert_array_equal(first, second.T)
    assert samples[0].modality == "MRI-FLAIR" and samples[0].present == ("edema", "spinal cord")


def test_channels_that_do_not_fit_are_refused(values, labels):
    four = np.stack([values] * 2, axis=-1)
    assert "nothing says which" in refused("unreadable-volume", case(four, labels))
    for wrong in (2, -1):
        refused("unreadable-volume", case(four, labels, channels=[Channel(wrong, "MRI")]))
    refused("unreadable-volume", case(values, labels, channels=[Channel(0, "MRI")]))


# --- what is refused -----------------------------------------------------------------------------------


def test_labels_outside_the_table_refuse_the_volume(values, labels):
    labels[0, 0, :3] = 9
    assert "9" in refused("unknown-label", case(values, labels))


def test_targets_that_give_nothing_are_named_and_the_rest_goes_on(values, labels):
    labels[0, 30:35, 30:35] = 4
    samples, rejects = cut(case(values, labels, {**BOTH, "gizmo": [5]}))
    assert samples and [(r.code, "kidney: at most 25" in str(r)) for r in rejects] == [("small-mask", True)]
    labels[1, 30:35, 30:35] = 5
    samples, rejects = cut(case(values, labels, {**BOTH, "gizmo": [5]}))
    assert sorted(r.code for r in rejects) == ["small-mask", "unknown-target"] and "gizmo" in str(rejects)
    assert all("gizmo" not in sample.present for sample in samples)


def test_volumes_that_cannot_be_used(values, labels):
    refused("empty-mask", case(values, labels * 0))
    refused("unknown-modality", case(values, labels, modality="SPECT"))
    refused("no-contrast", case(values * 0, labels, modality="MRI"))


def test_a_target_in_two_maps_is_taken_from_the_first(values, labels):
    other = np.where(labels == 3, 1, 0).astype(np.uint8)
    maps = [Labels("all", labels, BOTH), Labels("one", other, {"liver": [1]})]
    found = Case("case", "image", stack(values), maps, [Channel(None, "CT")], "abdomen", "patient")
    sample = next(s for s in cut(found)[0] if s.id == "set/case/3/liver")
    np.testing.assert_array_equal(sample.region, np.isin(labels[3], (1, 2)))


def test_organs_on_the_wrong_side_show_a_mirrored_stack(labels):
    assert mirrored([Labels("a", labels, BOTH)]) == ""
    assert mirrored([Labels("a", labels[..., ::-1], BOTH)]) == "liver, spleen on the wrong side of the body"
    middle = np.zeros((1, 40, 60), np.uint8)
    middle[0, :, 28:37] = 1
    assert mirrored([Labels("a", middle, BOTH)]) == ""  # a crop; nothing is shown by it
    crop = np.concatenate([middle[:, :, ::-1] * 0, labels[3:4, :, ::-1]])
    crop[:, :, :30][crop[:, :, :30] == 3] = 0
    crop[0, 10:20, 50:58] = 3
    assert mirrored([Labels("a", crop, BOTH)]) == ""  # the spleen is where it should be


# --- the tables ----------------------------------------------------------------------------------------


def test_every_target_of_the_tables_has_its_facts():
    targets, tables = load_targets(), load_tables()
    names = {name for row in tables["tasks"].values() for name in row["targets"]}
    names |= {name for row in tables["label_sets"].values() for name in row["targets"]}
    names |= {name for side in tables["sides"].values() for name in side}
    assert {name: targets.canonical(name) for name in names} == {name: name for name in names}
    modalities = [row.get("modality") for row in tables["tasks"].values()]
    modalities += [c["modality"] for row in tables["tasks"].values() for c in row.get("channels", {}).values()]
    assert {targets.family(name) for name in modalities if name} == {"CT", "MRI"}
    assert all(row["site"] in targets.sites for row in tables["tasks"].values())


def test_every_label_of_a_task_belongs_to_a_target():
    for key, row in load_tables()["tasks"].items():
        used = {value for values in row["targets"].values() for value in values}
        assert used == set(range(1, len(row["labels"]))), key
        asked = [
            target for channel in row.get("channels", {}).values() for target in channel.get("targets", row["targets"])
        ]
        assert not asked or set(asked) == set(row["targets"]), key
    assert len(load_tables()["tasks"]) == 10


def test_broken_tables_are_named(tmp_path):
    (tmp_path / "t.json").write_text('{"format_version": 1}')
    with pytest.raises(ValueError, match=r"t\.json"):
        load_tables(tmp_path / "t.json")
