"""Featurising: SMILES to graphs, molecules per second, in one process and in two."""

from _common import CLOCKS, Row, parser, print_rows, write_rows

from sciLDM.domains.molecules.featurise import featurise
from sciLDM.domains.molecules.sources import qm9, zinc250k
from sciLDM.errors import DataError

SOURCES = {"QM9": qm9, "ZINC250k": zinc250k}


def measure(count: int, repeats: int) -> list[Row]:
    """Rows of this benchmark, on `count` molecules spread over each data set; the best of `repeats`."""
    rows = []
    for name, source in SOURCES.items():
        try:
            smiles = source()["smiles"]
        except DataError as error:
            print(f"{name} left out: {error}")
            continue
        chosen = smiles.iloc[:: max(1, len(smiles) // count)].head(count).tolist()
        rates: dict[int, float] = {}
        for _ in range(repeats):
            for workers in (1, 2):
                start = CLOCKS["wall"]()
                kept = len(featurise(chosen, workers=workers).smiles)
                rates[workers] = max(rates.get(workers, 0.0), len(chosen) / (CLOCKS["wall"]() - start))
        note = f"{kept} of {len(chosen)} kept"
        rows.append(Row(f"featurise {name}, 1 process", rates[1], "molecules/s", note=note))
        rows.append(Row(f"featurise {name}, 2 processes", rates[2], "molecules/s"))
        rows.append(Row(f"featurise {name}, 2 processes over 1", rates[2] / rates[1], "1"))
    return rows


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument(
        "--count", type=int, default=20000, help="molecules of each data set (default: 20000)"
    )
    options = arguments.parse_args()
    rows = measure(400, 1) if options.quick else measure(options.count, min(options.repeats, 3))
    print_rows(rows)
    write_rows(rows, options.json)


if __name__ == "__main__":
    main()
