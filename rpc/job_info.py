"""What is known of jobs that nobody waits for: found out when somebody asks, so that it costs a job nothing;
only an outcome that is to be kept is written down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any, Literal, cast, get_args

from .backends import backend_from_url
from .backends.features import unsupported
from .core.codecs import ACCEPTED, JSON, Accepted
from .core.conversation import decode_progress
from .core.jobs import Jobs, Progress
from .core.protocol import decode_reply, encode_error, given_up_for
from .errors import Cancelled, RpcError, RpcTimeout, SerializationError, Unsupported, shown
from .inspection import Counts, DeadLetter, DeadLetters, Entry, Inspection, QueueInfo, Results
from .settings import Settings
from .signing.backend import signing
from .transport import FAILED, KEEP, NAME, Backend, Delivery, Message, unpacked

logger = logging.getLogger(__name__)

ListedState = Literal["scheduled", "waiting", "running", "dead", "expired"]
"""What jobs can be listed by: those that are over are found by their id alone."""
PROGRESS_OF = ".progress"
"""What is added to a job's id for how far it is."""
A_STORE = "RPC_STORE may name one of them, for what is over"
"""Of a backend that cannot tell what became of a job."""
_NOWHERE = "it is over, and nothing of it is kept, or it never was, or it is in another queue (see `queue`)"
_NOT_SHOWN = "whether it is scheduled, waits or runs, this backend cannot show"
KEEP_PROGRESS = 3600.0
"""Seconds for which it is kept."""
NOTE_AFTER = 0.2
"""Seconds."""
JobState = Literal[ListedState, "succeeded", "failed", "cancelled", "unknown"]
ATTEMPT, ENDED, TOOK, WORKER = "attempt", "ended", "took", "worker"
"""Headers of a last reply that is kept: which attempt it was; when it ended, in seconds of the Unix epoch;
how many seconds it took; which worker did it."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What was known of a job when it was asked for."""

    id: str
    state: JobState
    """`scheduled` or `waiting` in a queue, or `running`; `succeeded`, `failed` or `cancelled` as long as its
    outcome is kept; `dead`, or `expired`, if it is a dead letter; `unknown`: it is over, and nothing of it
    is kept, or there never was one, or it is in another queue; or it is not over, if the backend cannot show
    what is in its queues."""
    name: str = ""
    queue: str = ""
    attempt: int = 1
    worker: str = ""
    """The id of the worker that has it, or had it."""
    at: datetime | None = None
    """When it was sent, or is due, or was given up, or ended, as the state has it; in UTC."""
    took: float | None = None
    """Seconds that its handler ran, if its outcome is kept."""
    error: str = ""
    """Why it failed, was given up, or is not known, in one line."""
    traceback: str = ""
    progress: Progress | None = None
    """How far it is, if it runs and has told it."""
    _last: Message | None = field(default=None, repr=False)
    _inspector: Inspector | None = field(default=None, repr=False, compare=False)
    _found: Entry | DeadLetter | None = field(default=None, repr=False, compare=False)

    @property
    def result(self) -> Any:
        """What its handler responded with. Raises what a caller would have got, if it failed or was given up;
        RpcError if it is not over, or nothing of it is kept."""
        return self.read(self._inspector.accepted if self._inspector else ACCEPTED)

    def read(self, accepted: Accepted) -> Any:
        """The `result`, for those who read other codecs."""
        if self._last is None and isinstance(self._found, DeadLetter):
            raise given_up_for(self.error)
        if self._last is None:
            raise RpcError(f"job {self.id} is {self.state}: no result of it is kept (see `keep`)")
        return decode_reply(*accepted.opened(self._last))

    def cancel(self) -> bool:
        """Take it out of its queue, if it waits there; if it runs, its handler is told: a coroutine is
        cancelled, a function sees `request.cancelled`. False if it is over. Raises BackendUnavailable, and
        Unsupported if nothing is known of it on a backend that cannot tell what waits."""
        return self._inspector is not None and self._inspector.cancel(self)

    def retry(self) -> bool:
        """Put it back into its queue, if it is a dead letter; else False. Raises BackendUnavailable."""
        return self._inspector is not None and self._inspector.retry(self)


