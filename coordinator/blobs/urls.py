"""The signed addresses of our own blob endpoint: HMAC-SHA256 over verb, key, size, digest, expiry and file name.

They bind what an S3 presigned URL of ours binds, so that whoever carries one out need not know which store it is:
the same headers must be sent with an upload, for exactly these bytes, to a key that is free.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from coordinator.blobs.keys import BadKey, check_digest, check_key

CHECKSUM_HEADER = "x-amz-checksum-sha256"
PATH = "/blobs/"
_FIELDS = frozenset({"verb", "size", "sha256", "name", "expires", "kid", "sig"})


class BadSignature(Exception):
    """The address was not signed by us for this request, or no longer; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What an address allows: one verb on one key until `expires` (unix seconds).

    `size` and `sha256` are those of the upload, -1 and "" for a download; `name` is the download's file name.
    """

    verb: str
    key: str
    expires: int
    size: int = -1
    sha256: str = ""
    name: str = ""


class UrlSigner:
    """Signs with the first secret and believes all of them, so that a secret can be changed while addresses live."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._secrets = {hashlib.sha256(b"headrace key id\0" + secret).hexdigest()[:16]: secret for secret in secrets}
        if not self._secrets or any(len(secret) < 32 for secret in self._secrets.values()):
            raise ValueError("an address is signed with a secret of at least 32 bytes")
        self._newest = next(iter(self._secrets))

    def __repr__(self) -> str:
        return f"UrlSigner(kids={list(self._secrets)})"

    def sign(self, grant: Grant) -> str:
        """Return path and query of the signed address."""
        fields = {
            "verb": grant.verb,
            "expires": str(grant.expires),
            "kid": self._newest,
        }
        if grant.verb == "PUT":
            fields |= {"size": str(grant.size), "sha256": grant.sha256}
        else:
            fields |= {"name": grant.name}
        fields["sig"] = self._mac(grant, self._newest).hex()
        return f"{PATH}{quote(check_key(grant.key))}?{urlencode(fields)}"

    def check(self, method: str, key: str, query: Iterable[tuple[str, str]], now: float) -> Grant:
        """Return what the address allows, if we signed it and `method` is its verb (HEAD goes with GET).

        Raises `BadSignature`; nothing of the address is believed before its signature is.
        """
        pairs = list(query)
        fields = dict(pairs)
        if len(pairs) != len(fields) or not fields.keys() <= _FIELDS:
            raise BadSignature("this address was not signed by this coordinator")
        grant = _parse(key, fields)
        kid = fields.get("kid", "")
        if kid not in self._secrets or not hmac.compare_digest(
            self._mac(grant, kid).hex().encode(), fields.get("sig", "").encode()
        ):
            raise BadSignature("this address was not signed by this coordinator, or was changed")
        if grant.expires <= now:
            raise BadSignature("this address has expired: ask for another")
        if grant.verb != ("GET" if method == "HEAD" else method):
            raise BadSignature(f"this address was signed for {grant.verb}")
        return grant

    def _mac(self, grant: Grant, kid: str) -> bytes:
        fields = (grant.verb, grant.key, str(grant.expires), str(grant.size), grant.sha256, grant.name, kid)
        # Lengths in front: no two grants have one text, whatever is in a name.
        text = b"headrace blob 1" + b"".join(len(f.encode()).to_bytes(4, "big") + f.encode() for f in fields)
        return hmac.digest(self._secrets[kid], text, "sha256")


def upload_headers(size: int, sha256_hex: str) -> Mapping[str, str]:
    """The headers that bind an upload to its bytes and to a free key, on every store."""
    checksum = base64.b64encode(bytes.fromhex(check_digest(sha256_hex))).decode()
    return {"content-length": str(size), "if-none-match": "*", CHECKSUM_HEADER: checksum}


def _parse(key: str, fields: Mapping[str, str]) -> Grant:
    try:
        size, expires = fields.get("size", "-1"), fields.get("expires", "")
        if len(size) > 19 or len(expires) > 19:
            raise ValueError("too long for a number")
        return Grant(
            verb=fields.get("verb", ""),
            key=check_key(key),
            expires=int(expires),
            size=int(size),
            sha256=fields.get("sha256", ""),
            name=fields.get("name", ""),
        )
    except BadKey:
        raise
    except ValueError:
        raise BadSignature("this address was not signed by this coordinator") from None
