"""An endpoint of OpenAI's kind on this machine, with all its moods."""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def caption(number):
    return f"One hears sound {number} and rain."


class Server(ThreadingHTTPServer):
    """Answers every request as the list of its clip says, then with a caption.

    moods: number of the clip -> replies before that; each an HTTP status, a text that is
    the model's, bytes that are the reply's body, or what is called with the handler.
    """

    daemon_threads = True

    def __init__(self, moods):
        super().__init__(("127.0.0.1", 0), Handler)
        self.moods = {number: list(replies) for number, replies in moods.items()}
        self.requests, self.at_a_time, self.most = [], 0, 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def asked(self):
        """Requests by the clip that they are about."""
        return Counter(number_in(request["body"]) for request in self.requests)

    def handle_error(self, request, client_address):
        """Clients that went away are part of it."""


def number_in(body):
    """The number of the clip that a request is about."""
    return int(re.search(r"sound (\d+)", body["messages"][0]["content"])[1])


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server, number = self.server, number_in(body)
        with server.lock:
            server.requests.append(
                {"path": self.path, "body": body, "time": time.monotonic()}
                | {"key": self.headers.get("Authorization")}
            )
            moods = server.moods.get(number)
            mood = moods.pop(0) if moods else caption(number)
            server.at_a_time += 1
            server.most = max(server.most, server.at_a_time)
        try:
            self.reply(mood)
        finally:
            with server.lock:
                server.at_a_time -= 1

    def reply(self, mood):
        if callable(mood):
            mood = mood(self)
        status, headers = 200, {}
        if isinstance(mood, tuple):
            mood, headers = mood
        if isinstance(mood, int):
            status = mood
            mood = json.dumps({"error": {"message": f"that is a {mood}"}}).encode()
        if isinstance(mood, str):
            choice = {"message": {"content": mood}, "finish_reason": "stop"}
            mood = {"model": "tiny-2025", "choices": [choice]}
        if isinstance(mood, dict):
            mood = json.dumps(mood).encode()
        if isinstance(mood, bytes):
            self.send_response(status)
            for name, value in ({"Content-Length": len(mood)} | headers).items():
                self.send_header(name, str(value))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(mood)

    def log_message(self, *arguments):
        """Say nothing."""
