"""A fake of Google Cloud Storage, for whatever reads or writes gs:// in a process.

python tests/fake_gcs.py COMMAND ... runs a command that finds every bucket empty.

TensorFlow's addresses for gs:// are built in, so the fake stands in their way: an HTTPS
proxy that answers for them, out of memory. It has what TensorFlow, TensorStore,
Google's client and ArrayRecord's ask for, and a bucket's ways: no folders but those
that a name or an empty object pretends, no rename, objects that appear whole. It is
as slow as it is told, and knows no roles. All buckets are one.
"""

import base64
import collections
import contextlib
import http.server
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from urllib.parse import parse_qsl, unquote, urlsplit

import google_crc32c
import trustme

AUTHORITY = trustme.CA()
"""One a process: what libraries have once been told to trust, they keep."""
HOSTS = ("www.googleapis.com", "storage.googleapis.com")
MISSING = {"error": {"code": 404, "message": "not there"}}


class Bucket:
    """Objects by their names. faults: (part of a request's line, status) of requests
    that are still to fail, once each. traffic: requests, connections, and bytes up and
    down. checksums: of objects that it is wrong about. delay: seconds, of an answer."""

    def __init__(self):
        self.objects = {}
        self.traffic = collections.Counter()
        self.faults, self.checksums = collections.deque(), {}
        self.delay = 0.0
        self._generation, self._uploads, self._lock = 0, {}, threading.Lock()

    def put(self, name, data):
        """Stores bytes; returns what Google says of the object."""
        with self._lock:
            self._generation += 1
            self.objects[name] = (bytes(data), self._generation)
        return self.said(name)

    def said(self, name):
        """The resource of an object."""
        data, generation = self.objects[name]
        time = "2026-01-01T00:00:00.000Z"
        found = {"name": name, "bucket": "bucket", "metageneration": "1"}
        found |= {"size": str(len(data)), "generation": str(generation)}
        return found | {"updated": time, "timeCreated": time}

    def begin(self, name):
        """The number of a new upload in parts."""
        with self._lock:
            self._uploads[key := str(len(self._uploads))] = (name, bytearray())
        return key

    def add(self, key, data):
        """(name, all that was uploaded so far) with one part more."""
        name, so_far = self._uploads[key]
        so_far += data
        return name, so_far

    def names(self, prefix="", delimiter="", startOffset="", endOffset="", **_):
        """Names, and the folders that they pretend, in order; no more of those in a
        folder where names are cut at a delimiter."""
        found = set()
        for name in list(self.objects):
            in_range = name >= startOffset and (not endOffset or name < endOffset)
            if name.startswith(prefix) and in_range:
                folder, cut, _ = name[len(prefix) :].partition(delimiter or "\0")
                found.add(prefix + folder + cut)
        return sorted(found)

    def listing(self, query):
        """A page of `names`."""
        names = [n for n in self.names(**query) if n > query.get("pageToken", "")]
        page = names[: int(query.get("maxResults", 1000))]
        delimiter = query.get("delimiter") or "\0"
        inner = {n for n in page if n[len(query.get("prefix", "")) :].count(delimiter)}
        found = {"items": [self.said(name) for name in page if name not in inner]}
        found["prefixes"] = sorted(inner)
        return found | ({"nextPageToken": page[-1]} if len(page) < len(names) else {})


