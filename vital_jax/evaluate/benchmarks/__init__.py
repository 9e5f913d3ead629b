"""The field's benchmarks, read where and as people have them: one table, one function.

    loaded = load("vqa_rad", "data/VQA_RAD", "test")
    print(loaded)                                     # 451 items of vqa_rad test, nothing dropped

Nothing is downloaded: a benchmark that is not there is an error that says where its owners give it and under which licence, in their words;
"not stated" where none was found. Each reader's file says which layouts it takes and which of them were tested on real files.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vital_jax.evaluate.benchmarks import gemex, medxpertqa, mmmu, omnimedvqa, own, pathvqa, pmc_vqa, slake, vqa_rad
from vital_jax.evaluate.benchmarks.files import Files
from vital_jax.evaluate.benchmarks.reading import Reading
from vital_jax.evaluate.items import Item


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
      read: collects a split's items. splits: it has; empty where any name may be one.
      where: its owners give it, empty for the user's own data. licence: as they state it.
    """

    read: Callable[[Reading], None]
    splits: tuple[str, ...]
    where: str
    licence: str


_SLAKE = (("train", "validation", "test"), "https://www.med-vqa.com/slake or Hugging Face BoKelvin/SLAKE", "CC BY 4.0")
_PMC = (("test",), "Hugging Face RadGenome/PMC-VQA (xmcmic/PMC-VQA)", "CC BY-SA; figures CC0 or CC BY, paper by paper")
_PRO = (("test",), "Hugging Face MMMU/MMMU_Pro", "Apache-2.0")
_OWN = ("", "yours")

BENCHMARKS: dict[str, Benchmark] = {
    "vqa_rad": Benchmark(
        vqa_rad.read,
        ("test", "train", "all"),
        "https://osf.io/89kps or Hugging Face flaviagiammarino/vqa-rad",
        "CC0 1.0",
    ),
    "slake": Benchmark(slake.read(), *_SLAKE),
    "slake_en": Benchmark(slake.read("en"), *_SLAKE),
    "slake_zh": Benchmark(slake.read("zh"), *_SLAKE),
    "pathvqa": Benchmark(
        pathvqa.read,
        ("test", "validation", "train"),
        "https://github.com/UCSD-AI4H/PathVQA or Hugging Face flaviagiammarino/path-vqa",
        "MIT",
    ),
    "pmc_vqa": Benchmark(pmc_vqa.read("test.csv"), *_PMC),
    "pmc_vqa_clean": Benchmark(pmc_vqa.read("test_clean.csv"), *_PMC),
    "pmc_vqa_2": Benchmark(pmc_vqa.read("test_2.csv"), *_PMC),
    "omnimedvqa": Benchmark(
        omnimedvqa.read,
        ("test",),
        "Hugging Face foreverbeliever/OmniMedVQA (OmniMedVQA.zip)",
        "not stated for the whole; each of its 42 data sets has its own",
    ),
    "mmmu_health": Benchmark(mmmu.read(), ("validation", "dev"), "Hugging Face MMMU/MMMU", "Apache-2.0"),
    "mmmu_pro_health": Benchmark(mmmu.read("standard (10 options)"), *_PRO),
    "mmmu_pro_health_4": Benchmark(mmmu.read("standard (4 options)"), *_PRO),
    "medxpertqa_mm": Benchmark(medxpertqa.read, ("test", "dev"), "Hugging Face TsinghuaC3I/MedXpertQA", "MIT"),
    "gemex": Benchmark(
        gemex.read,
        ("test",),
        "Hugging Face BoKelvin/GEMeX-VQA or https://github.com/Awenbocc/GEMeX-Project; images: MIMIC-CXR-JPG at PhysioNet",
        "not stated for the questions; images: PhysioNet Credentialed Health Data License",
    ),
    "records": Benchmark(own.read_records, (), *_OWN),
    "file": Benchmark(own.read_file, (), *_OWN),
}
_SAME = {"val": "validation", "validate": "validation"}


@dataclass(frozen=True)
class Loaded:
    """A split of a benchmark.

    Attributes:
      benchmark, split: which. items: in the order of the files.
      dropped: rows that became no item, by code (`benchmarks.reading` says what the codes mean). details: place and reason of each.
    """

    benchmark: str
    split: str
    items: list[Item]
    dropped: Counter[str]
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = ", ".join(f"{number} {code}" for code, number in sorted(self.dropped.items()))
        return f"{len(self.items)} items of {self.benchmark} {self.split}, {f'dropped: {counts}' if counts else 'nothing dropped'}"


def load(name: str, path: str | Path, split: str = "test", need_images: bool = False) -> Loaded:
    """Reads a split of a benchmark.

    Args:
      name: of `BENCHMARKS`.
      path: the folder or zip archive that holds it, or its question file.
      split: of the benchmark's; "val" and "validate" mean "validation".
      need_images: leave out items whose images are missing or unreadable, and count them. Otherwise they stay, and the error comes when an
        image is looked at: scoring finished predictions needs none.
    Raises:
      FileNotFoundError: it is not there; the message says where it comes from and under which licence.
      ValueError: an unknown name or split, a file that cannot be read, or no row that is an item.
      ImportError: the file needs pyarrow.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    benchmark, split = BENCHMARKS[name], _SAME.get(split, split)
    if benchmark.splits and split not in benchmark.splits:
        raise ValueError(f"{name}: no split {split!r} that can be scored; there are {', '.join(benchmark.splits)}")
    try:
        reading = Reading(name, split, Files(path))
        benchmark.read(reading)
    except FileNotFoundError as error:
        reason = str(error).removeprefix(f"{path}: ")
        source = f". {name} comes from {benchmark.where} (licence: {benchmark.licence})" if benchmark.where else ""
        raise FileNotFoundError(f"{path}: {reason}{source}") from error
    if need_images:
        reading.keep_readable()
    loaded = Loaded(name, split, reading.items, reading.dropped, tuple(reading.details))
    if not loaded.items:
        first = f"; the first: {loaded.details[0]}" if loaded.details else ""
        raise ValueError(f"{path}: {loaded}{first}")
    return loaded
