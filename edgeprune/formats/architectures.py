"""Architectures by name: `torchvision:NAME`, `timm:NAME`, `pkg.module:factory` or `path/file.py:factory`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from edgeprune import compat  # noqa: F401  (torchvision and timm can be imported after it)
from edgeprune.errors import InputError
from edgeprune.lines import said
from edgeprune.usercode import calling_user_code, name_own
from edgeprune.userfile import check_defined, literal, run_file

_FORMS = "torchvision:NAME, timm:NAME, pkg.module:factory or path/file.py:factory"
_LIBRARIES = ("torch", "torchvision", "timm")  # what a line of theirs raises is told by the line that called it
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def build(spec: str, **overrides: Any) -> nn.Module:
    """Build the network that `spec` names, with random weights unless its arguments ask for others.

    Args:
        spec: e.g. `torchvision:resnet18?num_classes=10`, `models/digits.py:cnn?width=32`.
        overrides: more arguments; they win over those in `spec`.

    Raises:
        InputError: no such architecture, or its factory fails; names the line in the user's file.
    """
    source, name, arguments = parse(spec)
    arguments = {**arguments, **overrides}
    if source == "torchvision":
        factory: Callable[..., Any] = _torchvision(spec, name)
        arguments = _without_weights(factory, arguments)
    elif source == "timm":
        factory = _timm(spec, name)
        arguments = {"pretrained": False, **arguments}
    elif is_file(source):
        module = _module_from_file(spec, source)
        factory = _attribute(spec, module, name)
        check_defined(module, name, f"arch {spec}")
    else:
        factory = _attribute(spec, _module_from_name(spec, source), name)
    model = _call(spec, factory, arguments)
    if not isinstance(model, nn.Module):
        raise InputError(f"arch {spec}: expected an nn.Module from {name!r}, got {type(model).__name__}")
    return model


def part_of(model: nn.Module, name: str) -> nn.Module:
    """The part of a network with this dotted name, e.g. `backbone.body`.

    Raises:
        InputError: there is none; names the closest ones.
    """
    parts = {path: part for path, part in model.named_modules() if path}
    if name in parts:
        return parts[name]
    close = difflib.get_close_matches(name, parts, n=3) or [path for path in parts if "." not in path][:6]
    raise InputError(f"--module: expected a part of the {type(model).__name__}, got {name!r}; e.g. {', '.join(close)}")


def own_input_shape(model: nn.Module) -> tuple[int, ...] | None:
    """What the network says of itself: an attribute `input_shape`, or timm's configuration."""
    configuration = getattr(model, "default_cfg", None)
    shape = getattr(model, "input_shape", None)
    if shape is None and isinstance(configuration, Mapping):
        shape = configuration.get("input_size")
    if isinstance(shape, (tuple, list)) and shape and all(type(size) is int and size > 0 for size in shape):
        return tuple(shape)
    return None


def parse(spec: str) -> tuple[str, str, dict[str, Any]]:
    """Split `source:name?key=value&...`; values are Python literals where they can be, else strings.

    Example: `parse("timm:vit?depth=2&act=relu")` is `("timm", "vit", {"depth": 2, "act": "relu"})`.
    """
    path, _, query = spec.partition("?")
    source, colon, name = path.rpartition(":")
    if not colon or not source or not name:
        raise InputError(f"arch {spec}: expected {_FORMS}, got {path!r}")
    arguments: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(f"arch {spec}: expected key=value arguments, got {part!r}")
        arguments[key] = _literal(value)
    return source, name, arguments


def is_spec(text: str) -> bool:
    """Whether this looks like `source:name` rather than a file's path."""
    source, colon, name = text.partition("?")[0].rpartition(":")
    return bool(colon and len(source) > 1 and name.isidentifier())  # C:model is a path


def is_file(source: str) -> bool:
    """Whether the source of a spec is the path of a Python file."""
    return source.endswith(".py") or os.sep in source


def _literal(value: str) -> Any:
    """As Python writes it, or as other languages write true, false and none."""
    found = literal(value)
    return {"true": True, "false": False, "none": None}.get(value.lower(), value) if found is value else found


def _without_weights(factory: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Some torchvision builders fetch weights for the backbone alone unless told not to."""
    names = inspect.signature(factory).parameters
    return {**{name: None for name in ("weights", "weights_backbone") if name in names}, **arguments}


def _torchvision(spec: str, name: str) -> Callable[..., Any]:
    try:
        from torchvision import models
    except ImportError as error:
        raise InputError(f"arch {spec}: expected torchvision to be installed, got {said(error)}") from error
    if name not in models.list_models():
        raise _unknown(spec, name, models.list_models())
    builder: Callable[..., Any] = models.get_model_builder(name)
    return builder


def _timm(spec: str, name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"arch {spec}: expected timm to be installed, got {said(error)}; pip install timm") from error
    if not timm.is_model(name.split(".")[0]):
        raise _unknown(spec, name, timm.list_models())

    def factory(**arguments: Any) -> Any:
        return timm.create_model(name, **arguments)

    return factory


def _unknown(spec: str, name: str, known: Iterable[str]) -> InputError:
    close = difflib.get_close_matches(name, sorted(known), n=3)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return InputError(f"arch {spec}: expected a known name, got {name!r}{hint}")


def _module_from_file(spec: str, source: str) -> ModuleType:
    path = os.path.abspath(source)
    if not os.path.isfile(path):
        raise InputError(f"arch {spec}: expected the file {path}, got none")
    return run_file(path, f"arch {spec}: expected a file that runs, got")


def _module_from_name(spec: str, source: str) -> ModuleType:
    if not _DOTTED.fullmatch(source):
        raise InputError(f"arch {spec}: expected {_FORMS}, got {source!r}")
    folder = os.getcwd()
    sys.path.insert(0, folder)  # a console script does not look there by itself
    try:
        with calling_user_code(f"arch {spec}: expected a module that can be imported, got"):
            module = _imported(spec, source)
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module


def _imported(spec: str, source: str) -> ModuleType:
    try:
        module = importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name and (source == error.name or source.startswith(error.name + ".")):
            raise _no_module(spec, source) from error
        raise
    if source.partition(".")[0] not in _LIBRARIES:
        top = sys.modules[source.partition(".")[0]]
        for place in getattr(top, "__path__", [getattr(top, "__file__", None) or source]):
            name_own(place)
    return module


def _no_module(spec: str, source: str) -> InputError:
    close = difflib.get_close_matches(source, ("torchvision", "timm"), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return InputError(f"arch {spec}: expected {_FORMS}, got no module {source!r}{hint}")


def _attribute(spec: str, module: ModuleType, name: str) -> Callable[..., Any]:
    factory = getattr(module, name, None)
    if factory is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise _unknown(spec, name, known)
    if not callable(factory):
        raise InputError(f"arch {spec}: expected a function or class {name!r}, got a {type(factory).__name__}")
    return factory


def _call(spec: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    with calling_user_code(f"arch {spec}: expected a network, got"):
        return factory(**arguments)
