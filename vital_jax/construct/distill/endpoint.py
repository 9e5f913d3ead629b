"""Any OpenAI-compatible endpoint: one request at a time made to succeed, or to fail with a code.

The address and the key come from the environment and stay in this object; whatever is kept or printed of a reply has gone through `clean`.
A refused form of output (400, 422) is tried in the next looser form and remembered, as servers differ in what they take. Overload (429,
5xx), timeouts and broken connections are tried again, after as long as the server asks; a 429 holds up all other requests as well. What
would refuse every request (a wrong key, an unknown model, used-up credit) ends the run.
"""

import asyncio
import email.utils
import ipaddress
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from vital_jax.construct.distill.prompts import MODES, OURS
from vital_jax.construct.distill.replies import TRIES, Prices, Reply, read_completion

PUBLIC_API = "https://api.openai.com/v1"
BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds before the first transport retry, doubled up to the second
LONGEST_WAIT = 600.0  # seconds that a server may ask for
SECRET = 8  # letters; what is shorter ("EMPTY", "none") is no key but a placeholder
_AGAIN = (408, 409, 425, 429)
_FORM = (400, 415, 422, 501)  # how servers say that they do not know a form of output
_FILTERED = (
    "content_filter",
    "content filter",
    "content_policy",
    "moderation",
)  # a refusal of this one image or question
_ENDS = {
    401: "refuses the key",
    402: "asks for payment",
    403: "does not permit this",
    404: "has no such model, or the address lacks its /v1",
}


class Refused(RuntimeError):
    """The endpoint would refuse every request; one line that says why and the way out."""


@dataclass(frozen=True)
class Settings:
    """How a teacher is asked; neither address nor key, which come from the environment.

    Attributes:
      model: its name at the endpoint.
      concurrency: requests under way at once. per_minute: requests started per minute at most, 0 for any number.
      timeout: seconds for one request. transport_retries: after timeouts, 429 and 5xx. tries: replies per task.
      allow_upload: images not known as public may leave the machine.
      again: ask also what another model or other prompts have answered. limit: tasks at most, evenly spaced over all, 0 for all.
      extra: further fields of every request. prices: of tokens. prompts: a prompt folder, empty for the built-in one.
    """

    model: str
    concurrency: int = 8
    per_minute: float = 0
    timeout: float = 180
    transport_retries: int = 6
    tries: int = TRIES
    allow_upload: bool = False
    again: bool = False
    limit: int = 0
    extra: Mapping = field(default_factory=dict)
    prices: Prices = field(default_factory=Prices)
    prompts: str = ""


