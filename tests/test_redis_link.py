"""RedisLink against real servers: passwords, databases, Unix sockets, TLS, sentinels, slots that move, names nobody knows."""

from __future__ import annotations

import socket
import subprocess
import threading
import time

import pytest
from services import Proxy, RedisCluster, RedisServer, free_port, until

from retailinfer.store import redis_link
from retailinfer.store.redis_link import ErrorReply, LinkError, LinkTimeout, RedisLink, encode, key_slot


@pytest.fixture
def folder(tmp_path):
    """Makes folders for servers."""

    def make(name):
        (path := tmp_path / name).mkdir()
        return path

    return make


def ask(link, *words, timeout_s=5.0, key=None):
    """One command."""
    return link.request([(key, encode(*words))], timeout_s=timeout_s)[0]


def test_every_kind_of_reply(own_redis):
    """Statuses, integers, texts of any bytes and size, nothing, arrays in arrays, errors as values."""
    link = RedisLink(own_redis.url)
    big = bytes(range(256)) * 8_192
    assert ask(link, b"SET", b"big", big) == b"OK"
    assert ask(link, b"GET", b"big") == big
    assert ask(link, b"GET", b"none") is None
    assert ask(link, b"INCRBY", b"n", b"-9223372036854775808") == -(2**63)
    script = b"return {1, 'a', {'b', {}, false}, {err='MINE text'}}"
    assert ask(link, b"EVAL", script, b"0") == [1, b"a", [b"b", [], None], ErrorReply("MINE text")]
    assert ask(link, b"LPOP", b"big").code == "WRONGTYPE"
    many = [(b"k%d" % i, encode(b"SET", b"k%d" % i, b"v%d" % i)) for i in range(1_000)]
    assert link.request(many, timeout_s=5) == [b"OK"] * 1_000
    keys = [b"k%d" % i for i in range(1_000)]
    assert ask(link, b"MGET", *keys, b"none", b"big") == [*(b"v%d" % i for i in range(1_000)), None, big]
    assert link.connections == 1
    link.close()


def test_replies_come_in_any_pieces(own_redis):
    """An answer that arrives byte by byte is the same answer."""
    with Proxy(own_redis.port) as proxy:
        link = RedisLink(f"redis://127.0.0.1:{proxy.port}")
        ask(link, b"MSET", b"a", b"1\r\n2", b"b", b"")
        proxy.pieces = 1
        assert ask(link, b"MGET", b"a", b"none", b"b", b"a") == [b"1\r\n2", None, b"", b"1\r\n2"]
        assert ask(link, b"EVAL", b"return {{1,{'x'}},'y'}", b"0") == [[1, [b"x"]], b"y"]
        link.close()


def test_password_database_and_user(folder):
    """Password, user and database come out of the URL; a wrong password is a LinkError that does not show it."""
    server = Guarded(folder("auth"), options=["requirepass s3cret", "user ann on >h%:@ ~* +@all"])
    with server:
        link = RedisLink(f"redis://:s3cret@127.0.0.1:{server.port}/3")
        assert ask(link, b"SET", b"a", b"3") == b"OK"
        ann = RedisLink(f"redis://ann:h%25%3A%40@127.0.0.1:{server.port}/2")
        assert ask(ann, b"GET", b"a") is None
        assert ask(ann, b"ACL", b"WHOAMI") == b"ann"
        for url in (f"redis://:hunter2@127.0.0.1:{server.port}", f"redis://127.0.0.1:{server.port}"):
            wrong = RedisLink(url)
            with pytest.raises(LinkError) as caught:
                ask(wrong, b"GET", b"a")
            assert "hunter2" not in str(caught.value)
        link.close()
        ann.close()


class Guarded(RedisServer):
    """A server that answers PING with NOAUTH."""

    def _answers(self):
        try:
            return self.command("PING").startswith(b"-NOAUTH")
        except OSError:
            return False


def test_unix_socket(folder):
    """A Unix socket is reached by its path."""
    path = folder("unix")
    with RedisServer(path, options=[f"unixsocket {path}/s"]):
        link = RedisLink(f"unix://{path}/s?db=1")
        assert ask(link, b"PING") == b"PONG"
        link.close()


