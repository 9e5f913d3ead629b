"""`vital_jax.load(folder).answer(...)` against the answers of training's preview, a plain forward pass, and its user's mistakes.

The run is not trained: its checkpoint is written from drawn parameters, with leaves in every place a run may keep them (trained in
this phase, held from an earlier one, base). Random weights answer nonsense; a wrong leaf, position or bucket makes it other nonsense.
"""

import dataclasses
import io
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import vital_jax
from configs import vital as recipe
from vital_jax import api
from vital_jax.evaluate.preview import answers
from vital_jax.hub import peft, tiny
from vital_jax.hub.export import export
from vital_jax.hub.load import fingerprint
from vital_jax.hub.safetensors import read_folder, write_file
from vital_jax.latent import engine
from vital_jax.methods.base import settings_of
from vital_jax.models.config import LoraConfig
from vital_jax.models.families import read_config
from vital_jax.pipeline.batch import Encoder, Layout, collate
from vital_jax.pipeline.families import rope_index
from vital_jax.pipeline.feed import Feed
from vital_jax.pipeline.records import Record, RecordSource, write_records
from vital_jax.run import setup
from vital_jax.run.open import open_run
from vital_jax.training.checkpoint import OTHER_PHASES, Checkpoints, make_meta
from vital_jax.training.config import resolved
from vital_jax.training.optimizer import make_optimizer
from vital_jax.training.partition import flatten, merge, split, unflatten
from vital_jax.training.sharding import make_mesh
from vital_jax.training.step import init_state

QUESTIONS = ("What is shown in the upper left of this image, and where?", "Is it brighter than its surroundings?")
SIZES = ((96, 64), (64, 64))
NORM = "base/language_model/norm/.*"
TABLE = ((NORM, "trainable"), ("base/(?!language_model/norm/).*", "frozen"), ("scaffold/.*", "trainable"))


