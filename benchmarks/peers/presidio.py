"""What one would write for labelled texts: a pydantic model and presidio's AnalyzerEngine for each row, in a loop.

    python -m benchmarks.peers.presidio FILE

``FILE`` holds rows with ``text`` and ``label`` (JSONL). Presidio's own recognisers with its usual threshold; the spaCy
model is a blank one, so that nothing is downloaded and no entities are looked for, which would only take longer.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import spacy
import tldextract
from presidio_analyzer import AnalyzerEngine
from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
from pydantic import BaseModel, Field

ENOUGH = 0.4


class BlankEngine(SpacyNlpEngine):
    """Words and nothing else."""

    def __init__(self) -> None:
        super().__init__(ner_model_configuration=NerModelConfiguration(labels_to_ignore=[]))
        self.nlp = {"en": spacy.blank("en")}


class Row(BaseModel):
    """A text that is neither too short nor too long."""

    text: str = Field(min_length=8, max_length=4000)
    label: str = Field(min_length=1)


def main() -> None:
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())  # it would fetch the list
    engine = AnalyzerEngine(nlp_engine=BlankEngine(), supported_languages=["en"])
    started = time.perf_counter()
    flagged = 0
    for line in lines:
        row = Row.model_validate_json(line)
        flagged += any(found.score >= ENOUGH for found in engine.analyze(row.text, language="en"))
    print(json.dumps({"seconds": time.perf_counter() - started, "flagged": flagged}))


if __name__ == "__main__":
    main()
