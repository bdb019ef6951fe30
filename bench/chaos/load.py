"""Those who hand in work, and those who watch. All of them repeat until they are heard."""

import json
import random
import threading
import time
import urllib.error
import urllib.request
import uuid
from http.client import HTTPException

DEFINITION = {
    "name": "chaos", "version": 1, "output": "${steps.join.output}",
    "input": {"name": "string", "end": "string"},
    "steps": [
        {"id": "first", "capability": "step", "input": "${input.name}/first"},
        {"id": "each", "needs": ["first"], "capability": "step", "for_each": "[0, 1, 2, 3]",
         "max_parallel": 3, "input": "${input.name}/each-${item}/fail1",
         "retry": {"max_attempts": 25, "backoff": "100ms", "max_backoff": "1s"},
         "compensate": {"capability": "step", "input": "${input.name}/undo-${item}"}},
        {"id": "join", "needs": ["each"], "capability": "step",
         "input": "${input.name}/join-${length(steps.each.output)}"},
        {"id": "go", "needs": ["first"], "wait": {"signal": "go"}},
        {"id": "last", "needs": ["join", "go"], "capability": "step", "input": "${input.name}/${input.end}"},
    ],
}
LIMIT = {"max_running": 3, "max_running_per_key": 2}
RETRY = {"max_attempts": 100, "backoff": "100ms", "max_backoff": "1s"}
KINDS = ["plain"] * 5 + ["slow", "fail1", "fail2", "dies"]


class Refused(Exception):
    """An answer that repeating cannot change."""


