"""A repository on the hub that a run writes to: whether it may, what is sent there, and how often that is tried.

What passes by itself (no connection, a timeout, a hub that is busy or down) is tried again after growing pauses, or
after the one that the hub asks for; what does not (a wrong token, no right to write) is said at once. Tokens are passed
on to the client and appear in no message.
"""

import email.utils
import glob
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from xtremes_jax import hub
from xtremes_jax.errors import InputError

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 20.0
"""Until a connection stands: where packets are dropped, the operating system would try for minutes."""
_PASSING = {408, 409, 412, 425, 429}
"""Statuses below 500 that another try may not meet: timeouts, other commits under way, too many requests."""
_MOST_WORDS = 400
"""Characters of what the hub says that a message repeats."""
_TOKENS = "https://huggingface.co/settings/tokens"


class Patience(NamedTuple):
    """How long to try: `tries` in all, with `first` seconds after the first, twice as many after each later one.

    The hub may ask for a longer pause, but for none longer than `longest` seconds. It may be silent for `silence`
    seconds while it answers, or takes a file; the client itself would wait for ever.
    """

    tries: int
    first: float
    longest: float
    silence: float = 300.0


AT_START = Patience(tries=3, first=1.0, longest=10.0, silence=30.0)
LATER = Patience(tries=6, first=5.0, longest=600.0)


class Unreachable(Exception):
    """The hub could not be had, however often that was tried; another time it may."""


