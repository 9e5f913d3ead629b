"""Qwen3-VL against transformers, and a table of mistakes each of which that comparison must notice."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from vital_jax import cli
from vital_jax.hub import parity
from vital_jax.hub.load import load_backbone
from vital_jax.models import backbone, decoder, rope, vision
from vital_jax.models.families import read_config


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """One folder per architecture, as transformers saves it; the second in shards."""
    root = tmp_path_factory.mktemp("qwen3_vl")
    shard = {"mha_tied": "100KB"}
    return {name: tiny.save(tiny.qwen3_vl(name), root / name, shard.get(name, "50GB")) for name in tiny.ARCHITECTURES}


@pytest.fixture(scope="session")
def references(folders):
    """What transformers computes for each, in float32 and in float64."""
    held = {}

    def get(name):
        if name not in held:
            case = parity.make_case(read_config(folders[name]))
            held[name] = (case, *(parity.run_reference(folders[name], case, dtype) for dtype in ("float32", "float64")))
        return held[name]

    return get


def load(folder, **options):
    return load_backbone(folder, param_dtype=jnp.float32, dtype=jnp.float32, **options)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "gqa4_untied" else pytest.mark.slow) for name in tiny.ARCHITECTURES]
)
def test_equals_transformers(folders, references, name, record_property):
    case, reference, exact = references(name)
    model, params = load(folders[name])
    report = parity.compare(parity.run_ours(model, params, case), reference, exact)
    assert report["passed"], report
    for part in (report["logits"], report["vision"], *report["deepstack"]):
        assert part["tolerance"] == pytest.approx(4 * part["reference_error"])
        assert part["rms_tolerance"] == pytest.approx(2 * part["rms_reference_error"])
        # What is allowed is rounding: never more than that of a hundred products of the largest number.
        assert part["tolerance"] <= 100 * 2.0**-24 * part["max_abs_value"]
        assert part["max_abs_diff"] <= part["error"] + part["reference_error"]
    logits = report["logits"]
    errors = f"{logits['error']:.1e}, transformers' own {logits['reference_error']:.1e}"
    record_property("parity", f"{name}: logits {errors} at |logit| <= {logits['max_abs_value']:.0f}")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_the_model_of_the_repository_passes_at_every_seed(seed):
    """Its tower's features are up to 14 and 18 large, where rounding alone is 2e-5."""
    folder = "vital_jax/demo/weights/backbone"
    assert parity.check(folder, seed=seed)["passed"]


def test_errors_are_judged_by_the_references_own():
    """By hand: where the reference errs by 1e-6, ours may by 2e-6, and in one number by 4e-6; one that errs by nothing still rounds."""
    exact = {f"{name}_0": np.full((2, 8), 8.0) for name in ("logits", "vision", "deepstack_0", "positions")}
    one = np.eye(1, 16).reshape(2, 8)
    moved = lambda by: {name: x + by * (not name.startswith("positions")) for name, x in exact.items()}  # noqa: E731
    for own, error, passed in (
        (1e-6, 1.9e-6, True),
        (1e-6, -2.1e-6, False),
        (1e-6, 3.9e-6 * one, True),
        (1e-6, 4.1e-6 * one, False),
        (0, 0.9e-6, True),
        (0, 1e-6, False),
        (1e-6, np.nan, False),
    ):
        report = parity.compare(moved(error), moved(own), exact)
        assert report["passed"] == report["logits"]["passed"] == report["deepstack"][0]["passed"] == passed
        assert report["logits"]["reference_error"] == pytest.approx(own, abs=1e-12)
    assert not parity.compare(exact, moved(np.inf), exact)["passed"]
    assert not parity.compare({**exact, "positions_0": exact["positions_0"] + 1}, exact, exact)["passed"]


@pytest.mark.slow
def test_half_precision_stays_close(folders):
    report = parity.check(folders["gqa4_untied"], "bfloat16")
    assert report["passed"], report


