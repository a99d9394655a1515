#!/usr/bin/env python3
"""deploy/redis-acl: the users of agents, server and autoscaler may do what they need, and nothing else."""
import os, re, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from redis_fixture import *

ROOT = os.path.dirname(os.path.dirname(HERE))
P = "{softlaunch}"
PASSWORD = "CHANGE-ME"    # the files' own
GREETING = {"exists", "role"}    # every connection of ours asks these
CALLS = {"eval", "evalsha"}
AGENT = "claim renew append checkpoint release fail heartbeat".split()


def users():
    """name -> (commands, key patterns) of the files."""
    found = {}
    for f in ("agent", "server", "autoscaler"):
        for line in open(f"{ROOT}/deploy/redis-acl/{f}.acl"):
            if line.startswith("user "):
                words = line.split()
                found[f] = ({w[1:] for w in words if re.match(r"\+[a-z|]+$", w)}, {w for w in words if "~" in w}, line.strip())
    return found


def used(names):
    """What scripts call and which keys they name: their own text, and the functions of the heads that it reaches."""
    functions = {}
    for head in ("common", "line"):
        text = open(f"{ROOT}/queue/scripts/{head}.lua").read()
        for m in re.finditer(r"^local function (\w+)\([^\n]*?\) (.*?end)$|^local function (\w+)\(.*?^end$", text, re.S | re.M):
            functions[m.group(1) or m.group(3)] = m.group(0)
        functions.update(re.findall(r"^local ([A-Z]+) = (P \.\. '.*')$", text, re.M))    # a key's name
    text, seen, todo = "", set(), ["\n".join(open(f"{ROOT}/queue/scripts/{n}.lua").read() for n in names)]
    while todo:
        piece = "\n".join(line for line in todo.pop().splitlines() if not line.lstrip().startswith("--"))
        text += piece
        for name in functions:
            if name not in seen and re.search(rf"\b{name}\b" if name.isupper() else rf"\b{name}\(", piece):
                seen.add(name)
                todo.append(functions[name])
    commands = {c.lower() for c in re.findall(r"redis\.call\('(\w+)'", text)} | {c.lower() for c in re.findall(r"'(ZPOP\w+)'", text)}
    keys = {k + (":*" if more else "") for k, more in re.findall(r"(?:P|kind) \.\. ':(\w+)(:?)", text)}
    keys |= {k + ":*" for k in re.findall(r"':(\w+):'", text)}
    commands = {"xinfo|stream" if c == "xinfo" else c for c in commands}    # the one of its forms that we call
    return commands | {"time"}, keys


def script_names():
    names = {f[:-4] for f in os.listdir(ROOT + "/queue/scripts") if f.endswith(".lua")} - {"common", "line"}
    assert set(AGENT) < names
    return sorted(names - set(AGENT))


def plain(*files):
    """The commands that C code sends without a script."""
    text = "".join(open(f"{ROOT}/queue/{f}.c").read() for f in files)
    return {c.lower() for c in re.findall(r'sl_cmd_init\(&?c\);\s*sl_cmd_add\(&?c, "([A-Z]+)"', text)}


def needed():
    """file -> (commands, keys): what the scripts of each part call, and what the C code calls itself."""
    agent, keys = used(AGENT)
    server, _ = used(script_names())
    own = GREETING | CALLS
    servers_files = sorted(f[:-2] for f in os.listdir(ROOT + "/queue") if f.endswith(".c") and not f.startswith(("redis", "commands")))
    in_agent, in_server = plain("commands"), plain(*servers_files) | {"wait"}
    assert {"blpop", "lpush"} <= in_agent and {"xread", "hgetall"} <= in_server
    return {"agent": (agent | in_agent | own, {f"~{P}:{k}" for k in keys | {"bell:*", "ring:*"}} | {f"~{P}"}),
            "server": (server | in_server | own, {f"~{P}", f"~{P}:*"})}


def files_grant_what_is_called_and_no_more():
    """After a change of the scripts: `redis_acl.py write` brings the files up to date; read what it changed."""
    have = users()
    for name, (commands, keys) in needed().items():
        assert have[name][0] == commands, (name, "missing", commands - have[name][0], "too many", have[name][0] - commands)
        assert have[name][1] == keys, (name, "missing", keys - have[name][1], "too many", have[name][1] - keys)


def write():
    for name, (commands, keys) in needed().items():
        path = f"{ROOT}/deploy/redis-acl/{name}.acl"
        lines = [line for line in open(path) if line.startswith("#")]
        words = ["user", "softlaunch-" + name, "on", ">" + PASSWORD, "resetchannels", *sorted(keys), "-@all", *("+" + c for c in sorted(commands))]
        open(path, "w").write("".join(lines) + " ".join(words) + "\n")


def start():
    global servers, port
    servers = Servers()
    path = servers.dir + "/users.acl"
    open(path, "w").write("user admin on >admin ~* &* +@all\nuser default off\n" + "".join(u[2] + "\n" for u in users().values()))
    port = servers.start("redis", "--aclfile", path, ready=None).port
    wait(lambda: admin("ping") == "PONG", 10, "Redis answers")


def admin(*args):
    return cli(port, *args, more=["--no-auth-warning", "--user", "admin", "--pass", "admin"])


def as_user(user, *args):
    return cli(port, *args, more=["--no-auth-warning", "--user", f"softlaunch-{user}", "--pass", PASSWORD])


def url(user):
    return f"redis://softlaunch-{user}:{PASSWORD}@127.0.0.1:{port}"


