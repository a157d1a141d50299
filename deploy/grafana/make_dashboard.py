"""Print the dashboard: ``python deploy/grafana/make_dashboard.py > deploy/grafana/dashboard.json``.

Grafana's Classic model, which every version since 9 imports.  `ROWS` lists the panels with their queries.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

WHICH = 'job=~"$job", instance=~"$instance"'
OF_SOURCE = f'{WHICH}, source=~"$source"'
EACH = "[$__rate_interval]"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA = 39
COLUMNS = 24


@dataclass(frozen=True)
class Panel:
    """One panel: ``queries`` are (legend, expression); ``section`` is the anchor in the runbook."""

    title: str
    description: str
    section: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    options: tuple[tuple[str, Any], ...] = ()


def rate(metric: str, which: str = WHICH) -> str:
    """Return the rate of a counter per second."""
    return f"rate(stream_gru_{metric}{{{which}}}{EACH})"


def quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    """Return the queries for the median and the 99th percentile of a histogram."""
    buckets = f"sum by (instance, le) ({rate(f'{metric}_seconds_bucket')})"
    return tuple(
        (f"{{{{instance}}}} {name}", f"histogram_quantile({q}, {buckets})") for name, q in (("p50", 0.5), ("p99", 0.99))
    )


def by_target(numerator: str, denominator: str) -> str:
    """Return the quotient of two counters of scored forecasts, where any were scored."""
    by = "sum by (instance, target, horizon)"
    return f"{by} ({rate(numerator)}) / ({by} ({rate(denominator)}) > 0)"


_SOURCE, _SINK, _TARGET = "{{instance}} {{source}}", "{{instance}} {{sink}}", "{{target}} +{{horizon}}"
_SHARE = (("min", 0), ("max", 1))
_YES_NO = (
    (
        "mappings",
        [
            {
                "type": "value",
                "options": {"0": {"text": "no", "color": "red"}, "1": {"text": "yes", "color": "green"}},
            }
        ],
    ),
)

ROWS: dict[str, list[Panel]] = {
    "Health": [
        Panel(
            "Up",
            "Whether Prometheus reaches the daemon.",
            "streamgrudown",
            "none",
            (("{{instance}}", f"up{{{WHICH}}}"),),
            "stat",
            4,
            4,
            _YES_NO,
        ),
        Panel(
            "Time since the last loop",
            "Time since the daemon's loop last made progress; more than a few seconds means that it is stalled.",
            "streamgrustalled",
            "s",
            (("{{instance}}", f"time() - stream_gru_loop_last_timestamp_seconds{{{WHICH}}}"),),
            "stat",
            4,
            4,
        ),
        Panel(
            "Sources connected",
            "Whether the port is open or the broker connected.",
            "streamgrusourcelost",
            "none",
            ((_SOURCE, f"stream_gru_source_connected{{{OF_SOURCE}}}"),),
            "stat",
            4,
            4,
            _YES_NO,
        ),
        Panel(
            "Sinks connected",
            "Whether the file is open or the server connected.",
            "streamgrusinkfailing",
            "none",
            ((_SINK, f"stream_gru_sink_connected{{{WHICH}}}"),),
            "stat",
            4,
            4,
            _YES_NO,
        ),
        Panel(
            "Last reload succeeded",
            "Whether the last reload succeeded; no: the daemon keeps running with the old configuration.",
            "streamgrureloadfailed",
            "none",
            (("{{instance}}", f"stream_gru_config_last_reload_successful{{{WHICH}}}"),),
            "stat",
            4,
            4,
            _YES_NO,
        ),
        Panel(
            "Configuration loaded",
            "When the current configuration was loaded.",
            "streamgrureloadfailed",
            "dateTimeAsIso",
            (("{{instance}}", f"1000 * stream_gru_config_last_reload_success_timestamp_seconds{{{WHICH}}}"),),
            "stat",
            4,
            4,
        ),
        Panel(
            "Versions",
            "Version, Python and engine; model, regime and when it was trained.",
            "streamgrudown",
            "none",
            (
                (
                    "",
                    f"stream_gru_model_info{{{WHICH}}} * on (job, instance) group_left (version, python, engine) "
                    f"stream_gru_build_info{{{WHICH}}}",
                ),
            ),
            "table",
            24,
            4,
        ),
        Panel(
            "Samples",
            "Samples received and samples applied, per second.",
            "streamgrudropping",
            "cps",
            (
                (f"{_SOURCE} received", rate("samples_received_total", OF_SOURCE)),
                (f"{_SOURCE} applied", rate("samples_applied_total", OF_SOURCE)),
            ),
        ),
        Panel(
            "Dropped samples by reason",
            "Dropped samples per second; each has one reason. Duplicates follow a redelivery. Messages that are not in "
            "the dead-letter file came too fast for it, fell out of it, or met a full disk.",
            "streamgrudropping",
            "cps",
            (
                ("{{reason}}", f"sum by (reason) ({rate('samples_dropped_total', OF_SOURCE)})"),
                ("no dead letter: {{reason}}", f"sum by (reason) ({rate('dead_letters_skipped_total', WHICH)})"),
            ),
        ),
        Panel(
            "Messages",
            "Messages received per second. QoS 0 messages are lost while the daemon is not running. Redelivered ones "
            "were processed before: a broker sends them again after a kill or a lost connection; they change nothing.",
            "streamgrusessionlost",
            "cps",
            (
                (f"{_SOURCE} all", rate("messages_received_total", OF_SOURCE)),
                (f"{_SOURCE} QoS 0", rate("source_qos0_messages_total", OF_SOURCE)),
                (f"{_SOURCE} redelivered", rate("source_redelivered_total", OF_SOURCE)),
            ),
        ),
        Panel(
            "Queue of sources",
            "Messages that wait to be processed.",
            "streamgrubacklog",
            "short",
            ((_SOURCE, f"stream_gru_source_queue_messages{{{OF_SOURCE}}}"),),
        ),
        Panel(
            "Queue of sources in bytes",
            "Bytes that wait to be processed.",
            "streamgrubacklog",
            "bytes",
            ((_SOURCE, f"stream_gru_source_queue_bytes{{{OF_SOURCE}}}"),),
        ),
        Panel(
            "Connections and sessions lost",
            "How often a source reconnected, and how often the broker had lost the session.",
            "streamgrusessionlost",
            "short",
            (
                (f"{_SOURCE} reconnected", f"increase(stream_gru_source_reconnects_total{{{OF_SOURCE}}}{EACH})"),
                (f"{_SOURCE} session lost", f"increase(stream_gru_source_sessions_lost_total{{{OF_SOURCE}}}{EACH})"),
            ),
        ),
    ],
    "Streams": [
        Panel(
            "Streams",
            "Streams with a state, idle streams, paused streams.",
            "streamgrustreamidle",
            "short",
            (
                ("{{instance}} all", f"stream_gru_streams{{{WHICH}}}"),
                ("{{instance}} idle", f"stream_gru_streams_idle{{{WHICH}}}"),
                ("{{instance}} paused", f"stream_gru_streams_paused{{{WHICH}}}"),
            ),
        ),
        Panel(
            "Streams that became idle",
            "How often a stream became idle.",
            "streamgrustreamidle",
            "short",
            (("{{instance}}", f"increase(stream_gru_stream_timeouts_total{{{WHICH}}}{EACH})"),),
        ),
        Panel(
            "Age of the newest sample",
            "Time since the event time of the newest applied sample; negative: the clock of a device is fast.",
            "streamgrustreamidle",
            "s",
            ((_SOURCE, f"time() - stream_gru_last_sample_timestamp_seconds{{{OF_SOURCE}}}"),),
        ),
        Panel(
            "Resets by reason",
            "Hidden states that were replaced by the initial one. A stream that is reset often never warms up.",
            "streamgruforecastdegraded",
            "short",
            (("{{reason}}", f"sum by (reason) (increase(stream_gru_stream_resets_total{{{WHICH}}}{EACH}))"),),
        ),
        Panel(
            "Imputed and joined",
            "Inserted steps and samples with a held channel, per second; records of single channels that were joined.",
            "streamgrudropping",
            "cps",
            (
                ("{{instance}} imputed", rate("steps_imputed_total")),
                (f"{_SOURCE} joined", rate("records_joined_total", OF_SOURCE)),
            ),
        ),
        Panel(
            "Missing by the device's own count",
            "Samples that the device counted and the daemon did not receive.",
            "streamgrusessionlost",
            "short",
            ((_SOURCE, f"increase(stream_gru_device_seq_missing_total{{{OF_SOURCE}}}{EACH})"),),
        ),
    ],
    "Forecast": [
        Panel(
            "Skill",
            "1 - error / error of repeating the last value: 1 is perfect, below 0 the last value is better.",
            "streamgruforecastdegraded",
            "percentunit",
            (
                (
                    _TARGET,
                    "1 - " + by_target("forecast_absolute_error_total", "persistence_absolute_error_total"),
                ),
            ),
            options=(("max", 1),),
        ),
        Panel(
            "Mean absolute error",
            "Of forecasts whose truth has arrived, in the unit of the channel.",
            "streamgruforecastdegraded",
            "short",
            ((_TARGET, by_target("forecast_absolute_error_total", "forecasts_scored_total")),),
        ),
        Panel(
            "Coverage and level",
            "Share of truths inside their interval, and the nominal coverage.",
            "streamgrucoverageoff",
            "percentunit",
            (
                (_TARGET, by_target("interval_covered_total", "forecasts_scored_total")),
                ("{{instance}} level", f"stream_gru_interval_nominal_coverage_ratio{{{WHICH}}}"),
            ),
            options=_SHARE,
        ),
        Panel(
            "Scored forecasts",
            "Forecasts whose truth has arrived, per second; the other panels of this row are computed from them.",
            "streamgruforecastdegraded",
            "cps",
            ((_TARGET, f"sum by (instance, target, horizon) ({rate('forecasts_scored_total')})"),),
        ),
        Panel(
            "Skill and coverage since start",
            "The same since the daemon started or the model was changed.",
            "streamgruforecastdegraded",
            "percentunit",
            (
                (f"skill {_TARGET}", f"stream_gru_forecast_skill_ratio{{{WHICH}}}"),
                (f"coverage {_TARGET}", f"stream_gru_interval_coverage_ratio{{{WHICH}}}"),
            ),
            "stat",
        ),
        Panel(
            "Mean absolute error since start",
            "In the unit of the channel.",
            "streamgruforecastdegraded",
            "short",
            ((_TARGET, f"stream_gru_forecast_mae{{{WHICH}}}"),),
            "stat",
        ),
    ],
    "Classes and alarms": [
        Panel(
            "Classes",
            "Samples per second by predicted class.",
            "streamgruforecastdegraded",
            "cps",
            (("{{class}}", f"sum by (class) ({rate('classifications_total')})"),),
            width=12,
            options=(("stacked", True),),
        ),
        Panel(
            "Alarms",
            "Outputs that were an alarm.",
            "streamgruforecastdegraded",
            "short",
            (("{{instance}}", f"increase(stream_gru_alarms_total{{{WHICH}}}{EACH})"),),
            width=6,
        ),
        Panel(
            "Accuracy",
            "Share of samples whose class was predicted correctly, where the input has labels.",
            "streamgruforecastdegraded",
            "percentunit",
            (
                (
                    "{{instance}}",
                    f"{rate('labelled_samples_correct_total')} / ({rate('labelled_samples_total')} > 0)",
                ),
            ),
            width=6,
            options=_SHARE,
        ),
    ],
    "Latency": [
        Panel(
            "Inference",
            "One call of the engine.",
            "streamgruslow",
            "s",
            quantiles("inference_duration"),
        ),
        Panel(
            "Batch",
            "From bytes to written outputs, for each batch.",
            "streamgruslow",
            "s",
            quantiles("batch_duration"),
        ),
        Panel(
            "End to end",
            "From the arrival of a sample to its written output.",
            "streamgruslow",
            "s",
            quantiles("end_to_end_latency"),
        ),
        Panel(
            "End to end, distribution",
            "Batches by their time from arrival to output.",
            "streamgruslow",
            "s",
            (
                (
                    "{{le}}",
                    f"sum by (le) (increase(stream_gru_end_to_end_latency_seconds_bucket{{{WHICH}}}{EACH}))",
                ),
            ),
            "heatmap",
            24,
        ),
    ],
    "Delivery": [
        Panel(
            "Outputs",
            "Outputs written to a sink, per second.",
            "streamgrusinkfailing",
            "cps",
            ((_SINK, rate("outputs_total")),),
        ),
        Panel(
            "Queue of sinks",
            "Unacknowledged outputs. They are stored, and block nothing until the queue is full.",
            "streamgruoutputswaiting",
            "short",
            ((_SINK, f"stream_gru_sink_queue{{{WHICH}}}"),),
        ),
        Panel(
            "Outputs lost",
            "Outputs rejected by the broker or server, and outputs dropped because the queue was full.",
            "streamgrusinkfailing",
            "short",
            (
                (f"{_SINK} rejected", f"increase(stream_gru_sink_failed_total{{{WHICH}}}{EACH})"),
                (f"{_SINK} dropped", f"increase(stream_gru_sink_dropped_total{{{WHICH}}}{EACH})"),
                (f"{_SINK} reconnects", f"increase(stream_gru_sink_reconnects_total{{{WHICH}}}{EACH})"),
            ),
        ),
        Panel(
            "Commands and reloads",
            "Commands and reloads that the daemon received.",
            "streamgrureloadfailed",
            "short",
            (
                (
                    "{{action}} {{result}}",
                    f"sum by (action, result) (increase(stream_gru_commands_total{{{WHICH}}}{EACH}))",
                ),
                ("reload {{result}}", f"sum by (result) (increase(stream_gru_reloads_total{{{WHICH}}}{EACH}))"),
            ),
        ),
    ],
    "State": [
        Panel(
            "States stored",
            "Whether states, positions and waiting outputs are stored. No: run.state_dir is not set, or the store has "
            "just failed and the daemon ends.",
            "streamgrustatesdamaged",
            "none",
            (("{{instance}}", f"stream_gru_state_store_up{{{WHICH}}}"),),
            "stat",
            4,
            8,
            _YES_NO,
        ),
        Panel(
            "Damaged since start",
            "Stored states that could not be used; their streams were reset.",
            "streamgrustatesdamaged",
            "short",
            (("{{instance}}", f"stream_gru_states_damaged_total{{{WHICH}}}"),),
            "stat",
            4,
        ),
        Panel(
            "Evicted and restored",
            "Streams evicted and restored per second; both high: they evict each other.",
            "streamgrustreamsthrashing",
            "cps",
            (
                ("{{instance}} evicted", rate("streams_evicted_total")),
                ("{{instance}} restored", rate("streams_restored_total")),
            ),
        ),
        Panel(
            "Commits",
            "Commits per second. A commit makes states durable, acknowledges inputs and releases outputs.",
            "streamgrucommitsslow",
            "cps",
            (("{{instance}}", rate("commits_total")),),
        ),
        Panel(
            "Commit",
            "From the start of a commit until its inputs are acknowledged. It waits for the disk and for nothing "
            "else; one with nothing to write takes no time.",
            "streamgrucommitsslow",
            "s",
            quantiles("commit_duration"),
        ),
        Panel(
            "Time in commits",
            "Share of time in which the daemon waits for its disk and forecasts nothing.",
            "streamgrucommitsslow",
            "percentunit",
            (("{{instance}}", rate("commit_duration_seconds_sum")),),
            options=_SHARE,
        ),
    ],
    "Process": [
        Panel(
            "Memory",
            "Resident memory; some 70 MiB and what the queues hold.",
            "streamgrubacklog",
            "bytes",
            (("{{instance}}", f"process_resident_memory_bytes{{{WHICH}}}"),),
        ),
        Panel(
            "Processor",
            "Share of one core.",
            "streamgruslow",
            "percentunit",
            (("{{instance}}", f"rate(process_cpu_seconds_total{{{WHICH}}}{EACH})"),),
        ),
        Panel(
            "Open files",
            "Share of the file descriptors that the process may open.",
            "streamgrustalled",
            "percentunit",
            (("{{instance}}", f"process_open_fds{{{WHICH}}} / process_max_fds{{{WHICH}}}"),),
        ),
    ],
}

ANNOTATIONS = {
    "Model": (
        "blue",
        "Model {{model_id}}",
        f"stream_gru_model_info{{{WHICH}}} unless stream_gru_model_info{{{WHICH}}} offset 2m",
    ),
    "Start": ("orange", "Start of {{instance}}", f"changes(process_start_time_seconds{{{WHICH}}}[2m]) > 0"),
    "Reload": (
        "green",
        "Configuration of {{instance}} applied",
        f"changes(stream_gru_config_last_reload_success_timestamp_seconds{{{WHICH}}}[2m]) > 0",
    ),
}


def panel_of(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """Return a panel as Grafana's JSON."""
    instant = panel.kind == "table"
    options = dict(panel.options)
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        stacked = bool(options.pop("stacked", False))
        custom = {
            "lineWidth": 1,
            "fillOpacity": 30 if stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"h": panel.height, "w": panel.width, "x": x, "y": y},
        "links": [{"title": "What to do", "url": f"${{runbook}}#{panel.section}", "targetBlank": True}],
        "fieldConfig": {"defaults": {"unit": panel.unit, "custom": custom, **options}, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
                "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
            }
            for i, (legend, expression) in enumerate(panel.queries)
        ],
        **({"transformations": _COLUMNS_OF_TABLE} if instant else {}),
    }


