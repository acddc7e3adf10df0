"""Uploads to the Hugging Face Hub, with the user's own token, by `huggingface_hub`. Knows nothing of students."""

from __future__ import annotations

import os
from pathlib import Path

from ...core.errors import DistillkitError, UsageError
from ...core.secrets import REDACTED


def endpoint() -> str:
    """Where uploads go: HF_ENDPOINT, or the Hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def token() -> str:
    """The user's own, or what is missing: to be asked for before anything is made that is to go up."""
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        hint = 'Install it: pip install "distillkit[push]"'
        raise UsageError("--push needs the package huggingface_hub, which is not installed", hint) from error
    found = get_token()
    if not found:
        raise UsageError("there is no token for the Hub", "Log in (hf auth login), or set HF_TOKEN.")
    return str(found)


def later(folder: Path, name: str, private: bool) -> str:
    """How an export that was not uploaded still can be."""
    return f"It stands in {folder}; later: hf upload {name} {folder}{' --private' if private else ''}"


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder as a model, and say where it is."""
    key = token()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint(), token=key)
    try:
        known = api.create_repo(name, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=known.repo_id, folder_path=folder, commit_message="Upload from distillkit")
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise DistillkitError(  # without what led to it: the hub may quote the token
            f"{endpoint()} did not take it: {first.replace(key, REDACTED)}",
            later(folder, name, private),
        ) from None
    return f"{endpoint()}/{known.repo_id}"
