"""DBOS: a durable workflow of empty steps. Prints milliseconds per step. Arguments: database URL, steps."""

import sys
import time

from dbos import DBOS, DBOSConfig

url, steps = sys.argv[1], int(sys.argv[2])
config: DBOSConfig = {
    "name": "bench",
    "system_database_url": url,
    "run_admin_server": False,
    "log_level": "ERROR",
}
DBOS(config=config)


@DBOS.step()
def empty() -> None:
    return None


@DBOS.workflow()
def chain(count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        empty()
    return (time.perf_counter() - began) * 1000 / count


DBOS.launch()
chain(10)
print("RESULT", chain(steps))
DBOS.destroy()
