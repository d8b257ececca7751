"""The receiver of Gitea's deliveries: whatever comes in, it answers 202 once committed, or 4xx with a reason; no 500.

The payloads are those of the practice Gitea. Most requests go through the web application in this process; what the
HTTP server has to refuse, or to survive, goes to the real one.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import flask
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import dict_row
from werkzeug.test import Client, EnvironBuilder, TestResponse, run_wsgi_app

from app import edge, schema
from app.edge import MAX_BODY
from app.gitea_events import Ignored, Known, Malformed, Request, interpret
from app.ledger import jobs
from app.models import execute, fetch
from app.postgres import Cluster
from handlers import mosaic
from tests.worlds.forge import Forge
from tests.worlds.gitea import PracticeGitea
from tests.worlds.mailbox import Letter, Mailbox
from tests.worlds.openclaw import free_port

ROOT = Path(__file__).resolve().parent.parent
SECRET = "the webhook's secret of these tests"
OLD_SECRET = "the one that it had before"
PATH = "/webhooks/gitea"
EVENTS = ("issues", "issue_assign", "issue_label", "issue_comment", "pull_request", "pull_request_comment", "push")
Place = tuple[str | int, ...]


def sign(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


# ---------------------------------------------------------------- what Gitea sends


@pytest.fixture(scope="module")
def post(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Letter], Known]]:
    """One real delivery of each kind that Mosaic reads, and some that it does not; what Mosaic knows of its bot."""
    gitea = PracticeGitea(tmp_path_factory.mktemp("gitea"), "a" * 40).start()
    with ExitStack() as stack:
        stack.callback(gitea.stop)
        box = stack.enter_context(Mailbox())
        forge = Forge(gitea.url, "a" * 40, control=True, prefix="")
        bot, alice = forge.make_user("mosaic"), forge.make_user("alice")
        repo = forge.make_repo("alice", "calc", {"calc.py": "1\n"})
        forge.hook(repo, box.url, SECRET, EVENTS)
        number = forge.open_issue(alice.token, repo, "@mosaic look", "at this <b>&amp; that</b> 🚀")["number"]
        said = forge.comment(alice.token, repo, number, "@mosaic fix this")
        forge.edit_comment(alice.token, repo, said["id"], "@mosaic fix this\n\n@mosaic status")
        forge.assign(alice.token, repo, number, bot.login)
        forge.label(alice.token, repo, number, "mosaic")
        checkout = forge.clone(alice.token, repo, tmp_path_factory.mktemp("clone"))
        checkout.git("checkout", "-q", "-b", "branch")
        checkout.commit({"calc.py": "2\n"}, "Change")
        checkout.push("branch")
        pull = forge.open_pull(alice.token, repo, "branch", "main", "A change")["number"]
        forge.comment(alice.token, repo, pull, "@mosaic why")
        found = box.wait(
            "issues opened",
            "issue_comment created",
            "issue_comment edited",
            "issue_assign assigned",
            "issue_label label_updated",
            "push",
            "pull_request opened",
            "pull_request_comment created",
        )
        yield {letter.what: letter for letter in found}, Known(bot.id, bot.login)


@pytest.fixture
def letters(post: tuple[dict[str, Letter], Known]) -> dict[str, Letter]:
    return post[0]


@pytest.fixture
def comment(letters: dict[str, Letter]) -> Letter:
    return letters["issue_comment created"]


# ---------------------------------------------------------------- a web process


def environment(database_url: str, data_dir: Path, secrets: str = SECRET) -> dict[str, str]:
    """The settings of a web process in which nobody asks too much."""
    config = data_dir / "server.toml"
    config.write_text("[ceilings.limits]\nper_user_hour = 10000\n[defaults.limits]\nper_user_hour = 10000\n")
    return {
        "MOSAIC_CONFIG": str(config),
        "MOSAIC_DATABASE_URL": database_url,
        "MOSAIC_DATA_DIR": str(data_dir),
        "MOSAIC_GITEA_URL": "https://git.example.org",
        "MOSAIC_GITEA_WEBHOOK_SECRET": secrets,
    }


def use(monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str]) -> None:
    """Make this process a web process with these settings, on the database that the models are bound to."""
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    edge.settings.cache_clear()
    monkeypatch.setattr(edge, "_started", True)


@pytest.fixture
def web(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, post: tuple[dict[str, Letter], Known]
) -> Iterator[Client]:
    """A client of the application in this process, which knows who its bot is."""
    from app.web import create_app

    use(monkeypatch, environment(database, tmp_path, f"{SECRET},{OLD_SECRET}"))
    known = post[1]
    assert known.self_id is not None
    jobs.remember_self(known.self_id, known.self_login)
    yield create_app().test_client()
    edge.settings.cache_clear()


def headers_of(letter: Letter, body: bytes, **more: str | None) -> dict[str, str]:
    """The headers of a delivery of `body`, under a new id and signed; None takes one away."""
    named = {name.title(): value for name, value in letter.headers.items() if name.startswith("x-gitea-")}
    named |= {"Content-Type": "application/json", "X-Gitea-Signature": sign(body)}
    named |= {"X-Gitea-Delivery": str(uuid.uuid4())}
    changed = named | {name.replace("_", "-"): value for name, value in more.items()}
    return {name: value for name, value in changed.items() if value is not None}


def hand(web: Client, letter: Letter, body: bytes | None = None, **more: str | None) -> TestResponse:
    content = letter.body if body is None else body
    size = {"CONTENT_LENGTH": str(len(content))}  # the client would leave it out for an empty body
    return web.post(PATH, data=content, headers=headers_of(letter, content, **more), environ_overrides=size)


def refused(answer: TestResponse, status: int, code: str, what: object = "") -> None:
    """An error in the one shape that all errors have."""
    assert answer.status_code == status, f"{what}: {answer.text}"
    assert answer.json is not None and set(answer.json) == {"error"}, what
    assert set(answer.json["error"]) == {"code", "message", "details"}, what
    assert answer.json["error"]["code"] == code and answer.json["error"]["message"].endswith("."), what


def one(statement: str, *values: Any) -> dict[str, Any]:
    [row] = fetch(statement, *values)
    return row


# ---------------------------------------------------------------- what is accepted


def test_each_delivery_is_stored_and_what_it_asks_for_with_it(web: Client, letters: dict[str, Letter]) -> None:
    told = {what: hand(web, letter) for what, letter in letters.items()}
    assert {what: answer.status_code for what, answer in told.items()} == dict.fromkeys(letters, 202)
    made = {what: (answer.json or {}).get("job") for what, answer in told.items()}
    # opening, assigning and labelling within one moment are one click
    assert made["issues opened"] == made["issue_assign assigned"] == made["issue_label label_updated"] == 1
    assert made["issue_comment created"] == 2 and made["issue_comment edited"] is None
    states = {row["event"]: row["state"] for row in fetch("select event, state from deliveries order by id")}
    assert states == {
        "issues": "job",
        "issue_comment": "command",  # the edit's `status`, after the comment's job
        "issue_assign": "job",
        "issue_label": "job",
        "push": "ignored",
        "pull_request": "ignored",
        "pull_request_comment": "command",
    }
    assert one("select count(*) as n from runner_jobs")["n"] == 2
    stored = one("select body from deliveries where event = 'issues'")
    assert bytes(stored["body"]) == letters["issues opened"].body


def test_the_same_id_and_the_same_meaning_count_once(web: Client, comment: Letter) -> None:
    again = {"X_Gitea_Delivery": "0a0a0a0a-1111"}
    assert (hand(web, comment, **again).json or {})["job"] == 1
    assert hand(web, comment, **again).json == {"duplicate": True}
    assert hand(web, comment).json == {"duplicate": True}
    assert one("select count(*) as n from runner_jobs")["n"] == 1


# ---------------------------------------------------------------- signatures


SIGNATURES: dict[str, Callable[[bytes], str | None]] = {
    "missing": lambda body: None,
    "empty": lambda body: "",
    "wrong": lambda body: sign(body + b" "),
    "of another secret": lambda body: sign(body, "somebody else's"),
    "65 characters": lambda body: sign(body) + "0",
    "63 characters": lambda body: sign(body)[:-1],
    "upper case": lambda body: sign(body).upper(),
    "with a prefix": lambda body: "sha256=" + sign(body),
    "twice in one header": lambda body: f"{sign(body)},{sign(body)}",
    "with a space": lambda body: f"{sign(body)} x",
    "not ASCII": lambda body: "é" * 64,
    "other digits": lambda body: sign(body)[:-1] + "²",
    "long": lambda body: "a" * 5000,
    "sha1": lambda body: hmac.new(SECRET.encode(), body, "sha1").hexdigest(),
}


def test_a_signature_that_does_not_fit_is_401_and_nothing_is_stored(web: Client, comment: Letter) -> None:
    for name, make in SIGNATURES.items():
        refused(hand(web, comment, X_Gitea_Signature=make(comment.body)), 401, "bad_signature", name)
    assert fetch("select 1 as yes from deliveries") == []


def test_two_signature_headers_are_refused_even_when_one_is_right(web: Client, comment: Letter) -> None:
    for pair in ([sign(comment.body), "0" * 64], ["0" * 64, sign(comment.body)], [sign(comment.body)] * 2):
        sent = [(name, value) for name, value in headers_of(comment, comment.body, X_Gitea_Signature=None).items()]
        sent += [("X-Gitea-Signature", value) for value in pair]
        refused(web.post(PATH, data=comment.body, headers=sent), 401, "bad_signature")


def test_the_signature_covers_the_bytes_not_the_meaning(web: Client, comment: Letter) -> None:
    same_meaning = json.dumps(comment.payload).encode()
    refused(hand(web, comment, same_meaning, X_Gitea_Signature=sign(comment.body)), 401, "bad_signature")


def test_while_the_secret_rotates_both_count(web: Client, letters: dict[str, Letter]) -> None:
    first, second = letters["issues opened"], letters["issue_comment created"]
    assert hand(web, first, X_Gitea_Signature=sign(first.body, OLD_SECRET)).status_code == 202
    assert hand(web, second, X_Gitea_Signature=sign(second.body)).status_code == 202


@pytest.mark.parametrize("secrets", [(), (b"",), (b"", b"")])
def test_without_a_secret_nothing_is_genuine(secrets: tuple[bytes, ...]) -> None:
    """Also not what is signed with the empty one, as Gitea's own empty header would suggest."""
    for signature in ("", hmac.new(b"", b"{}", "sha256").hexdigest()):
        assert not mosaic.genuine([signature], b"{}", secrets)


