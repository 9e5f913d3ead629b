"""Rows and batches: the contract's shapes and dtypes, agreement with transformers' inputs, and every refusal."""

import io
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from columns import layout
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vital_jax.pipeline.batch import Encoder, Layout, batch_spec, collate, full_batch, table
from vital_jax.pipeline.images import ImageConfig
from vital_jax.pipeline.prompts import Prompter
from vital_jax.pipeline.segments import Segment, Suffix

LAYOUT = layout(latent_steps=4, chain=12, roi=5)
SHAPES = {
    "tokens": ((256,), np.int32),
    "lengths": ((), np.int32),
    "positions": ((3, 256), np.int32),
    "next_position": ((), np.int32),
    "patches": ((1024, 1536), np.float32),
    "patch_index": ((1024, 4), np.int32),
    "patch_weight": ((1024, 4), np.float32),
    "patch_coords": ((1024, 2), np.int32),
    "patch_segment": ((1024,), np.int32),
    "patch_target": ((256,), np.int32),
    "answer": ((16,), np.int32),
    "answer_mask": ((16,), np.bool_),
    "latent_steps": ((), np.int32),
    "chain": ((4, 12), np.int32),
    "chain_mask": ((4, 12), np.bool_),
    "roi": ((5,), np.float32),
    "roi_global": ((5,), np.float32),
    "roi_mask": ((), np.bool_),
    "index": ((), np.int32),
}


@pytest.fixture(scope="module")
def encoder(real):
    return Encoder.from_folder(real("model_configs") / "Qwen3-VL-8B-Instruct", max_pixels=65_536)


def picture(height: int, width: int, orientation: int = 1, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind, exif=exif)
    return file.getvalue()


def record(**changes) -> SimpleNamespace:
    """A stand-in with the attributes of a Record that rows are made from, free of its validation."""
    fields = {
        "id": "r1",
        "images": (picture(300, 420), picture(64, 500, orientation=6, kind="JPEG")),
        "question": "Is there a polyp?",
        "answer": "Yes.",
        "chain": ("A round shape.", "It is a polyp."),
        "metadata": {},
    }
    return SimpleNamespace(**fields | changes)


# --- a row ------------------------------------------------------------------------------------------------------------


def test_row_has_the_shapes_of_the_contract(encoder):
    row = encoder.encode(record(), LAYOUT, 7, roi=np.arange(5.0))
    assert {key: (np.shape(value), value.dtype) for key, value in row.items()} == {
        key: (shape, np.dtype(kind)) for key, (shape, kind) in SHAPES.items()
    }
    assert (row["index"], row["roi_mask"], row["roi"].tolist()) == (7, True, [0, 1, 2, 3, 4])
    bare = encoder.encode(record(), LAYOUT, 8)
    assert not bare["roi_mask"] and not bare["roi"].any()


def test_the_region_of_a_step_is_its_own_or_the_records(encoder):
    """Two steps in K = 4: what a record has of its own comes first, its region stands in, and zeros are unmasked nowhere."""
    asked = replace(LAYOUT, step_regions=True, record_steps=True)
    roi, own = np.arange(5.0), np.arange(15.0).reshape(3, 5) + 10
    for steps, region, expected, mask in (
        (own[:2], roi, [own[0], own[1], roi, roi], [True] * 4),
        ((), roi, [roi] * 4, [True] * 4),
        (own[:2], None, [own[0], own[1], 0 * roi, 0 * roi], [True, True, False, False]),
        ((), None, [0 * roi] * 4, [False] * 4),
    ):
        row = encoder.encode(record(), asked, 7, region, roi, steps)
        np.testing.assert_array_equal(row["roi_steps"], expected)
        assert row["roi_steps_mask"].tolist() == mask and row["record_steps"] == 2
        spec = batch_spec(asked, encoder.geometry, encoder.image_config.patch_dim)
        assert {name: (one.shape, np.dtype(one.dtype)) for name, one in spec.items()} == {
            name: (np.shape(value), value.dtype) for name, value in row.items()
        }
    cut = replace(layout(latent_steps=2, chain=12, roi=5, cut=True), step_regions=True, record_steps=True)
    row = encoder.encode(record(chain=("a.", "b.", "c.")), cut, 7, roi, roi, own)
    np.testing.assert_array_equal(row["roi_steps"], own[:2])
    assert row["record_steps"] == 2
    # Without a chain it is what the metadata states, otherwise K.
    for metadata, count in (({}, 4), ({"latent_steps": 3}, 3), ({"latent_steps": 0}, 0)):
        assert encoder.encode(record(chain=(), metadata=metadata), asked, 7)["record_steps"] == count
    none = encoder.encode(record(chain=()), replace(layout(roi=5), step_regions=True, record_steps=True), 7, roi, roi)
    assert none["roi_steps"].shape == (0, 5) and none["record_steps"] == 0
    with pytest.raises(ValueError, match=r"region feature of shape \(4,\) must be 5 finite numbers"):
        encoder.encode(record(), asked, 7, roi, roi, [np.zeros(4)])


