"""The Qwen3 decoder against transformers, its adapters against peft, and what must not change a number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vital_jax.hub import parity
from vital_jax.hub.load import load_backbone, load_text_decoder
from vital_jax.latent import interpret
from vital_jax.latent.loop import empty_suffix, extend, prefill
from vital_jax.models.attention import Causal
from vital_jax.models.backbone import Prefix
from vital_jax.models.config import LoraConfig
from vital_jax.models.decoder import Decoder, abstract_decoder
from vital_jax.models.layers import Linear, kept
from vital_jax.models.lora import init_lora, merge_lora
from vital_jax.pipeline.segments import Segment, Suffix
from vital_jax.training.partition import flatten

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = {"tied": {}, "untied": {"tied": False}, "biases, another eps": {"attention_bias": True, "rms_norm_eps": 1e-3}}


def allowed(theirs):
    """2e-5 up to |logit| = 8, in proportion beyond."""
    return 2e-5 * max(1.0, float(np.max(np.abs(theirs))) / 8)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(tmp_path, kind):
    torch = pytest.importorskip("torch")

    reference = tiny.qwen3(**KINDS[kind])
    model, params = load_text_decoder(tiny.save(reference, tmp_path))
    r = np.random.default_rng(0)
    lengths = np.array([17, 9], np.int32)
    tokens = r.integers(0, tiny.VOCAB, (2, 20))  # random on padding too: it must not be read

    @jax.jit
    def logits(params, tokens, lengths):
        x = model.apply({"params": params}, tokens, jnp.float32, method="embed")[:, None]
        positions = jnp.broadcast_to(jnp.arange(20), (3, 2, 1, 20))
        h, *_ = model.apply({"params": params}, x, positions, Causal(lengths))
        h = model.apply({"params": params}, h, method="final_norm")
        return model.apply({"params": params}, h, method="logits")[:, 0]

    with jax.default_matmul_precision("highest"):
        ours = logits(params, tokens, lengths)
    for row, n in enumerate(lengths):
        with torch.no_grad():
            theirs = reference(torch.from_numpy(tokens[row : row + 1, :n])).logits[0].numpy()
        assert np.max(np.abs(ours[row, :n] - theirs)) <= allowed(theirs)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A tiny Qwen3-VL under peft with random adapters, one prompt with two images, and peft's logits with and without merging.

    In float64, and with adapters also how far torch's own float32 is from it: with these adapters that is up to twice what parity allows,
    depending on the processor, and so are we.
    """
    torch = pytest.importorskip("torch")
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    reference = tiny.qwen3_vl("gqa2_tied")
    folder = tiny.save(reference, tmp_path_factory.mktemp("lora"))
    model, params = load_backbone(
        folder, param_dtype=jnp.float32, dtype=jnp.float32, lora=LoraConfig(rank=4, alpha=12.0, dropout=0.05)
    )
    target = rf".*language_model.*\.({'|'.join(PROJECTIONS)})"
    wrapped = get_peft_model(reference, PeftConfig(r=4, lora_alpha=12, lora_dropout=0.05, target_modules=target)).eval()
    generator = torch.Generator().manual_seed(1)
    adapters = {name: value for name, value in wrapped.named_parameters() if ".lora_" in name}
    with torch.no_grad():
        for value in adapters.values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
    state = {name: value.detach().numpy().copy() for name, value in adapters.items()}
    case = parity.make_case(model.config)
    ids = torch.from_numpy(case["ids_0"]).long()[None]
    inputs = dict(
        input_ids=ids,
        image_grid_thw=torch.from_numpy(case["grids_0"]).long(),
        pixel_values=torch.from_numpy(case["patches_0"]),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
    )
    with torch.no_grad():
        single = wrapped(**inputs).logits[0].numpy()
        wrapped, inputs["pixel_values"] = wrapped.double(), inputs["pixel_values"].double()
        with_adapters = wrapped(**inputs).logits[0].numpy()
        with wrapped.disable_adapter():
            without = wrapped(**inputs).logits[0].numpy()
        merged = wrapped.merge_and_unload().state_dict()
    merged = {name: value.numpy() for name, value in merged.items()}
    own = float(np.max(np.abs(single - with_adapters)))
    return model, params, case, state, (with_adapters, without, merged, max(allowed(with_adapters), 4 * own))


def our_tree(state, layers):
    """peft's adapters as our tree: A [rank, in] and B [out, rank] stacked over layers, no transpose."""
    tree = {}
    for module, names in {"self_attn": PROJECTIONS[:4], "mlp": PROJECTIONS[4:]}.items():
        for name in names:
            at = f"base_model.model.model.language_model.layers.{{}}.{module}.{name}.lora_{{}}.default.weight"
            tree.setdefault(module, {})[name] = {
                ours: np.stack([state[at.format(i, theirs)] for i in range(layers)])
                for ours, theirs in (("a", "A"), ("b", "B"))
            }
    return {"language_model": {"layers": tree}}