class Inspector:
    """Looks for jobs in these queues of a backend, and for what is kept of them in `store`: results are read
    if they are `accepted`."""

    def __init__(
        self,
        backend: Backend,
        queues: Sequence[str],
        store: Results | None,
        accepted: Accepted = ACCEPTED,
        keep_results: float = 0.0,
    ) -> None:
        """`keep_results` is the seconds for which it is kept that a job was cancelled, which says nothing of
        that itself."""
        self._backend, self._queues, self._store = backend, tuple(dict.fromkeys(queues)), store
        self.accepted, self._keep_results = accepted, keep_results

    @property
    def keeps(self) -> bool:
        """Whether outcomes can be kept."""
        return self._store is not None

    def job(self, id: str, queue: str | None = None) -> JobInfo:
        """What is known of the job with this id. Raises TypeError, BackendUnavailable, Unsupported."""
        if not isinstance(id, str):
            raise TypeError(f"a job is found by its id, a text, not {id!r:.100}")
        if self._store is None and "inspection" not in self._backend.features:
            raise Unsupported(f"{unsupported('inspection')}; {A_STORE}")
        for _ in range(2):  # from being tried it may go back to being scheduled meanwhile
            for name in self._queues if queue is None else (queue,):
                if found := self._look(name, id):
                    return found
        looked_in = ", ".join(self._queues if queue is None else (queue,))
        if "inspection" in self._backend.features:
            why = f"nothing is known of {id} in {looked_in}: {_NOWHERE}"
        else:
            why = f"nothing is kept of {id} in {looked_in}: {_NOT_SHOWN}"
        return JobInfo(id, "unknown", error=why, _inspector=self)

    def _look(self, queue: str, id: str) -> JobInfo | None:
        kept = self._kept(queue, id)
        if kept and kept.state != "failed":
            return kept
        if found := self._entry(queue, id):  # it may have failed before, and been put back
            return replace(found, progress=self._progress(queue, id)) if found.state == "running" else found
        if letter := self._dead(queue, id):
            return replace(letter, _last=kept._last if kept else None)
        return self._kept(queue, id)  # it may have ended meanwhile

    def jobs(
        self, queue: str | None = None, state: ListedState | None = None, name: str | None = None
    ) -> Iterator[JobInfo]:
        """The jobs that are scheduled, wait, run, or are dead letters. Raises ValueError, BackendUnavailable,
        Unsupported."""
        if state is not None and state not in get_args(ListedState):
            listed = ", ".join(get_args(ListedState))
            raise ValueError(
                f"jobs are listed by state {listed}, not {state!r}; what is over is found by its id"
            )
        self._need("inspection")
        inspection, shelf = cast("Inspection", self._backend), cast("DeadLetters", self._backend)
        for each in self._queues if queue is None else (queue,):
            found = [self._of_entry(entry) for entry in inspection.entries(each)]
            found += [self._of_letter(letter) for letter in shelf.dead_letters(each)]
            yield from (info for info in found if state in (None, info.state) and name in (None, info.name))

    def queues(self, more: Iterable[str] = (), queue: str | None = None) -> list[QueueInfo]:
        """How many jobs are in each queue, and in some more; or in this one. Raises BackendUnavailable,
        Unsupported."""
        self._need("counts")
        names = dict.fromkeys((*self._queues, *more) if queue is None else (queue,))
        return [cast("Counts", self._backend).queue_info(name) for name in names]

    def cancel(self, job: JobInfo) -> bool:
        """As `JobInfo.cancel`."""
        if job.state != "unknown" and "inspection" not in self._backend.features:
            return False  # what is known there is over
        self._need("inspection")
        inspection = cast("Inspection", self._backend)
        for _ in range(10):  # it may begin, or be tried again, just then
            entry = next(inspection.entries(job.queue, job.id), None) if job.queue else None
            if entry is None:
                return False
            if inspection.withdraw(entry):
                if entry.state != "running":
                    self._keep_withdrawn(entry)
                return True
        return False

    def retry(self, job: JobInfo) -> bool:
        """As `JobInfo.retry`."""
        found = job._found
        return isinstance(found, DeadLetter) and cast("DeadLetters", self._backend).revive(found)

    def _need(self, feature: str) -> None:
        if feature not in self._backend.features:
            raise unsupported(feature)

    def _kept(self, queue: str, id: str) -> JobInfo | None:
        last = self._store.result(queue, id) if self._store else None
        if last is None:
            return None
        headers, error = last.headers, _error_in(last, self.accepted)
        state: JobState = "succeeded" if error is None else "failed"
        if isinstance(error, Cancelled):
            state = "cancelled"
        return JobInfo(
            id,
            state,
            headers.get(NAME, ""),
            queue,
            last.attempt,
            headers.get(WORKER, ""),
            _time(_number(headers.get(ENDED))),
            _number(headers.get(TOOK)),
            "" if error is None else f"{headers[FAILED]}: {getattr(error, 'message', error)}",
            getattr(error, "traceback", None) or "",
            _last=last,
            _inspector=self,
        )

    def _progress(self, queue: str, id: str) -> Progress | None:
        told = self._store.result(queue, id + PROGRESS_OF) if self._store else None
        return None if told is None else decode_progress(told, self.accepted)

    def _entry(self, queue: str, id: str) -> JobInfo | None:
        if "inspection" not in self._backend.features:
            return None
        found = next(cast("Inspection", self._backend).entries(queue, id), None)
        return self._of_entry(found) if found else None

    def _dead(self, queue: str, id: str) -> JobInfo | None:
        if "dead-letters" not in self._backend.features:
            return None
        letters = cast("DeadLetters", self._backend).dead_letters(queue)
        return next((self._of_letter(each) for each in letters if each.id == id), None)

    def _of_entry(self, entry: Entry) -> JobInfo:
        message, at = _read(entry.frame), _time(entry.at)
        about = message.headers.get(NAME, ""), entry.queue, message.attempt, entry.worker, at
        return JobInfo(entry.id, entry.state, *about, _inspector=self, _found=entry)

    def _of_letter(self, letter: DeadLetter) -> JobInfo:
        message, told = _read(letter.frame), (letter.why, letter.traceback)
        state: JobState = "expired" if letter.why.startswith(f"{RpcTimeout.__name__}: it expired") else "dead"
        about = message.headers.get(NAME, ""), letter.queue, message.attempt, "", _time(letter.at), None
        return JobInfo(letter.id, state, *about, *told, _inspector=self, _found=letter)

    def _keep_withdrawn(self, entry: Entry) -> None:
        """That a job was cancelled is its outcome."""
        message = _read(entry.frame)
        usual = self._keep_results if message.reply_to is None else 0.0
        if self._store and (keep := usual if message.keep is None else message.keep):
            body = encode_error(entry.id, Cancelled("it was cancelled before a worker came to it"), JSON)
            headers = {"id": entry.id, FAILED: "Cancelled", NAME: message.headers.get(NAME, "")}
            last = Message(body, {**headers, ENDED: f"{time.time():.3f}"})
            self._store.keep(entry.queue, entry.id, last, keep)


