"""The pool: what waits goes out in order, errors come back, and a COMMIT belongs to its transaction."""

from __future__ import annotations

from contextlib import suppress

import peewee
import psycopg
import pytest

from app.models import UNAVAILABLE, ask, db, execute, fetch, send

pytestmark = pytest.mark.usefixtures("database")


def remember(number: int) -> None:
    send("insert into users (id, login) values (%s, %s)", number, f"user-{number}")


def remembered() -> list[int]:
    return [row["id"] for row in fetch("select id from users order by id")]


def cut_off(url: str) -> None:
    """End this thread's connection from outside, as the server does with a frozen process."""
    pid = fetch("select pg_backend_pid() as pid")[0]["pid"]
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("select pg_terminate_backend(%s)", (pid,))
        while other.execute("select 1 from pg_stat_activity where pid = %s", (pid,)).fetchone():
            pass


def test_what_was_sent_is_seen_by_the_next_statement_and_stays() -> None:
    with db.atomic():
        remember(1)
        assert remembered() == [1]
        remember(2)
    assert remembered() == [1, 2]


def test_outside_a_transaction_it_happens_at_once() -> None:
    remember(1)
    assert not db.in_transaction() and remembered() == [1]


def test_what_was_sent_is_forgotten_with_its_transaction() -> None:
    with pytest.raises(ZeroDivisionError), db.atomic():
        remember(1)
        assert remembered() == [1]
        remember(2)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), db.atomic():
        remember(3)
        raise ZeroDivisionError
    assert remembered() == []


def test_the_error_of_something_sent_spoils_the_transaction() -> None:
    remember(1)
    with pytest.raises(peewee.IntegrityError), db.atomic():
        execute("insert into users (id, login) values (2, 'x')")
        remember(1)
    with pytest.raises(peewee.IntegrityError), db.atomic():
        remember(1)
        remember(3)
        remembered()
    assert remembered() == [1]


@pytest.mark.parametrize("sent_before", [True, False])
def test_an_inner_block_is_taken_back_alone(sent_before: bool) -> None:
    with db.atomic():
        remember(1)
        if sent_before:
            remembered()
        with pytest.raises(ZeroDivisionError), db.atomic():
            remember(2)
            raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError), db.atomic():
            remember(3)
            assert 3 in remembered()
            remember(4)
            raise ZeroDivisionError
        with db.atomic():
            remember(5)
    assert remembered() == [1, 5]


def test_several_answers_in_one_round_trip() -> None:
    with db.atomic():
        remember(1)
        users, counted = ask("select id from users where id = %s for update", 1), ask("select count(*) as n from users")
        changed = ask("update users set login = 'y' where id = %s", 1)
        remember(2)
        assert (users.rows, counted.rows, changed.count) == ([{"id": 1}], [{"n": 1}], 1)
        assert remembered() == [1, 2]


def test_a_statement_that_cannot_be_sent_takes_back_those_before_it() -> None:
    with pytest.raises(Exception, match="cannot adapt"), db.atomic():
        remember(1)
        send("insert into users (id, login) values (%s, 'x')", object())
        remembered()
    assert remembered() == []


def test_an_answer_that_nobody_waited_for_comes_with_the_commit() -> None:
    with db.atomic():
        changed = ask("insert into users (id, login) values (1, 'x')")
    assert changed.count == 1
    assert ask("select id from users").rows == [{"id": 1}], "outside a transaction it is asked at once"


def test_a_question_that_was_taken_back_has_no_answer() -> None:
    with db.atomic():
        with suppress(ZeroDivisionError), db.atomic():
            changed = ask("insert into users (id, login) values (1, 'x')")
            raise ZeroDivisionError
        with pytest.raises(peewee.OperationalError, match="taken back"):
            _ = changed.count
        kept = ask("select count(*) as n from users")
        assert kept.rows == [{"n": 0}]


@pytest.mark.parametrize("waiting", [True, False])
def test_a_transaction_whose_connection_broke_is_never_taken_for_committed(database: str, waiting: bool) -> None:
    """A COMMIT on a fresh connection would be answered with a friendly nothing."""
    with pytest.raises(UNAVAILABLE), db.atomic():
        execute("insert into users (id, login) values (1, 'x')")
        if waiting:
            remember(2)
            remembered()
            remember(3)
        cut_off(database)
    assert remembered() == []


def test_a_transaction_that_the_server_gave_up_is_not_taken_for_committed() -> None:
    remember(1)
    refused = pytest.raises(peewee.OperationalError, match="rolled the transaction back")
    with refused, db.atomic(), suppress(peewee.IntegrityError):  # it goes on as if nothing had been
        execute("insert into users (id, login) values (1, 'x')")


def test_a_connection_that_broke_between_two_transactions_is_replaced(database: str) -> None:
    cut_off(database)
    with db.atomic():
        remember(1)
    assert remembered() == [1]
