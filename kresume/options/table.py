"""Lists every option of a training once: name, type, help, range, and how runs share it.

The command line, YAML files and Python all read this table. A new option is one field of one of its parts; where it has a
default that depends on nothing else, its value is one field of `kresume.options.settings.Settings`, and its help says
`{default}`.

In a `TrainConfig` None means "not given". A default is filled in where an option is used, so that a run can tell an option
that its parent had from one that nobody gave.
"""

from __future__ import annotations

from kresume.options.of_images import ImageOptions
from kresume.options.of_model import ModelOptions
from kresume.options.of_run import RunOptions
from kresume.options.of_training import TrainingOptions


class TrainConfig(RunOptions, TrainingOptions, ModelOptions, ImageOptions):
    """The options of `kresume train` and `kresume plan` as they were given; None where one was not.

    Pydantic lists the fields of the last class first.
    """
