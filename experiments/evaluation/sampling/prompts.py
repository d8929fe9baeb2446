"""Says what a run can be asked for: captions in its words, classes, or only the captions that its data set stores.

Whoever asks a run for the wrong one of them is told the right one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import cast

from experiments.config.data_sets import captions_of, data_set_of
from experiments.data.sources.image_source import FeatureSource, class_names, named_classes, open_source
from experiments.errors import ConfigError, did_you_mean
from experiments.evaluation.sampling.load_run import LoadedRun
from experiments.text import agreeing, printable, shortened

NUMBER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
SHOWN_CHARACTERS = 80
NUM_EXAMPLES = 6
"""The number of classes that are sampled where none is named."""


def _require_prompts(run: LoadedRun, has_captions: bool, classes: Sequence[str], wants_map: bool) -> None:
    """Raises `ConfigError` for captions where the run knows classes, and for classes where it knows captions.

    New captions of a run on stored features are refused too, and compute maps that it cannot have. Whether words and
    classes exist is seen when they are read (`caption_ids`).
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
            f"{path} is conditioned on captions, so that --class {_shown(classes[0])} does not fit.",
            "Leave out --class.",
        )
    elif not captions_of(config).in_words:
        where = f"{path} was trained on {'features of captions' if data_set_of(config).has_pixels else 'latents'}"
        if has_captions and not cast(FeatureSource, open_source(config.data)).takes_captions:
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


def asked_of(
    run: LoadedRun, captions: list[str], classes: list[str], wants_map: bool, say: Callable[[str], None]
) -> list[str] | list[int]:
    """Returns the captions or classes to sample: those that are given, or else the examples of the data set.

    Of a run that is conditioned on classes the examples are some that are far apart. `say` is told of captions that are
    cut, because the run reads no more of them. Raises `ConfigError` for what the run cannot be asked for.
    """
    _require_prompts(run, bool(captions), classes, wants_map)
    data = run.config.data
    if captions and data.num_classes is None and not captions_of(run.config).in_words:
        source = cast(FeatureSource, open_source(data))
        source.encode(captions)
        if num_cut := source.num_cut(captions):
            cut = f"{num_cut} of {len(captions)} captions {agreeing(num_cut, 'is', 'are')} cut"
            say(f"{cut}: the run reads {data.caption_length} tokens of a caption, the end token among them.")
    if captions or classes:
        return captions or [_class_number(run, each) for each in classes]
    num_classes = run.config.data.num_classes
    if num_classes is None:
        return list(data_set_of(run.config).examples)
    return list(range(0, num_classes, -(-num_classes // NUM_EXAMPLES)))


def texts_of(run: LoadedRun, prompts: Sequence[str] | Sequence[int]) -> list[str]:
    """Returns prompts as texts: captions as they are, and the names of classes."""
    labels = [each for each in prompts if isinstance(each, int)]
    return named_classes(run.config.data, labels) if labels else [str(each) for each in prompts]


def _class_number(run: LoadedRun, given: str) -> int:
    """Returns the number of a class that is given by its name or its number; a name comes first.

    Raises `ConfigError` where there is no class of this name; whether a number is one is seen when it is read.
    """
    data = run.config.data
    names, last = class_names(data) or (), (data.num_classes or 0) - 1
    if given in names:
        return names.index(given)
    if NUMBER.fullmatch(given):
        return int(given)
    example = f", or one by its name, such as {_shown(names[0])!r}" if names else ""
    way_out = did_you_mean(given, names, otherwise=f"Name a class by its number, 0 to {last}{example}.")
    raise ConfigError(f"{run.run_dir.path} has no class {_shown(given)}.", way_out)


def _shown(given: str) -> str:
    return shortened(printable(given), SHOWN_CHARACTERS)
