"""What may be done: which changes the policy lets through, and who may ask for one.

One rule: pure functions of their arguments; what is unknown, unusual or unreadable is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.gate_sections import SECTIONED, same_sections
from app.path_names import odd_name, shown
from app.path_patterns import folded, matches
from app.types import Change, Finding

SYMLINK, GITLINK, FILE, EXECUTABLE, ABSENT = "120000", "160000", "100644", "100755", "000000"

# Mosaic's own rules and what git itself obeys: `[protect] allow` cannot open these.
ALWAYS_PROTECTED: tuple[str, ...] = (
    ".gitmodules",
    ".gitattributes",
    "/.mosaic.toml",
    "/.mosaic/**",
    "/.gitea/mosaic.toml",
)

# What a forge runs by itself.
WORKFLOWS: tuple[str, ...] = (
    *("/.gitea/**", "/.forgejo/**", "/.github/**", "/.gitlab-ci.yml", "/.gitlab/**", "/.circleci/**", "/.buildkite/**"),
    *("/.drone.yml", "/.drone.star", "/.woodpecker.yml", "/.woodpecker.yaml", "/.woodpecker/**", "/.travis.yml"),
    *("/.cirrus.yml", "/.appveyor.yml", "/appveyor.yml", "/azure-pipelines.yml", "/bitbucket-pipelines.yml"),
    *("/Jenkinsfile", "/.teamcity/**", "/.ci/**"),
)

# What decides whether a gate is green, what runs on the forge, and what instructs agents.
PROTECTED: tuple[str, ...] = (
    *ALWAYS_PROTECTED,
    *WORKFLOWS,
    "CODEOWNERS",
    # hooks that run on a developer's machine
    *(
        "/.husky/**",
        "/.githooks/**",
        "/.pre-commit-config.yaml",
        "/lefthook.yml",
        "/.envrc",
        "/.vscode/**",
        "/.devcontainer/**",
    ),
    # test runners' configuration
    *(
        "conftest.py",
        "pytest.ini",
        ".pytest.ini",
        "tox.ini",
        "setup.cfg",
        "pyproject.toml",
        "package.json",
        "noxfile.py",
    ),
    *(
        ".coveragerc",
        "jest.config.*",
        "vitest.config.*",
        "karma.conf.*",
        ".mocharc.*",
        ".nycrc*",
        "codecov.yml",
        ".npmrc",
    ),
    *("ruff.toml", ".ruff.toml", "mypy.ini", ".mypy.ini", ".flake8", ".eslintrc*", "eslint.config.*", ".golangci.*"),
    # lock files: what setup installs
    *(
        "package-lock.json",
        "npm-shrinkwrap.json",
        "yarn.lock",
        "pnpm-lock.yaml",
        "bun.lock",
        "bun.lockb",
        "poetry.lock",
    ),
    *("uv.lock", "pdm.lock", "Pipfile.lock", "Cargo.lock", "go.sum", "Gemfile.lock", "composer.lock"),
    # agents' instructions and settings
    *("AGENTS.md", "CLAUDE.md", "CLAUDE.local.md", "GEMINI.md", "SOUL.md", "TOOLS.md", ".mcp.json", ".claude.json"),
    *(
        ".claude/**",
        ".openclaw/**",
        ".cursor/**",
        ".cursorrules",
        ".windsurfrules",
        ".aider*",
        ".gemini/**",
        ".codex/**",
    ),
    *(".ripgreprc", ".clinerules/**", ".roo/**", ".continue/**"),
)


@dataclass(frozen=True, slots=True)
class _Rules:
    configured: Sequence[str]
    allowed: Sequence[str]
    max_file: int  # bytes
    sizes: Mapping[str, int]
    targets: Mapping[str, str]
    contents: Mapping[str, tuple[bytes | None, bytes | None]]


def policy(
    changes: Sequence[Change],
    *,
    protected: Sequence[str] = (),
    allowed: Sequence[str] = (),
    max_files: int = 100,
    max_patch_kb: int = 4096,
    sizes: Mapping[str, int],
    targets: Mapping[str, str] | None = None,
    contents: Mapping[str, tuple[bytes | None, bytes | None]] | None = None,
    patch_bytes: int | None = None,
) -> tuple[Finding, ...]:
    """Everything in a change that is not allowed; empty when it may pass.

    changes: of `git diff --raw --no-renames` (a rename is a deletion and an addition, so that both names are checked).
    protected: patterns added to `PROTECTED`; allowed: patterns that open some again, never those of `ALWAYS_PROTECTED`.
    sizes: path -> bytes of its new blob; a path without a size is refused. targets: path -> where a new link points.
    contents: path -> (before, after) for pyproject.toml, package.json, setup.cfg and tox.ini: with them only the
    sections that decide about gates are protected, without them the whole file is.
    patch_bytes: size of the diff; without it the sizes of all new blobs count.
    """
    rules = _Rules(protected, allowed, max_patch_kb * 1024, sizes, targets or {}, contents or {})
    found = [finding for change in changes for finding in _change(change, rules)]
    found += _collisions(changes)
    found += _totals(changes, max_files, max_patch_kb, sizes, patch_bytes)
    return tuple(found)


def _change(change: Change, rules: _Rules) -> Iterator[Finding]:
    if change.status not in ("M", "D", "T"):  # the path is new: one that is there already may keep its odd name
        yield from (Finding("name", shown(change.path), why) for why in odd_name(change.path))
    yield from _kind(change, rules.targets)
    yield from _protected(change, rules)
    if change.new_mode in (FILE, EXECUTABLE):
        yield from _size(change.path, rules)


def _kind(change: Change, targets: Mapping[str, str]) -> Iterator[Finding]:
    path = shown(change.path)
    if change.new_mode == SYMLINK:
        yield Finding(
            "symlink", path, f"symbolic links are not allowed (it points to `{shown(targets.get(change.path, '?'))}`)"
        )
    elif GITLINK in (change.new_mode, change.old_mode):
        yield Finding("gitlink", path, "submodules may not be added, changed or removed")
    elif change.status not in ("A", "M", "D", "T"):
        yield Finding("mode", path, f"a change of kind `{shown(change.status)}` is not understood")
    elif change.new_mode not in (FILE, EXECUTABLE, ABSENT) or (change.new_mode == ABSENT) != (change.status == "D"):
        yield Finding("mode", path, f"file mode {shown(change.new_mode)} is not allowed; only 100644 and 100755 are")


def _protected(change: Change, rules: _Rules) -> Iterator[Finding]:
    path = change.path
    pattern = _first(ALWAYS_PROTECTED, path)
    if pattern is None and _first(rules.allowed, path) is None:
        pattern = _first(rules.configured, path) or _by_sections(path, rules)
    if pattern is not None:
        yield Finding("protected_path", shown(path), f"protected by `{pattern}`")


def starts_ci(path: str) -> bool:
    """Whether a file tells the forge what to run."""
    return _first(WORKFLOWS, path) is not None


def _first(patterns: Sequence[str], path: str) -> str | None:
    return next((pattern for pattern in patterns if matches(pattern, path)), None)


def _by_sections(path: str, rules: _Rules) -> str | None:
    """The built-in pattern that protects a path. A settings file's own does not when nothing that decides changed."""
    name = path.rpartition("/")[2]
    same = name in SECTIONED and path in rules.contents and same_sections(name, *rules.contents[path])
    return _first([pattern for pattern in PROTECTED if not (same and pattern == name)], path)


