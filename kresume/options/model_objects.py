"""Names models that Python gives as objects, so that options stay text.

    spec = name_of(model)           # "object:5f0c9a1be2d4"
    found = model_of(spec)          # the model, in this process; None in any other

The name follows from the architecture: the same script in another process gives the same name, so that it continues its
run. Numbers at the ends of names count from 0 there, because Keras counts layers per process; seeds are left out, because
some layers draw theirs.
"""

from __future__ import annotations

import hashlib
import json
import re
import weakref
from contextvars import ContextVar
from typing import Any

from kresume.errors import UsageError
from kresume.spelling import option

PREFIX = "object:"
_MODELS: ContextVar[weakref.WeakValueDictionary[str, Any] | None] = ContextVar("models", default=None)
"""The models of this thread by name. The caller's own reference keeps a model here while its call runs."""
_TEXTS = re.compile(r'"([^"]*?)(?:_(\d+))?"')
_DRAWN = re.compile(r'"(shared_object_id|seed)": -?\d+')


def is_object(spec: str | None) -> bool:
    """Returns True for the name of a model that Python gave."""
    return (spec or "").startswith(PREFIX)


def name_of(value: Any) -> str:
    """Returns the name of a model and keeps the model under it, as long as the caller holds it.

    Raises:
        UsageError: it is no model of Keras 3, or Keras cannot record its architecture.
    """
    if isinstance(value, type) or not (hasattr(value, "to_json") and hasattr(value, "get_weights")):
        raise UsageError(
            f"{option('model', type(value).__name__)}: give a keras.Model, or the name of what builds one: 'file.py:function' "
            "for example"
        )
    libraries = [kind.__module__.partition(".")[0] for kind in type(value).__mro__]
    if "keras" not in libraries:
        library = next((each for each in libraries if "keras" in each), libraries[0])
        raise UsageError(
            f"{option('model', type(value).__name__)}: is a model of {library}, expected one of Keras 3: save it with "
            "model.save('model.h5'), and give from_='model.h5'"
        )
    try:
        config = json.loads(value.to_json())
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(
            f"{option('model', type(value).__name__)}: Keras cannot record this model, so a run could not continue ({reason}): "
            "let get_config of your classes return every argument of their constructors"
        ) from error
    config = {key: held for key, held in config.items() if key not in {"compile_config", "build_config"}}
    numbers: dict[str, dict[str | None, int]] = {}

    def renumbered(match: re.Match[str]) -> str:
        seen = numbers.setdefault(match[1], {})
        return f'"{match[1]}_{seen.setdefault(match[2], len(seen))}"'

    text = _TEXTS.sub(renumbered, _DRAWN.sub("", json.dumps(config, sort_keys=True)))
    spec = f"{PREFIX}{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    models = _MODELS.get()
    if models is None:
        _MODELS.set(models := weakref.WeakValueDictionary())
    models[spec] = value
    return spec


def model_of(spec: str) -> Any | None:
    """Returns the model of a name; None if this process was not given it."""
    models = _MODELS.get()
    return None if models is None else models.get(spec)


def steps_of(value: Any) -> int:
    """Returns the number of updates that the optimizer of a compiled model has made."""
    iterations = getattr(getattr(value, "optimizer", None), "iterations", None)
    return 0 if iterations is None else int(iterations)
