"""How long answers take through `vital_jax.load(...).answer`, this checkout against another one, in turns inside one run.

    python benchmarks/answer_time.py --against ../vital_jax-other [--model FOLDER] [--rounds 40]

Each checkout answers in a process of its own that stays alive; the two take turns, so that what else the machine does meets both. A ratio
is the median over rounds of this checkout's seconds over the other's, with its quartiles. Processor time is the steadier of the two where
the machine is shared. Any folder that both read will do; steps for which a backbone was not trained cost what trained ones do.
"""

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

HERE = Path(__file__).resolve().parent.parent
CASES = [(K, B) for K in (0, 4) for B in (1, 8)]
TOKENS = 16


def serve(folder: str) -> None:
    """Answers a case for each line of the input: its wall and processor seconds. The first line says which code that is."""
    import vital_jax

    warnings.simplefilter("ignore")
    model = vital_jax.load(folder)
    draw = np.random.default_rng(0)
    from PIL import Image

    images = [Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(8)]
    print(json.dumps(str(Path(vital_jax.__file__).parent.parent)), flush=True)
    for line in sys.stdin:
        K, B = json.loads(line)
        questions = ["What does this image show?"] * B
        wall, processor = perf_counter(), process_time()
        answers = model.answer(images[:B], questions, latent_steps=K, max_new_tokens=TOKENS)
        took = perf_counter() - wall, process_time() - processor
        print(json.dumps([*took, [list(answer.tokens) for answer in answers]]), flush=True)


def started(checkout: Path, folder: str) -> subprocess.Popen:
    """A server with the code of a checkout. Raises: RuntimeError where it comes from elsewhere."""
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", "--model", folder],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = Path(json.loads(server.stdout.readline()))
    if found.resolve() != checkout.resolve():
        raise RuntimeError(f"asked for the code of {checkout}, and {found} was imported")
    return server


def ask(server: subprocess.Popen, case: tuple[int, int]) -> list:
    server.stdin.write(json.dumps(case) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="the other checkout")
    parser.add_argument("--model", default=str(HERE / "vital_jax/demo/weights/backbone"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.model)
    if options.against is None:
        parser.error("--against: name the checkout to compare with")
    pair = [started(path.resolve(), str(Path(options.model).resolve())) for path in (HERE, options.against)]
    print(
        "| K | batch | wall, this / other | processor, this / other | this, ms | same answers |\n|---|---|---|---|---|---|"
    )
    for case in CASES:
        same = ask(pair[0], case)[2] == ask(pair[1], case)[2]  # compiles
        times = np.empty((options.rounds, 2, 2))
        for number, row in enumerate(times):
            for place in (0, 1) if number % 2 else (1, 0):
                row[place] = ask(pair[place], case)[:2]
        low, middle, high = np.quantile(times[:, 0] / times[:, 1], (0.25, 0.5, 0.75), axis=0)
        ratios = [f"{m:.2f} ({a:.2f} to {b:.2f})" for a, m, b in zip(low, middle, high, strict=True)]
        took = 1000 * np.median(times[:, 0, 0])
        print(
            f"| {case[0]} | {case[1]} | {ratios[0]} | {ratios[1]} | {took:.1f} | {'yes' if same else 'NO'} |",
            flush=True,
        )
    for server in pair:
        server.stdin.close()
        server.wait()


if __name__ == "__main__":
    main()