def run(model, params, lora, case):
    batch = {name: value[:1] for name, value in parity.make_batch(case, model.config).items()}
    variables = {"params": params} if lora is None else {"params": params, "lora": lora}
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(model.apply)(variables, batch))[0, : len(case["ids_0"])]


def test_adapters_equal_peft(adapted):
    model, params, case, state, (with_adapters, without, _, tolerance) = adapted
    layers = model.config.decoder.layers
    lora = our_tree(state, layers)
    assert len(state) == 2 * 7 * layers == sum(leaf.shape[0] for leaf in jax.tree.leaves(lora))
    # As in test_parity: no further from float64 than four times torch's own float32.
    assert np.max(np.abs(run(model, params, lora, case) - with_adapters)) <= tolerance
    assert np.max(np.abs(run(model, params, None, case) - without)) <= allowed(without)
    assert np.max(np.abs(with_adapters - without)) > 0.1


def test_merged_adapters_equal_peft_and_unmerged(adapted):
    model, params, case, state, (with_adapters, _, theirs, tolerance) = adapted
    lora = our_tree(state, model.config.decoder.layers)
    merged = merge_lora(params, lora, model.lora)
    kernel = merged["language_model"]["layers"]["mlp"]["down_proj"]["kernel"]
    for i, ours in enumerate(kernel):
        name = f"model.language_model.layers.{i}.mlp.down_proj.weight"
        np.testing.assert_allclose(ours, theirs[name], rtol=0, atol=1e-6)  # kernels of order one, one rounding each
    assert np.max(np.abs(run(model, merged, None, case) - with_adapters)) <= tolerance


def test_an_adapter_without_a_kernel_is_an_error(adapted):
    model, params, _, state, _ = adapted
    lora = {"elsewhere": our_tree(state, model.config.decoder.layers)}
    with pytest.raises(KeyError, match="elsewhere"):
        merge_lora(params, lora, model.lora)


def test_fresh_adapters_have_pefts_start_and_change_nothing():
    config = LoraConfig(rank=6, alpha=12.0)
    lora = init_lora(toy.DECODER, config, jax.random.key(0))
    leaves = flatten(lora)
    assert len(leaves) == 14 and all(path.startswith("language_model/layers/") for path in leaves)
    vital = toy.method(model=toy.backbone(lora=config))
    base = toy.params(vital, lora=False)["base"]
    kernels = flatten(base)
    for path, leaf in leaves.items():
        out, width = kernels[path.rpartition("/")[0] + "/kernel"].shape[1:]
        assert leaf.shape == ((3, 6, width) if path.endswith("/a") else (3, out, 6)) and leaf.dtype == jnp.float32
        if path.endswith("/b"):
            assert not np.any(leaf)
        else:
            # kaiming_uniform with a = sqrt(5), as peft: uniform in +-1 / sqrt(in), whose deviation is the bound over sqrt(3).
            assert np.max(np.abs(leaf)) <= width**-0.5
            np.testing.assert_allclose(np.std(leaf), width**-0.5 / np.sqrt(3), rtol=0.1)
    drawn = [leaf.tobytes() for path, leaf in leaves.items() if path.endswith("/a")]
    assert len({*drawn}) == 7  # every projection its own

    batch, forward = toy.batch(), jax.jit(vital.model.apply)
    np.testing.assert_array_equal(forward({"params": base, "lora": lora}, batch), forward({"params": base}, batch))


@pytest.fixture(scope="module")
def dropping():
    """A toy backbone that drops half of what enters an adapter, with params away from their neutral start, and an embedded prompt."""
    vital = toy.method(model=toy.backbone(lora=LoraConfig(4, 8.0, dropout=0.5)))
    params, batch = toy.params(vital), toy.batch()
    variables = {"params": params["base"], "lora": params["lora"]}
    r = np.random.default_rng(0)
    x = r.normal(size=(4, 14, toy.WIDTH)).astype(np.float32)
    prefix = Prefix(x, None, np.moveaxis(batch["positions"], 1, 0), batch["lengths"])
    start = jax.jit(lambda variables, key=None: prefill(vital.model, variables, prefix, batch["next_position"], key))
    return vital.model, variables, start


