"""Texts to vectors, on the fastest backend of this machine that is as exact as sentence-transformers in float32.

What identifies an embedder is known without importing torch or OpenVINO: a refresh that finds nothing new never loads
the model.
"""

from __future__ import annotations

from pipelines.corpus.embedding.choice import open_embedder
from pipelines.corpus.embedding.interface import Backend, Embedder, Precision, Vectors, comparable
from pipelines.corpus.embedding.model import ModelFiles
from pipelines.corpus.embedding.openvino_ir import OpenVinoEmbedder
from pipelines.corpus.embedding.sentence_transformer import SentenceTransformerEmbedder

__all__ = [
    "Backend",
    "Embedder",
    "ModelFiles",
    "OpenVinoEmbedder",
    "Precision",
    "SentenceTransformerEmbedder",
    "Vectors",
    "comparable",
    "open_embedder",
]
