"""What `.mosaic.toml` and the server's TOML file may say: every key, its type, its default and its limits.

A key that is not here is refused, so that a misspelt limit never passes for a limit.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.rules_texts import (
    AbsolutePath,
    BranchPrefix,
    Command,
    Expect,
    GateName,
    Logins,
    Pattern,
    RelativePath,
    Report,
    Repository,
    Text,
)
from app.toml_text import Loc, read
from app.types import ConfigInvalid, GateSpec

SERVER_FILE_LIMIT = 1024 * 1024  # bytes
GATES_LIMIT = 40
NOBODY = ("(nobody)",)  # no account can have this name


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


# ---------------------------------------------------------------- the tables of .mosaic.toml


class Bot(Table):
    enabled: bool = True
    trigger_label: Annotated[Text, Field(max_length=50)] = "mosaic"
    trigger_on_assign: bool = True
    draft: bool = True
    branch_prefix: BranchPrefix = "mosaic/"
    mode: Literal["shadow", "live"] = "live"
    ci: Literal["ask", "run"] = "ask"
    allow_ungated: bool = False


class Who(Table):
    """`users` empty = everyone who has the permission. NOBODY = two lists that had nobody in common."""

    permission: Literal["admin", "write", "read"] = "write"
    users: Logins = ()
    bots: Logins = ()


class Limits(Table):
    minutes: int = Field(default=60, ge=1, le=10_080)
    stall_minutes: int = Field(default=10, ge=1, le=1_440)
    rounds: int = Field(default=3, ge=1, le=50)
    attempts: int = Field(default=2, ge=1, le=20)
    tokens: int = Field(default=2_000_000, ge=1, le=10_000_000_000)
    cost_usd: float = Field(default=5.0, ge=0, le=1_000_000, allow_inf_nan=False)
    daily_cost_usd: float | None = Field(default=None, ge=0, le=1_000_000, allow_inf_nan=False)
    concurrent: int = Field(default=1, ge=1, le=100)
    per_user_hour: int = Field(default=10, ge=1, le=10_000)
    per_issue_day: int = Field(default=20, ge=1, le=10_000)
    per_repository_hour: int = Field(default=60, ge=1, le=100_000)
    per_repository_day: int = Field(default=300, ge=1, le=1_000_000)
    failures_in_a_row: int = Field(default=5, ge=1, le=10_000)
    files: int = Field(default=100, ge=1, le=100_000)
    patch_kb: int = Field(default=4096, ge=1, le=1_048_576)


class Agent(Table):
    access: Literal["write", "write+exec"] = "write"
    instructions: RelativePath = "AGENTS.md"
    model: Text = "default"
    plan: Literal["always", "large", "never"] = "never"
    exclude: tuple[Pattern, ...] = ()


class Setup(Table):
    commands: tuple[Command, ...] = Field(default=(), max_length=50)
    cache: tuple[RelativePath, ...] = ()
    outputs: tuple[RelativePath, ...] = ()
    network: bool = True
    timeout: int = Field(default=600, ge=1, le=7_200)


class Protect(Table):
    paths: tuple[Pattern, ...] = ()
    allow: tuple[Pattern, ...] = ()


class Notify(Table):
    verbosity: Literal["low", "medium", "high"] = "low"
    channels: tuple[Text, ...] = ()


class Gate(Table):
    name: GateName
    type: Literal["build", "lint", "test", "coverage", "custom", "ci"] = "custom"
    command: Command
    required: bool = True
    order: int = Field(default=10, ge=0, le=799)
    timeout: int = Field(default=900, ge=1, le=7_200)
    expect: Expect = ""
    min: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    report: Report = ""

    def spec(self, source: str) -> GateSpec:
        return GateSpec(**self.model_dump(), source=source)


def _unique_names(gates: tuple[Gate, ...]) -> tuple[Gate, ...]:
    names = [gate.name for gate in gates]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f'holds two gates named "{twice}". Give each its own name.')
    return gates


Gates = Annotated[tuple[Gate, ...], Field(max_length=GATES_LIMIT), AfterValidator(_unique_names)]


class Sections(Table):
    """The tables that the repository's file and the server's [defaults] and [ceilings] have in common.

    `model_fields_set` of each table tells what was said and what is a built-in default.
    """

    bot: Bot = Bot()
    who: Who = Who()
    limits: Limits = Limits()
    agent: Agent = Agent()
    setup: Setup = Setup()
    protect: Protect = Protect()
    notify: Notify = Notify()


def _version_one(version: int) -> int:
    if version != 1:
        raise ValueError(f"is {version}, which this Mosaic cannot read. Write version = 1.")
    return version


class RepositoryRules(Sections):
    """A whole `.mosaic.toml`."""

    version: Annotated[int, AfterValidator(_version_one)] = 1
    gates: Gates = ()


# Values that are defined already and whose feature comes with a later part. They are refused, not ignored: who writes
# `plan = "always"` counts on being asked.
_LATER = {("bot", "mode"): {"shadow"}, ("agent", "plan"): {"large", "always"}, ("agent", "access"): {"write+exec"}}


def later_features(sections: Sections, gates: tuple[Gate, ...], *place: str) -> list[tuple[Loc, str]]:
    """What the file asks for and this version cannot do yet: the key and a sentence for each."""
    found: list[tuple[Loc, str]] = []
    for (table, key), values in _LATER.items():
        value = getattr(getattr(sections, table), key)
        if value in values:
            found.append(((*place, table, key), _not_yet(f'{table}.{key} = "{value}"')))
    if sections.agent.model != "default":
        found.append(((*place, "agent", "model"), _not_yet(f'agent.model = "{sections.agent.model}"')))
    for number, gate in enumerate(gates):
        if gate.type == "ci":
            found.append((("gates", number, "type"), _not_yet('A gate of type "ci"')))
    return found


def _not_yet(what: str) -> str:
    return f"{what} is not available in this version of Mosaic. Remove it for now."


def parse_rules(text: str, source: str) -> RepositoryRules:
    """The `.mosaic.toml` in `text`. ConfigInvalid names `source`, the line of every fault, and what to write."""
    return read(RepositoryRules, text, source, check=lambda rules: later_features(rules, rules.gates))


# ---------------------------------------------------------------- the server's file


class Sandbox(Table):
    """What gates and setup find on this machine. `insecure` runs them without a sandbox, which the audit records."""

    root: AbsolutePath | None = None
    read_only: tuple[AbsolutePath, ...] = ()
    path: tuple[AbsolutePath, ...] = ()
    insecure: bool = False


class Budget(Table):
    daily: float | None = Field(default=None, ge=0, le=1_000_000, allow_inf_nan=False)


class Reconcile(Table):
    """How Mosaic looks for mentions whose webhook never came."""

    seconds: int = Field(default=60, ge=1, le=3_600)  # between the beginnings of two rounds
    notification_seconds: int = Field(default=20, ge=1, le=3_600)
    grace_seconds: int = Field(default=20, ge=0, le=120)  # younger than this: its webhook may still be on its way
    requests_per_minute: int = Field(default=300, ge=6, le=60_000)


class ServerConfig(Table):
    """The file that MOSAIC_CONFIG names: whom Mosaic serves, and what repositories may at most ask for."""

    repositories: tuple[Repository, ...] = Field(default=(), max_length=10_000)
    defaults: Sections = Sections()
    ceilings: Sections = Sections()
    sandbox: Sandbox = Sandbox()
    budget: Budget = Budget()
    reconcile: Reconcile = Reconcile()
    models: dict[Repository, Text] = Field(default_factory=dict)
    gates: Gates = ()

    @classmethod
    def load(cls, path: Path | None) -> ServerConfig:
        """The configuration in that file; None = an empty one, which serves nobody. ConfigInvalid if unusable."""
        if path is None:
            return cls()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigInvalid(f"{path} cannot be read as UTF-8 text: {error}.", source=str(path)) from error
        return read(cls, text, str(path), limit=SERVER_FILE_LIMIT, check=cls._later)

    def _later(self) -> list[tuple[Loc, str]]:
        found = later_features(self.defaults, self.gates, "defaults")
        if self.models:
            found.append((("models",), _not_yet("[models]")))
        if self.sandbox.root is not None:
            found.append((("sandbox", "root"), _not_yet("sandbox.root")))
        return found

    def serves(self, full_name: str) -> bool:
        """Whether `owner/name` is on the list; an empty list serves nobody."""
        return any(repository_matches(pattern, full_name) for pattern in self.repositories)

    def model_for(self, full_name: str) -> str:
        """The model of that repository: the first pattern of [models] that fits, else "default"."""
        fitting = (model for pattern, model in self.models.items() if repository_matches(pattern, full_name))
        return next(fitting, "default")


def repository_matches(pattern: str, full_name: str) -> bool:
    """Whether `owner/name` fits a pattern such as `acme/*`: no star reaches over the slash; case does not count."""
    wanted, given = pattern.lower().split("/"), full_name.lower().split("/")
    if len(wanted) != 2 or len(given) != 2 or not all(given):
        return False
    return fnmatchcase(given[0], wanted[0]) and fnmatchcase(given[1], wanted[1])
