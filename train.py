"""Trains: `python train.py --config=configs/vital.py:qwen3_vl_8b --config.data.records=...`

The page reads from top to bottom: configuration -> what must exist on disk -> mesh -> method and parameters -> resume -> for each phase,
its records, losses and optimizer -> for each step, a batch (of records, or of the policy's own answers: run/lesson.py), an update, and now
and then a diagnosis, decoded answers and a checkpoint
-> where the recipe asks for it, what the trained model answers and what its latents hold. A recipe that lists `runs` is trained once for
each of them (run/campaign.py).

Started once per host (or GPU), the processes find each other and are one run (training/distributed.py): each reads its own rows and its own
part of the weights, process 0 prepares and logs. Killed at any moment and started again with the same command, a run goes on from its last
checkpoint as if nothing had happened, on any number of processes: batches and randomness are functions of the step. SIGTERM, or Ctrl-C
once, saves after the step at hand and exits with status 75. Research software, not a medical device.
"""

import contextlib
import functools
from pathlib import Path

import jax

from vital_jax.hub.load import fingerprint
from vital_jax.run import campaign, flops, lesson, plan, program, setup
from vital_jax.run.progress import Progress
from vital_jax.run.state import begin, enter_phase, whole
from vital_jax.training import config as configuration
from vital_jax.training import distributed
from vital_jax.training.checkpoint import CLOCK, Checkpoints
from vital_jax.training.partition import merge
from vital_jax.training.sharding import make_mesh, row_share


def train(config):
    """One run, from wherever its folder says it stopped."""
    plan.make_ready(config)
    feed, preview = plan.open_feeds(config)
    phases, total = config.phases, configuration.total_steps(config.phases)
    width = feed.features and feed.features.info["width"]
    method = setup.make_method(config, width)
    layouts = setup.layouts_of(config, method, width, feed.encoder.prompter)
    if config.dry_run:
        plan.check_data(config, layouts, feed, preview)
        return print(plan.describe(config, method, feed)) if jax.process_index() == 0 else None

    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    part, parts = row_share(mesh)
    counted = lesson.columns_of(config, method, feed.encoder.prompter, layouts)
    plan.check_data(config, layouts, feed, preview, parts)
    base, workdir = fingerprint(config.model.folder), Path(config.workdir)
    plan.agree_on_data(base, feed)
    meta = functools.partial(setup.meta, config, base)
    rotation = {name: value for name, value in config.checkpoint.items() if name != "every"}
    with (
        jax.set_mesh(mesh),
        Checkpoints(workdir / "checkpoints", **rotation) as checkpoints,
        lesson.of(config, method, feed, layouts, mesh) as taught,
        Progress(config, feed, taught.losses, total) as progress,
        distributed.StopRequests() as stop,
        contextlib.ExitStack() as loaders,
    ):
        step = distributed.first("step", lambda: checkpoints.latest_step() or 0)
        state, frozen = begin(config, method, mesh, checkpoints, meta, step, taught)
        progress.begin(step, checkpoints.read_meta().get(CLOCK) if step else None)
        clock, exact = progress.clock, {}
        if config.eval.answers and config.eval.before and not step:
            with clock.pause():
                plan.preview_answers(
                    config, method, merge(state["trainable"], frozen), preview, phases[:1], 0, worth=taught.worth
                )
        while step < total:
            index, start = configuration.phase_at(phases, step)
            if start == 0 and index:
                state, frozen = enter_phase(config, index, state, frozen, step)
            phase, seen, layout = phases[index], setup.phases_of(config)[index], layouts[index]
            train_step = program.train_step(config, phase, *taught.objective(index), state)
            diagnose = program.diagnosis(method, seen, layout.suffix)
            needed = flops.of_phase(config, method, index, counted[index])
            batches = taught.batches(index, start, (part, parts))
            loaders.enter_context(contextlib.closing(batches))
            progress.new_phase()
            for _, rows in batches:
                batch, said = taught.experience(state, frozen, rows, step)
                progress.meet(step + 1, batch)
                placed = program.placed_batch(batch, config.micro_batches, mesh)
                state, report = train_step(state, frozen, placed)
                step += 1
                clock.tick(config.batch, needed(batch) * parts / jax.process_count())
                if config.log.diagnose and step % config.log.diagnose == 0:
                    with clock.pause(report):
                        first = {name: x[0] for name, x in placed.items()}
                        report |= diagnose(merge(state["trainable"], frozen), first)
                progress.write(step, {"phase": index + 1, **report, **said})
                ends = step == total or step == configuration.phase_start(phases, index + 1)
                if config.eval.answers and (ends or step % config.eval.every == 0):
                    with clock.pause(report):
                        params = merge(state["trainable"], frozen)
                        exact = plan.preview_answers(
                            config, method, params, preview, phases[: index + 1], step, worth=taught.worth
                        )
                        del params  # a name kept here would keep a dead copy for the whole run
                stops = stop.at(step)
                if ends or stops or step % config.checkpoint.every == 0:
                    with clock.pause(report):
                        progress.flush()
                        saved = meta(index, step, clock.state())
                        checkpoints.save(step, whole(config, state, frozen, taught), saved, progress.last | exact)
                        exact = {}
                    plan.check_best(config, (*progress.last, *taught.held_out))
                if stops and step < total:
                    checkpoints.wait()
                    distributed.leave(f"stopped after step {step}, which is saved: the same command goes on from there")
        checkpoints.wait()
        progress.close()
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
