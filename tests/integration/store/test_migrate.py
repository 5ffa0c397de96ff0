"""What a person is told whose database cannot be brought to this version's schema."""

from __future__ import annotations

import pytest

from coordinator.errors import BadInput, StoreDown
from coordinator.store.migrate import migrate


@pytest.mark.parametrize("dsn", ["foo", "postgresql://[::1/headrace", "postgresql://a@b:port/c"])
async def test_an_address_that_is_none_is_bad_input_and_is_not_repeated(dsn: str) -> None:
    """A slip in a setting is no mistake of Headrace; the address may hold a password."""
    with pytest.raises(BadInput, match="postgresql://USER") as caught:
        await migrate(dsn)
    assert dsn not in str(caught.value)


async def test_a_database_that_does_not_exist_is_named(fresh_database: str) -> None:
    """`createdb` was forgotten: one sentence says so."""
    base, slash, rest = fresh_database.rpartition("/")
    name, _, options = rest.partition("?")
    with pytest.raises(BadInput, match=r"nowhere.* does not exist"):
        await migrate(f"{base}{slash}{name}_nowhere" + (f"?{options}" if options else ""))


async def test_a_database_that_nobody_serves_is_down() -> None:
    """That may mend itself: it is tried again."""
    with pytest.raises(StoreDown, match="cannot be reached"):
        await migrate("postgresql://nobody@127.0.0.1:1/nothing")
