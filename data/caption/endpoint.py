"""Captions by a model behind an endpoint of OpenAI's kind: POST <url>/chat/completions."""

import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from absl import logging

from data.caption.answers import Answer, clean, problem
from data.caption.clips import Clip

PROMPT = (
    "These sounds are heard in a short audio recording: {}.\n"
    "Describe what is heard in one plain English sentence of at most 20 words. Name no "
    "sound that is not listed, and nothing that can only be seen. Answer with the "
    "sentence alone."
)
"""The {} stands for the labels."""

JOIN = "; "
"""Between labels: some, as AudioSet's "Male speech, man speaking", have commas."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0

REFUSED_AT_FIRST = 10
"""So many requests that are refused before any is answered are the settings' fault."""

# Statuses that mean: later, perhaps.
_LATER = {408, 409, 425, 429}
# Statuses that are about the request's content.
_REFUSED = {400, 422}


class EndpointError(RuntimeError):
    """An endpoint that cannot be used; one sentence that says what to do."""


class _Result(NamedTuple):
    answer: Answer
    refusal: str  # what the endpoint said, where it answered nothing else


class Endpoint:
    """A chat model, asked once for each clip.

    url: up to and with /v1. model: as the endpoint calls it. key: sent as a bearer
        token, "" for none.
    prompt: its {} stands for the labels, joined by semicolons. body: fields of the request
        besides, such as {"top_p": 0.9}; null takes one of ours out.
    temperature, seed, max_tokens: of the model; an endpoint may give another answer all
        the same.
    concurrency: requests at a time. requests_per_minute: at most; 0 = no limit.
    timeout_seconds: of one request. patience_seconds: how long, pauses added up, one
        that finds the endpoint busy or failing is repeated.
    tries: answers that are asked for, before there is none. max_words: longer ones are
        broken.

    Raises EndpointError for an address that is none.
    """

    group = 1

    def __init__(
        self,
        url: str,
        model: str,
        key: str = "",
        prompt: str = PROMPT,
        body: Mapping[str, Any] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = 100,
        concurrency: int = 8,
        requests_per_minute: float = 0.0,
        timeout_seconds: float = 60.0,
        patience_seconds: float = 300.0,
        tries: int = 3,
        max_words: int = 50,
    ):
        self._url = _address(url)
        self._key, self._body = key, dict(body or {})
        self._concurrency = concurrency
        self._timeout_seconds = timeout_seconds
        self._patience_seconds = patience_seconds
        self._tries, self._seed = tries, seed
        self._settings = {
            "prompt": prompt,
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_tokens,
            "body": self._body,
            "tries": tries,
            "max_words": max_words,
        }
        self._model = model
        self._turn = _Turns(requests_per_minute)
        self._stop = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirects)

    def origin(self) -> dict[str, Any]:
        """The model, where it is, and what it was asked. Not the key."""
        return {
            "kind": "endpoint",
            "model": self._model,
            "version": "",
            "url": self._url,
            "settings": self._settings,
        }

    def answers(self, clips: Iterable[Clip]) -> Iterator[Answer]:
        """An answer for every clip, in order. Raises EndpointError.

        An answer that comes after one that is still awaited waits for it.
        """
        waiting: deque = deque()
        held: list[_Result] = []
        answered = False
        self._stop = threading.Event()
        with ThreadPoolExecutor(self._concurrency, "ask") as pool:
            try:
                for result in self._results(pool, clips, waiting):
                    held.append(result)
                    answered |= not result.refusal
                    if answered:
                        yield from (result.answer for result in held)
                        held.clear()
                    elif len(held) == REFUSED_AT_FIRST:
                        break
            finally:
                self._stop.set()
                for future in waiting:
                    future.cancel()
        if held:
            raise EndpointError(
                f"{self._url} refuses every request: {held[0].refusal}: check --model, "
                "or change the request's fields by --body"
            )

    def _results(
        self, pool: ThreadPoolExecutor, clips: Iterable[Clip], waiting: deque
    ) -> Iterator[_Result]:
        for clip in clips:
            waiting.append(pool.submit(self._caption, clip))
            if len(waiting) >= 2 * self._concurrency:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _caption(self, clip: Clip) -> _Result:
        prompt = self._settings["prompt"].replace("{}", JOIN.join(clip.names))
        broken: list[str] = []
        refusal = version = ""
        for attempt in range(self._tries):
            reply = self._ask(prompt, attempt)
            if isinstance(reply, str):
                refusal = reply
                broken.append("refused")
                break  # it would be refused again
            text, version, found = _content(reply)
            text = clean(text)
            found = found or problem(
                text, prompt, clip.names, self._settings["max_words"]
            )
            if not found:
                return _Result(Answer(text, tuple(broken), version), "")
            broken.append(found)
        return _Result(Answer("", tuple(broken)), refusal if len(broken) == 1 else "")

    def _ask(self, prompt: str, attempt: int) -> bytes | str:
        """The body of a reply, or, as text, why the request was refused.

        Repeats the request while the endpoint is busy or fails.
        """
        settings = self._settings
        fields = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            # Another try with the same settings may well give the same.
            "temperature": settings["temperature"] if not attempt else 1.0,
            "seed": self._seed + attempt,
            "max_tokens": settings["max_tokens"],
        } | self._body
        fields = {key: value for key, value in fields.items() if value is not None}
        content = json.dumps(fields).encode()
        left, pause = self._patience_seconds, FIRST_PAUSE_SECONDS
        while True:
            self._turn.wait(self._stop)
            try:
                return self._post(content)
            except urllib.error.HTTPError as error:
                with error:
                    said = _said(error)
                    if error.code in _REFUSED:
                        return said
                    if error.code not in _LATER and error.code < 500:
                        raise EndpointError(
                            f"{self._url}: {said}{_hint(error)}"
                        ) from None
                    wanted = _retry_after(error.headers.get("Retry-After", ""))
            except (OSError, http.client.HTTPException) as error:
                said, wanted = _reason(error), 0.0
            seconds = max(wanted, pause * random.uniform(0.75, 1.25))
            if seconds > left:
                raise EndpointError(
                    f"{self._url} did not answer for {self._patience_seconds:g} s "
                    f"(--patience-seconds): {said}"
                )
            logging.log_every_n_seconds(
                logging.WARNING, "%s: %s: asked again soon", 10, self._url, said
            )
            if self._stop.wait(seconds):
                raise EndpointError("stopped")
            left -= seconds
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _post(self, content: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, content, headers, method="POST")
        with self._opener.open(request, timeout=self._timeout_seconds) as reply:
            return reply.read()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key is for the one who was named."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


