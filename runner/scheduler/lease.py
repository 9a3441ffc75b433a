"""A request's claim on a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

import anyio

if TYPE_CHECKING:
    from types import TracebackType

    from runner.api.errors import RunnerError
    from runner.scheduler.state import LoadSpec
    from runner.worker.worker import Worker

__all__ = ["Lease", "LeaseDesk"]


class LeaseDesk(Protocol):
    """Where leases are asked for and given back: the scheduler. Neither call waits."""

    def claim(self, lease: Lease) -> None:
        """Ask for the lease's worker."""

    def give_back(self, lease: Lease) -> None:
        """End the lease, whatever has become of it."""


class Lease:
    """Keeps a worker from being unloaded while a request uses it, or waits for it.

    An async context manager: entering registers the claim at once, before any worker exists;
    leaving gives it up. A load that has begun goes on without those who asked for it.
    """

    def __init__(
        self,
        desk: LeaseDesk,
        lease_id: int,
        spec: LoadSpec,
        *,
        client: str,
        keep_alive_s: float | None,
    ) -> None:
        self.id = lease_id
        self.spec = spec
        self.client = client
        self.keep_alive_s = keep_alive_s
        self._desk = desk
        self._settled = anyio.Event()
        self._worker: Worker | None = None
        self._error: RunnerError | None = None
        self._note = "asking for a worker"

    @property
    def note(self) -> str:
        """What is happening now, in words: ``waiting for memory``, ``loading 40 %``, ``ready``."""
        return self._note

    async def worker(self) -> Worker:
        """Wait until the worker is ready.

        :raises RunnerError: it could not be loaded, or was refused, or has died since.
        """
        await self._settled.wait()
        if self._error is not None:
            raise _fresh(self._error) from self._error
        assert self._worker is not None
        return self._worker

    async def __aenter__(self) -> Self:
        self._desk.claim(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._desk.give_back(self)

    def tell(self, note: str) -> None:
        """For the scheduler: what is happening."""
        self._note = note

    def resolve(self, worker: Worker) -> None:
        """For the scheduler: the worker is ready."""
        self._worker = worker
        self._note = "ready"
        self._settled.set()

    def fail(self, error: RunnerError) -> None:
        """For the scheduler: there is no worker, or none any more."""
        self._error = error
        self._note = "failed"
        self._settled.set()


def _fresh(error: RunnerError) -> RunnerError:
    """A copy: many waiters raise the same error, and each raise writes a traceback into it."""
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy
