"""Asks a teacher all that is pending, with any number of requests under way, and can be stopped at any moment.

A task keeps its worker until it is accepted, dropped or without a reply; each reply is in the store before the next request. The first
interrupt lets the requests under way come back, for they are paid for; the second cuts them off.
"""

import asyncio
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from vital_jax.construct.distill.endpoint import Address, Endpoint, Refused, Settings, address
from vital_jax.construct.distill.overlay import teacher_view
from vital_jax.construct.distill.progress import ReplyLine
from vital_jax.construct.distill.prompts import Prompts, load_prompts, request, request_hash
from vital_jax.construct.distill.replies import settle
from vital_jax.construct.distill.store import Attempt, Store
from vital_jax.construct.gate import Violation
from vital_jax.construct.tasks import Task
from vital_jax.statistics import spread

GIVE_UP = 16  # tasks in a row without any reply after which the endpoint counts as down


@dataclass(frozen=True)
class Outcome:
    """What a run came to: tasks accepted, dropped and left without a reply; `why` it ended early, if it did."""

    accepted: int
    dropped: int
    unanswered: int
    pending: int
    why: str = ""
    interrupted: bool = False

    @property
    def complete(self) -> bool:
        """Whether every task has its lesson."""
        return not (self.dropped or self.unanswered or self.pending or self.why)

    def __str__(self) -> str:
        left = f", {self.pending} not asked" if self.pending else ""
        return f"{self.accepted} accepted, {self.dropped} dropped, {self.unanswered} without a reply{left}"


def run(store: Store, settings: Settings, shown: bool = True) -> Outcome:
    """Asks what is pending.

    Args:
      store: of the tasks; every reply goes into it.
      settings: whom to ask, and how.
      shown: a live line on stderr.

    Raises:
      ValueError: no key, no such prompts, another process at work, images that may not leave the machine, or no package openai.
      sqlite3.Error, OSError: the store cannot be written; what it holds is whole.
    """
    prompts = load_prompts(settings.prompts) if settings.prompts else load_prompts()
    where = address()
    with store.exclusive():
        ids = selected(store, settings, prompts)
        if warning := check_upload(store, ids, where, settings.allow_upload):
            print(warning, file=sys.stderr, flush=True)
        progress = ReplyLine(len(ids), shown)
        try:
            return asyncio.run(_Run(store, settings, prompts, where, progress).all(ids))
        finally:
            progress.close()


def selected(store: Store, settings: Settings, prompts: Prompts) -> list[str]:
    """Ids of the tasks that a run would ask."""
    return spread(store.pending(prompts.version, settings.model, settings.again), settings.limit or None)


def check_upload(store: Store, ids: Iterable[str], where: Address, allowed: bool) -> str:
    """A warning about images that leave the machine, or nothing.

    Raises:
      ValueError: some are not known as public, and it was not allowed.
    """
    if where.loopback:
        return ""
    private = [facts["source"] for _, facts, _ in store.facts(set(ids)) if not facts["public"]]
    names = ", ".join(dict.fromkeys(private))
    if private and not allowed:
        raise ValueError(
            f"{len(private)} tasks from {names} have images without a licence known as public, which would be sent to {where.host}; give "
            "--allow-upload if they may leave this machine, state the source's licence, or use a teacher on this machine"
        )
    sent = (
        f"images of {len(private)} tasks from {names}, not known as public, are sent to {where.host}; "
        if private
        else ""
    )
    plain = f"images and key travel unencrypted to {where.host} (http://)" if where.open else ""
    return f"warning: {sent}{plain}".rstrip("; ") if sent or plain else ""


class _Run:
    """One run: its workers share the list of tasks, the endpoint and the wish to stop."""

    def __init__(self, store: Store, settings: Settings, prompts: Prompts, where: Address, progress: ReplyLine):
        self.store, self.settings, self.prompts, self.where, self.progress = store, settings, prompts, where, progress
        self.why, self.interrupted, self.silent = "", False, 0
        self.failure: Exception | None = None

    async def all(self, ids: list[str]) -> Outcome:
        left = iter(ids)
        with _interrupts(self._interrupt, asyncio.current_task()), suppress(asyncio.CancelledError):
            async with Endpoint(self.settings, self.where) as endpoint, asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.concurrency, len(ids))):
                    group.create_task(self._work(left, endpoint))
        if self.failure:
            raise self.failure
        counts = self.progress.counts
        done = [counts[status] for status in ("accepted", "dropped", "error")]
        return Outcome(*done, pending=len(ids) - sum(done), why=self.why, interrupted=self.interrupted)

    def _interrupt(self, main: asyncio.Task) -> None:
        if self.interrupted:
            main.cancel()
        self.interrupted, self.why = True, self.why or "interrupted"
        self.progress.say("stopping: waiting for the requests under way; interrupt again to cut them off")

    async def _work(self, left: Iterator[str], endpoint: Endpoint) -> None:
        """Task after task. What goes wrong ends the run, but not the other workers' requests, which are paid for."""
        for name in left:
            if self.why:
                return
            try:
                await self._task(self.store.task(name), endpoint)
            except Refused as error:
                self.why = self.why or str(error)
            except (sqlite3.Error, OSError, ValueError) as error:
                self.why, self.failure = self.why or "failed", self.failure or error

    async def _task(self, task: Task, endpoint: Endpoint) -> None:
        known = dict(prompt=self.prompts.version, model=self.settings.model)
        try:
            view = await asyncio.to_thread(teacher_view, task.image, task.mask, task.id)
        except ValueError as error:
            problem = Violation("unreadable-image", "image and mask can be read", "task", str(error))
            self._keep(Attempt(task.id, **known, request="", status="dropped", violations=(problem,)))
            return
        while not self.why:
            broken = [each for past in self.store.history(task.id, **known) for each in past]

            def make(mode: str, broken=broken) -> dict:
                return request(task, view, self.prompts, self.settings.model, mode, broken, self.settings.extra)

            reply, body = await endpoint.ask(make)
            rest = dict(request=request_hash(body), tries=self.settings.tries, prices=self.settings.prices)
            attempt = settle(self.store, task, reply, **known, **rest)
            self._count(attempt)
            if attempt.status != "rejected":
                return

    def _keep(self, attempt: Attempt) -> None:
        self.store.record(attempt)
        self._count(attempt)

    def _count(self, attempt: Attempt) -> None:
        self.progress.add(attempt)
        self.silent = self.silent + 1 if attempt.status == "error" else 0
        if self.silent >= max(GIVE_UP, self.settings.concurrency) and not self.why:
            self.why = (
                f"{self.where.host} gave no reply to {self.silent} tasks in a row (last: {', '.join(attempt.codes)})"
            )


@contextmanager
def _interrupts(handler: Callable[[asyncio.Task], None], main: asyncio.Task) -> Iterator[None]:
    """Ctrl-C and a scheduler's end come to the handler; where they cannot (another thread, Windows), they keep their usual way."""
    loop, caught = asyncio.get_running_loop(), []
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, handler, main)
            caught.append(number)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