class _Turns:
    """Requests no faster than so many a minute, evenly; 0 = no limit."""

    def __init__(self, per_minute: float):
        self._gap_seconds = 60 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Wait for a turn, or until `stop`, which is an EndpointError."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._gap_seconds
        if stop.wait(turn - now):
            raise EndpointError("stopped")


def _address(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise EndpointError(
            f"the url is {url!r}, expected one such as http://localhost:8000/v1"
        )
    if parts.username or parts.query:
        raise EndpointError(
            "the url holds a name, password or query, which captions would show: give "
            "the key by the variable that --key-variable names"
        )
    end = "/chat/completions"
    return url.rstrip("/").removesuffix(end) + end


def _content(reply: bytes) -> tuple[str, str, str]:
    """(text, model, what is wrong) of a reply."""
    try:
        fields = json.loads(reply)
        (choice, *_) = fields["choices"]
        text = choice["message"]["content"] or ""
        reason = choice.get("finish_reason")
        version = str(fields.get("model") or "")
        if not isinstance(text, str):
            raise TypeError(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", "", "no JSON of a chat completion"
    wrong = {"length": "cut off", "content_filter": "refused"}.get(reason, "")
    return text, version, wrong


def _said(error: urllib.error.HTTPError) -> str:
    """The status and what the endpoint said to it, in one line."""
    text = ""
    try:
        text = error.read(2000).decode(errors="replace")
        text = json.loads(text)["error"]["message"]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        pass  # then as it is
    return f"{error.code} {error.reason}: {' '.join(str(text).split()):.200}"


def _hint(error: urllib.error.HTTPError) -> str:
    return {
        401: " (the key comes from the variable that --key-variable names)",
        403: " (the key comes from the variable that --key-variable names)",
        404: " (check --url, which ends in /v1 as a rule, and --model)",
    }.get(error.code, "")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(error).__name__}: {reason}"


def _retry_after(value: str) -> float:
    """Seconds that a header asks to wait: a number, or a date."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
        return max(0.0, when.timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
