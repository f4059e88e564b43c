"""A finished checkpoint to the Hugging Face hub: weights, card, plan, licence and all that lies in its directory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gqakit.errors import OutputError, UsageError

from .workspace import MARKER

if TYPE_CHECKING:
    from huggingface_hub import HfApi

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LEFT_OUT = ["*.gqakit-partial", MARKER, "*.gqakit-lock"]
"""Traces of unfinished work never go up."""


def check_upload(name: str) -> None:
    """Whether an upload could begin: said before hours of work, not after them.

    Args:
        name: `organisation/name` of the repository.

    Raises:
        UsageError: when the name is none. OutputError: when nobody is logged in, or the hub cannot be reached.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"`push_to_hub` is {name!r}, expected organisation/name, such as my-team/model-smaller"
        )
    with _hub_errors(name):
        _hub().whoami()


def upload(directory: Path, name: str) -> str:
    """Make the repository where it is not there, and put the directory into it as one commit; its address.

    Args:
        directory: a finished checkpoint. name: `organisation/name`.

    Raises:
        OutputError: when the hub refuses or cannot be reached.
    """
    with _hub_errors(name):
        hub = _hub()
        made = hub.create_repo(name, exist_ok=True)
        hub.upload_folder(
            repo_id=made.repo_id, folder_path=directory, ignore_patterns=_LEFT_OUT,
            commit_message="A smaller KV cache, made with gqakit",
        )  # fmt: skip
    return str(made)


def _hub() -> HfApi:
    from huggingface_hub import HfApi, constants

    return HfApi(endpoint=constants.ENDPOINT)


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    # Bases of the hub's error: those of whichever HTTP library the installed release uses.
    refusals: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError)
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise OutputError(
            f"{name}: nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN to a token that may write"
        ) from error
    except refusals as error:  # pyright: ignore[reportGeneralTypeIssues]  # of exceptions, as all are
        said = " ".join(str(error).split())[:300]
        raise OutputError(
            f"{name}: the hub refuses or cannot be reached ({said}); check the token and the name"
        ) from error
