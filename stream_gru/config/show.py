"""The configuration in effect: every key with its value, without secrets."""

from __future__ import annotations

import re

import msgspec

from stream_gru.config.train_schema import Config

HIDDEN = "…"
_USER_AND_PASSWORD = re.compile(r"://[^/\s]*@")
_PARAMETER = re.compile(r"(?<=[?&])([^=&#]*)=([^&#]*)")
# What an address may say about where things go; anything else may let somebody in.
_HARMLESS = frozenset({"db", "bucket", "org", "orgID", "precision", "rp", "consistency"})
# No key of today: secrets stand in files, and their names are shown.
_SECRET_KEY = re.compile(r"(password|passphrase|token|secret|api_?key)(?!.*_file$)")


def effective(config: Config) -> dict[str, object]:
    """All tables and keys with their values, defaults too; a key without a value is absent, secrets are HIDDEN."""
    return {key: _shown(key, value) for key, value in msgspec.to_builtins(config).items() if value is not None}


def _shown(key: str, value: object) -> object:
    if isinstance(value, dict):
        return {name: _shown(name, item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_shown(key, item) for item in value]
    if not isinstance(value, str):
        return value
    if value and _SECRET_KEY.search(key):
        return HIDDEN
    return _PARAMETER.sub(_parameter, _USER_AND_PASSWORD.sub(f"://{HIDDEN}@", value)) if "://" in value else value


def _parameter(found: re.Match[str]) -> str:
    return found[0] if found[1] in _HARMLESS else f"{found[1]}={HIDDEN}"
