"""The table of docs/RESULTS.md: which backbone fits which slice, a line of `vital fit` each.

    python benchmarks/fit_table.py MODELS OUT [--only REGEX] [--whole]

To be started from the root of the repository. MODELS holds folders with a config.json each: qwen3_vl_2b, _4b, _8b, _32b, qwen3_1_7b,
medsiglip. OUT is a file of JSON lines that grows by one line a cell and is gone on with; the table of all of them is printed at the end.
TPU lines need the extra `fit`, GPU lines `cuda`.

Five sixths of the time of compiling for a TPU goes into machine code, after the compiler has planned its memory and fixed what is sent
where. So a TPU's cell is read from the compiler's own dump of that plan, and the compiler is stopped then; --whole lets it end. GPU cells
are always whole, and so is a cell that does not fit: the compiler ends there by itself.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vital_jax.latent.loop import LOOP
from vital_jax.run.fit import planned
from vital_jax.training import hlo

S, P = 1024, 3584


def _split(data: int, fsdp: int, **more: int) -> dict:
    return {"mesh.base": "fsdp", "mesh.data": data, "mesh.fsdp": fsdp} | more


# (backbone, topology, overrides), 128 rows where nothing else is said. 256 chips cannot share 128 rows: there it is one row a chip.
CELLS = (
    *((size, "v5e:4x4", _split(2, 8)) for size in ("2b", "4b", "8b")),
    ("32b", "v5e:4x4", _split(1, 16)),
    ("32b", "v5e:4x4", _split(1, 16, micro_batches=8)),
    *((size, "v5e:16x16", _split(32, 8, batch=256)) for size in ("2b", "4b", "8b")),
    ("32b", "v5e:16x16", _split(16, 16, batch=256)),
    *((size, "v5p:2x2x1", {}) for size in ("2b", "4b", "8b")),
    ("32b", "v5p:2x2x1", _split(1, 4)),
    *((size, "v6e:4x4", {}) for size in ("2b", "4b", "8b")),
    *((size, "v6e:4x4", _split(2, 8)) for size in ("4b", "8b", "32b")),
    *((size, "h200:1", {"micro_batches": 8}) for size in ("2b", "4b", "8b")),
    ("32b", "h200:1", {"micro_batches": 32}),
    *((size, "h200:8", {}) for size in ("2b", "4b", "8b")),
    ("32b", "h200:8", _split(1, 8)),
)


def run(models: Path, size: str, topology: str, overrides: dict, whole: bool) -> dict:
    """What is found of one cell. Raises: RuntimeError with the compiler's last words."""
    recipe = {
        "model.folder": models / f"qwen3_vl_{size}",
        "model.text_decoder": models / "qwen3_1_7b",
        "data.encoder": models / "medsiglip",
    }
    recipe |= overrides
    rows = overrides.get("batch", 128)
    command = [sys.executable, "-m", "vital_jax.cli", "fit", f"--config=configs/vital.py:qwen3_vl_{size}", "--json"]
    command += [f"--topology={topology}", f"--bucket={S},{P}", "--program=train"]
    command += [f"--config.{key}={value}" for key, value in recipe.items()]
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        environment = dict(os.environ) | {"TMPDIR": folder}
        process = subprocess.Popen(command, stdout=out.open("w"), stderr=err.open("w"), env=environment)
        start = time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(1)
                if not whole and (found := _plan(Path(folder))):
                    return found | {"seconds": time.monotonic() - start, "fits": True, "rows": rows}
        finally:
            process.kill()
            process.wait()
        if process.returncode not in (0, 1) or not out.read_text():
            raise RuntimeError(f"{size} on {topology}: {err.read_text().strip().splitlines()[-1]}")
        return json.loads(out.read_text())


def _plan(folder: Path) -> dict:
    """What the dump says, once it is there: the compiler writes the program last."""
    programs = list(folder.glob("*/*jit_train_step*.after_optimizations_after_buffer_assignment.txt"))
    if not programs or time.time() - programs[0].stat().st_mtime < 5:
        return {}
    sent = hlo.collectives(programs[0].read_text())
    facts = {"limit": None, "loop": hlo.sent(sent, LOOP), "total": hlo.sent(sent), "planned": True}
    return {"peak": planned(programs[0].parent)} | facts


def _line(cell: dict) -> str:
    peak, limit = cell["peak"], cell["limit"]
    verdict = "fits" if cell["fits"] else f"too much by {peak - limit:.2f}"
    mesh = (
        ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in cell["overrides"].items()) or "base replicated"
    )
    sent = ["", ""] if cell["total"] is None else [f"{cell['loop'] / 1e9:.3f}", f"{cell['total'] / 1e9:.1f}"]
    how = f"{cell['seconds']:.0f} s, {'planned' if cell.get('planned') else 'whole'}"
    named = [cell["size"].upper(), cell["topology"], mesh, str(cell["rows"])]
    return f"| {' | '.join([*named, f'{peak:.2f}', verdict, *sent, how])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="cells whose `SIZE TOPOLOGY` matches")
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    done = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    for size, topology, overrides in CELLS:
        known = {"size": size, "topology": topology, "overrides": overrides}
        if not re.search(arguments.only, f"{size} {topology}") or any(known.items() <= cell.items() for cell in done):
            continue
        done.append(known | run(arguments.models.resolve(), size, topology, overrides, arguments.whole))
        with arguments.out.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(_line(done[-1]), flush=True)
    print(
        "\n| backbone | slice | mesh | rows | GiB a chip | | loop GB | step GB | compiled in |\n|---|---|---|---|---|---|---|---|---|"
    )
    print(*map(_line, done), sep="\n")


if __name__ == "__main__":
    main()
