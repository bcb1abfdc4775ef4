"""Secrets in text: URLs that carry them are found, so that configuration can refuse them; messages are scrubbed.

The product itself never reads, copies or passes on a key: stores ask the environment, profiles and instance roles for
credentials when they need them, and ask again when those expire.
"""

from __future__ import annotations

import os
import re

HIDDEN = "****"
_NAMES = (
    r"X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|X-Goog-Signature|X-Goog-Credential|Signature|"
    r"AWSAccessKeyId|GoogleAccessId|Key-Pair-Id|sig|access_token"
)
# A colon that a port and a slash follow is no password's: http://host:9000/a@b.mp4 is an address.
_USER = re.compile(r"(?P<begin>[a-z][a-z0-9+.-]*://)(?:[^\s/:@]*:(?!\d+/)[^\s@]*|[^\s/:@]+)@", re.IGNORECASE)
_SIGNED = re.compile(rf"(?P<begin>\b(?:{_NAMES})=)[^\s&\"'<>)]+", re.IGNORECASE)
SUSPECT = (
    rf"://[^\s/@]*@|://[^\s/:@]*:[^\s@]*@|\b({_NAMES})=|\b(AKIA|ASIA|AROA|AIDA)[A-Z0-9]"  # as RE2 and Arrow read it
)
_KEY = re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b")
_SETTING = re.compile(
    r"(?P<begin>(?<![/\w])(?:aws_)?(?:secret_access_key|session_token|access_key_id|SecretAccessKey|SessionToken|AccessKeyId|"
    r"AWSAccessKeyId|StringToSign|SignatureProvided)\b[\"']?\s*[=:>]\s*[\"']?)[^\s\"',<>}]+",
    re.IGNORECASE,
)
_SECRET_VARIABLES = re.compile(r"(?:SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY)", re.IGNORECASE)
_SHORTEST = 12  # characters; shorter values of such variables are words ("testing", "disabled") that texts may hold


def kind_of(text: str) -> str | None:
    """What kind of credentials a text carries, without them; None if none."""
    if _USER.search(text):
        return "a user name or key before an @"
    if "://" in text and _SIGNED.search(text):
        return "a signature (a presigned URL)"
    return "an access key id" if _KEY.search(text) else None


def scrubbed(text: str) -> str:
    """A message without key ids, signatures, passwords in URLs, and the values of this process's secret variables."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and _SECRET_VARIABLES.search(name) and not os.path.exists(value):
            text = text.replace(value, HIDDEN)
    for pattern in (_USER, _SIGNED, _SETTING):
        end = "@" if pattern is _USER else ""
        text = pattern.sub(lambda match, end=end: f"{match['begin']}{HIDDEN}{end}", text)  # type: ignore[misc]
    return _KEY.sub(HIDDEN, text)
