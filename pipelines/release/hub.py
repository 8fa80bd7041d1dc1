"""Published versions on the Hugging Face Hub: a repository of the use case's own, a commit and a tag for each version.

All of a version becomes one commit on ``main``, on the condition that ``main`` is still what was looked at, and then a
tag. Large files go to the Hub's storage before that, by their hash: what is there already is not sent again, so a push
that was cut off goes on where it was. (``upload_folder`` would do without that condition, or in several commits.)
``main`` holds the version that was sent last; a version that is sent again changes nothing.

``new_version`` on a card names the repository that replaces this one; the Hub then shows a link there. Inside of one
repository tags say what is newer, so it is set only on the card of ``release.hub.replaces``, and only because somebody
named that: a registry does not know for certain where its versions went, and another repository's card is not ours to
edit unasked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipelines.artifacts import MANIFEST, Artifact
from pipelines.environment import Environment
from pipelines.errors import ConfigError, ExportError, FreshetError, LockedError, ServerUnavailableError
from pipelines.release.card import public_manifest
from pipelines.release.registry import PublishedVersion
from pipelines.release.settings import HubSettings
from pipelines.settings import without_credentials

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

SECONDS = 300.0
"""How long the Hub may say nothing; its client waits for ever otherwise."""

_LARGE = (".gguf", ".safetensors")
"""What the Hub keeps outside of git in every repository."""
_NO_MODEL = frozenset({".gitattributes", ".gitignore", "README.md", "LICENSE"})
"""What a repository may hold that a person has just made for us."""


def push_to_hub(version: PublishedVersion, settings: HubSettings, *, progress: Callable[[str], None]) -> str:
    """Send ``version`` to the repository of ``settings``, made here where there is none; returns the URL of its tag.

    The token is ``HF_TOKEN``, the Hub ``HF_ENDPOINT``. The Hub's ``manifest.json`` says neither where a local base
    model lies nor where else versions are sent.

    Raises:
        ConfigError: no token, or it may not do this; the repository is public although ``private`` is asked for, or
            holds something else.
        ArtifactError: a file of the version is missing or altered.
        ExportError: the Hub refuses the files or the card.
        LockedError: somebody else changed the repository meanwhile.
        ServerUnavailableError: the Hub, or the registry, cannot be reached now.
    """
    environment = Environment()
    if environment.hub_token is None:
        raise ConfigError(
            f"release.hub sends versions to {settings.repository!r}, and HF_TOKEN is not set: put a token with write "
            "access there (https://huggingface.co/settings/tokens), or remove release.hub"
        )
    endpoint = _checked(environment.hub_endpoint)
    from huggingface_hub import HfApi

    folder, where = version.fetch(), f"{endpoint}/{settings.repository}"
    api = HfApi(endpoint=endpoint, token=environment.hub_token.get_secret_value())
    with _talking(where):
        api.create_repo(settings.repository, private=settings.private, exist_ok=True)
        found = api.model_info(settings.repository)
        if settings.private and not found.private:
            raise ConfigError(
                f"{where} is public, and release.hub.private is true: make the repository private, or set private: "
                "false, where everybody may have this model"
            )
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(settings.repository).tags}
        if version.version in tags:
            if not _is(_manifest_at(api, settings.repository, tags[version.version]), version):
                raise ConfigError(
                    f"the tag {version.version} of {where} is another model than {version.uri}: name a repository that "
                    "belongs to this registry alone in release.hub, or delete the tag"
                )
            progress(f"{where} has {version.version} already")
        else:
            commit = _sent_before(api, settings.repository, version)
            if commit is None:
                commit = _commit(api, found, version, folder, where, progress)
                if lacking := _lacking(api, settings.repository, commit, version):
                    raise ExportError(
                        f"{where} left out {', '.join(lacking[:5])}: remove what ignores them from its .gitignore"
                    )
            api.create_tag(settings.repository, tag=version.version, revision=commit)
            progress(f"{where} has {version.version}, commit {commit[:12]}")
    if settings.replaces is not None:
        with _talking(f"{endpoint}/{settings.replaces}"):
            _replace(api, settings.replaces, settings.repository, progress)
    return f"{where}/tree/{version.version}"


def with_new_version(card: str, repository: str) -> str:
    """The text of a card whose front matter says that ``repository`` replaces this one; nothing else changes."""
    line = f"new_version: {repository}\n"
    front = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", card, re.DOTALL | re.MULTILINE)
    if front is None:
        return f"---\n{line}---\n{card}"
    kept = re.sub(r"^new_version:.*\r?\n", "", front[1], flags=re.MULTILINE)
    return card if line in front[1] else card[: front.start(1)] + kept + line + card[front.end(1) :]


def _commit(
    api: HfApi, found: ModelInfo, version: PublishedVersion, folder: Path, where: str, progress: Callable[[str], None]
) -> str:
    """Put the files of ``version`` in the place of the version before it; returns the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = {file.rfilename for file in found.siblings or ()}
    before = _manifest_at(api, found.id, str(found.sha)) if MANIFEST in there else None
    if before is None and there - _NO_MODEL:
        raise ConfigError(
            f"{where} holds {', '.join(sorted(there - _NO_MODEL)[:5])} and no version of Freshet's: name a repository "
            "of this use case's own in release.hub"
        )
    if before is not None and before.get("use_case") != version.use_case:
        raise ConfigError(
            f"{where} holds versions of {before.get('use_case')!r}: a repository takes one use case, for each has a "
            f"v1. Name another one in release.hub of {version.use_case!r}"
        )
    digests: Mapping[str, str] = version.manifest["files"]
    additions = []
    for name in sorted(digests):
        addition = CommitOperationAdd(name, folder / name)
        addition.upload_info.sha256 = bytes.fromhex(digests[name])  # read by fetch() just now
        additions.append(addition)
    for addition in additions:
        if addition.path_in_repo.endswith(_LARGE):
            progress(f"{addition.path_in_repo} ({addition.upload_info.size / 1e6:.1f} MB) to {where}")
            api.preupload_lfs_files(found.id, [addition], free_memory=False)
    gone = (set(() if before is None else before["files"]) & there) - set(digests)
    return str(
        api.create_commit(
            found.id,
            [
                *additions,
                CommitOperationAdd(MANIFEST, _public(version, folder)),
                *(CommitOperationDelete(name, is_folder=False) for name in sorted(gone)),
            ],
            commit_message=_title(version),
            parent_commit=found.sha,
        ).oid
    )


