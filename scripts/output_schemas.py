"""The JSON schemas of what --json prints, and of manifest.json; `scripts/options` writes them."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from train_classifier.core import job
from train_classifier.core.errors import OUTCOMES, ExitCode

#: Where the published files refer to.
FOLDER = "docs/schemas/"
STATES = (*job.STATES, "removed", "cancelling")


def kind(name: str) -> dict[str, Any]:
    """Return the schema of `string`, `number?` (or null), `string*` (a list) or a name below $defs."""
    if name.endswith("?"):
        return (
            {"anyOf": [kind(name[:-1]), {"type": "null"}]} if name[0].isupper() else _simple(name[:-1], True)
        )
    if name.endswith("*"):
        return array(kind(name[:-1]))
    return {"$ref": f"#/$defs/{name}"} if name[0].isupper() else _simple(name, False)


def _simple(name: str, or_null: bool) -> dict[str, Any]:
    return {"type": [name, "null"] if or_null else name}


def array(items: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def table(values: str) -> dict[str, Any]:
    """Return the schema of an object whose names are free."""
    return {"type": "object", "additionalProperties": kind(values)}


def record(keys: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the schema of an object with these keys and no others; a value is a schema or for `kind`."""
    properties = {
        name: kind(value) if isinstance(value, str) else value
        for name, value in {**keys, **(optional or {})}.items()
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(keys),
        "properties": properties,
    }


def each(kinds: str, **values: Any) -> dict[str, Any]:
    """Return keys of a record from words like `id:string`, and further ones."""
    return {**dict(word.split(":") for word in kinds.split()), **values}


