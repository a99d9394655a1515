"""The part of MLflow's tracking server that the mirror uses, in memory, as strict as MLflow 3 is about it. For tests of what
happens when it is away; tests/system/mlflow_mirror.py asks a real one the same questions with SL_MLFLOW=real."""
import http.server, json, re, threading, urllib.parse, uuid

KEY = re.compile(r"^[/\w.\- :]{1,250}$")


class Problem(Exception):
    def __init__(self, status, code, message):
        self.status, self.body = status, {"error_code": code, "message": message}


def need(ok, message):
    if not ok:
        raise Problem(400, "INVALID_PARAMETER_VALUE", message)


class Mlflow:
    def __init__(self, port=0, token=None):
        self.experiments, self.runs, self.files, self.token = {}, {}, {}, token
        self.calls, self.lock = [], threading.Lock()
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def serve(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    if fake.token and self.headers.get("Authorization") != "Bearer " + fake.token:
                        raise Problem(401, "UNAUTHENTICATED", "who are you")
                    with fake.lock:
                        status, reply = 200, fake.answer(self.command, self.path, body)
                except Problem as p:
                    status, reply = p.status, p.body
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            do_GET = do_POST = do_PUT = serve

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """A client that was killed in the middle of a call is what some tests are about."""

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.start()

    def start(self):
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    @staticmethod
    def shown(run):
        return {"info": run["info"], "data": {**run["data"], "metrics": []}}

    def run_of(self, body):
        if body.get("run_id") not in self.runs:
            raise Problem(404, "RESOURCE_DOES_NOT_EXIST", "no such run")
        return self.runs[body["run_id"]]

    def answer(self, method, path, body):
        url = urllib.parse.urlsplit(path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
        self.calls.append((method, url.path))
        if url.path.startswith("/api/2.0/mlflow-artifacts/artifacts/") and method == "PUT":
            self.files[urllib.parse.unquote(url.path.split("/artifacts/", 1)[1])] = body
            return {}
        need(url.path.startswith("/api/2.0/mlflow/"), "no such call")
        what = f"{method} {url.path[len('/api/2.0/mlflow/'):]}"
        body = json.loads(body) if body else query
        if what == "GET experiments/get-by-name":
            if body["experiment_name"] not in self.experiments:
                raise Problem(404, "RESOURCE_DOES_NOT_EXIST", "no such experiment")
            return {"experiment": {"experiment_id": self.experiments[body["experiment_name"]], "name": body["experiment_name"]}}
        if what == "POST experiments/create":
            if body["name"] in self.experiments:
                raise Problem(400, "RESOURCE_ALREADY_EXISTS", "there is one")
            self.experiments[body["name"]] = str(len(self.experiments) + 1)
            return {"experiment_id": self.experiments[body["name"]]}
        if what == "POST runs/search":
            tag, value = re.fullmatch(r"tags\.`([^`]+)` = '([^']+)'", body["filter"]).groups()
            return {"runs": [self.shown(r) for r in self.runs.values() if r["info"]["experiment_id"] in body["experiment_ids"]
                             and {"key": tag, "value": value} in r["data"]["tags"]][:body["max_results"]]}
        if what == "POST runs/create":
            need(body["experiment_id"] in self.experiments.values(), "no such experiment")
            for t in body["tags"]:
                need(KEY.match(t["key"]), t["key"])
            run = uuid.uuid4().hex
            self.runs[run] = {"info": {"run_id": run, "experiment_id": body["experiment_id"], "run_name": body["run_name"], "status": "RUNNING",
                                       "start_time": int(body["start_time"]), "artifact_uri": f"mlflow-artifacts:/{body['experiment_id']}/{run}/artifacts"},
                              "data": {"tags": list(body["tags"]), "params": [], "metrics": {}}}
            return {"run": self.shown(self.runs[run])}
        if what == "POST runs/log-batch":
            run = self.run_of(body)["data"]
            metrics, params, tags = body.get("metrics", []), body.get("params", []), body.get("tags", [])
            need(len(metrics) <= 1000 and len(params) <= 100 and len(tags) <= 100, "too many")
            for x in metrics + params + tags:
                need(KEY.match(x["key"]) and "value" in x, x)
            for m in metrics:
                need(isinstance(m["timestamp"], int) and isinstance(m["step"], int) and isinstance(m["value"], (int, float)), m)
                run["metrics"][(m["key"], m["step"], m["timestamp"], m["value"])] = m
            for p in params:
                need(len(p["value"]) <= 6000, p)
                old = [x for x in run["params"] if x["key"] == p["key"]]
                need(not old or old == [p], "parameters do not change")
                run["params"] += [] if old else [p]
            run["tags"] = [t for t in run["tags"] if t["key"] not in {x["key"] for x in tags}] + tags
            return {}
        if what == "POST runs/update":
            need(body["status"] in ("RUNNING", "FINISHED", "FAILED", "KILLED"), body)
            self.run_of(body)["info"].update(status=body["status"], end_time=int(body["end_time"]))
            return {}
        if what == "GET metrics/get-history":
            return {"metrics": [m for m in self.run_of(body)["data"]["metrics"].values() if m["key"] == body["metric_key"]]}
        raise Problem(404, "ENDPOINT_NOT_FOUND", what)
