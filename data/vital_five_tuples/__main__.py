"""`python -m data.vital_five_tuples OUT DATA`: builds the data set and reads it back, without TensorFlow, whose own command needs it."""

import argparse
import sys
from pathlib import Path

import tensorflow_datasets as tfds

from data.vital_five_tuples.vital_five_tuples_dataset_builder import Builder


def main(argv: list[str] | None = None) -> int:
    """Builds, reads every example once, and says where it lies. What a user can mend is one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m data.vital_five_tuples", description=__doc__.split(":")[0])
    parser.add_argument("out", metavar="OUT", help="what `vital data build` wrote, or a record folder")
    parser.add_argument("data", metavar="DATA", help="where TFDS keeps data sets")
    arguments = parser.parse_args(argv)
    if not Path(arguments.out).is_dir():
        print(f"{arguments.out}: not a folder; name what `vital data build` wrote", file=sys.stderr)
        return 2
    try:
        builder = Builder(data_dir=arguments.data)
        if builder.data_path.exists():  # TFDS would take what is there for what was asked for
            raise FileExistsError(f"{builder.data_dir}: exists; remove it or choose another folder")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=arguments.out))
        for split, source in builder.as_data_source().items():
            print(f"{split}: {sum(1 for _ in source)} examples")
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        print(f"vital_five_tuples: {error}", file=sys.stderr)
        return 2
    print(f'read it with: tensorflow_datasets.builder_from_directory("{builder.data_dir}").as_data_source("train")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