@dataclass(frozen=True)
class Address:
    """Where the teacher is, and the key for it, which is kept out of `repr`."""

    url: str = field(repr=False)
    key: str = field(repr=False)

    @property
    def host(self) -> str:
        """The only part of the address that is ever shown."""
        return urlsplit(self.url).hostname or ""

    def clean(self, text: str) -> str:
        """The text without the key, should a server have sent it back."""
        return text.replace(self.key, "***") if len(self.key) >= SECRET else text

    @property
    def loopback(self) -> bool:
        """Whether what is sent stays on this machine."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def open(self) -> bool:
        """Whether what is sent travels unencrypted."""
        return urlsplit(self.url).scheme == "http" and not self.loopback


def address(needs_key: bool = True) -> Address:
    """From VITAL_TEACHER_BASE_URL and VITAL_TEACHER_API_KEY, else OPENAI_BASE_URL and OPENAI_API_KEY.

    OPENAI_API_KEY is not sent to VITAL_TEACHER_BASE_URL: it would hand the key of one service to another.

    Args:
      needs_key: false where nobody is asked yet.

    Raises:
      ValueError: the address is none, or there is no key; a teacher on this machine needs none.
    """
    own = os.environ.get("VITAL_TEACHER_BASE_URL", "")
    url = own or os.environ.get("OPENAI_BASE_URL", "") or PUBLIC_API
    key = os.environ.get("VITAL_TEACHER_API_KEY", "") or ("" if own else os.environ.get("OPENAI_API_KEY", ""))
    found = Address(url, key.strip())
    if urlsplit(url).scheme not in ("http", "https") or not found.host:
        name = "VITAL_TEACHER_BASE_URL" if own else "OPENAI_BASE_URL"
        raise ValueError(f"{name} is not an address of the form https://host/v1")
    if needs_key and not found.key and not found.loopback:
        names = "VITAL_TEACHER_API_KEY" if own else "VITAL_TEACHER_API_KEY or OPENAI_API_KEY"
        raise ValueError(f"no key for {found.host}: set {names} in the environment")
    return found


def library():
    """The `openai` package. Raises: ValueError where it is not installed."""
    try:
        import openai
    except ImportError as error:
        raise ValueError("an endpoint teacher needs the package openai: pip install 'vital_jax[data]'") from error
    return openai


class Endpoint:
    """Asks; an asynchronous context manager that closes its connections.

    Args:
      settings: how.
      where: from `address`.
    """

    def __init__(self, settings: Settings, where: Address):
        self._openai, self._settings, self._where = library(), settings, where
        # On this machine no proxy of the environment is wanted: it would carry images elsewhere.
        client = self._openai.DefaultAsyncHttpxClient(trust_env=not where.loopback)
        self._client = self._openai.AsyncOpenAI(
            api_key=where.key or "none", base_url=where.url, max_retries=0, timeout=settings.timeout, http_client=client
        )
        self.mode = MODES[0]
        self._free, self._until = 0.0, 0.0  # when the next request may start; until when all wait

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_) -> None:
        await self._client.close()

    async def ask(self, make: Callable[[str], dict]) -> tuple[Reply, dict]:
        """One request.

        Args:
          make: gives the request's body for a form of output (`prompts.MODES`).

        Returns:
          The reply, or the error where none came, and the body that was sent.

        Raises:
          Refused: no request has a chance.
        """
        refused = None
        for mode in MODES[MODES.index(self.mode) :]:
            body = make(mode)
            reply, status = await self._send(body)
            if status not in _FORM:
                if not reply.error:
                    self.mode = max(self.mode, mode, key=MODES.index)
                return reply, body
            refused = refused or (reply, body)
        return refused  # in every form: then it is not the form that is refused

    async def _send(self, body: dict) -> tuple[Reply, int]:
        """A request with its transport retries; the reply or error, and the status (0 where there was none)."""
        openai, tries = self._openai, self._settings.transport_retries + 1
        named = {key: value for key, value in body.items() if key in OURS}
        rest = {key: value for key, value in body.items() if key not in OURS}
        for turn in range(1, tries + 1):
            await self._turn()
            started, asked, status = time.monotonic(), None, 0
            try:
                async with asyncio.timeout(self._settings.timeout):
                    raw = await self._client.chat.completions.with_raw_response.create(**named, extra_body=rest)
                found = json.loads(raw.http_response.content)
                return self._cleaned(read_completion(found, round(time.monotonic() - started, 3))), 200
            except openai.APIStatusError as error:
                status, code = error.status_code, f"http-{error.status_code}"
                text, asked = _said(error), _wait(error.response.headers)
                if status in (400, 403) and any(word in text.lower() for word in _FILTERED):
                    return Reply(finish="content_filter"), 200
                self._end(error)
                if status in _FORM or (status not in _AGAIN and status < 500):
                    return self._cleaned(Reply(text, error=code)), status
            except (TimeoutError, openai.APITimeoutError):
                code, text = "timeout", f"no reply within {self._settings.timeout:g} s"
            except openai.APIConnectionError as error:
                code, text = "connection", f"no connection to {self._where.host} ({type(error.__cause__).__name__})"
            except (ValueError, openai.APIError) as error:
                code, text = "no-completion", f"the body is no chat completion ({type(error).__name__})"
            if turn < tries:
                backoff = min(LONGEST_BACKOFF, BACKOFF * 2 ** (turn - 1)) * random.uniform(0.8, 1.2)
                wait = backoff if asked is None else asked
                if status == 429:
                    self._until = max(self._until, time.monotonic() + wait)
                await asyncio.sleep(wait)
        return self._cleaned(Reply(text, error=code)), status

    def _end(self, error) -> None:
        """Ends the run where the status speaks of all requests. The server's words are left out: they may hold part of the key."""
        why = _ENDS.get(error.status_code)
        if error.status_code == 429 and error.code == "insufficient_quota":
            why = "says that the credit is used up"
        if why:
            raise Refused(
                f"{self._where.host} {why} (HTTP {error.status_code}, model {self._settings.model!r})"
            ) from None

    def _cleaned(self, reply: Reply) -> Reply:
        return Reply(**(vars(reply) | {"text": self._where.clean(reply.text)}))

    async def _turn(self) -> None:
        """Waits for a place in the minute's budget, and while a server asks for patience."""
        now = time.monotonic()
        start = max(now, self._free)
        if self._settings.per_minute:
            self._free = start + 60 / self._settings.per_minute
        await asyncio.sleep(start - now)
        while (left := self._until - time.monotonic()) > 0:
            await asyncio.sleep(left)


def _said(error) -> str:
    """The server's words about an error."""
    body = error.body if isinstance(error.body, Mapping) else {}
    return f"{body.get('code') or ''} {body.get('message') or error.message}".strip()[:300]


def _wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (Retry-After as seconds or as a date), at most `LONGEST_WAIT`."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(headers[name]) / unit
        except KeyError:
            continue
        except ValueError:
            date = email.utils.parsedate_tz(headers[name])
            seconds = email.utils.mktime_tz(date) - time.time() if date else None
        if seconds is not None and seconds == seconds:
            return min(max(seconds, 0.0), LONGEST_WAIT)
    return None
