"""What a protocol is, and one way from items and predictions to scores that say what they are scores of.

A number without its denominator is the reason why published tables of this field cannot be compared (a "closed accuracy" of VQA-RAD may
be of 251, 272 or 451 questions). So a measure states in words which questions it counts, and every score carries their number and an
interval.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vital_jax.evaluate.intervals import clustered_macro, clustered_mean, wilson_macro
from vital_jax.evaluate.items import Item
from vital_jax.evaluate.score import markdown, percent
from vital_jax.scoring.choice import letters_of
from vital_jax.scoring.reading import spoken
from vital_jax.statistics import wilson

Row = dict[str, Any]
# Scores are broken down by these keys of an item's metadata wherever the items differ in them.
KEYS = ("modality", "question_type", "language", "subject", "task")
# What `Protocol.needs` asks of items that must be answered in words.
NO_OPTIONS = ("no options", lambda item: not item.options)
CARRIED = ("K", "tokens", "latency")  # of a prediction, kept in its row
SHOWN = 5  # ids named in an error
# A benchmark's parts and languages ("slake_en", "pmc_vqa_2", "mmmu_pro_health") follow the rules of one family; the first that fits.
FAMILIES = ("vqa_rad", "slake", "pathvqa", "pmc_vqa", "omnimedvqa", "medxpertqa", "mmmu_pro", "mmmu", "gemex")


class ScorerStops(ValueError):
    """Raised where a scorer that is reproduced ends with an error instead of a score."""


@dataclass(frozen=True)
class Parsed:
    """What an answer says.

    Attributes:
      text: the answer, without reasoning in front of it. value: what it is taken to say; "" where it says nothing that can be used.
      how: the rule that found it ("letter", "nearest", "none" ...). "guess" asks `apply` to draw one of the letters.
      judge: the verdict of a judge that somebody ran, None where there is none.
    """

    text: str
    value: str
    how: str = ""
    judge: bool | None = None


@dataclass(frozen=True)
class Measure:
    """One kind of score.

    Attributes:
      name: as tables show it. rule: which questions are its denominator, in words.
      score: an item and its parsed answer to a number, None where the question is not counted.
      share: the numbers are 0 and 1 and their mean a proportion.
    """

    name: str
    rule: str
    score: Callable[[Item, Parsed], float | None]
    share: bool = True


@dataclass(frozen=True)
class Protocol:
    """A way to ask and to score.

    Attributes:
      name, version: a version changes whenever a prompt, a rule or a measure does.
      about: where it comes from and what it leaves open.
      prompt: what the model is asked. system: the system turn, "" for none.
      follow_up: the second user turn of a protocol with two, given after the model's first answer.
      parse, correct: what an answer says, and whether that is right; `correct` decides paired comparisons.
      measures: what is reported.
      needs: what every item must have, in words, with its test; None where any item will do.
      guess: seed of the generator that answers for a model where a scorer does that; None: nothing is guessed.
      options: how this protocol was made, as ("compat",).
    """

    name: str
    version: int
    about: str
    prompt: Callable[[Item], str]
    parse: Callable[[Item, str], Parsed]
    correct: Callable[[Item, Parsed], bool]
    measures: tuple[Measure, ...]
    system: str = ""
    follow_up: Callable[[Item], str] | None = None
    needs: tuple[str, Callable[[Item], bool]] | None = None
    guess: int | None = None
    options: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """ "medevalkit/1 compat": what a table must show beside a number."""
        return " ".join([f"{self.name}/{self.version}", *self.options])


@dataclass(frozen=True)
class Metric:
    """A score.

    Attributes:
      measure: its name. group: "all", "modality=CT", or "macro over modality" (the plain mean over the modalities).
      value: between 0 and 1 unless the measure says otherwise. n: questions counted. rule: which ones.
      low, high: the 95 % interval, None where there is none. interval: how it was made.
      unread: of the n, answers that could not be read. They are wrong; a scorer that guesses for a model gets some of them right.
    """

    measure: str
    group: str
    value: float
    n: int
    rule: str
    low: float | None
    high: float | None
    interval: str
    unread: int = 0


@dataclass(frozen=True)
class Scored:
    """Judged answers: `rows` as a predictions file holds them, `metrics` from them, and the protocol's label."""

    protocol: str
    rows: list[Row]
    metrics: list[Metric]

    def metric(self, measure: str, group: str = "all") -> Metric:
        """Raises: KeyError for a measure or group that was not scored."""
        for metric in self.metrics:
            if (metric.measure, metric.group) == (measure, group):
                return metric
        known = sorted({metric.measure for metric in self.metrics}, key=str)
        raise KeyError(f"no {measure!r} of {group!r} under {self.protocol}; measures are {', '.join(known)}")

    def table(self) -> str:
        """Overall and macro scores as a Markdown table in percent, with the rule of every denominator."""
        return self._table([m for m in self.metrics if "=" not in m.group], "denominator")

    def breakdown(self) -> str:
        """The same by modality, question type ...; empty where the items do not differ in any of them."""
        return self._table([m for m in self.metrics if "=" in m.group], "")

    def _table(self, metrics: Sequence[Metric], rule: str) -> str:
        if not metrics:
            return ""
        header = [
            f"{self.protocol}: measure",
            "group",
            "N",
            "unread",
            "%",
            "95 % interval",
            "interval by",
            *filter(None, [rule]),
        ]
        lines = []
        for metric in metrics:
            ends = (metric.low, metric.high)
            shown = "none" if None in ends else " to ".join(map(percent, ends))
            line = [metric.measure, metric.group, str(metric.n), str(metric.unread), percent(metric.value), shown]
            line.append(metric.interval)
            lines.append([*line, *([metric.rule] if rule else [])])
        return markdown(header, lines)


