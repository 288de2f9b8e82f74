"""A crowd before `nadir serve`: accepted work, refusals, memory, and whether each picture is the one that is drawn alone.

    python benches/serve/load.py target/release/nadir --clients 1000 --minutes 10
    python benches/serve/load.py target/release/nadir --clients 1000 --minutes 1 --crowd

Needs aiohttp. Starts the server itself; first `nadir generate -b` is timed for the throughput that there is without a server, and
requests that come alone, both left out with --crowd; then the picture of each seed is drawn alone. Every client asks for a
picture, waits for it, and comes again when it is told to. Fails where a picture is another than alone, or a reply is neither a
picture nor a request to come again.
"""

import argparse
import asyncio
import hashlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter

import aiohttp

SEEDS = 16


def memory(pid):
    status = open(f"/proc/{pid}/status").read()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


async def draw(session, url, seed, steps):
    body = {"prompt": "a river", "steps": steps, "seed": seed}
    async with session.post(f"{url}/sdapi/v1/txt2img", json=body) as reply:
        if reply.status == 200:
            return 200, hashlib.sha256((await reply.json())["images"][0].encode()).hexdigest(), 0
        return reply.status, None, int(reply.headers.get("Retry-After", 1))


async def lone(session, url, count, steps):
    times = []
    for i in range(count):
        start = time.perf_counter()
        await draw(session, url, i, steps)
        times.append(time.perf_counter() - start)
    return times


async def served(session, url, count, steps):
    """Pictures a second of so many that are asked for at once."""
    start = time.perf_counter()
    replies = await asyncio.gather(*(draw(session, url, i, steps) for i in range(count)))
    assert all(status == 200 for status, _, _ in replies)
    return count / (time.perf_counter() - start)


def plainly(options):
    """Pictures a second without a server; the command line says how long each takes alone."""
    with tempfile.TemporaryDirectory() as folder:
        common = ["generate", "a river", "-s", "0", "--steps", str(options.steps), "-o", folder]
        start = time.perf_counter()
        many = [options.nadir, *common, "-q", "-b", "128", "--batch", str(options.batch)]
        subprocess.run(many, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
        start = time.perf_counter()
        subprocess.run([options.nadir, *common, "-q", "-b", "1"], check=True, stdout=subprocess.DEVNULL)
        plain = 127 / (whole - (time.perf_counter() - start))
        times = [options.nadir, *common, "-b", "100", "--deadline-ms", "1000000"]
        told = subprocess.run(times, check=True, capture_output=True, text=True).stderr
        print(f"nadir generate: {plain:.2f} pictures a second; one at a time:", told.strip().splitlines()[-1])
    return plain


async def crowd(session, url, options, alone, pid):
    seconds = options.minutes * 60
    until = time.perf_counter() + seconds
    counts, wrong, taken, levels = Counter(), [], Counter(), []

    async def client(i):
        n = i
        while time.perf_counter() < until:
            try:
                status, found, wait = await draw(session, url, n % SEEDS, options.steps)
            except aiohttp.ClientError as error:
                counts[type(error).__name__] += 1
                continue
            counts[status] += 1
            if status == 200:
                taken[int(time.perf_counter() - (until - seconds))] += 1
                if found != alone[n % SEEDS]:
                    wrong.append(n)
                n += options.clients
            else:
                await asyncio.sleep(min(wait, 5))

    async def watch():
        while time.perf_counter() < until:
            levels.append(memory(pid))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(client(i) for i in range(options.clients)))
    middle = [taken[s] for s in range(int(seconds * 0.1), int(seconds * 0.95))]
    rate = sum(middle) / len(middle)
    third = levels[min(len(levels) - 1, 180)]
    print(f"{options.clients} clients, {options.minutes:g} minutes: {dict(counts)}, {len(wrong)} wrong pictures")
    print(f"{rate:.2f} pictures a second")
    print(f"memory: {levels[0]:.0f} MiB at first, {third:.0f} at minute 3, {levels[-1]:.0f} at the end")
    strange = set(counts) - {200, 429}
    if wrong or strange or not counts[200]:
        sys.exit(f"{len(wrong)} wrong pictures, {counts[200]} right ones, other replies: {strange}")
    return rate


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nadir")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--crowd", action="store_true", help="the crowd alone")
    options = parser.parse_args()
    plain = None if options.crowd else plainly(options)

    command = [options.nadir, "serve", "--port", "0", "-q", "--batch", str(options.batch)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        timeout = aiohttp.ClientTimeout(total=600)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            while (await session.get(f"{url}/health/ready")).status != 200:
                await asyncio.sleep(0.05)
            if plain is not None:
                times = sorted(await lone(session, url, 100, options.steps))
                p50, p99 = statistics.median(times) * 1e3, times[98] * 1e3
                print(f"lone requests: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
                rate = await served(session, url, 128, options.steps)
                print(f"128 at once: {rate:.2f} pictures a second, {rate / plain:.3f} of nadir generate's")
            alone = [(await draw(session, url, seed, options.steps))[1] for seed in range(SEEDS)]
            rate = await crowd(session, url, options, alone, server.pid)
            if plain is not None:
                print(f"{rate / plain:.3f} of nadir generate's pictures a second")
    finally:
        server.terminate()
        server.wait()


asyncio.run(main())
