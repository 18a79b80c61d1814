"""Texts that are kept sealed: AES-256-GCM under a key of the root's, bound to what they belong to."""

from __future__ import annotations

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.errors import StorageFailed

_NONCE_BYTES = 12


class Seal:
    """Seals and opens texts. `key` has 32 bytes; a text opens only for the `owner` that it was sealed for."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def close(self, text: str, owner: str) -> str:
        """The sealed text, printable; an empty one stays empty."""
        if not text:
            return ""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, text.encode(), owner.encode())
        return base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, sealed: str, owner: str) -> str:
        """The text. Raises StorageFailed where it was changed, moved to another owner, or sealed under another root."""
        if not sealed:
            return ""
        try:
            raw = base64.urlsafe_b64decode(sealed)
            return self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], owner.encode()).decode()
        except (InvalidTag, ValueError, binascii.Error):
            raise StorageFailed("A sealed text of the database cannot be opened.") from None
