"""The console script `vital`: its arguments, and the dispatch to the sub-commands; errors become one line and a status."""

import argparse
import functools
import json
import sys
import warnings
from typing import Any

from absl import logging

from vital_jax import __version__
from vital_jax.commands import answer, bench, checks, data, evaluate, explain, export, figure, fit, models
from vital_jax.commands.parser import Parser
from vital_jax.commands.values import DONE, EXITS, INCOMPLETE, INTERRUPTED, MISTAKE, count, whole
from vital_jax.pipeline.families import TITLES


def _parity(arguments: argparse.Namespace) -> int:
    from vital_jax.hub import folders
    from vital_jax.models.config import read_json

    folders.kind(arguments.model)
    read_json(arguments.model)
    from vital_jax.hub import parity

    print(parity.memory_plan(arguments.model, arguments.dtype), file=sys.stderr)
    report = parity.check(arguments.model, arguments.dtype, arguments.seed)
    if arguments.json:
        print(json.dumps(report))
        return DONE if report["passed"] else INCOMPLETE
    rows = {"logits": report["logits"], "vision": report["vision"]}
    rows |= {f"deepstack {i}": entry for i, entry in enumerate(report["deepstack"])}
    print(
        f"Errors against transformers in {report['exact']}: ours, of what is allowed (transformers' own in {report['dtype']})"
    )
    for name, entry in rows.items():
        errors = (
            f"{what} {entry[f'{m}error']:.1e} of {entry[f'{m}tolerance']:.1e} ({entry[f'{m}reference_error']:.1e})"
            for what, m in (("largest", ""), ("root mean square", "rms_"))
        )
        print(f"{name:<12} {', '.join(errors)}: {'passed' if entry['passed'] else 'FAILED'}")
    print(f"{'rope':<12} indices {'equal' if report['rope']['equal'] else 'DIFFER'}")
    return DONE if report["passed"] else INCOMPLETE


def _answer(arguments: argparse.Namespace) -> int:
    if bool(arguments.image) == bool(arguments.questions):
        raise ValueError(
            "--image FILE goes with --question and --interactive, and with them alone: --questions names its own"
        )
    if arguments.question is not None:
        checks.question(arguments.question)
    checks.images(arguments.image)
    checks.model(arguments, steps=arguments.steps)
    load = functools.partial(models.load, arguments, arguments.steps)
    show = functools.partial(_show, as_json=arguments.json)
    if arguments.questions:
        return answer.many(arguments, load)
    if arguments.interactive:
        return answer.talk(arguments, load(), show)
    model = load()
    show(
        model.answer(arguments.image, arguments.question, arguments.latent_steps, arguments.max_new_tokens), model.dtype
    )
    return DONE


def _show(found: Any, dtype: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer.as_json(found)), flush=True)
    else:
        for k, text in enumerate(found.steps or [], start=1):
            print(f"step {k}: {text}")
        if found.chain:
            print(f"reasoning: {' '.join(found.chain.split())}")
        print(found.text, flush=True)
    how = f"with K = {found.latent_steps} latent steps" if found.latent_steps else "without latents (K = 0)"
    cut = "" if found.complete else f"; cut at {len(found.tokens)} tokens (--max-new-tokens)"
    print(f"Research output, not a medical device. Answered {how}, in {dtype}{cut}.", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="vital", description="Latent-reasoning medical vision-language models.", epilog=EXITS)
    parser.add_argument("--version", action="version", version=f"vital_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    parity = commands.add_parser("parity", help=f"compare a local folder ({TITLES}) with transformers")
    parity.add_argument(
        "--model", required=True, metavar="FOLDER", help="a Hugging Face folder with config and safetensors"
    )
    parity.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="what both sides compute in"
    )
    parity.add_argument("--seed", type=int, default=0, help="of the random prompts")
    parity.add_argument("--json", action="store_true", help="print one JSON object")
    parity.set_defaults(run=_parity)
    asking = commands.add_parser("answer", help="answer questions about images", description=answer.__doc__)
    models.add_flags(asking)
    answer.add_flags(asking)
    asking.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="an image; give it again for several"
    )
    asking.add_argument(
        "--latent-steps",
        type=count,
        metavar="K",
        help="0 answers without latents; by default as many as it was trained with",
    )
    asking.add_argument("--steps", action="store_true", help="also print what each latent step says")
    asking.add_argument("--max-new-tokens", type=whole, metavar="T", help="where to cut an answer that does not end")
    asking.add_argument("--json", action="store_true", help="print one JSON object an answer")
    asking.set_defaults(run=_answer)
    data.register(commands)
    evaluate.register(commands)
    explain.register(commands)
    figure.register(commands)
    export.register(commands)
    bench.register(commands)
    fit.register(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a sub-command. What a user can mend is one line on standard error and exit status 2."""
    parser = _parser()
    arguments, arguments.overrides = parser.parse_known_args(argv)
    if arguments.overrides and not getattr(arguments, "overridable", False):
        parser.error(f"unrecognized arguments: {' '.join(arguments.overrides)}")
    try:
        # Libraries report through absl what means nothing to who typed the command.
        logging.set_verbosity(logging.ERROR)
        with warnings.catch_warnings():
            if not sys.warnoptions:
                for kind in (FutureWarning, DeprecationWarning):  # to those who write code
                    warnings.simplefilter("ignore", kind)
            # Ours are sentences to the one who typed the command, not places in the code.
            warnings.showwarning = lambda message, *_, **__: print(f"{_name(arguments)}: {message}", file=sys.stderr)
            return arguments.run(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{_name(arguments)}: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(f"{_name(arguments)}: stopped", file=sys.stderr)
        return INTERRUPTED


def _name(arguments: argparse.Namespace) -> str:
    """What was called, as its own messages begin: `vital data audit`."""
    return " ".join(filter(None, ("vital", arguments.command, getattr(arguments, "part", ""))))


if __name__ == "__main__":
    sys.exit(main())
