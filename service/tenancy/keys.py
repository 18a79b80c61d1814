"""Keys of callers, and the root secret that every keyed hash hangs on.

A key reads `sf-<id>-<secret>`. Only a keyed hash of its secret is stored, so neither the database alone nor the root
alone is worth anything to a thief. Purpose keys come from the root by HKDF (RFC 5869), so that no two uses share one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.errors import ConfigError, Unauthenticated
from service.settings import Limits
from service.tenancy.sealing import Seal

SECRET_VARIABLE = "FIREWALL_SECRET_KEY"  # noqa: S105 -- the name of the variable
OLD_SECRET_VARIABLE = "FIREWALL_SECRET_KEY_OLD"  # noqa: S105 -- the name of the variable
MIN_SECRET_BYTES = 32
MESSAGE_ROLES = ("user", "tool", "document", "system")
ROUTES = (
    *("chat", "messages", "responses", "completions", "embeddings"),
    *("moderations", "scan", "guardrail", "llm_guard"),
)
"""What a key's `routes` may name; `messages` includes the counting of its tokens."""
MAX_GLOBS = 100
MAX_GLOB_CHARS = 200
MAX_SYSTEM_PROMPT_CHARS = 65_536
CACHE_S = 0.5
"""How long a stored key, or that there is none, may be believed: what another process did holds after this."""
_CACHED_KEYS = 10_000
_ABSENT_IDS = 1_024
"""Ids that no key has, not asked for again within `CACHE_S`."""

_KEY = re.compile(r"sf-([a-z0-9]{4,64})-([A-Za-z0-9_-]{20,128})")
_REFUSED = "The API key is missing or not valid."
_NO_HASH = "0" * 64


class SecretRoot:
    """The root secret. Its value never leaves this object; `key` and `digest` derive from it."""

    def __init__(self, value: bytes) -> None:
        if len(value) < MIN_SECRET_BYTES:
            raise ConfigError(f"{SECRET_VARIABLE}: at least {MIN_SECRET_BYTES} bytes are needed")
        self._value = value

    def key(self, purpose: str) -> bytes:
        """32 bytes for one purpose."""
        return HKDF(hashes.SHA256(), 32, salt=None, info=f"semantic-firewall/{purpose}".encode()).derive(self._value)

    @property
    def id(self) -> str:
        """Tells roots apart without telling anything of them."""
        return self.digest("root-id")("")[:16]

    def digest(self, purpose: str) -> Callable[[str], str]:
        """A keyed hash (BLAKE2b, 16 bytes as hex) that makes equal texts recognisable without keeping them."""
        key = self.key(purpose)

        def digest(text: str) -> str:
            return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=key).hexdigest()

        return digest


def load_root(folder: Path) -> SecretRoot:
    """The root from the environment, else from `secret.key` beside the configuration, made (mode 0600) if missing.

    Raises ConfigError where it is too short, or readable by others.
    """
    if given := os.environ.get(SECRET_VARIABLE):
        return SecretRoot(given.encode())
    path = folder / "secret.key"
    try:
        if not path.exists():
            _make_secret(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path}: others may read it; run: chmod 600 {path}")
        value = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; set {SECRET_VARIABLE} instead") from error
    if len(value) < MIN_SECRET_BYTES:
        raise ConfigError(f"{path}: shorter than {MIN_SECRET_BYTES} bytes")
    return SecretRoot(value)


def load_old_root(path: Path | None = None) -> SecretRoot:
    """The root before the present one: from a file, else from the environment. Raises ConfigError where there is none,
    or where it is too short.
    """
    if path is not None:
        try:
            return SecretRoot(path.read_bytes().strip())
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
    if given := os.environ.get(OLD_SECRET_VARIABLE):
        return SecretRoot(given.encode())
    raise ConfigError(f"{OLD_SECRET_VARIABLE}: not set; it has to hold the {SECRET_VARIABLE} of before")


