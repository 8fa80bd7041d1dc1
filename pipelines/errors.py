"""The error tree.

    FreshetError
    ├── PermanentError               trying again cannot help; somebody has to change something
    │   ├── ConfigError              a setting asks for something impossible
    │   ├── NotBuiltError            what is asked for has not been made yet
    │   ├── SourceError              a source lists or holds something that cannot be right
    │   ├── DocumentError            one document cannot be read; the others are not held up
    │   ├── ExamplesError            labelled examples that cannot be used for training
    │   ├── ArtifactError            a stored artifact is incomplete, altered or does not belong to its parents
    │   ├── TrainingError            training ended without an adapter
    │   ├── ExportError              a model cannot be converted, or does not behave as it did before
    │   └── GateRefusedError         publishing was asked for without a passed verdict
    └── TransientError               the same call may succeed later
        ├── SourceUnavailableError   a source cannot be read now, which is never the same as "empty"
        ├── ServerUnavailableError   a registry, the Hub or an Ollama server cannot be reached now
        ├── TrainingInterruptedError training was told to end; started again, it goes on from its checkpoint
        └── LockedError              another process holds the index, the GPU or the registry

Messages quote the value received, say what was allowed and what to do next.
"""


class FreshetError(Exception):
    """Base of every error that Freshet raises on purpose."""


class PermanentError(FreshetError):
    """Trying again cannot help; somebody has to change something."""


class ConfigError(PermanentError):
    """A setting asks for something impossible."""


class NotBuiltError(PermanentError):
    """What is asked for has not been made yet."""


class SourceError(PermanentError):
    """A source lists or holds something that cannot be right."""


class DocumentError(PermanentError):
    """One document cannot be read; the others are not held up."""


class ExamplesError(PermanentError):
    """Labelled examples that cannot be used for training."""


class ArtifactError(PermanentError):
    """A stored artifact is incomplete, altered, or does not belong to its parents."""


class TrainingError(PermanentError):
    """Training ended without an adapter."""


class ExportError(PermanentError):
    """A model cannot be converted, or does not behave as it did before."""


class GateRefusedError(PermanentError):
    """Publishing was asked for without a passed verdict for exactly these files."""


class TransientError(FreshetError):
    """The same call may succeed later."""


class SourceUnavailableError(TransientError):
    """A source cannot be read now, which is never the same as "empty"."""


class ServerUnavailableError(TransientError):
    """A registry, the Hugging Face Hub or an Ollama server cannot be reached now."""


class TrainingInterruptedError(TransientError):
    """Training was told to end; started again, it goes on from its checkpoint."""


class LockedError(TransientError):
    """Another process holds the index, the GPU or the registry."""
