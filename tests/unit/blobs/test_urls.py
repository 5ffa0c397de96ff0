"""The signed addresses of our own endpoint."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.blobs.keys import BadKey
from coordinator.blobs.store import content_disposition
from coordinator.blobs.urls import PATH, BadSignature, Grant, UrlSigner

SECRET, OTHER = b"s" * 32, b"o" * 32
DIGEST = "ab" * 32
PUT = Grant("PUT", "artifacts/1/2/" + DIGEST, 1000, 5, DIGEST)
GET = Grant("GET", "artifacts/1/2/" + DIGEST, 1000, name="a b&c=d.txt")

grants = st.builds(
    Grant,
    verb=st.just("GET"),
    key=st.from_regex(r"[a-z0-9=_-]{1,8}(/[a-z0-9=_-]{1,8}){0,2}", fullmatch=True),
    expires=st.integers(1, 2000),
    name=st.text(st.characters(codec="utf-8"), max_size=20),
) | st.builds(
    Grant,
    verb=st.just("PUT"),
    key=st.sampled_from(["a/b", "a", "b/a"]),
    expires=st.integers(1, 2000),
    size=st.integers(0, 10**15),
    sha256=st.sampled_from([DIGEST, "cd" * 32]),
)


def open_address(signer: UrlSigner, address: str, method: str, now: float = 0) -> Grant:
    parts = urlsplit(address)
    query = parse_qsl(parts.query, keep_blank_values=True)
    return signer.check(method, parts.path.removeprefix(PATH).replace("%3D", "="), query, now)


@given(grants)
def test_what_was_signed_is_what_is_granted(grant: Grant) -> None:
    """Nothing is lost or changed on the way through an address."""
    signer = UrlSigner([SECRET])
    assert open_address(signer, signer.sign(grant), grant.verb) == grant


@given(grants, grants)
def test_the_signature_of_one_grant_opens_no_other(one: Grant, other: Grant) -> None:
    """Each field is bound, and no two grants have one text."""
    signer = UrlSigner([SECRET])
    signature = signer.sign(one).rsplit("sig=", 1)[1]
    forged = signer.sign(other).rsplit("sig=", 1)[0] + "sig=" + signature
    if one == other:
        assert open_address(signer, forged, other.verb) == other
    else:
        with pytest.raises(BadSignature):
            open_address(signer, forged, other.verb)


@pytest.mark.parametrize("grant", [PUT, GET])
@pytest.mark.parametrize(
    "change",
    [{"verb": "GET"}, {"verb": "PUT"}, {"expires": 9999}, {"size": 6}, {"sha256": "cd" * 32}, {"key": "other"}],
)
def test_each_field_is_bound(grant: Grant, change: dict[str, object]) -> None:
    """Drop one field from what is signed and its case here turns red."""
    signer = UrlSigner([SECRET])
    changed = replace(grant, **change)  # type: ignore[arg-type]  # the fields of Grant
    signature = signer.sign(grant).rsplit("sig=", 1)[1]
    address = signer.sign(changed).rsplit("sig=", 1)[0] + "sig=" + signature
    if changed != grant and open_fields(signer.sign(changed)) != open_fields(signer.sign(grant)):
        with pytest.raises(BadSignature):
            open_address(signer, address, changed.verb)


def open_fields(address: str) -> tuple[str, frozenset[tuple[str, str]]]:
    parts = urlsplit(address)
    return parts.path, frozenset(pair for pair in parse_qsl(parts.query) if pair[0] != "sig")


def test_an_address_ends_at_its_second() -> None:
    """Ten minutes, not a moment more."""
    signer = UrlSigner([SECRET])
    assert open_address(signer, signer.sign(GET), "GET", now=999.9) == GET
    with pytest.raises(BadSignature, match="expired"):
        open_address(signer, signer.sign(GET), "GET", now=1000)


def test_a_download_answers_head_and_an_upload_nothing_but_put() -> None:
    """HEAD tells less than GET; no other verb goes with another."""
    signer = UrlSigner([SECRET])
    open_address(signer, signer.sign(GET), "HEAD")
    for grant, methods in ((GET, ("PUT", "DELETE", "POST")), (PUT, ("GET", "HEAD", "DELETE"))):
        for method in methods:
            with pytest.raises(BadSignature, match="was signed for"):
                open_address(signer, signer.sign(grant), method)


def test_an_older_secret_is_believed_until_it_is_taken_away() -> None:
    """A secret can be changed while uploads are under way."""
    address = UrlSigner([SECRET]).sign(GET)
    assert open_address(UrlSigner([OTHER, SECRET]), address, "GET") == GET
    with pytest.raises(BadSignature):
        open_address(UrlSigner([OTHER]), address, "GET")


@given(
    st.lists(st.tuples(st.sampled_from(["verb", "size", "sha256", "name", "expires", "kid", "sig", "x"]), st.text()))
)
def test_any_query_is_refused_in_one_sentence(query: list[tuple[str, str]]) -> None:
    """The endpoint is open to whoever reaches its port."""
    with pytest.raises((BadSignature, BadKey)):
        UrlSigner([SECRET]).check("GET", "a/b", query, 0)


def test_a_short_secret_is_no_secret() -> None:
    """An empty one, from a setting that was forgotten, would let everybody sign."""
    for secrets in ([], [b""], [b"x" * 31]):
        with pytest.raises(ValueError, match="secret"):
            UrlSigner(secrets)
    assert "s" * 32 not in repr(UrlSigner([SECRET]))


@given(st.text(st.characters(codec="utf-8")))
def test_any_file_name_makes_a_safe_header(name: str) -> None:
    """A name is the job's word: it must not end the header, add one, or name a folder."""
    header = content_disposition(name)
    assert header.isascii()
    assert header.isprintable()
    assert header.startswith("attachment; ")
    assert header.count('"') == 2
    assert "/" not in header
