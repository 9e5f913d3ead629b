"""Trains: `python train.py --config=configs/vital.py:qwen3_vl_8b --config.data.records=...`

The page reads from top to bottom: configuration -> what must exist on disk -> mesh -> method and parameters -> resume -> for each phase,
its records, losses and optimizer -> for each step, a batch, an update, and now and then a diagnosis, decoded answers and a checkpoint
-> where the recipe asks for it, what the trained model answers and what its latents hold. A recipe that lists `runs` is trained once for
each of them (campaign.py).

Killed at any moment and started again with the same command, a run goes on from its last checkpoint as if nothing had happened: batches and
randomness are functions of the step. Research software, not a medical device.
"""

import json
import math
import sys
from pathlib import Path

import jax

from vital_jax import campaign, plan
from vital_jax.evaluate.preview import answers
from vital_jax.hub.load import fingerprint
from vital_jax.methods import setup, vital
from vital_jax.prepare import prepare
from vital_jax.training import config as configuration
from vital_jax.training.checkpoint import Checkpoints, abstract, check_compatible, init_from, make_meta
from vital_jax.training.metrics import Clock, MetricsWriter, ProgressLine, cut_after
from vital_jax.training.optimizer import make_optimizer
from vital_jax.training.partition import merge, split
from vital_jax.training.sharding import make_mesh, place_batch
from vital_jax.training.step import init_state, make_train_step, start_phase


def train(config):
    """One run, from wherever its folder says it stopped."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.workdir).resolve() / "compile_cache"))
    plan.resolve(config)
    prepare(config)
    feed, preview = plan.open_feed(config, "train"), plan.open_feed(config, config.eval.split)
    phases, tables = config.phases, setup.tables(config)
    for phase in phases:
        if not phase.steps:
            phase.steps = math.ceil(phase.epochs * len(feed.select(phase.max_steps)) / config.batch)
    total = configuration.total_steps(phases)
    plan.check_data(config, feed, preview)

    method = setup.make_method(config, feed.features and feed.features.info["width"])
    if config.dry_run:
        return print(plan.describe(config, method, feed, tables))

    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    workdir = Path(config.workdir)
    writes = jax.process_index() == 0
    logs = {name: workdir / f"{name}.jsonl" if writes else None for name in ("metrics", "answers")}

    def optimizer_of(phase):
        return make_optimizer(steps=phase.steps, **config.optim)

    with (
        jax.set_mesh(mesh),
        Checkpoints(workdir / "checkpoints", config.checkpoint.keep) as checkpoints,
        MetricsWriter(logs["metrics"]) as metrics,
    ):
        base = fingerprint(config.model.folder)
        meta = lambda phase, step: make_meta(  # noqa: E731
            configuration.resolved(config), base, config.method.name, setup.switches(config), phase, step
        )
        step = checkpoints.latest_step() or 0
        index = configuration.phase_at(phases, max(step - 1, 0))[0]  # the phase whose state the checkpoint holds
        if step:
            check_compatible(checkpoints.read_meta(), meta(index, step))
            plan.check_resume(checkpoints.read_meta(), config, index)
        params = setup.load_params(config, method, mesh)
        ever = setup.trained(tables, params)
        trainable, frozen = split(params, tables[index])
        if config.init_from and not step:
            trainable, other = init_from(config.init_from, trainable)
            check_compatible(other, meta(0, 0))
        state, held = init_state(trainable, optimizer_of(phases[index])), setup.held(frozen, ever)
        if step:
            # The drawn start goes before the saved state comes: never two of them.
            target = abstract({**state, "held": held})
            del params, trainable, state, held
            state, _ = checkpoints.restore(target)
            held = state.pop("held", {})
            frozen = setup.overlay(frozen, held)
            print(f"resuming {workdir} after step {step}", file=sys.stderr)
        params = trainable = None  # a name kept here would keep a dead copy for the whole run
        if writes:
            for log in logs.values():
                cut_after(log, step)

        clock, line = Clock(), ProgressLine(total)
        while step < total:
            index, start = configuration.phase_at(phases, step)
            phase, optimizer = phases[index], optimizer_of(phases[index])
            weights, K = {"text": phase.text, "visual": phase.visual}, phase.latent_steps
            if start == 0 and index:
                trainable, frozen = split(merge(state["trainable"], frozen), tables[index])
                same = jax.tree.structure(trainable) == jax.tree.structure(state["trainable"])
                held = setup.held(frozen, ever)
                state = (
                    start_phase(state, optimizer, phase.reset_optimizer)
                    if same
                    else init_state(trainable, optimizer, step)
                )
            loss = vital.make_loss(method, K, weights)
            placement = jax.tree.map(lambda x: x.sharding, state)
            train_step = make_train_step(loss, vital.normalizers, optimizer, config.seed, placement)
            diagnose = jax.jit(lambda p, b, k=K, w=weights: vital.diagnose(method, p, b, k, w))
            batches = feed.phase(
                phase.max_steps, K, config.method.train_k, config.batch, phase.steps, config.seed + index, start,
                jax.process_index(), jax.process_count(),
            )  # fmt: skip
            records, shapes = {}, set()
            for _, batch in batches:
                if batch["tokens"].shape not in shapes:
                    shapes.add(batch["tokens"].shape)
                    clock.skip()
                A = config.micro_batches
                micro = {name: x.reshape(A, len(x) // A, *x.shape[1:]) for name, x in batch.items()}
                records[step + 1] = batch["index"].tolist()
                placed = place_batch(micro, mesh, micro_batches=True)
                state, report = train_step(state, frozen, placed)
                step += 1
                clock.tick(config.batch)
                if config.log.diagnose and step % config.log.diagnose == 0 and K:
                    with clock.pause(report):
                        first = {name: x[0] for name, x in placed.items()}
                        report |= diagnose(merge(state["trainable"], frozen), first)
                metrics.write(step, {"phase": index + 1, **report})
                plan.stop_if_not_finite(metrics.last, records)
                if metrics.last and metrics.last["step"] % config.log.every == 0:
                    line.update(
                        metrics.last["step"], {k: metrics.last.get(k) for k in plan.SHOWN if k in metrics.last}, clock
                    )
                ends = step == total or step == configuration.phase_start(phases, index + 1)
                if config.eval.answers and (ends or step % config.eval.every == 0):
                    with clock.pause(report):
                        found = answers(
                            method, merge(state["trainable"], frozen), preview,
                            plan.spread(preview.select(phase.max_steps), config.eval.answers),
                            K, config.method.eval_k,
                        )  # fmt: skip
                        plan.show_answers(found, step, logs["answers"])
                if ends or step % config.checkpoint.every == 0:
                    with clock.pause(report):
                        metrics.flush()
                        plan.stop_if_not_finite(metrics.last, records)
                        checkpoints.save(step, {**state, "held": held}, meta(index, step))
        line.close()
        metrics.flush()
        checkpoints.wait()
        print(f"done: {total} steps; {json.dumps(metrics.last)}", file=sys.stderr)
        if config.eval.evidence:
            campaign.probe(config, method, merge(state["trainable"], frozen))


def main(config):
    campaign.run(config, train) if config.runs else train(config)


if __name__ == "__main__":
    configuration.run(main)
