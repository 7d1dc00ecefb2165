"""The `zoo` command: picks the subcommand and imports nothing but it."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO

import zoo
from zoo.errors import UnknownNameError, ZooError, ZooWarning, suggest
from zoo.tables import printable

_LOOK = {
    "list": "the entries of the zoo: name, size, weights, licence",
    "show": "one entry: its card, where its weights are, its recipe, measured results",
    "doctor": "what is installed here, what can run, what is missing and how to get it",
    "data": "the packaged data: counts, licences, a contact sheet; tar shards from any source",
}
_TRAIN = {
    "fit": "train from a recipe: zoo fit --config recipes/vlm2vec.yaml",
    "validate": "measure a checkpoint, or the released weights, on the validation tasks",
    "test": "the same on the test tasks",
    "predict": "embed the data of a recipe",
}
_AROUND_TRAINING = {
    "cache": "encode the data of a recipe once, for training on frozen encoders",
    "compare": "train recipes with several seeds each on the same data, and put them into one table",
    "pair-select": "which image and text encoders agree most, from vectors of the same pairs",
}
_USE = {
    "embed": "embed a folder, Parquet or JSONL file into Parquet or NPY",
    "search": 'find pictures and texts: zoo search vlm2vec-emoji "a slice of pizza" --in emoji',
    "ambiguous": "the items of a collection that a probabilistic entry is least sure of",
    "export": "write ONNX graphs that give the same vectors without torch",
}
_GROUPS = {"look": _LOOK, "train and measure": {**_TRAIN, **_AROUND_TRAINING}, "use": _USE}
COMMANDS = {**_LOOK, **_TRAIN, **_AROUND_TRAINING, **_USE}

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. A `ZooError` becomes one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what the encoding can't
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        try:
            code = _dispatch(arguments)
            sys.stdout.flush()
            return code
        except ZooError as error:
            if os.environ.get("ZOO_TRACEBACK"):
                raise
            _print_problem("error", str(error), red=True)
            return EXIT_BAD_INPUT
        except KeyboardInterrupt:
            _print_problem("interrupted", "")
            return EXIT_INTERRUPTED
        except BrokenPipeError:  # `zoo list | head`: the reader has enough; Python must not complain again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    command, *rest = arguments
    if command in ("-V", "--version"):
        print(f"zoo {zoo.__version__}")
        return 0
    if command not in COMMANDS:
        kind = "option" if command.startswith("-") else "command"
        raise UnknownNameError(kind, command, COMMANDS, "(`zoo --help` lists all commands)")
    if command in _TRAIN:
        run_lightning: Callable[[str, list[str]], int] = importlib.import_module("zoo.commands.fit").run_lightning
        return run_lightning(command, rest)
    module = importlib.import_module(f"zoo.commands.{command.replace('-', '_')}")
    description, _, details = (module.__doc__ or COMMANDS[command]).partition("\n")
    parser = Parser(
        prog=f"zoo {command}",
        description=description,
        epilog=details.strip("\n") or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    code: int = module.run(parser.parse_args(rest))
    return code


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `ZooError`s, with the nearest right option."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        unknown = re.match(r"unrecognized arguments: (--?\S+)", message)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            nearest = suggest(unknown[1].partition("=")[0], known, most=1)
            message += f"; did you mean {nearest[0]}?" if nearest else ""
        raise ZooError(f"{self.prog}: {message} (`{self.prog} --help` explains)")


def _overview() -> str:
    lines = ["usage: zoo COMMAND ...    (zoo COMMAND --help explains it)", "", str(zoo.__doc__).partition("\n")[0]]
    for title, commands in _GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<12}{text}" for name, text in commands.items())]
    lines += ["", "A problem is one line; ZOO_TRACEBACK=1 shows where it came from. zoo --version prints the version."]
    return "\n".join(lines)


def _print_problem(kind: str, message: str, *, red: bool = False) -> None:
    head = f"{kind}:" if message else kind
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        head = f"\033[{31 if red else 33}m{head}\033[0m"
    print(f"{head} {printable(message)}".rstrip(), file=sys.stderr)


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, ZooWarning):
        _print_problem("warning", str(message))
    else:  # of a library: where it comes from matters
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=file or sys.stderr)
