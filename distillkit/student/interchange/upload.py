"""Uploads to the Hugging Face Hub with the user's token, through `huggingface_hub`. Independent of students."""

from __future__ import annotations

import os
from pathlib import Path

from ...core.errors import DistillkitError, UsageError
from ...core.secrets import REDACTED


def endpoint() -> str:
    """The base URL of the Hub, which HF_ENDPOINT overrides."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def token() -> str:
    """The user's token. Raises an error if it or the package is missing; called before the export to fail early."""
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        hint = 'Install it: pip install "distillkit[push]"'
        raise UsageError("--push needs the package huggingface_hub, which is not installed", hint) from error
    found = get_token()
    if not found:
        raise UsageError("no token for the Hugging Face Hub was found", "Log in with `hf auth login`, or set HF_TOKEN.")
    return str(found)


def upload_hint(folder: Path, name: str, private: bool) -> str:
    """How to upload an export later."""
    return f"The export is in {folder}. To upload it later: hf upload {name} {folder}{' --private' if private else ''}"


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder as a model repository, and return its URL."""
    key = token()
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint(), token=key)
    try:
        repo = api.create_repo(name, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Upload from distillkit")
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise DistillkitError(  # `from None`, because the Hub may quote the token
            f"the upload to {endpoint()} failed: {first.replace(key, REDACTED)}",
            upload_hint(folder, name, private),
        ) from None
    return f"{endpoint()}/{repo.repo_id}"
