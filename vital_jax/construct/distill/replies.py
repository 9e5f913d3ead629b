"""A reply, from whichever way it came (live, batch, recorded), through the gate and into the store: one way for all of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vital_jax.construct.distill.store import Attempt, Store
from vital_jax.construct.gate import Verdict, Violation, gate
from vital_jax.construct.tasks import Task
from vital_jax.construct.teacher import Lesson

TRIES = 5  # the first and four retries (VITAL A.3)
MILLION = 1_000_000
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"^```\w*\n(.*?)\n?```$", re.DOTALL)
_FINISH = {  # what ends a reply other than its own end, and how it is called
    "length": Violation("cut-off", "the reply was cut at its longest allowed length", "reply", "..."),
    "content_filter": Violation("filtered", "the endpoint's content filter stopped the reply", "reply", "..."),
}


@dataclass(frozen=True)
class Prices:
    """Per million tokens, in any one currency; None where not known."""

    read: float | None = None
    written: float | None = None

    @property
    def known(self) -> bool:
        return self.read is not None and self.written is not None

    def cost(self, tokens_in: float | None, tokens_out: float | None) -> float | None:
        """Of that many tokens; None where a price or a number is not known."""
        if not self.known or tokens_in is None or tokens_out is None:
            return None
        return (tokens_in * self.read + tokens_out * self.written) / MILLION


@dataclass(frozen=True)
class Reply:
    """What an endpoint sent back.

    Attributes:
      text: of the reply, or of the error.
      finish: why it ended: stop, length, content_filter, refusal.
      error: a code where no reply came: timeout, connection, http-500, ...; otherwise empty.
      tokens_in, tokens_out, latency: as in `store.Attempt`.
    """

    text: str = ""
    finish: str = "stop"
    error: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None
    latency: float | None = None


def read_completion(body: Any, latency: float | None = None) -> Reply:
    """A reply out of the body of a chat completion, as JSON gives it.

    Raises:
      ValueError: it is no chat completion.
    """
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ValueError("not a chat completion") from error
    if isinstance(text, list):  # some gateways give parts
        text = "".join(part.get("text") or "" for part in text if isinstance(part, Mapping))
    finish = "refusal" if refusal and not text else choice.get("finish_reason") or "stop"
    return Reply(
        text=str(text or refusal or ""),
        finish=finish,
        tokens_in=usage.get("prompt_tokens"),
        tokens_out=usage.get("completion_tokens"),
        latency=latency,
    )


def unwrap(text: str) -> str:
    """The reply without a leading block of thought and without a code fence round the whole: neither is part of what was asked for."""
    text = _THOUGHT.sub("", text).strip()
    fenced = _FENCE.match(text)
    return fenced.group(1) if fenced else text


def judge(task: Task, raw: str | Mapping, finish: str = "stop") -> Verdict:
    """The gate's verdict on a reply; one that did not end by itself is no reply, whatever it says."""
    if finish in _FINISH:
        return Verdict(violations=(_FINISH[finish],))
    if finish == "refusal":
        return Verdict(violations=(Violation("refused", "the teacher declined to answer", "reply", str(raw)[:60]),))
    verdict = gate(
        unwrap(raw) if isinstance(raw, str) else raw,
        question_type=task.question_type,
        target_type=task.target_type,
        target=task.target,
        modality=task.modality,
        ask=task.ask,
        steps=task.steps,
        options=task.options,
        names=task.names,
    )
    if verdict.accepted and task.options and _bare(verdict.answer) not in map(_bare, task.options):
        rule = f"final_answer is one of: {'; '.join(task.options)}"
        return Verdict(violations=(Violation("option", rule, "answer", verdict.answer),))
    return verdict


def settle(
    store: Store,
    task: Task,
    reply: Reply,
    *,
    prompt: str,
    model: str,
    request: str,
    tries: int = TRIES,
    prices: Prices = Prices(),
) -> Attempt:
    """Judges a reply, keeps it, and returns what was kept.

    Args:
      store, task: whose reply it is.
      reply: what came, or the error.
      prompt, model, request: as in `store.Attempt`.
      tries: replies after which the task is dropped.
      prices: of the tokens.
    """
    known = dict(task=task.id, prompt=prompt, model=model, request=request, raw=reply.text, latency=reply.latency)
    if reply.error:
        problem = Violation(reply.error, "no reply", "reply", reply.text[:200])
        attempt = Attempt(**known, status="error", violations=(problem,))
    else:
        verdict = judge(task, reply.text, reply.finish)
        last = len(store.history(task.id, prompt, model)) + 1 >= tries
        attempt = Attempt(
            **known,
            status="accepted" if verdict.accepted else "dropped" if last else "rejected",
            violations=verdict.violations,
            lesson=Lesson(verdict.chain, verdict.answer, ()) if verdict.accepted else None,
            tokens_in=reply.tokens_in,
            tokens_out=reply.tokens_out,
            cost=prices.cost(reply.tokens_in, reply.tokens_out),
        )
    store.record(attempt)
    return attempt


def _bare(text: str) -> str:
    return " ".join(text.split()).strip(" .").lower()
