"""Runs the user's own Python: files of `--import` and the function of `--model`.

    code = own_code("mymodel.py:build", imports=["layers.py"])
    code.objects["focal_loss"]

An exception in that code becomes one line: its message, file and line. The rest is in the cause.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kresume.errors import KresumeError, ModelError
from kresume.options.model_objects import is_object
from kresume.spelling import option

OURS = str(Path(__file__).resolve().parents[1])
PREFIX = "kresume_user_"
"""Prefix of the names of modules that hold the user's code."""
LIBRARIES = ("site-packages", "dist-packages", "importlib", "<frozen")


@dataclass(frozen=True)
class OwnCode:
    """The user's code that a command names.

    Attributes:
        objects: classes and functions that its files define, by name.
        function: `FILE.py:FUNCTION` or `package.module:FUNCTION`, where `--model` names one.
    """

    objects: Mapping[str, Any] = field(default_factory=dict)
    function: str | None = None


def own_code(spec: str | None, imports: Sequence[str] = ()) -> OwnCode:
    """Gathers the classes and functions that the user's files define.

    Files that this process has already run are not run again.

    Args:
        spec: value of `--model`.
        imports: values of `--import`.

    Raises:
        ModelError: a file does not exist or cannot be run.
    """
    modules = [_module(file, "import") for file in imports]
    holder, _, function = (spec or "").rpartition(":")
    named = bool(holder) and is_function(spec or "")
    if named:
        modules.append(_module(holder, "model") if holder.endswith(".py") else _package(holder, "model", spec or ""))
    return OwnCode(_defined(modules), spec if named and function else None)


def is_function(spec: str) -> bool:
    """Returns True for a function: `FILE.py:FUNCTION` or `package.module:FUNCTION`."""
    return ":" in spec and not spec.startswith(("applications:", "hub:")) and not is_object(spec)


def run_files(files: Sequence[str]) -> dict[str, Any]:
    """Runs Python files and returns their classes and functions by name.

    Classes and functions that are not registered with Keras are included.

    Raises:
        ModelError: a file does not exist or cannot be run.
    """
    return _defined([_load_file(file, "import") for file in files])


def call_function(spec: str, offered: Mapping[str, Any]) -> Any:
    """Calls the function that a spec names.

    Args:
        spec: `FILE.py:FUNCTION` or `package.module:FUNCTION`.
        offered: arguments by name. Those that are None or that the function does not accept are left out.

    Raises:
        ModelError: the function does not exist, or raises; the message gives the reason, file and line.
    """
    function = load_function(spec, "model")
    with as_model_error(option("model", spec)):
        return function(**_accepted(function, offered))


def load_function(spec: str, given_as: str) -> Callable[..., Any]:
    """Returns the function that a spec names.

    Args:
        spec: `FILE.py:FUNCTION` or `package.module:FUNCTION`.
        given_as: the option that holds it, for messages.

    Raises:
        ModelError: the function does not exist.
    """
    holder, _, name = spec.rpartition(":")
    module = _load_file(holder, given_as) if holder.endswith(".py") else _package(holder, given_as, spec)
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise ModelError(f"{option(given_as, spec)}: {holder} has no function {name}")
    return function


@contextmanager
def as_model_error(what: str) -> Iterator[None]:
    """Turns any exception of the user's code into a one-line error with its location.

    Args:
        what: names what is done with the code, for the message.

    Raises:
        ModelError: the block raised.
    """
    try:
        yield
    except KresumeError:
        raise
    except Exception as error:
        raise ModelError(f"{what} failed ({last_line(error)})") from error


def last_line(error: BaseException) -> str:
    """Formats an exception and its location in the user's code as one line.

    For example, `"ValueError: no such size, mymodel.py, line 12"`.
    """
    said = innermost(error)
    where = _where(error)
    return f"{type(error).__name__}: {said[:300]}{f', {where}' if where else ''}"


def raised_in_own_code(error: BaseException) -> str | None:
    """Describes an exception that the user's code raised; None for any other exception.

    For code that raises later than it is loaded, for example in training.

    Args:
        error: the exception that reached the command line.
    """
    folders = {
        Path(str(module.__file__)).resolve().parent
        for name, module in list(sys.modules.items())
        if name.startswith(PREFIX) and getattr(module, "__file__", None)
    }
    where = _where(error, folders)
    return f"{where} raised {type(error).__name__}: {innermost(error)[:300]}" if where else None


def innermost(error: BaseException) -> str:
    """Returns the innermost reason of a Keras error, in one line.

    Keras wraps the reason in one message for each model around a layer.
    """
    text = str(error).rpartition("Exception encountered: ")[2].rpartition("Error encountered:")[2]
    text = text.partition(" Full object config: ")[0]
    if "Exception encountered when calling" in text:
        # Once per layer: "Exception encountered when calling NAME.call().\n\n\x1b[1mREASON\x1b[0m\n\nArguments received ..."
        inside = text.rpartition("Exception encountered when calling")[2].partition("\n")[2]
        text = inside.partition("Arguments received by")[0]
    text = re.sub(r"\{\{(function_)?node .*?\}\}", "", text)  # TensorFlow's name of the operation
    lines = [line.replace("\x1b[1m", "").replace("\x1b[0m", "").strip() for line in text.splitlines()]
    return next((line for line in lines if line), type(error).__name__)


def _where(error: BaseException, folders: Collection[Path] | None = None) -> str:
    """Returns file and line of the last frame in the user's code, if any.

    With `folders`, only files directly in these folders count.
    """
    seen: BaseException | None = error
    while seen is not None:
        for frame in reversed(traceback.extract_tb(seen.__traceback__)):
            file = frame.filename
            if folders is not None and Path(file).resolve().parent not in folders:
                continue
            theirs = not any(mark in file for mark in LIBRARIES) and not str(Path(file).resolve()).startswith(OURS)
            if theirs and not file.startswith("<") and Path(file).is_file():
                return f"{Path(file).name}, line {frame.lineno}"
        seen = seen.__cause__ or seen.__context__
    return ""


def _load_file(file: str, given_as: str) -> Any:
    """Runs a Python file that the user gave as the option `given_as` (`"model"` or `"import"`)."""
    path, given = Path(file), option(given_as, file)
    if not path.is_file():
        raise ModelError(f"{given}: the file does not exist (looked from {Path.cwd()})")
    name = _name_of(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{given}: this is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that Keras and pickle find classes that it defines
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # the file can import its neighbours, as with `python FILE.py`
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code may raise anything; the message is one line, the rest is in the cause
        frames = traceback.extract_tb(error.__traceback__)
        line = next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)
        where = f", line {line}" if line else ""
        raise ModelError(f"{given}{where}: running it failed ({type(error).__name__}: {error})") from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # its functions may import more when they are called
    return module


def _module(file: str, given_as: str) -> Any:
    loaded = sys.modules.get(_name_of(Path(file)))
    path = getattr(loaded, "__file__", None)
    return loaded if path and Path(path).resolve() == Path(file).resolve() else _load_file(file, given_as)


def _name_of(path: Path) -> str:
    return f"{PREFIX}{path.stem}"


def _package(name: str, given_as: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(f"{option(given_as, spec)}: the module {name} does not exist ({error})") from error


def _defined(modules: Sequence[Any]) -> dict[str, Any]:
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    }


def _accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in offered.items() if (takes_any or name in parameters) and value is not None}