def test_a_web_process_without_a_secret_answers_401(web: Client, comment: Letter) -> None:
    bare = replace(edge.settings(), webhook_secrets=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mosaic, "settings", lambda: bare)
        refused(hand(web, comment), 401, "bad_signature")
        refused(hand(web, comment, X_Gitea_Signature=""), 401, "bad_signature")


# ---------------------------------------------------------------- the envelope


def test_what_the_envelope_must_be(web: Client, comment: Letter) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", None, ""):
        refused(hand(web, comment, Content_Type=kind), 415, "unsupported_media_type")
    for encoding in ("gzip", "GZIP", "br", "identity, gzip"):
        refused(hand(web, comment, Content_Encoding=encoding), 415, "unsupported_encoding")
    for number in (None, "", "short", "x" * 81, "with space", "æøåæøåæøå", "'; drop table deliveries; --"):
        refused(hand(web, comment, X_Gitea_Delivery=number), 400, "bad_delivery_id")
    assert fetch("select 1 as yes from deliveries") == []
    assert hand(web, comment, Content_Type="application/json; charset=UTF-8", Content_Encoding="identity").json


def test_a_body_over_the_limit_is_413_and_one_at_the_limit_is_read(web: Client, comment: Letter) -> None:
    def sized(size: int) -> bytes:
        return comment.body.rstrip() + b" " * (size - len(comment.body.rstrip()))

    refused(hand(web, comment, sized(MAX_BODY + 1)), 413, "too_large")
    assert hand(web, comment, sized(MAX_BODY)).status_code == 202


