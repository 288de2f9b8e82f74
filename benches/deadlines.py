"""Batches within a time: which times are refused, and how late the batches of the others are.

    python benches/deadlines.py target/release/nadir --batches 200

First a plain loop, whose p50 is what is feasible and whose p99 / p50 is the machine's jitter; then 0.8, 1.0 and 1.2 times p50, with
the company fixed and with a smaller one allowed. No batch is to be late by more than 5 % and the jitter.
"""

import argparse
import re
import subprocess
import tempfile

NO_LIMIT = 10**9


def generate(args, deadline, *more):
    """What the program said: of its plan, and at the end; None for the latter where it refused."""
    with tempfile.TemporaryDirectory() as folder:
        command = [args.nadir, "generate", "a river", "--seed", "0", "-b", str(args.batches * args.batch)]
        command += ["--batch", str(args.batch), "--steps", str(args.steps), "-o", folder]
        done = subprocess.run(
            [*command, "--deadline-ms", str(deadline), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        plan = re.search(r"\d+ at once with .*", done.stderr)
        if done.returncode:
            return re.search(r"nearest is .*", done.stderr)[0], None
        return plan[0], re.search(r"(\d+) batches: p50 (\d+) ms, p99 (\d+) ms, max (\d+) ms.*", done.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nadir")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    fixed = ("--min-batch", str(args.batch))
    _, plain = generate(args, NO_LIMIT, *fixed)
    p50, p99 = int(plain[2]), int(plain[3])
    print(f"plain loop: {plain[0]}; jitter {p99 / p50:.2f}")
    for share in (0.8, 1.0, 1.2):
        for company, more in (("fixed", fixed), ("smaller", ())):
            deadline = round(share * p50)
            plan, told = generate(args, deadline, *more)
            if not told:
                print(f"{share}x, company {company}: {deadline} ms refused: {plan}")
                continue
            late, allowed = int(told[4]) / deadline, 0.05 + p99 / p50
            verdict = "late" if late > allowed else "kept"
            print(f"{share}x, company {company}: {plan}; {told[0]}; worst {late:.2f} of {allowed:.2f}: {verdict}")


main()
