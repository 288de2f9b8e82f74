"""A crowd before `nadir serve`: accepted work, refusals, memory, and whether each picture is the one that is drawn alone.

    python benches/serve/load.py target/release/nadir --clients 1000 --minutes 10

Needs aiohttp. Starts the server itself; first the pictures of each seed are drawn alone, and `nadir generate -b` is timed for the
throughput that there is without a server. Every client asks for a picture, waits for it, and comes again when it is told to.
"""

import argparse
import asyncio
import hashlib
import re
import statistics
import subprocess
import tempfile
import time
from collections import Counter

import aiohttp

STEPS, SEEDS = 20, 16


def memory(pid):
    status = open(f"/proc/{pid}/status").read()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


async def draw(session, url, seed):
    body = {"prompt": "a river", "steps": STEPS, "seed": seed}
    async with session.post(f"{url}/sdapi/v1/txt2img", json=body) as reply:
        if reply.status == 200:
            return 200, hashlib.sha256((await reply.json())["images"][0].encode()).hexdigest(), 0
        return reply.status, None, int(reply.headers.get("Retry-After", 1))


async def lone(session, url, count):
    times = []
    for i in range(count):
        start = time.perf_counter()
        await draw(session, url, i)
        times.append(time.perf_counter() - start)
    return times


async def crowd(session, url, clients, seconds, alone, pid):
    until = time.perf_counter() + seconds
    counts, wrong, taken, levels = Counter(), [], Counter(), []

    async def client(i):
        n = i
        while time.perf_counter() < until:
            try:
                status, found, wait = await draw(session, url, n % SEEDS)
            except aiohttp.ClientError as error:
                counts[type(error).__name__] += 1
                continue
            counts[status] += 1
            if status == 200:
                taken[int(time.perf_counter() - (until - seconds))] += 1
                if found != alone[n % SEEDS]:
                    wrong.append(n)
                n += clients
            else:
                await asyncio.sleep(min(wait, 5))

    async def watch():
        while time.perf_counter() < until:
            levels.append(memory(pid))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(client(i) for i in range(clients)))
    return counts, wrong, taken, levels


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nadir")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        common = ["generate", "a river", "-s", "0", "--steps", str(STEPS), "-q", "-o", folder]
        timed = [args.nadir, *common, "-b", "128", "--batch", str(args.batch)]
        start = time.perf_counter()
        subprocess.run(timed, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
        start = time.perf_counter()
        subprocess.run([args.nadir, *common, "-b", "1"], check=True, stdout=subprocess.DEVNULL)
        plain = 127 / (whole - (time.perf_counter() - start))
        times = [args.nadir, *common, "-b", "100", "--deadline-ms", "1000000"]
        told = subprocess.run([t for t in times if t != "-q"], check=True, capture_output=True, text=True).stderr
        print(f"nadir generate: {plain:.2f} pictures a second; one at a time:", told.strip().splitlines()[-1])

    server = subprocess.Popen(
        [args.nadir, "serve", "--port", "0", "-q", "--batch", str(args.batch)], stdout=subprocess.PIPE, text=True
    )
    try:
        url = server.stdout.readline().strip()
        timeout = aiohttp.ClientTimeout(total=600)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            while (await session.get(f"{url}/health/ready")).status != 200:
                await asyncio.sleep(0.05)
            times = sorted(await lone(session, url, 100))
            p50, p99 = statistics.median(times) * 1e3, times[98] * 1e3
            print(f"lone requests: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
            alone = [(await draw(session, url, seed))[1] for seed in range(SEEDS)]
            seconds = args.minutes * 60
            counts, wrong, taken, levels = await crowd(session, url, args.clients, seconds, alone, server.pid)
            middle = [taken[s] for s in range(int(seconds * 0.1), int(seconds * 0.95))]
            rate = sum(middle) / len(middle)
            third = levels[min(len(levels) - 1, 180)]
            print(f"{args.clients} clients, {args.minutes:g} minutes: {dict(counts)}, {len(wrong)} wrong pictures")
            print(f"{rate:.2f} pictures a second, {rate / plain:.3f} of nadir generate's")
            print(f"memory: {levels[0]:.0f} MiB at first, {third:.0f} at minute 3, {levels[-1]:.0f} at the end")
    finally:
        server.terminate()
        server.wait()


asyncio.run(main())
