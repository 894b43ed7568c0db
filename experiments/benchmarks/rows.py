"""The default recipe's step by the length of its packed rows (`row_tokens`), in turn on the same batch."""

import race
import threads
import training

LENGTHS = (1024, 768, 512, 256)


def main() -> None:
    given = race.arguments(
        __doc__, **training.OPTIONS, count={"type": int, "default": 16, "help": "triplets of a step"}
    )
    steps = {f"rows of {length:,} tokens": threads.recipe(given, length) for length in LENGTHS}
    seconds = race.alternate(steps, given.rounds)
    first = next(iter(seconds.values()))
    rows = [{"contestant": name, "seconds": value, "x the first": value / first} for name, value in seconds.items()]
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]))
    print(race.keep("rows", given, rows, picture=None))


if __name__ == "__main__":
    main()