@pytest.mark.parametrize("length", ["", "-1", "1e3", "1 2", "0x10", "²", "9" * 30, "9" * 5000])
def test_an_odd_content_length_is_refused_before_a_byte_is_read(web: Client, comment: Letter, length: str) -> None:
    environ = EnvironBuilder(PATH, method="POST", headers=headers_of(comment, comment.body)).get_environ()
    environ["CONTENT_LENGTH"] = length
    environ["wsgi.input"] = None  # reading it would fail
    content, status, _ = run_wsgi_app(web.application, environ)  # a client would put the number right
    assert int(status.split()[0]) in (411, 413), status
    assert set(json.loads(b"".join(content))["error"]) == {"code", "message", "details"}


def test_other_methods_and_paths_answer_in_the_same_shape(web: Client) -> None:
    refused(web.get(PATH), 405, "method_not_allowed")
    refused(web.post("/webhooks/other"), 404, "not_found")


# ---------------------------------------------------------------- payloads that nobody should send


DEEP = 100  # levels that Python itself would read
DEEPER = 5000  # levels that it would not
BROKEN: dict[str, bytes] = {  # instead of a payload
    "empty": b"",
    "not JSON": b"payload",
    "cut off": b'{"action": "created"',
    "an array": b"[]",
    "a number": b"7",
    "null": b"null",
    "UTF-16": '{"action": "created"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "never closed": b"[" * 100_000,
    "two values": b"{} {}",
    "no sender": b"{}",
    "a sender who is a text": b'{"sender": "mosaic"}',
}
ODD: dict[str, bytes] = {  # at the end of a payload that is right in all else
    "not UTF-8": b'"odd": "\xff"',
    "NaN": b'"odd": NaN',
    "Infinity": b'"odd": [-Infinity]',
    "a lone surrogate": b'"odd": "\\ud800"',
    "a lone surrogate in a key": b'"\\udfff": 1',
    "half a pair": b'"odd": "\\ud83d\\u0041"',
    "a key twice": b'"action": "created"',
    "a key twice, deep inside": b'"odd": [{"id": 1, "id": 1}]',
    "deep arrays": b'"odd": ' + b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'"odd": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deeper arrays": b'"odd": ' + b"[" * DEEPER + b"]" * DEEPER,
    "deeper objects": b'"odd": ' + b'{"a":' * DEEPER + b"1" + b"}" * DEEPER,
    "a number of 100000 digits": b'"odd": ' + b"9" * 100_000,
    "a raw control character": b'"odd": "\x01"',
    "a comment": b"/* odd */",
    "nothing": b"",
}


