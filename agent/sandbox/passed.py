"""Which of the agent's own settings of proxies, certificates and package indexes jobs are given.

For a local run they are taken from the user's environment; an agent's operator lists them in its settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_NAMES: Final = re.compile(
    r"[A-Z0-9]+_PROXY|[a-z0-9]+_proxy|SSL_CERT_FILE|REQUESTS_CA_BUNDLE|GIT_SSL_CAINFO|(PIP|UV|NPM_CONFIG)_[A-Z0-9_]+"
)


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that jobs get, by the documented list of names."""
    return {name: value for name, value in sorted(environ.items()) if _NAMES.fullmatch(name)}


def paths(given: Mapping[str, str], home: Path) -> tuple[Path, ...]:
    """The files and folders that these settings name and that exist here: a job has to see them to use them.

    Never a folder that holds more than that: not the root or what lies right below it, not `home` or above.
    """
    words = [word for value in given.values() for word in value.split()]
    found = {Path(word.removeprefix("file://")) for word in words if word.startswith(("/", "file:///"))}
    return tuple(
        sorted(path for path in found if len(path.parts) > 2 and path.exists() and not home.is_relative_to(path))
    )