def test_the_schema_is_what_rows_are(encoder):
    """One schema for rows, full batches and the documentation."""
    spec = batch_spec(LAYOUT, encoder.geometry, encoder.image_config.patch_dim)
    row = encoder.encode(record(), LAYOUT, 7)
    assert {name: (one.shape, np.dtype(one.dtype)) for name, one in spec.items()} == {
        name: (np.shape(value), value.dtype) for name, value in row.items()
    }
    full = full_batch(spec, 3)
    assert {name: value.shape for name, value in full.items()} == {n: (3, *one.shape) for n, one in spec.items()}
    assert full["latent_steps"].tolist() == [4] * 3 and full["lengths"].tolist() == [256] * 3
    assert full["answer_mask"].all() and full["chain_mask"].all() and full["patch_segment"].all()
    documented = (Path(__file__).parents[2] / "docs" / "batch.md").read_text()
    assert table(batch_spec(layout(1152, 4096, 64, 4, chain=96, roi=1152), encoder.geometry, 1536)) in documented
    lines = table(spec).splitlines()
    assert len(lines) == 2 + len(spec) and "| `answer` | [16] | int32 | answer: tokens; 0 on padding |" in lines


def test_row_holds_prompt_and_images_whole(encoder):
    sample = record()
    row, (needed, patches) = encoder.encode(sample, LAYOUT, 0), encoder.measure(sample)
    oracle = Qwen2VLImageProcessorPil.from_pretrained(
        encoder.prompter.folder, size={"shortest_edge": 65_536, "longest_edge": 65_536}
    )
    upright = [ImageOps.exif_transpose(Image.open(io.BytesIO(data))) for data in sample.images]
    expected = oracle(upright, return_tensors="np")
    assert patches == len(expected["pixel_values"]) and needed == row["lengths"]
    np.testing.assert_array_equal(row["patches"][:patches], expected["pixel_values"])
    grids = [tuple(grid) for grid in expected["image_grid_thw"].tolist()]
    np.testing.assert_array_equal(row["tokens"][:needed], encoder.prompter.encode(sample.question, grids))
    np.testing.assert_array_equal(np.flatnonzero(row["patch_segment"]), np.arange(patches))
    assert row["next_position"] == row["positions"].max() + 1
    for key in ("tokens", "positions"):
        assert not row[key][..., needed:].any()
    for key in ("patches", "patch_index", "patch_weight", "patch_coords", "patch_segment"):
        assert not row[key][patches:].any()


def test_every_image_token_gets_its_patch(encoder):
    row = encoder.encode(record(), LAYOUT, 0)
    pads = np.flatnonzero(row["tokens"] == encoder.prompter.image_token_id)
    target = row["patch_target"]
    np.testing.assert_array_equal(target[: len(pads)], pads)
    assert (target[len(pads) :] == LAYOUT.prefix).all()
    # Two independent ways to the same place: where a merged patch lies in its image, and the M-RoPE of its column.
    segment, place = row["patch_segment"][::4][: len(pads)], row["patch_coords"][::4][: len(pads)] // 2
    for number in (1, 2):
        columns = row["positions"][:, pads[segment == number]]
        np.testing.assert_array_equal(columns[1:] - columns[0], place[segment == number].T)