def picture(size, seed=0):
    """Noise of this width and height: every patch differs."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def png(size, seed=0):
    buffer = io.BytesIO()
    picture(size, seed).save(buffer, "PNG")
    return buffer.getvalue()


def configuration(work):
    """Two phases: the first trains adapters, the second holds them and trains the rest."""
    config = recipe.get_config()
    config.workdir = str(work / "run")
    config.model.update(
        folder=str(work / "base"), text_decoder=str(work / "text"), dtype="float32", param_dtype="float32"
    )
    config.lora.update(rank=4, alpha=8.0, dropout=0.5)
    config.data.update(max_pixels=96 * 64, buckets=((96, 24), (96, 32)), answer=10, chain=8)
    config.method = ConfigDict(settings_of(config.method.to_dict()))
    losses = dict(steps=1, weights=ConfigDict(dict(text=1.0, visual=0.1)))
    config.phases = (
        recipe.phase("one step", 1, 0, table=(*TABLE, ("lora/.*", "trainable")), latent_steps=1, **losses),
        recipe.phase("two steps", 2, 0, table=(*TABLE, ("lora/.*", "frozen")), latent_steps=2, **losses),
    )
    return config


def write_run(work):
    """Writes models and the checkpoints of a run under `work`; returns its configuration, method and parameters."""
    config = configuration(work)
    tiny.write_backbone(work / "base", QUESTIONS, width=64, layers=2, vocab=300)
    tiny.write_text_decoder(work / "text", work / "base", width=32, layers=1)
    method, tables = setup.make_method(config, 12), setup.tables(config)
    draw = np.random.default_rng(1)
    params = flatten(setup.load_params(config, method, make_mesh(devices=jax.devices()[:1])))
    # Away from the start, where adapters do nothing and trained leaves equal the base's.
    move = lambda path: path.startswith(("lora", "scaffold/pj_in")) or path == NORM.replace(".*", "scale")  # noqa: E731
    params = unflatten(
        {p: x + 0.3 * draw.normal(size=x.shape).astype(np.float32) if move(p) else x for p, x in params.items()}
    )
    ever = setup.trained(tables, params)
    with Checkpoints(work / "run" / "checkpoints") as checkpoints:
        for index, step in enumerate((1, 2)):
            trainable, frozen = split(params, tables[index])
            state = {
                **init_state(trainable, make_optimizer(1e-3, 2)),
                OTHER_PHASES: setup.of_other_phases(frozen, ever),
            }
            checkpoints.save(step, state, make_meta(
                resolved(config), fingerprint(config.model.folder), "vital", setup.switches(config), index, step
            ))  # fmt: skip
            checkpoints.wait()
    return config, method, merge(trainable, frozen)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("answer")


@pytest.fixture(scope="module")
def run(work):
    return write_run(work)


@pytest.fixture(scope="module")
def model(run, work):
    return vital_jax.load(work / "run")


@pytest.fixture(scope="module")
def both(model):
    """Two questions about images of different sizes in one call."""
    return model.answer([png(size, i) for i, size in enumerate(SIZES)], list(QUESTIONS))


def test_it_answers_as_training_shows(run, work, both):
    config, method, params = run
    records = [Record(f"r{i}", (png(size, i),), QUESTIONS[i], "Yes.") for i, size in enumerate(SIZES)]
    write_records(records, work / "records")
    d = config.data
    encoder = Encoder.from_folder(config.model.folder, d.max_pixels)
    feed = Feed(RecordSource(work / "records"), encoder, None, tuple(d.buckets), d.answer, d.chain)
    shown = [row["answer"] for row in answers(method, params, feed, [0, 1], 2, batch=2)]
    assert [answer.text for answer in both] == shown
    assert shown[0] != shown[1]
    assert [answer.latent_steps for answer in both] == [2, 2] and both[0].steps is None


def test_parameters_are_those_of_the_run_and_no_more(run, model, both):
    _, _, params = run
    found, expected = flatten(model.params), flatten({name: params[name] for name in ("base", "lora")})
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        assert leaf.dtype == expected[path].dtype
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


@pytest.mark.parametrize("form", ["path", "bytes", "bytearray", "pillow", "list"])
def test_one_question_alone_is_answered_as_among_others(work, model, both, form):
    data = png(SIZES[0])
    (work / "image.png").write_bytes(data)
    image = {
        "path": work / "image.png",
        "bytes": data,
        "bytearray": bytearray(data),
        "pillow": Image.open(io.BytesIO(data)),
        "list": [str(work / "image.png")],
    }[form]
    alone = model.answer(image, QUESTIONS[0])
    assert (alone.text, alone.tokens) == (both[0].text, both[0].tokens)
    assert alone.log_prob == pytest.approx(both[0].log_prob, abs=1e-3)


def test_a_turned_photograph_is_upright_as_file_and_as_pillow_image(model):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    picture((64, 96)).save(buffer, "TIFF", exif=exif)
    upright = picture((64, 96)).transpose(Image.Transpose.ROTATE_270)
    expected = model.answer(upright, QUESTIONS[0])
    assert model.answer(buffer.getvalue(), QUESTIONS[0]) == expected
    assert model.answer(Image.open(buffer), QUESTIONS[0]) == expected
    assert model.answer(picture((64, 96)), QUESTIONS[0]) != expected


def test_calls_of_similar_size_share_a_program(model, both):
    model.answer(png((64, 64)), QUESTIONS[1])
    before = engine.respond._cache_size()
    model.answer(png((64, 32)), "What is it?")
    model.answer([png((64, 64))] * 3, ["What?"] * 3, batch=2)
    assert engine.respond._cache_size() == before


def test_without_latents_it_is_the_plain_model(run, model):
    """K = 0: every token is the largest logit of one forward pass over prompt and answer, and log_prob is their sum."""
    _, method, params = run
    answer = model.answer(png(SIZES[0]), QUESTIONS[0], latent_steps=0)
    assert answer.latent_steps == 0 and answer.complete == (answer.tokens[-1] == model.encoder.prompter.end_token_id)
    encoder, record = model.encoder, Record("r", (png(SIZES[0]),), QUESTIONS[0], "-")
    row = encoder.encode(record, Layout(128, 64), 0)
    n, T = int(row["lengths"]), len(answer.tokens)
    ids = np.concatenate([row["tokens"][:n], answer.tokens[:-1]]).astype(np.int32)
    positions, _ = rope_index(ids, [(1, 4, 6)], encoder.prompter.image_token_id, encoder.prompter.merge_size)
    row["tokens"] = np.pad(ids, (0, 128 - len(ids)))
    row["positions"] = np.pad(positions, ((0, 0), (0, 128 - len(ids))))
    row["lengths"] = np.int32(len(ids))
    variables = {"params": params["base"], "lora": params["lora"]}
    logits = jax.jit(method.model.apply)(variables, collate([row]))[0, n - 1 : n - 1 + T]
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1), answer.tokens)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.array(answer.tokens)[:, None], axis=-1)
    assert answer.log_prob == pytest.approx(float(chosen.sum()), abs=1e-3)


def test_a_plain_folder_answers_without_latents(run, work):
    plain = vital_jax.load(work / "base")
    answer = plain.answer([png(SIZES[0]), png(SIZES[1], 1)], QUESTIONS[0], max_new_tokens=4)
    assert answer.latent_steps == 0 and 1 <= len(answer.tokens) <= 4
    assert flatten(plain.params).keys() == {p for p in flatten(run[2]) if p.startswith("base/")}
    with pytest.warns(UserWarning, match="latent_steps=1: this model was trained without latent steps"):
        assert plain.answer(png(SIZES[0]), QUESTIONS[0], latent_steps=1, max_new_tokens=4).latent_steps == 1
    with pytest.raises(ValueError, match="base model without latent steps"):
        vital_jax.load(work / "base", steps=True)


def in_type(folder, out, dtype):
    """A copy of a backbone's folder whose weights are stored in this type."""
    shutil.copytree(folder, out)
    held = {name: tensor.rows().astype(dtype) for name, tensor in read_folder(folder).items()}
    write_file(out / "model.safetensors", held)
    return out


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(
    "stored, asked, computed, kept",
    [
        ("float32", None, "float32", "float32"),
        ("bfloat16", None, "bfloat16", "bfloat16"),
        ("float16", None, "float32", "float16"),
        ("bfloat16", "float32", "float32", "bfloat16"),
        ("float32", "bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_what_says_nothing_is_computed_in_what_is_stored(run, work, tmp_path, adapter, stored, asked, computed, kept):
    """A plain folder, and an adapter that PEFT trained elsewhere on it: no vital.json says a type."""
    folder = in_type(work / "base", tmp_path / "base", jnp.dtype(stored))
    options = {"dtype": asked}
    if adapter:
        settings, leaves = LoraConfig(4, 8.0), flatten(run[2]["lora"])
        names = {path: leaf.names for path, leaf in peft.adapter_leaves(read_config(folder), settings).items()}
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / peft.CONFIG).write_text(json.dumps(peft.adapter_config(leaves, settings, "base")))
        held = {name: leaves[path][layer] for path in leaves for layer, name in enumerate(names[path])}
        write_file(tmp_path / "out" / peft.WEIGHTS, {name: np.asarray(x) for name, x in held.items()})
        folder, options = tmp_path / "out", {**options, "base": folder}
    model = vital_jax.load(folder, **options)
    assert model.dtype == np.dtype(model.method.model.dtype).name == computed
    assert {np.dtype(x.dtype).name for x in jax.tree.leaves(model.params["base"])} == {kept}
    with pytest.raises(ValueError, match="dtype='float64': use float32 or bfloat16"):
        vital_jax.load(folder, **{**options, "dtype": "float64"})


def test_float32_weights_are_answered_in_float32(run, work):
    """As transformers answers them: log-probabilities are those of its own forward pass, which bfloat16 misses by far more."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen3VLForConditionalGeneration

    plain = vital_jax.load(work / "base")
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(
        work / "base", dtype=torch.float32, local_files_only=True
    ).eval()
    question, image = QUESTIONS[0], png(SIZES[0])
    answers = {
        name: vital_jax.load(work / "base", dtype=name).answer(image, question, max_new_tokens=6) for name in api.TYPES
    }
    answer = plain.answer(image, question, max_new_tokens=6)
    row = plain.encoder.encode(Record("r", (image,), question, "-"), Layout(128, 64), 0)
    n, patches = int(row["lengths"]), int((row["patch_target"] < 128).sum()) * 4
    ids = torch.tensor([[*row["tokens"][:n], *answer.tokens]]).long()
    given = dict(
        input_ids=ids,
        pixel_values=torch.from_numpy(row["patches"][:patches]),
        image_grid_thw=torch.tensor([[1, 4, 6]]),
        mm_token_type_ids=(ids == plain.encoder.prompter.image_token_id).int(),
    )
    with torch.no_grad():
        scores = torch.log_softmax(theirs(**given).logits[0, n - 1 : -1].double(), -1)
    expected = float(scores[range(len(answer.tokens)), list(answer.tokens)].sum())
    assert answer.log_prob == pytest.approx(expected, abs=1e-4)
    assert answers["float32"] == answer
    assert abs(answers["bfloat16"].log_prob - expected) > 1e-3


def test_a_run_computes_as_it_was_trained_or_as_asked(run, work, both):
    found = vital_jax.load(work / "run", dtype="bfloat16")
    assert (found.dtype, vital_jax.load(work / "run").dtype) == ("bfloat16", "float32")
    alone = found.answer(png(SIZES[0]), QUESTIONS[0])
    assert abs(alone.log_prob - both[0].log_prob) > 1e-3
    assert open_run(work / "run").meta["config"]["model"]["dtype"] == "float32"


def test_questions_asked_otherwise_than_taught_or_evaluated_are_said(model, work):
    taught = "this model was taught with each record's own number of latent steps, which nobody knows in use: from 1 to 2; asked with K = 2"
    assert model.otherwise(2).startswith(taught)
    for K in (0, 1):
        said = f"latent_steps={K}: this model was trained with up to 2 latent steps; it is evaluated with 2"
        with pytest.warns(UserWarning, match=said):
            assert model.steps(K) == K
    with pytest.warns(UserWarning, match=taught):
        assert model.steps(None) == 2
    own = "asked with each record's own number of latent steps, which nobody knows in use"
    with pytest.warns(UserWarning, match=own):
        assert model.steps(None, "per_sample") == 2
    as_taught = dataclasses.replace(model, method=dataclasses.replace(model.method, train_k="phase_max"))
    assert as_taught.otherwise(2) == vital_jax.load(work / "base").otherwise(0) == ""


def test_steps_are_what_the_text_decoder_reads(run, work, both, monkeypatch):
    _, method, params = run
    read = vital_jax.load(work / "run", steps=True)
    given = {}

    def spy(decoder, scaffold, z, length, end):
        given.update(decoder=decoder, scaffold=scaffold, z=z, length=length, end=end)
        ids = [read.reader.prompter.encode_text(word) for word in ("upper left", "brighter")]
        return np.array([[np.pad(row, (0, 8 - len(row)), constant_values=end) for row in ids]] * len(z))

    monkeypatch.setattr(api, "_read_steps", spy)
    found = read.answer([png(size, i) for i, size in enumerate(SIZES)], list(QUESTIONS))
    assert [answer.text for answer in found] == [answer.text for answer in both]
    assert [answer.steps for answer in found] == [["upper left", "brighter"]] * 2
    assert given["z"].shape == (2, 2, 64) and float(jnp.abs(given["z"]).min(axis=-1).max()) > 0
    assert (given["length"], given["decoder"].config) == (8, method.decoder.config)
    scaffold = {name: params["scaffold"][name] for name in ("pj_in", "text_decoder")}
    jax.tree.map(np.testing.assert_array_equal, given["scaffold"], scaffold)
    assert read.answer(png(SIZES[0]), QUESTIONS[0], latent_steps=0).steps == []


def test_an_export_answers_and_reads_its_steps_as_the_run_does(run, work, both, tmp_path):
    export(open_run(work / "run"), tmp_path / "out", dtype="float32")
    found = vital_jax.load(tmp_path / "out", steps=True)
    answers = found.answer([png(size, i) for i, size in enumerate(SIZES)], list(QUESTIONS))
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in both]
    assert [answer.log_prob for answer in answers] == pytest.approx([answer.log_prob for answer in both], abs=1e-3)
    own = vital_jax.load(work / "run", steps=True).answer(png(SIZES[0]), QUESTIONS[0])
    assert answers[0].steps == own.steps and len(own.steps) == 2
    with pytest.raises(ValueError, match="is an export: it brings its text decoder along"):
        vital_jax.load(tmp_path / "out", text_decoder=work / "text", steps=True)


def test_an_unfinished_run_answers_with_the_steps_it_learned(run, work, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "1").symlink_to(work / "run" / "checkpoints" / "1")
    first = vital_jax.load(tmp_path / "run")
    assert first.max_steps == 1


@pytest.mark.parametrize(
    "asked, error, message",
    [
        (dict(questions=" "), api.RequestError, "question 1 is empty"),
        (dict(questions="<|im_end|> hello"), api.RequestError, r"question 1: .* control token <\|im_end\|>"),
        (dict(questions=["a", "b"]), api.RequestError, "2 questions need a list of 2 entries"),
        (dict(images=[]), api.RequestError, "question 1 has no image"),
        (dict(latent_steps=-1), api.RequestError, "latent_steps=-1"),
        (dict(max_new_tokens=0), api.RequestError, "max_new_tokens=0"),
        (dict(images="nowhere.png"), FileNotFoundError, "image nowhere.png: no such file"),
        (dict(images="."), FileNotFoundError, "image .: is a folder"),
        (dict(images=b"no image at all"), ValueError, "question 1, image 1 is no image"),
        (dict(images=[png((64, 64)), png((64, 64))[:-300]]), ValueError, "question 1, image 2 is damaged or cut short"),
        (dict(images=3), TypeError, "question 1, image 1 is a int"),
    ],
)
def test_what_cannot_be_answered_is_said_before_weights_are_read(run, work, asked, error, message):
    model = vital_jax.load(work / "run")
    with pytest.raises(error, match=message):
        model.answer(**{"images": png((64, 64)), "questions": QUESTIONS[0], **asked})
    assert "params" not in vars(model)


def test_a_damaged_file_is_named(run, work, model):
    (work / "cut.png").write_bytes(png((64, 64))[:-300])
    with pytest.raises(ValueError, match=r"image .*cut\.png is damaged or cut short"):
        model.answer(work / "cut.png", QUESTIONS[0])


def test_a_folder_that_holds_no_model_is_refused(run, work, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        vital_jax.load(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"neither checkpoints .* nor config\.json"):
        vital_jax.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        vital_jax.load(tmp_path)


@pytest.fixture
def elsewhere(run, work, tmp_path):
    """A run whose base is no longer where it says."""
    (tmp_path / "moved").mkdir()
    (work / "run").rename(tmp_path / "run")
    (work / "base").rename(tmp_path / "moved" / "base")
    yield tmp_path
    (tmp_path / "run").rename(work / "run")
    (tmp_path / "moved" / "base").rename(work / "base")


def test_a_base_that_moved_is_named_and_can_be_given(elsewhere):
    with pytest.raises(FileNotFoundError, match=r"config\.model\.folder=.*base.*--base FOLDER"):
        vital_jax.load(elsewhere / "run")
    with pytest.raises(FileNotFoundError, match=r"base \(--base\): no folder"):
        vital_jax.load(elsewhere / "run", base=elsewhere / "nowhere")
    assert vital_jax.load(elsewhere / "run", base=elsewhere / "moved" / "base").max_steps == 2


def test_another_base_and_an_absent_text_decoder_are_refused(run, work, tmp_path):
    tiny.write_backbone(tmp_path / "other", QUESTIONS, seed=5, width=64, layers=2, vocab=300)
    with pytest.raises(ValueError, match=r"trained on another base: it records the fingerprint \w+, .*other has \w+"):
        vital_jax.load(work / "run", base=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"text_decoder \(--text-decoder\): no folder"):
        vital_jax.load(work / "run", text_decoder=tmp_path / "nowhere", steps=True)


def test_importing_the_package_touches_no_device():
    code = "import sys, vital_jax; assert 'jax' not in sys.modules; vital_jax.load; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        vital_jax.laod  # noqa: B018
