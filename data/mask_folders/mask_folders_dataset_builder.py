"""`mask_folders`: folders of images and masks as a TFDS data set of questions with answers and chains.

Nothing is decided here. `construct` reads the folders, asks, answers and splits; `pipeline.records` is the schema. What is built is what
training builds for itself from a recipe's `data.build`, for those who keep their data in TFDS or want to look before they train.

    builder = Builder(data_dir="OUT")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="FOLDER"))
    source = builder.as_data_source("train")
"""

import dataclasses
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import tensorflow_datasets as tfds

from vital_jax.construct.build import assign_splits, build_records
from vital_jax.construct.folders import MaskFolder
from vital_jax.pipeline.records import FORMAT_VERSION, features, to_example


@dataclasses.dataclass
class MaskFoldersConfig(tfds.core.BuilderConfig):
    """What is asked about each mask, and the shares of the splits.

    Attributes:
      questions: per mask, 1 to 6. seed: of the questions.
      val, test: shares of the groups; the rest is for training.
    """

    questions: int = 4
    seed: int = 0
    val: float = 0.075
    test: float = 0.075


class Builder(tfds.core.GeneratorBasedBuilder):
    """One example per question, in the order of the folders; a split that would be empty is left out.

    Raises (while preparing):
      FileNotFoundError: no folder with a `manifest.jsonl`, or a file that a manifest names is absent.
      ValueError: as `MaskFolder` and `build_records`; or no mask is left after those too small to learn from.
    """

    VERSION = tfds.core.Version(f"{FORMAT_VERSION}.0.0")
    BUILDER_CONFIGS = (MaskFoldersConfig(name="vital", description="Four questions per mask; 85 / 7.5 / 7.5."),)
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Folders of images and masks, each with a manifest.jsonl (vital_jax.construct.folders)."
    )
    url_infos = None  # nothing is downloaded, so there are no checksums to look for

    def __init__(self, file_format: str = "array_record", **options):
        """As TFDS, but for the format: the usual one needs TensorFlow and has no random access."""
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=features(), disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        root = Path(dl_manager.manual_dir)
        folders = sorted(path.parent for path in root.glob("*/manifest.jsonl"))
        if not folders:
            raise FileNotFoundError(f"{root}: no folder with a manifest.jsonl in it; name their parent as manual_dir")
        found = {}
        for split in ("train", "val", "test"):
            examples = self._generate_examples(folders, split)
            # TFDS refuses an empty split, and in a small folder one often is.
            if first := next(examples, None):
                found[split] = chain([first], examples)
        if not found:
            raise ValueError(f"{root}: no mask to ask about in {len(folders)} folders")
        return found

    def _generate_examples(self, folders: list[Path], split: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        samples = chain.from_iterable(MaskFolder(folder) for folder in folders)
        records = build_records(samples, config.questions, config.seed)
        pairs = assign_splits(records, config.val, config.test)
        return enumerate(to_example(record) for side, record in pairs if side == split)
