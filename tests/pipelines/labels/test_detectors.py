from __future__ import annotations

import time

import pytest

from pipelines.errors import ConfigError
from pipelines.labels.detectors import _token_patterns, find_personal_data, find_secrets, mask


def personal(text: str, *countries: str) -> str:
    (findings,) = find_personal_data([text], phone_countries=countries or ("US", "GB"))
    return mask(text, findings)


def secret(text: str) -> str:
    return mask(text, find_secrets([text])[0])


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe+x@acme.co.uk, please", "Write to [E-MAIL ADDRESS], please"),
        ("my card is 4111 1111 1111 1111", "my card is [CARD NUMBER]"),
        ("order 4111111111111111 is a card by chance", "order 4111111111111111 is a card by chance"),
        ("paid by card 378282246310005.", "paid by card [CARD NUMBER]."),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [BANK ACCOUNT] please"),
        ("GB82WEST12345698765432", "[BANK ACCOUNT]"),
        ("my SSN is 536-90-4399", "my SSN is [SOCIAL SECURITY NUMBER]"),
        ("NI number AB 12 34 56 C", "NI number [NATIONAL INSURANCE NUMBER]"),
        ("CPF 529.982.247-25", "CPF [TAX NUMBER]"),
        ("Steuer-ID: 36574261809", "Steuer-ID: [TAX NUMBER]"),
        ("call me on 415-555-2671 tonight", "call me on [TELEPHONE NUMBER] tonight"),
        ("reach me: 4155552671", "reach me: [TELEPHONE NUMBER]"),
        ("+49 30 901820 is Berlin", "[TELEPHONE NUMBER] is Berlin"),
        ("logged in from 8.8.4.4 today", "logged in from [INTERNET ADDRESS] today"),
        ("2001:4860:4860::8888 asked", "[INTERNET ADDRESS] asked"),
    ],
)
def test_personal_data_is_found_and_named_by_its_kind(text: str, masked: str) -> None:
    assert personal(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "Write to support@acme.com or jane@example.com, or noreply@acme.com",
        "git clone git@github.com:acme/x.git",
        "my card 4111 1111 1111 1112 fails",  # check digit
        "DE89 3704 0044 0532 0130 01 is no account",
        "536904399 parts in stock",
        "536-00-4399 was never issued",
        "order no. 4155552671, part 415-555-2671, invoice 020 7946 0958",
        "call our toll-free number 800-555-1234",
        "on 2024-01-15 10:30:22, or 15/01/2024, for 1,234,567.89 EUR",
        "ISBN 978-3-16-148410-0, tracking 1Z999AA10123456784",
        "version 8.18.0.1 of the client, connect to 192.168.1.1 or 203.0.113.9 or 10.0.0.1",
        "std::string at 12:30:45, aa::bb",
        "123e4567-e89b-12d3-a456-426614174000",
        "https://shop.acme.com/item/4111111111111111?ref=5369043991",
        "pH 7.35-7.45, 100 000 000 people, 1 000 000",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert personal(text) == text


def test_national_telephone_numbers_belong_to_the_countries_named() -> None:
    assert personal("Telefon 030 901820", "DE") == "Telefon [TELEPHONE NUMBER]"
    assert personal("Telefon 030 901820", "US") == "Telefon 030 901820"
    with pytest.raises(ConfigError, match="'UK' is no country; there are AC, "):
        personal("x", "UK")


TOKENS = (  # put together here, so that no scanner of this repository takes them for real
    ("AWS Access Key", "AK" + "IAABCDEFGHIJKLMNOP"),
    ("Azure Storage Account access key", "AccountKey=" + "aB1+" * 22),
    ("Cloudant Credentials", "cloudant_key = " + "0a1b2c3d" * 8),
    ("Discord Bot Token", "M" + "a1B2c3D4" * 3 + ".Xy12_z." + "aB3" * 9),
    ("GitHub Token", "gh" + "p_" + "aB1c" * 9),
    ("GitLab Token", "glpat" + "-aB1cD2eF3gH4iJ5kL6mN"),
    ("IBM Cloud IAM Key", "ibm_cloud_iam_key = " + "aB1c" * 11),
    ("IBM COS HMAC Credentials", "cos_hmac_secret_access_key: " + "0a1b2c" * 8),
    ("JSON Web Token", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-DEF_123"),
    ("Mailchimp Access Key", "0a1b2c3d" * 4 + "-us12"),
    ("NPM tokens", "//registry.npmjs.org/:_authToken=" + "npm_aB1cD2eF3"),
    ("OpenAI Token", "sk-" + "aB1cD" * 4 + "T3BlbkFJ" + "aB1cD" * 4),
    ("PyPI Token", "pypi-AgEIcHlwaS5vcmc" + "aB1cD" * 15),
    ("SendGrid API Key", "SG." + "aB1cD2eF3gH" * 2 + "." + "aB1cD2eF3gHiJkLmNoPqR" * 2 + "x"),
    ("Slack Token", "xoxb" + "-123-456-abcdef"),
    ("SoftLayer Credentials", "softlayer_api_key = " + "0a1b2c3d" * 8),
    ("Square OAuth Secret", "sq0csp-" + "aB1cD2eF3gH" * 3 + "aB1cD2eF3g"),
    ("Stripe Access Key", "sk_live_" + "aB1c" * 6),
    ("Telegram Bot Token", "110201543:" + "aB1cD2e" * 5),
    ("Twilio API Key", "AC" + "0a1b2c3d" * 4),
    ("Basic Auth Credentials", "https://joe:pa55" + "w0rd@host/x"),
    ("Hugging Face Token", "hf_" + "aB" * 17),
    ("Google API Key", "AIza" + "aB1cD" * 7),
    ("Anthropic Key", "sk-ant-" + "aB1cD" * 10),
    ("GitHub Token", "github_pat_" + "aB1cD_" * 12),
    ("OpenAI Token", "sk-" + "proj-" + "aB1cD" * 9),
)


def test_every_token_format_is_found_wherever_it_stands() -> None:
    kinds = {kind for kind, _ in _token_patterns()}
    assert kinds == {kind for kind, _ in TOKENS}, "a new kind: see that the first pass lets it through"
    texts = [f"as agreed: {token} thank you" for _, token in TOKENS]
    for (kind, token), text, findings in zip(TOKENS, texts, find_secrets(texts), strict=True):
        assert findings, kind
        masked = mask(text, findings)
        assert masked.startswith("as agreed: "), kind
        assert token[-12:] not in masked or "://" in token, masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("my password is hunter2k", "my password is [PASSWORD]"),
        ("Password: Tr0ub4dor&3", "Password: [PASSWORD]"),
        ('api_key="abcd1234efgh"', 'api_key="[KEY]"'),
        ("client secret: 123e4567-e89b-12d3-a456-426614174000", "client secret: [KEY]"),
        ("-----BEGIN RSA PRIVATE " + "KEY-----\nabc\n-----END RSA PRIVATE " + "KEY----- tail", "[PRIVATE KEY] tail"),
        ("cut: -----BEGIN PRIVATE " + "KEY-----\nabc\ndef", "cut: [PRIVATE KEY]"),
    ],
)
def test_what_is_called_a_secret_is_one(text: str, masked: str) -> None:
    assert secret(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "How do I reset my password?",
        "password: please choose a new one",
        "The password is required at login",
        "api key: YOUR_API_KEY_123",
        "password = os.environ['X1']",
        "token: {{ env.TOKEN1 }}",
        "secret = ${SECRET_1}",
        "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "id 123e4567-e89b-12d3-a456-426614174000",
        "[mail](http://mailto:support@acme.com)",
        "the key is 5 minutes, the token is TOKEN1",
    ],
)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    assert secret(text) == text


def test_odd_texts_take_no_time_and_break_nothing() -> None:
    texts = ["", "\ud800 lone", "a@" * 20_000, "1 " * 20_000, ":" * 20_000, "password " + " " * 20_000, "aws" * 9_000]
    texts += ["0:" * 20_000, "4111 " * 8_000, "-----BEGIN " * 4_000, "a.b-c" * 8_000 + "@", "key = " * 7_000]
    started = time.perf_counter()
    assert len(find_personal_data(texts, phone_countries=("US",))) == len(find_secrets(texts)) == len(texts)
    assert time.perf_counter() - started < 20