_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
    "heatmap": {"calculate": False, "yAxis": {"unit": "s"}, "color": {"mode": "scheme", "scheme": "Blues"}},
}
_COLUMNS_OF_TABLE = [
    {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True, "__name__": True, "job": True}}}
]


def query_variable(name: str, label: str, expression: str) -> dict[str, Any]:
    """Return a variable with the values of a label; several can be selected."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": expression, "refId": name},
        "definition": expression,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
    }


def plain_variable(kind: str, name: str, label: str, value: str) -> dict[str, Any]:
    """Return a variable with one value."""
    return {
        "name": name,
        "label": label,
        "type": kind,
        "query": value,
        # Grafana selects a data source itself.
        "current": {} if kind == "datasource" else {"selected": True, "text": value, "value": value},
        "hide": 0,
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        grid = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}
        )
        x, y, tallest = 0, y + 1, 0
        for panel in row:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel_of(panel, len(panels) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return {
        "id": None,
        "uid": "stream-gru",
        "title": "stream_gru",
        "description": "Daemons that forecast and classify sensors live",
        "tags": ["stream_gru"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "links": [],
        "annotations": {
            "list": [
                {
                    "name": name,
                    "enable": True,
                    "iconColor": color,
                    "datasource": DATASOURCE,
                    "expr": expression,
                    "step": "60s",
                    "titleFormat": title,
                }
                for name, (color, title, expression) in ANNOTATIONS.items()
            ]
        },
        "templating": {
            "list": [
                plain_variable("datasource", "datasource", "Data source", "prometheus"),
                query_variable("job", "Job", "label_values(stream_gru_build_info, job)"),
                query_variable("instance", "Gateway", 'label_values(stream_gru_build_info{job=~"$job"}, instance)'),
                query_variable(
                    "source", "Source", f"label_values(stream_gru_samples_received_total{{{WHICH}}}, source)"
                ),
                plain_variable("textbox", "runbook", "Runbook", "RUNBOOK.md"),
            ]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=1)
    sys.stdout.write("\n")
