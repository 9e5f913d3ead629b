"""Prompts: text to tokens and back, through the checkpoint's own tokenizer and chat template.

The template is rendered with one placeholder per image, tokenized, and only then are the placeholders repeated, once
per merged token of the image. So a prompt costs the same to tokenize whatever its images' size. A question that itself
contains a control token would change the prompt's structure (one more image, an early end of turn) without any error
further on, so it is refused here.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch, which nothing here needs

import transformers  # its attributes are loaded on first use: importing this file brings in no deep-learning framework

from vital_jax.pipeline.images import Grid

_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.json", "chat_template.jinja"),
)


class Prompter:
    """The tokenizer, chat template and image tokens of a model folder.

    Args:
      folder: a local Hugging Face model folder (nothing is downloaded, no code of the folder is run). A text model's
        folder serves for `encode_text` and `decode`.
      added: texts of control tokens that a method adds. Those that the tokenizer does not have yet take the rows behind its last, which a
        padded vocabulary has to spare. Like all control tokens they are refused in questions and left out of decoded answers.

    Attributes: image_token_id and merge_size (None for a text model), end_token_id, the token that ends a turn, end_token_ids, that one and
      whatever else generation_config.json lets end an answer, and added, the ids of the added tokens by text.

    Raises:
      FileNotFoundError: no such folder, or its tokenizer or config is missing.
      ValueError: the folder has no chat template, or its config and tokenizer disagree, or the vocabulary has no room for the added tokens
        or lacks rows for tokens that the tokenizer has.
    """

    def __init__(self, folder: str | Path, added: Sequence[str] = ()):
        self.folder = Path(folder).absolute()
        config = self._json("config.json")
        # With these files missing, transformers builds a tokenizer without any vocabulary and says nothing.
        if not (self.folder / "tokenizer.json").is_file():
            for needed in ("vocab.json", "merges.txt"):
                if not (self.folder / needed).is_file():
                    raise FileNotFoundError(
                        f"{self.folder}: neither tokenizer.json nor {needed}; copy the tokenizer's files there"
                    )
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(self.folder), local_files_only=True, trust_remote_code=False
        )
        self.added = self._add(added, rows := config.get("text_config", config).get("vocab_size", 0))
        if rows:
            self._check_rows(rows)
        self.template = self._template()
        self.end_token_id = self.tokenizer.eos_token_id
        if self.end_token_id is None:
            raise ValueError(f"{self.folder}: the tokenizer has no eos_token, so no answer could end")
        self.end_token_ids = self._ends()
        self.image_token_id = config.get("image_token_id")
        self.merge_size = config.get("vision_config", {}).get("spatial_merge_size")
        known = self.tokenizer.added_tokens_decoder
        if self.image_token_id is not None and self.image_token_id not in known:
            raise ValueError(
                f"{self.folder}: image_token_id {self.image_token_id} is no special token of the tokenizer"
            )
        # <think> and its like are ordinary words of an answer; the <|...|> family steers the model.
        self.control_tokens = tuple(
            token.content for token in known.values() if token.special or token.content.startswith("<|")
        )

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} not found: expected a Hugging Face model folder")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{path} holds a {type(found).__name__}, not a JSON object; copy it from the checkpoint")
        return found

    def _add(self, texts: Sequence[str], rows: int) -> dict[str, int]:
        if strange := [text for text in texts if not text.strip() or texts.count(text) > 1]:
            raise ValueError(f"added tokens {list(texts)}: {strange[0]!r} is empty or there twice")
        vocabulary = self.tokenizer.get_vocab()
        new = [text for text in texts if text not in vocabulary]
        first = max(vocabulary.values()) + 1
        if new and first + len(new) > rows:
            raise ValueError(
                f"{self.folder}: no room for {len(new)} added tokens ({', '.join(new)}): the vocabulary has {rows} rows and the "
                f"tokenizer uses {first}"
            )
        self.tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False, special=True) for text in new])
        return {text: self.tokenizer.convert_tokens_to_ids(text) for text in texts}

    def _check_rows(self, rows: int) -> None:
        """A row that is not there is read as the last one, by XLA and without a word."""
        lost = sorted((number, text) for text, number in self.tokenizer.get_vocab().items() if number >= rows)
        if lost:
            some = ", ".join(f"{text!r} ({number})" for number, text in lost[:3])
            raise ValueError(
                f"{self.folder}: {len(lost)} tokens of the tokenizer have no row in the embeddings, which have {rows} (vocab_size of "
                f"config.json): {some}; take the base's own tokenizer files, or resize the model (resize_token_embeddings) and save it"
            )

    def _ends(self) -> tuple[int, ...]:
        if not (self.folder / "generation_config.json").is_file():
            return (self.end_token_id,)
        found = self._json("generation_config.json").get("eos_token_id") or []
        return tuple(dict.fromkeys([self.end_token_id, *(found if isinstance(found, list) else [found])]))

    def _template(self) -> str:
        """The chat template, in the order in which transformers' processors look for it."""
        if (self.folder / "chat_template.jinja").is_file():
            return (self.folder / "chat_template.jinja").read_text(encoding="utf-8")
        template = None
        if (self.folder / "chat_template.json").is_file():
            template = self._json("chat_template.json").get("chat_template")
        elif self.tokenizer.chat_template:
            template = self.tokenizer.get_chat_template()
        if not template:
            raise ValueError(f"{self.folder}: no chat template; copy chat_template.json from the original checkpoint")
        return template

    @cached_property
    def fingerprint(self) -> str:
        """What tells its tokens from another's: the bytes of every file that they may come from, and the library that reads them."""
        digest = hashlib.sha256(transformers.__version__.encode())
        for path in filter(Path.is_file, (self.folder / name for name in _FILES)):
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    def __reduce__(self) -> tuple[type["Prompter"], tuple[str, tuple[str, ...]]]:
        return Prompter, (str(self.folder), tuple(self.added))

    def encode(
        self,
        question: str,
        grids: Sequence[Grid],
        system: str | None = None,
        name: str = "prompt",
        earlier: Sequence[tuple[str, str]] = (),
    ) -> np.ndarray:
        """The prompt up to and including the assistant's header: images first, then the question.

        Args:
          question: the user's text.
          grids: (1, rows, columns) of each image, in patches.
          system: a system message; None leaves it to the template.
          name: the sample, as errors call it.
          earlier: (question, answer) of the turns before this one; the images then stand before the first of them.

        Returns:
          [S'] int32.

        Raises:
          ValueError: the text contains a control token, or the template does not place every image once.
        """
        turns = [text for turn in earlier for text in turn] + [question]
        for text in (*turns, system or ""):
            self._refuse_control(text, name)
        images = [{"type": "image"}] * len(grids)
        messages: list[dict[str, Any]] = [
            {"role": ("user", "assistant")[place % 2], "content": [{"type": "text", "text": text}]}
            for place, text in enumerate(turns)
        ]
        messages[0]["content"][:0] = images
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        ids = np.asarray(self.tokenizer.encode(text, add_special_tokens=False), np.int32)
        pads = ids == self.image_token_id
        if pads.sum() != len(grids):
            raise ValueError(f"{name}: the chat template of {self.folder} placed {pads.sum()} of {len(grids)} images")
        repeats = np.ones(len(ids), np.int64)
        repeats[pads] = [rows * columns // self.merge_size**2 for _, rows, columns in grids]
        return np.repeat(ids, repeats)

    def encode_text(self, text: str, end: bool = True, name: str = "text") -> np.ndarray:
        """Tokens of an answer or of one chain step, [n] int32; `end` appends the end-of-turn token.

        Raises:
          ValueError: the text contains a control token.
        """
        self._refuse_control(text, name)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return np.asarray([*ids, self.end_token_id] if end else ids, np.int32)

    def literal(self, text: str) -> list[int]:
        """Tokens of a text that a method's layout writes itself, control tokens included."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def banned(self, vocabulary: int, allowed: Sequence[int] = ()) -> np.ndarray:
        """[V] bool: ids that a model must not write: control tokens, but for those `allowed`, and what the tokenizer has no token for.

        An image token written by the model is taken for an image where the text is read again; a row of the padded vocabulary behind the
        tokenizer's last id is no text at all.
        """
        control = self.tokenizer.convert_tokens_to_ids(list(self.control_tokens))
        found = np.arange(vocabulary) > self.last_id
        for ids, value in ((control, True), (allowed, False)):
            found[[i for i in ids if i < vocabulary]] = value
        return found

    @cached_property
    def last_id(self) -> int:
        """The largest id that the tokenizer has a token for."""
        return max(self.tokenizer.get_vocab().values())

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of generated tokens up to the first that ends an answer, without special tokens."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        ends = np.flatnonzero(np.isin(ids, self.end_token_ids))
        return self.tokenizer.decode(ids[: ends[0]] if len(ends) else ids, skip_special_tokens=True)

    def _refuse_control(self, text: str, name: str) -> None:
        found = [token for token in self.control_tokens if token in text]
        if found:
            raise ValueError(
                f"{name}: the text contains the control token {found[0]}; remove it or spell it differently"
            )
