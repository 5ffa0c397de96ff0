"""SQL is text with a name and a reason, in `sql/*.sql` beside this file.

A statement begins with a line `-- name: why it is as it is`, where `name` is one word; it ends where the next
one begins. Parameters only: no statement is ever put together from strings.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from types import SimpleNamespace

_HEAD = re.compile(r"^-- ([a-z][a-z0-9_]*): .+$", re.MULTILINE)


@cache
def statements(family: str) -> SimpleNamespace:
    """The statements of `sql/FAMILY.sql`, as attributes. Raises ValueError for a name that stands twice."""
    text = files(__package__).joinpath("sql", f"{family}.sql").read_text("utf-8")
    heads = list(_HEAD.finditer(text))
    found: dict[str, str] = {}
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        name = head[1]
        if name in found:
            msg = f"sql/{family}.sql: `{name}` stands twice"
            raise ValueError(msg)
        # The name stays in front: it is what a database administrator sees in pg_stat_activity.
        body = text[head.end() : following.start() if following else len(text)].strip().rstrip(";")
        found[name] = f"/* {family}.{name} */ {body}"
    return SimpleNamespace(**found)


def all_statements() -> dict[str, str]:
    """Every statement of every family, as `family.name` -> text: for tests that PREPARE and EXPLAIN them."""
    families = sorted(path.name.removesuffix(".sql") for path in files(__package__).joinpath("sql").iterdir())
    return {f"{family}.{name}": text for family in families for name, text in vars(statements(family)).items()}
