"""Captions by an endpoint: a real server on this machine, with all its moods."""

import functools
import json
import threading
import time
from email.utils import formatdate

import pytest

from data.caption import endpoint as endpoint_lib
from data.caption.answers import Answer
from data.caption.clips import Clip
from data.caption.endpoint import Endpoint, EndpointError
from tests.data.caption.server import Server, caption, number_in

CLIPS = [Clip(f"{n}.wav", (f"sound {n}", "rain")) for n in range(12)]


def captions(server, clips=CLIPS, **options):
    options = {"model": "tiny", "patience_seconds": 5.0, "concurrency": 4} | options
    return list(Endpoint(server.url, **options).answers(clips))


def good(number, *broken):
    return Answer(caption(number), broken, "tiny-2025")


def test_what_is_asked_and_answered(serve):
    together = threading.Barrier(4)

    def wait(handler, number):
        together.wait(30)  # for three more requests
        return caption(number)

    server = serve({n: [functools.partial(wait, number=n)] for n in range(4)})
    options = {"key": "secret", "seed": 5, "body": {"top_p": 0.5, "max_tokens": None}}
    assert captions(server, **options) == [good(n) for n in range(12)]
    assert len(server.requests) == 12 and server.most == 4
    for request in server.requests:
        number = number_in(request["body"])
        assert request["path"] == "/v1/chat/completions"
        assert request["key"] == "Bearer secret"
        prompt = endpoint_lib.PROMPT.replace("{}", f"sound {number}; rain")
        assert request["body"] == {
            "model": "tiny",
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.0,
            "seed": 5,
            "top_p": 0.5,
        }


def test_origin_says_all_but_the_key(serve):
    server = serve()
    writer = Endpoint(f"{server.url}/chat/completions", "tiny", key="secret")
    origin = writer.origin()
    assert origin["kind"] == "endpoint" and origin["model"] == "tiny"
    assert origin["url"] == f"{server.url}/chat/completions"
    assert "secret" not in json.dumps(origin)
    assert list(writer.answers(CLIPS[:1])) == [good(0)]
    assert list(writer.answers(CLIPS[1:2])) == [good(1)]  # and again
    assert server.requests[0]["key"] == "Bearer secret"


def test_a_busy_or_failing_endpoint_is_asked_again(serve):
    def hang_up(handler):
        handler.close_connection = True

    def too_short(handler):
        return b'{"choices"', {"Content-Length": 500}

    server = serve({0: [500, 503, 429], 1: [hang_up], 2: [too_short], 4: [408]})
    assert captions(server) == [good(n) for n in range(12)]
    asked = server.asked()
    assert [asked[n] for n in range(6)] == [4, 2, 2, 1, 2, 1]


def test_an_endpoint_that_does_not_answer_is_asked_again(serve):
    over = threading.Event()

    def wait(handler):
        over.wait(30)

    server = serve({0: [wait]})
    try:
        assert captions(server, CLIPS[:3], timeout_seconds=1.0)[0] == good(0)
    finally:
        over.set()
    assert server.asked()[0] > 1