class Callers:
    def __init__(self, urls, seed, rate, ledger):
        self.urls, self.seed, self.rate, self.ledger = urls, seed, rate, ledger
        self.over = threading.Event()     # nothing new is handed in
        self.quiet = threading.Event()    # nor is anything watched
        self.tasks, self.workflows, self.violations = {}, {}, []
        self.seen, self.repeats, self.samples, self.statuses = {}, 0, 0, {}
        self.accepted, self.stale = [], 0
        self.lock = threading.Lock()
        self.threads = []

    def violation(self, what):
        with self.lock:
            self.violations.append(what)

    def once(self, method, path, body=None, url=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        url = url or random.choice(self.urls)
        request = urllib.request.Request(url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            with self.lock:
                self.statuses[error.code] = self.statuses.get(error.code, 0) + 1
            if error.code in (502, 503, 504, 408, 429):
                raise OSError(f"{error.code}") from error
            raise Refused(f"{method} {path}: {error.code} {error.read()[:300]!r}") from error

    def call(self, method, path, body=None, patience=180):
        until = time.monotonic() + patience
        while True:
            try:
                return self.once(method, path, body)
            except (OSError, ValueError, urllib.error.URLError, HTTPException) as error:
                if time.monotonic() > until:
                    raise Refused(f"{method} {path}: no answer within {patience} s: {error}") from error
                with self.lock:
                    self.repeats += 1
                time.sleep(0.1)

    def prepare(self):
        self.call("PUT", "/definitions/chaos", DEFINITION)
        self.call("PUT", "/limits/limited", LIMIT)
        tick = {"cron": "* * * * * *", "task": {"capability": "tick", "payload": "tick", "retry": RETRY}}
        self.call("PUT", "/schedules/every-second", tick)

    def start(self):
        for name, what in [("tasks", self._submit), ("limited", self._limited), ("workflows", self._flows),
                           ("late", self._late), ("watch", self._watch)]:
            chance = random.Random(f"{self.seed} {name}")
            thread = threading.Thread(target=self._guarded, args=(what, chance), daemon=True)
            thread.start()
            self.threads.append(thread)

    def _guarded(self, what, chance):
        try:
            what(chance)
        except Exception as error:  # noqa: BLE001 - whatever ends a caller is a finding
            self.violation(f"a caller ended: {what.__name__}: {error!r}")

    def _hand_in(self, tasks, chance):
        begun = time.time()
        again = chance.random() < 0.2
        for turn in range(2 if again else 1):
            answers = self.call("POST", "/tasks/batch", {"tasks": tasks})["tasks"]
            for task, answer in zip(tasks, answers, strict=True):
                key = task["idempotency_key"]
                known = self.tasks.setdefault(key, {"id": answer["id"], "task": task, "begun": begun})
                if known["id"] != answer["id"]:
                    self.violation(f"{key} was acknowledged as {known['id']} and as {answer['id']}")
                if turn and answer["created"]:
                    self.violation(f"{key} was made anew after it had been acknowledged")

    def _submit(self, chance):
        number = 0
        while not self.over.wait(chance.expovariate(self.rate / 3)):
            tasks = []
            for _ in range(chance.randint(1, 5)):
                name = f"t{number}/{chance.choice(KINDS)}"
                number += 1
                task = {"capability": "work", "payload": name, "idempotency_key": name, "retry": RETRY,
                        "priority": chance.randint(-3, 3), "tags": ["chaos"]}
                if chance.random() < 0.2:
                    task["delay"] = f"{chance.randint(100, 3000)}ms"
                tasks.append(task)
            self._hand_in(tasks, chance)

    def _limited(self, chance):
        number = 0
        while not self.over.wait(chance.expovariate(self.rate / 6)):
            name = f"l{number}/{chance.choice(['plain', 'slow', 'fail1'])}"
            number += 1
            self._hand_in([{"capability": "limited", "payload": name, "idempotency_key": name,
                            "retry": RETRY, "key": f"key-{chance.randrange(4)}"}], chance)

    def _flows(self, chance):
        number, waiting = 0, []
        while not self.over.wait(chance.expovariate(self.rate / 20)):
            name = f"w{number}"
            number += 1
            fails = chance.random() < 0.3
            start = {"name": "chaos", "idempotency_key": name,
                     "input": {"name": name, "end": "end/dies" if fails else "end/plain"}}
            for _ in range(2 if chance.random() < 0.2 else 1):
                answer = self.call("POST", "/workflows", start)["id"]
                known = self.workflows.setdefault(name, {"id": answer, "fails": fails})
                if known["id"] != answer:
                    self.violation(f"{name} was acknowledged as {known['id']} and as {answer}")
            waiting.append(known["id"])
            if chance.random() < 0.7:
                self._signal(waiting.pop(chance.randrange(len(waiting))))
        for id in waiting:
            self._signal(id)

    def _signal(self, id):
        self.call("POST", f"/workflows/{id}/signal", {"name": "go", "id": "once"})

    def _late(self, chance):
        """An agent whose words often come too late, and come twice: only those of one lease count."""
        me = {"instance": str(uuid.uuid4())}
        known = False
        while not self.over.is_set():
            if not known:
                self.call("POST", "/agents", {"id": "late-0", **me, "capabilities": ["work"], "capacity": 2})
            claim = {"agent": "late-0", **me, "capabilities": ["work"], "max": 2, "lease": "1s", "wait": "1s"}
            try:
                leases = self.call("POST", "/tasks/claim", claim)["leases"]
            except Refused as refused:
                if "unknown-agent" not in str(refused):
                    raise
                leases = []
            for lease in leases:
                self._work_late(lease, chance)
            beat = {"agents": [{"id": "late-0", **me}]}
            known = self.call("POST", "/agents/heartbeat", beat)["known"][0]

    def _note(self, act, lease):
        with open(self.ledger, "a", encoding="utf-8") as ledger:
            ledger.write(f"{act} {lease['payload']} {lease['task']} {lease['token']} {time.time_ns()}\n")

    def _work_late(self, lease, chance):
        what, held = lease["payload"], {"task": lease["task"], "token": lease["token"]}
        name, kind = "completions", what.split("/")[-1]
        word = {**held, "result": f"{what}:{lease['token']}"}
        self._note("begin", lease)
        if kind == "dies" or (kind.startswith("fail") and lease["attempt"] <= int(kind[4:])):
            name, word = "failures", {**held, "error": "it cannot be done", "retry": kind != "dies"}
        else:
            self._note("done", lease)
        self.over.wait(chance.choice([0, 0.3, 1.2, 2.5]))
        path = {"completions": "/tasks/complete", "failures": "/tasks/fail"}[name]
        if chance.random() < 0.3 and held["token"] > 1:
            early = {**word, "token": held["token"] - 1}
            outcome = self.call("POST", path, {name: [early]})["outcomes"][0]
            if name == "completions" and outcome == "accepted":
                self.violation(f"a result was accepted under the token before: {early}")
        first, second = (self.call("POST", path, {name: [word]})["outcomes"][0] for _ in range(2))
        if first != "accepted" and second == "accepted":
            self.violation(f"a word that was {first} was accepted later: {word}")
        if name == "completions" and first == "accepted":
            self.accepted.append(word)
            if second != "accepted":
                self.violation(f"a repeated result is {second}: {word}")
        self.stale += first == "stale"

    def _watch(self, chance):
        """Limits hold at every look, and what is over stays as it is."""
        while not self.quiet.wait(0.1):
            try:
                tasks = self.once("GET", "/tasks?state=running&capability=limited&limit=1000")["tasks"]
                known = list(self.tasks.values())[-200:]
                one = self.once("GET", f"/tasks/{chance.choice(known)['id']}") if known else None
            except (OSError, ValueError, HTTPException):
                continue
            self.samples += 1
            keys = [task["key"] for task in tasks]
            most = max(map(keys.count, keys), default=0)
            if len(keys) > LIMIT["max_running"] or most > LIMIT["max_running_per_key"]:
                held = [(task["key"], task["held_by"], task["lease_until"]) for task in tasks]
                self.violation(f"a limit is exceeded: {held}")
            if one and one["finished_at"]:
                self.seen.setdefault(one["id"], one)