def with_odd(letter: Letter, odd: bytes) -> bytes:
    return letter.body.rstrip().removesuffix(b"}") + b", " + odd + b"}"


def test_a_signed_payload_that_cannot_be_read_is_kept_and_refused(web: Client, comment: Letter) -> None:
    broken = BROKEN | {name: with_odd(comment, odd) for name, odd in ODD.items()}
    for number, (name, body) in enumerate(broken.items()):
        for _ in range(2):  # sent again, it is neither kept twice nor accepted
            refused(hand(web, comment, body, X_Gitea_Delivery=f"broken-{number:03}"), 400, "bad_payload", name)
    kept = fetch("select * from deliveries order by delivery_id")
    assert [bytes(row["body"]) for row in kept] == list(broken.values())
    assert {row["state"] for row in kept} == {"failed"} and all(row["reason"] for row in kept)
    assert fetch("select 1 as yes from runner_jobs") == []
    assert (hand(web, comment, with_odd(comment, b'"odd": "[[[{\\"[[{{"')).json or {})["job"], "brackets within a text"


def test_nul_and_emoji_and_infinite_numbers_harm_nobody(web: Client, comment: Letter) -> None:
    payload = comment.payload
    payload["comment"]["body"] = "@mosaic fix \0this\0 \N{ROCKET}"
    payload["\0key"] = {"a\0": ["\0"]}
    body = json.dumps(payload)[:-1].encode() + b', "big": 1e999, "small": -1E-999}'
    assert (hand(web, comment, body).json or {})["job"] == 1
    job = one("select instructions, trigger from runner_jobs")
    assert job["instructions"] == "this \N{ROCKET}"
    assert "\0" not in job["trigger"]["text"]