def family(benchmark: str) -> str:
    """ "slake_en" -> "slake"; a name of no family stays as it is."""
    return next((name for name in FAMILIES if f"{benchmark}_".startswith(f"{name}_")), benchmark)


def image_of(item: Item) -> str:
    """What questions about the same picture share: metadata "group" or "image_name", else the files, else the item itself."""
    for key in ("group", "image_name"):
        if item.metadata.get(key) not in (None, ""):
            return f"{item.benchmark}/{item.metadata[key]}"
    if item.images and not any(isinstance(image, bytes) for image in item.images):
        return "|".join(map(str, item.images))
    return f"{item.benchmark}/{item.id}"


def values_of(item: Item, key: str) -> tuple[str, ...]:
    """An item's values of a metadata key; a list has several ("POS, PRES" of VQA-RAD is two question types)."""
    value = item.benchmark if key == "benchmark" else item.metadata.get(key)
    parts = (
        value if isinstance(value, list | tuple) else str(value or "").split(",") if key == "question_type" else [value]
    )
    return tuple(sorted({str(part).strip() for part in parts if part not in (None, "") and str(part).strip()}))


def pair(items: Sequence[Item], predictions: Iterable[Row] | Mapping[str, Any]) -> list[tuple[Item, Row]]:
    """Items with their predictions, in the items' order.

    Args:
      predictions: rows with "id" and "prediction" (and "benchmark" where ids of several benchmarks clash), or {id: text}.
    Raises:
      ValueError: no items, an id twice, a prediction that is missing, belongs to no item or is no text; the message names the ids.
    """
    if isinstance(predictions, Mapping):
        predictions = [{"id": key, "prediction": text} for key, text in predictions.items()]
    if not items:
        raise ValueError("no items to score")
    if twice := _twice((item.benchmark, item.id) for item in items):
        raise ValueError(f"items named twice: {_shown(twice)}; give each its own id")
    rows = list(predictions)
    for row in rows:
        if "id" not in row or not isinstance(row.get("prediction"), str):
            said = type(row.get("prediction")).__name__
            raise ValueError(f"prediction of {row.get('id', 'no id')!r}: 'prediction' must be text, got {said}")
    keys = [(row.get("benchmark") or "", str(row["id"])) for row in rows]
    if twice := _twice(keys):
        raise ValueError(f"predicted twice: {_shown(twice)}; keep one line for each")
    by_key = dict(zip(keys, rows, strict=True))
    ids = Counter(item.id for item in items)
    pairs, lacking = [], []
    for item in items:
        found = by_key.pop((item.benchmark, item.id), None)
        if found is None and ids[item.id] == 1:
            found = by_key.pop(("", item.id), None)
        if found is None:
            lacking.append((item.benchmark, item.id))
        else:
            pairs.append((item, found))
    if lacking:
        raise ValueError(f"{len(lacking)} items have no prediction: {_shown(lacking)}; answer them, or leave them out")
    if by_key:
        raise ValueError(f"{len(by_key)} predictions belong to no item: {_shown(by_key)}; is this the right split?")
    return pairs


