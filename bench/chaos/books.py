"""What must be true once everything is drained."""

import time



def drain(callers, fleet, patience):
    """Waits until nothing is left to do; what is then left is stuck."""
    until = time.monotonic() + patience
    while True:
        for process in fleet.all:
            process.keep()
        pending = callers.call("GET", "/tasks/pending")
        open_flows = [flow for state in ("running", "waiting", "compensating")
                      for flow in callers.call("GET", f"/workflows?state={state}&limit=1000")["workflows"]]
        left = pending["scheduled"] + pending["ready"] + pending["running"]
        if not left and not open_flows:
            return
        if time.monotonic() > until:
            for flow in open_flows:
                callers.violation(f"workflow {flow['id']} is stuck: {flow['state']}")
            for state in ("scheduled", "ready", "running"):
                for task in callers.call("GET", f"/tasks?state={state}&limit=20")["tasks"]:
                    callers.violation(f"a task is stuck: {task}")
            return
        time.sleep(0.25)


def all_tasks(callers, capability):
    found, after = [], ""
    while True:
        page = callers.call("GET", f"/tasks?capability={capability}&limit=500{after}")["tasks"]
        found += page
        if len(page) < 500:
            return found
        after = f"&after={page[-1]['id']}"


def read_ledger(path):
    """What was begun and what was done, by task and token."""
    begun, done = {}, {}
    for line in path.read_text().splitlines():
        act, what, task, token, nanos = line.split()
        into = begun if act == "begin" else done
        into.setdefault(task, {})[int(token)] = (what, int(nanos) / 1e9)
    return begun, done


def check(callers, fleet):
    """Notes the violations and answers the figures."""
    wrong = callers.violation
    begun, done = read_ledger(fleet.ledger)
    tasks = {name: all_tasks(callers, name) for name in ("work", "limited", "tick", "step")}
    by_id = {task["id"]: task for several in tasks.values() for task in several}
    if len(by_id) != sum(map(len, tasks.values())):
        wrong("a task is there twice under one id")
    for task in by_id.values():
        over(task, begun, done, wrong)
    for task in set(begun) - set(by_id):
        wrong(f"task {task} was worked on and is not there")
    for id, before in callers.seen.items():
        if by_id.get(id) != before:
            wrong(f"a task that was over has changed: {before} is now {by_id.get(id)}")
    for word in callers.accepted:
        task = by_id.get(word["task"], {})
        if (task.get("token"), task.get("result")) != (word["token"], word["result"]):
            wrong(f"a result that was accepted is not the one that is there: {word}, {task}")
    submitted(callers, tasks, begun, wrong)
    times = [task["idempotency_key"] for task in tasks["tick"]]
    for key in {key for key in times if times.count(key) > 1}:
        wrong(f"a time of the schedule was handed in twice: {key}")
    flows(callers, tasks["step"], wrong)
    tries = sum(map(len, begun.values()))
    return {"tasks acknowledged": len(callers.tasks), "workflows acknowledged": len(callers.workflows),
            "times of the schedule": len(times), "steps": len(tasks["step"]),
            "tasks in all": len(by_id), "tries": tries, "completed": sum(
                task["state"] == "completed" for task in by_id.values()),
            "done more than once": sum(len(several) > 1 for several in done.values()),
            "late words: accepted": len(callers.accepted), "late words: stale": callers.stale,
            "looks at limits": callers.samples, "repeated requests": callers.repeats,
            "answers with an error": callers.statuses}


def over(task, begun, done, wrong):
    """A task is over, with the one result of the one try that was accepted."""
    what, id = task["payload"], task["id"]
    if what.endswith("/dies"):
        if task["state"] != "dead" or not begun.get(id) or "cannot be done" not in (task["error"] or ""):
            wrong(f"{what} should be dead: {task}")
        return
    if task["state"] != "completed":
        wrong(f"{what} should be completed: {task}")
        return
    token = task["token"]
    if task["result"] != f"{what}:{token}":
        wrong(f"{what} has the result of another try or task: {task}")
    if done.get(id, {}).get(token, ("",))[0] != what:
        wrong(f"{what} is completed under token {token}, under which it was not done: {done.get(id)}")
    if max(begun.get(id, {0: 0})) > token:
        wrong(f"{what} was begun again after it had been completed under {token}: {sorted(begun[id])}")


def submitted(callers, tasks, begun, wrong):
    found = {}
    for task in tasks["work"] + tasks["limited"]:
        if found.setdefault(task["idempotency_key"], task) is not task:
            wrong(f"{task['idempotency_key']} is there twice: {task['id']}")
    for key, known in callers.tasks.items():
        task = found.get(key)
        if not task or task["id"] != known["id"]:
            wrong(f"{key} was acknowledged as {known['id']} and is lost")
            continue
        delay = float(known["task"].get("delay", "0ms")[:-2]) / 1e3
        first = min((at for _, at in begun.get(known["id"], {}).values()), default=None)
        if delay and first and first < known["begun"] + delay:
            wrong(f"{key} was to wait {delay} s and waited {first - known['begun']:.3f} s")
    for key in set(found) - set(callers.tasks):
        wrong(f"{key} is there, but nobody had it acknowledged")


def flows(callers, steps, wrong):
    made = {}
    for task in steps:
        made.setdefault(task["payload"], []).append(task["id"])
    for what, several in made.items():
        if len(several) > 1:
            wrong(f"the step {what} was handed in {len(several)} times: {several}")
    expected = set()
    for name, known in callers.workflows.items():
        flow = callers.call("GET", f"/workflows/{known['id']}")
        each = {f"{name}/each-{item}/fail1" for item in range(4)}
        expected |= each | {f"{name}/first", f"{name}/join-4"}
        expected |= {f"{name}/end/dies" if known["fails"] else f"{name}/end/plain"}
        if known["fails"]:
            expected |= {f"{name}/undo-{item}" for item in range(4)}
        wanted = "failed" if known["fails"] else "completed"
        if flow["state"] != wanted:
            wrong(f"workflow {name} {known['id']} should be {wanted} and is {flow['state']}: {flow.get('error')}")
        states = {step["step"]: step["state"] for step in flow["steps"]}
        right = {"first": "completed", "each": "compensated" if known["fails"] else "completed",
                 "join": "completed", "go": "completed", "last": "failed" if known["fails"] else "completed"}
        if states != right:
            wrong(f"the steps of workflow {name} {known['id']} are {states}")
        if not known["fails"] and not str(flow["output"]).startswith(f"{name}/join-4:"):
            wrong(f"workflow {name} gives {flow['output']}")
    if set(made) != expected:
        wrong(f"steps that should not be: {sorted(set(made) - expected)[:10]}; "
              f"that are missing: {sorted(expected - set(made))[:10]}")
