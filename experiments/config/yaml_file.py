"""A YAML file that a user wrote, with every value left as it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from experiments.errors import EcditError


def read_yaml_text(file: Path, error_type: type[EcditError]) -> Any:
    """The content; what would be a number or a boolean stays text. An `error_type` where there is no such YAML file."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise error_type(f"{file} cannot be read: {error.strerror}.", "Give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise error_type(f"{file} is not YAML: {reason}.", "Correct the file.") from error
