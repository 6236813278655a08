"""The Prometheus configuration, its alert rules, and the Grafana dashboard."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import urllib.parse

from .peers import daemon, echo, get
from .tools import HERE, REQUIRE, TARGET, Skip, inside, need, need_root, process, release, run, unpacked, wait_for

RULES = HERE / "prometheus/echod.rules.yml"
TESTS = HERE / "prometheus/echod.rules.test.yml"
DASHBOARD = HERE / "grafana/echod.json"
SERVER = ("127.0.0.1", 9090)
METRICS = ("127.0.0.1", 9007)
# npm packages that hold Grafana's schema of a dashboard, and a program that checks data against it.
SCHEMA = ("@grafana/schema@13.2.3", "typescript@5.9.3")


def check_alerts():
    """Every alert rule is tested with promtool, in both directions."""
    promtool = unpacked("prometheus", "usr/bin/promtool")
    run(promtool, "check", "config", HERE / "prometheus/prometheus.yml")
    run(promtool, "test", "rules", TESTS)
    rules = RULES.read_text()
    alerts = re.findall(r"- alert: (\w+)\n +expr: (.*)\n", rules)
    assert len(alerts) == rules.count("alert:") > 5, alerts
    # A rule that never or always fires, or that fires at once, fails its test.
    mutants = [(alert, expression, mutant) for alert, expression in alerts for mutant in ("vector(1) > 1", "vector(1)")]
    delays = re.findall(r"- alert: (\w+)\n.*\n +(for: .*\n)", rules)
    mutants += [(alert, delay, "for: 0s\n") for alert, delay in delays]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(TESTS, folder)
        for alert, original, mutant in mutants:
            start = rules.index(f"alert: {alert}\n")
            changed = rules[:start] + rules[start:].replace(original, mutant, 1)
            pathlib.Path(folder, RULES.name).write_text(changed)
            test = subprocess.run([promtool, "test", "rules", f"{folder}/{TESTS.name}"], capture_output=True)
            assert test.returncode != 0, f"the tests pass although {alert} is {mutant.strip()}"
    return f"{len(alerts)} alerts, {len(mutants)} mutants fail"


def check_prometheus():
    """Prometheus scrapes echod, evaluates the alert rules and the dashboard's queries, and notices when echod stops."""
    need_root()
    need("unshare", "ip")
    release()
    programs = [unpacked("prometheus", f"usr/bin/{name}") for name in ("prometheus", "promtool")]
    return inside(inside_prometheus, *programs)


def api(path, **parameters):
    status, text = get(SERVER, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
    assert status == 200, f"{path} {parameters}: {text}"
    return json.loads(text)["data"]


def queries_of_the_dashboard():
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in (("$__rate_interval", "10s"), ("$job", "echod"), ("$instance", ".*")):
                expression = expression.replace(variable, value)
            yield f"{panel['title']}: {expression}", expression


def inside_prometheus(prometheus, promtool):
    with tempfile.TemporaryDirectory() as folder:
        configuration = pathlib.Path(folder, "prometheus.yml")
        shipped = (HERE / "prometheus/prometheus.yml").read_text()
        configuration.write_text(shipped.replace("interval: 15s", "interval: 1s"))
        shutil.copy(RULES, folder)
        log = pathlib.Path(folder, "log")
        options = [f"--config.file={configuration}", f"--storage.tsdb.path={folder}/data"]
        options += ["--web.listen-address=127.0.0.1:9090"]
        with (
            daemon("--listen=127.0.0.1:9999", "--metrics=127.0.0.1:9007") as server,
            log.open("w") as output,
            process(prometheus, *options, stdout=output, stderr=output),
        ):
            healths = lambda: [target["health"] for target in api("targets")["activeTargets"]]
            wait_for("a scrape", lambda: healths() == ["up"], 30)
            for size in (1, 100, 100_000):
                echo(("127.0.0.1", 9999), bytes(size))

            # The endpoint follows Prometheus' conventions, with HELP and TYPE for every series.
            page = get(METRICS, "/metrics")[1]
            lint = subprocess.run([promtool, "check", "metrics"], input=page, text=True, capture_output=True)
            assert lint.returncode == 0 and not lint.stderr, lint.stderr

            queries = dict(queries_of_the_dashboard())
            for name, query in queries.items():
                wait_for(f"an answer to {name}", lambda: api("query", query=query)["result"])
            # A selector without a series makes an alert that never fires.
            selectors = set(re.findall(r'[a-z_]+\{job="echod".*?\}', RULES.read_text()))
            assert len(selectors) > 5, selectors
            for selector in selectors:
                wait_for(f"the series {selector}", lambda: api("query", query=selector)["result"])
            rules = lambda: api("rules")["groups"][0]["rules"]
            wait_for("the alert rules", lambda: all(rule["health"] == "ok" for rule in rules()))
            firing = [rule["name"] for rule in rules() if rule["state"] != "inactive"]
            assert not firing, firing

            server.terminate()
            server.wait(15)
            wait_for("the scrape to fail", lambda: healths() == ["down"])
            state = lambda name: next(rule["state"] for rule in rules() if rule["name"] == name)
            wait_for("EchodDown", lambda: state("EchodDown") == "pending")
            problems = [line for line in log.read_text().splitlines() if re.search("level=(warn|error)", line)]
            assert not problems, problems
    return f"{len(queries)} queries of the dashboard and {len(selectors)} selectors of the alerts have series"


def check_grafana():
    """The dashboard matches Grafana's schema."""
    need("node")
    tools = TARGET / "packaging/node"
    if not (tools / "node_modules/typescript").exists():
        if not REQUIRE:
            raise Skip(f"not installed: npm install --prefix {tools} {' '.join(SCHEMA)}")
        need("npm")
        tools.mkdir(parents=True, exist_ok=True)
        run("npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", tools, *SCHEMA)
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    types = "@grafana/schema/dist/types/raw"
    # The schema has enums where JSON has their values.
    source = f"""
import type {{ Dashboard }} from '{types}/dashboard/x/types.gen';
import type * as stat from '{types}/composable/stat/panelcfg/x/types.gen';
import type * as timeseries from '{types}/composable/timeseries/panelcfg/x/types.gen';
type Json<T> =
    T extends string ? `${{T}}`
    : T extends number ? (number extends T ? T : `${{T}}` extends `${{infer N extends number}}` ? N : never)
    : T extends (infer U)[] ? Json<U>[]
    : T extends object ? {{ [K in keyof T]: Json<T[K]> }}
    : T;
export const dashboard: Json<Dashboard> = {json.dumps(dashboard)};
"""
    for panel in panels:
        name = f"{panel['type']}{panel['id']}"
        source += f"export const {name}: Json<{panel['type']}.Options> = {json.dumps(panel['options'])};\n"
        if custom := panel["fieldConfig"]["defaults"].get("custom"):
            source += f"export const {name}_field: Json<{panel['type']}.FieldConfig> = {json.dumps(custom)};\n"
    (tools / "dashboard.ts").write_text(source)
    options = {"strict": True, "noEmit": True, "module": "commonjs", "moduleResolution": "node10", "types": []}
    configuration = {"compilerOptions": options, "files": ["dashboard.ts"]}
    (tools / "tsconfig.json").write_text(json.dumps(configuration))
    run("node", tools / "node_modules/typescript/bin/tsc", "--project", tools)
    return f"{len(panels)} panels"
