"""A teacher that misbehaves, as a real HTTP server on loopback, and tasks to ask it; its scripts say what each task's n-th request gets."""

import json
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
from PIL import Image

from vital_jax.construct.tasks import Task

KEY = "sk-secret-0123456789abcdef"
LEAK = "The red overlay covers the liver."
STEP = "A large, evenly grey structure lies in the left part of the image."


def png(number: int = 0, size: tuple[int, int] = (40, 48), mask: bool = False) -> bytes:
    """An image of height x width, or a mask of its middle."""
    pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
    if mask:
        pixels = np.zeros(size, np.uint8)
        pixels[10:20, 12:30] = 255
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_task(number: int = 0, **changes) -> Task:
    """A question with one step about an organ; the number stands in the question, by which the server knows it again."""
    facts = dict(
        id=f"set/{number}/yesno",
        image=png(number // 2),
        mask=png(mask=True),
        question=f"Is the liver visible in this CT image number {number}?",
        question_type="yesno",
        ask="presence",
        target="liver",
        target_type="organ",
        modality="CT",
        site="abdomen",
        options=(),
        steps=(1, 1),
        source="set",
        licence="CC BY 4.0",
        public=True,
    )
    return Task(**(facts | changes))


def words(answer: str = "Yes, the liver is visible in this CT image.", *chain: str) -> str:
    """A reply's text."""
    return json.dumps({"final_answer": answer, "reasoning_chain": list(chain or (STEP,))})


def completion(text: str | None, finish: str = "stop", **message) -> dict:
    """The body of a chat completion."""
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }


class Classroom:
    """What the server was asked and what it says.

    Attributes:
      script: (task's number, how often it was asked, the request's body) -> (status, headers, body as JSON or text) or a reply's text;
        a number alone is seconds of silence, a list as body comes drop by drop over two seconds.
      asked: requests per task's number, whatever came of them. clean: those that got a clean reply. most: requests at once.
      batches, files: of the batch interface.
    """

    def __init__(self, script: Callable):
        self.script, self.asked, self.clean, self.bodies = script, Counter(), Counter(), defaultdict(list)
        self.headers, self.files, self.batches, self.lock, self.delay = [], {}, {}, threading.Lock(), 0.0
        self.most, self._now = 0, 0

    def chat(self, body: dict) -> tuple[int, dict, object]:
        text = body["messages"][1]["content"][0]["text"]
        number = int(re.search(r"image number (\d+)\?", text).group(1))
        with self.lock:
            self.asked[number] += 1
            turn = self.asked[number]
            self.bodies[number].append(body)
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self.delay)
        said = self.script(number, turn, body)
        if isinstance(said, float):
            time.sleep(said)
            said = words()
        with self.lock:
            self._now -= 1
            if said == words():
                self.clean[number] += 1
        return (200, {}, completion(said)) if isinstance(said, str) else said

    def other(self, method: str, path: str, raw: bytes) -> tuple[int, dict, object]:
        """Files and batches, as far as they are used."""
        if method == "POST" and path == "/v1/files":
            content = raw.split(b"\r\n\r\n")[-1].rsplit(b"\r\n--", 1)[0]
            for part in raw.split(b"\r\n--"):
                if b'name="file"' in part:
                    content = part.split(b"\r\n\r\n", 1)[1]
            name = f"file-{len(self.files)}"
            self.files[name] = content
            return 200, {}, {"id": name, "object": "file", "bytes": len(content), "purpose": "batch", "filename": "x"}
        if method == "POST" and path == "/v1/batches":
            row = json.loads(raw) | {"id": f"batch-{len(self.batches)}", "object": "batch", "status": "in_progress"}
            self.batches[row["id"]] = row
            return 200, {}, row
        if method == "GET" and path.startswith("/v1/batches"):
            name = path.split("?")[0].removeprefix("/v1/batches").strip("/")
            listed = {"object": "list", "data": list(self.batches.values()), "has_more": False}
            return 200, {}, self.batches[name] if name else listed
        if method == "GET" and path.endswith("/content"):
            return 200, {}, self.files[path.split("/")[-2]].decode()
        return 404, {}, {}

    def finish(self) -> None:
        """Answers all batches: one result a request, but for those that the script gives no text."""
        for row in self.batches.values():
            lines = []
            for line in self.files[row["input_file_id"]].decode().strip().split("\n"):
                request = json.loads(line)
                status, _, body = self.chat(request["body"])
                if body is not None:
                    answer = {"status_code": status, "body": body}
                    lines.append(json.dumps({"id": "r", "custom_id": request["custom_id"], "response": answer}))
            name = f"file-{len(self.files)}"
            self.files[name] = "\n".join(lines).encode()
            row.update(status="completed", output_file_id=name, error_file_id=None)


@contextmanager
def open_classroom(script: Callable):
    """Serves on a free port of 127.0.0.1; gives (classroom, base URL)."""
    room = Classroom(script)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, method: str) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            room.headers.append({key.lower(): value for key, value in self.headers.items()})
            if self.path == "/v1/chat/completions":
                status, headers, body = room.chat(json.loads(raw))
            else:
                status, headers, body = room.other(method, self.path, raw)
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            try:
                self.send_response(status)
                for key, value in ({"Content-Type": "application/json"} | headers).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data) + 40 * isinstance(body, list)))
                self.end_headers()
                for drop in [data] if not isinstance(body, list) else [b" "] * 40 + [data]:
                    self.wfile.write(drop)
                    time.sleep(0.05 * isinstance(body, list))
            except OSError:  # the student was killed or lost patience
                pass

        def do_POST(self):
            self._answer("POST")

        def do_GET(self):
            self._answer("GET")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield room, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
