"""Time, traffic and memory of the kernels, beside the published way and other optimizers, on Llama's parameter shapes.

    python -m benchmarks kernels                 # on a CPU 33 M weights, on a GPU Llama-2-7b
    python -m benchmarks kernels --shapes 7b --layers 8 --only step

Three tables: whole selection (score, rank, write the mask), single ops, and whole optimizer steps. `bytes_moved` is what
a provider must read and write at least, from the density of a random mask; the share of copy bandwidth follows from it.
On a CPU with more than one thread, times of short ops swing widely: set OMP_NUM_THREADS=1.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import wagle_kernels
from benchmarks.measure import Row, compare, copy_bandwidth, make_row, show, write
from benchmarks.peers import OPTIONS, PEERS, available, versions
from wagle_kernels import DENSE_GROUP, INDEX_DENSITY, RANK_GROUP, Layout, ScoreSpec
from wagle_trl.attribution.lazy_scores import LazyScores
from wagle_trl.attribution.selection import select
from wagle_trl.masks.mask import WeightMask
from wagle_trl.optim.masked_adamw import MaskedAdamW

RESULTS = Path(__file__).parent / "results"
# name -> vocabulary, width, inner width, layers
SHAPES = {"small": (8000, 512, 1376, 8), "1b": (32000, 2048, 5632, 22), "7b": (32000, 4096, 11008, 32)}
DENSITIES = (0.05, 0.5, 0.95)
DESIGN_FLOOR = {0.05: 5.6, 0.5: 10.1, 0.95: 13.7}  # bytes a weight of a step with 8-bit state and a split master
WHOLE_COPY = 2_000_000_000  # weights up to which ways that copy all scores are tried
SPEC = ScoreSpec("wagle", 0.05)


def llama_shapes(name: str, layers: int | None) -> list[tuple[int, ...]]:
    """Shapes of all parameters, in model order."""
    vocabulary, width, inner, depth = SHAPES[name]
    block = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner), (width,), (width,)]
    return [(vocabulary, width), *block * (layers or depth), (width,), (vocabulary, width)]


def filled(shapes: list[tuple[int, ...]], dtype: torch.dtype, std: float, device: torch.device) -> list[Tensor]:
    """Normal random tensors, made in their own dtype so that nothing larger exists."""
    return [torch.empty(shape, dtype=dtype, device=device).normal_(std=std) for shape in shapes]


def random_bits(shapes: list[tuple[int, ...]], density: float, device: torch.device) -> list[Tensor]:
    return [torch.empty(shape, device=device).uniform_() < density for shape in shapes]


# Selection


def selection_rows(shapes, dtype, density, device, bandwidth, rounds) -> Iterator[Row]:
    """Scores to a mask: ours, the published way, and what torch offers."""
    weights = filled(shapes, dtype, 0.02, device)
    statistics = [filled(shapes, torch.float32, 1e-3, device) for _ in range(2)]
    size = sum(w.numel() for w in weights)
    names = [str(i) for i in range(len(shapes))]
    scored = LazyScores(dict(zip(names, weights)), SPEC, *(dict(zip(names, s)) for s in statistics))
    k = round(density * size)

    def scores() -> Tensor:
        """As the published code makes them: one tensor a parameter, then one of all."""
        parts = (((w - r / SPEC.scale) * f).abs().flatten() for w, f, r in zip(weights, *statistics))
        return torch.cat(list(parts))

    def published() -> Tensor:
        return torch.argsort(torch.argsort(-scores())) < k

    def topk() -> Tensor:
        values = scores()
        mask = torch.zeros(size, dtype=torch.bool, device=device)
        return mask.index_fill_(0, values.topk(k, sorted=False).indices, True)

    def kthvalue() -> Tensor:
        values = scores()
        return values >= values.kthvalue(size - k + 1).values

    calls: dict[str, Callable] = {"ours": lambda: select(scored, density)}
    if size <= WHOLE_COPY:
        calls |= {"torch.topk": topk, "torch.kthvalue": kthvalue, "published (two argsorts)": published}
    calls = dict(runnable(calls))
    one_pass = sum(w.nbytes for w in weights) + 8 * size
    for name, measured in compare(calls, device, rounds, warmup=1, flush_cache=False).items():
        note = "" if name == "ours" else "boolean mask"
        mask_bytes = size // 8 if name == "ours" else size
        yield make_row(
            "score + select + write",
            name,
            measured,
            size=size,
            dtype=dtype,
            bandwidth=bandwidth,
            density=density,
            bytes_moved=one_pass + mask_bytes,
            note=note,
        )


def runnable(calls: dict[str, Callable]) -> Iterator[tuple[str, Callable]]:
    """Those that run here; the others, and why not, are printed."""
    for name, call in calls.items():
        try:
            call()
        except RuntimeError as error:  # out of memory, or more elements than an op takes
            print(f"{name} does not run: {str(error).splitlines()[0]}")
        else:
            yield name, call


# Single ops


def op_rows(shape, dtype, device, bandwidth, rounds) -> Iterator[Row]:
    """Every op on one parameter, by both backends where both run."""
    (weight,), (forget,), (retain,) = (
        filled([shape], kind, std, device)
        for kind, std in ((dtype, 0.02), (torch.float32, 1e-3), (torch.float32, 1e-3))
    )
    weight, forget, retain = weight.view(-1), forget.view(-1), retain.view(-1)
    size = weight.numel()
    cases: dict[tuple[str, float | None], tuple[Callable, float]] = {}

    def add(name: str, bytes_moved: float, op: Callable, *arguments, density: float | None = None, **options) -> None:
        cases[name, density] = (lambda backend: op(*arguments, **options, backend=backend)), bytes_moved

    item, digit = weight.element_size(), wagle_kernels.digit_bits(device)
    counts = torch.zeros(2**digit, dtype=torch.int64, device=device)
    histogram = wagle_kernels.score_histogram
    add("score", (item + 12) * size, wagle_kernels.score, weight, forget, retain, SPEC)
    add("histogram", (item + 8) * size, histogram, counts, weight, forget, retain, SPEC, shift=32 - digit)
    add("accumulate", (item + 8) * size, wagle_kernels.accumulate, forget.clone(), weight)
    add("accumulate squares", (item + 8) * size, wagle_kernels.accumulate, forget.clone(), weight, squared=True)
    for density in DENSITIES:
        bits = (torch.rand(size, device=device) < density).contiguous()
        layout = Layout.of([wagle_kernels.pack(bits)], [size])
        out = torch.zeros(layout.num_selected, device=device)
        low = out.to(dtype)
        touched, positions = sectors(density, item), position_bytes(density)
        options = dict(density=density)
        moved = (item * touched + positions + 4 * density) * size
        add("compress", moved, wagle_kernels.compress, weight, layout, 0, out, **options)
        moved = (item * (touched + density) + positions) * size
        add("scatter", moved, wagle_kernels.scatter, weight, layout, 0, low, **options)
    add("pack", size * 9 / 8, wagle_kernels.pack, bits)
    add("unpack", size * 9 / 8, wagle_kernels.unpack, wagle_kernels.pack(bits), size)
    for (name, density), (call, bytes_moved) in cases.items():
        calls = {backend: (lambda call=call, backend=backend: call(backend)) for backend in backends(device)}
        for backend, measured in compare(calls, device, rounds).items():
            yield make_row(
                name,
                f"ours, {backend}",
                measured,
                size=size,
                dtype=dtype,
                bandwidth=bandwidth,
                density=density,
                bytes_moved=round(bytes_moved),
            )


def backends(device: torch.device) -> tuple[str, ...]:
    return ("reference",) if device.type == "cpu" else ("triton", "reference")


# Optimizer steps


def sectors(density: float, item: int) -> float:
    """Share of 32-byte sectors that hold a selected element of `item` bytes, for a random mask."""
    return 1 - (1 - density) ** (32 // item)


def position_bytes(density: float) -> float:
    """Bytes a weight in which a layout holds positions."""
    return 2 * density if density <= INDEX_DENSITY else 1 / 8


def step_bytes(density: float, state_bits: int, item: int, master: bool) -> float:
    """
    What our step moves at least, in bytes a weight, without accumulation: compress the gradients into accumulators of
    their own dtype, then gather the weights, update and scatter in one pass.
    """
    touched, positions = sectors(density, item), position_bytes(density)
    group = RANK_GROUP / density if density <= INDEX_DENSITY else DENSE_GROUP
    moments = 2 * 2 * density * state_bits / 8 + (4 / group if state_bits == 8 else 0)
    compress = item * (touched + density) + positions
    update = item * (2 * touched + density) + positions + moments + (4 * density if master else 0)
    return compress + update


def peer_bytes(state_bytes: float, item: int) -> float:
    """A peer's: mask the gradients (read, write, a byte of mask), then read them, and read and write weights and state."""
    return 2 * item + 1 + item + 2 * item + 2 * state_bytes