def test_answer_and_chain(encoder):
    row = encoder.encode(record(), LAYOUT, 0)
    tokens = encoder.prompter.tokenizer
    assert tokens.decode(row["answer"][row["answer_mask"]]) == "Yes.<|im_end|>"
    texts = [tokens.decode(step[mask]) for step, mask in zip(row["chain"], row["chain_mask"], strict=True)]
    assert texts == ["A round shape.<|im_end|>", "It is a polyp.<|im_end|>", "", ""]
    assert not row["answer"][~row["answer_mask"]].any() and not row["chain"][~row["chain_mask"]].any()


def test_chain_may_have_its_own_tokenizer(encoder):
    calls = []

    class Other:
        def encode_text(self, text, name):
            calls.append((text, name))
            return np.arange(3, dtype=np.int32)

    other = Encoder(encoder.prompter, encoder.image_config, encoder.geometry, chain_prompter=Other())
    row = other.encode(record(), LAYOUT, 0)
    assert calls == [("A round shape.", "record 'r1' chain step 1"), ("It is a polyp.", "record 'r1' chain step 2")]
    assert row["chain"][1, :4].tolist() == [0, 1, 2, 0] and row["chain_mask"].sum() == 6


@pytest.mark.parametrize(
    ("chain", "metadata", "cap", "count", "expected"),
    [
        (("a", "b"), {}, 4, "own", 2),
        (("a", "b"), {"latent_steps": 2}, 2, "own", 2),
        ((), {"latent_steps": 3}, 4, "own", 3),
        ((), {"latent_steps": 0}, 0, "own", 0),
        ((), {"latent_steps": 0}, 4, "own", 0),
        ((), {}, 4, "own", 4),
        (("a", "b"), {}, 4, "all", 4),
        ((), {"latent_steps": 1}, 3, "all", 3),
        (("a", "b"), {}, 0, "own", 0),
        ((), {"latent_steps": 3}, 0, "all", 0),
    ],
)
def test_latent_steps(encoder, chain, metadata, cap, count, expected):
    row = encoder.encode(record(chain=chain, metadata=metadata), layout(latent_steps=cap, chain=12, count=count), 0)
    assert row["latent_steps"] == expected
    if cap:
        assert row["chain_mask"].any(-1).tolist() == [k < len(chain) for k in range(cap)]
    else:
        assert "chain" not in row


def test_fixed_steps_below_the_chain(encoder):
    """Evaluation at a K below a record's own drops no supervision, because none is asked for; training at it would."""
    row = encoder.encode(record(), layout(latent_steps=1, count="all"), 0)
    assert row["latent_steps"] == 1 and "chain" not in row
    with pytest.raises(ValueError, match=r"record 'r1': the chain needs 2 latent steps \(K\), the budget is 1"):
        encoder.encode(record(), layout(latent_steps=1, chain=12, count="all"), 0)


def test_parts_can_be_left_out(encoder):
    row = encoder.encode(record(), Layout(256, 1024), 0)
    assert not {"answer", "answer_mask", "latent_steps", "chain", "chain_mask", "roi", "roi_mask"} & set(row)


def test_written_chains_have_a_line_for_each_step(encoder):
    """Sources of text segments: steps of the chain, each ended by a line break, and literal texts with control tokens."""
    parts = (
        Segment("tokens", "start", text="<|im_start|>"),
        Segment("tokens", "rest", 12, source="chain[1:]"),
        Segment("tokens", "answer", 16, source="answer"),
    )
    suffix = Suffix(parts).bound(encoder.prompter)
    assert suffix["start"].ids == (151644,) and suffix["start"].budget == 1
    row = encoder.encode(record(), Layout(256, 1024, suffix), 0)
    text = encoder.prompter.tokenizer.decode(row["rest"][row["rest_mask"]])
    assert text == "It is a polyp.\n" and "start" not in row
    assert encoder.measure_text(record())[2] == len(encoder.prompter.literal("A round shape.\nIt is a polyp.\n"))
    long = Layout(256, 1024, Suffix((Segment("tokens", "all", 5, source="chain[:]"),)))
    with pytest.raises(
        ValueError, match=r"record 'r1': the written chain needs 10 tokens \(segment 'all'\), the budget is 5"
    ):
        encoder.encode(record(), long, 0)


