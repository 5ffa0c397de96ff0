"""Reading a daemon's settings: flag, else environment `HEADRACE_*`, else TOML file, else default.

Once, in the daemon's `app.py`; all mistakes in one message, and a mistyped name is a mistake.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, PydanticBaseSettingsSource

from headrace.settings_names import PREFIX, check, distance

Found = TypeVar("Found", bound=BaseSettings)


class BadSettings(Exception):
    """One or more settings are wrong; the message names each with its mend, a line each."""


class _Environment(EnvSettingsSource):
    """The environment that was passed in, not the process's own."""

    def __init__(self, kind: type[BaseSettings], environment: Mapping[str, str]) -> None:
        self._passed = {name.lower(): value for name, value in environment.items()}
        super().__init__(kind)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._passed


def read(
    kind: type[Found], flags: Mapping[str, object], environment: Mapping[str, str], default_file: Path
) -> tuple[Found, tuple[str, ...]]:
    """The settings, and warnings about variables that nobody knows. Raises BadSettings.

    Flags with the value None are as if they were not given. The TOML file is `$HEADRACE_CONFIG`, else
    `default_file` where that exists.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    findings = check(environment, {PREFIX + name.upper() for name in kind.model_fields} | {f"{PREFIX}CONFIG"})
    wrong = list(findings.mistakes)
    file = _file(environment, default_file)

    class Reader(kind):  # type: ignore[valid-type,misc]  # the class is a parameter
        """The settings with their sources in order."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the library's own names
            env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                InitSettingsSource(settings_cls, dict(given)),
                _Environment(settings_cls, environment),
                InitSettingsSource(settings_cls, file),
            )

    try:
        settings: Found = Reader()
    except ValidationError as error:
        wrong += [_mistake(kind, each) for each in error.errors(include_url=False)]
    if wrong:
        raise BadSettings("\n".join(wrong))
    return settings, findings.warnings


def _mistake(kind: type[BaseSettings], error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"]) or "settings"
    if error["type"] == "extra_forbidden":
        near = min(((distance(name, each, 2), each) for each in kind.model_fields), default=(3, ""))
        return f"{name}: unknown setting" + (f"; did you mean {near[1]}?" if near[0] <= 2 else "")
    return f"{name} ({PREFIX}{name.upper()}): {_wanted(kind, error)}"


def _wanted(kind: type[BaseSettings], error: Any) -> str:
    """What to give instead, in our own words where the library speaks to programmers."""
    fault, field = str(error["type"]), kind.model_fields.get(str(error["loc"][0])) if error["loc"] else None
    if field is not None and fault in _NUMBERS:
        limits = {type(each).__name__: str(getattr(each, type(each).__name__.lower())) for each in field.metadata}
        least = f" of {limits['Ge']} or more" if "Ge" in limits else f" above {limits['Gt']}" if "Gt" in limits else ""
        bounds = f" from {limits['Ge']} to {limits['Le']}" if {"Ge", "Le"} <= set(limits) else least
        whole = "whole " if int in (field.annotation, *get_args(field.annotation)) else ""
        return f"{error['input']!r} will not do: give a {whole}number{bounds}"
    if fault == "bool_parsing":
        return f"{error['input']!r} will not do: give true or false"
    if fault == "string_pattern_mismatch":
        words = str(error["ctx"]["pattern"]).strip("^()$").replace("|", ", ")
        return f"{error['input']!r} will not do: give one of {words}"
    if fault.startswith("ip_v4_network"):
        return f"{error['input']!r} is no network: give one as 10.222.0.0/16 is one"
    return str(error["msg"]).removeprefix("Value error, ")


_NUMBERS = frozenset(
    (
        *("int_parsing", "int_type", "int_from_float", "int_parsing_size", "float_parsing", "float_type"),
        *("finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal"),
    )
)


def _file(environment: Mapping[str, str], default: Path) -> dict[str, Any]:
    named = environment.get(f"{PREFIX}CONFIG")
    file = Path(named) if named else default
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if named:
            raise BadSettings(f"{PREFIX}CONFIG: {file} does not exist") from error
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{file}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"{file}: no TOML: {error}") from error
