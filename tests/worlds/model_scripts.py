"""The scripts that every scripted model knows: each is a function of the marker's words that returns its steps.

A step is one answer of the model: a tool call (`tool`, `args`), a `text` (with `delay` seconds per word), an HTTP error
(`status`), a dropped connection (`drop`), or silence (`hang` seconds, then an empty answer; `wait` seconds first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Args = Mapping[str, str]
Step = dict[str, Any]


def say(text: str, **more: Any) -> Step:
    """The model answers with a text, which ends the turn."""
    return {"text": text, **more}


def call(tool: str, **args: Any) -> Step:
    """The model calls a tool."""
    return {"tool": tool, "args": args}


def write(args: Args) -> list[Step]:
    path, body = args.get("path", "hello.txt"), args.get("body", "written-by-the-agent")
    return [call("write", path=path, content=body + "\n"), say("Done: wrote the file.")]


def edit(args: Args) -> list[Step]:
    path = args.get("path", "a.txt")
    change = {"oldText": args.get("old", "one"), "newText": args.get("new", "two")}
    return [call("read", path=path), call("edit", path=path, edits=[change]), say("Done: edited the file.")]


def escape(args: Args) -> list[Step]:
    """Try to leave the worktree: by an absolute path, by `..`, and through the link `link` if there is one."""
    outside = args.get("outside", "/tmp/escaped-by-the-agent.txt")
    sibling = args.get("sibling", "../escaped-by-the-agent.txt")
    return [
        call("write", path=outside, content="escaped\n"),
        call("write", path=sibling, content="escaped\n"),
        call("write", path="link/escaped-by-the-agent.txt", content="escaped\n"),
        call("read", path=args.get("read", "/etc/hostname")),
        call("read", path="link/secret.txt"),
        call("exec", command="id > executed.txt"),
        say("Tried to leave the worktree."),
    ]


def readonly(args: Args) -> list[Step]:
    path = args.get("path", "a.txt")
    return [
        call("read", path=path),
        call("write", path="forbidden.txt", content="x"),
        call("edit", path=path, edits=[{"oldText": "one", "newText": "two"}]),
        call("apply_patch", input="*** Begin Patch\n*** Add File: forbidden2.txt\n+x\n*** End Patch"),
        call("exec", command="touch forbidden3.txt"),
        say("Tried to write."),
    ]


def loop(args: Args) -> list[Step]:
    count = int(args.get("n", "30"))
    return [{**call("ls", path="."), "wait": float(args.get("s", "0.2"))} for _ in range(count)] + [say("Loop done.")]


def two_rounds(args: Args) -> list[list[Step]]:
    """A first round that leaves the work unfinished, and a second one that finishes it."""
    path = args.get("path", "hello.txt")
    first = [call("write", path=path, content="first\n"), say("Done: first try.")]
    return [first, [call("write", path=path, content="second\n"), say("Done: second try.")]]


def _status(status: int) -> Callable[[Args], Sequence[Any]]:
    return lambda _args: [{"status": status}]


BUILTIN: dict[str, Callable[[Args], Sequence[Any]]] = {
    "hello": lambda _args: [say("Hello from the scripted model.")],
    "nothing": lambda _args: [say("There is nothing to change.")],
    "write": write,
    "edit": edit,
    "read": lambda args: [call("read", path=args.get("path", "a.txt")), say("Done: read the file.")],
    "ls": lambda args: [call("ls", path=args.get("path", ".")), say("Done: listed.")],
    "escape": escape,
    "readonly": readonly,
    "two_rounds": two_rounds,
    "loop": loop,
    "slow": lambda args: [say("word " * int(args.get("n", "40")), delay=float(args.get("s", "0.5")))],
    "hang": lambda args: [{"hang": float(args.get("s", "60")), "text": "after the silence"}],
    "write_then_hang": lambda args: [*write(args)[:1], {"hang": float(args.get("s", "60")), "text": "late"}],
    "err400": _status(400),
    "err401": _status(401),
    "err429": _status(429),
    "err500": _status(500),
    "err503": _status(503),
    "drop": lambda _args: [{"drop": True}],
}
