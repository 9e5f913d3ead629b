"""Trains: `python train.py --config=configs/vital.py:qwen3_vl_8b --config.data.records=...`

The page reads from top to bottom: configuration -> what must exist on disk -> mesh -> method and parameters -> resume -> for each phase,
its records, losses and optimizer -> for each step, a batch, an update, and now and then a diagnosis, decoded answers and a checkpoint
-> where the recipe asks for it, what the trained model answers and what its latents hold. A recipe that lists `runs` is trained once for
each of them (run/campaign.py).

Started once per host (or GPU), the processes find each other and are one run (training/distributed.py): each reads its own rows and its own
part of the weights, process 0 prepares and logs. Killed at any moment and started again with the same command, a run goes on from its last
checkpoint as if nothing had happened, on any number of processes: batches and randomness are functions of the step. SIGTERM, or Ctrl-C
once, saves after the step at hand and exits with status 75. Research software, not a medical device.
"""

import json
import math
import sys
from pathlib import Path

import jax

from vital_jax.hub.load import fingerprint
from vital_jax.methods import base
from vital_jax.run import campaign, flops, plan, program, setup
from vital_jax.run.prepare import prepare
from vital_jax.training import chips, distributed
from vital_jax.training import config as configuration
from vital_jax.training.board import Board
from vital_jax.training.checkpoint import CLOCK, Checkpoints, abstract, check_compatible, init_from, make_meta
from vital_jax.training.metrics import Clock, MetricsWriter, ProgressLine, cut_after
from vital_jax.training.partition import merge, split
from vital_jax.training.sharding import make_mesh, place_batch, row_share
from vital_jax.training.step import init_state, start_phase