# ---------------------------------------------------------------- every field, every wrong value


MISSING = object()
LONG = "".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(128))  # that cannot be compressed
WRONG: tuple[Any, ...] = (
    MISSING, None, True, False, 0, -1, 2**31, 2**40, 2**63 - 1, 2**63, 2**70, 1.5, "", "x", "7", "a\0b", "@mosaic fix",
    LONG, [], [5], [None], [{}], [{"login": 5, "id": "5", "name": None}], {}, {"id": None}, {"a": [{}]},
)  # fmt: skip


def paths(value: Any, at: Place = ()) -> Iterator[Place]:
    """Every place within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from paths(item, (*at, key))


def changed(payload: dict[str, Any], path: Place, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(payload)
    place: Any = result
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return result


def reading(letter: Letter, payload: dict[str, Any], known: Known) -> Request | Ignored | str:
    try:
        return interpret(letter.headers["x-gitea-event-type"], payload, known)
    except Malformed as error:
        return str(error)


def forget() -> None:
    """So that the next delivery is not taken for a copy of one before."""
    execute("update deliveries set dedup_key = null where dedup_key is not null")
    execute("update runner_jobs set trigger_key = 'forgotten:' || id, repository_id = -id where repository_id >= 0")


READ = (
    "issues opened",
    "issue_comment created",
    "issue_comment edited",
    "issue_assign assigned",
    "issue_label label_updated",
    "pull_request_comment created",
)


@pytest.mark.parametrize("what", READ)
def test_no_field_can_be_wrong_in_a_way_that_breaks_the_receiver(
    web: Client, post: tuple[dict[str, Letter], Known], what: str
) -> None:
    """All fields are tried on the interpreter alone; where that changes its answer, on the whole receiver: each that it
    accepts, and of those that it refuses one for each field."""
    letter, known = post[0][what], post[1]
    payload = letter.payload
    right = reading(letter, payload, known)
    assert isinstance(right, Request)
    execute("set synchronous_commit = off")  # thousands of commits, none of them worth keeping
    tried = accepted = 0
    sent: set[Place] = set()
    for path in paths(payload):
        for value in WRONG:
            odd = changed(payload, path, value)
            found = reading(letter, odd, known)
            tried += 1
            if found == right or (isinstance(found, str) and path in sent):
                continue
            forget()
            answer = hand(web, letter, json.dumps(odd).encode())
            if isinstance(found, str):
                sent.add(path)
                refused(answer, 400, "bad_payload", (path, value))
            else:
                assert answer.status_code == 202, (path, value, answer.text)
                accepted += 1
    assert tried > 3000 and accepted > 20


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["@mosaic fix", "@mosaic cancel 7", "2026-11-22T10:00:00Z", "mosaic", "\0", "a" * 3000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_several_wrong_fields_at_once(web: Client, post: tuple[dict[str, Letter], Known], data: st.DataObject) -> None:
    letter = post[0][data.draw(st.sampled_from(READ))]
    payload = letter.payload
    for _ in range(data.draw(st.integers(1, 4))):
        places = list(paths(payload))
        path = data.draw(st.sampled_from(places))
        payload = changed(payload, path, data.draw(values | st.just(MISSING)))
    forget()
    answer = hand(web, letter, json.dumps(payload).encode())
    if answer.status_code != 202:
        refused(answer, 400, "bad_payload")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_changed_at_random(web: Client, comment: Letter, data: st.DataObject) -> None:
    body = bytearray(comment.body)
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(body)))
        end = min(len(body), start + data.draw(st.integers(0, 20)))
        body[start:end] = data.draw(
            st.binary(max_size=12)
            | st.sampled_from([b"\0", b"NaN", b"\\ud800", b'"a":1,"a":2', b"[" * 70, b"9" * 5000, b"\xff", b"{}", b","])
        )
    forget()
    answer = hand(web, comment, bytes(body))
    if answer.status_code != 202:
        refused(answer, 400, "bad_payload")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300), event=st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])))
def test_any_bytes_and_any_event(web: Client, comment: Letter, body: bytes, event: str) -> None:
    answer = hand(web, comment, body, X_Gitea_Event_Type=event, X_Gitea_Event=event)
    if answer.status_code != 202:
        refused(answer, 400, "bad_payload")


# ---------------------------------------------------------------- committed first, and once


def test_what_is_answered_202_another_connection_sees(web: Client, database: str, comment: Letter) -> None:
    told = hand(web, comment).json or {}
    with psycopg.connect(database, row_factory=dict_row) as other:
        row = other.execute("select state, job_id from deliveries where id = %s", (told["delivery"],)).fetchone()
        steps = other.execute("select name from job_steps where job_id = %s", (told["job"],)).fetchall()
    assert row == {"state": "job", "job_id": told["job"]} and len(steps) > 8


def test_a_commit_that_fails_is_not_answered_202(web: Client, database: str, cluster: Cluster, comment: Letter) -> None:
    """The last moment at which it can fail is the commit itself: there the disk is full."""
    name = database.split("/")[-1].split("?")[0]
    with psycopg.connect(cluster.url("postgres", name), autocommit=True) as owner:
        owner.execute(
            "create function full_disk() returns trigger language plpgsql as $$ begin "
            "raise exception 'no space left on device' using errcode = '53100'; end $$"
        )
        owner.execute(
            "create constraint trigger full_disk after insert on deliveries deferrable initially deferred "
            "for each row execute function full_disk()"
        )
        answer = hand(web, comment, X_Gitea_Delivery="at-full-disk")
        refused(answer, 503, "database_unavailable")
        assert answer.headers["Retry-After"] == "5"
        assert fetch("select 1 as yes from deliveries") == fetch("select 1 as yes from runner_jobs") == []
        assert fetch("select 1 as yes from huey_task") == []
        owner.execute("drop trigger full_disk on deliveries")
    assert (hand(web, comment, X_Gitea_Delivery="at-full-disk").json or {})["job"]


# ---------------------------------------------------------------- a plain function


def plain_request(letter: Letter, **more: str | None) -> flask.Request:
    builder = EnvironBuilder("/", method="POST", data=letter.body, headers=headers_of(letter, letter.body, **more))
    return flask.Request(builder.get_environ())


def test_the_handler_is_a_plain_function_that_needs_no_application(web: Client, comment: Letter) -> None:
    """As a serverless framework calls it: one function, whatever path it is mounted at."""
    assert not flask.has_app_context()
    answer, status = mosaic.receive(plain_request(comment))  # type: ignore[misc]
    assert (status, answer["job"]) == (202, 1)
    response, status = mosaic.receive(plain_request(comment, X_Gitea_Signature="0" * 64))  # type: ignore[misc]
    assert (status, response.mimetype) == (401, "application/json")
    assert json.loads(response.get_data())["error"]["code"] == "bad_signature"


ALONE = """
import json, sys
from werkzeug.test import EnvironBuilder
import flask

