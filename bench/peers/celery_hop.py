"""Celery on Redis: a task that sends the next one. As a script: ring it and print milliseconds per task."""

import os
import sys
import time

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_REDIS"])
app.conf.update(task_ignore_result=True, task_acks_late=True, task_reject_on_worker_lost=True)
app.conf.broker_connection_retry_on_startup = True


@app.task(name="bench.step")
def step(left: int, began: float, total: int, out: str) -> None:
    """The first one starts the clock, the last one writes the result."""
    began = began or time.time()
    if left:
        step.delay(left - 1, began, total, out)
    else:
        with open(out + ".new", "w") as file:
            file.write(str((time.time() - began) * 1000 / total))
        os.replace(out + ".new", out)


if __name__ == "__main__":
    step.delay(int(sys.argv[1]), 0.0, int(sys.argv[1]), sys.argv[2])