def _make_secret(path: Path) -> None:
    """Written whole and then linked to its name, so that two processes starting at once end up with the same one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".secret.")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_urlsafe(48) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)


class StoredKey(Protocol):
    """What is kept of a key. Times are seconds since the epoch, None for never; `roles` are what it may send."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def tenant(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def roles(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def expires_at(self) -> float | None: ...  # noqa: D102
    @property
    def revoked_at(self) -> float | None: ...  # noqa: D102
    @property
    def models(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def routes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def limits(self) -> Limits: ...  # noqa: D102
    @property
    def tenant_limits(self) -> Limits | None: ...  # noqa: D102
    @property
    def old_digest(self) -> str | None: ...  # noqa: D102
    @property
    def old_expires_at(self) -> float | None: ...  # noqa: D102
    @property
    def system_prompt(self) -> str: ...  # noqa: D102


class KeyStore(Protocol):
    """Where keys are kept."""

    async def find_key(self, key_id: str) -> StoredKey | None:
        """The key with this id, revoked and expired ones included."""

    async def add_key(
        self,
        *,
        key_id: str,
        tenant: str,
        digest: str,
        roles: tuple[str, ...],
        created_at: float,
        expires_at: float | None,
        models: tuple[str, ...],
        routes: tuple[str, ...],
        limits: Limits,
        system_prompt: str,
    ) -> None:
        """Keep a new key."""

    async def rotate_key(self, key_id: str, digest: str, at: float, old_expires_at: float) -> bool:
        """Give a key a new secret; the one it had holds until then. False where there is no such key that is good."""

    async def revoke_key(self, key_id: str, at: float) -> bool:
        """False where there is no such key that was still good."""


class NewKey(msgspec.Struct, frozen=True):
    """A key just made: `key` is shown once and kept nowhere."""

    id: str
    key: str


class Keys:
    """Makes keys and tells whose a presented one is."""

    def __init__(self, store: KeyStore, root: SecretRoot, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._hash_key = root.key("api-key")
        self._seal = Seal(root.key("seal"))
        self._clock = clock
        self._cache: dict[str, tuple[float, StoredKey]] = {}
        self._absent: dict[str, float] = {}

    async def create(
        self,
        tenant: str,
        roles: Iterable[str] = (),
        expires_at: float | None = None,
        *,
        models: Iterable[str] = (),
        routes: Iterable[str] = (),
        limits: Limits | None = None,
        system_prompt: str = "",
    ) -> NewKey:
        """Make and keep a key. No roles, models (globs) or routes means all of them.

        Raises ConfigError for an unknown role or route, a past expiry, and what is too long.
        """
        wanted = _known("roles", roles, MESSAGE_ROLES) or MESSAGE_ROLES
        globs = tuple(dict.fromkeys(models))
        if len(globs) > MAX_GLOBS or not all(0 < len(glob) <= MAX_GLOB_CHARS for glob in globs):
            raise ConfigError(f"models: at most {MAX_GLOBS} globs of 1 to {MAX_GLOB_CHARS} characters")
        if len(system_prompt) > MAX_SYSTEM_PROMPT_CHARS:
            raise ConfigError(f"system_prompt: longer than {MAX_SYSTEM_PROMPT_CHARS} characters")
        now = self._clock()
        if expires_at is not None and not expires_at > now:  # not a number is no time either
            raise ConfigError("expires_at: already past")
        key_id, secret = secrets.token_hex(8), _new_secret()
        await self._store.add_key(
            key_id=key_id,
            tenant=tenant,
            digest=self._hash(key_id, secret),
            roles=wanted,
            created_at=now,
            expires_at=expires_at,
            models=globs,
            routes=_known("routes", routes, ROUTES),
            limits=limits or Limits(),
            system_prompt=self._seal.close(system_prompt, key_id),
        )
        self._absent.pop(key_id, None)
        return NewKey(key_id, f"sf-{key_id}-{secret}")

    async def rotate(self, key_id: str, old_expires_at: float | None = None) -> NewKey | None:
        """Give a key a new secret. The old one holds until then, None for no longer; older ones are worthless.

        None where there is no such key that is good. Raises ConfigError for a time that is past.
        """
        now = self._clock()
        if old_expires_at is not None and not old_expires_at > now:
            raise ConfigError("old_expires_at: already past")
        secret = _new_secret()
        until = now if old_expires_at is None else old_expires_at
        rotated = await self._store.rotate_key(key_id, self._hash(key_id, secret), now, until)
        self._cache.pop(key_id, None)
        self._absent.pop(key_id, None)
        if not rotated:
            return None
        return NewKey(key_id, f"sf-{key_id}-{secret}")

    async def revoke(self, key_id: str) -> bool:
        """Make a key worthless, here at once; False where there is none that was still good."""
        revoked = await self._store.revoke_key(key_id, self._clock())
        self._cache.pop(key_id, None)  # after it: who asked meanwhile may have read the key as it was
        return revoked

    async def verify(self, presented: str) -> StoredKey:
        """The key that was presented. Raises Unauthenticated with the same words whatever is wrong with it."""
        match = _KEY.fullmatch(presented)
        key_id, secret = match.groups() if match else ("", "")
        stored = await self._find(key_id) if match else None
        # The hash is made and compared in every case, so that time does not tell which ids exist.
        digest, now = self._hash(key_id, secret), self._clock()
        matches = hmac.compare_digest(digest, stored.digest if stored else _NO_HASH)
        matches_old = hmac.compare_digest(digest, (stored.old_digest if stored else None) or _NO_HASH)
        if stored is None or stored.revoked_at is not None:
            raise Unauthenticated(_REFUSED)
        if stored.expires_at is not None and stored.expires_at <= now:
            raise Unauthenticated(_REFUSED)
        if not matches and not (matches_old and now < (stored.old_expires_at or 0.0)):
            raise Unauthenticated(_REFUSED)
        return stored

    def system_prompt(self, stored: StoredKey) -> str:
        """What this key puts before every prompt. Raises StorageFailed where it cannot be opened."""
        return self._seal.open(stored.system_prompt, stored.id)

    async def _find(self, key_id: str) -> StoredKey | None:
        now = self._clock()
        held = self._cache.get(key_id)
        if held is not None and 0 <= now - held[0] < CACHE_S:
            return held[1]
        absent_since = self._absent.get(key_id)
        if absent_since is not None and 0 <= now - absent_since < CACHE_S:
            return None
        stored = await self._store.find_key(key_id)
        if stored is None:
            if len(self._absent) >= _ABSENT_IDS:
                self._absent.clear()
            self._absent[key_id] = now
            return None
        if len(self._cache) >= _CACHED_KEYS:
            self._cache.clear()
        self._cache[key_id] = (now, stored)
        return stored

    def _hash(self, key_id: str, secret: str) -> str:
        return hmac.digest(self._hash_key, f"{key_id}:{secret}".encode(), "sha256").hex()


def _new_secret() -> str:
    return secrets.token_urlsafe(32)


def _known(what: str, given: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(given))
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"{what}: unknown {', '.join(unknown)}; there are {', '.join(known)}")
    return names
