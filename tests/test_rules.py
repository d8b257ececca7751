"""`.mosaic.toml` and the server's file: what they may say, where a fault is, and that nothing ever widens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rules import AGENT_FILES, KEYS, RepositoryRules, Rules, ServerConfig, effective, parse_rules, stricter
from app.rules_narrow import BUILT_IN_CEILINGS, FREE, RESTRICTING, SHARED, UNITED, WIDTHS
from app.rules_schema import GATES_LIMIT, NOBODY, Gate, Sections
from app.types import ConfigInvalid, GateSpec

ROOT = Path(__file__).resolve().parent.parent
PLAIN = ServerConfig()

EVERYTHING = """
version = 1
[bot]
enabled = true
trigger_label = "mosaic"
trigger_on_assign = true
draft = true
branch_prefix = "bots/mosaic-"
mode = "live"
ci = "run"
allow_ungated = true
[who]
permission = "admin"
users = ["@Alice", "bob"]
bots = ["Renovate"]
[limits]
minutes = 90
stall_minutes = 5
rounds = 4
attempts = 1
tokens = 3_000_000
cost_usd = 7
daily_cost_usd = 40.5
concurrent = 2
per_user_hour = 5
per_issue_day = 7
per_repository_hour = 8
per_repository_day = 9
failures_in_a_row = 3
files = 50
patch_kb = 512
[agent]
access = "write"
instructions = "docs/AGENTS.md"
model = "default"
plan = "never"
exclude = ["secrets/**", "*.pem"]
[setup]
commands = ["make deps"]
cache = ["requirements.txt"]
outputs = [".venv"]
network = false
timeout = 60
[[gates]]
name = "unit-tests"
type = "test"
command = "make test"
required = true
order = 20
timeout = 120
expect = '/\\d+ passed/'
report = "out/junit.xml"
[[gates]]
name = "cover"
type = "coverage"
command = "make cover"
min = 85
[protect]
paths = ["db/migrations/"]
allow = [".github/ISSUE_TEMPLATE/**"]
[notify]
verbosity = "high"
channels = []
"""


def refusal(text: str) -> tuple[int | None, str]:
    with pytest.raises(ConfigInvalid) as caught:
        parse_rules(text, ".mosaic.toml")
    assert caught.value.source == ".mosaic.toml"
    assert caught.value.code == "config_invalid"
    return caught.value.line, str(caught.value)


def server(text: str, folder: Path) -> ServerConfig:
    path = folder / "config.toml"
    path.write_text(text)
    return ServerConfig.load(path)


# ---------------------------------------------------------------- reading


def test_the_defaults_are_those_of_the_contract() -> None:
    rules = effective(PLAIN, None)
    assert rules.to_json() | {"origins": {}} == {
        "bot": {
            "enabled": True, "trigger_label": "mosaic", "trigger_on_assign": True, "draft": True,
            "branch_prefix": "mosaic/", "mode": "live", "ci": "ask", "allow_ungated": False,
        },
        "who": {"permission": "write", "users": [], "bots": []},
        "limits": {
            "minutes": 60, "stall_minutes": 10, "rounds": 3, "attempts": 2, "tokens": 2_000_000, "cost_usd": 5.0,
            "daily_cost_usd": None, "concurrent": 1, "per_user_hour": 10, "files": 100, "patch_kb": 4096,
            "per_issue_day": 20, "per_repository_hour": 60, "per_repository_day": 300, "failures_in_a_row": 5,
        },
        "agent": {"access": "write", "instructions": "AGENTS.md", "model": "default", "plan": "never", "exclude": []},
        "setup": {"commands": [], "cache": [], "outputs": [], "network": False, "timeout": 600},
        "protect": {"paths": ["/AGENTS.md"], "allow": [], "locked": []},
        "notify": {"verbosity": "low", "channels": []},
        "gates": [],
        "origins": {},
    }  # fmt: skip
    narrowed = {key for key, origin in rules.origins.items() if origin != "default"}
    assert narrowed == {"setup.network"}, "it is not filtered yet: only the server may open it"
    assert set(rules.origins) == set(KEYS)


def test_a_file_with_every_key() -> None:
    file = parse_rules(EVERYTHING, ".mosaic.toml")
    said = {f"{table}.{name}" for table in Sections.model_fields for name in getattr(file, table).model_fields_set}
    assert said == set(KEYS)  # the text above leaves no key out
    rules = effective(PLAIN, file)
    assert rules.who.users == ("alice", "bob")
    assert rules.limits.cost_usd == 7.0
    assert rules.protect.paths == ("db/migrations/", "/docs/AGENTS.md")
    assert rules.gates == (
        GateSpec("cover", "coverage", "make cover", min=85.0),
        GateSpec("unit-tests", "test", "make test", True, 20, 120, r"/\d+ passed/", None, "out/junit.xml"),
    )
    assert rules.origins["limits.minutes"] == ".mosaic.toml"
    assert rules.origins["gates.cover"] == "repository"


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "version = 1\r\n[limits]\r\nminutes = 60\r\n", "\ufeffversion = 1\n"]
)
def test_files_that_say_little(text: str) -> None:
    assert effective(PLAIN, parse_rules(text, "x")).sha256 == effective(PLAIN, None).sha256


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[limits]\nminuts = 3\n", 2, "line 2: minuts is not a key of limits. Did you mean minutes?"),
        ("\n[limit]\n", 2, "line 2: limit is not a known key here. Did you mean limits?"),
        ("[notify]\nzzz = 1\n", 2, "line 2: zzz is not a key of notify. Known keys: channels, verbosity."),
        ("version = 2\n", 1, "line 1: version is 2, which this Mosaic cannot read. Write version = 1."),
        ("version = true\n", 1, "line 1: version must be a whole number, not true."),
        ("[limits]\n\n# c\nminutes = '60'\n", 4, 'line 4: limits.minutes must be a whole number, not "60".'),
        ("[limits]\nminutes = true\n", 2, "line 2: limits.minutes must be a whole number, not true."),
        ("[limits]\r\n\r\nminutes = 0\r\n", 3, "line 3: limits.minutes must be at least 1, not 0."),
        ("[limits]\nminutes = 0\n", 2, "line 2: limits.minutes must be at least 1, not 0."),
        ("[limits]\ncost_usd = nan\n", 2, "line 2: limits.cost_usd must be an ordinary number, not nan."),
        ("[limits]\ntokens = 99999999999999999999\n", 2, "line 2: limits.tokens is too large a number."),
        ("[limits]\ntokens = " + "9" * 1990, 2, "line 2: limits.tokens is too large a number."),
        ("limits = { rounds = 3, minutes = 0 }\n", 1, "line 1: limits.minutes must be at least 1, not 0."),
        ("bot.draft = 1\nlimits.minutes = 0\n", 1,
         "line 1: bot.draft must be true or false, not 1.\n"
         ".mosaic.toml, line 2: limits.minutes must be at least 1, not 0."),
        ("bot = 3\n", 1, "line 1: bot must be a table, not 3."),
        ("[bot]\nmode = 'Live'\n", 2, 'line 2: bot.mode must be "shadow" or "live", not "Live".'),
        ("[bot]\nbranch_prefix = 'a b/'\n", 2,
         'line 2: bot.branch_prefix must be letters, digits, - and _, ending in / or -, such as "mosaic/".'),
        ("[bot]\nbranch_prefix = 'refs/'\n", 2,
         'line 2: bot.branch_prefix must be letters, digits, - and _, ending in / or -, such as "mosaic/".'),
        ("[bot]\ntrigger_label = \"a\\nb\"\n", 2,
         "line 2: bot.trigger_label holds a line break or a character that cannot be seen."),
        ("[agent]\nexclude = '*.pem'\n", 2, 'line 2: agent.exclude must be a list in square brackets, not "*.pem".'),
        ("[agent]\nexclude = [\n  'a',\n  '../b',\n]\nx = 1\n", 2,
         'line 2: agent.exclude must be a path inside the repository, not "../b".\n'
         ".mosaic.toml, line 6: x is not a key of agent. Known keys: access, exclude, instructions, model, plan."),
        ("[setup]\ncache = ['/etc/passwd']\n", 2,
         'line 2: setup.cache must be a path inside the repository, not "/etc/passwd".'),
        ("[setup]\noutputs = ['.GIT/hooks']\n", 2,
         'line 2: setup.outputs must be a path inside the repository, not ".GIT/hooks".'),
        ("[protect]\npaths = ['/']\n", 2, 'line 2: protect.paths must be a path inside the repository, not "/".'),
        ("[[gates]]\nname = 'a'\ncommand = 'x'\n\n[[gates]]\nname = 'b'\n", 5,
         'line 5: This entry of gates has no command. Add command = "…".'),
        ("[[gates]]\nname = 'a'\ncommand = 'x'\n[[gates]]\ncommand = '''\n[gates]\nname = 1\n'''\nname = 'A b'\n", 9,
         'line 9: gates.name must be at most 40 small letters, digits and -, such as "unit-tests", not "A b".'),
        ("[[gates]]\nname = 'a'\ncommand = ' '\n", 3,
         "line 3: gates.command is empty. Write the command as you would type it."),
        ("[[gates]]\nname = 'a'\ncommand = 'x'\n[[gates]]\nname = 'a'\ncommand = 'y'\n", 1,
         'line 1: gates holds two gates named "a". Give each its own name.'),
        ("[[gates]]\nname = 'a'\ncommand = 'x'\nreport = '../r.xml'\n", 4,
         'line 4: gates.report must be a path inside the repository, not "../r.xml".'),
        ("[[gates]]\nname = 'a'\ncommand = 'x'\nexpect = '/(/'\n", 4,
         "line 4: gates.expect is not a regular expression: missing ), unterminated subpattern at position 0."),
        ("x = \n", 1, "line 1: This is not valid TOML: Invalid value."),
        ("a = 1\n\nb = [\n", 3, "line 3: This is not valid TOML: Invalid value."),
        ("[bot]\n[bot]\n", 2, "line 2: This is not valid TOML: Cannot declare ('bot',) twice."),
        ("a = " + "[" * 1500, 1, "line 1: The file nests brackets too deeply. Write plain tables."),
        ("a." * 200 + "b = 1", 1, "line 1: The file nests brackets too deeply. Write plain tables."),
        ("# fine\n#" + "x" * 2000, 2, "line 2: The line is longer than 2000 characters. Break it up."),
        ("#é\n" * 20_000, 1, "line 1: The file is larger than 64 kB. Make it shorter."),
        ("[bot]\nmode = 'shadow'\n", 2,
         'line 2: bot.mode = "shadow" is not available in this version of Mosaic. Remove it for now.'),
        ("[agent]\nplan = 'always'\naccess = 'write+exec'\n", 2,
         'line 2: agent.plan = "always" is not available in this version of Mosaic. Remove it for now.\n'
         '.mosaic.toml, line 3: agent.access = "write+exec" '
         'is not available in this version of Mosaic. Remove it for now.'),
        ("[[gates]]\nname = 'ci'\ncommand = 'x'\ntype = 'ci'\n", 4,
         'line 4: A gate of type "ci" is not available in this version of Mosaic. Remove it for now.'),
        ('"a\\u0000\\nb" = 1\n', 1,
         'line 1: "a\\u0000\\nb" is not a known key here. Known keys: agent, bot, gates, limits, notify, protect, '
         "setup, version, who."),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_line(text: str, line: int, message: str) -> None:
    assert refusal(text) == (line, f".mosaic.toml, {message}")


def test_more_than_ten_faults_are_counted() -> None:
    line, message = refusal("".join(f"k{number} = 1\n" for number in range(12)))
    assert line == 1
    assert len(message.splitlines()) == 11
    assert message.splitlines()[-1] == "2 more faults are not shown."


def test_a_number_of_thousands_of_digits_over_several_lines_is_refused() -> None:
    assert refusal("a = [\n" + "9" * 1999 + "\n]\n")[0] == 1


@pytest.mark.parametrize(
    ("expect", "fine"),
    [
        ("all good", True), ("/", True), (r"/^\d+ passed, 0 failed$/", True), (r"/[)]+ (a|b)? x{3}/", True),
        (r"/(a+)+$/", False), (r"/(a|a)*/", False), (r"/(a){2,}/", False), (r"/(?=x)y/", False),
        (r"/(?P<n>a)(?P=n)/", False),
        (r"/(a)\1/", False), (r"/.*.*.*.*x/", False), (r"/a{1,}b*c+d+/", False), (r"/\(+\)+\++/", True), ("/[/", False),
    ],
)  # fmt: skip
def test_expect_takes_only_quick_expressions(expect: str, fine: bool) -> None:
    text = f"[[gates]]\nname = 'a'\ncommand = 'x'\nexpect = '{expect}'\n"
    if fine:
        assert parse_rules(text, "x").gates[0].expect == expect
    else:
        assert refusal(text)[0] == 4


@given(st.text(max_size=300) | st.text(alphabet="[]{}=.\"'#\n ab1\\", max_size=80))
def test_any_text_is_rules_or_a_refusal_with_a_line(text: str) -> None:
    try:
        rules = parse_rules(text, "f")
    except ConfigInvalid as error:
        assert error.line is not None
        assert 1 <= error.line <= text.count("\n") + 1
        assert str(error).startswith(f"f, line {error.line}: ")
    else:
        assert isinstance(rules, RepositoryRules)


KEY_LINES = st.sampled_from(
    ["# [bot]\n", "\n", "[limits]\n", "[bot]\n", "a = 1\n",
     "b = '''\n[x]\na = 2\n'''\n", 'c = """\n"[y]" \\"""" \n', "d = [\n  1, # ]\n]\n"]
)  # fmt: skip


@given(st.lists(KEY_LINES, max_size=12), st.lists(KEY_LINES, max_size=4))
def test_the_line_of_a_planted_fault_is_found(before: list[str], after: list[str]) -> None:
    text = "".join(before) + "[setup]\ntimeout = 'planted'\n" + "".join(after)
    try:
        parse_rules(text, "f")
    except ConfigInvalid as error:
        if "not valid TOML" in str(error) or "more faults" in str(error):
            return  # a key twice in one table, or the planted fault is beyond the ten that are shown
        planted = "".join(before).count("\n") + 2
        assert f'f, line {planted}: setup.timeout must be a whole number, not "planted".' in str(error).splitlines()
    else:
        raise AssertionError("the planted fault was not found")


@pytest.mark.parametrize(
    "text",
    [
        "".join("a." * 980 + f"k{number}=1\n" for number in range(32)), "a." * 32_000 + "a=1", "[[gates]]\n" * 6_400,
        "a=[\n" + "1,\n" * 21_000 + "]", "".join(f"[t{number}]\n" for number in range(7_000)),
    ],
)  # fmt: skip
def test_files_made_to_be_slow_are_refused_at_once(text: str) -> None:
    """Each keeps a quadratic reader busy for minutes; here the test-suite would be seen to hang."""
    assert refusal(text)[0] == 1


# ---------------------------------------------------------------- the server's file


def test_an_empty_server_file_serves_nobody(tmp_path: Path) -> None:
    assert not ServerConfig.load(None).serves("acme/app")
    assert not server("repositories = []\n", tmp_path).serves("acme/app")


@pytest.mark.parametrize(
    ("name", "served"),
    [("acme/app", True), ("ACME/App", True), ("acme/", False), ("acme", False), ("acme/a/b", False),
     ("acme2/app", False), ("xacme/app", False), ("solo/one", True), ("solo/ones", False), ("", False)],
)  # fmt: skip
def test_serves(tmp_path: Path, name: str, served: bool) -> None:
    assert server('repositories = ["Acme/*", "solo/one"]\n', tmp_path).serves(name) is served


def test_a_whole_server_file(tmp_path: Path) -> None:
    config = server(
        'repositories = ["*/*"]\n[defaults.limits]\nminutes = 30\n[ceilings.limits]\ncost_usd = 2\n[sandbox]\n'
        'read_only = ["/opt/x"]\npath = ["/opt/x/bin"]\ninsecure = true\n[budget]\ndaily = 100\n'
        '[[gates]]\nname = "license"\ncommand = "test -f LICENSE"\n',
        tmp_path,
    )
    assert config.sandbox.read_only == ("/opt/x",)
    assert (config.sandbox.path, config.sandbox.insecure, config.budget.daily) == (("/opt/x/bin",), True, 100.0)
    rules = effective(config, None, "acme/big-app")
    assert (rules.limits.minutes, rules.limits.cost_usd) == (30, 2.0)
    assert rules.origins["limits.minutes"] == "server default"
    assert rules.origins["limits.cost_usd"] == "server ceiling"
    assert [(gate.name, gate.source) for gate in rules.gates] == [("license", "server")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('repositories = ["acme"]\n',
         'line 1: repositories must hold names of the form "owner/name" or "owner/*", not "acme".'),
        ("repositorys = []\n", "line 1: repositorys is not a known key here. Did you mean repositories?"),
        ("[ceilings.limits]\nminuts = 1\n", "line 2: minuts is not a key of ceilings.limits. Did you mean minutes?"),
        ("[sandbox]\nread_only = ['opt/x']\n", 'line 2: sandbox.read_only must be an absolute path, not "opt/x".'),
        ("[sandbox]\nroot = '/srv/root'\n",
         "line 2: sandbox.root is not available in this version of Mosaic. Remove it for now."),
        ("[defaults.bot]\nmode = 'shadow'\n",
         'line 2: bot.mode = "shadow" is not available in this version of Mosaic. Remove it for now.'),
    ],
)  # fmt: skip
def test_a_bad_server_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        server(text, tmp_path)
    assert str(caught.value) == f"{tmp_path / 'config.toml'}, {message}"


def test_a_server_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        ServerConfig.load(tmp_path / "absent.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'absent.toml'} cannot be read as UTF-8 text: ")


# ---------------------------------------------------------------- narrowing

WIDE_TO_STRICT: dict[str, tuple[Any, ...]] = {  # written out again on purpose: what the code is measured against
    "bot.enabled": (True, False),
    "bot.trigger_on_assign": (True, False),
    "bot.draft": (False, True),
    "bot.mode": ("live", "shadow"),
    "bot.ci": ("run", "ask"),
    "bot.allow_ungated": (True, False),
    "who.permission": ("read", "write", "admin"),
    "agent.access": ("write+exec", "write"),
    "agent.plan": ("never", "large", "always"),
    "setup.network": (True, False),
    "notify.verbosity": ("high", "medium", "low"),
}
NUMBERS = {
    "limits.minutes": (1, 10_080), "limits.stall_minutes": (1, 1_440), "limits.rounds": (1, 50),
    "limits.attempts": (1, 20), "limits.tokens": (1, 10**10), "limits.concurrent": (1, 100),
    "limits.per_user_hour": (1, 10_000), "limits.per_issue_day": (1, 10_000),
    "limits.failures_in_a_row": (1, 10_000), "limits.per_repository_hour": (1, 100_000),
    "limits.per_repository_day": (1, 1_000_000), "limits.files": (1, 100_000), "limits.patch_kb": (1, 1_048_576),
    "setup.timeout": (1, 7_200),
}  # fmt: skip
DOLLARS = ("limits.cost_usd", "limits.daily_cost_usd")
LISTS = ("who.users", "who.bots", "agent.exclude", "protect.paths", "protect.allow", "notify.channels")


def wider(key: str, one: Any, other: Any) -> bool:
    """Whether `one` gives more freedom than `other`."""
    if key in WIDE_TO_STRICT:
        return WIDE_TO_STRICT[key].index(one) < WIDE_TO_STRICT[key].index(other)
    if key in NUMBERS or key in DOLLARS:
        return bool((float("inf") if one is None else one) > (float("inf") if other is None else other))
    if key in ("agent.exclude", "protect.paths"):
        return not set(other) <= set(one)
    if key == "who.users":
        return bool(other) and not (one and set(one) <= {*other, *NOBODY})
    return not set(one) <= set(other)


ENTRIES = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=3, unique=True).map(tuple)
VALUES = {
    **{key: st.sampled_from(values) for key, values in WIDE_TO_STRICT.items()},
    **{key: st.integers(low, high) for key, (low, high) in NUMBERS.items()},
    **{key: st.floats(0, 1_000, allow_nan=False) for key in DOLLARS},
    **{key: ENTRIES for key in LISTS},
    "bot.trigger_label": st.sampled_from(["x", "y"]),
    "bot.branch_prefix": st.sampled_from(["x/", "y-"]),
    "agent.instructions": st.sampled_from(["A.md", "B.md"]),
    "agent.model": st.sampled_from(["default", "m1", "m2"]),
    "setup.commands": ENTRIES, "setup.cache": ENTRIES, "setup.outputs": ENTRIES,
}  # fmt: skip


@st.composite
def said(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """What a file says: some of the keys, each with a value of its kind."""
    tables: dict[str, dict[str, Any]] = {}
    for key in draw(st.sets(st.sampled_from(KEYS), max_size=12)):
        table, name = key.split(".")
        tables.setdefault(table, {})[name] = draw(VALUES[key])
    return tables


GATES = st.lists(
    st.builds(
        Gate, name=st.sampled_from("abc"), command=st.sampled_from(["x", "true"]), required=st.booleans(),
        timeout=st.integers(1, 7_200), min=st.none() | st.floats(0, 100), order=st.integers(0, 799),
        expect=st.sampled_from(["", "ok"]), report=st.sampled_from(["", "r.xml"]),
    ),
    max_size=3, unique_by=lambda gate: gate.name,
).map(tuple)  # fmt: skip


def at(value: Rules | Sections, key: str) -> Any:
    table, name = key.split(".")
    return getattr(getattr(value, table), name)


def configured(defaults: Any, ceilings: Any, gates: tuple[Gate, ...] = ()) -> ServerConfig:
    return ServerConfig(
        defaults=Sections.model_validate(defaults), ceilings=Sections.model_validate(ceilings), gates=gates
    )


def asked(tables: Any, gates: tuple[Gate, ...] = ()) -> RepositoryRules:
    return RepositoryRules.model_validate({**tables, "gates": gates})


def test_every_key_has_one_rule() -> None:
    kinds = [set(WIDTHS), UNITED - {"protect.locked"}, SHARED, RESTRICTING, FREE]
    assert sum(len(kind) for kind in kinds) == len(KEYS)
    assert set().union(*kinds) == set(KEYS) == set(VALUES)


@settings(max_examples=150, deadline=None)
@given(said(), said(), said())
def test_no_repository_goes_beyond_a_ceiling(defaults: Any, ceilings: Any, wanted: Any) -> None:
    rules = effective(configured(defaults, ceilings), asked(wanted))
    for table, entries in ceilings.items():
        for name, ceiling in entries.items():
            key = f"{table}.{name}"
            if key in FREE:
                assert at(rules, key) == ceiling, key
            else:
                assert not wider(key, at(rules, key), ceiling), key
    for key, built_in in BUILT_IN_CEILINGS.items():
        table, name = key.split(".")
        if name not in ceilings.get(table, {}) and name not in defaults.get(table, {}):
            assert not wider(key, at(rules, key), built_in), key


@settings(max_examples=150, deadline=None)
@given(said(), said(), said())
def test_what_is_asked_is_never_exceeded_either(defaults: Any, ceilings: Any, wanted: Any) -> None:
    rules = effective(configured(defaults, ceilings), asked(wanted))
    for table, entries in wanted.items():
        for name, value in entries.items():
            if f"{table}.{name}" not in FREE:
                assert not wider(f"{table}.{name}", at(rules, f"{table}.{name}"), value)


@settings(max_examples=100, deadline=None)
@given(said(), said(), said(), st.sampled_from([key for key in KEYS if key not in FREE]), st.data())
def test_a_stricter_ceiling_never_loosens(
    defaults: Any, ceilings: Any, wanted: Any, key: str, data: st.DataObject
) -> None:
    """Monotone: lowering one ceiling widens no value, of this key or any other."""
    table, name = key.split(".")
    high, low = data.draw(VALUES[key]), data.draw(VALUES[key])
    if wider(key, low, high):
        return
    before, after = (
        effective(configured(defaults, {**ceilings, table: {**ceilings.get(table, {}), name: ceiling}}), asked(wanted))
        for ceiling in (high, low)
    )
    assert not [other for other in KEYS if other not in FREE and wider(other, at(after, other), at(before, other))]


@settings(max_examples=100, deadline=None)
@given(said(), said(), GATES, GATES)
def test_the_stricter_of_two_rules_widens_neither(old_file: Any, new_file: Any, old_gates: Any, new_gates: Any) -> None:
    old, new = (effective(PLAIN, asked(*file)) for file in ((old_file, old_gates), (new_file, new_gates)))
    both = stricter(old, new)
    for key in KEYS:
        if key in FREE:
            assert at(both, key) == at(new, key)
        else:
            assert not wider(key, at(both, key), at(old, key)), key
            assert not wider(key, at(both, key), at(new, key)), key
    assert stricter(new, new).sha256 == new.sha256
    assert no_gate_weaker(both, old)
    assert no_gate_weaker(both, new)


def floor(gate: GateSpec) -> float:
    return -1.0 if gate.min is None else gate.min


def no_gate_weaker(rules: Rules, than: Rules) -> bool:
    mine = {gate.name: gate for gate in rules.gates}
    return all(
        gate.name in mine
        and mine[gate.name].required >= gate.required
        and mine[gate.name].timeout <= gate.timeout
        and floor(mine[gate.name]) >= floor(gate)
        and bool(mine[gate.name].expect) >= bool(gate.expect)
        and bool(mine[gate.name].report) >= bool(gate.report)
        for gate in than.gates
    )


@settings(max_examples=100, deadline=None)
@given(GATES, GATES)
def test_a_repository_cannot_weaken_a_gate_of_the_server(servers: Any, repositories: Any) -> None:
    rules = effective(configured({}, {}, servers), asked({}, repositories))
    assert no_gate_weaker(rules, effective(configured({}, {}, servers), None))
    assert no_gate_weaker(rules, effective(PLAIN, asked({}, repositories)))
    commands = {gate.name: gate.command for gate in rules.gates}
    assert all(commands[gate.name] == gate.command for gate in servers)
    assert list(rules.gates) == sorted(rules.gates, key=lambda gate: (gate.order, gate.name))


@settings(max_examples=100, deadline=None)
@given(said(), said(), said(), GATES)
def test_rules_survive_storage(defaults: Any, ceilings: Any, wanted: Any, gates: Any) -> None:
    rules = effective(configured(defaults, ceilings), asked(wanted, gates))
    stored = json.dumps(rules.to_json())
    assert Rules.from_json(stored) == Rules.from_json(json.loads(stored)) == rules
    assert Rules.from_json(stored).sha256 == rules.sha256


def test_the_hash_is_of_what_holds_and_not_of_where_it_comes_from() -> None:
    same = effective(PLAIN, parse_rules("[limits]\nminutes = 60\n", "x"))
    other = effective(PLAIN, parse_rules("[limits]\nminutes = 61\n", "x"))
    assert same.origins != effective(PLAIN, None).origins
    assert same.sha256 == effective(PLAIN, None).sha256 != other.sha256
    assert re.fullmatch("[0-9a-f]{64}", same.sha256)


def test_origins_name_the_ceiling_that_cut() -> None:
    file = parse_rules('[limits]\nminutes = 900\nrounds = 2\n[who]\npermission = "read"\n', "x")
    rules = effective(configured({}, {"limits": {"rounds": 1}}), file)
    assert (rules.limits.minutes, rules.limits.rounds, rules.who.permission) == (240, 1, "write")
    assert [rules.origins[key] for key in ("limits.minutes", "limits.rounds", "who.permission", "limits.files")] == [
        "built-in ceiling", "server ceiling", "built-in ceiling", "default",
    ]  # fmt: skip


def test_a_server_default_lifts_the_built_in_ceiling_and_no_more() -> None:
    config = configured({"limits": {"minutes": 600}, "who": {"permission": "read"}}, {})
    file = parse_rules('[limits]\nminutes = 700\n[who]\npermission = "read"\n', "x")
    assert effective(config, None).limits.minutes == 600
    assert effective(config, file).limits.minutes == 600
    assert effective(config, file).who.permission == "read"


def test_two_lists_of_people_without_a_common_name_admit_nobody() -> None:
    config = configured({}, {"who": {"users": ("alice",)}})
    assert effective(config, parse_rules("[who]\nusers = ['bob']\n", "x")).who.users == NOBODY
    assert effective(config, parse_rules("[who]\nusers = []\n", "x")).who.users == ("alice",)
    old, new = (effective(PLAIN, parse_rules(f"[who]\nusers = ['{name}']\n", "x")) for name in ("a", "b"))
    assert stricter(old, new).who.users == NOBODY
    assert stricter(stricter(old, new), new).who.users == NOBODY


def test_what_the_server_protects_stays_apart_from_what_allow_opens() -> None:
    config = configured({"protect": {"paths": ("infra/**",)}}, {"protect": {"paths": ("legal/**",)}})
    rules = effective(config, parse_rules("[protect]\npaths = ['db/']\nallow = ['**']\n", "x"))
    assert rules.protect.locked == ("infra/**", "legal/**")
    assert rules.protect.allow == ("**",)
    assert set(rules.protect.paths) == {"infra/**", "legal/**", "db/", "/AGENTS.md"}
    assert stricter(rules, effective(PLAIN, None)).protect.locked == rules.protect.locked
    assert stricter(effective(PLAIN, None), rules).protect.allow == ()
    assert stricter(effective(PLAIN, None), rules).origins["protect.allow"] == "earlier rules"


def test_the_file_of_instructions_is_protected() -> None:
    assert "/docs/bot.md" in effective(PLAIN, parse_rules('[agent]\ninstructions = "docs/bot.md"\n', "x")).protect.paths


def test_a_choice_of_models_is_refused_until_the_engine_can_offer_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"line 1: \[models\] is not available in this version"):
        server('[models]\n"acme/app" = "small"\n', tmp_path)
    with pytest.raises(ConfigInvalid, match=r'line 2: agent.model = "large" is not available'):
        parse_rules('[agent]\nmodel = "large"\n', "x")


def test_channels_are_those_the_server_lists() -> None:
    file = parse_rules('[notify]\nchannels = ["slack:T1/C1", "slack:T1/C2"]\n', "x")
    assert effective(PLAIN, file).notify.channels == ()
    config = configured({}, {"notify": {"channels": ("slack:T1/C2",)}})
    assert effective(config, file).notify.channels == ("slack:T1/C2",)


def test_detected_gates_are_added_and_replace_none() -> None:
    rules = effective(PLAIN, parse_rules("[[gates]]\nname = 'test'\ncommand = 'make test'\n", "x"))
    found = (
        GateSpec("test", "test", "pytest", source="detected:tox.ini"),
        GateSpec("lint", "lint", "ruff", order=1, source="detected:x"),
    )
    more = rules.with_gates(found)
    assert [(gate.name, gate.command) for gate in more.gates] == [("lint", "ruff"), ("test", "make test")]
    assert more.origins["gates.lint"] == "detected:x"
    assert more.sha256 != rules.sha256


def test_a_gate_dropped_from_the_file_stays_for_the_retry() -> None:
    old = effective(PLAIN, parse_rules("[[gates]]\nname = 'test'\ncommand = 'make test'\nmin = 80\n", "x"))
    assert stricter(old, effective(PLAIN, None)).gates == old.gates
    assert stricter(old, effective(PLAIN, None)).origins["gates.test"] == "earlier rules"
    new = effective(PLAIN, parse_rules("[[gates]]\nname = 'test'\ncommand = 'tox'\nmin = 70\n", "x"))
    assert [(gate.command, gate.min) for gate in stricter(old, new).gates] == [("tox", 80.0)]


# ---------------------------------------------------------------- documents


def rows(section: str) -> dict[str, list[str]]:
    """The rows of the table under that heading, by their first cell."""
    text = (ROOT / "docs" / "mosaic-toml.md").read_text()
    part = text.split(f"## `{section}`\n")[1].split("\n## ")[0].split("\n# ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row for row in cells}


def shown(value: Any) -> str:
    return "not set" if value is None else f"`{json.dumps(value)}`"


@pytest.mark.parametrize("table", list(Sections.model_fields))
def test_every_key_is_in_the_reference(table: str) -> None:
    documented = rows(f"[{table}]")
    assert list(documented) == [key.split(".")[1] for key in KEYS if key.startswith(f"{table}.")]
    for name, (_, default, ceiling, meaning) in documented.items():
        key = f"{table}.{name}"
        assert default == shown(at(Sections(), key)), key
        assert ceiling == (shown(BUILT_IN_CEILINGS[key]) if key in BUILT_IN_CEILINGS else ""), key
        assert len(meaning) > 10


def test_every_key_of_a_gate_and_of_the_server_is_in_the_reference() -> None:
    documented = rows("[[gates]]")
    assert list(documented) == list(Gate.model_fields)
    for name, field in Gate.model_fields.items():
        assert documented[name][1] == ("must be given" if field.is_required() else shown(field.default))
    text = (ROOT / "docs" / "mosaic-toml.md").read_text()
    assert f"At most {GATES_LIMIT}." in text
    keys = [f"sandbox.{name}" for name in ServerConfig().sandbox.model_dump()] + ["budget.daily"]
    keys += [f"reconcile.{name}" for name in ServerConfig().reconcile.model_dump()]
    keys += [name for name in ServerConfig.model_fields if name not in ("sandbox", "budget", "reconcile")]
    assert [key for key in keys if f"| `{key}` |" not in text] == []
    for key in KEYS:  # the table of what is stricter names every key, or its whole section
        rule = text.split("## Which value is the stricter one")[1].split("## Paths")[0]
        assert f"`{key}`" in rule or f"`[{key.split('.')[0]}]`" in rule, key


def test_the_examples_of_the_reference_are_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "mosaic-toml.md").read_text(), re.DOTALL)
    assert effective(PLAIN, parse_rules(examples[0], "x")).gates[0].name == "unit-tests"
    assert server(examples[1], tmp_path).serves("acme/app")


def test_the_files_that_instruct_agents_are_named() -> None:
    wanted = {"AGENTS.md", "CLAUDE.md", "GEMINI.md", ".cursorrules", ".openclaw", ".claude", ".mcp.json",
              ".github/copilot-instructions.md"}  # fmt: skip
    assert wanted <= set(AGENT_FILES)
    assert len(set(AGENT_FILES)) == len(AGENT_FILES)


def test_stored_rules_with_a_key_of_a_newer_version_can_be_read() -> None:
    """During an upgrade an old worker meets jobs that a new one admitted."""
    rules = effective(configured({}, {}), asked({}, ()))
    stored = json.loads(json.dumps(rules.to_json()))
    stored["limits"] = {**stored["limits"], "from_the_future": 1}
    assert Rules.from_json({**stored, "a_new_section": {"key": True}}) == rules
