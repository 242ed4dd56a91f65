"""Takes secrets out of what leaves the cluster; `support_bundle` sends everything through it."""

import re
from collections.abc import Collection
from typing import Any

REDACTED = "[redacted]"
SECRET_NAME = re.compile(
    r"token|password|passwd|secret|credential|authorization|api[_-]?key|access[_-]?key", re.IGNORECASE
)
"""Names of environment variables and settings whose values are taken out."""

SECRET_TEXT = re.compile(
    r"(?i)\b(bearer\s+|basic\s+|authorization['\"]?\s*[:=]\s*['\"]?(?:bearer\s+|basic\s+)?|password['\"]?\s*[:=]\s*['\"]?|"
    r"[a-z_]*(?:secret|token|api_key|signature|credential)['\"]?\s*[=:]\s*['\"]?)[A-Za-z0-9._~+/=%-]{6,}"
)
SECRET_IN_URL = re.compile(r"(://[^/\s:@]*:)[^@/\s]+@")
SECRET_SHAPE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{8,}|AKIA[A-Z0-9]{12,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+)"
)
"""Tokens of hubs and clouds, and JSON web tokens, wherever they stand."""

NOISE = ("managedFields",)
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class Redaction:
    """Takes out known secrets, and what looks like one.

    Args:
        known: Secrets that are known to this process.
    """

    def __init__(self, known: Collection[str] = ()) -> None:
        self._known = sorted((secret for secret in known if secret), key=len, reverse=True)

    def text(self, text: str) -> str:
        """A text without secrets."""
        for secret in self._known:
            text = text.replace(secret, REDACTED)
        text = SECRET_IN_URL.sub(rf"\g<1>{REDACTED}@", text)
        return SECRET_SHAPE.sub(REDACTED, SECRET_TEXT.sub(rf"\g<1>{REDACTED}", text))


def without_secrets(value: Any) -> Any:
    """A Kubernetes object, or several, without values of secret settings, copies of specs and managed fields."""
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if not isinstance(value, dict):
        return value
    secret_setting = isinstance(value.get("name"), str) and SECRET_NAME.search(value["name"]) and "value" in value
    kept = {key: inner for key, inner in value.items() if key not in NOISE and key != LAST_APPLIED}
    cleaned = {key: without_secrets(inner) for key, inner in kept.items()}
    return cleaned | {"value": REDACTED} if secret_setting else cleaned
