"""Texts on which the tokenizers of transformers and llama.cpp are compared, beside the held-out texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Probe:
    """One text, and why llama.cpp is known to read it in another way, where it is."""

    name: str
    text: str
    known_difference: str = ""


_MARKS = "llama.cpp drops every combining mark, the original only accents, so dependent vowels are lost"
_HANGUL = "llama.cpp does not decompose all precomposed Hangul as the original does"
_LONG = "the original reads a word of more than 100 characters as unknown, llama.cpp cuts it into pieces"

PROBES = (
    Probe("empty", ""),
    Probe("only white space", " \t\n  "),
    Probe("English", "The quick review, done twice: all of it passed; nothing was skipped!"),
    Probe("capitals", "UPPER lower MiXeD CamelCase snake_case kebab-case"),
    Probe("contractions", "I'm sure they've said he'd go, isn't that 'odd'?"),
    Probe("accents", "café naïve Ångström façade coöperate año über Łódź"),
    Probe("combining accents", "e\u0301tude n\u0303 a\u0308 o\u0302\u0301"),
    Probe("special casing", "straße İstanbul ıspanak ŞİŞE ẞ ǅ"),
    Probe("ligatures and fractions", "ﬁne ﬂow ½ ² ㎏ ℃ Ⅷ"),
    Probe("Greek", "Ελληνικά ΣΊΣΥΦΟΣ τέλος"),
    Probe("Cyrillic", "Привет, мир! Ёлка и йод"),
    Probe("Hebrew with points", "שָׁלוֹם עולם"),
    Probe("Arabic with marks", "السَّلامُ عليكم ١٢٣ ؟"),
    Probe("Thai", "ภาษาไทยไม่มีเว้นวรรค"),
    Probe("Chinese", "中文没有空格，也有标点。"),
    Probe("Japanese", "日本語のカタカナ ガギグゲゴ「かぎ」"),
    Probe("Vietnamese", "Tiếng Việt có dấu"),
    Probe("Georgian, Armenian, Ethiopic", "ქართული Հայերեն አማርኛ"),
    Probe("rare ideographs", "\U00020000 \u3400 \uf900"),
    Probe("Devanagari", "हिन्दी में लिखा", _MARKS),
    Probe("Hangul", "한국어 문장입니다", _HANGUL),
    Probe("digits", "0 12 345 6789 3.14159 1,000,000 0x1F 1e-9 ٣٤ १२ 2026-01-31"),
    Probe("white space", "tab\tnew\nline\r\nnbsp\u00a0em\u2003zero\u200bwidth\ufeffmark\u3000wide  two"),
    Probe("soft hyphen and direction marks", "a\u00adb \u202eright to left\u202c \u200eleft"),
    Probe("control characters", "\u0001 \u007f \u0085 and \ufffd"),
    Probe("code", "def f(x):\n    return {'a': x**2, \"b\": [1, 2]}  # comment"),
    Probe("addresses", "https://example.org/a?b=c&d=%20#e and me@example.org"),
    Probe("emoji", "😀 👩‍👩‍👧 🇫🇷 ❤️ ✅"),
    Probe("symbols", "$^+=<>|~`´¨¯¸ ∑ ∫ √ ≤ ≠ → ⇒ № ™ © ®"),
    Probe("quotes and dashes", "«one» “two” ‘three’ … — – ‐ ·"),
    Probe("special tokens", "[CLS] [SEP] [MASK] [PAD] [UNK] x[SEP]y"),
    Probe("nearly special tokens", "[cls] [ SEP ] <s></s><|endoftext|><|im_start|> ##ing a##b [unused1]"),
    Probe("word of 100 characters", "x" * 100),
    Probe("word of 101 characters", "x" * 101, _LONG),
    Probe("private and unassigned", "\ue000 \u0378"),
)
