"""``headrace bench``: throughput, kernels, overhead of schedules, peers, checkpoints to bench."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli import options
from headrace.errors import UsageError


def throughput(
    model: options.Model,
    memory: options.Memory = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Sequences.")] = 32,
    prompt_len: Annotated[int, typer.Option("--prompt-len", min=1, help="Tokens each.")] = 64,
    gen_len: Annotated[int, typer.Option("--gen-len", min=1, help="Tokens each.")] = 32,
    schedule: options.Schedule = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs; medians count.")] = 1,
    compare: Annotated[
        bool, typer.Option("--compare/--no-compare", help="Also run one_by_one (no overlap).")
    ] = True,
    seed: options.Seed = 0,
    kv_cache_dtype: options.KvCacheDtype = "f16",
    max_num_seqs: options.MaxNumSeqs = None,
    max_num_batched_tokens: options.MaxNumBatchedTokens = None,
    threads: options.Threads = None,
    kernels: options.Kernels = "auto",
    activations: options.Activations = None,
    follow_routing: options.FollowRouting = False,
    trace: options.Trace = None,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Run synthetic prompts through a checkpoint; print rates beside bound and prediction."""
    from headrace.cli.output import console, emit_json
    from headrace.cli.summary_view import print_summary
    from headrace.cli.throughput import Load, run_throughput

    report = run_throughput(
        Load(model, batch, prompt_len, gen_len, seed),
        settings={
            "memory": memory,
            "schedule": schedule,
            "kv_dtype": kv_cache_dtype,
            "max_seqs": max_num_seqs,
            "max_rows": max_num_batched_tokens,
            "threads": threads,
            "kernels": kernels,
            "activations": activations,
            "follow_routing": follow_routing,
        },
        repeats=repeats,
        compare=compare,
        trace=trace,
        console=console(stderr=True),
    )
    if json:
        emit_json(report)
    else:
        print_summary(report, console())


def make_checkpoint(
    output: Annotated[Path, typer.Argument(help="A new folder.")],
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="mixtral|olmoe|llama|mistral")
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", metavar="NAME", help="Shape of a registry model.")
    ] = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1)] = None,
    hidden: Annotated[int | None, typer.Option("--hidden", min=2)] = None,
    heads: Annotated[int | None, typer.Option("--heads", min=1)] = None,
    kv_heads: Annotated[int | None, typer.Option("--kv-heads", min=1)] = None,
    head_dim: Annotated[int | None, typer.Option("--head-dim", min=2)] = None,
    experts: Annotated[int | None, typer.Option("--experts", min=1)] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1)] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Of one expert.")] = None,
    vocab: Annotated[int | None, typer.Option("--vocab", min=4)] = None,
    max_positions: Annotated[int | None, typer.Option("--max-positions", min=1)] = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="bf16|f16|f32")] = "bf16",
    shard_size: Annotated[str, typer.Option("--shard-size", metavar="SIZE")] = "2GB",
    seed: options.Seed = 0,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Write a checkpoint of random weights, with a small working tokenizer, to a new folder."""
    from headrace.cli.make_checkpoint import made_with_progress, shape_spec
    from headrace.cli.output import console, emit_json
    from headrace.specs.units import format_bytes, parse_size

    sizes = {
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "experts": experts,
        "top_k": top_k,
        "ffn_width": width,
        "vocab": vocab,
        "max_positions": max_positions,
    }
    if arch is not None and like is not None:
        raise UsageError("--arch and --like exclude each other", hint="leave --arch out")
    spec = shape_spec(arch or "mixtral", like, dtype, sizes)
    size = made_with_progress(spec, output, seed, parse_size(shard_size), console(stderr=True))
    if json:
        emit_json({"folder": str(output), "bytes": size, "parameters": spec.parameters()})
    else:
        print(f"{output}: {spec.parameters() / 1e6:.1f} M parameters, {format_bytes(size)}")


def schedules(
    shape: Annotated[
        list[str] | None, typer.Option("--shape", metavar="NAME", help="Registry name; repeat.")
    ] = None,
    sweeps: Annotated[int, typer.Option("--sweeps", min=1)] = 5,
    hardware: Annotated[
        str, typer.Option("--hardware", metavar="NAME", help="Whose sweeps the share is of.")
    ] = "cpu-2core",
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Measure the Python overhead per sweep of every schedule, with bodies that do nothing."""
    from time import perf_counter

    from headrace.cli.output import console, emit_json
    from headrace.cli.overhead import SHAPES, measure_all, overhead_table
    from headrace.specs.registry import known_hardware, known_model

    models = {name: known_model(name).spec for name in shape or SHAPES}
    machine = known_hardware(hardware).hardware
    found = [o.to_dict() for o in measure_all(models, perf_counter, sweeps, machine)]
    if json:
        emit_json({"hardware": hardware, "schedules": found})
    else:
        console().print(overhead_table(found, hardware))


