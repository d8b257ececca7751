"""The ear: every bell is heard once, by one of many threads, whatever happens to the connection in between."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest

from app import queue
from app.bell_storage import BellStorage
from app.ledger.chain import transaction
from app.types import Pool


class House:
    """Threads that hear the bells of a pool, as Huey's consumer runs them."""

    def __init__(self, url: str, threads: int) -> None:
        self.storage: BellStorage = queue.doorbell(Pool.CONTROL, url).storage
        self.storage.read_timeout = 0.5
        self.heard: Counter[int] = Counter()
        self._news, self._over = threading.Condition(), threading.Event()
        self.threads = [threading.Thread(target=self._serve) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            with suppress(psycopg.OperationalError):  # Huey logs it and asks again
                data = self.storage.dequeue()
                if data:
                    with self._news:
                        self.heard[json.loads(data)["id"]] += 1
                        self._news.notify_all()

    def until(self, count: int) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.heard.total() >= count, 20), self.heard

    def until_listening(self, url: str) -> list[int]:
        while not (ears := listening(url)):
            assert all(thread.is_alive() for thread in self.threads)
        return ears

    def close(self) -> None:
        self._over.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def house(database: str) -> Iterator[House]:
    made = House(database, 4)
    yield made
    made.close()


def ring(*numbers: int) -> None:
    for number in numbers:
        queue.ring(Pool.CONTROL, "a.task", number)


def test_each_bell_is_heard_once_however_they_come(house: House) -> None:
    ring(*range(50))
    house.until(50)
    with transaction():  # one notice for all of them
        ring(*range(50, 100))
    queue.ring_many(Pool.CONTROL, "a.task", list(range(100, 150)))
    house.until(150)
    ring(150)
    house.until(151)
    assert house.heard == Counter(range(151))


def test_one_connection_listens_for_all_threads(house: House, database: str) -> None:
    for number in range(20):  # each time another thread takes the ear
        ring(number)
        house.until(number + 1)
    assert len(house.until_listening(database)) == 1


def test_a_broken_ear_is_replaced_and_what_rang_meanwhile_is_heard(house: House, database: str) -> None:
    ears = house.until_listening(database)
    with psycopg.connect(database, autocommit=True) as other:
        for pid in ears:
            other.execute("select pg_terminate_backend(%s)", (pid,))
        ring(2)
    house.until(1)
    assert house.heard == Counter([2])


def test_bells_from_before_the_start_are_heard(database: str) -> None:
    ring(1, 2, 3)
    house = House(database, 2)
    house.until(3)
    house.close()
    assert house.heard == Counter([1, 2, 3])


def listening(url: str) -> list[int]:
    with psycopg.connect(url, autocommit=True) as other:
        rows = other.execute(
            "select pid from pg_stat_activity where query ilike 'listen %%' and datname = current_database()"
        )
        return [row[0] for row in rows]
