"""The rules of a job: what `.mosaic.toml` asks for, narrowed by the server's ceilings. Nothing here ever widens.

`effective` joins the two files, `stricter` joins the rules of an earlier job with those of its retry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from app.rules_narrow import BUILT_IN_CEILINGS, FREE, UNITED, narrow, widen
from app.rules_paths import AGENT_FILES, RULES_FILES
from app.rules_schema import (
    Agent,
    Bot,
    Limits,
    Notify,
    Protect,
    RepositoryRules,
    Sections,
    ServerConfig,
    Setup,
    Table,
    Who,
    parse_rules,
)
from app.types import GateSpec

__all__ = [
    "AGENT_FILES",
    "RULES_FILES",
    "RepositoryRules",
    "Rules",
    "ServerConfig",
    "effective",
    "parse_rules",
    "stricter",
]

TABLES = tuple(Sections.model_fields)
DEFAULTS = Sections()
KEYS = tuple(f"{table}.{name}" for table in TABLES for name in type(getattr(DEFAULTS, table)).model_fields)


# ---------------------------------------------------------------- the rules of a job


class Protected(Protect):
    """Patterns beside the built-in ones: a repository's `allow` opens those of `paths`, never those of `locked`."""

    locked: tuple[str, ...] = ()


class Rules(Table):
    """Everything that holds for a job. `origins` tells for each key ("limits.minutes") where its value comes from."""

    bot: Bot
    who: Who
    limits: Limits
    agent: Agent
    setup: Setup
    protect: Protected
    notify: Notify
    gates: tuple[GateSpec, ...]
    origins: dict[str, str]

    def with_gates(self, found: Iterable[GateSpec]) -> Rules:
        """The same rules with further gates, such as detected ones; a gate that is defined already stays as it is."""
        known = {gate.name for gate in self.gates}
        added = tuple(gate for gate in found if gate.name not in known)
        origins = {f"gates.{gate.name}": gate.source for gate in added}
        return self.model_copy(update={"gates": _sorted(self.gates + added), "origins": {**self.origins, **origins}})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as they are stored with the job."""
        value: dict[str, Any] = self.model_dump(mode="json")
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | str) -> Rules:
        """The inverse of `to_json`; also takes the JSON text.

        What it does not know it leaves out: in an upgrade a newer process may have stored it. Files are read strictly.
        """
        return cls.model_validate_json(value if isinstance(value, str) else json.dumps(dict(value)), extra="ignore")

    @property
    def sha256(self) -> str:
        """Hex digest of what holds; where it comes from does not count."""
        content = {key: value for key, value in self.to_json().items() if key != "origins"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# ---------------------------------------------------------------- joining the two files


def effective(server: ServerConfig, repository: RepositoryRules | None, full_name: str = "") -> Rules:
    """The rules for a job in `full_name` (owner/name); `repository` is None where there is no file.

    What the file says replaces the server's default and is narrowed to the ceiling; where it is silent, the
    default holds.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key in KEYS:
        values[key], origins[key] = _effective_value(key, server, repository)
    values["agent.model"], origins["agent.model"] = _model(server, repository, full_name)
    values["protect.paths"] += (f"/{values['agent.instructions']}",)  # a job does not write the next one's instructions
    values["protect.locked"] = _locked(server)
    gates = _joined((gate.spec("server") for gate in server.gates), _gates_of(repository))
    origins |= {f"gates.{gate.name}": gate.source for gate in gates}
    return _built(values, gates, origins)


def _locked(server: ServerConfig) -> tuple[str, ...]:
    """What the server protects: no repository's `allow` opens it."""
    own, ceiling = _said(server.defaults, "protect.paths") or (), _said(server.ceilings, "protect.paths") or ()
    return tuple(dict.fromkeys(own + ceiling))


def _said(sections: Sections | None, key: str) -> Any:
    """What a file says about `key`; None where it says nothing."""
    table, name = key.split(".")
    part = getattr(sections, table, None)
    if part is None or name not in part.model_fields_set:
        return None
    return getattr(part, name)