def step_rows(shapes, dtype, density, peers, device, bandwidth, rounds) -> Iterator[Row]:
    """One step from dense gradients of all weights, each provider on tensors of its own, one after the other."""
    bits = random_bits(shapes, density, device)
    size = sum(b.numel() for b in bits)
    item = torch.empty(0, dtype=dtype).element_size()
    kernel = "masked step"

    def prepared() -> list[nn.Parameter]:
        parameters = [nn.Parameter(t) for t in filled(shapes, dtype, 0.02, device)]
        for parameter, gradient in zip(parameters, filled(shapes, dtype, 1e-3, device)):
            parameter.grad = gradient
        return parameters

    def row(provider: str, call: Callable, bytes_a_weight: float, note: str) -> Row:
        (measured,) = compare({provider: call}, device, rounds, warmup=2, flush_cache=False).values()
        moved = round(bytes_a_weight * size)
        return make_row(
            kernel,
            provider,
            measured,
            size=size,
            dtype=dtype,
            bandwidth=bandwidth,
            density=density,
            bytes_moved=moved,
            note=note,
        )

    mask = WeightMask.from_dense({str(i): b for i, b in enumerate(bits)})
    for state_bits in (8, 32):
        parameters = prepared()
        gradients = [parameter.grad for parameter in parameters]
        named = [(str(i), parameter) for i, parameter in enumerate(parameters)]
        optimizer = MaskedAdamW(named, mask, **OPTIONS, state_bits=state_bits)

        def step(optimizer=optimizer, parameters=parameters, gradients=gradients):
            for parameter, gradient in zip(parameters, gradients):
                parameter.grad = gradient
            optimizer.step()

        moved = step_bytes(density, state_bits, item, dtype == torch.bfloat16)
        note = f"state {optimizer.state_bytes / size:.2f} B/weight"
        yield row(f"ours, {state_bits}-bit", step, moved, note)
        del parameters, gradients, named, optimizer, step
    for name, factory in peers.items():
        parameters, step = prepared(), None
        try:
            step = factory(parameters, bits)
            step()
            state = step.state_bytes / size
            yield row(name, step, peer_bytes(state, item), f"state {state:.2f} B/weight")
        except Exception as error:  # whatever a package raises: the other rows must not be lost
            print(f"{name} does not run: {error}".partition("\n")[0])
        del parameters, step


