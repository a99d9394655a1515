#!/usr/bin/env python3
"""Redis behind TLS and passwords: the right certificates serve, each wrong one is refused with its reason, and no message
shows a password."""
import sys, os
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from redis_fixture import *

servers = Servers()
ours, others = Certificates(servers.dir + "/ours"), Certificates(servers.dir + "/others")
PASSWORD = "p@ss w/ord:1"
QUOTED = "p%40ss%20w%2Ford%3A1"


def tls_server(name, cert_key, *more):
    port = free_port()
    p = servers.start(name, "--tls-port", port, "--tls-cert-file", cert_key[0], "--tls-key-file", cert_key[1],
                      "--tls-ca-cert-file", ours.ca, *more)
    p.tls = port
    return p


good = tls_server("good", ours.make("server"), "--tls-auth-clients", "no")


def refused(url, *words):
    found = doctor(url)["redis"]
    assert found["level"] == "error" and found["do"], found
    for word in words:
        assert word in found["found"], (word, found)
    in_time(found["seconds"], 7)
    return found["found"]


def the_right_certificate_serves():
    for url in (f"rediss://127.0.0.1:{good.tls}?cacert={ours.ca}", f"rediss://localhost:{good.tls}/?cacert={ours.ca}&sni=redis.test"):
        assert doctor(url)["redis"]["level"] == "ok"


def wrong_ones_are_refused_with_the_reason():
    at = f"127.0.0.1 port {good.tls}"
    refused(f"rediss://127.0.0.1:{good.tls}?cacert={others.ca}", at, "certificate is refused")
    refused(f"rediss://127.0.0.1:{good.tls}", at, "certificate is refused")    # the system knows no authority of ours
    refused(f"rediss://localhost:{good.tls}?cacert={ours.ca}", "ostname mismatch")
    refused(f"rediss://127.0.0.1:{good.tls}?cacert={ours.ca}&sni=other.test", "ostname mismatch")
    refused(f"rediss://127.0.0.1:{good.tls}?cacert={ours.ca}&sni=127.0.0.2", "IP address mismatch")
    old = tls_server("old", ours.make("old", start="20200101000000Z", end="20200102000000Z"), "--tls-auth-clients", "no")
    refused(f"rediss://127.0.0.1:{old.tls}?cacert={ours.ca}", "certificate has expired")
    refused(f"rediss://127.0.0.1:{good.tls}?cacert=/nowhere.pem", "/nowhere.pem")


def client_certificates():
    strict = tls_server("strict", ours.make("strict"), "--tls-auth-clients", "yes")
    mine, foreign = ours.make("agent"), others.make("foreign")
    url = f"rediss://127.0.0.1:{strict.tls}?cacert={ours.ca}"
    assert doctor(f"{url}&cert={mine[0]}&key={mine[1]}")["redis"]["level"] == "ok"
    refused(url, "cert")
    refused(f"{url}&cert={foreign[0]}&key={foreign[1]}", "TLS")
    refused(f"{url}&cert={mine[0]}&key={foreign[1]}", foreign[1], "mismatch")
    refused(f"{url}&cert=/nowhere.pem&key={mine[1]}", "/nowhere.pem")


def a_port_that_speaks_otherwise():
    refused(f"rediss://127.0.0.1:{good.port}?cacert={ours.ca}", "TLS")
    refused(f"redis://127.0.0.1:{good.tls}", f"port {good.tls}")


def runs_go_through_tls():
    cli(good.port, "flushall")
    w = Over(f"rediss://127.0.0.1:{good.tls}?cacert={ours.ca}")
    a = w.agent()
    run = w.enqueue("fake.40.5.spam")    # many log lines: more than a TLS record at a time
    assert w.ended(run)["state"] == "succeeded"
    links = cli(good.tls, "client", "list", more=["--tls", "--cacert", ours.ca]).splitlines()
    assert len(links) >= 4 and cli(good.port, "client", "list").count("\n") < len(links) + 1
    w.end(a)
    w.close()


def a_renewed_certificate_is_taken_at_the_next_connection():
    rolling = servers.dir + "/rolling.pem"
    shutil.copy(others.ca, rolling)
    url = f"rediss://127.0.0.1:{good.tls}?cacert={rolling}"
    world = Over(f"redis://127.0.0.1:{good.port}", agent_url=url)
    a = world.agent()
    wait(lambda: "certificate is refused" in open(a.log).read(), 10, "the agent says why it is not connected")
    shutil.copy(ours.ca, rolling)
    wait(lambda: "connected to Redis" in open(a.log).read(), 10, "the agent connects with the new file")
    assert world.ended(world.enqueue("fake.2.5.ok"))["state"] == "succeeded"
    world.end(a)
    world.close()


def passwords_and_users():
    locked = servers.start("locked", "--requirepass", PASSWORD, ready=None)
    at = f"127.0.0.1:{locked.port}"
    wait(lambda: "NOAUTH" in cli(locked.port, "ping"), 10, "Redis answers")
    cli(locked.port, "acl", "setuser", "me", "on", ">" + PASSWORD, "~*", "+@all", more=["--no-auth-warning", "-a", PASSWORD])
    assert doctor(f"redis://:{QUOTED}@{at}")["redis"]["level"] == "ok"
    assert doctor(f"redis://me:{QUOTED}@{at}")["redis"]["level"] == "ok"
    for url in (f"redis://me:wrong-{QUOTED}@{at}", f"redis://nobody:{QUOTED}@{at}", f"redis://me@{at}x:{QUOTED}@{at}"):
        assert PASSWORD not in refused(url) and QUOTED not in refused(url)
    refused(f"redis://{at}", "NOAUTH")


def an_error_that_quotes_the_command_shows_no_password():
    """A server without AUTH answers with the words that it did not understand."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            c = listener.accept()[0]
            c.recv(4096)
            c.sendall(b"-ERR unknown command 'AUTH', with args beginning with: 'me' '" + PASSWORD.encode() + b"'\r\n")

    threading.Thread(target=serve, daemon=True).start()
    found = refused(f"redis://me:{QUOTED}@127.0.0.1:{listener.getsockname()[1]}", "user name and password")
    assert PASSWORD not in found


tap(None, [the_right_certificate_serves, wrong_ones_are_refused_with_the_reason, client_certificates, a_port_that_speaks_otherwise,
           runs_go_through_tls, a_renewed_certificate_is_taken_at_the_next_connection, passwords_and_users,
           an_error_that_quotes_the_command_shows_no_password])