def _effective_value(key: str, server: ServerConfig, repository: RepositoryRules | None) -> tuple[Any, str]:
    table, name = key.split(".")
    default, asked = _said(server.defaults, key), _said(repository, key)
    value, origin = getattr(getattr(DEFAULTS, table), name), "default"
    if default is not None:
        value, origin = default, "server default"
    if asked is not None:
        value = narrow(key, asked, value) if key in UNITED else asked
        origin = ".mosaic.toml"
    ceiling, whose = _ceiling(key, server)
    if ceiling is None:
        return value, origin
    allowed = narrow(key, value, ceiling)
    return allowed, origin if allowed == value else whose


def _ceiling(key: str, server: ServerConfig) -> tuple[Any, str]:
    """The widest value a repository may have, and who set it; None = no ceiling.

    The built-in ceiling gives way to a wider server default: whoever runs the server meant it.
    """
    said = _said(server.ceilings, key)
    if said is not None or key not in BUILT_IN_CEILINGS:
        return said, "server ceiling"
    default = _said(server.defaults, key)
    ceiling = BUILT_IN_CEILINGS[key]
    return (ceiling if default is None else widen(key, ceiling, default)), "built-in ceiling"


def most_requests(server: ServerConfig) -> int:
    """How many requests an hour of one person this server looks at, whatever any repository allows."""
    return int(_ceiling("limits.per_user_hour", server)[0])


def _model(server: ServerConfig, repository: RepositoryRules | None, full_name: str) -> tuple[str, str]:
    """The model: fixed by the ceiling, or asked for and offered by the server, or the server's for this repository."""
    fixed, default = _said(server.ceilings, "agent.model"), _said(server.defaults, "agent.model") or "default"
    asked = _said(repository, "agent.model")
    if fixed:
        return fixed, "server ceiling"
    if asked and asked != "default" and asked in {*server.models.values(), default}:
        return asked, ".mosaic.toml"
    own = server.model_for(full_name)
    if own != "default":
        return own, "server models"
    return default, "default" if default == "default" else "server default"


def _built(values: Mapping[str, Any], gates: tuple[GateSpec, ...], origins: dict[str, str]) -> Rules:
    tables: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
    for key, value in values.items():
        table, name = key.split(".")
        tables[table][name] = value
    return Rules.model_validate({**tables, "gates": gates, "origins": origins})


# ---------------------------------------------------------------- gates


def _gates_of(repository: RepositoryRules | None) -> Iterable[GateSpec]:
    return (gate.spec("repository") for gate in (repository.gates if repository else ()))


def _joined(first: Iterable[GateSpec], second: Iterable[GateSpec]) -> tuple[GateSpec, ...]:
    """All gates of both. One that is in both keeps the command of the first, with the stricter of every other field."""
    others = {gate.name: gate for gate in second}
    joined = [_stricter_gate(gate, others.pop(gate.name, gate)) for gate in first]
    return _sorted((*joined, *others.values()))


def _stricter_gate(gate: GateSpec, other: GateSpec) -> GateSpec:
    floors = [floor for floor in (gate.min, other.min) if floor is not None]
    return replace(
        gate,
        required=gate.required or other.required,
        timeout=min(gate.timeout, other.timeout),
        expect=gate.expect or other.expect,
        min=max(floors, default=None),
        report=gate.report or other.report,
    )


def _sorted(gates: tuple[GateSpec, ...]) -> tuple[GateSpec, ...]:
    return tuple(sorted(gates, key=lambda gate: (gate.order, gate.name)))


# ---------------------------------------------------------------- an earlier job and its retry


def stricter(old: Rules, new: Rules) -> Rules:
    """What holds when a job is taken up again: for every key the stricter of the two, and the gates of both.

    Where neither value is stricter (a label, a command) the new one holds: it is what the default branch says now.
    """
    values: dict[str, Any] = {}
    origins = dict(new.origins)
    for key in (*KEYS, "protect.locked"):
        table, name = key.split(".")
        now, before = getattr(getattr(new, table), name), getattr(getattr(old, table), name)
        values[key] = now if key in FREE else narrow(key, now, before)
        if values[key] != now:
            origins[key] = "earlier rules"
    gates = _joined(new.gates, old.gates)
    kept = {gate.name for gate in gates} - {gate.name for gate in new.gates}
    return _built(values, gates, origins | {f"gates.{name}": "earlier rules" for name in sorted(kept)})
