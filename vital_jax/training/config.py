"""Configuration files and their command line: `--config=FILE[:ARG] --config.KEY=VALUE ...`.

A recipe is a Python file with `get_config([ARG]) -> ConfigDict` (ml_collections); every leaf can be overridden from the
command line. A mistyped key would otherwise end in a traceback of the flag library, a mistyped value in a usage
page, and a tuple of another shape wherever it is first used: here each is one line that names the key and what there is
or what it must be, and exit status 2.
"""

import ast
import contextlib
import difflib
import numbers
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, FieldReference, config_flags
from ml_collections.config_flags import config_path

from vital_jax.training import distributed

USAGE = "--config=FILE[:ARG], for instance --config=configs/quickstart.py"
_MENDABLE = (OSError, ValueError, ArithmeticError, RuntimeError)
# Tuples that recipes may leave empty, which then cannot show what belongs there; by the last part of their path.
_EXAMPLES = {
    "compiler": (("xla_backend_optimization_level", "1"),),
    "table": (("base/.*", "frozen"), ("lora/.*", "trainable")),
    "runs": (("smaller rank", {"lora.rank": 8}),),
}


class _OrNone(flags.ArgumentParser[Any]):
    """Reads values with `read`, and the word None as None; whether a key may be that, `_misfit` says."""

    def __init__(self, read: Callable[[str], Any]):
        self.read = read

    def parse(self, argument: Any) -> Any:
        if argument == "None":
            return None
        return self.read(argument) if isinstance(argument, str) else argument


def _part(text: str) -> ConfigDict:
    with contextlib.suppress(SyntaxError, ValueError):
        if isinstance(found := ast.literal_eval(text), dict):
            return ConfigDict(found)
    raise ValueError("it is a part of the configuration: give {'key': value, ...}, or override its keys")


_READERS: dict[type, Callable[[str], Any]] = {
    str: str,
    int: flags.IntegerParser().parse,
    float: flags.FloatParser().parse,
    ConfigDict: _part,
}
for _kind, _read in _READERS.items():
    config_flags.register_flag_parser_for_type(_kind, _OrNone(_read))


def _items(node: Any) -> list[tuple[str, Any]]:
    """(path suffix, value) of a node's children: `.key` of a mapping, `[i]` of a sequence."""
    if isinstance(node, (ConfigDict, Mapping)):
        return [(f".{key}", node[key]) for key in node]
    if isinstance(node, (tuple, list)):
        return [(f"[{i}]", value) for i, value in enumerate(node)]
    return []


def keys(config: Any, prefix: str = "config") -> list[str]:
    """Every path of a configuration: `config.optim`, `config.optim.lr`, `config.phases[0].steps`."""
    return [path for suffix, value in _items(config) for path in (prefix + suffix, *keys(value, prefix + suffix))]


def unknown_key(config: ConfigDict, argument: str) -> str | None:
    """The complaint about an override (`--config.optim.lrr=1`) whose key the configuration lacks, or None."""
    known = keys(config)
    name = argument.partition("=")[0].lstrip("-")
    path = name if name in known or not name.startswith("no") else name.removeprefix("no")
    if path in known or not path.startswith("config."):
        return None
    parent, _, name = path.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == parent}
    # Compared without what all candidates share, which would make any two of them look alike.
    candidates = siblings or {key.removeprefix("config."): key for key in known}
    near = difflib.get_close_matches(name if siblings else path.removeprefix("config."), candidates, n=1)
    if near:
        return f"unknown key {path}; did you mean {candidates[near[0]]}?"
    return f"unknown key {path}; {parent if siblings else 'config'} has {', '.join(siblings or config)}"


def _shape(value: Any) -> Any:
    """The type of a value; of a row, those of its fields."""
    return tuple(map(_shape, value)) if isinstance(value, (tuple, list)) else type(value)


def _fits(shape: Any, like: Any) -> bool:
    if isinstance(shape, tuple) and isinstance(like, tuple):
        return len(shape) == len(like) and all(map(_fits, shape, like))
    return shape == like or (shape, like) == (int, float)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (tuple, list)) else value


