"""Uploads a folder of exported weights to the Hugging Face Hub (`ecdit export-weights --push-to-hub`).

huggingface_hub, of the extra `ecdit[hub]`, does the work. The token comes from the environment variable HF_TOKEN alone,
so that no login which happens to lie on a machine is used. A repository that does not exist yet is created as a private
one, because publishing cannot be undone; its owner makes it public on its page.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from experiments.errors import ConfigError, StorageError
from experiments.libraries import library
from experiments.text import printable, shortened

TOKEN = "HF_TOKEN"


@dataclass(frozen=True)
class HubRepository:
    """A repository of models on the Hub, and the token with which it is written."""

    name: str
    token: str = field(repr=False)

    def upload(self, folder: Path) -> str:
        """Uploads every file of `folder`, and returns the address of the repository.

        Raises `StorageError` where the Hub refuses or is not reached. What is in the folder stays as it is.
        """
        hub, tools = library("huggingface_hub", "hub"), library("huggingface_hub.utils", "hub")
        tools.disable_progress_bars()
        api = hub.HfApi(token=self.token)
        try:
            created = api.create_repo(self.name, private=True, exist_ok=True)
            api.upload_folder(
                repo_id=created.repo_id, folder_path=folder, commit_message="Upload weights exported by ecdit"
            )
        except (OSError, RuntimeError, ValueError, *tools.HfHubHTTPError.__bases__) as error:
            # The bases are OSError and the error of whichever HTTP library this version of the client has, which also
            # stands for a host that is not reached.
            raise StorageError(
                f"--push-to-hub {self.name} failed: {_reason(error)}.",
                f"The weights are whole in {folder}: upload them with: hf upload {self.name} {folder}",
            ) from error
        return str(created)


def hub_repository(name: str) -> HubRepository:
    """Returns the repository called `name`, which may be new, before anything is exported or sent.

    Raises `ConfigError` where huggingface_hub or the token is missing, or where no repository can have this name.
    """
    tools = library("huggingface_hub.utils", "hub")
    try:
        tools.validate_repo_id(name)
    except ValueError as error:
        shown = shortened(printable(name), 80)
        raise ConfigError(
            f"--push-to-hub '{shown}' is no name of a repository.", "Write OWNER/NAME, or NAME for one of your own."
        ) from error
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ConfigError(f"--push-to-hub {name} needs a token that may write.", f"Set it as {TOKEN}.")
    return HubRepository(name, token)


def _reason(error: Exception) -> str:
    return shortened(printable(" ".join(str(error).split()) or type(error).__name__), 300).rstrip(".")