def _size(path: str, rules: _Rules) -> Iterator[Finding]:
    size = rules.sizes.get(path)
    if size is None:
        yield Finding("size", shown(path), "its size is unknown")
    elif size > rules.max_file:
        yield Finding("size", shown(path), f"{size} bytes; {rules.max_file} are allowed")


def _totals(
    changes: Sequence[Change], max_files: int, max_patch_kb: int, sizes: Mapping[str, int], patch_bytes: int | None
) -> Iterator[Finding]:
    if len(changes) > max_files:
        yield Finding("count", "", f"{len(changes)} files changed; `limits.files` allows {max_files}")
    total = sum(sizes.get(change.path, 0) for change in changes) if patch_bytes is None else patch_bytes
    if total > max_patch_kb * 1024:
        yield Finding("size", "", f"the change has {total // 1024} KiB; `limits.patch_kb` allows {max_patch_kb}")


def _collisions(changes: Sequence[Change]) -> Iterator[Finding]:
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for change in changes:
        if change.status != "D":
            alike[folded(change.path)].append(change.path)
    for paths in alike.values():
        for path in paths[1:]:
            yield Finding(
                "name", shown(path), f"cannot be told from `{shown(paths[0])}` where case or Unicode form is ignored"
            )


# ---------------------------------------------------------------- who may ask

_RANKS = {"read": 1, "write": 2, "admin": 3, "owner": 4}


@dataclass(frozen=True, slots=True)
class Authority:
    """What is known of a person's right on a repository, from where and since when."""

    source: str  # authz_token | payload | oauth
    permission: str | None  # none | read | write | admin | owner, as Gitea names it; None: it would not say
    at: str  # RFC 3339


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    why: str  # one sentence for the person


class Who(Protocol):
    """The `[who]` section of the rules."""

    @property
    def permission(self) -> str: ...
    @property
    def users(self) -> Collection[str]: ...
    @property
    def bots(self) -> Collection[str]: ...


def may(permission: str | None, needed: str = "write") -> bool:
    """Whether Gitea's `permission` reaches `needed`. Unknown words on either side mean no."""
    return needed in _RANKS and _RANKS.get(permission or "", 0) >= _RANKS[needed]


def is_bot(who: Who, login: str, user_id: int) -> bool:
    """Whether an account is no person: the rules name it as a bot, or it is one of the forge's own.

    Gitea's API does not tell which accounts are bots; those that nobody names count as people. Never judged by the
    look of a name.
    """
    return user_id <= 0 or login.casefold() in _logins(who.bots)


def allowed_actor(who: Who, login: str, permission: str | None, *, bot: bool = False, own: str = "") -> Decision:
    """Whether this account may start, retry or continue a job.

    bot: it is not a person (`is_bot`). own: Mosaic's own login.
    `users`, when given, narrows to those names; it gives nobody a right that the forge does not.
    """
    name = login.casefold()
    if not name or name == own.casefold():
        return Decision(False, "Mosaic does not act on its own messages.")
    if bot and name not in _logins(who.bots):
        return Decision(False, "Bots may not start jobs here unless `[who] bots` names them.")
    if not bot and who.users and name not in _logins(who.users):
        return Decision(False, "Only the people named in `[who] users` may start jobs here.")
    if not may(permission, who.permission):
        has = "their permission could not be determined" if permission is None else f"they have `{permission}`"
        return Decision(False, f"`{who.permission}` permission on the repository is needed; {has}.")
    return Decision(True, f"`{permission}` permission on the repository.")


def _logins(names: Iterable[str]) -> set[str]:
    return {name.casefold().removeprefix("@") for name in names}