def _must_be(path: str, own: Any) -> str:
    """What a key takes, with an example. own: what the recipe has there."""
    several = isinstance(own, tuple)
    if isinstance(own[0] if several else own, ConfigDict):
        return f"override its parts one by one, such as --{keys(own, path)[several]}=VALUE"
    if not several:
        return f"give a value such as {own!r}"
    comma = ", with a comma behind a single row" if isinstance(own[0], tuple) else ""
    return f'give a tuple such as --{path}="{own}"{comma}'


def _misfit(recipe: ConfigDict, path: str, value: Any) -> str | None:
    """The complaint about a value that its key cannot hold, or None. recipe: without overrides. path: `config.data.buckets`."""
    root, (parent, _, name) = ConfigDict({"config": recipe}, convert_dict=False), path.rpartition(".")
    own = config_path.get_value(path, root)
    if isinstance(own, tuple):
        example = _EXAMPLES.get(name, ())
        may_be_empty, own = not own or bool(example), own or example
        known = {_shape(item) for item in own}
        fits = all(any(_fits(_shape(item), like) for like in known) for item in value) if value else may_be_empty
        fits |= not own  # nothing says what belongs there
    else:  # optional is what a recipe made a placeholder
        holder = config_path.get_value(parent, root)
        fits = value is not None or isinstance(dict(holder.items(preserve_field_references=True))[name], FieldReference)
    return None if fits else f"{path} cannot be {value!r}: {_must_be(path, own)}"