class Answers(http.server.BaseHTTPRequestHandler):
    """The proxy, and what it answers for the hosts that it stands for."""

    protocol_version = "HTTP/1.1"
    bucket: Bucket
    tls: ssl.SSLContext

    def setup(self):
        self.bucket.traffic.update(connections=1)
        super().setup()

    def log_message(self, *args):
        """Says nothing."""

    def do_CONNECT(self):
        self.reply(200)
        self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def reply(self, status, body=b"", **headers):
        """Ends a request."""
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        self.bucket.traffic["down"] += len(body)
        self.send_response(status)
        if self.command != "CONNECT":
            headers["Content-Length"] = len(body)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def received(self):
        """The body of a request."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self):
        """Any request but CONNECT."""
        data, parts = self.received(), urlsplit(self.path)
        self.bucket.traffic.update(requests=1, up=len(data))
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        time.sleep(self.bucket.delay)
        faults = self.bucket.faults
        if faults and faults[0][0] in f"{self.command} {unquote(self.path)}":
            return self.reply(faults.popleft()[1])
        if parts.path.startswith("/upload/"):
            return self.upload(query, data)
        api = re.fullmatch(
            r"(?:/download)?/storage/v1/b/[^/]+(?:/storageLayout|(/o(?:/(.*))?))?",
            parts.path,
        )
        if not api:  # as TensorFlow reads: /BUCKET/NAME
            return self.content(unquote(parts.path.split("/", 2)[2]))
        if not api.group(1):
            return self.reply(200, {"name": "bucket", "location": "US"})
        if not api.group(2):
            return self.reply(200, self.bucket.listing(query))
        name, copied, target = api.group(2).partition("/rewriteTo/b/bucket/o/")
        return self.about(unquote(name), unquote(target) if copied else None, query)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def about(self, name, target, query):
        """Reads, describes, copies or deletes an object."""
        if name not in self.bucket.objects:
            return self.reply(404, MISSING)
        if not self.as_expected(name, query):
            return self.reply(304 if self.command == "GET" else 412)
        if target is not None:
            made = self.bucket.put(target, self.bucket.objects[name][0])
            return self.reply(200, {"done": True, "resource": made})
        if self.command == "DELETE":
            self.bucket.objects.pop(name, None)
            return self.reply(204)
        if query.get("alt") == "media":
            return self.content(name)
        return self.reply(200, self.bucket.said(name))

    def as_expected(self, name, query):
        """Whether an object is of the generation, or none of it, that is asked for."""
        have = self.bucket.objects.get(name, (b"", 0))[1]
        same = int(query.get("ifGenerationMatch", have)) == have
        return same and int(query.get("ifGenerationNotMatch", -1)) != have

    def content(self, name):
        """An object's bytes, or those that are asked for."""
        if name not in self.bucket.objects:
            return self.reply(404, MISSING)
        data, generation = self.bucket.objects[name]
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            checksum = base64.b64encode(google_crc32c.value(data).to_bytes(4)).decode()
            known = {"x_goog_generation": generation}
            known["x_goog_hash"] = f"crc32c={self.bucket.checksums.get(name, checksum)}"
            return self.reply(200, data, **known)
        first, last = asked.groups()
        if not first:  # the last bytes
            first, last = max(len(data) - int(last), 0), ""
        first, last = int(first), int(last or len(data))
        part = data[first : last + 1]
        if not part:
            return self.reply(416, Content_Range=f"bytes */{len(data)}")
        span = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        return self.reply(206, part, Content_Range=span, x_goog_generation=generation)

    def upload(self, query, data):
        """An object at once, or in parts: TensorFlow's way."""
        name, key = query.get("name"), query.get("upload_id")
        if key is None and query["uploadType"] == "resumable":
            key = self.bucket.begin(name)
            where = f"https://{HOSTS[0]}/upload/?upload_id={key}"
            return self.reply(200, Location=where)
        if key is not None:
            name, data = self.bucket.add(key, data)
            asked = self.headers.get("Content-Range")  # none of an empty object
            if asked and not asked.endswith(f"/{len(data)}"):
                return self.reply(308, Range=f"bytes=0-{len(data) - 1}")
        if not self.as_expected(name, query):
            return self.reply(412)
        return self.reply(200, self.bucket.put(name, data))


class Server(http.server.ThreadingHTTPServer):
    """A thread a connection, and as many at once as come."""

    request_queue_size = 1024
    daemon_threads = True


@contextlib.contextmanager
def running(folder):
    """(Bucket, what the environment of a process that uses it has). folder: of a
    certificate that is made for the fake alone."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*HOSTS).configure_cert(tls)
    trusted = os.path.join(folder, "authority.pem")
    AUTHORITY.cert_pem.write_to_path(trusted)
    own = {"bucket": Bucket(), "tls": tls}
    answers = type("Answers", (Answers,), own)
    server = Server(("127.0.0.1", 0), answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = f"http://127.0.0.1:{server.server_port}"
    proxied = ("https_proxy", "HTTPS_PROXY")
    plain = ("STORAGE_EMULATOR_HOST", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
    environment = dict.fromkeys((*proxied, *plain), proxy)
    trust = ("CURL_CA_BUNDLE", "TENSORSTORE_CA_BUNDLE")
    environment |= dict.fromkeys(trust, trusted)
    environment |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1")
    environment |= {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "token", "NO_GCE_CHECK": "true"}
    try:
        yield own["bucket"], environment
    finally:
        server.shutdown()
        server.server_close()


def main(command):
    """Runs it; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder, running(folder) as (_, environment):
        return subprocess.run(command, env=os.environ | environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
