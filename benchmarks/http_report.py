"""Print the results of benchmarks/http.py as tables, and compare them with the project's aims."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifact.store import EMBEDDED
from benchmarks.http_servers import LITSERVE_FULL, OURS_FULL
from benchmarks.http_subject import Ceiling
from benchmarks.theory import Machine

Rows = Mapping[str, Mapping[str, Any]]
LITSERVES = ("litserve-ort", "litserve-openvino")


def print_ceiling(best: Ceiling, model: str, files: Sequence[Path]) -> None:
    mean_bytes = statistics.mean(path.stat().st_size for path in files)
    print(
        f"\n{model}; {len(files)} photographs of {mean_bytes / 1000:.0f} kB\n"
        f"theory: decoding takes {best.decode_ms:.2f} ms an image on one core, "
        f"{best.decodes_per_s:.0f} images/s on all {best.cores};\n"
        f"        inference {best.inference_ms:.2f} ms on all cores at best, "
        f"{best.inferences_per_s:.0f} images/s ({best.engine} int8, {best.instances} instances, "
        f"batches of {best.batch});\n"
        f"        were these all that there is to do: {best.requests_per_s:.1f} requests/s",
        flush=True,
    )


def print_servers(rows: Rows, connections: int) -> None:
    """Print the closed loop of every server: medians of the rounds."""
    print(
        f"\n{f'{connections} connections, closed loop':<32}{'requests/s':>11}{'rounds':>16}"
        f"{'ceiling':>9}{'ours is':>9}{'p50 ms':>9}{'p99 ms':>9}{'cpu ms':>8}{'right':>7}{'not 200':>9}"
    )
    for row in rows.values():
        done = [one for one in row["rounds"] if "problem" not in one]
        if not done:
            print(f"{row['title']:<32}failed: {row['rounds'][0]['problem'].splitlines()[0]}")
            continue
        rates = [one["requests_per_s"] for one in done]
        ratio = "-" if row["ours_is_times"] is None else f"{row['ours_is_times']:.2f}x"
        agrees = [one["agreement"] for one in done if one["agreement"] is not None]
        right = f"{min(agrees):.0%}" if agrees else "-"
        failed = sum(one["unanswered"] + _not_200(one["statuses"]) for one in done)
        print(
            f"{row['title']:<32}{row['requests_per_s']:>11.1f}{f'{min(rates):.1f} - {max(rates):.1f}':>16}"
            f"{row['of_ceiling']:>9.0%}{ratio:>9}{row['p50_ms']:>9.1f}{row['p99_ms']:>9.1f}"
            f"{_ms(row['server_ms'], 2):>8}{right:>7}{failed:>9}"
        )


def print_ours(ours: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Print our share of the ceiling, one connection, introspect, the steady load, overloads and crowds."""
    steady, most = ours["steady"], row["requests_per_s"]
    print(f"\nours: {ours['precision']} on {ours['engine']}, {row['of_ceiling']:.1%} of the ceiling")
    for title, key in (("1 connection", "alone"), ("introspect, maps=u8", "introspect")):
        one = ours[key]
        print(
            f"{title}: p50 {one['p50_ms']:.2f} ms = decode {one['decode_ms']:.2f} + inference "
            f"{one['inference_ms']:.2f} + {one['overhead_ms']:.2f}; p99 {one['p99_ms']:.2f} ms"
        )
    print(
        f"{steady['rate']:.1f} requests/s, open loop: p50 {_ms(steady['p50_ms'])}, "
        f"p99 {_ms(steady['p99_ms'])} ms; answers {steady['statuses']}\n"
        f"\n{'open loop, offered':<32}{'requests/s':>11}{'goodput':>9}{'of peak':>9}"
        f"{'p50 ms':>9}{'p99 ms':>9}{'late':>6}{'sent late':>11}{'client cpu':>12}  answers"
    )
    for load in ours["overloads"]:
        print(
            f"{load['times']:<32g}{load['rate']:>11.1f}{load['goodput']:>9.1f}{load['goodput'] / most:>9.1%}"
            f"{_ms(load['p50_ms']):>9}{_ms(load['p99_ms']):>9}{load['late']:>6}"
            f"{_ms(load['sent_late_ms']):>11}{_ms(load['client_ms'], 3):>12}  {load['statuses']}"
        )
    print(
        f"\n{'300 connections, closed loop':<32}{'200 a s':>11}{'of peak':>9}{'p50 ms':>9}{'p99 ms':>9}"
        "  answers"
    )
    for name, crowd in ours["crowds"].items():
        print(
            f"{name:<32}{crowd['requests_per_s']:>11.1f}{crowd['requests_per_s'] / most:>9.1%}"
            f"{crowd['p50_ms']:>9.1f}{crowd['p99_ms']:>9.1f}  {crowd['statuses']}, "
            f"{crowd['unanswered']} unanswered"
        )