@pytest.mark.parametrize("as_date", [False, True])
def test_it_waits_as_long_as_it_is_told(serve, as_date):
    def later(handler):
        value = formatdate(time.time() + 2, usegmt=True) if as_date else "0.4"
        handler.send_response(429)
        handler.send_header("Retry-After", value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server = serve({0: [later]})
    assert captions(server, CLIPS[:1]) == [good(0)]
    first, second = (request["time"] for request in server.requests)
    assert second - first >= (0.9 if as_date else 0.4)


def test_broken_answers_are_asked_for_again(serve):
    long = {"message": {"content": "A dog"}, "finish_reason": "length"}
    filtered = {"message": {"content": None}, "finish_reason": "content_filter"}
    prompt = endpoint_lib.PROMPT.replace("{}", "sound 5; rain").replace("\n", " ")
    moods = {
        0: [b"<html>no JSON</html>"],
        1: [{"choices": []}, {"choices": [{"message": {}}]}],
        2: ["", "I'm sorry, I can't."],
        3: ["so " * 60, "sound 3, rain", "One.\nTwo."],
        4: [{"choices": [long]}, {"choices": [filtered]}],
        5: [f"Here it is: {prompt}"],
    }
    server = serve(moods)
    answers = captions(server)
    assert answers[0] == good(0, "no JSON of a chat completion")
    assert answers[1] == good(1, *["no JSON of a chat completion"] * 2)
    assert answers[2] == good(2, "empty", "refuses")
    assert answers[3] == Answer("", ("too long", "repeats the prompt", "several lines"))
    assert answers[4] == good(4, "cut off", "refused")
    assert answers[5] == good(5, "repeats the prompt")
    assert answers[6:] == [good(n) for n in range(6, 12)]
    # Another try is another draw.
    tries = [r["body"] for r in server.requests if number_in(r["body"]) == 3]
    drawn = [(body["temperature"], body["seed"]) for body in tries]
    assert drawn == [(0.0, 0), (1.0, 1), (1.0, 2)]


def test_requests_that_are_refused(serve):
    """A content filter says 400 about some clips, wrong settings about all."""
    server = serve({0: [400], 1: [422], 5: [400]})
    answers = captions(server)
    assert [answers[n] for n in (0, 1, 5)] == [Answer("", ("refused",))] * 3
    assert answers[2] == good(2) and len(answers) == 12
    server = serve({n: [400] for n in range(12)})
    with pytest.raises(
        EndpointError, match="refuses every request: 400 .*that is a 400"
    ):
        captions(server)
    server = serve({0: [400]})
    with pytest.raises(EndpointError, match="check --model"):
        captions(server, CLIPS[:1])


def redirect(handler):
    handler.send_response(307)
    handler.send_header("Location", "http://127.0.0.1:9/")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.mark.parametrize(
    "mood, message",
    [
        (401, "401 Unauthorized: that is a 401 .*--key-variable names"),
        (403, "403 Forbidden"),
        (404, "404 Not Found: that is a 404 .check --url"),
        (redirect, "307 Temporary Redirect"),  # the key is for nobody else
    ],
)
def test_what_no_patience_mends_ends_it(serve, mood, message):
    server = serve({4: [mood]})
    found = []
    with pytest.raises(EndpointError, match=message):
        found.extend(Endpoint(server.url, "tiny", concurrency=1).answers(CLIPS))
    assert len(server.requests) < 12


def test_answers_before_an_outage_are_kept(serve):
    server = serve({4: [500] * 100})
    found = []
    writer = Endpoint(server.url, "tiny", patience_seconds=0.2, concurrency=2)
    with pytest.raises(
        EndpointError, match="did not answer for 0.2 s .*: 500 Internal"
    ):
        found.extend(writer.answers(CLIPS))
    assert found == [good(n) for n in range(4)]


def test_nobody_there():
    with Server({}) as gone:
        url = gone.url
    writer = Endpoint(url, "tiny", patience_seconds=0.0)
    with pytest.raises(EndpointError, match="did not answer for 0 s .*refused"):
        list(writer.answers(CLIPS))


def test_no_more_requests_than_are_allowed(serve):
    server, begin = serve(), time.monotonic()
    captions(server, CLIPS[:6], requests_per_minute=600)
    times = sorted(request["time"] - begin for request in server.requests)
    assert all(seconds >= 0.1 * number for number, seconds in enumerate(times))


@pytest.mark.parametrize(
    "url, message",
    [
        ("localhost:8000/v1", "expected one such as http://localhost:8000/v1"),
        ("ftp://host/v1", "expected one such as"),
        ("http://me:secret@host/v1", "give the key by the variable"),
        ("http://host/v1?key=secret", "give the key by the variable"),
    ],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises(EndpointError, match=message):
        Endpoint(url, "tiny")
