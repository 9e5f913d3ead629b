"""The console script `vital`: each sub-command is a thin door into a room."""

import argparse
import json
import sys


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vital",
        description="Latent-reasoning medical vision-language models. Research software, not a medical device.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parity = commands.add_parser("parity", help="compare a local Qwen3-VL folder with transformers")
    parity.add_argument(
        "--model", required=True, metavar="FOLDER", help="a Hugging Face folder with config and safetensors"
    )
    parity.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16"), help="what both sides compute in"
    )
    parity.add_argument("--seed", type=int, default=0, help="of the random prompts")
    parity.add_argument("--json", action="store_true", help="print one JSON object")
    parity.set_defaults(run=_parity)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs a sub-command. What a user can mend is one line on standard error and exit status 2."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (FileNotFoundError, FileExistsError, ValueError, RuntimeError) as error:
        print(f"vital {arguments.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