def _twice(keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [key for key, count in Counter(keys).items() if count > 1]


def _shown(keys: Iterable[tuple[str, str]]) -> str:
    names = ["/".join(filter(None, key)) for key in keys]
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def apply(
    protocol: Protocol,
    items: Sequence[Item],
    predictions: Iterable[Row] | Mapping[str, Any],
    draws: int = 1000,
    seed: int = 0,
) -> Scored:
    """Scores predictions.

    Args:
      predictions: as `pair` takes them; "judge" (true or false) of a row is the verdict of a judge that somebody ran.
      draws, seed: of the bootstrap intervals.
    Raises: ValueError, as `pair`, or an item that the protocol cannot score; ScorerStops, a reproduced scorer ends with an error here.
    """
    chance = random.Random(protocol.guess)
    rows, judged = [], []
    for item, row in pair(items, predictions):
        if protocol.needs and not protocol.needs[1](item):
            raise ValueError(
                f"item {item.id!r} of {item.benchmark!r}: {protocol.name} scores only items with {protocol.needs[0]}"
            )
        judge = row.get("judge")
        if not (judge is None or isinstance(judge, bool)):
            raise ValueError(f"prediction of {item.id!r}: 'judge' must be true or false, got {judge!r}")
        # Published scorers score the reasoning too; no other mode takes it for the answer.
        text = row["prediction"] if "compat" in protocol.options else spoken(row["prediction"])
        parsed = replace(protocol.parse(item, text), judge=judge)
        unread = parsed.how == "guess" or not parsed.value
        if parsed.how == "guess":
            parsed = replace(parsed, value=chance.choice(letters_of(item.options)))
        scores = {measure.name: measure.score(item, parsed) for measure in protocol.measures}
        judged.append((item, scores, unread))
        made = {"protocol": protocol.label, "benchmark": item.benchmark, "split": item.split, "id": item.id}
        made |= {"question": item.question, "gold": item.gold or item.answer, "prediction": row["prediction"]}
        made |= {"parsed": parsed.value, "how": parsed.how, "correct": bool(protocol.correct(item, parsed))}
        made |= {"measures": {name: score for name, score in scores.items() if score is not None}}
        made |= {"image": image_of(item)} | {key: item.metadata[key] for key in KEYS if item.metadata.get(key)}
        rows.append(made | {key: row[key] for key in CARRIED if key in row})
    metrics = [metric for measure in protocol.measures for metric in _metrics(measure, judged, draws, seed)]
    return Scored(protocol.label, rows, metrics)


def _metrics(
    measure: Measure, judged: Sequence[tuple[Item, dict[str, float | None], bool]], draws: int, seed: int
) -> list[Metric]:
    counted = [(item, score, unread) for item, scores, unread in judged if (score := scores[measure.name]) is not None]
    if not counted:
        return []
    made = [metric_of(measure, "all", counted, draws, seed)]
    for key in ("benchmark", *KEYS):
        groups = defaultdict(list)
        for one in counted:
            for value in values_of(one[0], key) or ("unknown",):
                groups[value].append(one)
        if len(groups) < 2:
            continue
        made += [metric_of(measure, f"{key}={value}", groups[value], draws, seed) for value in sorted(groups)]
        made.append(_macro(measure, key, groups, made[0], draws, seed))
    return made


def _macro(measure: Measure, key: str, groups: Mapping[str, list], whole: Metric, draws: int, seed: int) -> Metric:
    """The plain mean over groups. The bootstrap sees no chance in a group whose answers are all alike, and an interval from the groups' own
    sees no images: of both the wider end counts."""
    flat = [(score, image_of(item), value) for value, group in sorted(groups.items()) for item, score, _ in group]
    scores, images, strata = zip(*flat, strict=True)
    value, drawn = clustered_macro(scores, images, strata, draws=draws, seed=seed)
    ends, how = [drawn] if drawn else [], "bootstrap by image" if drawn else "one image"
    if all(0 <= score <= 1 for score in scores):
        ends.append(wilson_macro(scores, strata))
        how = "bootstrap by image and Wilson, the wider" if drawn else "Wilson by group"
    low, high = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (None, None)
    rule = f"the plain mean over {len(groups)} groups; {measure.rule}"
    return Metric(measure.name, f"macro over {key}", value, whole.n, rule, low, high, how, whole.unread)


def metric_of(
    measure: Measure, group: str, counted: Sequence[tuple[Item, float, bool]], draws: int = 1000, seed: int = 0
) -> Metric:
    """The score of a group: its items, their scores, and whether their answers could not be read."""
    items, scores, unread = zip(*counted, strict=True)
    n = len(scores)
    value = sum(scores) / n
    ends, how = None, "Wilson"
    if not measure.share:
        ends = clustered_mean(scores, list(map(image_of, items)), draws=draws, seed=seed)
        how = "bootstrap by image" if ends else "one image"
    # Scores that are all 0 or all 1 give a bootstrap nothing to draw; Wilson's is wide enough for any between.
    if measure.share or (ends and ends[0] == ends[1] and 0 <= value <= 1):
        ends, how = wilson(sum(scores), n), "Wilson"
    return Metric(measure.name, group, value, n, measure.rule, *(ends or (None, None)), how, sum(unread))
