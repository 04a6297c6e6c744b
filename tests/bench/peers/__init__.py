"""The peers that `make bench-peers` measures, one small file each; they run in .venv-peers and import nothing of ours.

Such a file has `worker(slots)`, the command of its workers: two worker processes, with their settings for throughput
when `slots` is None, else each with room for so many sleeping jobs, since none of the peers shares them out evenly;
`enqueue(job, index)`, durable when it returns; and `enqueue_all(job, indices)`, the quickest way it has for many.

Jobs are `noop` and `sleep` (one second). All say what they do in the same cheap way (`marks.py`), none keeps results.
"""
