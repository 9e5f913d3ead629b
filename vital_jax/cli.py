"""The console script `vital`: each sub-command is a thin door into a room."""

import argparse
import dataclasses
import json
import sys
import warnings

from vital_jax.commands import bench, data, evaluate, explain, export, figure, fit, models
from vital_jax.commands.values import INTERRUPTED
from vital_jax.pipeline.families import TITLES


def _parity(arguments: argparse.Namespace) -> int:
    from vital_jax.hub import parity

    print(parity.memory_plan(arguments.model, arguments.dtype), file=sys.stderr)
    report = parity.check(arguments.model, arguments.dtype, arguments.seed)
    if arguments.json:
        print(json.dumps(report))
        return 0 if report["passed"] else 1
    rows = {"logits": report["logits"], "vision": report["vision"]}
    rows |= {f"deepstack {i}": entry for i, entry in enumerate(report["deepstack"])}
    for name, entry in rows.items():
        verdict = "passed" if entry["passed"] else "FAILED"
        print(
            f"{name:<12} largest difference {entry['max_abs_diff']:.2e}, tolerance {entry['tolerance']:.2e}: {verdict}"
        )
    print(f"{'rope':<12} indices {'equal' if report['rope']['equal'] else 'DIFFER'}")
    return 0 if report["passed"] else 1


def _answer(arguments: argparse.Namespace) -> int:
    from vital_jax import api

    try:
        model = models.load(arguments, arguments.steps)
        answer = model.answer(arguments.image, arguments.question, arguments.latent_steps, arguments.max_new_tokens)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"vital answer: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, api.RequestError) else 1
    if arguments.json:
        found = dataclasses.asdict(answer)
        print(json.dumps({"answer": found.pop("text"), **found}))
    else:
        for k, text in enumerate(answer.steps or [], start=1):
            print(f"step {k}: {text}")
        if answer.chain:
            print(f"reasoning: {' '.join(answer.chain.split())}")
        print(answer.text)
    how = f"with K = {answer.latent_steps} latent steps" if answer.latent_steps else "without latents (K = 0)"
    cut = "" if answer.complete else f"; cut at {len(answer.tokens)} tokens (--max-new-tokens)"
    print(f"Research output, not a medical device. Answered {how}{cut}.", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vital",
        description="Latent-reasoning medical vision-language models. Research software, not a medical device.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    answer = commands.add_parser("answer", help="answer a question about images")
    models.add_flags(answer)
    answer.add_argument(
        "--image", required=True, action="append", metavar="FILE", help="an image; give it again for several"
    )
    answer.add_argument("--question", required=True, metavar="TEXT")
    answer.add_argument(
        "--latent-steps",
        type=int,
        metavar="K",
        help="0 answers without latents; by default as many as it was trained with",
    )
    answer.add_argument("--steps", action="store_true", help="also print what each latent step says")
    answer.add_argument("--max-new-tokens", type=int, metavar="T", help="where to cut an answer that does not end")
    answer.add_argument("--json", action="store_true", help="print one JSON object")
    answer.set_defaults(run=_answer)
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
        with warnings.catch_warnings():
            # Ours are sentences to the one who typed the command, not places in the code.
            warnings.showwarning = lambda message, *_, **__: print(f"{_name(arguments)}: {message}", file=sys.stderr)
            return arguments.run(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{_name(arguments)}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{_name(arguments)}: stopped", file=sys.stderr)
        return INTERRUPTED


def _name(arguments: argparse.Namespace) -> str:
    """What was called, as its own messages begin: `vital data audit`."""
    return " ".join(filter(None, ("vital", arguments.command, getattr(arguments, "part", ""))))


if __name__ == "__main__":
    sys.exit(main())
