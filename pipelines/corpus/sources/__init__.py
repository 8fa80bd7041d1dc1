"""Where documents come from; one small interface (``base.Source``), one module a kind."""

from __future__ import annotations

from pathlib import Path

from pipelines.corpus import settings as kinds
from pipelines.corpus.sources.base import Source
from pipelines.corpus.sources.location import locate


def open_source(settings: kinds.SourceSettings, *, base: Path) -> Source:
    """The source that ``settings`` declare; relative urls start at ``base``.

    Raises:
        ConfigError: the url, a glob or a template cannot be right.
    """
    match settings:
        case kinds.FolderSource():
            from pipelines.corpus.sources.files import FolderDocuments

            return FolderDocuments(settings, locate(settings.url, base, settings.options))
        case kinds.TableSource():
            from pipelines.corpus.sources.tables import TableDocuments

            return TableDocuments(settings, locate(settings.url, base, settings.options))
        case kinds.SqlSource():
            from pipelines.corpus.sources.sql import SqlDocuments

            return SqlDocuments(settings, base)
        case kinds.ApiSource():
            from pipelines.corpus.sources.api import ApiDocuments

            return ApiDocuments(settings)
        case kinds.WebSource():
            from pipelines.corpus.sources.web import WebPages

            return WebPages(settings)
        case kinds.FeedSource():
            from pipelines.corpus.sources.feeds import FeedEntries

            return FeedEntries(settings)
    raise TypeError(f"{type(settings).__name__} is no kind of source")
