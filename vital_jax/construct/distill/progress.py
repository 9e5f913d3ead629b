"""How a run goes (one live line) and how a store stands (`status`, the cost estimate): the paper's pilot figures of a teacher, A.2.

Rates are over replies: leakage is the share of replies in which the gate found a leak, first-try format the share of first replies that
were valid JSON with a right number of steps. Intervals are Wilson's at 95 %.
"""

import json
import sys
from collections import Counter, defaultdict

from tqdm import tqdm

from vital_jax.construct.distill.overlay import view_size
from vital_jax.construct.distill.prompts import Prompts
from vital_jax.construct.distill.replies import Prices
from vital_jax.construct.distill.store import REPLIES, Attempt, Store
from vital_jax.statistics import wilson

FORMAT = ("json", "schema", "steps", "cut-off")  # codes of a reply whose form is wrong
LETTERS_PER_TOKEN = 4  # of English text, a usual rule of thumb
PIXELS_PER_TOKEN = 750  # of a picture, likewise; vendors differ by a factor of two
MEASURED = 20  # replies from which on the mean of what was counted replaces the rules of thumb


class ReplyLine:
    """Counts the replies that come in, for the run's outcome, and keeps one line of it on stderr: accepted, leaks, cost."""

    def __init__(self, total: int, shown: bool):
        self.counts, self.leaks, self.replies, self.cost, self.priced = Counter(), 0, 0, 0.0, False
        often = 0.5 if sys.stderr.isatty() else 30  # seconds; a log wants few lines
        how = dict(file=sys.stderr, disable=not shown, dynamic_ncols=True, mininterval=often, maxinterval=often)
        self._bar = tqdm(total=total, unit="task", **how)

    def add(self, attempt: Attempt) -> None:
        """Takes an attempt in; one that drops a task, or that no reply came to, gets a line of its own."""
        self.replies += attempt.status in REPLIES
        self.leaks += "leak" in attempt.codes
        if attempt.cost is not None:
            self.cost, self.priced = self.cost + attempt.cost, True
        if attempt.status != "rejected":
            self.counts[attempt.status] += 1
            self._bar.update()
        if attempt.status in ("dropped", "error"):
            what = "dropped" if attempt.status == "dropped" else "no reply"
            self.say(f"{attempt.task}: {what} [{', '.join(attempt.codes)}]: {attempt.violations[-1]}")
        self._bar.set_postfix_str(self.line(), refresh=False)

    def line(self) -> str:
        """Accepted tasks per task done, leaks per reply, cost."""
        done = sum(self.counts.values())
        parts = [f"accepted {_percent(self.counts['accepted'], done)}", f"leak {_percent(self.leaks, self.replies)}"]
        return ", ".join(parts + ([f"cost {self.cost:.4g}"] if self.priced else []))

    def say(self, line: str) -> None:
        """A line above the live one."""
        if not self._bar.disable:
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leaves the live line as it is."""
        self._bar.close()


def standing(store: Store, prices: Prices = Prices()) -> dict:  # noqa: B008
    """Counts and rates of a store: {"tasks": per question type and "all", "teachers": per model and prompts, "codes": ...}.

    Args:
      store: whose.
      prices: to count the cost anew; without them the cost is what was counted when the replies came.
    """
    types = {task: facts["question_type"] for task, facts, _ in store.facts()}
    states = dict.fromkeys(types, "accepted")
    states |= dict.fromkeys(store.dropped(), "dropped")
    unanswered = store.unanswered()
    states |= dict.fromkeys(unanswered, "pending")
    tasks: dict[str, Counter] = defaultdict(Counter)
    for task, kind in types.items():
        for row in (kind, "all"):
            tasks[row].update({"tasks": 1, states[task]: 1})
    tasks["all"]["waiting"] = len(store.waiting())
    teachers: dict[tuple[str, str], dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    codes, first = Counter(), set()
    for row in store.attempts():
        found = json.loads(row["codes"])
        codes.update(found)
        sums = Counter({"errors": 1}) if row["status"] == "error" else _reply(row, found, first, prices)
        for kind in (row["type"], "all"):
            teachers[row["model"], row["prompt"]][kind].update(sums)
    return {
        "tasks": {kind: dict(row) for kind, row in sorted(tasks.items())},
        "teachers": [
            {"model": model, "prompts": prompt, "types": {kind: _rates(row) for kind, row in sorted(kinds.items())}}
            for (model, prompt), kinds in teachers.items()
        ],
        "codes": dict(codes.most_common()),
        "errors": dict(Counter(code for met in unanswered.values() for code in met)),
    }


def _reply(row, found: list[str], first: set, prices: Prices) -> Counter:
    key = (row["id"], row["model"], row["prompt"])
    opening = key not in first
    first.add(key)
    counted = row["tokens_in"] is not None and row["tokens_out"] is not None
    cost = prices.cost(row["tokens_in"], row["tokens_out"]) if prices.known else row["cost"]
    return Counter(
        {
            "replies": 1,
            "accepted": row["status"] == "accepted",
            "leaks": "leak" in found,
            "first": opening,
            "first_format": opening and not set(found) & set(FORMAT),
            "first_accepted": opening and row["status"] == "accepted",
            "counted": counted,
            "tokens_in": row["tokens_in"] or 0,
            "tokens_out": row["tokens_out"] or 0,
            "priced": cost is not None,
            "cost": cost or 0.0,
        }
    )


def _rates(row: Counter) -> dict:
    """The counts of one type of question with their rates; a rate over nothing is None."""

    def share(hits: str, of: str) -> float | None:
        return row[hits] / row[of] if row[of] else None

    numbers = {key: int(row[key]) for key in ("replies", "accepted", "leaks", "errors", "tokens_in", "tokens_out")}
    return numbers | {
        "accept_rate": share("accepted", "replies"),
        "first_accept_rate": share("first_accepted", "first"),
        "first_format_rate": share("first_format", "first"),
        "leak_rate": share("leaks", "replies"),
        "leak_interval": wilson(row["leaks"], row["replies"]) if row["replies"] else (0.0, 1.0),
        "cost": float(row["cost"]) if row["priced"] else None,
    }


def render(found: dict, path: str) -> str:
    """`standing` as text."""
    every = found["tasks"].get("all", {})
    lines = [
        f"{path}: {every.get('tasks', 0)} tasks: {every.get('accepted', 0)} accepted, {every.get('dropped', 0)} dropped, "
        f"{every.get('pending', 0)} pending ({every.get('waiting', 0)} of them in batches)"
    ]
    if found["errors"]:
        lines.append(f"pending after an error: {_listed(found['errors'])}")
    for teacher in found["teachers"]:
        lines += ["", f"model {teacher['model']}, prompts {teacher['prompts']}"]
        lines.append(
            f"{'type':<16}{'replies':>8}{'accepted':>10}{'1st format':>11}{'leak':>7}{'(95 %)':>15}{'tokens in':>12}{'out':>9}  cost"
        )
        for kind, row in sorted(teacher["types"].items(), key=lambda pair: (pair[0] == "all", pair[0])):
            low, high = row["leak_interval"]
            rates = [_rate(row[key]) for key in ("accept_rate", "first_format_rate", "leak_rate")]
            cost = "-" if row["cost"] is None else f"{row['cost']:.4g}"
            lines.append(
                f"{kind:<16}{row['replies']:>8}{rates[0]:>10}{rates[1]:>11}{rates[2]:>7}{f'{100 * low:.1f}-{100 * high:.1f}':>15}"
                f"{row['tokens_in']:>12}{row['tokens_out']:>9}  {cost}"
            )
    if found["codes"]:
        lines += ["", f"codes of refused replies and errors: {_listed(found['codes'])}"]
    return "\n".join(lines)


def estimate(store: Store, ids: list[str], prompts: Prompts, model: str, prices: Prices) -> dict:
    """Tokens and cost of asking tasks, before it is done: from what replies have cost so far, or by rules of thumb.

    Returns:
      {"tasks", "requests", "tokens_in", "tokens_out", "cost" (None without prices), "measured": replies that the means are over, or 0}.
    """
    spent = next(
        (
            t["types"]["all"]
            for t in standing(store)["teachers"]
            if (t["model"], t["prompts"]) == (model, prompts.version)
        ),
        None,
    )
    if spent and spent["replies"] >= MEASURED and spent["tokens_in"] and spent["tokens_out"]:
        requests = len(ids) / max(spent["accept_rate"], 0.2)
        per = [spent[key] / spent["replies"] for key in ("tokens_in", "tokens_out")]
        tokens = [round(requests * each) for each in per]
        measured = spent["replies"]
    else:
        tokens, requests, measured = [0, 0], len(ids), 0
        system, wanted = len(prompts.system) / LETTERS_PER_TOKEN, set(ids)
        for _, facts, size in store.facts(wanted):
            kind = prompts.kind(facts["question_type"])
            shown = len(json.dumps(kind["examples"][0]["reply"]))
            words = len(prompts.files["user.txt"]) + len(kind["guidance"]) + len(facts["question"]) + shown
            height, width = view_size(*size)
            tokens[0] += round(system + words / LETTERS_PER_TOKEN + height * width / PIXELS_PER_TOKEN)
            tokens[1] += round(shown / LETTERS_PER_TOKEN)
    return {
        "tasks": len(ids),
        "requests": round(requests),
        "tokens_in": tokens[0],
        "tokens_out": tokens[1],
        "cost": prices.cost(*tokens),
        "measured": measured,
    }


def _percent(hits: int, total: int) -> str:
    return f"{100 * hits / total:.1f}%" if total else "-"


def _rate(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _listed(counts: dict) -> str:
    return ", ".join(f"{code} {number}" for code, number in counts.items())