def _sent_before(api: HfApi, repository: str, version: PublishedVersion) -> str | None:
    """The commit of ``version`` that was made, and not tagged because the push was cut off."""
    for commit in api.list_repo_commits(repository):
        found = str(commit.commit_id)
        if commit.title == _title(version) and _is(_manifest_at(api, repository, found), version):
            return None if _lacking(api, repository, found, version) else found
    return None


def _lacking(api: HfApi, repository: str, commit: str, version: PublishedVersion) -> list[str]:
    """Files of ``version`` that are not in a commit, or are large and others."""
    found = api.model_info(repository, revision=commit, files_metadata=True)
    there = {file.rfilename: file.lfs for file in found.siblings or ()}
    return [
        name
        for name, digest in version.manifest["files"].items()
        if name not in there or ((large := there[name]) is not None and large.sha256 != digest)
    ]


def _replace(api: HfApi, old: str, new: str, progress: Callable[[str], None]) -> None:
    """Let the card of the repository ``old`` point to ``new``."""
    from huggingface_hub import CommitOperationAdd

    found = api.model_info(old)
    card = _file_at(api, old, "README.md", str(found.sha))
    before = "" if card is None else card.decode("utf-8")
    after = with_new_version(before, new)
    if after != before:
        card_now = CommitOperationAdd("README.md", after.encode("utf-8"))
        api.create_commit(old, [card_now], commit_message=f"Replaced by {new}", parent_commit=found.sha)
        progress(f"the card of {old} says that {new} replaces it")


def _title(version: PublishedVersion) -> str:
    return f"{version.use_case} {version.version}"