def a_day_of_work_needs_nothing_more():
    w = Over(url("server"), agent_url=url("agent"))
    a = w.agent(more=["--queue", "default", "--queue", "other"])
    runs = {name: w.enqueue(name, **more) for name, more in (
        ("fake.20.20.ok", {}), ("fake.4.5.crash-once", {"retry": {"max_attempts": 2}}), ("fake.2.5.spec", {}),
        ("fake.3.5.ok.low", {"priority": "low", "queue": "other", "project": "b"}), ("fake.3.5.ok.never", {"queue": "nobody"}))}
    assert w.command("cancel", runs.pop("fake.3.5.ok.never")).returncode == 0
    wait(lambda: w.run(runs["fake.20.20.ok"])["state"] == "running", 20, "it runs")
    w.end(a)    # preempted
    b = w.agent("next", more=["--queue", "default", "--queue", "other"])
    states = {name: w.ended(run, 40)["state"] for name, run in runs.items()}
    assert states == {"fake.20.20.ok": "succeeded", "fake.4.5.crash-once": "succeeded", "fake.2.5.spec": "failed",
                      "fake.3.5.ok.low": "succeeded"}, states
    for path in ("/api/v1/runs", "/api/v1/agents", "/api/v1/queues", "/api/v1/projects"):
        assert w.api("GET", path)[0] in (200, 404)
    w.end(b)
    w.close()
    assert admin("acl", "log") == "", admin("acl", "log")
    found = doctor(url("agent"))["redis"]
    assert found["level"] == "warn" and "+info" in found["do"]
    admin("acl", "log", "reset")


def redis_itself_refuses_everything_else():
    """Every command that this Redis knows, tried dry."""
    names = admin("command", "list").split()
    arity = {i[0]: abs(i[1]) for i in json.loads(admin("--json", "command", "info", *names))
             if not any(m.startswith(i[0] + "|") for m in names)}
    assert len(arity) > 300
    for user, (granted, _, _) in users().items():
        tries = [f"acl dryrun softlaunch-{user} {name.replace('|', ' ')}" + " 1" * (n - len(name.split("|"))) for name, n in arity.items()]
        r = subprocess.run(["redis-cli", "-p", str(port), "--no-auth-warning", "--user", "admin", "--pass", "admin"],
                           input="\n".join(tries) + "\n", capture_output=True, text=True)
        replies = [line for line in r.stdout.splitlines() if line]
        assert len(replies) == len(arity), r.stdout[-500:]
        allowed = {name for name, reply in zip(arity, replies) if "has no permissions to run" not in reply}
        assert allowed - {"auth", "hello", "quit", "reset"} == granted, (user, allowed ^ granted)    # these are everybody's


def keys_of_others_are_out_of_reach():
    admin("set", "theirs", "1")
    admin("hset", P + ":outbox", "run", "[]")
    denied = [("agent", "exists theirs"), ("agent", f"lpush {P}:outbox x"), ("agent", "lpush theirs x"),
              ("server", "exists theirs"), ("server", "xread streams theirs 0"), ("autoscaler", f"zcard {P}:leases"),
              ("autoscaler", "type theirs"), ("autoscaler", f"zcard {P}:runs")]
    for user, command in denied:
        assert as_user(user, *command.split()).startswith("NOPERM"), (user, command, as_user(user, *command.split()))
    for user, script in (("agent", f"return redis.call('del', '{P}:outbox')"), ("agent", "return redis.call('get', 'theirs')"),
                         ("agent", f"return redis.call('hset', '{P}:outbox', 'run', 'forged')"),
                         ("agent", f"return redis.call('incr', '{P}:seq')"),
                         ("server", "return redis.call('get', 'theirs')"),
                         ("autoscaler", f"return redis.call('zrem', '{P}:ready:default:cpu', 'x')"),
                         ("autoscaler", f"return redis.call('zcard', '{P}:leases')")):
        reply = as_user(user, "eval", script, 0)
        assert "can't access" in reply or "can't run this command" in reply, (user, script, reply)
    assert admin("hget", P + ":outbox", "run") == "[]"
    admin("del", P + ":outbox")


# What KEDA's Redis scaler sends: kedacore/keda, pkg/scalers/redis_scaler.go, NewRedisScaler (v2.17: the same since v2.0). It
# pings first. A ready set without runs does not exist: its type is none, and KEDA asks for LLEN then.
KEDA = """
local listName = KEYS[1]
local listType = redis.call('type', listName).ok
local cmd = {zset = 'zcard', set = 'scard', list = 'llen', hash = 'hlen', none = 'llen'}
return redis.call(cmd[listType], listName)
"""


def keda_counts_the_ready_runs():
    ready = P + ":ready:default:cpu"
    assert as_user("autoscaler", "ping") == "PONG"
    admin("del", ready)
    assert as_user("autoscaler", "eval", KEDA, 1, ready) == "0"
    w = Over(url("server"), agent_url=url("agent"))
    a = w.agent()
    busy = w.enqueue("fake.400.50.ok")
    w.until(busy, lambda r: r["state"] == "running")
    for i in range(3):
        w.enqueue(f"fake.1.1.ok.{i}")
    assert as_user("autoscaler", "eval", KEDA, 1, ready) == "3"
    w.api("POST", f"/api/v1/runs/{busy}/cancel")
    wait(lambda: as_user("autoscaler", "eval", KEDA, 1, ready) == "0", 20, "nothing is ready any more")
    w.end(a)
    w.close()


if sys.argv[1:] == ["write"]:
    sys.exit(write())
start()
tap(None, [files_grant_what_is_called_and_no_more, a_day_of_work_needs_nothing_more, redis_itself_refuses_everything_else,
           keys_of_others_are_out_of_reach, keda_counts_the_ready_runs])
