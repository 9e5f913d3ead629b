"""What an export needs beside its tensors, so that transformers answers as the run does.

The base's files, changed where the run had it otherwise.

A file that says already what the run had is the base's, byte by byte; another is the base's with these keys changed:

    config.json               whether the head is tied, said in both places; the type that is computed in
    tokenizer files           padding on the left; the tokens that the method added
    preprocessor_config.json  the limits of an image's size, as in training; also made of a base that has `processor_config.json` alone
    chat_template.jinja       of a base whose template is in the tokenizer's configuration, where processors do not look
    generation_config.json    greedy, as answers are here: what ends them, what is never written, how long they are

An adapter's folder holds them too: of its base a user then needs the weights alone.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vital_jax.hub.tokens import tokenizer_files
from vital_jax.hub.writing import Content, as_json
from vital_jax.models.families import read_config
from vital_jax.pipeline.images import ImageConfig
from vital_jax.pipeline.prompts import Prompter

_COPIED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|vocab|special_tokens_map|added_tokens|chat_template|preprocessor_config"
    r"|video_preprocessor_config|processor_config)\.json|merges\.txt|chat_template\.jinja|LICENSE.*|NOTICE.*"
)
_PARTS = ("text_config", "vision_config")
_DTYPES = ("dtype", "torch_dtype")  # 5.x's name and 4's; 4.57 reads either
Table = dict[str, Any]


def copies(folder: Path) -> dict[str, Content]:
    """The files of a model's folder that are neither weights nor somebody's notes."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _COPIED.fullmatch(path.name)}


def beside(
    base: Path, images: ImageConfig, dtype: str, tokens: Mapping[str, int], length: Callable[[], int]
) -> dict[str, Content]:
    """The files.

    Args:
      images: as the run resized them. dtype: to compute in. tokens: rows of added tokens, by text.
      length: the most tokens that are written; asked only of a base with a tokenizer, which no other base needs.
    Raises: as `Prompter`, for a tokenizer that cannot be used.
    """
    tied = read_config(base).decoder.tied
    files = copies(base) | tokenizer_files(base, tokens)
    _change(files, "config.json", lambda table: _config(table, tied, dtype))
    _change(files, "tokenizer_config.json", lambda table: {**table, "padding_side": "left"})
    _change(files, "processor_config.json", lambda table: _nested(table, images))
    if "preprocessor_config.json" not in files:  # 4.57 looks nowhere else
        files["preprocessor_config.json"] = as_json(_read(files["processor_config.json"])["image_processor"])
    _change(files, "preprocessor_config.json", lambda table: _resized(table, images))
    if "tokenizer_config.json" in files:
        prompter = Prompter(base, tuple(tokens))
        if not {"chat_template.json", "chat_template.jinja"} & files.keys():
            files["chat_template.jinja"] = prompter.template.encode()
        files["generation_config.json"] = as_json(_generation(prompter, read_config(base).decoder.vocab, length()))
    return files


def _read(content: Content) -> Table:
    data = content.read_bytes() if isinstance(content, Path) else content
    assert isinstance(data, bytes)
    return json.loads(data)


def _change(files: dict[str, Content], name: str, change: Callable[[Table], Table]) -> None:
    """Changes a JSON file where it is there and would not stay as it is."""
    if name in files and (made := change(table := _read(files[name]))) != table:
        files[name] = as_json(made)


def _config(table: Table, tied: bool, dtype: str) -> Table:
    """transformers 4.57 looks for the tie inside `text_config`, 5.x outside; where that is silent, a tied head is drawn at random."""
    places = {name: table[name] for name in _PARTS if name in table}
    if any(bool(place.get("tie_word_embeddings")) != tied for place in (table, table["text_config"])):
        table = {**table, "tie_word_embeddings": tied}
        places["text_config"] = {**table["text_config"], "tie_word_embeddings": tied}
    typed = {
        name: {key: dtype if key in _DTYPES else value for key, value in part.items()} for name, part in places.items()
    }
    return {**{key: value for key, value in table.items() if key != "torch_dtype"}, **typed, "dtype": dtype}


def _resized(table: Table, images: ImageConfig) -> Table:
    """By both names: 4.57's processor with Pillow forgets a `size` and takes defaults, the others may know no other."""
    smallest, largest = images.min_pixels, images.max_pixels
    size = {"shortest_edge": smallest, "longest_edge": largest}
    return {**table, "size": size, "min_pixels": smallest, "max_pixels": largest}


def _nested(table: Table, images: ImageConfig) -> Table:
    inner = table.get("image_processor")
    return table if inner is None else {**table, "image_processor": _resized(inner, images)}


def _generation(prompter: Prompter, vocabulary: int, length: int) -> Table:
    """As this package answers: the base's own settings are for other answers than those that were trained."""
    pad = prompter.tokenizer.pad_token_id
    banned = prompter.banned(vocabulary, (*prompter.end_token_ids, *prompter.added.values()))
    return {
        "do_sample": False,
        "eos_token_id": list(prompter.end_token_ids),
        "pad_token_id": prompter.end_token_id if pad is None else pad,
        "max_new_tokens": length,
        "suppress_tokens": np.flatnonzero(banned).tolist(),
    }