def test_system_message(encoder):
    spoken = Encoder(encoder.prompter, encoder.image_config, encoder.geometry, system="Be brief.")
    row = spoken.encode(record(), LAYOUT, 0)
    assert encoder.prompter.tokenizer.decode(row["tokens"][:20]).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert spoken.measure(record())[0] == row["lengths"] > encoder.measure(record())[0]


def test_window_of_deep_images(encoder):
    file = io.BytesIO()
    Image.fromarray(np.full((256, 256), 1500, np.uint16)).save(file, "PNG")
    row = encoder.encode(record(images=(file.getvalue(),), metadata={"window": [1000, 2000]}), LAYOUT, 0)
    np.testing.assert_allclose(row["patches"][:256], 128 / 255 * 2 - 1, atol=1e-6)  # 0.5 of 255 is 128 in 8 bits
    with pytest.raises(ValueError, match="record 'r1' image 0 is deeper than 8 bits"):
        encoder.encode(record(images=(file.getvalue(),), metadata={"window": "lung"}), LAYOUT, 0)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(300, 420), (30, 900), (1000, 990), (256, 256), (17, 3000)])
def test_measure_is_exact(encoder, size, orientation):
    sample = record(images=(picture(*size, orientation=orientation),), question="What is this, and where?")
    needed, patches = encoder.measure(sample)
    row = encoder.encode(sample, layout(needed, patches, 4, 2), 0)
    assert row["lengths"] == needed and (row["patch_segment"] == 1).all()
    with pytest.raises(ValueError, match=f"the budget is {needed - 1}"):
        encoder.encode(sample, layout(needed - 1, patches, 4, 2), 0)
    with pytest.raises(ValueError, match=f"the budget is {patches - 4}"):
        encoder.encode(sample, layout(needed, patches - 4, 4, 2), 0)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "budgets", "message"),
    [
        ({}, {"prefix": 50}, r"record 'r1': the prompt needs \d+ prefix tokens \(S\), the budget is 50; use a layout"),
        ({}, {"patches": 64}, r"record 'r1': images need \d+ patches, the budget is 64"),
        ({"answer": "yes " * 20}, {}, r"record 'r1': the answer needs 22 answer tokens \(T\), the budget is 16"),
        ({"chain": ("a", "b " * 12)}, {}, r"record 'r1': chain step 2 needs \d+ chain tokens \(C\), the budget is 12"),
        ({}, {"latent_steps": 1}, r"record 'r1': the reasoning needs 2 latent steps \(K\), the budget is 1"),
        ({"chain": tuple("abcde")}, {}, r"record 'r1': the reasoning needs 5 latent steps \(K\), the budget is 4"),
        ({"chain": (), "metadata": {"latent_steps": 9}}, {}, r"record 'r1': the reasoning needs 9 latent steps"),
        ({"images": (picture(9, 9), b"junk")}, {}, "record 'r1' image 1 is no image"),
        ({"question": "<|image_pad|>"}, {}, "record 'r1': the text contains the control token"),
        ({"answer": "<|im_end|>"}, {}, "record 'r1' answer: the text contains the control token"),
        ({"chain": ("<|im_end|>",)}, {}, "record 'r1' chain step 1: the text contains the control token"),
    ],
)
def test_refusals_name_the_record(encoder, changes, budgets, message):
    fields = {"prefix": 256, "patches": 1024, "answer": 16, "latent_steps": 4, "chain": 12} | budgets
    with pytest.raises(ValueError, match=message) as caught:
        encoder.encode(record(**changes), layout(**fields), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("roi", [np.zeros(4), np.zeros((1, 5)), np.array([0, 1, np.nan, 3, 4])])
def test_region_feature_must_fit(encoder, roi):
    with pytest.raises(ValueError, match=r"record 'r1': region feature .* must be 5 finite numbers"):
        encoder.encode(record(), LAYOUT, 0, roi=roi)


def test_bad_layouts():
    with pytest.raises(ValueError, match="chain is negative: -1"):
        Layout(1, 4, chain=-1)
    for made, message in (
        (lambda: Segment("text", "a"), "segment 'a': unknown kind 'text'; use one of tokens, latent, given, recorded"),
        (lambda: Segment("tokens", "a", source="chain[1]"), r"segment 'a': unknown source 'chain\[1\]'"),
        (lambda: Segment("latent", "z", 4, count="some"), "segment 'z': unknown count 'some'; use one of own, all"),
        (lambda: Suffix((Segment("tokens", "a"), Segment("tokens", "a"))), "two segments are named a"),
        (lambda: Suffix((Segment("tokens", "a", seen_by=("b",)),)), "no segment is named b; there are a"),
        (lambda: Suffix((Segment("tokens", "a", branch="b"),)), "no branch is named b"),
    ):
        with pytest.raises(ValueError, match=message):
            made()


def test_folders_that_do_not_belong_together(encoder, tmp_path, real):
    with pytest.raises(ValueError, match=r"config\.json merges 2 patches a side, the image processor 4"):
        Encoder(encoder.prompter, ImageConfig(merge_size=4), encoder.geometry)
    for path in encoder.prompter.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to(real("model_configs") / "Qwen3-1.7B" / "config.json")
    assert Prompter(tmp_path).image_token_id is None
    with pytest.raises(ValueError, match="model_type='qwen3' is not read as a backbone; use one of qwen3_vl"):
        Encoder.from_folder(tmp_path)


# --- a batch ----------------------------------------------------------------------------------------------------------


def test_collate(encoder):
    rows = [encoder.encode(record(id=f"r{i}", images=(picture(256, 256 + 32 * i),)), LAYOUT, i) for i in range(3)]
    batch = collate(rows)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        key: ((3, *shape), np.dtype(kind)) for key, (shape, kind) in SHAPES.items()
    }
    for i, row in enumerate(rows):
        assert all(np.array_equal(batch[key][i], row[key]) for key in row)
    with pytest.raises(ValueError, match="at least one row"):
        collate([])
    other = encoder.encode(record(), layout(300, latent_steps=4, chain=12, roi=5), 0)
    with pytest.raises(ValueError, match=r"tokens, positions differ in shape|positions, tokens differ in shape"):
        collate([rows[0], other])
    with pytest.raises(ValueError, match="roi differ in shape"):
        collate([rows[0], {key: value for key, value in rows[1].items() if key != "roi"}])
    with pytest.raises(ValueError, match="lengths differ in shape"):
        collate([rows[0], {key: value for key, value in rows[1].items() if key != "lengths"}])


def test_encoder_travels_to_workers(encoder):
    again = pickle.loads(pickle.dumps(encoder))
    assert again.measure(record()) == encoder.measure(record())


def test_real_records_fit_the_default_cap(real):
    """At the default cap no real image needs more than 4,096 patches, and each row carries its image to the last patch."""
    encoder = Encoder.from_folder(real("model_configs") / "Qwen3-VL-8B-Instruct")
    files = [min((real(folder) / "images").iterdir()) for folder in ("kvasir_polyp", "hc18_fetal_head")]
    files.append(min((real("biomedparse_demo") / "demo").iterdir()))
    for number, path in enumerate(files):
        sample = record(id=path.stem, images=(path.read_bytes(),))
        needed, patches = encoder.measure(sample)
        assert patches <= 4096
        row = encoder.encode(sample, layout(1088, 4096, 16, 4, chain=32), number)
        assert (row["patch_segment"] > 0).sum() == patches and row["lengths"] == needed
        assert abs(row["patch_weight"][:patches].sum(-1) - 1).max() < 1e-6
        assert row["patches"][:patches].any(-1).all()