def choice(*schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a value that has one of several forms."""
    return {"anyOf": list(schemas)}


NULL: dict[str, Any] = {"type": "null"}
CODE: dict[str, Any] = {"enum": [int(code) for code in ExitCode]}
OUTCOME: dict[str, Any] = {"enum": list(OUTCOMES.values())}
SPAN = {"type": "array", "prefixItems": [{"type": ["number", "null"]}] * 2, "minItems": 2, "items": False}
TIMES = {"type": "object", "propertyNames": {"enum": list(job.PHASES)}, "additionalProperties": SPAN}
#: What result.json and manifest.json both have.
SHARED = each(
    "reason:string? metrics:Metrics? image:Image? gpu_check:GpuCheck? gpus:Gpu* "
    "training_exit_status:integer? signal:string? out_of_memory:OutOfMemory?",
    outcome=OUTCOME, exit_code=CODE,
)  # fmt: skip


def _of_type(hint: Any) -> dict[str, Any]:
    """Return the schema of a field of a data class, as it is in JSON."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return choice(*map(_of_type, arguments))
    if typing.get_origin(hint) is tuple:
        return array(_of_type(arguments[0]))
    if typing.get_origin(hint) is dict:
        return {"type": "object", "additionalProperties": _of_type(arguments[1])}
    if dataclasses.is_dataclass(hint):
        return record({name: _of_type(value) for name, value in typing.get_type_hints(hint).items()})
    names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return {"type": names[hint]}


def _definitions() -> dict[str, dict[str, Any]]:
    status = (
        "message:string? phase:string? submitter:string? boot_id:string? updated_boot:string? "
        "failed_phase:string? host:string? worker:string? launcher:string? unit:string? container:string? "
        "node:string? slurm_job:string? "
        "pid:integer? pid_start:integer? copier:integer? gpus_wanted:integer? gpus:string* notes:string* "
        "submitted:number? started:number? finished:number? submitted_uptime:number? updated_uptime:number?"
    )
    fetched = record(each("path:string bytes:integer sha256:string"))
    spec = _of_type(job.JobSpec)
    # A dry run has no job.
    for name in ("id", "group"):
        spec["properties"][name] = kind("string?")
    return {
        "Error": record(
            each("reason:string hint:string? detail:string? problems:string* link:string", code=CODE),
            each("cause:string"),
        ),
        "Fetched": fetched,
        "Metrics": table("number"),
        "Image": record(each("reference:string digest:string? id:string"), each("base:string")),
        "GpuCheck": record(each("mode:string proven:boolean detail:string?")),
        "OutOfMemory": record(each("limit_bytes:integer? peak_bytes:integer?")),
        "Process": record(each("pid:integer name:string memory_mib:integer?")),
        "Gpu": record(
            each(
                "index:integer uuid:string name:string memory_total_mib:integer? memory_free_mib:integer? "
                "driver:string mig:boolean busy_by:Process*"
            )
        ),
        "Host": record(
            each("name:string os:string kernel:string boot_id:string? cpus:integer? memory_bytes:integer?")
        ),
        "Unpacked": record(
            each("why:string reason:string hint:string?"),
            each(
                "bytes:integer apparent_bytes:integer most_bytes:integer files:integer places:Place* "
                "more_places:integer is_complete:boolean"
            ),
        ),
        "Place": record(each("path:string files:integer bytes:integer")),
        "Result": record(
            {name: SHARED[name] for name in ("outcome", "exit_code", "reason", "gpus")}
            | each("archive:Archive? finished:number"),
            SHARED
            | each(
                "schema:integer id:string model:string? hint:string? detail:string? link:string? "
                "started:number? remarks:string* unpacked:Unpacked",
                seconds=table("number"),
            ),
        ),
        "Archive": record(each("sha256:string bytes:integer")),
        "Status": record(
            each(
                "schema:integer id:string version:number updated:number",
                state={"enum": list(job.STATES)},
                times=TIMES,
            ),
            each(status) | {"model": kind("string?")},
        ),
        "Spec": spec,
        "Job": record(each("id:string status:Status result:Result? spec:Spec")),
        "Finding": record(
            each(
                "name:string message:string hint:string?",
                status={"enum": ["ok", "warn", "fail", "skip"]},
                code={"anyOf": [CODE, NULL]},
            )
        ),
        "Entry": record(ENTRY, ENTRY_MORE),
        "Figures": record(
            each(
                "progress:string cpu_percent:number? memory_bytes:number?",
                history=table("number"),
                gpus=array(record(each("uuid:string percent:number? memory_mib:number?"))),
            )
        ),
        "Run": record(
            each(
                "id:string? model:string host:string error:Error? artefacts:Fetched? metrics:Metrics? "
                "result:Result?",
                outcome={"enum": ["submitted", *OUTCOMES.values()]},
                exit_code=CODE,
                seconds=table("number"),
            ),
            {"sweep": table("string")},
        ),
        "DryRun": record(
            each(
                "model:string host:string? spec:Spec files:string* output:string warnings:string*",
                id=NULL, outcome={"const": "dry-run"}, exit_code={"const": 0},
            )
        ),
        "Failure": record(each("error:Error", id=NULL, outcome=OUTCOME, exit_code=CODE)),
        "Checked": record(
            each(
                "name:string ready:boolean error:Error? worker:string? python:string? host:Host? "
                "queued:integer? launcher:string? state_dir:string? checks:Finding*",
                engine={
                    "anyOf": [record(each("version:string? cdi:boolean runtime:boolean root:string?")), NULL]
                },
                gpus=array(
                    record(
                        each(
                            "index:integer uuid:string name:string memory_total_mib:integer? "
                            "memory_free_mib:integer? driver:string busy_by:string?"
                        )
                    )
                ),
            )
        ),
        "Chart": record(
            each("title:string x:string y:string note:string lines:Line*", ends=array(kind("number?"))),
            each("file:string"),
        ),
        "Line": record(each("name:string x:number* y:number* values:number*")),
    }  # fmt: skip


#: A job in `list` and `history`.
ENTRY = each(
    "id:string model:string? phase:string? submitter:string? submitted:number? started:number? "
    "finished:number? gpus:string* message:string? arguments:string* group:string? commit:string? "
    "metrics:Metrics? host:string",
    state={"enum": list(job.STATES)},
    outcome={"enum": [*OUTCOMES.values(), None]},
    exit_code={"enum": [*map(int, ExitCode), None]},
    sweep=table("string"),
)
ENTRY_MORE = each("other_user:boolean status:string best:boolean")


def _outputs() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return what each command prints: a title and the schema, by the name of the file."""
    group_jobs = array(kind("Job"))
    ended_group = record(
        each(
            "id:string host:string error:Error? jobs:Run*",
            outcome={"enum": ["submitted", *OUTCOMES.values()]},
            exit_code=CODE,
        )
    )
    dry_group = record(each("jobs:DryRun*", id=NULL, outcome={"const": "dry-run"}, exit_code={"const": 0}))
    fetched_group = record(
        each(
            "id:string",
            exit_code=CODE,
            jobs=array(record(each("id:string artefacts:Fetched? error:Error?"))),
        )
    )
    waiting = record(each("id:string model:string user:string gpus:integer state:string since:number"))
    card = record(
        each(
            "index:integer uuid:string name:string memory_total_mib:integer? use_percent:number? "
            "memory_used_mib:number? temperature_c:number? power_w:number? power_limit_w:number? "
            "others:string?",
            job={"anyOf": [waiting, NULL]},
        )
    )
    cancelled = each("id:string", state={"enum": list(STATES)})
    removed = "jobs images environments caches workers containers bytes"
    checked = record(each("hosts:Checked*", ready=kind("boolean?"), exit_code=CODE))
    report = each(
        "schema:integer title:string succeeded:boolean failure:string* job:string model:string "
        "started:number? curves:Chart* usage:Chart* notes:string*",
        phases=array(
            {"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}, {"type": "number"}]}
        ),
        metrics=array({"type": "array"}),
        images=array(record(each("name:string kind:string width:integer height:integer"))),
        facts=array(record(each("title:string", rows=array({"type": "array"})))),
        log=record(each("lines:string* earlier:integer", traceback={"type": ["array", "null"]})),
        comparison={
            "anyOf": [
                record(
                    each(
                        "columns:string*",
                        runs=array(record(each("job:string outcome:string", values={"type": "array"}))),
                    )
                ),
                NULL,
            ]
        },
    )
    return {
        "init": ("init", record(each("models:string* created:string* kept:string*"))),
        "train": ("train, attach and rerun", choice(kind("Run"), ended_group, kind("DryRun"), dry_group)),
        "list": (
            "list",
            array(record(ENTRY | each("status:string"), each("other_user:boolean figures:Figures"))),
        ),
        "status": (
            "status",
            choice(
                record(
                    each("id:string host:string status:Status result:Result? spec:Spec"),
                    each("figures:Figures"),
                ),
                record(
                    each(
                        "id:string host:string",
                        jobs=group_jobs,
                        failures=array(record(each("id:string error:Error"))),
                    )
                ),
            ),
        ),
        "report": ("report", record(report)),
        "fetch": (
            "fetch",
            choice(
                record(each("id:string artefacts:Fetched", exit_code={"const": 0})),
                record(each("id:string files:Fetched*", exit_code=CODE)),
                fetched_group,
            ),
        ),
        "cancel": (
            "cancel",
            record(
                cancelled | {"exit_code": {"const": 0}},
                {"jobs": array(record(cancelled))},
            ),
        ),
        "history": (
            "history",
            record(each("model:string metric:string?", runs=array(record(ENTRY | each("best:boolean"))))),
        ),
        "compare": (
            "compare",
            record(each("jobs:string*", different=table("array"), same={"type": "object"})),
        ),
        "clean": (
            "clean",
            array(
                record(
                    each(
                        "host:string kept_bytes:integer",
                        removed=record(dict.fromkeys(removed.split(), "integer")),
                    )
                )
            ),
        ),
        "doctor": ("doctor and hosts add", checked),
        "hosts": ("hosts list", array({"type": "string"})),
        "top": (
            "top",
            array(
                record(each("host:string problem:string?", cards=array(card), queue=array(waiting)))
            ),
        ),
    }  # fmt: skip


def _manifest() -> dict[str, Any]:
    """Return the schema of manifest.json, whose keys docs/manifest.md describes."""
    slurm = record(
        each(
            "job:string cluster:string? partition:string? nodes:string* account:string? qos:string? "
            "restarts:integer started:number? queued_s:number? elapsed_s:number? cpu_time_s:number?",
            tres=table("number"),
        )
    )
    artefact = each("path:string bytes:integer new:boolean")
    return record(
        SHARED
        | each(
            "job:string model:string arguments:string* group:string? environment_variables:string* "
            "secrets:string* resumed_from:string? submitter:string submitted:number? host:Host",
            rerun_of=kind("string?"),
            schema={"const": job.SCHEMA},
            sweep=table("string"),
            data=table("string"),
            repository=record(
                each("name:string commit:string? address:string? dirty:boolean? files:integer bytes:integer")
            ),
            limits=record(
                each(
                    "timeout_s:number? memory_bytes:integer? cpus:number? shm_bytes:integer pids:integer "
                    "artefacts_max_bytes:integer network:string"
                )
            ),
            environment={
                "anyOf": [
                    record(
                        each(
                            "hash:string kind:string reason:string? files:string* python:string? "
                            "packages:string* repositories:string* built_without_isolation:string*"
                        )
                    ),
                    NULL,
                ]
            },
            slurm={"anyOf": [slurm, NULL]},
            times=TIMES,
            artefacts=array(record(artefact, each("sha256:string link:string"))),
            left_out=array(record(each("path:string reason:string"))),
        )
    )


def _document(name: str, title: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with the definitions that it uses, so that each file is complete."""
    every = _definitions()
    used: dict[str, Any] = {}
    pending = [schema]
    while pending:
        for reference in _references(pending.pop()):
            if reference not in used:
                used[reference] = every[reference]
                pending.append(every[reference])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{name}.json",
        "title": title,
        **schema,
        **({"$defs": {name: used[name] for name in sorted(used)}} if used else {}),
    }


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [name for one in schema for name in _references(one)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
    return own + [name for value in schema.values() for name in _references(value)]


def schemas() -> dict[str, dict[str, Any]]:
    """Return the content of every schema, by the path of its file."""
    documents = {
        name: _document(
            name,
            f"What train-classifier {title} --json prints; a failure without an answer has its own form.",
            choice(schema, kind("Failure")),
        )
        for name, (title, schema) in _outputs().items()
    }
    documents["manifest"] = _document("manifest", "manifest.json of a job's archive", _manifest())
    return {f"{FOLDER}{name}.json": document for name, document in documents.items()}