def _check(config: ConfigDict, recipe: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Ends the process at an override that its key cannot hold."""
    for path, value in overrides.items():
        if complaint := _misfit(recipe, f"config.{path}", value):
            _refuse(complaint)
        if isinstance(value, tuple):
            config_path.set_value(path, config, _tuples(value))


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _recipe(argv: Sequence[str]) -> str:
    """The value of `--config` on a command line; the last one counts."""
    values = [
        following if argument in ("--config", "-config") else argument.partition("=")[2]
        for argument, following in zip(argv, [*argv[1:], ""], strict=True)
        if argument.lstrip("-").partition("=")[0] == "config"
    ]
    return values[-1] if values else ""


def _without_overrides(argv: Sequence[str]) -> ConfigDict:
    """The configuration as the recipe makes it."""
    own, alone = flags.FlagValues(), [argv[0], f"--config={_recipe(argv)}"]
    holder = config_flags.DEFINE_config_file("config", flag_values=own, sys_argv=alone)
    own(alone)
    return holder.value


def _parse(argv: Sequence[str], values: flags.FlagValues | None = None) -> list[str]:
    """absl's flag parser (the process's own, unless others are given), with every complaint in one line."""
    values = flags.FLAGS if values is None else values
    try:
        rest = values(argv)
        given = values.config is not None and bool(values.config.keys())
    except flags.Error as error:
        # What a recipe raises arrives as a traceback inside the message; its last line is what the recipe said.
        first, *more = str(error).strip().splitlines()
        if not more and (said := re.match(r"flag --(config\.[^=\s]+)=(.*?): Error while parsing", first)):
            own = config_path.get_value(said[1].removeprefix("config."), _without_overrides(argv))
            _refuse(f"{said[1]} cannot be {said[2]}: {_must_be(said[1], own)}")
        _refuse(f"{first.partition(': ')[0]}: {more[-1]}" if more else first)
    except OSError as error:
        # ml_collections keeps the failure to load a recipe and raises it on first use, with the failure as its cause.
        absent = not Path(_recipe(argv).partition(":")[0]).is_file()
        _refuse(f"--config={_recipe(argv)}: {'there is no such file' if absent else error.__cause__}")
    except (AttributeError, KeyError, IndexError):
        # An override without a field; anything else is a fault in the recipe and keeps its traceback.
        config = _without_overrides(argv)
        for argument in argv[1:]:
            if complaint := unknown_key(config, argument):
                _refuse(complaint)
            if (path := argument.partition("=")[0].lstrip("-")).endswith("]"):
                _refuse(f"{path} is one of several: {_must_be(path, config_path.get_value(path[7:], config))}")
        raise
    if not given:
        _refuse(f"no configuration given: use {USAGE}")
    if changed := config_flags.get_override_values(values["config"]):
        _check(values.config, _without_overrides(argv), changed)
    if len(rest) > 1:
        _refuse(f"unexpected argument {rest[1]!r}: overrides are --config.KEY=VALUE, the recipe is {USAGE}")
    return rest


def read(arguments: Sequence[str]) -> ConfigDict:
    """The configuration of `--config=FILE[:ARG] --config.KEY=VALUE ...`, for a command that has other arguments too.

    A mistake in them ends the process as in `run`.
    """
    own, argv = flags.FlagValues(), ["", *arguments]
    holder = config_flags.DEFINE_config_file("config", flag_values=own, sys_argv=argv)
    _parse(argv, own)
    return holder.value


def run(main: Callable[[ConfigDict], None]) -> None:
    """Runs `main(config)` on the command line's configuration.

    A command line that does not fit ends in one line and status 2; what a user can mend while it runs (a file, a record, a switch) in one
    line and status 1. With VITAL_TRACEBACK=1 in the environment the latter keeps its traceback. The other processes of the run end too.
    """
    config = config_flags.DEFINE_config_file("config", None, f"The recipe: {USAGE}.")
    logging.set_verbosity(logging.WARNING)  # libraries report every save and read through absl

    def guarded(_: Any) -> None:
        try:
            main(config.value)
        except Exception as error:
            if os.environ.get("VITAL_TRACEBACK") or not isinstance(error, _MENDABLE):
                traceback.print_exc()
            else:
                print(f"error: {error}\n(VITAL_TRACEBACK=1 shows where it was raised)", file=sys.stderr, flush=True)
            distributed.abandon(error)
            sys.exit(1)

    app.run(guarded, flags_parser=_parse)


def resolved(config: Any, path: str = "config") -> Any:
    """The configuration as plain JSON: dicts, lists, numbers, strings, null. What a checkpoint records.

    Raises: TypeError naming the key of a value JSON cannot hold.
    """
    if isinstance(config, FieldReference):
        config = config.get()
    if config is None or isinstance(config, (bool, str)):
        return config
    if isinstance(config, numbers.Integral):
        return int(config)
    if isinstance(config, numbers.Real):
        return float(config)
    if isinstance(config, (ConfigDict, Mapping)):
        return {str(key): resolved(config[key], f"{path}.{key}") for key in config}
    if isinstance(config, (tuple, list)):
        return [resolved(value, f"{path}[{i}]") for i, value in enumerate(config)]
    raise TypeError(
        f"{path} is a {type(config).__name__}, which JSON cannot hold: use numbers, strings, tuples and ConfigDicts"
    )


def steps_in_use(phases: Iterable[Any]) -> int:
    """K of every command, for all questions: the most steps that these phases take, also where a later one takes fewer."""
    return max(phase.latent_steps for phase in phases)


def total_steps(phases: Sequence[ConfigDict]) -> int:
    """Steps of all phases. Raises: ValueError without a phase, or naming a phase with fewer than one step."""
    if not phases:
        raise ValueError("config.phases is empty: give at least one phase")
    for i, phase in enumerate(phases):
        if phase.steps < 1:
            raise ValueError(f"config.phases[{i}].steps is {phase.steps}: a phase has at least one step")
    return sum(phase.steps for phase in phases)


def phase_at(phases: Sequence[ConfigDict], step: int) -> tuple[int, int]:
    """(index of the phase, steps done in it) when `step` steps of the run are done.

    After the last step: the last phase and its length.

    Raises: ValueError as `total_steps`, or for a step outside the run.
    """
    total = total_steps(phases)
    if not 0 <= step <= total:
        raise ValueError(
            f"step {step} is outside the run of {total} steps: give the phases more steps, or start in another folder"
        )
    for index, phase in enumerate(phases):
        if step < phase.steps:
            return index, step
        step -= phase.steps
    return len(phases) - 1, phases[-1].steps


def phase_start(phases: Sequence[ConfigDict], index: int) -> int:
    """Steps of the run done when phase `index` begins; one behind the last phase gives the run's length."""
    return sum(phase.steps for phase in phases[:index])