letters = json.load(open(sys.argv[1]))
forbidden = {"socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "subprocess.Popen", "os.system", "os.exec",
             "os.posix_spawn", "urllib.Request", "http.client.connect"}
seen = []

def watch(event, arguments):
    if event in forbidden or (event == "socket.connect" and not isinstance(arguments[1], (str, bytes))):
        seen.append(event)
        raise RuntimeError(f"{event} {arguments!r}")

sys.addaudithook(watch)
from handlers.mosaic import receive  # this file alone: no application, no routes

assert "app.web" not in sys.modules and "jobs" not in sys.modules
for headers, body in letters:
    request = flask.Request(EnvironBuilder("/", method="POST", data=body.encode(), headers=headers).get_environ())
    answer, status = receive(request)
    print(status, json.dumps(answer if isinstance(answer, dict) else json.loads(answer.get_data())))
assert not seen, seen
"""


def test_the_handler_alone_makes_no_network_call(database: str, tmp_path: Path, letters: dict[str, Letter]) -> None:
    """In a process of its own, where each connection but the one to PostgreSQL's socket, each look-up of a name and
    each new process is an error. The process knows nothing: its first request makes everything ready."""
    rows = [(headers_of(letter, letter.body), letter.body.decode()) for letter in letters.values()]
    rows.append((headers_of(letters["push"], b"{}"), "{}"))
    (tmp_path / "letters.json").write_text(json.dumps(rows))
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "letters.json")],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **environment(database, tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    statuses = [line.split()[0] for line in ran.stdout.splitlines() if line[:4] in ("202 ", "400 ")]
    assert statuses == ["202"] * len(letters) + ["400"]
    assert one("select count(*) as n from deliveries")["n"] == len(letters) + 1


# ---------------------------------------------------------------- the real web process


class Web:
    """`python -m app run web`, as the Procfile starts it: gunicorn with its workers and threads."""

    def __init__(self, database_url: str, data_dir: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir / "web.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "run", "web"],
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(data_dir),
                    "MOSAIC_LISTEN": f"127.0.0.1:{self.port}",
                    **environment(database_url, data_dir),
                },
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Web:
        end = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def hand(self, letter: Letter, **more: str | None) -> tuple[int, dict[str, Any], Mapping[str, str]]:
        """Status, JSON and headers of what it answers."""
        request = urllib.request.Request(self.url + PATH, letter.body, headers_of(letter, letter.body, **more))
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers

    def raw(self, head: list[str], body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer to a request written by hand; 0 when there is none."""
        text = "\r\n".join([f"POST {PATH} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Connection: close", *head])
        with socket.create_connection(("127.0.0.1", self.port), 60) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it has read all
                connection.sendall(text.encode("latin-1") + b"\r\n\r\n" + body)
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with suppress(ConnectionResetError):
                while more := connection.recv(65536):
                    answer += more
        head_, _, content = answer.partition(b"\r\n\r\n")
        return (int(head_.split()[1]) if head_ else 0), content


