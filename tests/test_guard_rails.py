"""The policy on changes that real git made, and who may ask."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.guard_rails import ALWAYS_PROTECTED, PROTECTED, allowed_actor, may, policy
from app.path_names import odd_name, shown
from app.path_patterns import folded, matches
from app.types import Change, Finding

ZERO, ONE = "0" * 40, "1" * 40


def added(path: str, mode: str = "100644") -> Change:
    return Change(path, "A", "000000", mode, ZERO, ONE)


def changed(path: str, old: str = "100644", new: str = "100644", status: str = "M") -> Change:
    return Change(path, status, old, new, ONE, ONE)


def deleted(path: str, mode: str = "100644") -> Change:
    return Change(path, "D", mode, "000000", ONE, ZERO)


def rules(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.rule for finding in findings}


def check(*changes: Change, **more: object) -> set[str]:
    sizes = {change.path: 10 for change in changes}
    return rules(policy(changes, **{"sizes": sizes, **more}))  # type: ignore[arg-type]


# ---------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("conftest.py", "conftest.py"),
        ("conftest.py", "a/b/conftest.py"),
        ("conftest.py", "a/conftest.py/x"),
        ("*.lock", "a/b.lock"),
        ("/Makefile", "Makefile"),
        (".github/**", ".github/workflows/ci.yml"),
        (".github/**", ".github"),
        ("/.ci/**", ".ci/run"),
        ("a/**/z", "a/z"),
        ("a/**/z", "a/b/c/z"),
        ("a/**/z", "a/b/z/deeper"),
        ("**/x", "x"),
        ("**/x", "a/b/x"),
        ("docs/", "a/docs/b"),
        ("a/*.py", "a/b.py"),
        ("a/?.py", "a/b.py"),
        ("a/[bc].py", "a/c.py"),
        ("a/[!bc].py", "a/d.py"),
        ("**", "any/thing"),
        ("*", "x/y"),
        (".github/**", ".GitHub/Workflows/CI.yml"),
        ("AGENTS.md", "agents.MD"),
        ("caf\u00e9.py", "cafe\u0301.py"),
        (".github/**", ".git\u200bhub/x"),
        (".github/**", ".github./x"),
        (".github/**", ".github /x"),
        ("AGENTS.md", "AGENT\uff33.md"),
        (".github/**", ".github\\workflows\\x"),
        ("a/b/c.txt", "a"),
        ("a/b/c.txt", "A/b"),
        ("stra\u00dfe", "STRASSE"),
    ],
)
def test_patterns_match(pattern: str, path: str) -> None:
    assert matches(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/Makefile", "a/Makefile"),
        ("a/*.py", "a/b/c.py"),
        ("conftest.py", "my_conftest.py"),
        ("conftest.py", "conftest.pyc"),
        (".github/**", "a/.github/x"),
        ("a/[!bc].py", "a/b.py"),
        ("docs/", "documents/x"),
        ("", "x"),
        ("a/b/c.txt", "a/x"),
        ("**/x", "y"),
        ("a/?.py", "a/bb.py"),
        ("a.b", "axb"),
    ],
)
def test_patterns_do_not_match(pattern: str, path: str) -> None:
    assert not matches(pattern, path)


def test_patterns_take_no_long_time() -> None:
    began = time.process_time()
    assert not matches("*a" * 30 + "b", "a" * 4000)
    assert not matches("**/a/" * 30 + "b", "a/" * 500 + "c")
    assert time.process_time() - began < 5


@settings(deadline=None)
@given(st.text(min_size=1, max_size=30).filter(lambda text: any(part for part in folded(text).split("/"))))
def test_everything_is_below_two_stars(path: str) -> None:
    assert matches("**", path)


# ---------------------------------------------------------------- policy


def test_an_ordinary_change_passes() -> None:
    changes = (
        added("src/new.py"),
        changed("README.md"),
        deleted("old.txt"),
        added("run.sh", "100755"),
        changed("x", "100644", "100755"),
        changed("was-a-link", "120000", "100644", "T"),
        deleted("link", "120000"),
    )
    assert policy(changes, sizes={change.path: 10 for change in changes}) == ()


@pytest.mark.parametrize(
    "path",
    [
        ".mosaic.toml",
        ".gitea/mosaic.toml",
        ".mosaic/x",
        ".gitea/workflows/a.yml",
        ".github/workflows/a.yml",
        "conftest.py",
        "tests/conftest.py",
        "pytest.ini",
        "tox.ini",
        "pyproject.toml",
        "sub/package.json",
        "package-lock.json",
        "uv.lock",
        "AGENTS.md",
        "a/CLAUDE.md",
        ".openclaw/x.json",
        ".claude/settings.json",
        ".husky/pre-commit",
        ".gitattributes",
        "a/.gitattributes",
        ".gitmodules",
        ".GITHUB/workflows/a.yml",
        "Conftest.py",
        ".gitlab-ci.yml",
        ".pre-commit-config.yaml",
        "CODEOWNERS",
        "docs/CODEOWNERS",
    ],
)
@pytest.mark.parametrize("change", [added, changed, deleted])
def test_protected_paths(path: str, change: object) -> None:
    assert "protected_path" in check(change(path))  # type: ignore[operator]


def test_a_file_or_link_in_place_of_a_protected_directory() -> None:
    assert "protected_path" in check(added(".github"))
    assert {"symlink", "protected_path"} <= check(added(".gitea", "120000"))


def test_a_rename_is_checked_on_both_sides() -> None:
    assert "protected_path" in check(deleted("conftest.py"), added("other.py"))
    assert "protected_path" in check(deleted("other.py"), added("conftest.py"))


def test_configured_and_opened_paths() -> None:
    assert check(changed("billing/rates.py"), protected=["billing/**"]) == {"protected_path"}
    assert check(changed("tests/conftest.py"), allowed=["tests/conftest.py"]) == set()
    assert check(changed("conftest.py"), allowed=["tests/conftest.py"]) == {"protected_path"}
    for pattern in ALWAYS_PROTECTED:
        path = pattern.strip("/*")
        assert check(changed(path), allowed=["**", path]) == {"protected_path"}
    assert set(ALWAYS_PROTECTED) <= set(PROTECTED)


PROJECT = b'[project]\nversion = "1"\ndependencies = []\n[tool.pytest.ini_options]\naddopts = "-q"\n'


@pytest.mark.parametrize(
    ("name", "before", "after", "passes"),
    [
        ("pyproject.toml", PROJECT, PROJECT.replace(b'"1"', b'"2"'), True),
        ("pyproject.toml", PROJECT, PROJECT.replace(b"-q", b"-k nothing"), False),
        ("pyproject.toml", PROJECT, PROJECT + b"[tool.coverage.report]\nfail_under = 0\n", False),
        ("pyproject.toml", PROJECT, b"not toml [", False),
        ("pyproject.toml", PROJECT, None, False),
        ("pyproject.toml", None, PROJECT, False),
        (
            "package.json",
            b'{"version":"1","scripts":{"test":"jest"}}',
            b'{"version":"2","scripts":{"test":"jest"}}',
            True,
        ),
        (
            "package.json",
            b'{"version":"1","scripts":{"test":"jest"}}',
            b'{"version":"1","scripts":{"test":"true"}}',
            False,
        ),
        ("package.json", b"{}", b"[" * 100_000, False),
        (
            "sub/setup.cfg",
            b"[metadata]\nname = a\n[tool:pytest]\naddopts = -q\n",
            b"[metadata]\nname = b\n[tool:pytest]\naddopts = -q\n",
            True,
        ),
        ("sub/setup.cfg", b"[tool:pytest]\naddopts = -q\n", b"[tool:pytest]\naddopts =\n", False),
        ("tox.ini", b"[testenv]\ncommands = pytest\n", b"[testenv]\ncommands = true\n", False),
    ],
)
def test_only_sections_that_decide_about_gates(
    name: str, before: bytes | None, after: bytes | None, passes: bool
) -> None:
    assert check(changed(name), contents={name: (before, after)}) == (set() if passes else {"protected_path"})


def test_equal_sections_open_no_other_pattern() -> None:
    path = ".github/actions/package.json"
    assert check(changed(path), contents={path: (b'{"version":"1"}', b'{"version":"2"}')}) == {"protected_path"}


def test_a_configured_pattern_protects_the_whole_file() -> None:
    contents = {"pyproject.toml": (PROJECT, PROJECT.replace(b'"1"', b'"2"'))}
    assert check(changed("pyproject.toml"), contents=contents, protected=["/pyproject.toml"]) == {"protected_path"}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (added("link", "120000"), "symlink"),
        (changed("link", "120000", "120000"), "symlink"),
        (changed("f", "100644", "120000", "T"), "symlink"),
        (added("sub", "160000"), "gitlink"),
        (changed("sub", "160000", "160000"), "gitlink"),
        (deleted("sub", "160000"), "gitlink"),
        (added("f", "104755"), "mode"),
        (added("f", "100600"), "mode"),
        (added("f", "040000"), "mode"),
        (added("f", "000000"), "mode"),
        (changed("f", status="R"), "mode"),
        (changed("f", status="X"), "mode"),
    ],
)
def test_kinds_of_files(change: Change, rule: str) -> None:
    assert rule in check(change, targets={"link": "/etc/passwd"})


def test_the_target_of_a_link_is_named() -> None:
    (finding,) = policy([added("link", "120000")], sizes={}, targets={"link": "/etc/pass\u202ewd"})
    assert "/etc/pass\\u{202e}wd" in finding.detail


def test_sizes_and_numbers() -> None:
    assert check(added("big"), max_patch_kb=1, sizes={"big": 1025}) == {"size"}
    assert check(added("fits"), max_patch_kb=1, sizes={"fits": 1024}) == set()
    assert check(added("unknown"), sizes={}) == {"size"}
    assert check(added("a"), added("b"), max_patch_kb=1, sizes={"a": 600, "b": 600}) == {"size"}
    assert check(added("a"), added("b"), max_patch_kb=1, sizes={"a": 600, "b": 600}, patch_bytes=900) == set()
    assert check(changed("a"), patch_bytes=2048, max_patch_kb=1) == {"size"}
    assert check(*(added(f"f{number}") for number in range(3)), max_files=2) == {"count"}


ODD = [
    "a\nb",
    "a\tb",
    "a\x1bb",
    "a\u202eb",
    "a\u200bb",
    "a\U000e0041b",
    "\udcffa",
    "a\\b",
    "a.",
    "a ",
    "a./b",
    " a",
    "-rf",
    "a/-x",
    "../a",
    "a/../b",
    "a//b",
    "./a",
    "/a",
    "",
    ".git",
    ".GIT/config",
    "a/.Git",
    ".git.",
    ".g\u200bit",
    "git~1",
    "GIT~2/x",
    ".git::$INDEX_ALLOCATION/x",
    "gitmod~1",
    "CON",
    "aux.txt",
    "a/NUL.tar.gz",
    "com1",
    "lpt\u00b9",
    "x" * 256,
    "\ufeffa",
    "a\u2028b",
    "a\u3164b",
]


@pytest.mark.parametrize("path", ODD)
def test_odd_names_are_refused_when_new(path: str) -> None:
    assert "name" in check(added(path))


@pytest.mark.parametrize(
    "path",
    [
        "a.b",
        ".gitignore",
        "src/[id].tsx",
        "a b.txt",
        "docs/\u00fcber.md",
        "\u65e5\u672c.txt",
        "console.py",
        "git.py",
        ".github2",
        "aux_/x",
        "a-b",
        "legit~1",
        "x..y",
        "com10.txt",
        "@types/node",
        "a,b;c'd",
    ],
)
def test_usual_names_pass(path: str) -> None:
    assert list(odd_name(path)) == []


def test_an_odd_name_that_is_there_already_may_be_changed() -> None:
    assert check(changed("drivers/aux.c")) == set()


def test_names_that_fall_together_elsewhere() -> None:
    assert check(added("Readme.md"), added("README.md")) == {"name"}
    assert check(added("cafe\u0301"), added("caf\u00e9")) == {"name"}
    assert check(deleted("Readme.md"), added("README.md")) == set()


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_path_gets_an_answer_that_can_be_shown(path: str) -> None:
    for finding in policy([added(path), added("x" + path, "120000")], sizes={}):
        assert finding.path.isprintable() or finding.path == ""
        assert "\n" not in finding.detail and "\u202e" not in finding.detail
    assert shown(path) == shown(path)


def test_what_git_says_about_a_hostile_tree_is_refused(tmp_path: Path) -> None:
    def git(*words: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.protectNTFS=false", *words],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    git("init", "-q")
    blob = git("hash-object", "-w", "--stdin", stdin="x")
    git("commit", "-q", "--allow-empty", "-m", "base")
    entries = [
        ("100644", "ok.py"),
        ("120000", "link"),
        ("100644", ".gitattributes"),
        ("100644", "-rf"),
        ("100644", "a\tb\nc"),
        ("100644", ".GitHub/workflows/x.yml"),
    ]
    git("update-index", "-z", "--index-info", stdin="".join(f"{mode} {blob}\t{path}\0" for mode, path in entries))
    git("update-index", "--add", "--cacheinfo", f"160000,{git('rev-parse', 'HEAD')},module")
    raw = git("diff", "--cached", "--raw", "-z", "--no-renames", "--abbrev=40", "HEAD").split("\0")
    changes = []
    for meta, path in zip(raw[::2], raw[1::2], strict=False):
        old_mode, new_mode, old, new, status = meta.removeprefix(":").split()
        changes.append(Change(path, status, old_mode, new_mode, old, new))
    found = {(finding.path, finding.rule) for finding in policy(changes, sizes={change.path: 1 for change in changes})}
    assert found == {
        ("link", "symlink"),
        (".gitattributes", "protected_path"),
        ("-rf", "name"),
        ("a\\u{9}b\\u{a}c", "name"),
        (".GitHub/workflows/x.yml", "protected_path"),
        ("module", "gitlink"),
    }


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    ("permission", "needed", "answer"),
    [
        ("none", "read", False),
        ("read", "read", True),
        ("read", "write", False),
        ("write", "write", True),
        ("admin", "write", True),
        ("owner", "admin", True),
        ("write", "admin", False),
        (None, "read", False),
        ("", "read", False),
        ("Write", "write", False),
        ("write", "", False),
        ("none", "none", False),
        ("write", "anything", False),
        ("superuser", "read", False),
    ],
)
def test_permissions(permission: str | None, needed: str, answer: bool) -> None:
    assert may(permission, needed) is answer


@dataclass(frozen=True)
class Rules:
    permission: str = "write"
    users: tuple[str, ...] = ()
    bots: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("rules", "login", "permission", "bot", "allowed"),
    [
        (Rules(), "alice", "write", False, True),
        (Rules(), "alice", "read", False, False),
        (Rules(), "alice", None, False, False),
        (Rules("read"), "alice", "read", False, True),
        (Rules(users=("Alice",)), "alice", "write", False, True),
        (Rules(users=("bob",)), "alice", "admin", False, False),
        (Rules(users=("alice",)), "alice", "read", False, False),
        (Rules(), "ci", "admin", True, False),
        (Rules(bots=("ci",)), "CI", "write", True, True),
        (Rules(bots=("ci",)), "ci", "read", True, False),
        (Rules(bots=("ci",)), "other-ci", "write", True, False),
        (Rules(bots=("ci",), users=("alice",)), "ci", "write", True, True),
        (Rules(users=("ci",)), "ci", "write", True, False),
        (Rules(), "Mosaic", "admin", False, False),
        (Rules(), "", "admin", False, False),
        (Rules("nonsense"), "alice", "owner", False, False),
    ],
)
def test_who_may_ask(rules: Rules, login: str, permission: str | None, bot: bool, allowed: bool) -> None:
    decision = allowed_actor(rules, login, permission, bot=bot, own="mosaic")
    assert decision.allowed is allowed and decision.why.endswith(".")