def _is(manifest: Mapping[str, Any] | None, version: PublishedVersion) -> bool:
    """Whether a manifest on the Hub is that of ``version``."""
    same = ("use_case", "version", "fingerprint", "files")
    return manifest is not None and all(manifest.get(name) == version.manifest[name] for name in same)


def _public(version: PublishedVersion, folder: Path) -> bytes:
    """The manifest without what is nobody else's business."""
    manifest = public_manifest(Artifact(folder, version.manifest))
    settings = manifest["settings"]
    release = {name: value for name, value in settings["release"].items() if name not in ("hub", "ollama")}
    public = {**manifest, "settings": {**settings, "release": release}}
    return (json.dumps(public, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode("utf-8")


def _manifest_at(api: HfApi, repository: str, commit: str) -> dict[str, Any] | None:
    """What ``manifest.json`` says in a commit; None where there is none, or it is not ours."""
    found = _file_at(api, repository, MANIFEST, commit)
    try:
        manifest = None if found is None else json.loads(found)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == "published_model" else None


def _file_at(api: HfApi, repository: str, name: str, commit: str) -> bytes | None:
    from huggingface_hub.errors import EntryNotFoundError

    with TemporaryDirectory() as scratch:
        try:
            return Path(api.hf_hub_download(repository, name, revision=commit, local_dir=scratch)).read_bytes()
        except EntryNotFoundError:
            return None


def _checked(endpoint: str) -> str:
    """``HF_ENDPOINT``, where a token may be sent to it."""
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    alone = host == "localhost" or host == "::1" or re.fullmatch(r"127\.\d+\.\d+\.\d+", host) is not None
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if not host or not plain or not (parts.scheme == "https" or (parts.scheme == "http" and alone)):
        raise ConfigError(
            f"HF_ENDPOINT {without_credentials(endpoint)!r} cannot be used: give https://host, without user, password "
            "and query (http:// only on this machine: whoever listens would have the token)"
        )
    return endpoint.rstrip("/")


@contextmanager
def _talking(where: str) -> Iterator[None]:
    """Talk to the Hub with a time-out and without progress bars; its failures as what they mean."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    def patient() -> Any:
        client = default_client_factory()
        client.timeout = SECONDS
        return client

    quiet = are_progress_bars_disabled()
    set_client_factory(patient)
    disable_progress_bars()
    try:
        yield
    except FreshetError:
        raise
    except Exception as error:
        meaning = _meaning(error, where)
        if meaning is None:
            raise
        raise meaning from error
    finally:
        set_client_factory(default_client_factory)
        if not quiet:
            enable_progress_bars()


def _meaning(error: Exception, where: str) -> FreshetError | None:
    """What a failure of the Hub's client means; None where it is none."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return ConfigError(f"{where} is not asked, for HF_HUB_OFFLINE is set: unset it, or remove release.hub")
    # A failed upload is wrapped in a RuntimeError.
    cause = error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception) else error
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        # Not the error's own text: it quotes addresses, and those of the storage are signed.
        said = f"HTTP {status}" + (f", {cause.server_message}" if cause.server_message else "")
        if status in (401, 403):
            return ConfigError(f"{where} refuses the token in HF_TOKEN ({said}): give one that may write there")
        if status == 404:
            return ConfigError(f"{where} is not there for the token in HF_TOKEN ({said}): correct release.hub")
        if status in (409, 412):
            return LockedError(f"{where} was changed by somebody else meanwhile ({said}); publish again")
        if status in (408, 429) or status >= 500:
            return ServerUnavailableError(f"{where} cannot be used now: {said}")
        return ExportError(f"{where} refuses this version: {said}")
    if isinstance(cause, ValueError):  # the card, or an answer to a question about large files
        return ExportError(f"{where} refuses this version: {cause}")
    if isinstance(cause, OSError | RuntimeError) or type(cause).__module__.startswith(("httpx", "httpcore")):
        return ServerUnavailableError(f"{where} cannot be reached: {type(cause).__name__}: {cause}")
    return None
