"""Procrastinate: a task that defers the next one. As a script: make the schema, ring it."""

import os
import sys
import time

from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["BENCH_POSTGRES"]), import_paths=["procrastinate_hop"])


@app.task(name="bench.step")
async def step(left: int, began: float, total: int, out: str) -> None:
    """The first one starts the clock, the last one writes the result."""
    began = began or time.time()
    if left:
        await step.defer_async(left=left - 1, began=began, total=total, out=out)
    else:
        with open(out + ".new", "w") as file:
            file.write(str((time.time() - began) * 1000 / total))
        os.replace(out + ".new", out)


if __name__ == "__main__":
    with app.open():
        if sys.argv[1] == "schema":
            app.schema_manager.apply_schema()
        else:
            step.defer(left=int(sys.argv[1]), began=0.0, total=int(sys.argv[1]), out=sys.argv[2])