class Repository:
    """A repository for a model, made when it is first written to.

    Args:
        name: `name` or `owner/name`; the full one from when the hub has told it.
        token: needs the right to write; None means the one of `hf auth login`.
        private: whether it is made private if it is not there yet; None leaves that to the owner's settings.
        endpoint: address of the hub; None means `HF_ENDPOINT` or huggingface.co.

    Raises:
        InputError: there is no token, or one that no token looks like.
    """

    def __init__(self, name: str, *, token: str | None, private: bool | None, endpoint: str | None = None):
        self.name, self._private, self._is_open = name, private, False
        if hub.checked_token(token) is None and huggingface_hub.get_token() is None:
            raise InputError(
                f"--push_to_hub needs a token of the hub, and there is none. Make one with the right to write at "
                f"{_TOKENS}, and give it with --hub_token, HF_TOKEN or `hf auth login`."
            )
        self._api = huggingface_hub.HfApi(endpoint=endpoint, token=token)

    def open(self, patience: Patience, pause: Callable[[float], bool] = lambda seconds: time.sleep(seconds)) -> None:
        """Makes the repository if it is not there, and asks the hub whether the token may write to it.

        Args:
            patience: how often to try.
            pause: waits for so many seconds; true if there is no use in trying again.

        Raises:
            InputError: it may not, or there can be no such repository.
            Unreachable: the hub does not say.
        """
        self._persist(self._open, patience, pause)

    def send(
        self,
        folder: Path,
        message: str,
        *,
        files: Sequence[str],
        replaces: str | None = None,
        patience: Patience,
        pause: Callable[[float], bool] = lambda seconds: time.sleep(seconds),
    ) -> str:
        """Uploads a model, files of a folder, and returns the address of the commit.

        What the repository holds of another model would be loaded together with it, and goes (`hub.OF_ONE_MODEL`).

        Args:
            folder: on this machine.
            message: first line of the commit.
            files: of the folder, by name.
            replaces: a folder of the repository, from which goes what is not in this one.
            patience, pause: as of `open`.

        Raises:
            InputError: the hub refuses.
            Unreachable: it could not be had.
        """

        def upload() -> str:
            self._open()
            commit = self._api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message=message,
                allow_patterns=[glob.escape(name) for name in files],
                delete_patterns=[*hub.OF_ONE_MODEL, *(() if replaces is None else [f"{replaces}/*"])],
            )
            return commit.commit_url

        return self._persist(upload, patience, pause)

    def _open(self) -> None:
        if self._is_open:
            return
        # The full name comes back: "name" alone becomes "owner/name".
        self.name = self._api.create_repo(self.name, private=self._private, exist_ok=True).repo_id
        try:
            # Of a repository that is there already, nothing has been asked yet.
            self._api.auth_check(self.name, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code != 404:  # as of a hub that does not know the question
                raise
        self._is_open = True

    def _persist(self, action: Callable[[], Any], patience: Patience, pause: Callable[[float], bool]) -> Any:
        wait = patience.first
        for tried in range(1, patience.tries + 1):
            try:
                with _silence_ends(patience.silence):
                    return action()
            except Exception as error:
                reason = describe(error)
                if not is_passing(error):
                    raise InputError(self._refusal(error, reason)) from error
                seconds = max(wait, asked_pause(error))
                if tried == patience.tries or seconds > patience.longest or isinstance(error, OfflineModeIsEnabled):
                    raise Unreachable(f"{self.name}: {reason}") from error
                logger.warning(
                    "The hub: %s. Trying %s again in %.0f s (%d of %d tries made).",
                    reason, self.name, seconds, tried, patience.tries,
                )  # fmt: skip
                if pause(seconds):
                    raise Unreachable(f"{self.name}: {reason}") from error
                wait *= 2

    def _refusal(self, error: BaseException, reason: str) -> str:
        """Why the hub will not have it, and what to do; with its own words, which may tell of a quota or of a card."""
        status, words = status_of(error), _words_of(error)
        if status == 401:
            return (
                f"The hub does not know the token (401) that {self.name} was to be written with. Copy it again from "
                f"{_TOKENS} and give it with --hub_token, HF_TOKEN or `hf auth login`.{words}"
            )
        if status == 403:
            return (
                f"The hub does not let the token write to {self.name} (403).{self._whose()} Make one with the right to "
                f"write at {_TOKENS}, or name a repository of your own with --hub_model_id OWNER/NAME.{words}"
            )
        if status == 404:
            return (
                f"There is no {self.name} on the hub that the token may see (404).{self._whose()} Check --hub_model_id "
                f"OWNER/NAME: OWNER is your account, or an organization in which you may write.{words}"
            )
        if isinstance(error, HFValidationError):
            return f"--hub_model_id {self.name} can be no repository on the hub: {reason}"
        kind = "" if status is not None else f"{type(error).__name__}: "
        return f"Nothing could be uploaded to {self.name}: {kind}{reason}.{words}"

    def _whose(self) -> str:
        """Of which account the token is and what it may do, as far as the hub says."""
        try:
            account = self._api.whoami()
            role = account["auth"]["accessToken"]["role"]
        except Exception:  # a second answer of a hub that has already said no
            return ""
        return f" It is a token of the account {account['name']} with the right: {role}."


@contextmanager
def _silence_ends(seconds: float) -> Iterator[None]:
    """Context in which the client gives up on a connection that does not come about, or is silent for so long."""
    session = huggingface_hub.get_session()  # the client may make a new one between two tries
    before = session.timeout
    session.timeout = (_CONNECT_SECONDS, seconds, seconds, seconds)  # to connect, read, write and get a connection
    try:
        yield
    finally:
        session.timeout = before


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came of: what fails in a worker thread of the client arrives wrapped."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def status_of(error: BaseException) -> int | None:
    """The hub's answer, if it has given one."""
    return next((link.response.status_code for link in _chain(error) if isinstance(link, HfHubHTTPError)), None)


def _words_of(error: BaseException) -> str:
    """What the hub has said beside its status, as a sentence to be added; empty if that is nothing."""
    answer = next((link for link in _chain(error) if isinstance(link, HfHubHTTPError)), None)
    words = " ".join((getattr(answer, "server_message", None) or "").split())
    short = words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}…"
    return f" The hub says: {short}" if short else ""


def is_passing(error: BaseException) -> bool:
    """Whether another try may succeed."""
    status = status_of(error)
    if status is not None:
        return status in _PASSING or status >= 500
    # TimeoutError and ConnectionError are of the operating system; the Xet protocol has errors of no common base.
    passing = (hub.HTTP_ERROR, TimeoutError, ConnectionError, RuntimeError)
    return any(isinstance(link, passing) for link in _chain(error)) and not isinstance(error, InputError)


def asked_pause(error: BaseException) -> float:
    """Seconds that the hub asks to wait for, 0 if it asks for none: `Retry-After`, in seconds or as a date, or the rest
    of the window in which there were too many requests (`RateLimit`)."""
    response = next((link.response for link in _chain(error) if isinstance(link, HfHubHTTPError)), None)
    if response is None:
        return 0.0
    asked = response.headers.get("Retry-After", "").strip()
    if asked.isdigit():
        return float(asked)
    window = parse_ratelimit_headers(response.headers)
    if not asked and window is not None and window.remaining == 0:
        return float(window.reset_in_seconds) + 1.0  # it is told in whole seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def describe(error: BaseException) -> str:
    """What has happened, on one line."""
    status = status_of(error)
    if status is not None:
        return f"it answered {status}"
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return f"it cannot be reached ({said})" if is_passing(error) else said