class Noter:
    """Has it kept how far jobs are: a little later, and only the last of what they told till then."""

    def __init__(self, store: Results, later: Callable[[float, Callable[[], None]], bool]) -> None:
        """`later` does something in another thread."""
        self._store, self._later = store, later
        self._told: dict[tuple[str, str], Message] = {}

    def __call__(self, delivery: Delivery, message: Message) -> None:
        key = delivery.to.name, message.id
        is_new = key not in self._told
        self._told[key] = message
        if is_new and not self._later(NOTE_AFTER, partial(self._note, key)):
            del self._told[key]

    def _note(self, key: tuple[str, str]) -> None:
        queue, id = key
        try:
            self._store.keep(queue, id + PROGRESS_OF, self._told.pop(key), KEEP_PROGRESS)
        except RpcError as error:
            logger.warning("how far %s is cannot be kept: %s", shown(id), error)


class Keeper:
    """Has the outcomes of a worker's jobs kept: by the backend, together with the end of the job; or in a
    store, before that."""

    def __init__(self, worker: str, store: Results | None) -> None:
        """`store` is another backend than that of the worker, if there is one."""
        self._worker, self._store = worker, store

    def __call__(self, delivery: Delivery, last: Message, seconds: float, took: float) -> Message:
        """The last reply to a delivery, with what there is to know of the job. What cannot be stored is
        logged: the job is done all the same."""
        message = delivery.message
        about = {NAME: message.headers.get(NAME, "")[:128], ATTEMPT: message.headers.get(ATTEMPT)}
        times = {ENDED: f"{time.time():.3f}", TOOK: f"{took:.6f}"}
        last = last.replace(**about, **times, **{WORKER: self._worker})
        if self._store is None:
            return last.replace(**{KEEP: f"{seconds:.3f}"})
        try:
            self._store.keep(delivery.to.name, message.id, last, seconds)
        except RpcError as error:
            logger.error("the outcome of %s cannot be kept: %s", shown(message.id), error)
        return last


class Store:
    """Where outcomes are kept, if that is another backend than that of the jobs: the one in the settings, or
    one that is made of the URL there, and closed with its owner."""

    def __init__(self, settings: Settings) -> None:
        self._is_own = isinstance(settings.store, str)
        store: Any = backend_from_url(settings.store) if self._is_own else settings.store
        self.backend: Any = signing(settings, store)

    def close(self) -> None:
        """Give back its connections. Idempotent."""
        if self._is_own:
            self.backend.close()


def cannot_keep() -> Unsupported:
    """The error of a backend that keeps no outcomes."""
    return Unsupported(f"{unsupported('results')}; {A_STORE}")


def keeping(
    settings: Settings,
    store: Any,
    backend: Backend,
    jobs: Jobs,
    worker: str,
    later: Callable[[float, Callable[[], None]], bool],
) -> dict[str, Any]:
    """What the dispatcher of a worker must know of outcomes that are kept, in `store` if that is another
    backend than that of the worker; `later` does something in another thread. Raises Unsupported."""
    wanted = settings.keep_results or any(job.options.keep for job in jobs.values())
    can_keep = "results" in (store or backend).features
    if wanted and not can_keep:
        raise cannot_keep()
    noted = {"noted": Noter(cast("Results", store or backend), later)} if can_keep else {}
    return {
        **noted,
        "kept": Keeper(worker, store),
        "keeps_elsewhere": store is not None,
        "keep_results": settings.keep_results,
        "unknown_for": settings.unknown_for,
    }


def _error_in(last: Message, accepted: Accepted) -> RpcError | None:
    if FAILED not in last.headers:
        return None
    try:
        decode_reply(*accepted.opened(last))
    except RpcError as error:
        return error
    return None


def _read(frame: bytes) -> Message:
    try:
        return unpacked(frame)
    except SerializationError:
        return Message()


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
