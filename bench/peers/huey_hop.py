"""Stock Huey on PostgreSQL: a task that enqueues the next one. As a script: ring it."""

import os
import sys
import time

from huey import PostgresHuey

huey = PostgresHuey("bench", dsn=os.environ["BENCH_POSTGRES"])


@huey.task()
def step(left: int, began: float, total: int, out: str) -> None:
    """The first one starts the clock, the last one writes the result."""
    began = began or time.time()
    if left:
        step(left - 1, began, total, out)
    else:
        with open(out + ".new", "w") as file:
            file.write(str((time.time() - began) * 1000 / total))
        os.replace(out + ".new", out)


if __name__ == "__main__":
    from huey_hop import step as real  # the consumer knows the task by its module's name

    real(int(sys.argv[1]), 0.0, int(sys.argv[1]), sys.argv[2])
