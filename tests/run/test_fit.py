"""The gate: a small recipe compiled whole for eight devices of this machine, its latent loop leaving a split base where it is."""

import dataclasses

import pytest
import shapes

from configs import grpo
from vital_jax.latent.loop import LOOP
from vital_jax.pipeline.batch import Layout
from vital_jax.run import fit, flops, lesson, plan, setup
from vital_jax.training import hlo
from vital_jax.training.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("uncached")
S, P, E = 14, 16, 12
# Of one layer: q and o, k and v, and the feed-forward's three, in float32.
LAYER = 4 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
KERNEL = 4 * 16 * 32  # the smallest of them


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("shapes"))


def test_the_loop_moves_activations_and_not_weights(folder):
    config = shapes.config(folder, **{"mesh.base": "fsdp", "batch": 8})
    mesh = make_mesh(1, 8, 1)
    method, chip = fit.prepared(config, mesh, E)
    assert config.model.attention == "xla" and chip == "cpu"
    layout = dataclasses.replace(setup.layouts_of(config, method, E, None)[2], prefix=S, patches=P)
    lowered, batch = fit.lower_training(config, method, mesh, 2, layout)
    assert batch["latent_steps"].tolist() == [4] * 8
    found = hlo.collectives(lowered.compile().as_text())
    loop = [c for c in found if c.within(LOOP)]
    # The last of four latent steps goes with the answer: three turns, of three layers each.
    assert {c.times for c in loop} == {1, 3, 9}
    # Sums of activations may be as large here, eight rows against widths of 16 to 48; weights would come by a gather.
    gathered = max(c.sent for c in loop if c.kind == "all-gather")
    assert gathered < KERNEL * 7 / 8, "no kernel, not even the smallest, is gathered in the loop"
    # Forward, recomputed and backward, every chip would receive the layer's kernels three times.
    assert hlo.sent(loop) < 0.5 * 9 * 3 * LAYER * 7 / 8
    assert hlo.sent(found) > 2 * hlo.sent(loop), "long passes gather the weights"


def test_rollouts_and_their_updates_are_compiled_from_shapes(folder):
    """Eight prompts, three answers each, a row of each device: the suffix caches are split as the prompts are."""
    config = grpo.get_config()
    for key, value in shapes.overrides(folder, batch=8).items():
        config.update_from_flattened_dict({key: value})
    config.rl.group = 3
    config.rl.objective.update(kl="k3", kl_coefficient=0.01)
    config.phases[0].steps = 8
    plan.resolve(config)
    mesh = make_mesh(8, 1, 1)
    method, _ = fit.prepared(config, mesh, 0)
    T, layers = config.data.answer, 3
    layout = Layout(S, P)
    lowered, batch = fit.lower_training(config, method, mesh, 0, layout)
    assert batch["rollout_ref"].shape == (8, 3, T) and batch["rollout_mask"].all()
    (columns,) = lesson.columns_of(config, method, None, [layout])
    work = flops.work_of(batch, columns.suffix)
    assert (work.context, work.answers) == (8 * S + 8 * 3 * T, 8 * 3 * T)
    assert "all-reduce" in lowered.compile().as_text()
    asking = Layout(S, P, method.asking(0, setup.budgets_of(config, None)))
    drawn = fit.lower_sampling(config, method, mesh, asking, *lesson.drawing(config)).compile().as_text()
    assert f"f32[{layers},1,3,{T},2,8]" in drawn and f"f32[{layers},8,3,{T},2,8]" not in drawn


def test_what_does_not_fit_says_by_how_much():
    class Lowered:
        def compile(self, compiler_options):
            import jax

            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (27.38G) exceeds "
                "available HBM (15.75G)."
            )

    made = fit._compile(Lowered(), "TPU v5 lite", name="train", rows=64, S=S, P=P, K=4)
    assert (made.peak, made.limit, made.fits, made.total) == (27.38, 15.75, False, None)
    assert dataclasses.replace(made, peak=15.75).fits is True
    assert dataclasses.replace(made, limit=None).fits is None


def test_memory_is_what_the_compiler_planned(tmp_path):
    """On a CPU, where nothing is aliased and there is one memory, the parts that jax tells add up to it."""
    import jax
    import jax.numpy as jnp

    lowered = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x).lower(jax.ShapeDtypeStruct((1024, 1024), jnp.float32))
    made, parts = (
        fit._compile(lowered, "cpu", name="train", rows=64, S=S, P=P, K=4),
        lowered.compile().memory_analysis(),
    )
    sizes = parts.argument_size_in_bytes + parts.output_size_in_bytes + parts.temp_size_in_bytes
    assert made.peak == pytest.approx(sizes / 2**30, abs=2**-20)
    with pytest.raises(RuntimeError, match=r"left no report .*\(unset JAX_COMPILATION_CACHE_DIR"):
        fit.planned(tmp_path)


def test_traffic_that_cannot_be_counted_is_not_zero():
    """A loop that ends when its data says so, as the writing of an answer does."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    mesh = make_mesh(1, 8, 1)
    split, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec("fsdp"), PartitionSpec()))
    again = lambda x: jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(jnp.sin(x), whole), split)  # noqa: E731
    lowered = jax.jit(lambda x: jax.lax.while_loop(lambda x: jnp.max(x) > 0.5, again, x)).lower(
        jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=split)
    )
    made = fit._compile(lowered, "cpu", name="sample", rows=64, S=S, P=P, K=4)
    assert made.total is None and made.loop is None and "no trip count" in made.unread and made.peak > 0
    with pytest.raises(hlo.Uncounted, match="no trip count"):
        fit._compile(lowered, "cpu", name="train", rows=64, S=S, P=P, K=4)


def test_a_layout_changes_no_name_of_a_parameter(folder):
    """Checkpoints of one mesh load on another: the tree of parameters is the same."""
    trees = [
        setup.kept_params(config, setup.make_method(config, E))
        for config in (shapes.config(folder, **{"mesh.base": base}) for base in ("fsdp", "replicated"))
    ]
    assert trees[0] == trees[1]
