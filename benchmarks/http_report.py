"""Print the results of benchmarks/http.py as tables, and compare them with the project's aims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.http_subject import Ceiling
from benchmarks.theory import Machine

Rows = Mapping[str, Mapping[str, Any]]


def print_ceiling(best: Ceiling, model: str, num_images: int, mean_bytes: float) -> None:
    print(
        f"\n{model}; {num_images} photographs of {mean_bytes / 1000:.0f} kB\n"
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
        f"{'ceiling':>9}{'ours is':>9}{'p50 ms':>9}{'p99 ms':>9}{'right':>7}{'not 200':>9}"
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
            f"{row['of_ceiling']:>9.0%}{ratio:>9}{row['p50_ms']:>9.1f}{row['p99_ms']:>9.1f}{right:>7}{failed:>9}"
        )


def print_ours(ours: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Print our share of the ceiling, one connection, the steady load and the overloads."""
    alone, steady, most = ours["alone"], ours["steady"], row["requests_per_s"]
    print(
        f"\nours: {ours['precision']} on {ours['engine']}, {row['of_ceiling']:.1%} of the ceiling\n"
        f"1 connection: p50 {alone['p50_ms']:.2f} ms = decode {alone['decode_ms']:.2f} + inference "
        f"{alone['inference_ms']:.2f} + {alone['overhead_ms']:.2f}; p99 {alone['p99_ms']:.2f} ms\n"
        f"{steady['rate']:.1f} requests/s, open loop: p50 {_ms(steady['p50_ms'])}, "
        f"p99 {_ms(steady['p99_ms'])} ms; answers {steady['statuses']}\n"
        f"\n{'open loop, offered':<20}{'requests/s':>11}{'goodput':>9}{'of peak':>9}"
        f"{'p50 ms':>9}{'p99 ms':>9}{'late':>6}{'sent late':>11}  answers"
    )
    for load in ours["overloads"]:
        print(
            f"{load['times']:<20g}{load['rate']:>11.1f}{load['goodput']:>9.1f}{load['goodput'] / most:>9.1%}"
            f"{_ms(load['p50_ms']):>9}{_ms(load['p99_ms']):>9}{load['late']:>6}"
            f"{_ms(load['sent_late_ms']):>11}  {load['statuses']}"
        )


def judge(rows: Rows, ours: Mapping[str, Any] | None, machine: Machine, model: str) -> list[dict[str, Any]]:
    """Return every aim with `met`: True, False, or None if it is not applicable; then `why` says why."""
    why_not = "ours was not measured" if ours is None else None
    peers = why_not
    if ours is not None and model != "resnet50":
        peers = "only for ResNet-50 at 224 pixels"
    elif ours is not None and "amx_int8" not in machine.features:
        peers = "no AMX"
    same = "litserve-openvino" if ours and ours["engine"] == "openvino" else "litserve-ort"

    def times(name: str) -> float | None:
        return rows[name]["ours_is_times"] if name in rows else None

    aims = [
        _aim("/ LitServe + ORT int8", times("litserve-ort"), 3.3, None, peers),
        _aim("/ LitServe on the same engine", times(same), 1.95, None, peers),
        _aim("/ FastAPI + torch fp32", times("tutorial"), 15.0, None, peers),
    ]
    if ours is None:
        return aims
    most, alone, steady = rows["residuum"]["requests_per_s"], ours["alone"], ours["steady"]
    tail = steady["p99_ms"] / steady["p50_ms"] if steady["p50_ms"] else None
    return [
        *aims,
        _aim("of the ceiling", rows["residuum"]["of_ceiling"], 0.9, None, why_not),
        _aim("ms beside decode and inference, 1 connection", alone["overhead_ms"], None, 1.0, why_not),
        _aim("p99 / p50 at 70 %", tail, None, 2.0, why_not),
        _aim(
            "goodput at 3 times the peak, of it", ours["overloads"][-1]["goodput"] / most, 0.95, None, why_not
        ),
    ]


def _aim(
    what: str, value: float | None, at_least: float | None, at_most: float | None, why: str | None
) -> dict[str, Any]:
    if why is None and value is None:
        why = "not measured in this run"
    met = None
    if why is None and value is not None:
        met = value >= at_least if at_least is not None else value <= (at_most or 0)
    return {"aim": what, "at_least": at_least, "at_most": at_most, "value": value, "met": met, "why": why}


def _not_200(statuses: Mapping[str, int]) -> int:
    return sum(count for status, count in statuses.items() if status != "200")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
