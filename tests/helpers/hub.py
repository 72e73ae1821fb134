"""A hub in a box: what huggingface_hub asks of a hub, answered by this process; not a test itself.

It knows the list of a model's files (with and without a revision), their tree, and their contents
by HEAD and GET with ranges, as https://huggingface.co/docs/hub/api and the client describe them.
"""

import hashlib
import io
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from tests.helpers.limit import LIMIT

LARGE = (".safetensors", ".bin")  # what the hub keeps by its SHA-256
MISSING = (404, b"", {"X-Error-Code": "RevisionNotFound"})
NO_REPOSITORY = (404, b"", {"X-Error-Code": "RepoNotFound"})


class Hub(ThreadingHTTPServer):
    """A hub: the `repos` it has, each with its revisions, these with their commit and files
    (contents, or where they lie); files `asked` of it and from which byte on; `paths` that it was
    asked for; `trouble` it answers with, contents `sent` in place of a file's own, bytes after
    which it `cuts` a file off, once."""

    def __init__(self, repos: dict):
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos, self.asked, self.paths = repos, [], []
        self.trouble, self.sent, self.cuts = None, {}, {}
        self.is_cut, self.may_close = threading.Event(), threading.Event()
        self.may_close.set()
        self.digests = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def digest(self, name: str, content: bytes | Path) -> str:
        """The name of a file's content: as git has it, or its SHA-256 for a large file."""
        if (name, content) not in self.digests:
            begun = hashlib.sha256() if name.endswith(LARGE) else hashlib.sha1()
            if not name.endswith(LARGE):
                begun.update(b"blob %d\0" % size_of(content))
            with opened(content) as file:
                found = hashlib.file_digest(file, lambda: begun)
            self.digests[name, content] = found.hexdigest()
        return self.digests[name, content]


def size_of(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def opened(content: bytes | Path) -> BinaryIO:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


class Answers(BaseHTTPRequestHandler):
    """What a `Hub` answers about its models."""

    def do_GET(self):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.paths.append(path)
        if path.startswith("/api/models/"):
            self.about(*path.removeprefix("/api/models/").partition("/revision/"))
        elif "/resolve/" in path:
            repo_id, _, place = path[1:].partition("/resolve/")
            self.file(repo_id, *place.split("/", 1))
        else:  # the client has questions of its own
            self.send(404, b"")

    do_HEAD = do_GET

    def about(self, repo_id, _, revision):
        """The list of a model's files, or the tree that the client goes through."""
        hub, (repo_id, tree, commit) = self.server, repo_id.partition("/tree/")
        revision = commit or revision or "main"
        revisions = hub.repos.get(repo_id)
        if revisions is None or hub.trouble:
            return self.send(*hub.trouble or NO_REPOSITORY)
        named = dict(revisions.values())
        if revision not in revisions and revision not in named:
            return self.send(*MISSING)
        sha, files = revisions.get(revision) or (revision, named[revision])
        kind = self.entry if tree else self.sibling
        listed = [kind(name, content) for name, content in files.items()]
        answer = listed if tree else {"id": repo_id, "sha": sha, "siblings": listed}
        return self.send(200, json.dumps(answer).encode())

    def sibling(self, name, content):
        entry = self.entry(name, content)
        known = {"rfilename": name, "size": entry["size"], "blobId": entry["oid"]}
        large = entry.get("lfs")
        return known | ({"lfs": {**large, "sha256": large["oid"]}} if large else {})

    def entry(self, name, content):
        size = size_of(content)
        digest = self.server.digest(name, content)
        large = {"lfs": {"oid": digest, "size": size, "pointerSize": 1}}
        known = {"type": "file", "path": name, "size": size, "oid": digest}
        return known | (large if name.endswith(LARGE) else {})

    def file(self, repo_id, revision, name):
        hub, revisions = self.server, self.server.repos[repo_id]
        commit = revisions[revision][0] if revision in revisions else revision
        content = hub.sent.get(name) or dict(revisions.values())[commit].get(name)
        if content is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        tag = hub.digest(name, content)
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        return self.send(200, content, headers, name)

    def send(self, status, body, headers=None, name=None):
        begin, cut = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0]), None
        size = size_of(body)
        self.send_response(206 if begin else status)
        self.send_header("Content-Length", str(size - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        for header, value in (headers or {}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cuts.pop(name, None)
            self.server.asked += [(name, begin)] if name else []
            with opened(body) as file:
                file.seek(begin)
                if cut:
                    self.wfile.write(file.read(cut - begin))
                else:
                    shutil.copyfileobj(file, self.wfile, 1 << 20)
        if cut:
            self.server.is_cut.set()
            self.server.may_close.wait(LIMIT)

    def log_message(self, *_):
        pass


@contextmanager
def serving(repos: dict) -> Iterator[Hub]:
    """A hub of these models, which ends with the block."""
    server = Hub(repos)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.may_close.set()
        server.shutdown()
        server.server_close()
        thread.join()