def kernels(
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", metavar="NAME", help="Only this one; repeat.")
    ] = None,
    form: Annotated[
        list[str] | None, typer.Option("--format", metavar="F", help="Only this one; repeat.")
    ] = None,
    threads: options.Threads = None,
    implementation: options.Kernels = "auto",
    activations: options.Activations = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer shapes, shorter timings: seconds.")
    ] = False,
    folder: Annotated[
        Path, typer.Option("--folder", help="Where reads are timed: a file of 256 MB for a while.")
    ] = Path(),
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="md|json|csv", help="How to print.")
    ] = None,
    json: options.JsonRows = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Time kernels over their shapes, beside this machine's roofs and torch."""
    from time import perf_counter

    from headrace.cli.kernelbench.suite import Choice, run_suite
    from headrace.cli.kernelbench.view import (
        as_csv,
        markdown,
        roofs_line,
        table,
        versions_line,
    )
    from headrace.cli.output import console, emit_json
    from headrace.engine.probe import usable_threads

    if output not in (None, "md", "json", "csv"):
        raise UsageError("--output", expected="md | json | csv", got=output)
    used = threads or usable_threads()
    names, forms = tuple(kernel or ()), tuple(form or ())
    choice = Choice(implementation, used, names, forms, quick, folder, activations)
    said: list[str] = [versions_line()]
    stderr = console(stderr=True)
    with stderr.status("roofs") as status:
        rows = []
        for row in run_suite(
            choice, perf_counter, lambda roofs: said.append(roofs_line(roofs, used))
        ):
            rows.append(row)
            status.update(f"{row.kernel} {row.shape} {row.format}")
    if json or output == "json":
        emit_json([row.to_dict() for row in rows])
    elif output == "csv":
        print(as_csv(rows))
    elif output == "md":
        print(markdown(rows, "; ".join(said)))
    else:
        console().print(table(rows))
    if output != "md":
        for line in said:
            stderr.print(line)


