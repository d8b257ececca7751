"""Rows become frozen values here; no row of a job or a step leaves as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app.types import Event, GateResult, Job, JobStatus, Phase, Step, StepStatus, StepType, Trigger


def as_job(row: Mapping[str, Any]) -> Job:
    return Job(
        id=row["id"],
        pipeline=row["pipeline"],
        status=JobStatus(row["status"]),
        repository_id=row["repository_id"],
        repository=row["repository"],
        number=row["number"],
        instructions=row["instructions"],
        requester=row["requester"],
        requester_id=row["requester_id"],
        trigger=Trigger(**row["trigger"]),
        priority=row["priority"],
        access=row["access"],
        reason=row["reason"],
        detail=row["detail"],
        retry_of=row["retry_of"],
        branch=row["branch"],
        base_sha=row["base_sha"],
        default_branch=row["default_branch"],
        pull_request=row["pull_request"],
        head_sha=row["head_sha"],
        cancel_requested=row["cancel_requested_at"] is not None,
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        deadline_at=row["deadline_at"],
        tokens=row["tokens"],
        cost_usd=row["cost_usd"],
        metadata=row["metadata"],
        host=row["host"],
    )


def as_step(row: Mapping[str, Any]) -> Step:
    return Step(
        id=row["id"],
        job_id=row["job_id"],
        name=row["name"],
        round=row["round"],
        attempt=row["attempt"],
        status=StepStatus(row["status"]),
        phase=Phase(row["phase"]),
        type=StepType(row["type"]),
        order=row["ord"],
        fence=row["fence"],
        crashes=row["crashes"],
        faults=row["faults"],
        run_after=row["run_after"],
        output=row["output"],
        reason=row["reason"],
        detail=row["detail"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        host=row["host"],
        excused=row["excused"],
    )


def as_event(row: Mapping[str, Any]) -> Event:
    return Event(
        id=f"{row['job_id']}-{row['seq']}",
        job_id=row["job_id"],
        seq=row["seq"],
        kind=row["kind"],
        at=row["at"],
        actor=row["actor"],
        step=row["step"],
        data=json.loads(row["data"]),
    )


def as_gate_result(row: Mapping[str, Any]) -> GateResult:
    return GateResult(
        name=row["name"],
        type=row["type"],
        command=row["command"],
        required=row["required"],
        passed=row["passed"],
        exit_code=row["exit_code"],
        seconds=row["seconds"],
        why=row["why"],
        output=row["output"],
        counts=row["counts"],
        coverage=row["coverage"],
        tree_sha=row["tree_sha"],
        timed_out=row["timed_out"],
    )