def _set(params, path, change):
    *parents, last = path.split("/")
    node = params
    for parent in parents:
        node = node[parent]
    node[last] = change(node[last])
    return params


def _swap(params, first, second):
    holder = params["language_model"]["layers"]["self_attn"]
    holder[first], holder[second] = holder[second], holder[first]
    return params


def _decoder(model, **changes):
    config = dataclasses.replace(model.config, decoder=dataclasses.replace(model.config.decoder, **changes))
    return model.clone(config=config)


def _sectioned(positions, head_width, theta, section):
    inverse = rope.frequencies(head_width, theta)
    axis = np.repeat([0, 1, 2], section)
    return jnp.moveaxis(positions, 0, -1)[..., axis].astype(jnp.float32) * inverse


def _paired(x, angles):
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    even, odd = x[..., 0::2], x[..., 1::2]
    return jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(x.shape)


class _EditedEmbed(backbone.Backbone):
    """Edits the prefix after embedding it."""

    def embed(self, batch):
        return self.edit(super().embed(batch))


class _NoDeepstack(_EditedEmbed):
    def edit(self, prefix):
        return prefix._replace(deepstack=jnp.zeros_like(prefix.deepstack))


class _LateDeepstack(_EditedEmbed):
    def edit(self, prefix):
        late = jnp.concatenate([jnp.zeros_like(prefix.deepstack[:1]), prefix.deepstack])
        return prefix._replace(deepstack=late)


class _TextPositions(_EditedEmbed):
    def edit(self, prefix):
        return prefix._replace(positions=jnp.broadcast_to(jnp.arange(prefix.x.shape[1]), prefix.positions.shape))


def _batch_with(monkeypatch, edit):
    original = parity.make_batch
    monkeypatch.setattr(parity, "make_batch", lambda case, config: edit(original(case, config)))


def _gelu(monkeypatch, swap):
    original = nn.gelu
    monkeypatch.setattr(vision.nn, "gelu", lambda x, approximate: original(x, approximate=swap(approximate)))


def _nearest(batch):
    sharp = batch["patch_weight"] == batch["patch_weight"].max(-1, keepdims=True)
    return {**batch, "patch_weight": (sharp / np.maximum(sharp.sum(-1, keepdims=True), 1)).astype(np.float32)}


def _row_major(batch):
    """Merge blocks read as if patches came row by row: the second and third of every four change places."""
    order = np.arange(batch["patches"].shape[1]).reshape(-1, 4)[:, [0, 2, 1, 3]].reshape(-1)
    return {**batch, **{k: batch[k][:, order] for k in ("patch_index", "patch_weight", "patch_coords")}}


