"""`vital bench latency`: the paper's Figure 4 as a command. Time by stage and by K, with and without a chain of thought.

A ratio needs the same weights, rows and numbers of tokens on both sides, so a run's adapters are merged for a comparison; without one the
run is timed as it answers, adapters apart.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vital_jax.commands import checks, models
from vital_jax.commands.values import LIMIT, RECORDS, count, whole
from vital_jax.pipeline.families import TITLES
from vital_jax.statistics import spread

_RESEARCH = "Research software, not a medical device."
_FILES = ("latency.md", "latency.csv", "latency.json", "latency.svg")
_EPILOG = """\
Times belong to a machine that does nothing else. For other sizes than a trained model's, make random weights (D = width, L = layers):

  python -c "from vital_jax.hub.tiny import write_backbone as w; w('FOLDER', ['Is there a nodule?'], width=512, layers=8)"
  vital bench latency --model FOLDER --image FILE --question TEXT --answer-tokens 8 --against transformers --out OUT

Small models time how fast work is handed out, large ones how fast it is done. With `taskset -c 0,1` both sides keep to these cores.
On a machine with one GPU the same command computes in bfloat16 on both sides; torch has to be one with CUDA.
Research only, not a medical device.
"""


def register(commands: argparse._SubParsersAction) -> None:
    """Adds `bench` and its sub-commands to the parser of `vital`."""
    bench = commands.add_parser("bench", help="how long answering takes")
    parts = bench.add_subparsers(dest="part", required=True)
    about = "time by stage and by number of latent steps, also against transformers"
    latency = parts.add_parser(
        "latency",
        help=about,
        description=f"{about[0].upper()}{about[1:]}: VITAL's Figure 4.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    latency.set_defaults(run=_latency, text_decoder=None)
    latency.add_argument(
        "--model", required=True, metavar="FOLDER", help=f"a training run's folder, or a Hugging Face folder ({TITLES})"
    )
    latency.add_argument("--base", metavar="FOLDER", help="the run's base, where it is no longer where it was trained")
    asked = latency.add_mutually_exclusive_group(required=True)
    asked.add_argument("--image", type=Path, metavar="FILE", help="of one question, which fills every batch")
    asked.add_argument("--records", type=Path, metavar="RECORDS", help=f"{RECORDS}, whose questions are asked")
    latency.add_argument("--question", metavar="TEXT", help="about the image")
    latency.add_argument("--split", metavar="S", help="of the records, default test")
    latency.add_argument("--limit", type=whole, metavar="N", help=f"of the records {LIMIT}; default 8")
    latency.add_argument("--latent-steps", type=_list(count), default=[0, 1, 2, 3, 4], metavar="K,K", help="0,1,2,3,4")
    latency.add_argument("--batch", type=_list(whole), default=[1, 8], metavar="B,B", help="rows at once, default 1,8")
    latency.add_argument(
        "--answer-tokens",
        type=_list(_length),
        default=[8, None],
        metavar="T,free",
        help="fixed lengths of answers, and free: until the model ends them; default 8,free",
    )
    latency.add_argument(
        "--chain-tokens",
        type=count,
        default=100,
        metavar="C",
        help="of the chain of thought in text, before answers of fixed length; default 100, 0 leaves it out",
    )
    latency.add_argument("--repeats", type=whole, default=10, metavar="N", help="rounds that count, default 10")
    latency.add_argument("--warmup", type=count, default=2, metavar="N", help="rounds before them, default 2")
    latency.add_argument("--against", choices=("transformers",), help="time the same work there too; needs torch")
    latency.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="to compute in; default float32 on a CPU, else bfloat16"
    )
    latency.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help=f"gets {', '.join(_FILES)}; overwrites nothing"
    )


def _list(kind):
    def parse(text: str) -> list[Any]:
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))

    return parse


def _length(text: str) -> int | None:
    return None if text == "free" else whole(text)


def _latency(arguments: argparse.Namespace) -> int:
    if arguments.against:
        if not find_spec("torch"):
            raise ValueError("--against transformers needs torch, which is not installed")
        # Two processes share the accelerator: jax must not take most of its memory at its start.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    checks.free(arguments.out, *_FILES)
    checks.model(arguments)
    requests = _requests(arguments)
    from vital_jax.evaluate import latency, latency_page

    model = models.load(arguments)
    with ExitStack() as stack:
        engine, variables, dtype, folder, weights = stack.enter_context(_opened(arguments, model))
        for request in requests:  # what cannot be asked shows before minutes of compiling
            engine.shape(request)
        reference = None
        if arguments.against:
            import jax

            device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
            if not device:
                raise ValueError(f"--against transformers: torch has no {jax.default_backend()}; use a CPU or a GPU")
            _say("starting transformers in a process of its own")
            reference = stack.enter_context(latency.Reference(folder, dtype, device))
        timed = latency.measure(
            engine,
            variables,
            requests,
            latency.grid(arguments.batch, arguments.latent_steps, arguments.answer_tokens, arguments.chain_tokens),
            arguments.repeats,
            arguments.warmup,
            longest=model.answer_tokens,
            reference=reference,
            say=_say,
        )
        setting = _setting(arguments, engine, variables, requests, dtype, weights, reference)
    title = f"Latency of {Path(arguments.model).resolve().name}"
    page = latency_page.to_markdown(timed, setting, title)
    texts = (page, latency_page.to_csv(timed), latency_page.to_json(timed, setting), latency_page.to_svg(timed, title))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in zip(_FILES, texts, strict=True):
        (arguments.out / name).write_text(text, encoding="utf-8", newline="")
    print(page, end="")
    _say(f"wrote {arguments.out}: {', '.join(_FILES)}")
    return 0


def _requests(arguments: argparse.Namespace) -> Sequence[Any]:
    """What is asked. Raises: ValueError, FileNotFoundError for flags that do not go together or what is not there."""
    if arguments.image:
        if arguments.split or arguments.limit:
            raise ValueError("--split and --limit are of --records; one image is one question")
        checks.question(arguments.question)
        files = checks.images([arguments.image])
        from vital_jax.latent.engine import Question

        return [Question(arguments.image.name, tuple(files), arguments.question)]
    if arguments.question:
        raise ValueError("--question is of --image; records hold their own")
    source = checks.records(arguments.records, arguments.split or "test")
    if not len(source):
        raise ValueError(f"{arguments.records}: split {source.split!r} is empty")
    return [source[number] for number in spread(range(len(source)), arguments.limit or 8)]


@contextmanager
def _opened(arguments: argparse.Namespace, model: Any) -> Iterator[tuple[Any, Any, str, Path, str]]:
    """(engine, variables, dtype, folder for transformers, what the weights are), in one precision throughout."""
    import jax
    import jax.numpy as jnp

    from vital_jax.hub.export import export
    from vital_jax.hub.load import load_backbone
    from vital_jax.latent.loop import variables_of

    dtype = arguments.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    folder = Path(arguments.model)
    if not arguments.against:
        cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
        params = {**model.params, "base": jax.tree.map(cast, model.params["base"])}
        backbone = model.method.model.clone(dtype=jnp.dtype(dtype))
        weights = "adapters apart" if "lora" in params else "whole"
        yield dataclasses.replace(model.engine, model=backbone), variables_of(params), dtype, folder, weights
        return
    if model.method.model.latent_state != "post_norm":
        raise ValueError(
            f"{folder} feeds back {model.method.model.latent_state} states, which the comparison does not know; leave out --against"
        )
    if not model.run and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no whole weights; for --against give a run's folder or a merged export")
    with tempfile.TemporaryDirectory(prefix="vital-bench-") as scratch:
        if model.run:
            folder = export(model.run, Path(scratch) / "merged", explain=False, say=_say)
        backbone, base = load_backbone(folder, None, jnp.dtype(dtype), dtype=jnp.dtype(dtype))
        engine = dataclasses.replace(model.engine, model=backbone)
        yield engine, {"params": base}, dtype, folder, "adapters merged" if model.run else "whole"


def _setting(
    arguments: argparse.Namespace, engine: Any, variables: Any, requests: Any, dtype: str, weights: str, reference: Any
) -> dict[str, str]:
    """What was measured on what; no folder of this machine is named."""
    import platform

    import jax

    from vital_jax.evaluate.latency import threads

    decoder = engine.model.config.decoder
    size = sum(x.size for x in jax.tree.leaves(variables))
    measured = [engine.encoder.measure(request) for request in requests]
    shapes = sorted({engine.shape(request) for request in requests})
    to = lambda values: " to ".join(map(str, sorted({min(values), max(values)})))  # noqa: E731
    found = {
        "model": f"{size / 1e6:,.1f} million parameters ({weights}), D = {decoder.width}, L = {decoder.layers}, V = {decoder.vocab}",
        "questions": f"{len(requests)}, prompts of {to([S for S, _ in measured])} tokens, {to([P for _, P in measured])} patches, "
        f"in programs of (S, P) = {', '.join(map(str, shapes))}",
        "computed": f"{dtype} on {jax.devices()[0].device_kind}, {threads()} host cores, jax {jax.__version__}, "
        f"Python {platform.python_version()}",
        "rounds": f"{arguments.repeats} after {arguments.warmup}",
    }
    if reference:
        facts = reference.facts
        found["transformers"] = (
            f"{facts['transformers']}, torch {facts['torch']} on {facts['device']}, {facts['threads']} threads, "
            f"attention {facts['attention']}, torch.compile {facts['compile']}"
        )
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr)
