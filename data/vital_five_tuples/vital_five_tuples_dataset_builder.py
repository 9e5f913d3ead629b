"""`vital_five_tuples`: what `vital data build` made, as a TFDS data set with a card, citations and tags.

Nothing is decided here: images, masks, questions, answers, chains and splits are the records of the factory's output, in its order, and
the schema is `pipeline.records`. Region features stay in sidecars beside the records (`vital data features`): they belong to
an encoder, not to the data. Training reads the records folder itself; this copy is for those who keep or hand on data as TFDS.

    builder = Builder(data_dir="DATA")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="OUT"))
    source = builder.as_data_source("train")
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds

from vital_jax.construct.pages import open_splits
from vital_jax.pipeline.records import FORMAT_VERSION, RecordSource, features, to_example


class Builder(tfds.core.GeneratorBasedBuilder):
    """One example per record; the splits that the factory made.

    Raises (while preparing):
      FileNotFoundError: the manual directory is neither the factory's output nor a record folder.
      ValueError: a file of the record folder was cut or changed.
    """

    VERSION = tfds.core.Version(f"{FORMAT_VERSION}.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The folder that `vital data build` wrote, or its records folder."
    url_infos = None  # nothing is downloaded, so there are no checksums to look for

    def __init__(self, file_format: str = "array_record", **options):
        """As TFDS, but for the format: the usual one needs TensorFlow and has no random access."""
        super().__init__(file_format=file_format, **options)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=features(), disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        sources = open_splits(dl_manager.manual_dir)
        return {split: self._generate_examples(source) for split, source in sources.items()}

    def _generate_examples(self, source: RecordSource) -> Iterator[tuple[int, dict]]:
        return ((number, to_example(record)) for number, record in enumerate(source))
