"""A submitted job is followed to its end, whatever the line and its cluster do."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
import requests
from ray.job_submission import JobStatus

from orchestrator.cluster.submission import connect, follow
from orchestrator.errors import ConfigError, OrchestratorError, PreemptedError


class Jobs:
    """Answers as a job server does: not over yet, then ``status``."""

    def __init__(
        self,
        status: JobStatus,
        code: int | None = None,
        breaks: bool = False,
        error_type: str | None = None,
    ) -> None:
        self.answers: list[JobStatus | Exception] = [JobStatus.RUNNING, status]
        self.code = code
        self.error_type = error_type
        self.breaks = breaks

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield f"line of {job}\n"
        if self.breaks:
            raise RuntimeError("connection closed")

    def get_job_info(self, job: str) -> SimpleNamespace:
        status = self.answers.pop(0)
        if isinstance(status, Exception):
            raise status
        return SimpleNamespace(
            status=status,
            message="it said why",
            driver_exit_code=self.code,
            error_type=self.error_type,
        )


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.cluster.submission._POLL_SECONDS", 0.0)


def test_the_log_is_printed_and_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    follow(Jobs(JobStatus.SUCCEEDED, 0), "job-1")
    assert capsys.readouterr().out == "line of job-1\n"


def test_a_log_that_breaks_off_does_not_end_the_wait(capsys: pytest.CaptureFixture[str]) -> None:
    follow(Jobs(JobStatus.SUCCEEDED, 0, breaks=True), "job-1")
    assert "broke off (connection closed)" in capsys.readouterr().err


@pytest.mark.parametrize("code", [-9, -15, 137, 143])
def test_a_driver_that_was_killed_can_be_sent_again(code: int) -> None:
    with pytest.raises(PreemptedError, match=rf"ended by signal {abs(code) % 128}\..*to go on"):
        follow(Jobs(JobStatus.FAILED, code), "job-1")


def test_a_driver_that_was_lost_with_its_node_can_be_sent_again() -> None:
    jobs = Jobs(JobStatus.FAILED, error_type="JOB_SUPERVISOR_ACTOR_DIED")
    with pytest.raises(PreemptedError, match=r"its driver was lost \(it said why\)\..*to go on"):
        follow(jobs, "job-1")


@pytest.mark.parametrize(
    ("code", "expected"), [(64, 64), (65, 65), (None, 70), (-11, 70), (130, 130)]
)
def test_a_failure_keeps_the_exit_code_of_the_driver(code: int | None, expected: int) -> None:
    with pytest.raises(OrchestratorError, match="job-1 failed: it said why") as failure:
        follow(Jobs(JobStatus.FAILED, code), "job-1")
    assert failure.value.exit_code == expected


def test_a_stopped_job_can_be_sent_again() -> None:
    with pytest.raises(PreemptedError, match="submit the same command"):
        follow(Jobs(JobStatus.STOPPED), "job-1")


def test_a_cluster_that_does_not_answer_is_asked_again_and_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = requests.ConnectionError("refused")
    jobs = Jobs(JobStatus.SUCCEEDED)
    jobs.answers = [JobStatus.RUNNING, refused, RuntimeError("500"), JobStatus.SUCCEEDED]
    follow(jobs, "job-1")
    assert capsys.readouterr().err == (
        "the cluster does not answer (refused); asking it again for 60 s\n"
    )
    monkeypatch.setattr("orchestrator.cluster.submission._PATIENCE_SECONDS", 0.0)
    jobs.answers = [refused] * 1000
    with pytest.raises(PreemptedError, match=r"job-1: the cluster has not answered.*go on"):
        follow(jobs, "job-1")


def test_a_server_that_is_stopped_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes connections and requests and answers none, like a dashboard after SIGSTOP."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("orchestrator.cluster.submission._PATIENCE_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ConfigError, match=r"no Ray job server answers .*no answer for 0.2 s"),
    ):
        connect(f"http://127.0.0.1:{server.getsockname()[1]}")

    class Stopped(Jobs):
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "step 1\n"
            await asyncio.Event().wait()

        def get_job_info(self, job: str) -> SimpleNamespace:
            if self.answers:
                return super().get_job_info(job)
            time.sleep(3600)
            raise AssertionError

    jobs = Stopped(JobStatus.RUNNING)
    with pytest.raises(PreemptedError, match=r"has not answered .*no answer for 0.2 s"):
        follow(jobs, "job-1")
    assert capsys.readouterr().out == "step 1\n"
    assert jobs.answers == []
    # A job that ends while its log says nothing.
    jobs.answers = [JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.SUCCEEDED]
    follow(jobs, "job-1")