# Each takes (monkeypatch, model, params) and gives (model, params) with one thing wrong.
MISTAKES = {
    "a bias not loaded": lambda p, m, w: (m, _set(w, "visual/blocks/qkv/bias", jnp.zeros_like)),
    "a norm scale ignored": lambda p, m, w: (m, _set(w, "language_model/layers/input_layernorm/scale", jnp.ones_like)),
    "final norm scale ignored": lambda p, m, w: (m, _set(w, "language_model/norm/scale", jnp.ones_like)),
    "q and k norm swapped": lambda p, m, w: (m, _swap(w, "q_norm", "k_norm")),
    "erf GELU in the tower": lambda p, m, w: (_gelu(p, lambda approximate: False), (m, w))[1],
    "tanh GELU in the mergers": lambda p, m, w: (_gelu(p, lambda approximate: True), (m, w))[1],
    "sectioned M-RoPE": lambda p, m, w: (p.setattr(decoder, "multimodal_angles", _sectioned), (m, w))[1],
    "rope over neighbouring pairs": lambda p, m, w: (p.setattr(decoder, "rotate", _paired), (m, w))[1],
    "text positions on images": lambda p, m, w: (_TextPositions(**_fields(m)), w),
    "wrong theta": lambda p, m, w: (_decoder(m, rope_theta=1e6), w),
    "2-D rope dropped": lambda p, m, w: (
        _batch_with(p, lambda b: {**b, "patch_coords": np.zeros_like(b["patch_coords"])}),
        (m, w),
    )[1],
    "eps of the decoder not read": lambda p, m, w: (_decoder(m, eps=1e-6), w),
    "deepstack dropped": lambda p, m, w: (_NoDeepstack(**_fields(m)), w),
    "deepstack one layer late": lambda p, m, w: (_LateDeepstack(**_fields(m)), w),
    "deepstack mergers in reverse": lambda p, m, w: (
        m,
        {
            **w,
            "visual": {
                **w["visual"],
                "deepstack_mergers": jax.tree.map(lambda x: x[::-1], w["visual"]["deepstack_mergers"]),
            },
        },
    ),
    "position grid not interpolated": lambda p, m, w: (_batch_with(p, _nearest), (m, w))[1],
    "merger order": lambda p, m, w: (_batch_with(p, _row_major), (m, w))[1],
    "images see each other": lambda p, m, w: (
        _batch_with(p, lambda b: {**b, "patch_segment": np.minimum(b["patch_segment"], 1)}),
        (m, w),
    )[1],
    "head tied that is not": lambda p, m, w: (
        m,
        _set(w, "language_model/lm_head", lambda _: w["language_model"]["embed_tokens"]["embedding"]),
    ),
}


def _fields(model):
    names = [field.name for field in dataclasses.fields(model) if field.name not in ("parent", "name")]
    return {name: getattr(model, name) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_breaks_parity(folders, references, monkeypatch, record_property, mistake):
    name = "gqa4_untied"
    case, reference, exact = references(name)
    model, params = MISTAKES[mistake](monkeypatch, *load(folders[name]))
    report = parity.compare(parity.run_ours(model, params, case), reference, exact)
    parts = [report["logits"], report["vision"], *report["deepstack"]]
    factor = max(part["error"] / part["tolerance"] for part in parts)
    record_property("mistake", f"{mistake:<40} {report['logits']['error']:.1e} logits, {factor:,.0f} x tolerance")
    assert factor >= 2
    assert not report["passed"]


def test_command_line(folders, capsys):
    assert cli.main(["parity", "--model", str(folders["mha_tied"]), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) >= {"logits", "vision", "deepstack", "rope"}
    assert set(report["logits"]) >= {"max_abs_diff", "error", "reference_error", "tolerance", "passed"}
    assert report["rope"] == {"equal": True} and (report["dtype"], report["exact"]) == ("float32", "float64")


@pytest.mark.slow
def test_command_line_fails_on_a_difference(folders, monkeypatch, capsys):
    honest = parity.run_ours
    monkeypatch.setattr(parity, "run_ours", lambda *a: {k: v + 1 for k, v in honest(*a).items()})
    assert cli.main(["parity", "--model", str(folders["mha_tied"])]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out and "transformers' own in float32" in out and "against transformers in float64" in out


def test_command_line_names_a_wrong_folder(tmp_path, capsys):
    assert cli.main(["parity", "--model", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and "Traceback" not in error


def test_eight_devices_compute_what_one_does(folders, references):
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def sharding(path, shape):
        # The largest axis that four devices divide, wherever it is: values must not depend on the layout.
        spec = [None] * len(shape)
        for axis in sorted(range(len(shape)), key=lambda i: -shape[i]):
            if shape[axis] % 4 == 0:
                spec[axis] = ("fsdp", "tensor")
                break
        return NamedSharding(mesh, PartitionSpec(*spec))

    case, reference, exact = references("gqa4_untied")
    with jax.set_mesh(mesh):
        model, params = load(folders["gqa4_untied"], sharding=sharding)
        assert len(jax.tree.leaves(params)[0].sharding.device_set) == 8
        report = parity.compare(parity.run_ours(model, params, case), reference, exact)
    assert report["passed"], report
