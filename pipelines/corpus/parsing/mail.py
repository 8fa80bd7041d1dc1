"""Mail (RFC 5322 and MIME) by Python's own parser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email import errors, message_from_bytes, policy
from email.message import EmailMessage, MIMEPart
from email.utils import parsedate_to_datetime
from pathlib import PurePath

from pipelines.corpus.parsing.markup import parse_html
from pipelines.corpus.parsing.outline import Outline, Parsed, collapse, facts, paragraphs, readable
from pipelines.errors import DocumentError

MOST_NESTED = 3
"""Mails within mails."""
MOST_ATTACHMENTS = 200

_DATED = ("From", "To", "Subject", "Date", "Message-ID", "Received")
_ENCRYPTED = ("multipart/encrypted", "application/pgp-encrypted")
_PKCS7 = ("application/pkcs7-mime", "application/x-pkcs7-mime")
_CUT = (errors.CloseBoundaryNotFoundDefect, errors.StartBoundaryNotFoundDefect, errors.InvalidBase64LengthDefect)


def parse_mail(data: bytes, depth: int, parse: Callable[[bytes, str, int], Parsed]) -> Parsed:
    """A mail: who wrote what to whom, its text (of plain text and HTML the plain), and its attachments below it.

    Attachments are read by ``parse``; one that cannot be read says so in its place and under ``unreadable`` in the
    metadata, and does not hold up the mail.

    Raises:
        DocumentError: it is no mail, is encrypted or cut off, or lies in too many others.
    """
    if depth > MOST_NESTED:
        raise DocumentError(f"it is a mail within more than {MOST_NESTED} mails")
    message = message_from_bytes(data, policy=policy.default)
    if not any(name in message for name in _DATED):
        raise DocumentError(f"it is no mail: it has none of the headers {', '.join(_DATED)}")
    subject = _header(message, "Subject")
    outline = Outline(subject or None)
    lines = {**{name: _header(message, name) for name in ("From", "To", "Cc")}, "Date": _sent(message)}
    for name, value in lines.items():
        if value:
            outline.add(f"{name}: {value}", tight=True)
    names, unreadable = _add_parts(message, outline, depth, parse)
    metadata = facts(
        **{name.lower(): value for name, value in lines.items()},
        subject=subject,
        attachments=names,
        unreadable=unreadable,
    )
    return outline.parsed(metadata)


def _header(message: MIMEPart, name: str) -> str:
    values = [str(raw) for key, raw in message.raw_items() if key.lower() == name.lower()]
    return collapse(readable(", ".join(str(_parsed(name, value)) for value in values)))


def _parsed(name: str, value: str) -> str:
    """One header without its encoding; raw where Python's parser trips over it, in UTF-8 where it is not encoded."""
    text = " ".join(value.encode("ascii", "surrogateescape").decode("utf-8", "replace").splitlines())
    try:
        return str(policy.default.header_factory(name, text))
    except (errors.MessageError, AttributeError, LookupError, TypeError, ValueError):
        return text


def _sent(message: EmailMessage) -> str:
    stated = _header(message, "Date")
    try:
        return parsedate_to_datetime(stated).isoformat()
    except ValueError:
        return stated


def _add_parts(
    message: EmailMessage, outline: Outline, depth: int, parse: Callable[[bytes, str, int], Parsed]
) -> tuple[list[str], list[str]]:
    """Names of the attachments, and what was wrong with those that could not be read."""
    from pipelines.corpus.parsing import SUFFIXES

    path_title, names, unreadable = outline.title, [], []
    attached: list[tuple[str, MIMEPart]] = []
    for part in _leaves(message):
        name = _name(part)
        if name:
            attached.append((name, part))
        elif part.get_content_type() == "text/html":
            outline.under(parse_html(_text(part)).sections)
        elif part.get_content_maintype() == "text":
            for paragraph in paragraphs(readable(_text(part))):
                outline.add(paragraph)
    if len(attached) > MOST_ATTACHMENTS:
        raise DocumentError(f"it has {len(attached)} attachments, more than the {MOST_ATTACHMENTS} allowed")
    for name, part in attached:
        names.append(name)
        suffix = PurePath(name).suffix.lower()
        if suffix not in SUFFIXES:
            continue
        outline.heading(1, name)
        try:
            outline.under(parse(_content(part), suffix, depth + 1).sections)
        except DocumentError as error:
            unreadable.append(f"{name}: {error}")
            outline.add(f"This attachment could not be read: {error}.")
    outline.title = path_title
    return names, unreadable


def _leaves(message: MIMEPart) -> Iterator[MIMEPart]:
    """The parts that hold something, of alternatives' texts only one."""
    kind = message.get_content_type()
    encrypted = kind in _PKCS7 and message.get_param("smime-type") in (None, "enveloped-data")
    if kind in _ENCRYPTED or encrypted:
        raise DocumentError("it is encrypted: store it decrypted")
    if any(isinstance(defect, _CUT) for defect in message.defects):
        raise DocumentError("it is truncated: a part of it has no end")
    if message.get_content_maintype() != "multipart":
        yield message
        return
    parts = [leaf for part in message.iter_parts() for leaf in _leaves(part)]
    if kind == "multipart/alternative":
        texts = [part for part in parts if not _name(part) and part.get_content_maintype() == "text"]
        plain = [part for part in texts if part.get_content_subtype() == "plain" and _text(part).strip()]
        rich = [part for part in texts if part.get_content_subtype() == "html"]
        chosen = plain[:1] or rich or texts
        parts = [part for part in parts if part not in texts or part in chosen]
    yield from parts


def _name(part: MIMEPart) -> str:
    """The name of an attachment; "" if it is the mail's text."""
    name = collapse(readable(part.get_filename() or ""))
    if part.get_content_type() == "message/rfc822":
        inner = part.get_content()
        return f"{_header(inner, 'Subject') or name.removesuffix('.eml') or 'mail'}.eml"
    return name


def _content(part: MIMEPart) -> bytes:
    if part.get_content_type() == "message/rfc822":
        return bytes(part.get_content())
    return _payload(part)


def _payload(part: MIMEPart) -> bytes:
    payload = part.get_payload(decode=True)
    if any(isinstance(defect, _CUT) for defect in part.defects):
        raise DocumentError("it is truncated: its base64 text has no end")
    return payload if isinstance(payload, bytes) else b""


def _text(part: MIMEPart) -> str:
    """Text in the character set that the part declares, or else in UTF-8."""
    data, charset = _payload(part), part.get_content_charset("utf-8")
    for encoding in (charset, "utf-8"):
        try:
            return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
        except (LookupError, UnicodeDecodeError):
            continue
    raise DocumentError(f"its text is neither {charset!r}, as it says, nor UTF-8")
