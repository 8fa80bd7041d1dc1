"""Where state lives: the only module that reads environment variables."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parent.parent

# GNU OpenMP, in torch and llama.cpp alike, lets waiting threads spin: two processes that share the cores then take nine
# times as long. It reads this when it is loaded, so it is set before anything of ours imports either.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class Environment(BaseSettings):
    """Freshet's variables, each described in ``.env.example``; an argument of the same name wins."""

    model_config = SettingsConfigDict(frozen=True, case_sensitive=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(default=REPOSITORY / ".freshet", alias="FRESHET_HOME")
    """Folder of every embedded store."""
    cache: Path | None = Field(default=None, alias="FRESHET_CACHE")
    """Converted embedders, which can always be made again; unset, ``<home>/cache``."""
    data: Path | None = Field(default=None, alias="FRESHET_DATA")
    """Where relative paths in a use case start: ``<data>/<use case>/``; unset, the use case's own folder."""
    automation: bool = Field(default=False, alias="FRESHET_AUTOMATION")
    """Whether schedules and sensors start switched on."""
    database_url: SecretStr | None = Field(default=None, alias="DATABASE_URL")
    """SQLAlchemy URL of the catalog; unset, SQLite in ``home``."""
    qdrant_url: str | None = Field(default=None, alias="QDRANT_URL")
    """Qdrant server; unset, the embedded engine in ``home``."""
    qdrant_api_key: SecretStr | None = Field(default=None, alias="QDRANT_API_KEY")
    """Key of the Qdrant server."""
    model_registry_url: str | None = Field(default=None, alias="MODEL_REGISTRY_URL")
    """Folder or object store (s3://, gs://, …) of published models; unset, ``<home>/registry``."""
    hub_token: SecretStr | None = Field(default=None, alias="HF_TOKEN")
    """Of the Hugging Face Hub, where versions are sent there too."""
    hub_endpoint: str = Field(default="https://huggingface.co", alias="HF_ENDPOINT")
    """The Hub that they are sent to."""
    feedback_token: SecretStr | None = Field(default=None, alias="FRESHET_FEEDBACK_TOKEN")
    """What every report to ``pipelines.feedback`` has to bring; unset, it listens to this machine only."""
    serve_token: SecretStr | None = Field(default=None, alias="FRESHET_SERVE_TOKEN")
    """What every request to ``pipelines.serve`` has to bring; unset, it listens to this machine only."""
    llama_cpp_root: Path | None = Field(default=None, alias="LLAMA_CPP_ROOT")
    """A llama.cpp checkout whose converter is used instead of the bundled one."""

    @field_validator("home", "cache", "data")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @property
    def cache_folder(self) -> Path:
        """What can be made again."""
        return self.cache or self.home / "cache"

    @property
    def catalog_url(self) -> str:
        """SQLAlchemy URL of the catalog."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.catalog_file}"

    @property
    def catalog_file(self) -> Path:
        """SQLite's file, where the catalog is not elsewhere."""
        return self.home / "catalog.db"

    @property
    def index_folder(self) -> Path:
        """Embedded collections, one folder each."""
        return self.home / "index"

    @property
    def registry_url(self) -> str:
        """Where published models live."""
        return self.model_registry_url or str(self.home / "registry")

    def artifacts_folder(self, use_case: str, kind: str) -> Path:
        """Where artifacts of one kind (``training_set``, ``lora_adapter``, …) of a use case live."""
        return self.home / "artifacts" / use_case / kind


_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Cores that this process may use; every process of ours sets its thread count from it.

    A container's processor quota counts whole cores, at least one. ``OMP_NUM_THREADS`` lowers it: whoever sets it means
    it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = (_QUOTA.read_text() if _QUOTA.is_file() else "max").strip().partition(" ")
    if quota.isdigit() and period.isdigit():
        cores = min(cores, max(1, int(quota) // int(period)))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else cores