@pytest.fixture
def server(database: str, tmp_path: Path, post: tuple[dict[str, Letter], Known]) -> Iterator[Web]:
    known = post[1]
    assert known.self_id is not None
    jobs.remember_self(known.self_id, known.self_login)
    with Web(database, tmp_path) as running:
        yield running


def test_what_the_http_server_is_sent(server: Web, comment: Letter) -> None:
    """Each of these is refused, by the HTTP server or by the handler, and the next request is served as ever."""
    body = comment.body
    head = [f"{name}: {value}" for name, value in headers_of(comment, body).items()]
    unsigned = [line for line in head if not line.startswith("X-Gitea-Signature")]
    size = f"Content-Length: {len(body)}"
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    statuses = {
        "no length": server.raw(head, body)[0],
        "chunked": server.raw([*head, "Transfer-Encoding: chunked"], chunks)[0],
        "chunked with a length": server.raw([*head, size, "Transfer-Encoding: chunked"], chunks)[0],
        "two lengths": server.raw([*head, size, "Content-Length: 1"], body)[0],
        "too large": server.raw([*head, f"Content-Length: {MAX_BODY + 1}"], b"x" * 1000)[0],
        "enormous": server.raw([*head, f"Content-Length: {'9' * 5000}"], b"x" * 1000)[0],
        "negative": server.raw([*head, "Content-Length: -5"], body)[0],
        "cut off": server.raw([*head, f"Content-Length: {len(body) + 10}"], body)[0],
        "signed twice": server.raw([*head, size, f"X-Gitea-Signature: {sign(body)}"], body)[0],
        "not ASCII": server.raw([*unsigned, size, "X-Gitea-Signature: \xe9\xff"], body)[0],
    }
    assert statuses == {
        "no length": 411,
        "chunked": 411,
        "chunked with a length": 400,
        "two lengths": 400,
        "too large": 413,
        "enormous": statuses["enormous"],
        "negative": 400,
        "cut off": 400,
        "signed twice": 401,
        "not ASCII": 401,
    }
    assert statuses["enormous"] in (400, 413)
    assert fetch("select 1 as yes from deliveries") == []
    status, answer = server.raw([*head, size], body)
    assert status == 202 and json.loads(answer)["job"] == 1


