"""Says what a run can be asked for: captions in its words, classes, or only the captions that its data set stores.

Whoever asks a run for the wrong one of them is told the right one.
"""

from __future__ import annotations

from collections.abc import Sequence

from experiments.config.data_sets import captions_of, data_set_of
from experiments.data.sources.image_source import class_name
from experiments.errors import ConfigError
from experiments.evaluation.sampling.load_run import LoadedRun

NUM_EXAMPLES = 6
"""The number of classes that are sampled where none is named."""


def _require_prompts(run: LoadedRun, has_captions: bool, classes: Sequence[int], wants_map: bool) -> None:
    """Raises `ConfigError` for captions where the run knows classes, and for classes where it knows captions.

    Captions of a run on latents are refused too, and compute maps that it cannot have. Whether words and classes exist
    is seen when they are read (`caption_ids`).
    """
    config, path = run.config, run.run_dir.path
    if config.data.num_classes is not None:
        if has_captions:
            raise ConfigError(
                f"{path} is conditioned on classes and reads no captions.",
                f"Name classes from 0 to {config.data.num_classes - 1} instead: --class 0 --class 1.",
            )
    elif classes:
        raise ConfigError(
            f"{path} is conditioned on captions, so that --class {classes[0]} does not fit.", "Leave out --class."
        )
    elif not captions_of(config).in_words:
        where = f"{path} was trained on latents"
        if has_captions:
            raise ConfigError(f"{where}: its captions are those of its validation set.", "Leave out the captions.")
        if wants_map:
            raise ConfigError(f"{where}, of which no compute map is drawn.", "Leave out --compute-map.")
    if wants_map:
        require_unequal_compute(run)


def require_unequal_compute(run: LoadedRun) -> None:
    """Raises `ConfigError` for the compute map of a model in which all tokens get the same compute."""
    if run.config.routing.name == "dense":
        raise ConfigError(
            f"{run.run_dir.path} is a dense model, in which every token gets the same compute.",
            "Leave out the compute map.",
        )


def asked_of(run: LoadedRun, captions: list[str], classes: list[int], wants_map: bool = False) -> list[str] | list[int]:
    """Returns the captions or classes to sample: those that are given, or else the examples of the data set.

    Of a run that is conditioned on classes the examples are some that are far apart. Raises `ConfigError` for what the
    run cannot be asked for.
    """
    _require_prompts(run, bool(captions), classes, wants_map)
    if captions or classes:
        return captions or classes
    num_classes = run.config.data.num_classes
    if num_classes is None:
        return list(data_set_of(run.config).examples)
    return list(range(0, num_classes, -(-num_classes // NUM_EXAMPLES)))


def texts_of(run: LoadedRun, prompts: Sequence[str] | Sequence[int]) -> list[str]:
    """Returns prompts as texts: captions as they are, and the names of classes."""
    return [class_name(run.config.data, each) if isinstance(each, int) else each for each in prompts]
