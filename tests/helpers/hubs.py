"""A stand-in of the Hugging Face Hub on this machine: repositories in memory, commits of small files, downloads."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_of_the_tests"


class Hub:
    """Commits by repository, and every request that came."""

    def __init__(self):
        self.commits, self.private, self.requests, self.messages = {}, {}, [], []

    def commit(self, repo, files):
        """Add a commit of files over those before, and return its hash."""
        before = dict(self.commits[repo][-1][1]) if self.commits[repo] else {}
        oid = hashlib.sha1(repr((repo, len(self.commits[repo]))).encode()).hexdigest()
        self.commits[repo].append((oid, {**before, **files}))
        return oid

    def files(self, repo, revision):
        """Return the hash and files of a revision, or None."""
        known = self.commits.get(repo) or []
        return next((one for one in known[::-1] if revision in ("main", one[0])), None)


def _handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, body=b"", **headers):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            path, sent = urlsplit(self.path).path, self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.requests.append(("POST", path))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid username or password."})
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if path == "/api/repos/create":
                asked = json.loads(sent)
                repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
                there = repo in hub.commits
                hub.commits.setdefault(repo, [])
                hub.private.setdefault(repo, asked.get("private", asked.get("visibility") == "private"))
                return self.answer(
                    409 if there else 200, {"url": f"http://{self.headers['Host']}/{repo}", "name": repo}
                )
            repo, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
            if action == "preupload":
                names = [file["path"] for file in json.loads(sent)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                return self.answer(200, {"files": modes})
            lines = [json.loads(line) for line in sent.splitlines()]
            hub.messages += [line["value"]["summary"] for line in lines if line["key"] == "header"]
            values = [line["value"] for line in lines if line["key"] == "file"]
            oid = hub.commit(repo, {one["path"]: base64.b64decode(one["content"]) for one in values})
            address = f"http://{self.headers['Host']}/{repo}/commit/{oid}"
            return self.answer(200, {"commitUrl": address, "commitOid": oid})

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            if about := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
                return self.answer(200, {"id": about[1], "private": hub.private[about[1]], "siblings": []})
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            repo, revision, name = found.groups() if found else (path, "", "")
            if repo not in hub.commits:
                return self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            if not (commit := hub.files(repo, revision)):
                return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
            if name not in commit[1]:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            content = commit[1][name]
            facts = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X_Repo_Commit": commit[0]}
            if isinstance(content, _Large):
                facts["X_Linked_Size"] = content.says
            return self.answer(200, bytes(content), **facts)

        do_HEAD = do_GET

    return Handler


class _Large(bytes):
    says = 5 << 30


def large():
    """Return a file that the hub says is of 5 GiB."""
    return _Large(b"not so much")


@contextmanager
def running(monkeypatch, folder):
    """Run a hub, and lead huggingface_hub to it, with its cache and no token in a folder."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