def print_bytes() -> None:
    """Bytes a weight of a step with 8-bit state and a split master, beside the floor of the design."""
    for density, floor in DESIGN_FLOOR.items():
        moved = step_bytes(density, 8, 2, True)
        print(f"density {density}: {moved:.2f} bytes a weight, {moved / floor:.2f} of the design's floor of {floor}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--shapes", choices=SHAPES, default="7b" if gpu else "small")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--only", nargs="+", choices=["selection", "ops", "step"], default=["selection", "ops", "step"]
    )
    parser.add_argument("--densities", nargs="+", type=float, default=DENSITIES)
    parser.add_argument("--rounds", type=int, default=20 if gpu else 5)
    parser.add_argument("--output", type=Path, help="JSON to write; a CSV of the rows lies beside it")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if gpu else "cpu")
    output = args.output or RESULTS / f"kernels_{device.type}.json"
    shapes, dtype = llama_shapes(args.shapes, args.layers), getattr(torch, args.dtype)
    bandwidth = copy_bandwidth(device)
    common = dict(device=device, bandwidth=bandwidth, rounds=args.rounds)
    payload = dict(
        shapes=args.shapes,
        layers=args.layers or SHAPES[args.shapes][-1],
        copy_bandwidth=bandwidth,
        peers=versions(),
        bytes_a_weight={d: step_bytes(d, 8, 2, True) for d in DENSITIES},
        design_floor=DESIGN_FLOOR,
    )
    rows: list[Row] = []

    def keep(more: Iterator[Row]) -> None:
        """Written after every row, so that a run that is cut short loses one."""
        for row in more:
            rows.append(row)
            write(rows, output, **payload)

    if "selection" in args.only:
        keep(selection_rows(shapes, dtype, args.densities[0], **common))
    if "ops" in args.only:
        keep(op_rows(max(shapes[1:-1], key=lambda shape: shape[0] * shape[-1]), dtype, **common))
    if "step" in args.only:
        reasons = available(device)
        print(*(f"{name} does not run: {reason}" for name, reason in reasons.items() if reason), sep="\n")
        usable = {name: factory for name, factory in PEERS.items() if reasons[name] is None}
        for density in args.densities:
            keep(step_rows(shapes, dtype, density, usable, **common))
    show(rows)
    print_bytes()


if __name__ == "__main__":
    main()
