"""What a process that shares out work reserves on the cluster, and what becomes of its work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from ray.exceptions import RayActorError, RayTaskError

from orchestrator.cluster import actor_pool
from orchestrator.cluster.actor_pool import actor_options, share_out
from orchestrator.errors import DataError, PreemptedError


def test_every_kind_of_device_is_reserved() -> None:
    assert actor_options({"CPU": 2.0, "GPU": 1.0}) == {
        "num_cpus": 2.0,
        "num_gpus": 1.0,
        "resources": {},
    }
    assert actor_options({"CPU": 1.0, "NPU": 1.0})["resources"] == {"NPU": 1.0}


class Process:
    """An actor that is lost at certain shares."""

    def __init__(self, name: str, lost_at: Callable[[str, int], bool]) -> None:
        self.name = name
        self.lost_at = lost_at
        self.done: list[int] = []
        self.run = self

    def remote(self, share: int) -> Callable[[], int]:
        def answer() -> int:
            if self.lost_at(self.name, share):
                raise RayActorError(error_msg="the node died")
            self.done.append(share)
            return share * 10

        return answer


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_pool.ray, "wait", lambda answers, timeout: (answers[:1], answers[1:]))
    monkeypatch.setattr(actor_pool.ray, "get", lambda answer: answer())


def test_what_a_lost_process_was_at_is_done_by_another() -> None:
    processes = [Process(name, lambda name, share: (name, share) == ("b", 1)) for name in "abc"]
    found = list(share_out(processes, range(7)))
    assert Counter(found) == Counter(range(0, 70, 10))
    assert sorted(share for process in processes for share in process.done) == list(range(7))
    lost = next(process for process in processes if process.name == "b")
    assert 1 not in lost.done


def test_without_a_process_left_it_is_said() -> None:
    processes = [Process("a", lambda _, share: share == 2)]
    results = share_out(processes, range(7))
    assert [next(results), next(results)] == [0, 10]
    with pytest.raises(PreemptedError, match=r"the node died.* Next: run the same command again"):
        next(results)


def test_a_share_does_not_take_every_process_with_it() -> None:
    processes = [Process(str(number), lambda _, share: share == 0) for number in range(9)]
    with pytest.raises(PreemptedError, match="3 were lost at the same work"):
        list(share_out(processes, [0]))
    assert list(share_out(processes, [])) == []


def test_nobody_waits_for_a_cluster_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor_pool.ray, "wait", lambda answers, timeout: ([], answers))
    looks = iter([None, None, PreemptedError("its head is gone")])
    processes = [Process("a", lambda *_: False)]
    with pytest.raises(PreemptedError, match="its head is gone"):
        list(share_out(processes, range(7), lambda: next(looks)))
    assert processes[0].done == []


def test_what_a_worker_says_for_people_comes_without_its_traceback() -> None:
    def refuses(name: str, share: int) -> bool:
        cause = DataError("video.avi: OpenCV cannot open this video")
        raise RayTaskError("run", "Traceback ...", cause).as_instanceof_cause()

    with pytest.raises(DataError) as refused:
        list(share_out([Process("a", refuses)], [0]))
    assert str(refused.value) == "video.avi: OpenCV cannot open this video"
