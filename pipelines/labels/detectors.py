"""Personal data and secrets in texts: what kind stands where, and texts with the kinds in their place.

Candidates are found by patterns, the libraries of the field decide: phonenumbers (Google's libphonenumber),
python-stdnum (check digits of cards, accounts and national numbers), detect-secrets (token formats of vendors). Names
and postal addresses are not looked for: that takes a language model, and errs. Where a bare number could be anything,
a word before it has to say what it is, and "order", "part" and the like say what it is not.

Presidio's recognisers were tried instead: they bring spaCy (200 MB) for regular expressions, fetch the list of domain
suffixes over the network, and without a language model know no context.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

from pipelines.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Finding:
    """One place in a text; never the value itself."""

    kind: str
    """For people, such as ``e-mail address``."""
    start: int
    end: int


def find_personal_data(texts: Sequence[str], *, phone_countries: Sequence[str]) -> list[tuple[Finding, ...]]:
    """E-mail addresses of persons, telephone, card, account and national numbers, internet addresses, in each text.

    Not counted: addresses of functions (support@), toll-free numbers, private and documentation networks, domains that
    are reserved for examples: answers name them with reason.

    Raises:
        ConfigError: a country is unknown.
    """
    known = _known_countries() if phone_countries else frozenset()
    unknown = sorted(set(phone_countries) - known)
    if unknown:
        raise ConfigError(f"labels.phone_countries: {unknown[0]!r} is no country; there are {', '.join(sorted(known))}")
    finders = (
        _emails,
        _cards,
        _accounts,
        _national_numbers,
        lambda text: _telephones(text, phone_countries),
        _internet_addresses,
    )
    return _find(texts, _PERSONAL, finders)


def find_secrets(texts: Sequence[str]) -> list[tuple[Finding, ...]]:
    """Keys, tokens and passwords in each text. Hashes and UUIDs count only where a word before calls them a secret."""
    return _find(texts, _WORTH_A_LOOK, (_private_keys, _tokens, _named_secrets))


def mask(text: str, findings: Sequence[Finding]) -> str:
    """``text`` with each finding replaced by its kind, such as ``[E-MAIL ADDRESS]``."""
    pieces, end = [], 0
    for finding in sorted(findings, key=lambda found: found.start):
        pieces += [text[end : finding.start], f"[{finding.kind.upper()}]"]
        end = finding.end
    return "".join([*pieces, text[end:]])


# What no finder can be interested in is put aside in one pass by RE2, which takes time linear in the text.
_PERSONAL = (
    r"@|(\d[^\dA-Za-z\n]{0,3}){7}|\b[A-Za-z]{2}\d{2} ?[A-Za-z0-9]{4}"
    r"|(\d{1,3}\.){3}\d|([0-9A-Fa-f]{1,4}:){2}|::[0-9A-Fa-f]"
    r"|\b[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b|\b[A-Z]{6}[A-Z0-9]{2}[A-Z][A-Z0-9]{6}|\b\d{6}[-+A]\d{3}"
)
_WORTH_A_LOOK = (
    r"PRIVATE KEY|PuTTY-User|(A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{8}|(?i:aws).{0,40}[0-9a-zA-Z/+]{40}"
    r"|AccountKey=|://[^/\s]*:[^/\s]*@|api\.softlayer|hooks\.slack|_authToken|[a-f0-9]{48}|[0-9a-z]{32}-us\d"
    r"|(?i:cloudant|clou|\bcl|ibm|iam|softlayer|\bsl)[_\-a-z]*(?i:key|pwd|pw|password|pass|token)|pypi-AgE"
    r"|[MNO][\w-]{23,25}\.[\w-]{6}\.|gh[pousr]_\w{16}|github_pat_|gl[a-z]{3,6}-|GR1348941|eyJ[\w=-]{8,}\.|T3BlbkFJ"
    r"|sk-\w|SG\.[\w-]{20}|(?i:xox[abposr]-)|sq0csp|[rs]k_live|\d{8}:[\w-]{35}|(AC|SK)[a-z0-9]{32}|\bhf_|AIza"
    r"|(?i:pass(word|wd|phrase|code)|pwd|kennwort|passwort|contrase|mot de passe|secret|key|token|credential)"
    r"\w{0,24}[\"'\]]{0,2}(\s*[=:]|\s+(?i:is|was|ist|est|es)\b)"
)


def _find(
    texts: Sequence[str], interesting: str, finders: Sequence[Callable[[str], Iterator[Finding]]]
) -> list[tuple[Finding, ...]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[str, tuple[Finding, ...]] = dict.fromkeys(texts, ())  # system texts and contexts come again and again
    distinct = list(found)
    storable = [text.encode("utf-8", "replace") for text in distinct]  # lone surrogates fit no column
    column = pa.array(storable, type=pa.binary()).cast(pa.string())
    for place in pc.indices_nonzero(pc.match_substring_regex(column, interesting)).to_pylist():
        text = distinct[place]
        found[text] = _apart(chain.from_iterable(finder(text) for finder in finders))
    return [found[text] for text in texts]


def _apart(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    """What overlaps something found earlier is dropped: the surer finders come first."""
    kept: list[Finding] = []
    for finding in findings:
        if all(finding.end <= other.start or finding.start >= other.end for other in kept):
            kept.append(finding)
    return tuple(sorted(kept, key=lambda finding: finding.start))


def _said_before(text: str, start: int, words: re.Pattern[str], reach: int = 40) -> bool:
    return words.search(text, max(0, start - reach), start) is not None


_OTHER_NUMBER = re.compile(
    r"(?i)\b(?:order|part|item|article|sku|invoice|receipt|ref(?:erence)?|ticket|track(?:ing)?|serial|model|case|batch|lot"
    r"|product|version|isbn|issn|ean|upc|doi|build|id|no|nr|booking|confirmation|transaction|bestell\w*|rechnung\w*)"
    r"\b[\s.:#]*(?:number|numbers|nummer|code|id|no|nr|is)?[\s.:#]*$"
)

_EMAIL = re.compile(
    r"(?<![\w.+%-])([A-Za-z0-9][\w.+%'-]{0,63})@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+(?:[^\W\d_]{2,24}|xn--[a-z0-9-]{2,50}))\b"
)
_FUNCTIONS = re.compile(  # RFC 2142, and what companies add to it
    r"(?i)(?:abuse|accounts|admin|billing|bounce|careers|contact|customer-?(?:care|service)|dataprotection|dpo|enquiries"
    r"|feedback|git|hello|help(?:desk)?|hostmaster|hr|info|inquiries|jobs|legal|mail|marketing|media|news(?:letter)?"
    r"|office|orders|postmaster|press|privacy|recruiting|reservations|returns|root|sales|security|services?|support|team"
    r"|webmaster|welcome)$"
)
_NOBODY = re.compile(r"(?i)(?:[@.](?:example|invalid|test|localhost|example\.(?:com|net|org))$)|no-?reply")  # RFC 2606


def _emails(text: str) -> Iterator[Finding]:
    for match in _EMAIL.finditer(text):
        if not _FUNCTIONS.match(match[1]) and not _NOBODY.search(match[0]):
            yield Finding("e-mail address", *match.span())


# Issuers' ranges and lengths, in one run or in groups as printed on the card.
_CARD = re.compile(
    r"(?<![\w./=&?#-])(?:(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6(?:011|4[4-9]\d|5\d\d)|62\d\d|35\d\d|50\d\d|5[6-9]\d\d|6[37]\d\d)"
    r"([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?"
    r"|3[47]\d\d([ -]?)\d{6}\2\d{5}|3(?:0[0-5]|[689]\d)\d([ -]?)\d{6}\3\d{4})(?![\w/-])"
)
_CARD_WORDS = re.compile(r"(?i)\b(?:card|credit|debit|visa|master ?card|amex|american express|maestro|pan|karte)\b")


def _cards(text: str) -> Iterator[Finding]:
    from stdnum import luhn

    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if (
            len(set(digits)) > 1
            and luhn.is_valid(digits)
            and (_said_before(text, match.start(), _CARD_WORDS) or not _said_before(text, match.start(), _OTHER_NUMBER))
        ):
            yield Finding("card number", *match.span())


_IBAN = re.compile(r"(?<![\w-])[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?(?![\w-])")


def _accounts(text: str) -> Iterator[Finding]:
    from stdnum import iban

    for match in _IBAN.finditer(text):
        end = match.end()  # words may follow that look like another group
        while end - match.start() >= 15:
            if iban.is_valid(text[match.start() : end]):
                yield Finding("bank account", match.start(), end)
                break
            end = match.start() + max(text[match.start() : end].rfind(" "), 0)


def _n(
    kind: str, module: str, pattern: str, words: str = ""
) -> tuple[str, str, re.Pattern[str], re.Pattern[str] | None]:
    named = re.compile(rf"(?i)(?<!\w)(?:{words})(?!\w)") if words else None
    return kind, module, re.compile(rf"(?<![\w./=&?#-])(?:{pattern})(?![\w-])"), named


_NUMBERS = (  # python-stdnum checks their digits; where words are given, one of them has to stand before
    _n("social security number", "us.ssn", r"\d{3}([- ])\d{2}\1\d{4}"),
    _n("social security number", "us.ssn", r"\d{9}", "ssn|social security(?: number)?"),
    _n("tax number", "us.itin", r"9\d\d([- ]?)\d{2}\1\d{4}", "itin|taxpayer id\\w*"),
    _n("national insurance number", "", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]"),
    _n("health service number", "gb.nhs", r"\d{3} ?\d{3} ?\d{4}", "nhs(?: number| no)?"),
    _n(
        "tax number",
        "de.idnr",
        r"\d{2} ?\d{3} ?\d{3} ?\d{3}",
        r"steuer-?id\w*|idnr|steuerliche identifikationsnummer|tin",
    ),
    _n("national number", "fr.nir", r"[12] ?\d{2} ?[0-9]{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}"),
    _n("national number", "es.dni", r"\d{8}-?[A-Z]", "dni|nif"),
    _n("national number", "es.nie", r"[XYZ]-?\d{7}-?[A-Z]"),
    _n("tax number", "it.codicefiscale", r"[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPR-T][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]"),
    _n("national number", "pl.pesel", r"\d{11}", "pesel"),
    _n("national number", "nl.bsn", r"\d{4}[. ]?\d{2}[. ]?\d{3}", "bsn|burgerservicenummer|sofinummer"),
    _n("national number", "be.nn", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}"),
    _n("tax number", "br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    _n("national number", "in_.aadhaar", r"\d{4}([ -]?)\d{4}\1\d{4}", "aadhaa?r(?: number| no)?"),
    _n("social insurance number", "ca.sin", r"\d{3}([ -]?)\d{3}\1\d{3}", "sin|social insurance(?: number)?"),
    _n("tax number", "au.tfn", r"\d{3} ?\d{3} ?\d{3}", "tfn|tax file number"),
    _n("national number", "se.personnummer", r"(?:\d{2})?\d{6}[-+]?\d{4}", "personnummer|personal identity number"),
    _n("national number", "fi.hetu", r"\d{6}[-+A]\d{3}[0-9A-Y]"),
    _n("national number", "ch.ssn", r"756\.\d{4}\.\d{4}\.\d{2}"),
)


def _national_numbers(text: str) -> Iterator[Finding]:
    for kind, module, pattern, words in _NUMBERS:
        for match in pattern.finditer(text):
            if words is not None and not _said_before(text, match.start(), words):
                continue
            if words is None and _said_before(text, match.start(), _OTHER_NUMBER):
                continue
            if not module or importlib.import_module(f"stdnum.{module}").is_valid(match[0]):
                yield Finding(kind, *match.span())


_PHONE = re.compile(r"(?<![\w.,/=&?#:-])(?:\+|00)?\(?\d[\d ().\-/\u00a0\u2010-\u2013]{5,24}\d(?![\w=@]|[.,:]\d|-\w)")
_DATE_OR_AMOUNT = re.compile(r"\(?(?:(?:19|20)\d\d[-/. ]\d\d?[-/. ]\d\d?|\d\d?[-/.]\d\d?[-/.](?:19|20)?\d\d)\b|[\d.]+$")
_PHONE_WORDS = re.compile(
    r"(?i)\b(?:(?:tele)?phone|tel|call(?:ed|ing)?|ring|mobile|cell(?:phone)?|fax|sms|text|whats ?app|dial|reach|handy"
    r"|telefon|mobil|anrufen|rufnummer)\b"
)


@cache
def _known_countries() -> frozenset[str]:
    import phonenumbers

    return frozenset(phonenumbers.SUPPORTED_REGIONS)


def _telephones(text: str, countries: Sequence[str]) -> Iterator[Finding]:
    import phonenumbers

    kinds = phonenumbers.PhoneNumberType
    of_nobody = {kinds.TOLL_FREE, kinds.PREMIUM_RATE, kinds.SHARED_COST, kinds.UAN, kinds.VOICEMAIL}
    for candidate in _PHONE.finditer(text):
        start, digits = candidate.start(), sum(map(str.isdigit, candidate[0]))
        if not 7 <= digits <= 17:
            continue
        international = candidate[0][0] == "+"
        if not international and not _said_before(text, start, _PHONE_WORDS):
            other = _DATE_OR_AMOUNT.match(candidate[0]) or _said_before(text, start, _OTHER_NUMBER)
            if other or candidate[0].isdigit():
                continue
        for country in (None,) if international else countries:
            matches = phonenumbers.PhoneNumberMatcher(
                candidate[0], country, leniency=phonenumbers.Leniency.STRICT_GROUPING
            )
            found = [match for match in matches if phonenumbers.number_type(match.number) not in of_nobody]
            yield from (Finding("telephone number", start + match.start, start + match.end) for match in found)
            if found:
                break


_IP = re.compile(
    r"(?<![\w.:-])(?:(?:\d{1,3}\.){3}\d{1,3}|(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){0,6}"
    r"|[0-9A-Fa-f:]*::[0-9A-Fa-f:]+)(?![\w:]|\.\d|-\d)"
)
_VERSION = re.compile(r"(?i)(?:\bv|\b(?:version|release|build|section|chapter|clause|firmware|driver))[\s.:#]*$")
_IP_WORDS = re.compile(  # versions have four parts, too
    r"(?i)\b(?:ip|ipv[46]|ips|address(?:es)?|client|visitor|host|logged in|log-?in|sign(?:ed)? in|connect\w*|from)\b"
)


def _internet_addresses(text: str) -> Iterator[Finding]:
    for match in _IP.finditer(text):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        plausible = _said_before(text, match.start(), _IP_WORDS) and not _said_before(text, match.start(), _VERSION)
        if address.version == 6:
            plausible = int(address) >> 125 == 1  # 2000::/3, what is handed out
        if plausible and address.is_global:
            yield Finding("internet address", *match.span())


_PRIVATE_KEY = re.compile(
    r"-----BEGIN[A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----(?s:.*?-----END[A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|.*)"
)


def _private_keys(text: str) -> Iterator[Finding]:
    for match in _PRIVATE_KEY.finditer(text):
        yield Finding("private key", *match.span())


_NEWER_TOKENS = (  # vendors that detect-secrets does not know yet
    ("Hugging Face Token", re.compile(r"\bhf_[A-Za-z0-9]{34}\b")),
    ("Google API Key", re.compile(r"\bAIza[\w-]{35}(?![\w-])")),
    ("GitHub Token", re.compile(r"\bgithub_pat_\w{60,}\b")),
    ("Anthropic Key", re.compile(r"\bsk-ant-[\w-]{40,}")),
    ("OpenAI Token", re.compile(r"\bsk-(?:proj|svcacct|admin)-[\w-]{40,}|\bsk-[A-Za-z0-9]{48}\b")),
)
_TOO_VAGUE = {  # short prefixes that ordinary upper-case words and part numbers have, or addresses, or their own finder
    "Artifactory Credentials",
    "Public IP (ipv4)",
    "Private Key",
}


@cache
def _token_patterns() -> tuple[tuple[str, Any], ...]:
    import pkgutil

    import detect_secrets.plugins
    from detect_secrets.plugins.base import RegexBasedDetector

    plugins: dict[Any, None] = dict.fromkeys(
        kind
        for module in pkgutil.iter_modules(detect_secrets.plugins.__path__)
        for kind in vars(importlib.import_module(f"detect_secrets.plugins.{module.name}")).values()
        if isinstance(kind, type) and issubclass(kind, RegexBasedDetector) and kind is not RegexBasedDetector
    )
    known = [(str(kind.secret_type), regex) for kind in plugins for regex in kind.denylist]
    return (*(pair for pair in known if pair[0] not in _TOO_VAGUE), *_NEWER_TOKENS)


_REST = re.compile(r"(?:[.]?[\w/+=-])*")


def _tokens(text: str) -> Iterator[Finding]:
    for kind, pattern in _token_patterns():
        for match in pattern.finditer(text):
            start, end = match.span()
            if kind == "Basic Auth Credentials":
                start, end = match.span(1)
                if (
                    _PLACEHOLDER.search(match[1])
                    or text[: match.start()].endswith("mailto")
                    or "://mailto:" in match[0]
                ):
                    continue
            elif start and text[start - 1].isalnum() and text[start].isalnum():  # the middle of something longer
                continue
            else:
                rest = _REST.match(text, end)  # some patterns end early
                end = rest.end() if rest else end
            yield Finding("password in a URL" if kind == "Basic Auth Credentials" else kind, start, end)


_NAMED = re.compile(
    r"(?i)(?<![A-Za-z])(pass(?:word|wd|phrase|code)|pwd|kennwort|passwort|contrase[nñ]a|mot de passe|secret"
    r"|(?:secret|private|access|account|auth|encryption|api|service|master)[ _-]?(?:access[ _-]?)?key"
    r"|(?:access|auth|bearer|refresh|api|session)[ _-]?token|credentials?)[A-Za-z0-9_]{0,12}[\"'\]]{0,2}"
    r"(?:\s*(?:=>|:=|[=:])\s*|\s+(?:is|was|ist|est|es)\s*:?\s+)[\"'`]?([^\s\"'`,;<>()]{6,200})"
)
_PLACEHOLDER = re.compile(
    r"(?i)^(?:\$|\{|\[|<|%|\*)|your|example|change_?me|placeholder|redacted|x{4}|\*{3}|\.{3}|…|^(?:none|null|true|false)$"
    r"|^(?:os|process|env|settings|config|self)\.|://|^/|^password$|^pass$|^secret$"
)


def _named_secrets(text: str) -> Iterator[Finding]:
    from detect_secrets.filters.heuristic import is_sequential_string

    for match in _NAMED.finditer(text):
        value = match[2].rstrip(".!?:")
        mixed = re.search(r"\d", value) and re.search(r"[^\W\d_]", value)
        odd = re.search(r"\w[!#$%&*+@^~]\w", value)
        if len(value) >= 6 and (mixed or odd) and not _PLACEHOLDER.search(value) and not is_sequential_string(value):
            kind = "key" if re.search(r"(?i)key|token|secret|credential", match[1]) else "password"
            yield Finding(kind, match.start(2), match.start(2) + len(value))
