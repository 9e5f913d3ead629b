"""Predictions in the files that lmms-eval, VLMEvalKit and MedEvalKit read, so that their scorers can be run on answers made here.

    lmms_eval     a log that its model `from_log` replays: --model from_log --model_args logs=FOLDER
    vlmevalkit    MODEL_DATASET.tsv, scored by run.py --mode eval with PRED_FORMAT=tsv
    medevalkit    results.json, the samples that a benchmark's `cal_metrics` takes

The first two know a question by its place in their own file, not by an id. So the items must be the whole split in its order, or
`indices` must name each one's place. These formats were written from the programs' code and not run through them.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vital_jax.evaluate.items import Item
from vital_jax.evaluate.protocols.core import Row, family, pair
from vital_jax.evaluate.protocols.medevalkit import prompt
from vital_jax.evaluate.protocols.medevalkit_compat import choices
from vital_jax.scoring.choice import letter

# Their names of tasks and data sets, by benchmark and split.
LMMS_TASKS = {
    ("slake", "test"): "slake", ("slake_en", "test"): "slake_en", ("slake_zh", "test"): "slake_zh",
    ("mmmu_health", "validation"): "mmmu_val",
}  # fmt: skip
VLM_SETS = {
    ("pathvqa", "validation"): "PathVQA_VAL", ("pathvqa", "test"): "PathVQA_TEST", ("omnimedvqa", "test"): "OmniMedVQA",
    ("medxpertqa_mm", "test"): "MedXpertQA_MM_test", ("mmmu_health", "validation"): "MMMU_DEV_VAL",
}  # fmt: skip
# Their data set holds more questions, so a place in the benchmark here is no place in it.
PARTS = ("mmmu_health",)


def _places(items: Sequence[Item], indices: Mapping[str, int | str] | None) -> list[int | str]:
    if indices is None:
        if parts := {item.benchmark for item in items} & set(PARTS):
            raise ValueError(
                f"{', '.join(sorted(parts))} is a part of their data set: give the index of each item's id in it"
            )
        return list(range(len(items)))
    if lacking := [item.id for item in items if item.id not in indices]:
        raise ValueError(f"indices lack {len(lacking)} items, the first {lacking[0]!r}")
    return [indices[item.id] for item in items]


def _one(items: Sequence[Item], name: str, names: Mapping[tuple[str, str], str], harness: str) -> str:
    found = {(item.benchmark, item.split) for item in items}
    if len(found) != 1:
        raise ValueError(f"{harness} takes one benchmark and split a file, got {sorted(found)}")
    if not name and not (name := names.get(one := next(iter(found)), "")):
        raise ValueError(f"{harness} has no data set known here for {' '.join(one)}; give its name")
    return name


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="")
    return part.replace(path)


def export_lmms_eval(
    items: Sequence[Item],
    predictions: Sequence[Row] | Mapping[str, str],
    folder: str | Path,
    model: str,
    task: str = "",
    indices: Mapping[str, int | str] | None = None,
) -> Path:
    """Writes `<task>.json` for lmms-eval's `from_log`; returns its path.

    Args:
      items: the split, in its order. predictions: as `protocols.apply` takes them. model: the name in the log.
      task: lmms-eval's; found for benchmarks that it has. indices: {id: doc_id}, by default the places in `items`.
    Raises: ValueError, as `protocols.core.pair`, an unknown task, or items that are only a part of its task's without indices.
    """
    task = _one(items, task, LMMS_TASKS, "lmms-eval")
    pairs, places = pair(items, predictions), _places(items, indices)
    logs = [
        {"doc_id": place, "target": item.gold or item.answer, "resps": [[row["prediction"]]]}
        for (item, row), place in zip(pairs, places, strict=True)
    ]
    log = {"args": {"model": model, "model_args": "", "limit": None}, "model_configs": {"task": task}, "logs": logs}
    return _write(Path(folder) / f"{task}.json", json.dumps(log, ensure_ascii=False, indent=1) + "\n")


def export_vlmevalkit(
    items: Sequence[Item],
    predictions: Sequence[Row] | Mapping[str, str],
    folder: str | Path,
    model: str,
    dataset: str = "",
    indices: Mapping[str, int | str] | None = None,
) -> Path:
    """Writes `<model>_<dataset>.tsv` with the columns index, question, A, B ..., answer, prediction; returns its path.

    Args, raises: as `export_lmms_eval`; dataset: VLMEvalKit's name. indices: {id: value of the column "index" in its TSV}.
    """
    dataset = _one(items, dataset, VLM_SETS, "VLMEvalKit")
    if not model or not all(part.isalnum() or part in "-_." for part in model):
        raise ValueError(f"model {model!r} becomes a part of a file's name: letters, digits, '-', '_' and '.' only")
    pairs, places = pair(items, predictions), _places(items, indices)
    names = [letter(place) for place in range(max(len(item.options) for item in items))]
    extra = [
        key for key in ("modality", "question_type", "subject", "task") if any(item.metadata.get(key) for item in items)
    ]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "question", *names, "answer", *extra, "prediction"])
    for (item, row), place in zip(pairs, places, strict=True):
        options = [*item.options, *[""] * (len(names) - len(item.options))]
        more = [str(item.metadata.get(key, "")) for key in extra]
        writer.writerow([place, item.question, *options, item.gold or item.answer, *more, row["prediction"]])
    return _write(Path(folder) / f"{model}_{dataset}.tsv", text.getvalue())


def export_medevalkit(
    items: Sequence[Item], predictions: Sequence[Row] | Mapping[str, str], folder: str | Path
) -> Path:
    """Writes results.json, one benchmark a file; returns its path.

    Args, raises: as `export_lmms_eval`.
    """
    _one(items, "results", {}, "MedEvalKit")
    samples = [_sample(item) | {"response": row["prediction"]} for item, row in pair(items, predictions)]
    return _write(Path(folder) / "results.json", json.dumps(samples, ensure_ascii=False, indent=4) + "\n")


def _sample(item: Item) -> dict[str, Any]:
    sample: dict[str, Any] = {"id": item.id, "prompt": prompt(item), "question": item.question}
    metadata = item.metadata
    if item.options:
        sample |= {"choices": choices(item), "answer": item.gold}
    else:
        sample |= {"answer": item.answer}
    match family(item.benchmark):
        case "slake":
            sample |= {"lang": metadata.get("language", "en"), "answer_type": "CLOSED" if item.closed else "OPEN"}
        case "omnimedvqa":
            # One of its versions reads one name, one the other.
            sample |= {key: metadata.get("modality", "") for key in ("modality_type", "modality")}
            sample |= {"question_type": metadata.get("question_type", "")}
        case "medxpertqa":
            sample |= {"question_type": metadata.get("question_type", ""), "medical_task": metadata.get("task", "")}
    return sample


EXPORTS = {"lmms_eval": export_lmms_eval, "vlmevalkit": export_vlmevalkit, "medevalkit": export_medevalkit}