def peers(
    model: options.Model,
    llama_batched_bench: Annotated[
        str | None,
        typer.Option("--llama-batched-bench", metavar="PATH", help="llama.cpp's own benchmark."),
    ] = None,
    gguf: Annotated[
        list[str] | None,
        typer.Option("--gguf", metavar="FILE", help="The same checkpoint for llama.cpp; repeat."),
    ] = None,
    llama_args: Annotated[
        str, typer.Option("--llama-args", metavar="ARGS", help="Passed on to llama.cpp.")
    ] = "",
    transformers: Annotated[
        bool, typer.Option("--transformers", help="transformers, resident, fp32 and bf16.")
    ] = False,
    accelerate: Annotated[
        bool, typer.Option("--accelerate", help="transformers, offloaded to disk (--memory).")
    ] = False,
    peer_python: Annotated[
        str | None, typer.Option("--peer-python", metavar="PATH", help="Whose transformers.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Sequences; repeat.")
    ] = None,
    prompt_len: Annotated[int, typer.Option("--prompt-len", min=1, help="Tokens each.")] = 64,
    gen_len: Annotated[int, typer.Option("--gen-len", min=2, help="Tokens each.")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns; medians count.")] = 3,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="Of one run.")
    ] = 900.0,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Bound of each, page cache included."),
    ] = None,
    threads: options.Threads = None,
    kernels: options.Kernels = "auto",
    activations: options.Activations = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Markdown, also here.")
    ] = None,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Race this engine against llama.cpp and transformers: in turn, same threads, same work."""
    from headrace.cli.output import console, emit_json
    from headrace.cli.peers.command import Peers, race
    from headrace.cli.peers.report import markdown
    from headrace.specs.units import parse_size

    chosen = Peers(
        model=model,
        llama=llama_batched_bench,
        ggufs=tuple(gguf or ()),
        llama_args=llama_args,
        transformers=transformers,
        accelerate=accelerate,
        python=peer_python,
        batches=tuple(batch or (1, 8, 32)),
        prompt_len=prompt_len,
        gen_len=gen_len,
        rounds=rounds,
        timeout=timeout,
        memory=None if memory is None else parse_size(memory),
        threads=threads,
        kernels=kernels,
        activations=activations,
    )
    stderr = console(stderr=True)
    made = race(chosen, lambda text: stderr.print(text))
    text = markdown(made)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    if json:
        emit_json(made)
    else:
        print(text)


def replay(
    ours: Annotated[
        bool, typer.Option("--ours/--no-ours", help="Also what our own schedules would give.")
    ] = True,
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit the fitted constants again first: some minutes.")
    ] = False,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Price published rows of other runtimes, residuals and misses included. Simulated."""
    from headrace.cli.output import console, emit_json
    from headrace.cli.replay import print_replay, replay_report

    stderr = console(stderr=True)
    report = replay_report(with_ours=ours, fitted_anew=fit, say=lambda text: stderr.print(text))
    if json:
        emit_json(report)
    else:
        print_replay(report, console())


def prediction(
    runs: Annotated[int, typer.Option("--runs", min=1, help="Runs drawn.")] = 30,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Drawn from. Default: the study's own.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Of each; medians count.")] = 3,
    run_seconds: Annotated[
        float, typer.Option("--run-seconds", min=1, metavar="S", help="About what a run lasts.")
    ] = 60.0,
    folder: Annotated[
        Path, typer.Option("--folder", help="Holds checkpoints (5 GB) and what is done so far.")
    ] = Path("prediction-study"),
    prepare: Annotated[bool, typer.Option("--prepare", help="Only make the checkpoints.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over; the checkpoints stay.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The table, in Markdown.")
    ] = None,
    json: options.Json = False,
    config: options.Config = None,
    verbose: options.Verbose = 0,
) -> None:
    """Predict runs drawn from a seed, run them, and say how far off the predictions were.

    The same command goes on where it was cut. Exit code 1 when a figure misses its bound.
    """
    from time import perf_counter

    from headrace.cli.output import console, emit_json
    from headrace.cli.prediction.draw import SEED, SHAPES
    from headrace.cli.prediction.kept import Request
    from headrace.cli.prediction.report import markdown, report
    from headrace.cli.prediction.study import Study

    said = console(stderr=True)
    request = Request(SEED if seed is None else seed, runs, repeats, run_seconds, SHAPES)
    with Study(folder, request, perf_counter, said.print, fresh=fresh) as study:
        study.prepare()
        if prepare:
            return
        rows = study.run()
        about = study.about()
    found, table = report(rows), markdown(rows, about)
    if output is not None:
        output.write_text(table, encoding="utf-8")
    if json:
        emit_json(found)
    else:
        print(table, end="")
    if not all(check["holds"] for check in found["verdict"]["checks"]):
        raise typer.Exit(1)
