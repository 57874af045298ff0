"""Uploading an export to the Hugging Face hub, after it was listed and agreed to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_train.errors import CheckpointError, ConfigError, missing_package, short_reason


@dataclass(frozen=True)
class Upload:
    """One file for the hub: where it lies, its name there."""

    file: Path
    name: str


def require_hub(repository: str, *, agreed: bool) -> None:
    """Raises ConfigError unless an upload can be asked for and made, before any work is done."""
    import importlib.util

    if importlib.util.find_spec("huggingface_hub") is None:
        raise ConfigError(missing_package("--hub_push", "huggingface_hub", "export"))
    owner, slash, name = repository.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise ConfigError(f"--hub_push {repository} is no repository; give OWNER/NAME")
    _require_known_form(repository)
    if not agreed and not sys.stdin.isatty():
        raise ConfigError(
            "--hub_push asks before it uploads, and there is no terminal to answer at; give --yes "
            "to upload without being asked"
        )


def uploads_of(out: Path, card: Path | None) -> list[Upload]:
    """Returns the files of an export: all of a folder, or the file and its card as README.md."""
    if out.is_dir():
        files = sorted(path for path in out.rglob("*") if path.is_file())
        return [Upload(path, path.relative_to(out).as_posix()) for path in files]
    found = [Upload(out, out.name)]
    return found if card is None else [*found, Upload(card, "README.md")]


def push_uploads(
    uploads: list[Upload],
    repository: str,
    *,
    out: Path,
    private: bool,
    agreed: bool,
    endpoint: str | None = None,
    token: str | None = None,
    ask: Callable[[str], str] = input,
) -> bool:
    """Lists the files, asks unless `agreed`, and uploads them in one commit; False: not agreed.

    The repository is made, private or public, where it does not exist; what is there under other
    names stays.  out: the export, named in messages.  endpoint, token: None: as huggingface_hub is
    set up.  Raises CheckpointError.
    """
    _list(uploads, repository, private=private)
    if not agreed and not _agrees(ask):
        print("nothing was uploaded")
        return False
    import huggingface_hub

    api: Any = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    operations = [
        huggingface_hub.CommitOperationAdd(upload.name, str(upload.file)) for upload in uploads
    ]
    try:
        api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        done = api.create_commit(
            repository, operations, commit_message="Upload an export of rwkv-train"
        )
    except Exception as error:
        # The library passes on what its transport raises, which differs between its releases.
        raise CheckpointError(
            f"--hub_push {repository} failed: {short_reason(error)}; the export itself is complete "
            f"on this disk. Log in by `hf auth login`, and try again by: hf upload {repository} "
            f"{out}"
        ) from error
    print(f"uploaded: {done.commit_url}")
    return True


def _require_known_form(repository: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(
            f"--hub_push {repository} is no name that the hub takes: {error}"
        ) from error


def _list(uploads: list[Upload], repository: str, *, private: bool) -> None:
    total = sum(upload.file.stat().st_size for upload in uploads)
    kind = "private" if private else "public"
    print(f"to upload to {repository} (made as {kind} if it does not exist):")
    for upload in uploads:
        print(f"  {upload.file.stat().st_size:16,} bytes  {upload.name}")
    print(f"  {total:16,} bytes  in all")


def _agrees(ask: Callable[[str], str]) -> bool:
    try:
        return ask("upload? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
