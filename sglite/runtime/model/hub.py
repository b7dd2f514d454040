"""From a model's name to a folder on disk: a local folder as it is, else a repository of the Hugging Face Hub.

Downloads go through the hub's own client, into its cache, and resume where they stopped. Only files that a model
needs are ever fetched: no pickles, no code, nothing from subfolders. What is cached and current is not fetched again.
"""

from __future__ import annotations

import re
from pathlib import Path

from sglite.runtime.gguf import GGUFError, find_gguf, first_part, is_gguf
from sglite.runtime.model.errors import ModelError

ALLOWED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")
IGNORED = ("*/*", "consolidated*.safetensors")
"""Subfolders hold other formats of the same model, ``consolidated`` files a second copy of its weights."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(
    name_or_path: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> Path:
    """Where a model is: an existing folder or GGUF file itself, or the snapshot of a hub repository ``org/name``.

    A folder without safetensors that holds one GGUF model stands for that file, the first part of a split one.

    ``revision``: branch, tag or commit. ``cache_dir``: instead of the hub's own (``HF_HOME``). ``offline``: use the
    cache only. ``endpoint``: another hub (default ``HF_ENDPOINT`` or the public one). ``token``: for gated and private
    repositories (default ``HF_TOKEN`` or the stored login). Raises ModelError, in one line, with what to do.
    """
    name, folder = str(name_or_path), Path(name_or_path).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise ModelError(
                f"revision={revision!r} was given for the folder {folder}; revisions exist on the hub only"
            )
        return _gguf_in(folder) or folder
    if is_gguf(folder):
        return first_part(folder)
    if folder.is_file():
        raise ModelError(f"{name} is a file; give the folder that holds config.json and the weights, or a GGUF file")
    if not REPOSITORY.fullmatch(name):
        raise ModelError(f"{name!r:.200} is neither an existing folder nor a hub name such as Qwen/Qwen3-0.6B")
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise ModelError(f"endpoint={endpoint!r:.200} is not a URL; it must start with https:// or http://")
    return _download(name, revision, cache_dir, offline, endpoint, token)


def _gguf_in(folder: Path) -> Path | None:
    try:
        return find_gguf(folder)
    except GGUFError as error:
        raise ModelError(str(error)) from None


def _download(
    name: str,
    revision: str | None,
    cache_dir: str | Path | None,
    offline: bool,
    endpoint: str | None,
    token: str | None,
) -> Path:
    # Imported here: a local folder needs no hub client.
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=offline,
            endpoint=endpoint,
            token=token,
            allow_patterns=list(ALLOWED),
            ignore_patterns=list(IGNORED),
        )
    except Exception as error:  # the client's transport errors differ between its versions
        raise ModelError(_explain(error, name, revision, offline)) from error
    return Path(snapshot)


def _explain(error: Exception, name: str, revision: str | None, offline: bool) -> str:
    """One line: what the hub said of the repository and what to do about it."""
    from huggingface_hub import errors

    wanted = f"{name} at revision {revision!r}" if revision else name
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its conditions on its hub page, then log in (hf auth login) or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name} does not exist on the hub or is private; check the name, or set HF_TOKEN to one that may read it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r}; give an existing branch, tag or commit"
    missing = isinstance(error, errors.LocalEntryNotFoundError)
    if missing and offline:
        return f"{wanted} is not complete in the cache; run once without offline to download it"
    # The client reports a file it could not get as missing from the cache; the reason is what that came from.
    reason = error.__cause__ if missing and error.__cause__ is not None else error
    said = re.sub(r"\s+", " ", str(reason)).strip()[:300]
    if isinstance(reason, errors.HfHubHTTPError):
        return f"the hub refused {wanted} ({said}); check the token's permissions or try again later"
    if missing:
        return f"{wanted} is not complete in the cache and the hub cannot be reached ({said}); check the network"
    return f"{wanted} could not be downloaded ({type(error).__name__}: {said}); run again, what is complete is kept"