def ratio_of(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median of the rounds' ratios of speed, of those in which both were measured."""
    ratios = [
        own["requests_per_s"] / other["requests_per_s"]
        for own, other in zip(ours, theirs, strict=False)
        if own.get("requests_per_s") and other.get("requests_per_s")
    ]
    return statistics.median(ratios) if ratios else None


def judge(
    rows: Rows,
    ours: Mapping[str, Any] | None,
    budget: Mapping[str, Any] | None,
    machine: Machine,
    model: str,
) -> list[dict[str, Any]]:
    """Return every aim with `met`: True, False, or None if it is not applicable; then `why` says why."""
    judged = _against_peers(rows, ours, machine, model)
    if ours is None:
        return judged
    row, small = rows["residuum"], model == EMBEDDED
    most, steady = row["requests_per_s"], ours["steady"]
    tail = steady["p99_ms"] / steady["p50_ms"] if steady["p50_ms"] else None
    only_small = None if small else "only for the embedded model"
    loads = {load["times"]: load for load in ours["overloads"]}
    judged += [
        _aim("of the ceiling", row["of_ceiling"], at_least=0.75 if small else 0.95),
        _aim("cpu ms beside decode, resize, engine", (budget or {}).get("beside_ms"), at_most=0.5),
        _aim("cpu ms of a refusal", (budget or {}).get("refusal_ms"), at_most=0.05),
        _aim("ms beside decode and inference, 1 connection", ours["alone"]["overhead_ms"], at_most=0.4),
        _aim(
            "ms beside decode and graph, introspect", ours["introspect"]["overhead_ms"], at_most=1.5,
            why=only_small,
        ),
        _aim("p99 / p50 at 70 %", tail, at_most=2.0),
    ]  # fmt: skip
    for times in (2.0, 3.0):
        load = loads.get(times)
        judged += [
            _aim(
                f"goodput at {times:g} times the peak, of it", load and load["goodput"] / most, at_least=0.95
            ),
            _aim(f"late at {times:g} times the peak", load and load["late"], at_most=0),
        ]
    crowd = ours["crowds"]["retry at once"]["requests_per_s"] / most
    return [*judged, _aim("300 connections that retry at once, of the peak", crowd, at_least=0.95)]


def _against_peers(
    rows: Rows, ours: Mapping[str, Any] | None, machine: Machine, model: str
) -> list[dict[str, Any]]:
    not_ours = "ours was not measured" if ours is None else None
    small = model == EMBEDDED
    only_small = not_ours or (None if small else "only for the embedded model")
    only_large = not_ours or ("only for ResNet-50 at 224 pixels" if small else None)
    amx = only_large or (None if "amx_int8" in machine.features else "no AMX")
    same = "litserve-openvino" if ours and ours["engine"] == "openvino" else "litserve-ort"

    def times(*names: str) -> float | None:
        found = [rows[name]["ours_is_times"] for name in names if name in rows]
        return min((ratio for ratio in found if ratio is not None), default=None)

    full = None
    if OURS_FULL in rows and LITSERVE_FULL in rows:
        full = ratio_of(rows[OURS_FULL]["rounds"], rows[LITSERVE_FULL]["rounds"])
    return [
        _aim("/ the better LitServe", times(*LITSERVES), at_least=1.6, why=only_small),
        _aim("/ LitServe, both decoding at full size", full, at_least=1.6, why=only_small),
        _aim("/ LitServe that decodes at full size", times(LITSERVE_FULL), at_least=2.0, why=only_small),
        _aim("/ FastAPI + ORT int8", times("fastapi"), at_least=2.0, why=only_small),
        _aim("/ LitServe on the same engine", times(same), at_least=1.1, why=only_large),
        _aim("/ LitServe + ORT int8", times("litserve-ort"), at_least=3.3, why=amx),
        _aim("/ LitServe on the same engine, AMX", times(same), at_least=1.95, why=amx),
        _aim("/ FastAPI + torch fp32", times("tutorial"), at_least=15.0, why=amx),
    ]


def _aim(
    what: str,
    value: float | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    why: str | None = None,
) -> dict[str, Any]:
    if why is None and value is None:
        why = "not measured in this run"
    met = None
    if why is None and value is not None:
        met = value >= at_least if at_least is not None else value <= (at_most or 0)
    return {"aim": what, "at_least": at_least, "at_most": at_most, "value": value, "met": met, "why": why}


def _not_200(statuses: Mapping[str, int]) -> int:
    return sum(count for status, count in statuses.items() if status != "200")


def _ms(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
