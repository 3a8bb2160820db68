"""Push an exported folder to the Hugging Face Hub, where it becomes a repository of a model."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

from ssl_dist.errors import ConfigError, HubError, SslDistError

_REFUSED = {
    400: "the Hub takes no such repository",
    401: "log in by `hf auth login`, or set HF_TOKEN to a token that may write",
    403: "take a token that may write there, or another USER/NAME",
    404: "take a token that may write there, or another USER/NAME",
}
"""Answers of the Hub that are the user's to mend, and how."""


def expect_hub(repository: str) -> None:
    """Refuse what could not be pushed, before anything is exported.

    Raises:
        ConfigError: huggingface_hub is not installed or is told to stay offline, the name is not one of the Hub's, or
            there is no token.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError("--push-to-hub needs huggingface_hub: pip install 'ssl_dist[hf]'")
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"--push-to-hub {repository}: {_one_line(error)}") from None
    if "/" not in repository:
        raise ConfigError(f"--push-to-hub {repository}: write it as USER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("--push-to-hub: HF_HUB_OFFLINE is set, and it forbids what pushing needs: unset it")
    if get_token() is None:
        raise ConfigError(f"--push-to-hub: there is no token of the Hub: {_REFUSED[401]}")


def push(folder: Path, repository: str, public: bool) -> str:
    """Push a folder's files as one commit, and return the repository's address.

    The server and the token are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN, or what ``hf auth login`` keeps. A new
    repository is private or public; one that is there stays what it is, and keeps files of other names.

    Raises:
        ConfigError: the Hub refuses the token or the name.
        HubError: the Hub cannot be reached, or fails.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(token=get_token())
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by ssl-dist")
        return str(address)
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or error.response.reason_phrase
        kind: type[SslDistError] = ConfigError if status in _REFUSED else HubError
        reason = f"{status} {_one_line(said)}" + (f": {_REFUSED[status]}" if status in _REFUSED else "")
    except Exception as error:  # its HTTP library has classes of its own
        kind, reason = HubError, _one_line(error) or type(error).__name__
    again = f"hf upload{'' if public else ' --private'} {repository} {shlex.quote(str(folder))} ."
    raise kind(f"{folder} is written, and was not pushed to {repository} ({reason}); to push it later: {again}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
