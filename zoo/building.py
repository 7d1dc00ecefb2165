"""A recipe's `model:` -> the module that it describes, with random weights: one's own recipe, or one from elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from torch.overrides import TorchFunctionMode

from zoo import trust
from zoo.module import EmbeddingModule
from zoo.parsing import AS_TEXT, explain, explain_built
from zoo.registry import import_parts, without_working_folder


def build_model(model: Mapping[str, Any], recipe: str) -> EmbeddingModule:
    """The module that a recipe's `model:` describes, with random weights.

    Raises:
        RecipeError: an unknown class or option, a wrong type; names it and the nearest right one. WeightsError: the recipe
            came from elsewhere and names what it may not (see `zoo.trust`).
    """
    import_parts()
    given = {"model": copy.deepcopy(dict(model))}  # the parser writes into what it is given
    if trust.source():
        return _built_from_elsewhere(given, recipe)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(EmbeddingModule, "model", required=True)
    try:
        settings = parser.parse_object(given)
    except ArgumentError as error:
        raise explain(error, recipe) from error
    return _instantiated(parser, settings, recipe)


def built_for_weights(model: Mapping[str, Any], recipe: str) -> EmbeddingModule:
    """`build_model` for weights that are loaded over it: draws nothing and leaves the caller's random numbers alone."""
    with torch.random.fork_rng(devices=[]), _NoDraws():
        return build_model(model, recipe)


class _NoDraws(TorchFunctionMode):
    """Within, tensors are not filled with random numbers: for billions of parameters that takes minutes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in (torch.Tensor.normal_, torch.Tensor.uniform_) else func(*args, **(kwargs or {}))


def tried_and_written_out(model: Mapping[str, Any], recipe: str) -> Any:
    """A recipe's model from elsewhere, for the command line: built once, without memory, so that it names nothing that it
    may not; and its classes as mappings, since the command line would look for files called like a bare name.

    Raises as `build_model`.
    """
    with torch.device("meta"):
        build_model(model, recipe)
    settings = _parsed_from_elsewhere({"model": model}, recipe)[1]
    return _written_out(model, settings.model)


# ---- from elsewhere --------------------------------------------------------------------------------------------------


def _built_from_elsewhere(given: dict[str, Any], recipe: str) -> EmbeddingModule:
    parser, settings = _parsed_from_elsewhere(given, recipe)
    with without_working_folder():
        return _instantiated(parser, settings, recipe)


def _parsed_from_elsewhere(given: dict[str, Any], recipe: str) -> tuple[ArgumentParser, Namespace]:
    trust.import_named(given)
    parser = ArgumentParser(exit_on_error=False, parser_mode=AS_TEXT)
    parser.add_argument("--model", type=EmbeddingModule, required=True)  # unlike subclass arguments, opens no files
    with trust.sealed() as refused:
        try:
            settings = parser.parse_object(copy.deepcopy(given))
        except ArgumentError as error:
            raise (trust.refusal(refused[0]) if refused else explain(error, recipe)) from error
    trust.check_parsed(settings.model)
    return parser, settings


def _instantiated(parser: ArgumentParser, settings: Namespace, recipe: str) -> EmbeddingModule:
    try:
        built: EmbeddingModule = parser.instantiate(settings).model
    except Exception as error:  # constructors of libraries raise what they like
        raise explain_built(error, recipe) from error
    return built


def _written_out(given: Any, parsed: Any) -> Any:
    if isinstance(given, str) and isinstance(parsed, Namespace):
        return {"class_path": parsed.class_path}
    if isinstance(given, Mapping) and isinstance(parsed, Mapping | Namespace):
        pairs = {key: (value, parsed.get(key)) for key, value in given.items()}
        kept = {key: pair for key, pair in pairs.items() if not (isinstance(pair[0], str) and callable(pair[1]))}
        return {key: _written_out(*pair) for key, pair in kept.items()}  # a function is the default, or was refused
    if isinstance(given, list) and isinstance(parsed, list | tuple):
        return [_written_out(*pair) for pair in zip(given, parsed, strict=True)]
    return given