def test_fifty_copies_at_once_are_one_job(server: Web, comment: Letter) -> None:
    """Half of them under one id, as if sent again; half with an id each, as by several hooks."""

    def copy_of(number: int) -> tuple[int, dict[str, Any]]:
        more = {"X_Gitea_Delivery": "the-one-and-only"} if number % 2 else {}
        return server.hand(comment, **more)[:2]

    with ThreadPoolExecutor(50) as pool:
        told = list(pool.map(copy_of, range(50)))
    assert {status for status, _ in told} == {202}
    assert sum(answer == {"duplicate": True} for _, answer in told) == 49
    assert one("select count(*) as n from runner_jobs")["n"] == 1
    assert one("select count(*) as n from deliveries where state = 'job'")["n"] == 1
    assert one("select count(*) as n from effects")["n"] == 1


def test_a_database_that_is_away_is_503_and_the_delivery_sent_again_is_served(
    tmp_path: Path, comment: Letter, letters: dict[str, Letter]
) -> None:
    """A server of its own, which is stopped and started under the web process: connections that lie idle in its pool
    are dead then, and must not cost a delivery."""
    ours = Cluster(tmp_path / "var")
    ours.start()
    try:
        schema.migrate(ours.owner_url, ours.app_url)
        with Web(ours.app_url, tmp_path) as server:
            for _ in range(4):  # fills the pools of both workers
                assert server.hand(letters["push"])[0] == 202
            ours.stop()
            for name in ("while-it-is-away", "and-once-more"):
                status, answer, headers = server.hand(comment, X_Gitea_Delivery=name)
                assert (status, answer["error"]["code"], headers["Retry-After"]) == (503, "database_unavailable", "5")
            ours.start()
            told = [server.hand(letters["push"])[0] for _ in range(12)]
            assert told == [202] * 12
            status, answer, _ = server.hand(comment, X_Gitea_Delivery="while-it-is-away")
            assert (status, answer["job"]) == (202, 1)
        with psycopg.connect(ours.app_url) as connection:
            assert connection.execute("select count(*) from runner_jobs").fetchone() == (1,)
    finally:
        ours.stop()


def test_the_web_process_starts_and_says_503_before_there_is_a_database(tmp_path: Path, comment: Letter) -> None:
    ours = Cluster(tmp_path / "var")
    ours.ensure()
    with Web(ours.app_url, tmp_path) as server:
        assert server.hand(comment)[0] == 503
        ours.start()
        try:
            schema.migrate(ours.owner_url, ours.app_url)
            assert server.hand(comment)[0] == 202
        finally:
            ours.stop()