def test_dropout_needs_a_key_and_follows_it(dropping):
    _, variables, start = dropping
    quiet = start(variables)[0]
    np.testing.assert_array_equal(start(variables)[0], quiet)
    first, same, other = (start(variables, jax.random.key(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.max(np.abs(first - quiet)) > 0.01 and np.max(np.abs(first - other)) > 0.01
    without = {"params": variables["params"]}
    np.testing.assert_array_equal(start(without)[0], start(without, jax.random.key(1))[0])  # only adapters drop


def test_every_pass_of_the_loop_drops_other_entries(dropping):
    model, variables, start = dropping
    z0, prompt = start(variables)
    key = jax.random.key(3)

    @jax.jit
    def by_hand(keys):
        z, suffix = z0[:, None], empty_suffix(prompt, 1, 2)
        for k in range(2):
            position, real = prompt.next_position[:, None, None] + k, jnp.ones((4, 1, 2), bool)
            h, suffix, _ = extend(model, variables, prompt, suffix, z[:, :, None], position, real, k, key=keys[k])
            z = h[:, :, 0]
        return z

    latents, steps = Suffix((Segment("latent", "latent", 2),)), {"latent_steps": np.full(4, 2)}
    looped = jax.jit(
        lambda: interpret.run(model, variables, prompt, z0[:, None], latents, steps, fused=False, key=key).states[
            "latent"
        ]
    )()
    # The first pass of the call, each of its steps, and of that the half that is not the feed's.
    keys = [jax.random.split(jax.random.fold_in(jax.random.fold_in(key, 1), k))[1] for k in range(2)]
    np.testing.assert_allclose(looped[:, :, 1], by_hand(keys), rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(looped[:, :, 1] - by_hand([keys[0], keys[0]]))) > 0.01


def test_dropout_keeps_the_mean():
    """Entries are dropped with the configured share and the rest scaled up: a linear adapter keeps its mean."""
    layer = Linear(1, lora=LoraConfig(rank=1, alpha=1.0, dropout=0.25), deterministic=False)
    x = jnp.ones((20000, 8))
    variables = {"params": {"kernel": jnp.zeros((1, 8))}, "lora": {"a": jnp.eye(1, 8), "b": jnp.ones((1, 1))}}
    y = np.asarray(layer.apply(variables, x, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert abs(np.mean(y == 0) - 0.25) < 0.02  # six deviations of 20,000 draws


def test_what_is_kept_looks_drawn():
    """Against the published hash in plain integers; and no neighbour, row, column, bit of the key or later key tells about another."""
    key, shape = jax.random.key(7), (64, 48, 96)
    first, second = (int(word) for word in jax.random.key_data(key))

    def by_hand(number):
        x = ((number + first) & 0xFFFFFFFF) ^ second
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
        return (x ^ (x >> 16)) >= 2**30

    drawn = np.asarray(kept(key, shape, 0.25))
    assert drawn.ravel()[:3000].tolist() == [by_hand(n) for n in range(3000)]

    others = [
        np.asarray(kept(k, shape, 0.25))
        for k in (jax.random.key(8), *jax.random.split(key), jax.random.fold_in(key, 1))
    ]
    pairs = [(drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:]), (drawn[..., :-1], drawn[..., 1:])]
    pairs += [(drawn, other) for other in others]
    for one, other in pairs:
        assert abs(one.mean() - 0.75) < 5 * (0.75 * 0.25 / one.size) ** 0.5
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / one.size**0.5
    # Counts along each axis scatter as binomial ones do: their variance over the expected one, of at least 96 counts.
    for axes in ((1, 2), (0, 2), (0, 1)):
        count = np.prod([shape[a] for a in axes])
        assert 0.5 < drawn.sum(axes).var() / (count * 0.75 * 0.25) < 2


def test_what_is_kept_does_not_depend_on_how_it_is_split():
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns"))
    split = jax.jit(
        kept, static_argnums=(1, 2), out_shardings=NamedSharding(mesh, PartitionSpec("rows", None, "columns"))
    )
    np.testing.assert_array_equal(split(jax.random.key(3), (8, 5, 64), 0.5), kept(jax.random.key(3), (8, 5, 64), 0.5))


def test_remat_changes_nothing():
    x = np.random.default_rng(0).normal(size=(2, 1, 5, 24)).astype(np.float32)
    positions = np.broadcast_to(np.arange(5), (3, 2, 1, 5))
    params = toy.draw(abstract_decoder(Decoder(toy.TEXT)))

    def gradient(remat):
        def loss(params, x):
            h, *_ = Decoder(toy.TEXT, remat=remat).apply({"params": params}, x, positions, Causal(np.array([5, 3])))
            return jnp.sum(jnp.sin(h[:, :, :3]))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, x)

    none, *others = map(jax.tree.leaves, (gradient("none"), gradient("full"), gradient("names")))
    for other in others:
        for a, b in zip(none, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1e-3, np.max(np.abs(a))))
    with pytest.raises(ValueError, match="unknown remat 'some': use one of full, names, none"):
        gradient("some")
