"""The dashboard of examples/monitoring, compared with the types that Grafana publishes of its dashboards and panels."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

#: It takes npm half a minute, and Grafana's types change seldom.
pytestmark = pytest.mark.full
LOCK = Path(__file__).parent / "grafana"
DASHBOARD = Path(__file__).parents[2] / "examples/monitoring/dashboard.json"
PANELS = {"stat": "StatPanelCfg", "timeseries": "TimeSeriesPanelCfg", "table": "TablePanelCfg"}
#: A type as JSON has it: the values of an enumeration, not its names.
TYPES = """
type Json<T> = T extends string ? (string extends T ? string : `${T}`)
  : T extends number ? (number extends T ? number : `${T}` extends `${infer N extends number}` ? N : never)
  : T extends (infer U)[] ? Json<U>[]
  : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
"""


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Grafana's types and TypeScript."""
    if not shutil.which("npm"):
        pytest.skip("no npm: apt-get install npm")
    folder = tmp_path_factory.mktemp("grafana")
    shutil.copytree(LOCK, folder, dirs_exist_ok=True)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install Grafana's types: {done.stderr[-300:]}")
    return folder


def problems(dashboard: dict[str, object], folder: Path) -> list[str]:
    """What the compiler says of a dashboard, of the options of its panels and of their lines."""
    lines = ['import { Dashboard } from "@grafana/schema";', TYPES]
    for kind, module in PANELS.items():
        path = f"@grafana/schema/dist/esm/raw/composable/{kind}/panelcfg/x/{module}_types.gen"
        lines.append(f'import * as {kind} from "{path}";')
    lines.append(f"export const dashboard: Json<Dashboard> = {json.dumps(dashboard)};")
    for number, panel in enumerate(json.loads(json.dumps(dashboard["panels"]))):
        kind = panel["type"]
        options = json.dumps(panel.get("options", {}))
        lines.append(f"export const options{number}: Partial<Json<{kind}.Options>> = {options};")
        custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
        if custom:
            lines.append(
                f"export const lines{number}: Partial<Json<{kind}.FieldConfig>> = {json.dumps(custom)};"
            )
    (folder / "dashboard.ts").write_text("\n".join(lines))
    flags = ["--strict", "--noEmit", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"]
    command = [folder / "node_modules/.bin/tsc", *flags, "--target", "es2022", "dashboard.ts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def test_dashboard_is_what_grafana_describes(compiler: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert problems(dashboard, compiler) == []
    assert problems({**dashboard, "graphTooltips": 1}, compiler)
    first, *others = dashboard["panels"]
    for wrong in ({"options": {**first["options"], "colorMode": "rainbow"}}, {"gridPos": {"h": "4"}}):
        assert problems({**dashboard, "panels": [{**first, **wrong}, *others]}, compiler), wrong
