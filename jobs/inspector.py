"""inspector: runs policy checks and quality gates on the committed tree. It changes nothing."""

from __future__ import annotations

import os
import stat
from dataclasses import asdict
from pathlib import Path

from app import guard_rails, quality_rails
from app.clients.git import Git
from app.context import Context
from app.gate_sections import SECTIONED
from app.path_patterns import matches
from app.private_files import below
from app.types import Cancelled, Change, Done, Failed, Finding, GateSpec, Result
from app.workbench import clean_checkout, run_command

_REPORT_LIMIT = 16 * 1024 * 1024
_LINK = "120000"


def policy(context: Context) -> Result:
    """Is the change itself allowed: what it touches, how large it is, what kinds of files it brings."""
    made = context.output_of("runner.commit")
    git = context.clients.git(context.job.repository_id)
    changes = git.changes(made["start"], made["commit"])
    findings = _findings(context, git, made["start"], made["commit"], changes)
    if not findings:
        return Done(output={"tree": made["tree"], "files": len(changes)})
    detail = "\n".join(f"- {finding.path}: {finding.detail}" for finding in findings[:20])
    return Failed("policy_violation", detail, output={"findings": [asdict(finding) for finding in findings[:100]]})


def _findings(context: Context, git: Git, start: str, commit: str, changes: tuple[Change, ...]) -> list[Finding]:
    rules = context.rules
    sizes = {entry.path: entry.size for entry in git.list_tree(commit)}
    found = list(
        guard_rails.policy(
            changes,
            protected=rules.protect.paths,
            allowed=rules.protect.allow,
            max_files=rules.limits.files,
            max_patch_kb=rules.limits.patch_kb,
            sizes=sizes,
            targets=_targets(git, commit, changes),
            contents=_contents(git, start, commit, changes),
        )
    )
    named = {finding.path for finding in found}
    # What the server has locked stays locked, whatever the repository allows.
    for change in changes:
        pattern = next((one for one in rules.protect.locked if matches(one, change.path)), None)
        if pattern and change.path not in named:
            found.append(Finding("protected_path", change.path, f"protected by `{pattern}`"))
    return found


def _contents(
    git: Git, start: str, commit: str, changes: tuple[Change, ...]
) -> dict[str, tuple[bytes | None, bytes | None]]:
    """Before and after of the files of which only some sections decide about gates."""
    paths = [change.path for change in changes if change.path.rpartition("/")[2] in SECTIONED]
    return {path: (git.read(start, path, _REPORT_LIMIT), git.read(commit, path, _REPORT_LIMIT)) for path in paths}


def _targets(git: Git, commit: str, changes: tuple[Change, ...]) -> dict[str, str]:
    """Where the changed symbolic links point."""
    links = [change.path for change in changes if change.new_mode == _LINK]
    return {path: (git.read(commit, path, 4096) or b"").decode("utf-8", "replace") for path in links}


def gate(context: Context) -> Result:
    """One gate in a fresh checkout of the committed tree. Its receipt is stored with the step."""
    spec = _spec(context)
    made = context.output_of("runner.commit")
    context.event("gate.started", gate=spec.name, command=spec.command, tree_sha=made["tree"])
    git = context.clients.git(context.job.repository_id)
    context.log(f"$ {spec.command}\n")
    with clean_checkout(context, git, made["tree"]) as work:
        ran = run_command(context, spec.command, work, spec.timeout, read_only=_prepared(context))
        if ran.cancelled:
            raise Cancelled("the gate was stopped")
        report = read_report(work, spec.report) if spec.report else None
    result = quality_rails.verdict(spec, ran, report, made["tree"], redactor=context.clients.redactor)
    output = {"receipt": asdict(result), "required": spec.required, "passed": result.passed, "why": result.why}
    return Done(output=output) if result.passed else Failed("gate_red", result.why, output=output)


def _spec(context: Context) -> GateSpec:
    name = context.step.name.removeprefix("inspector.gate.")
    return next(spec for spec in context.gates if spec.name == name)


def _prepared(context: Context) -> dict[str, Path]:
    """What setup left for the gates: laid read-only over the checkout."""
    key = context.output_of("runner.setup").get("cache")
    if not key:
        return {}
    out = context.paths.setup_cache(key) / "out"
    found = ((name, below(out, name)) for name in context.rules.setup.outputs)
    return {name: path for name, path in found if path is not None}


def read_report(work: Path, name: str) -> bytes | None:
    """A report file below `work`, without following any link: the gate's code may have planted one."""
    folder = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in Path(name).parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        with open(os.open(Path(name).name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            data = file.read(_REPORT_LIMIT + 1)
    except OSError:
        return None
    finally:
        os.close(folder)
    return data if len(data) <= _REPORT_LIMIT else None
