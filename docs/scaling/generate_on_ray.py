"""The pictures of a manifest, by as many actors as a Ray cluster has room for, into one folder that all of them see.

    python generate_on_ray.py prompts.jsonl pictures/ --shards 2 -- -m models/my-sd --steps 30

A shard that dies is begun again, wherever there is room: what it had finished is there, and what it was about is drawn once.
"""

import argparse
import subprocess
import sys

import ray


@ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)
class Shard:
    def draw(self, command):
        done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if done.returncode == 2:
            raise SystemExit(done.stderr)  # a request that cannot be served: again would not help
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return len(done.stdout.splitlines())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest")
    parser.add_argument("folder")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--nadir", default="nadir")
    ours, options = sys.argv[1:], []
    if "--" in ours:
        ours, options = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    args = parser.parse_args(ours)
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    command = [args.nadir, "generate", "--manifest", args.manifest, "-o", args.folder, "--quiet", *options]
    drawn = [
        Shard.remote().draw.remote([*command, "--shard", f"{i}/{args.shards}"]) for i in range(1, args.shards + 1)
    ]
    print(sum(ray.get(drawn)), "pictures drawn")


main()
