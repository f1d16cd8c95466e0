"""
What the compiler makes of a launch, without a GPU: registers, spills, widths of memory accesses, instructions.

Tests run kernels in Triton's interpreter, which is chosen when a kernel is decorated, so this runs as its own process:

    python tests/kernels/compiled.py CASES.py OUT.json [--targets sm_90 gfx942] [--jobs 2]

CASES.py defines `CASES: dict[str, Callable[[], None]]`; each case calls launchers with tensors on the CPU. OUT.json is
`{case: {target: numbers}}`, and `case/kernel` for the cases that launch several kernels.
"""

import os

if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: its own library is decorated as well

import argparse
import importlib.util
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Launch:
    """One launch as the launcher asked for it; it holds the tensors, so their addresses stay what they were."""

    kernel: JITFunction
    arguments: dict[str, Any]  # by parameter, constexprs and defaults included
    options: dict[str, Any]  # num_warps, num_stages, enable_fp_fusion, ...
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Code:
    """What the compiler made of a launch for one target. Bytes and counts of instructions are per thread."""

    registers: int  # on AMD the vector registers
    spill_bytes: int  # Triton has no arrays in local memory: what NVIDIA's compiler puts there, it spilled
    local_bytes: int
    shared_bytes: int  # per program
    threads: int  # per program
    instructions: int  # static, without no-ops and padding
    loop_instructions: int  # those of the longest loop, which a thread repeats; all, if there is none
    loads: dict[int, int]  # bits of a global load -> how many such instructions
    stores: dict[int, int]
    local: int  # loads and stores of local memory
    text: str  # SASS or amdgcn


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Inside, `kernel[grid](...)` appends to the list instead of running; no driver is needed."""
    launches = []

    def record(kernel, *args, grid, warmup, **kwargs):
        names = kernel.signature.parameters
        options = {name: value for name, value in kwargs.items() if name not in names}
        bound = kernel.signature.bind(*args, **{name: value for name, value in kwargs.items() if name in names})
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        launches.append(Launch(kernel, arguments, options, tuple(grid(arguments) if callable(grid) else grid)))

    with patch.object(JITFunction, "run", record):
        yield launches


def compile_for(launch: Launch, target: str) -> Code:
    """The code that would run if `launch` happened on `target`, a key of `TARGETS`."""
    gpu = TARGETS[target]
    backend = make_backend(gpu)
    # The steps of `JITFunction.run`, with our target instead of the driver's: its binder decides which arguments become
    # constants and which are known to be divisible by 16. Not public, but the same in Triton 3.6 and 3.9.
    binder = create_function_from_signature(launch.kernel.signature, launch.kernel.params, backend)
    arguments, specialization, options = binder(**launch.arguments, **launch.options)
    keywords = {"debug": launch.kernel.debug} | options
    options, *source = launch.kernel._pack_args(backend, keywords, arguments, specialization, options)
    compiled = triton.compile(ASTSource(launch.kernel, *source), target=gpu, options=vars(options))

    read = _read_sass if gpu.backend == "cuda" else _read_amdgcn
    return Code(
        shared_bytes=compiled.metadata.shared,
        threads=compiled.metadata.num_warps * gpu.warp_size,
        **read(compiled.asm),
    )


# "        /*01e0*/              @!P0 LDG.E.128 R4, desc[UR12][R2.64] ;"
_SASS_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?([A-Z][\w.:]*)([^;]*);", re.MULTILINE)
_SASS_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}


def _read_sass(asm) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", file.name]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text = re.sub(r" */\* 0x[0-9a-f]+ \*/\n?", "\n", output).replace("\n\n", "\n")  # without the machine words
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text).groups())

    local_accesses, places, branches = 0, [], []
    widths = {"LDG": Counter(), "STG": Counter()}
    for address, name, operands in _SASS_LINE.findall(text):
        address = int(address, 16)
        operation, *modifiers = name.split(".")
        target = int(operands.split()[-1], 16) if operation == "BRA" else None
        if operation == "NOP" or target == address:  # a branch to itself stands after the last EXIT
            continue
        places.append(address)
        if target is not None:
            branches.append((address, target))
        local_accesses += operation in ("LDL", "STL")
        if operation in widths:
            bits = next((_SASS_BITS[modifier] for modifier in modifiers if modifier in _SASS_BITS), 32)
            widths[operation][bits] += 1
    return dict(
        registers=registers,
        spill_bytes=stack + local,
        local_bytes=stack + local,
        instructions=len(places),
        loop_instructions=_longest_loop(places, branches),
        loads=dict(widths["LDG"]),
        stores=dict(widths["STG"]),
        local=local_accesses,
        text=text,
    )


def _longest_loop(places: list[int], branches: list[tuple[int, int]]) -> int:
    """Instructions between the target of a branch backwards and the branch; all, if there is none."""
    loops = [sum(target <= place <= branch for place in places) for branch, target in branches if target < branch]
    return max(loops, default=len(places))


# Instructions, whose directives start with a dot, and labels
_AMD_LINE = re.compile(r"^(?:\t([a-z]\w*)(.*)|(\.LBB\w+):)", re.MULTILINE)
_AMD_ACCESS = re.compile(r"(?:global|buffer)_(load|store)_[us]?(byte|short|dword)(?:x(\d))?")
_AMD_BITS = {"byte": 8, "short": 16, "dword": 32}


def _read_amdgcn(asm) -> dict[str, Any]:
    text = asm["amdgcn"]

    def metadata(name: str) -> int:
        return int(re.search(rf"\.{name}: +(\d+)", text)[1])

    names, labels, branches = [], {}, []
    for name, operands, label in _AMD_LINE.findall(text):
        if label:
            labels[label] = len(names)
        elif name != "s_nop":
            if name.startswith(("s_branch", "s_cbranch")) and operands.strip() in labels:  # backwards
                branches.append((len(names), labels[operands.strip()]))
            names.append(name)
    widths = {"load": Counter(), "store": Counter()}
    for access in filter(None, map(_AMD_ACCESS.match, names)):
        direction, unit, count = access.groups()
        widths[direction][_AMD_BITS[unit] * int(count or 1)] += 1
    return dict(
        registers=metadata("vgpr_count"),
        spill_bytes=4 * (metadata("vgpr_spill_count") + metadata("sgpr_spill_count")),
        local_bytes=metadata("private_segment_fixed_size"),
        instructions=len(names),
        loop_instructions=_longest_loop(list(range(len(names))), branches),
        loads=dict(widths["load"]),
        stores=dict(widths["store"]),
        local=sum(name.startswith("scratch_") for name in names),
        text=text,
    )


def record_cases(path: Path) -> dict[str, Launch]:
    """Name -> launch, of every case in the file."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)

    recorded = {}
    for case, run in module.CASES.items():
        with recorded_launches() as launches:
            run()
        if not launches:
            raise RuntimeError(f"Case '{case}' launched no kernel.")
        names = [f"{case}/{launch.kernel.__name__}" for launch in launches] if len(launches) > 1 else [case]
        for i, name in enumerate(names):
            nth = names[: i + 1].count(name)
            recorded[name if nth == 1 else f"{name}#{nth}"] = launches[i]
    return recorded