def test_tls_checks_the_certificate(own_redis, folder):
    """Over TLS the server's certificate must be signed by the given authority and name the host."""
    path = folder("tls")
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {path}/key.pem -out {path}/cert.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    made = subprocess.run([*command.split(), *name], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("platform: no openssl to make a certificate with")
    with TlsFront(own_redis.port, path / "cert.pem", path / "key.pem") as front:
        link = RedisLink(f"rediss://localhost:{front.port}?ca={path}/cert.pem")
        assert ask(link, b"SET", b"a", b"x" * 300_000) == b"OK"
        assert ask(link, b"GET", b"a") == b"x" * 300_000
        assert ask(link, b"PING") == b"PONG"
        assert link.connections == 1
        link.close()
        for url in (
            f"rediss://localhost:{front.port}",
            f"rediss://127.0.0.1:{front.port}?ca={path}/cert.pem",
        ):
            with pytest.raises(LinkError):
                ask(RedisLink(url), b"PING")


class TlsFront:
    """Takes TLS off in front of a server that speaks none."""

    def __init__(self, port, cert, key):
        import ssl

        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(cert, key)
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near):
        try:
            with (
                self.context.wrap_socket(near, server_side=True) as secure,
                socket.create_connection(("127.0.0.1", self.target)) as far,
            ):
                back = threading.Thread(target=self._relay, args=(far, secure), daemon=True)
                back.start()
                self._relay(secure, far)
                far.shutdown(socket.SHUT_RDWR)
                back.join(5)
        except OSError:
            near.close()

    @staticmethod
    def _relay(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_sentinels_name_the_new_master(folder):
    """After the master died and a replica was promoted, requests reach the replica, with one failure at most in between."""
    master = RedisServer(folder("master"), save=True).start()
    replica = RedisServer(folder("replica"), options=[f"replicaof 127.0.0.1 {master.port}"]).start()
    watch = ["down-after-milliseconds shop 300", "failover-timeout shop 2000", "parallel-syncs shop 1"]
    options = [f"sentinel monitor shop 127.0.0.1 {master.port} 1", *(f"sentinel {line}" for line in watch)]
    sentinel = RedisServer(folder("sentinel"), options=options, sentinel=True).start()
    try:
        # The first sentinel of the URL is not there: the second is asked.
        link = RedisLink(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/shop/0")
        assert ask(link, b"SET", b"a", b"1") == b"OK"
        until(lambda: replica.client().get("a") == b"1", what="the replica to have it")
        until(
            lambda: b"num-slaves\r\n$1\r\n1" in sentinel.command("SENTINEL", "master", "shop"),
            what="the sentinel",
        )
        master.kill()
        until(lambda: replica.command("ROLE").startswith(b"*3\r\n$6\r\nmaster"), what="the promotion")
        until(lambda: sentinel_says(sentinel) == replica.port, what="the sentinel to say so")
        answers = []
        for _ in range(3):
            try:
                answers.append(ask(link, b"GET", b"a"))
            except LinkError:
                answers.append(None)
        assert answers[1:] == [b"1", b"1"]
        assert ask(link, b"SET", b"a", b"2") == b"OK"
        link.close()
        with pytest.raises(LinkError):
            ask(RedisLink(f"redis+sentinel://127.0.0.1:{sentinel.port}/other"), b"PING")
    finally:
        for server in (sentinel, replica, master):
            server.stop()


def sentinel_says(sentinel):
    """Port of the master."""
    return int(sentinel.command("SENTINEL", "get-master-addr-by-name", "shop").split(b"\r\n")[4])


@pytest.mark.requires("redis")
def test_cluster_follows_moved_slots(tmp_path):
    """A slot that moved, or is just moving, is followed; a node that died is an error within the limit, not a hang."""
    with RedisCluster(tmp_path) as cluster:
        link = RedisLink(cluster.url)
        keys = [b"k%d" % i for i in range(50)]
        assert link.request([(k, encode(b"SET", k, b"v" + k)) for k in keys], timeout_s=5) == [b"OK"] * 50
        slot = key_slot(b"k7")
        clients = [node.client() for node in cluster.nodes]
        ids = [client.execute_command("CLUSTER", "MYID").decode() for client in clients]
        source = next(
            i for i, node in enumerate(cluster.nodes) if link._slots[slot] == ("127.0.0.1", node.port)
        )
        target = (source + 1) % 3
        clients[target].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        clients[source].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
        clients[source].execute_command("MIGRATE", "127.0.0.1", cluster.nodes[target].port, "k7", 0, 5000)
        gets = [(k, encode(b"GET", k)) for k in keys]
        assert link.request(gets, timeout_s=5) == [b"v" + k for k in keys]  # ASK
        for client in clients:
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
        assert link.request(gets, timeout_s=5) == [b"v" + k for k in keys]  # MOVED
        cluster.nodes[source].kill()
        start_s = time.monotonic()
        with pytest.raises(LinkError):
            link.request(gets, timeout_s=0.5)
        assert time.monotonic() - start_s < 1.0
        link.close()
        for client in clients:
            client.close()


def test_slot_of_a_key_is_that_of_its_tag():
    """The published examples of the cluster's specification."""
    assert key_slot(b"123456789") == 0x31C3
    assert key_slot(b"{user1000}.following") == key_slot(b"{user1000}.followers") == key_slot(b"user1000")
    assert key_slot(b"foo{}{bar}") != key_slot(b"bar")
    assert key_slot(b"foo{{bar}}zap") == key_slot(b"{bar")
    assert key_slot(b"foo{bar}{zap}") == key_slot(b"bar")


def test_name_that_nobody_answers_for_costs_no_more_than_the_limit(own_redis, monkeypatch):
    """A resolver that hangs is waited for within the limit, once; when it answers, the name is known."""
    go = threading.Event()
    asked = []

    def resolve(host, port, **_):
        asked.append(host)
        go.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(redis_link.socket, "getaddrinfo", resolve)
    link = RedisLink(f"redis://redis.example:{own_redis.port}")
    for _ in range(3):
        start_s = time.monotonic()
        with pytest.raises(LinkTimeout):
            ask(link, b"PING", timeout_s=0.02)
        assert time.monotonic() - start_s < 1.0
    go.set()
    assert ask(link, b"PING") == b"PONG"
    assert asked == ["redis.example"]
    link.close()


def test_black_hole_costs_no_more_than_the_limit():
    """A host that takes no connection ends the request at its limit."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        held = []
        try:
            for _ in range(8):  # fill the queue, so that the kernel drops what comes
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
                held.append(one)
            start_s = time.monotonic()
            with pytest.raises(LinkTimeout):
                ask(RedisLink(f"redis://127.0.0.1:{port}"), b"PING", timeout_s=0.1)
            assert time.monotonic() - start_s < 1.0
        finally:
            for one in held:
                one.close()


def test_link_is_not_copied():
    """Connections and a password do not go into a pickle."""
    import copy
    import pickle

    link = RedisLink("redis://:secret@localhost")
    for copier in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            copier(link)