def train(config):
    """One run, from wherever its folder says it stopped."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path(config.workdir).resolve() / "compile_cache"))
    plan.resolve(config)
    plan.agree(config)
    distributed.check_shared(Path(config.workdir))
    plan.check_models(config)
    distributed.first("preparation", lambda: prepare(config))
    feed, preview = plan.open_feed(config, "train"), plan.open_feed(config, config.eval.split)
    phases, tables = config.phases, setup.tables(config)
    for phase in phases:
        if not phase.steps:
            phase.steps = math.ceil(phase.epochs * len(feed.select(phase.max_steps)) / config.batch)
    total = configuration.total_steps(phases)
    width = feed.features and feed.features.info["width"]
    method = setup.make_method(config, width)
    layouts = setup.layouts_of(config, method, width, feed.encoder.prompter)
    writes = jax.process_index() == 0
    if config.dry_run:
        plan.check_data(config, layouts, feed, preview)
        return print(plan.describe(config, method, feed, tables)) if writes else None

    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    part, parts = row_share(mesh)
    plan.check_data(config, layouts, feed, preview, parts)
    weights = fingerprint(config.model.folder)
    plan.agree_on_data(weights, feed)
    workdir = Path(config.workdir)
    logs = {name: workdir / f"{name}.jsonl" for name in ("metrics", "answers")}

    def meta(phase, step, clock=None):
        resolved, switches = configuration.resolved(config), setup.switches(config)
        return make_meta(resolved, weights, config.method.name, switches, phase, step, clock)

    rotation = {name: value for name, value in config.checkpoint.items() if name != "every"}
    with (
        jax.set_mesh(mesh),
        Checkpoints(workdir / "checkpoints", **rotation) as checkpoints,
        MetricsWriter(logs["metrics"] if writes else None) as metrics,
        distributed.StopRequests() as stop,
    ):
        step = distributed.first("step", lambda: checkpoints.latest_step() or 0)
        if writes and config.log.tensorboard:
            metrics.board = Board(workdir / "tensorboard", after=step)
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
        state, held = init_state(trainable, program.optimizer_of(config, phases[index])), setup.held(frozen, ever)
        if step:
            # The drawn start goes before the saved state comes: never two of them.
            target = abstract({**state, "held": held})
            del params, trainable, state, held
            state, _ = checkpoints.restore(target)
            held = state.pop("held", {})
            frozen = setup.overlay(frozen, held)
            if writes:
                print(f"resuming {workdir} after step {step}", file=sys.stderr)
        params = trainable = None  # a name kept here would keep a dead copy for the whole run
        if writes:
            for log in logs.values():
                cut_after(log, step)

        counted = checkpoints.read_meta().get(CLOCK) if step else None
        clock, line = Clock(counted, peak=chips.peak_of(jax.local_devices())), ProgressLine(total)
        exact, shown = {}, ("loss", *method.losses, "answer_accuracy", "grad_norm")
        while step < total:
            index, start = configuration.phase_at(phases, step)
            phase, optimizer = phases[index], program.optimizer_of(config, phases[index])
            layout, seen = layouts[index], setup.phases_of(config)[index]
            if start == 0 and index:
                trainable, frozen = split(merge(state["trainable"], frozen), tables[index])
                same = jax.tree.structure(trainable) == jax.tree.structure(state["trainable"])
                held = setup.held(frozen, ever)
                state = (
                    start_phase(state, optimizer, phase.reset_optimizer)
                    if same
                    else init_state(trainable, optimizer, step)
                )
            train_step = program.train_step(config, method, index, layout, state)
            diagnose = jax.jit(lambda p, b, seen=seen, suffix=layout.suffix: base.diagnose(method, p, b, seen, suffix))
            arithmetic, scaffold = flops.Arithmetic(method, tables[index]), method.parts(config.method, [seen])
            batches = feed.phase(
                layout,
                phase.max_steps,
                batch=config.batch,
                steps=phase.steps,
                seed=config.seed + index,
                start=start,
                part=(part, parts),
            )
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
                needed = arithmetic(flops.work_of(batch, layout.suffix, method.model.config.vision.merge), scaffold)
                clock.tick(config.batch, needed * parts / jax.process_count())
                if config.log.diagnose and step % config.log.diagnose == 0:
                    with clock.pause(report):
                        first = {name: x[0] for name, x in placed.items()}
                        report |= diagnose(merge(state["trainable"], frozen), first)
                metrics.write(step, {"phase": index + 1, **report})
                plan.stop_if_not_finite(metrics.last, records, feed)
                if writes and metrics.last and metrics.last["step"] % config.log.every == 0:
                    line.update(
                        metrics.last["step"],
                        {name: metrics.last[name] for name in shown if name in metrics.last},
                        clock,
                    )
                ends = step == total or step == configuration.phase_start(phases, index + 1)
                if config.eval.answers and (ends or step % config.eval.every == 0):
                    with clock.pause(report):
                        params = merge(state["trainable"], frozen)
                        exact = plan.preview_answers(config, method, params, preview, phase, step, logs["answers"])
                        params = None
                stops = stop.at(step)
                if ends or stops or step % config.checkpoint.every == 0:
                    with clock.pause(report):
                        metrics.flush()
                        plan.stop_if_not_finite(metrics.last, records, feed)
                        saved = meta(index, step, clock.state())
                        checkpoints.save(step, {**state, "held": held}, saved, metrics.last | exact)
                        exact = {}
                    plan.check_best(config, metrics.last)
                if stops and step < total:
                    checkpoints.wait()
                    distributed.leave(f"stopped after step {step}, which is saved: the same command goes on from there")
        line.close()
        metrics.flush()
        checkpoints.wait()
        if writes:
            print(f"done: {total} steps; {json.dumps({**(metrics.last or {}), **plan.pace(clock)})}", file=sys.stderr)
        if config.eval.evidence:
            params = merge(state["trainable"], frozen)
            plan.on_first(config, "evidence", params, lambda here: campaign.probe(config, method, here))


def main(config):
    distributed.start(config.distributed)
    if config.runs and jax.process_count() > 1:
        raise ValueError("config.runs: several processes train one run; start each of the runs by itself")
    campaign.run(config, train) if config.runs else train(config)
    distributed.finish()


if __name__ == "__main__":
    configuration.run(main)