_recorded: dict[str, Launch] = {}  # the workers are forks: they find the launches here, nothing is pickled


def _numbers(case: str, target: str) -> dict[str, Any]:
    try:
        numbers = asdict(compile_for(_recorded[case], target))
    except Exception as error:  # Triton's own do not survive pickling
        raise RuntimeError(f"Case '{case}' does not compile for {target}: {type(error).__name__}: {error}") from None
    del numbers["text"]
    return numbers


def compile_all(targets: list[str], jobs: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Case -> target -> numbers of all recorded launches; exits with every failure when there is one."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        futures = {(case, t): pool.submit(_numbers, case, t) for case in _recorded for t in targets}
    errors = {key: error for key, future in futures.items() if (error := future.exception())}
    # A compiler that dies takes the pool along. Work is handed out in order: it was on one of the first unfinished.
    unfinished = [key for key, error in errors.items() if isinstance(error, BrokenProcessPool)]
    failures = [str(error) for key, error in errors.items() if key not in unfinished]
    if unfinished:
        suspects = " or ".join(f"case '{case}' for {target}" for case, target in unfinished[:jobs])
        failures.append(f"The compiler died on {suspects}.")
    if failures:
        sys.exit("\n\n".join(failures))
    return {case: {t: futures[case, t].result() for t in targets} for case in _recorded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("cases", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(1)  # a fork would not inherit torch's threads
    _recorded.update(record_cases(args.cases))
    numbers = compile_all(args.targets, args.jobs)
    args.out.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
